// Stands in for plan.cpp, which needs OpenSSL: any file is a plan, of the engine in fake/NvInferRuntime.h.
#include "plan.h"

namespace dyvit {
namespace {

Sidecar of_the_fake_engine() {
  Sidecar sidecar;
  sidecar.builder = DYVIT_TENSORRT_FORMAT;
  sidecar.metadata.model = "fake";
  sidecar.metadata.precision = "float16";
  sidecar.metadata.height = sidecar.metadata.width = sidecar.metadata.classes = 2;
  return sidecar;
}

}  // namespace

Plan::Plan(std::filesystem::path const& path, bool) : sidecar(of_the_fake_engine()),
                                                      file_(std::fopen(path.c_str(), "rb"), std::fclose) {}

std::int64_t Plan::read(void* target, std::int64_t size) {
  return static_cast<std::int64_t>(std::fread(target, 1, static_cast<std::size_t>(size), file_.get()));
}

bool Plan::seek(std::int64_t offset, int whence) { return std::fseek(file_.get(), offset, whence) == 0; }

}  // namespace dyvit
