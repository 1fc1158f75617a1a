// From image files to a batch, with the preprocessing of the evaluation in Python. Needs ONNX Runtime, which resizes.
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
  // In pixels.
  std::int64_t height = 0, width = 0;
  std::vector<std::uint8_t> rgb;        // [height, width, 3]
};

// A JPEG or PNG file as RGB; alpha is dropped, and the EXIF orientation applied only with `orient`, as in Python.
// Throws Error if the file is missing, of another format, larger than max_pixels, damaged or cut short.
Image read_image(std::filesystem::path const& path, bool orient = false);

// A batch that owns its memory; pass its `view` to Engine::infer.
struct Batch {
  DataType type = DataType::float32;
  std::vector<std::int64_t> shape;      // [B, 3, H, W] or [B, H, W, 3]
  // Only one of floats and bytes is filled.
  std::vector<float> floats;
  std::vector<std::uint8_t> bytes;
  Images view() const;
};

// Resizes, crops and, for models with float32 input, normalises. May be used from several threads at once.
class Preprocessor {
 public:
  // `threads` is the number within one resize; 0 uses all cores. Throws Error for an interpolation that C++ does not support.
  explicit Preprocessor(Metadata const& metadata, int threads = 1);
  ~Preprocessor();

  // The image in the model's size: short side resized, centre cropped, padded with black where the crop is larger.
  Image resize_and_crop(Image const& image) const;

  // Converts `images`, of any sizes, to the model's input.
  Batch prepare(std::vector<Image> const& images) const;

 private:
  struct Resizer;
  Metadata metadata_;
  std::unique_ptr<Resizer> resizer_;
};

}  // namespace dyvit
