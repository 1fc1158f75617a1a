// Engine plans: checks of the sidecar, and one sentence without a GPU. Running a plan needs a GPU and is unverified.
#include <doctest/doctest.h>

#include "reference.h"

using reference::complaint;
using reference::has;

namespace {

// A copy of the reference's plan and sidecar that a test may damage.
struct Copy {
  std::filesystem::path plan = reference::folder / "copy.plan", sidecar = reference::folder / "copy.plan.json";

  Copy() {
    auto const overwrite = std::filesystem::copy_options::overwrite_existing;
    std::filesystem::copy_file(reference::folder / "engine.plan", plan, overwrite);
    std::filesystem::copy_file(reference::folder / "engine.plan.json", sidecar, overwrite);
  }
  void change_sidecar(char const* pointer, nlohmann::json const& value) const {
    auto facts = nlohmann::json::parse(std::ifstream(sidecar));
    facts[nlohmann::json::json_pointer(pointer)] = value;
    std::ofstream(sidecar) << facts;
  }
  std::string refused(bool trust = false) const {
    dyvit::Options options;
    options.trust = trust;
    return complaint([&] { dyvit::Engine::open(plan, options); });
  }
};

bool no_plan() {
  if (!reference::manifest()["plan"].is_null()) return false;
  MESSAGE("skipped: tensorrt_rtx, which builds plans without a GPU, is not installed: pip install 'dyvit-deploy[rtx]'");
  return true;
}

}  // namespace

TEST_CASE("a plan without a GPU is one sentence") {
  if (no_plan()) return;
  auto const text = Copy().refused();
  // This machine has a GPU.
  if (text.empty()) return;
  CHECK(has(text, "cannot load here"));
  CHECK(has(text, "take it to a machine with one."));
  CHECK(!has(text, "\n"));
}

TEST_CASE("a plan that is not the file of its sidecar is refused unless trusted") {
  if (no_plan()) return;
  Copy const copy;
  std::fstream(copy.plan, std::ios::in | std::ios::out | std::ios::binary).seekp(5000).put('x').put('y');
  CHECK(has(copy.refused(), "is not the file that copy.plan.json describes"));
  CHECK(!has(copy.refused(true), "is not the file that"));
  std::filesystem::resize_file(copy.plan, 4000);
  CHECK(has(copy.refused(), "bytes of its plan: it was not copied to the end"));
}

TEST_CASE("a sidecar that says nothing useful is refused") {
  if (no_plan()) return;
  Copy const copy;
  copy.change_sidecar("/stripped", true);
  CHECK(has(copy.refused(), "has no weights; put them in with dyvit refit"));
  copy.change_sidecar("/model", nullptr);
  CHECK(has(copy.refused(), "built from a foreign ONNX file"));
  copy.change_sidecar("/format", 99);
  CHECK(has(copy.refused(), "was written in format 99"));
  std::ofstream(copy.sidecar) << "{";
  CHECK(has(copy.refused(), "does not describe an engine that dyvit wrote"));
  std::filesystem::remove(copy.sidecar);
  CHECK(has(copy.refused(), "copy.plan.json, which describes the engine, is missing"));
}

TEST_CASE("a plan of the other library is refused") {
  if (no_plan()) return;
  Copy const copy;
  copy.change_sidecar("/builder/format", std::string(DYVIT_TENSORRT_FORMAT) == "rtx" ? "trt" : "rtx");
  CHECK(has(copy.refused(), "build dyvit with the other TENSORRT_ROOT."));
}
