// The interface between Engine and the libraries that run models, and helpers that the backends share.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "dyvit/engine.h"

namespace dyvit {

class Backend {
 public:
  virtual ~Backend() = default;

  // Runs a checked batch and writes to `outputs`, whose vectors already have their sizes. May be called from several threads at
  // once.
  virtual void run(Images const& images, Outputs& outputs) = 0;

  // See Engine::call_without_transfers. Throws Error here: only backends that keep a batch on the GPU override it.
  virtual std::function<void()> call_without_transfers(Images const& images);

  // Name of the artifact, for messages.
  std::string file;
  // Library, version and device.
  std::string name;
  Metadata metadata;
};

std::unique_ptr<Backend> open_onnxruntime(std::filesystem::path const& path, Options const& options);
std::unique_ptr<Backend> open_tensorrt(std::filesystem::path const& path, Options const& options);

// Throws Error unless `path` is a readable, non-empty file.
void require_file(std::filesystem::path const& path);

// The first line of another library's message, without its final punctuation, for use within our error messages.
std::string reason(std::string_view message);

// The shape as text, such as "any, 3, 64, 64"; negative sides are free.
std::string shape_text(std::vector<std::int64_t> const& shape);

}  // namespace dyvit
