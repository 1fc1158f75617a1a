#include "plan.h"

#include <openssl/evp.h>

#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "backend.h"
#include "metadata.h"

namespace dyvit {
namespace {

// In bytes.
constexpr std::uintmax_t largest_sidecar = 64 << 20;
constexpr std::size_t block = 1 << 20;

Sidecar parse_sidecar(std::filesystem::path const& path) {
  try {
    std::ifstream file(path);
    auto const facts = nlohmann::json::parse(file);
    int const format = facts.at("format").get<int>();
    if (format != metadata_format)
      throw Error(path.string() + " was written in format " + std::to_string(format) + ", this dyvit reads format " +
                  std::to_string(metadata_format) + "; build the engine again.");
    if (facts.at("model").is_null())
      throw Error(path.string() + " has no preprocessing, because the engine was built from a foreign ONNX file; build "
                  "it of one that dyvit export made.");
    Sidecar sidecar;
    sidecar.metadata = metadata_of(facts.at("model"));
    sidecar.builder = facts.at("builder").at("format").get<std::string>();
    sidecar.version = facts.at("builder").at("version").get<std::string>();
    sidecar.rebuild = facts.at("rebuild").get<std::string>();
    sidecar.sha256 = facts.at("plan").at("sha256").get<std::string>();
    sidecar.bytes = facts.at("plan").at("bytes").get<std::uintmax_t>();
    sidecar.host_code = facts.at("config").value("version_compatible", false);
    sidecar.stripped = facts.value("stripped", false);
    return sidecar;
  } catch (nlohmann::json::exception const& error) {
    throw Error(path.string() + " does not describe an engine that dyvit wrote (" + reason(error.what()) +
                "); build the engine again.");
  }
}

std::uintmax_t size_of(std::filesystem::path const& path) {
  std::error_code error;
  auto const size = std::filesystem::file_size(path, error);
  if (error)
    throw Error("The size of " + path.string() + " cannot be read (" + reason(error.message()) + "); check the path.");
  return size;
}

Sidecar read_sidecar(std::filesystem::path const& plan) {
  std::filesystem::path const path = plan.string() + ".json";
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    throw Error(path.string() + ", which describes the engine, is missing; copy it beside the plan, or build the engine "
                "with dyvit build.");
  require_file(path);
  if (size_of(path) > largest_sidecar)
    throw Error(path.string() + " is too large to describe an engine; build the engine again.");
  return parse_sidecar(path);
}

std::string sha256_of(std::FILE* file) {
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> const digest(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  EVP_DigestInit_ex(digest.get(), EVP_sha256(), nullptr);
  std::vector<unsigned char> buffer(block);
  while (std::size_t const count = std::fread(buffer.data(), 1, buffer.size(), file))
    EVP_DigestUpdate(digest.get(), buffer.data(), count);
  std::array<unsigned char, EVP_MAX_MD_SIZE> value = {};
  unsigned int size = 0;
  EVP_DigestFinal_ex(digest.get(), value.data(), &size);
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    constexpr char digits[] = "0123456789abcdef";
    text += {digits[value[i] >> 4], digits[value[i] & 15]};
  }
  return text;
}

}  // namespace

Plan::Plan(std::filesystem::path const& path, bool trust)
    : sidecar(read_sidecar(path)), file_(std::fopen(path.c_str(), "rb"), std::fclose) {
  if (!file_) throw Error(path.string() + " cannot be read; change its permissions.");
  auto const size = size_of(path);
  if (size < sidecar.bytes)
    throw Error(path.string() + " has " + std::to_string(size) + " of the " + std::to_string(sidecar.bytes) +
                " bytes of its plan: it was not copied to the end; copy or build it again.");
  if (!trust && (size != sidecar.bytes || sha256_of(file_.get()) != sidecar.sha256))
    throw Error(path.string() + " is not the file that " + path.filename().string() + ".json describes; a plan is native "
                "code, so trust it only when you know where it comes from, or build it again.");
  if (sidecar.stripped)
    throw Error(path.string() + " has no weights; put them in with dyvit refit " + path.string() + " MODEL.onnx -o FULL.plan.");
  seek(0, SEEK_SET);
}

std::int64_t Plan::read(void* target, std::int64_t size) {
  return static_cast<std::int64_t>(std::fread(target, 1, static_cast<std::size_t>(size), file_.get()));
}

bool Plan::seek(std::int64_t offset, int whence) { return std::fseek(file_.get(), offset, whence) == 0; }

}  // namespace dyvit
