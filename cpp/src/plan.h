// Engine plans and the sidecar beside them (dyvit_deploy/engine/sidecar.py). A plan is native code.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "dyvit/engine.h"

namespace dyvit {

// The facts about `engine.plan` in `engine.plan.json`.
struct Sidecar {
  Metadata metadata;
  // "trt" or "rtx".
  std::string builder;
  // Version of the builder.
  std::string version;
  // The command that rebuilds the plan.
  std::string rebuild;
  // Hash of the plan.
  std::string sha256;
  std::uintmax_t bytes = 0;
  // Built with --version-compatible: the plan contains the code of its runtime.
  bool host_code = false;
  // Built without weights.
  bool stripped = false;
};

// A plan whose bytes match its sidecar.
class Plan {
 public:
  // Throws Error if the sidecar is missing, of another file or of another format, or if the plan has no weights. `trust` skips
  // the hash.
  Plan(std::filesystem::path const& path, bool trust);

  // Reads up to `size` bytes into `target`. The file is the one that was checked, even if another has replaced it.
  std::int64_t read(void* target, std::int64_t size);
  bool seek(std::int64_t offset, int whence);

  Sidecar const sidecar;

 private:
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

}  // namespace dyvit
