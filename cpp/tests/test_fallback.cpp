// A model of which some nodes would run on the CPU is not timed as one that runs on the GPU.
#include <doctest/doctest.h>

#include "onnxruntime_session.h"
#include "reference.h"

using reference::complaint;
using reference::has;

TEST_CASE("nodes that no provider takes but the CPU are refused in one sentence") {
  // These options have no provider, so every node runs on the CPU.
  auto const text = complaint([] {
    dyvit::require_no_cpu_fallback(reference::folder / "digits-float32.onnx", dyvit::session_options(1));
  });
  CHECK(has(text, "digits-float32.onnx cannot run on CUDA alone (This session contains graph nodes that are assigned to the"));
  CHECK(has(text, "; allow a part of it on the CPU with --allow-cpu-fallback or Options::allow_cpu_fallback, or choose"));
  CHECK(!has(text, "\n"));
}
