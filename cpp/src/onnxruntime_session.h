// What the two users of ONNX Runtime, models and the resize graphs, share.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <filesystem>

namespace dyvit {

// One per process, as ONNX Runtime asks. It logs nothing: its exceptions are translated where they are caught.
inline Ort::Env& environment() {
  static Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "dyvit");
  return env;
}

// As the Python runner sets them, so that both take the same time; `threads` 0 takes all cores.
inline Ort::SessionOptions session_options(int threads) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
  options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
  // An idle session's threads would otherwise spin on into the next one's run.
  options.AddConfigEntry("session.force_spinning_stop", "1");
  return options;
}

// Throws Error: with the provider in `options`, a node of the model `path` would run on the CPU.
void require_no_cpu_fallback(std::filesystem::path const& path, Ort::SessionOptions options);

}  // namespace dyvit
