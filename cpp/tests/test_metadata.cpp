// Metadata numbers that determine memory sizes are refused when they are invalid.
#include <doctest/doctest.h>

#include "metadata.h"
#include "reference.h"

using reference::complaint;
using reference::has;

namespace {

nlohmann::json facts() {
  return nlohmann::json::parse(R"({"format": 1, "keep_counts": [44, 30], "model": {
    "name": "tiny", "classes": 10, "image_size": [64, 64], "preprocess": {
      "short_side": null, "interpolation": "bicubic", "mean": [0, 0, 0], "std": [1, 1, 1]}}})");
}

std::string refused(char const* pointer, nlohmann::json const& value) {
  auto changed = facts();
  changed[nlohmann::json::json_pointer(pointer)] = value;
  return complaint([&] { dyvit::parse_metadata(changed.dump(), "x.onnx"); });
}

}  // namespace

TEST_CASE("good metadata is read") {
  auto const read = dyvit::parse_metadata(facts().dump(), "x.onnx");
  CHECK(read.classes == 10);
  CHECK(read.kept_counts == std::vector<std::int64_t>{44, 30});
  for (char const* pointer : {"/model/classes", "/keep_counts/1"}) CHECK(refused(pointer, 1 << 24) == "");
  CHECK(refused("/keep_counts", nullptr) == "");
}

TEST_CASE("sizes that cannot be are refused") {
  std::vector<nlohmann::json> const values = {0, -1, (1 << 24) + 1, std::int64_t{1} << 62, ~std::uint64_t{0}, 1.5, 1e300,
                                              true};
  for (auto const& value : values) {
    CAPTURE(value.dump());
    CHECK(has(refused("/model/classes", value), ("a number of classes of " + value.dump() + ", which is not").c_str()));
    CHECK(has(refused("/keep_counts/1", value), "a number of kept patches of "));
    CHECK(has(refused("/model/image_size/0", value), "an image side of "));
    CHECK(has(refused("/model/preprocess/short_side", value), "an image side of "));
    CHECK(has(refused("/model/preprocess/long_side", value), "an image side of "));
  }
  CHECK(has(refused("/keep_counts/0", nullptr), "a number of kept patches of null"));
  CHECK(has(refused("/keep_counts", 7), "cannot be read ("));
}

TEST_CASE("an input of a type that is not run is refused, not read as float32") {
  CHECK(refused("/input", "uint8") == "");
  CHECK(refused("/input", "float32") == "");
  for (char const* type : {"float16", "bfloat16", "int8", ""}) {
    CAPTURE(type);
    CHECK(has(refused("/input", type), "only float32 and uint8 can be run here"));
  }
}
