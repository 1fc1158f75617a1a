// From image files to a batch, as the checkpoint was evaluated in Python. Needs ONNX Runtime, which resizes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "dyvit/engine.h"

namespace dyvit {

// Larger files are refused before they are decoded: a small file can claim any size.
constexpr std::int64_t max_pixels = 100'000'000;

struct Image {
  std::int64_t height = 0, width = 0;   // pixels
  std::vector<std::uint8_t> rgb;        // [height, width, 3]
};

// A JPEG or PNG file as RGB; alpha is dropped and EXIF rotation ignored, as in Python.
// Throws Error: no such file, another format, more than max_pixels, damaged or cut short.
Image read_image(std::filesystem::path const& path);

// A batch that owns its memory; `view` is what Engine::infer takes.
struct Batch {
  DataType type = DataType::float32;
  std::vector<std::int64_t> shape;      // [B, 3, H, W] or [B, H, W, 3]
  std::vector<float> floats;            // one of the two is filled
  std::vector<std::uint8_t> bytes;
  Images view() const;
};

// Resizes, crops and, for models with float32 input, normalises. May be used from several threads at once.
class Preprocessor {
 public:
  // `threads` within one resize; 0 takes all cores. Throws Error: an interpolation that C++ does not have.
  explicit Preprocessor(Metadata const& metadata, int threads = 1);
  ~Preprocessor();

  // The image in the model's size: short side resized, centre cropped, padded with black where the crop is larger.
  Image resize_and_crop(Image const& image) const;

  // `images`, of any sizes, as the model's input.
  Batch prepare(std::vector<Image> const& images) const;

 private:
  struct Resizer;
  Metadata metadata_;
  std::unique_ptr<Resizer> resizer_;
};

}  // namespace dyvit
