// Images are decoded, resized and cropped as in Python, and give its logits end to end.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "dyvit/images.h"
#include "reference.h"

using reference::complaint;
using reference::has;

namespace {

struct Difference {
  int largest = 0;
  // Share of the values that differ.
  double share = 0;
};

Difference compare(std::vector<std::uint8_t> const& a, std::vector<std::uint8_t> const& b) {
  REQUIRE(a.size() == b.size());
  Difference found;
  for (std::size_t i = 0; i < a.size(); ++i) {
    int const difference = std::abs(int{a[i]} - int{b[i]});
    found.largest = std::max(found.largest, difference);
    found.share += difference > 0;
  }
  found.share /= static_cast<double>(a.size());
  return found;
}

dyvit::Metadata size_only(std::int64_t height, std::int64_t width, std::int64_t short_side, std::string interpolation,
                          std::int64_t long_side = 0, bool squash = false) {
  dyvit::Metadata facts;
  facts.height = height;
  facts.width = width;
  facts.preprocessing.short_side = short_side;
  facts.preprocessing.interpolation = std::move(interpolation);
  facts.preprocessing.long_side = long_side;
  facts.preprocessing.squash = squash;
  return facts;
}

std::filesystem::path in_folder(nlohmann::json const& name) { return reference::folder / name.get<std::string>(); }

}  // namespace

TEST_CASE("JPEG and PNG files are decoded as by Pillow") {
  for (auto const& expected : reference::manifest()["decoded"]) {
    CAPTURE(expected["file"].get<std::string>());
    auto const image = dyvit::read_image(in_folder(expected["file"]));
    CHECK(image.height == expected["height"].get<std::int64_t>());
    CHECK(image.width == expected["width"].get<std::int64_t>());
    CHECK(compare(image.rgb, reference::array<std::uint8_t>(expected["pixels"])).largest == 0);
  }
}

TEST_CASE("the EXIF orientation is applied only on request, as in Python") {
  for (auto const& expected : reference::manifest()["oriented"]) {
    CAPTURE(expected["file"].get<std::string>());
    auto const image = dyvit::read_image(in_folder(expected["file"]), true);
    REQUIRE(image.height == expected["height"].get<std::int64_t>());
    REQUIRE(image.width == expected["width"].get<std::int64_t>());
    CHECK(compare(image.rgb, reference::array<std::uint8_t>(expected["pixels"])).largest == 0);
  }
}

TEST_CASE("images are resized, cropped and padded as in Python") {
  for (auto const& expected : reference::manifest()["resized"]) {
    CAPTURE(expected["pixels"].get<std::string>());
    dyvit::Preprocessor const preprocessor(size_only(expected["height"], expected["width"], expected["short_side"],
                                                     expected["interpolation"], expected["long_side"],
                                                     expected["squash"]));
    auto const image = preprocessor.resize_and_crop(dyvit::read_image(in_folder(expected["file"])));
    auto const difference = compare(image.rgb, reference::array<std::uint8_t>(expected["pixels"]));
    CHECK(difference.largest <= 1);
    CHECK(difference.share < 0.002);
  }
}

TEST_CASE("image files give the logits of Python, through decoding, resizing and normalising") {
  for (auto const& model : reference::manifest()["models"]) {
    CAPTURE(model["file"].get<std::string>());
    auto const engine = dyvit::Engine::open(in_folder(model["file"]));
    dyvit::Preprocessor const preprocessor(engine.metadata());
    std::vector<dyvit::Image> images;
    for (auto const& name : model["images"]) images.push_back(dyvit::read_image(in_folder(name)));
    auto const logits = engine.infer(preprocessor.prepare(images).view()).logits;
    auto const expected = reference::array<float>(model["logits"]);
    REQUIRE(logits.size() == expected.size());
    float worst = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) worst = std::max(worst, std::abs(logits[i] - expected[i]));
    CHECK(worst < 1e-3F);
  }
}

TEST_CASE("images that cannot be decoded are refused") {
  auto const refused = [](char const* name) { return complaint([&] { dyvit::read_image(reference::folder / name); }); };
  std::ofstream(reference::folder / "text.jpg") << "no image";
  CHECK(has(refused("missing.jpg"), "does not exist"));
  CHECK(has(refused("text.jpg"), "is neither a JPEG nor a PNG file"));
  CHECK(has(refused("cut.jpg"), "is damaged or cut short (the end of the image is missing);"));
  CHECK(has(refused("cut.png"), "is damaged or cut short ("));
  CHECK(has(refused("cmyk.jpg"), "is a CMYK JPEG"));
  CHECK(has(refused("dim.png"), "has 16-bit pixels of 4092 at most, 12 bits or fewer, whose range is unknown"));
  CHECK(has(refused("huge.jpg"), "65500 x 65500 pixels, and more than 100000000 are not decoded"));
  CHECK(has(refused("huge.png"), "12000 x 9000 pixels"));
}

TEST_CASE("a JPEG file is refused wherever it is cut") {
  for (char const* name : {"plain.jpg", "progressive.jpg", "gray.jpg", "thumbnail.jpg"}) {
    std::ifstream file(reference::folder / name, std::ios::binary);
    std::string const content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    auto const path = reference::folder / "shorter.jpg";
    // Each cut keeps part / 40 of the file; the last one ends in the middle of FF D9.
    for (std::size_t part = 1; part <= 40; ++part) {
      std::size_t const size = std::max<std::size_t>(3, content.size() * part / 40 - 1);
      CAPTURE(std::string(name));
      CAPTURE(size);
      std::ofstream(path, std::ios::binary) << content.substr(0, size);
      CHECK(has(complaint([&] { dyvit::read_image(path); }), "is damaged or cut short ("));
    }
    std::ofstream(path, std::ios::binary) << content.substr(0, content.size() - 2) << std::string(100, '\0');
    CHECK(has(complaint([&] { dyvit::read_image(path); }), "is damaged or cut short ("));
  }
}

TEST_CASE("images that cannot be resized are refused") {
  CHECK(has(complaint([] { dyvit::Preprocessor const none(size_only(64, 64, 0, "lanczos")); }), "bicubic or bilinear"));
  dyvit::Preprocessor const preprocessor(size_only(64, 64, 64, "bicubic"));
  CHECK(has(complaint([&] { preprocessor.resize_and_crop({2, 2, std::vector<std::uint8_t>(11)}); }), "height x width x 3"));
  CHECK(has(complaint([&] { preprocessor.resize_and_crop({}); }), "height x width x 3"));
  dyvit::Image const thread{1, 100'000, std::vector<std::uint8_t>(300'000)};
  CHECK(has(complaint([&] { preprocessor.resize_and_crop(thread); }), "would become larger than"));
}
