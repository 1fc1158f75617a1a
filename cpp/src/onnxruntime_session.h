// Environment and session options of ONNX Runtime, shared by models and resize graphs.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <cstdlib>
#include <filesystem>

namespace dyvit {

// One environment per process, as ONNX Runtime requires. It logs nothing: exceptions are translated where they are caught.
// Unless the user chose otherwise, it reports nothing either: it would write an identifier to the file .ses in TMPDIR, through
// a link that someone else put there.
inline Ort::Env& environment() {
  static int const chosen = setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  static_cast<void>(chosen);
  static Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "dyvit");
  return env;
}

// The same settings as in the Python runner, so that both take the same time; `threads` 0 uses all cores.
inline Ort::SessionOptions session_options(int threads) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
  options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
  // Otherwise the threads of an idle session would keep spinning while the next session runs.
  options.AddConfigEntry("session.force_spinning_stop", "1");
  return options;
}

// Throws Error if, with the provider in `options`, a node of the model `path` would run on the CPU.
void require_no_cpu_fallback(std::filesystem::path const& path, Ort::SessionOptions options);

}  // namespace dyvit
