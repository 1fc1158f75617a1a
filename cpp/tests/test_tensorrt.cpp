// The order of the calls to TensorRT and CUDA, recorded by the stand-ins in fake/. Running a plan needs a GPU.
#include <NvInferRuntime.h>
#include <doctest/doctest.h>

#include "reference.h"

using reference::complaint;
using reference::has;

namespace {

bool const rtx = std::string(DYVIT_TENSORRT_FORMAT) == "rtx";

// The calls recorded since the last call of this function.
std::string calls() {
  std::string text;
  for (std::string const& call : fake::calls) text += (text.empty() ? "" : ", ") + call;
  fake::calls.clear();
  return text;
}

// An engine, and three images whose first values are 0, 1 and 2.
struct Opened {
  dyvit::Engine engine = open();
  std::vector<float> values = std::vector<float>(3 * 12);

  Opened() {
    for (std::size_t i = 0; i < 3; ++i) values[12 * i] = static_cast<float>(i);
  }
  static dyvit::Engine open() {
    calls();
    std::string const path = std::string("fake-") + DYVIT_TENSORRT_FORMAT + ".plan";
    std::ofstream(path) << "ftrt";
    return dyvit::Engine::open(path);
  }
  dyvit::Images images(std::int64_t batch) const { return {dyvit::DataType::float32, values.data(), {batch, 3, 2, 2}}; }
};

}  // namespace

TEST_CASE("the weights are there before the engine is used") {
  Opened const opened;
  CHECK(calls() == "deserialize, synchronize the device");
}

TEST_CASE("weights that cannot be loaded are one sentence") {
  fake::synchronized = cudaErrorUnknown;
  CHECK(complaint([] { Opened::open(); }) == "CUDA cannot load the engine's weights (unknown error); check it with nvidia-smi.");
  fake::synchronized = cudaSuccess;
}

TEST_CASE("TensorRT for RTX specialises kernels before the first batch runs") {
  Opened const opened;
  calls();
  opened.engine.infer(opened.images(2));
  std::string const context = rtx ? "make an eager context" : "make a context";
  CHECK(calls() == context + ", wait, upload, enqueue, download, wait");
}

TEST_CASE("infer gives the outputs of its own images, and fills up a batch that is too small") {
  Opened const opened;
  CHECK(opened.engine.infer(opened.images(3)).logits == std::vector<float>{0, 3, 1, 3, 2, 3});
  CHECK(opened.engine.infer(opened.images(1)).logits == std::vector<float>{0, 2});
}

TEST_CASE("a call without transfers runs the batch and copies nothing") {
  Opened const opened;
  auto const call = opened.engine.call_without_transfers(opened.images(3));
  CHECK(has(calls(), "upload, wait"));
  call();
  call();
  CHECK(calls() == "enqueue, wait, enqueue, wait");
}

TEST_CASE("a call without transfers refuses what infer refuses") {
  Opened const opened;
  CHECK(has(complaint([&] { opened.engine.call_without_transfers(opened.images(5)); }), "takes at most 4 images at once"));
  auto const call = opened.engine.call_without_transfers(opened.images(2));
  fake::enqueues = false;
  CHECK(has(complaint(call), " at batch 2 (no reason given); build it again,"));
  fake::enqueues = true;
}
