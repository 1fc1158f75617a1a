// ONNX files give the same logits and kept patches as in Python; invalid input is refused with one sentence.
#include <doctest/doctest.h>

#include <cmath>
#include <thread>

#include "reference.h"

using dyvit::DataType;
using dyvit::Engine;
using dyvit::Error;
using reference::complaint;
using reference::has;

namespace {

// The input tensor of the Python runner.
struct Feed {
  std::vector<float> floats;
  std::vector<std::uint8_t> bytes;
  dyvit::Images images;

  explicit Feed(nlohmann::json const& model) {
    auto const shape = model["shape"].get<std::vector<std::int64_t>>();
    if (model["input"] == "uint8") {
      bytes = reference::array<std::uint8_t>(model["feed"]);
      images = {DataType::uint8, bytes.data(), shape};
    } else {
      floats = reference::array<float>(model["feed"]);
      images = {DataType::float32, floats.data(), shape};
    }
  }
};

Engine open(char const* name, dyvit::Options const& options = {}) {
  return Engine::open(reference::folder / name, options);
}

float largest_difference(std::vector<float> const& a, std::vector<float> const& b) {
  REQUIRE(a.size() == b.size());
  float largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

void check_answer(nlohmann::json const& model, dyvit::Outputs const& outputs) {
  CHECK(largest_difference(outputs.logits, reference::array<float>(model["logits"])) < 1e-4F);
  REQUIRE(outputs.kept.size() == model["kept"].size());
  for (std::size_t stage = 0; stage < outputs.kept.size(); ++stage)
    CHECK(outputs.kept[stage] == reference::array<std::int64_t>(model["kept"][stage]));
}

}  // namespace

TEST_CASE("logits and kept patches are those of Python on the same tensors") {
  for (auto const& model : reference::manifest()["models"]) {
    CAPTURE(model["file"].get<std::string>());
    check_answer(model, open(model["file"].get<std::string>().c_str()).infer(Feed(model).images));
  }
}

TEST_CASE("uint8 and float32 input give the same logits") {
  auto const& models = reference::manifest()["models"];
  auto const floats = open("digits-float32.onnx").infer(Feed(models[0]).images);
  auto const bytes = open("digits-uint8.onnx").infer(Feed(models[1]).images);
  CHECK(largest_difference(floats.logits, bytes.logits) < 1e-4F);
  CHECK(floats.kept == bytes.kept);
}

TEST_CASE("metadata is what Python wrote") {
  for (auto const& model : reference::manifest()["models"]) {
    auto const engine = open(model["file"].get<std::string>().c_str());
    auto const& facts = engine.metadata();
    CHECK(facts.model == model["model"].get<std::string>());
    CHECK(facts.kept_counts == model["kept_counts"].get<std::vector<std::int64_t>>());
    CHECK((facts.input == DataType::uint8) == (model["input"] == "uint8"));
    CHECK(facts.precision == "float32");
    CHECK(facts.classes == 10);
    CHECK(facts.outputs_kept);
    CHECK(facts.label(7) == (model["class_names"].is_null() ? "class 7" : "7"));
    CHECK(has(engine.backend(), "ONNX Runtime"));
  }
  auto const engine = open("photos.onnx");
  CHECK(engine.metadata().height == 224);
  CHECK(engine.metadata().preprocessing.short_side == 256);
  CHECK(engine.metadata().preprocessing.mean[2] == doctest::Approx(0.406));
  CHECK(engine.metadata().preprocessing.deviation[0] == doctest::Approx(0.229));
}

TEST_CASE("several threads at once get the right answers from one engine") {
  auto const& model = reference::manifest()["models"][0];
  Feed const feed(model);
  auto const engine = open("digits-float32.onnx", {"cpu", 1, 0, false});
  auto const expected = reference::array<float>(model["logits"]);
  constexpr int workers = 4, rounds = 5;
  std::vector<float> worst(workers, 0);
  std::vector<std::thread> threads;
  for (std::size_t worker = 0; worker < workers; ++worker)
    threads.emplace_back([&, worker] {
      dyvit::Outputs outputs;
      // Each thread runs another part of the batch.
      for (int round = 0; round < rounds; ++round) {
        auto const begin = static_cast<std::int64_t>(worker);
        dyvit::Images const part = {DataType::float32, feed.floats.data() + begin * 3 * 64 * 64, {begin + 1, 3, 64, 64}};
        engine.infer(part, outputs);
        for (std::size_t i = 0; i < outputs.logits.size(); ++i)
          worst[worker] = std::max(worst[worker], std::abs(outputs.logits[i] - expected[worker * 10 + i]));
      }
    });
  for (auto& thread : threads) thread.join();
  for (float const difference : worst) CHECK(difference < 1e-4F);
}

TEST_CASE("a batch that does not fit is refused") {
  Feed const feed(reference::manifest()["models"][0]);
  auto const engine = open("digits-float32.onnx");
  auto const refused = [&](dyvit::Images const& images) { return complaint([&] { engine.infer(images); }); };
  void const* data = feed.floats.data();
  std::string const said = "digits-float32.onnx takes float32 [any, 3, 64, 64], not ";
  CHECK(has(refused({DataType::uint8, data, {1, 3, 64, 64}}), (said + "uint8 [1, 3, 64, 64]").c_str()));
  CHECK(has(refused({DataType::float32, data, {3, 64, 64}}), (said + "float32 [3, 64, 64]").c_str()));
  CHECK(has(refused({DataType::float32, data, {}}), (said + "float32 []").c_str()));
  CHECK(has(refused({DataType::float32, data, {1, 3, 64, 32}}), said.c_str()));
  CHECK(has(refused({DataType::float32, data, {1, 64, 64, 3}}), said.c_str()));
  CHECK(has(refused({DataType::float32, data, {0, 3, 64, 64}}), "at least one image"));
  CHECK(has(refused({DataType::float32, nullptr, {1, 3, 64, 64}}), "at least one image"));
  CHECK(has(refused({DataType::float32, data, {-1, 3, 64, 64}}), "at least one image"));

  auto const fixed = open("fixed.onnx");
  CHECK(fixed.metadata().batch_max == 2);
  CHECK(has(complaint([&] { fixed.infer({DataType::float32, data, {3, 3, 64, 64}}); }), "at most 2 images at once, not 3"));
  CHECK(has(complaint([&] { fixed.infer({DataType::float32, data, {1, 3, 64, 64}}); }), "at least 2 images at once, not 1"));
  CHECK(fixed.infer({DataType::float32, data, {2, 3, 64, 64}}).logits.size() == 20);
}

TEST_CASE("what is no artifact of ours is refused") {
  auto const refused = [](char const* name) { return complaint([&] { open(name); }); };
  std::ofstream(reference::folder / "text.onnx") << "not a model";
  std::ofstream(reference::folder / "empty.onnx").flush();
  CHECK(has(refused("missing.onnx"), "does not exist; check the path."));
  CHECK(has(refused("."), "is a folder; name a file in it."));
  CHECK(has(refused("empty.onnx"), "is empty;"));
  CHECK(has(refused("text.onnx"), "is not an ONNX model that ONNX Runtime can load here (Load model from"));
  CHECK(has(refused("foreign.onnx"), "has no metadata of dyvit"));
  CHECK(has(refused("future.onnx"), "was written in format 99, this dyvit reads format 1"));
  CHECK(has(refused("odd.onnx"), "cannot be read ("));
}

TEST_CASE("ONNX Runtime cannot run without transfers") {
  Feed const feed(reference::manifest()["models"][0]);
  auto const engine = open("digits-float32.onnx");
  CHECK(has(complaint([&] { engine.call_without_transfers(feed.images); }), "takes and gives host memory"));
}

TEST_CASE("a provider that is not there is one sentence") {
  for (char const* provider : {"cuda", "tensorrt"}) {
    dyvit::Options options;
    options.provider = provider;
    auto const text = complaint([&] { open("digits-float32.onnx", options); });
    // This machine has a GPU.
    if (text.empty()) continue;
    CHECK(has(text, (std::string("cannot use its provider ") + provider).c_str()));
    CHECK(!has(text, "\n"));
  }
  CHECK(has(complaint([] { open("digits-float32.onnx", {"gpu", 0, 0, false}); }), "choose cpu, cuda or tensorrt."));
}

TEST_CASE("the most probable classes come first, with probabilities") {
  dyvit::Outputs outputs;
  outputs.batch = 2;
  outputs.logits = {0, 0, 0, 0, 1, std::log(3.0F) + 1};
  auto const best = dyvit::top_classes(outputs, 1, 2);
  REQUIRE(best.size() == 2);
  CHECK(best[0].index == 2);
  CHECK(best[0].probability == doctest::Approx(3 / (1 + 3 + std::exp(-1))));
  CHECK(best[1].index == 1);
  CHECK(dyvit::top_classes(outputs, 0, 9).size() == 3);
  CHECK(has(complaint([&] { dyvit::top_classes(outputs, 2, 1); }), "no image 2"));
  outputs.logits[1] = std::nanf("");
  CHECK(has(complaint([&] { dyvit::top_classes(outputs, 0, 1); }), "not finite"));
}
