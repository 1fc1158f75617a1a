// Engine plans and the sidecar beside them (dyvit_deploy/engine/sidecar.py). A plan is native code.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "dyvit/engine.h"

namespace dyvit {

// What `engine.plan.json` says of `engine.plan`.
struct Sidecar {
  Metadata metadata;
  std::string builder;                  // "trt" or "rtx"
  std::string version;                  // of the builder
  std::string rebuild;                  // the command that makes the plan again
  std::string sha256;                   // of the plan
  std::uintmax_t bytes = 0;
  bool host_code = false;               // built version compatible: the plan brings code of the runtime's own
  bool stripped = false;                // its weights were left out
};

// A plan whose bytes are those that its sidecar describes.
class Plan {
 public:
  // Throws Error: no sidecar, one of another file or format, or a plan without weights. `trust` skips the hash.
  Plan(std::filesystem::path const& path, bool trust);

  // The next `size` bytes into `target`, as many as there are. Reads the file that was checked, even if another has
  // taken its name.
  std::int64_t read(void* target, std::int64_t size);
  bool seek(std::int64_t offset, int whence);

  Sidecar const sidecar;

 private:
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

}  // namespace dyvit
