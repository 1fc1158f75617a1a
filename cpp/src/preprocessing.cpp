// The same geometry as in dyvit_deploy/data/preprocess.py; ONNX Runtime does the resampling.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "backend.h"
#include "dyvit/images.h"
#include "onnxruntime_session.h"

namespace dyvit {
namespace {

#include "resize_graphs.inc"

struct Bytes {
  unsigned char const* data;
  std::size_t size;
};

Bytes graph_of(std::string const& interpolation) {
  if (interpolation == "bicubic") return {bicubic_graph, sizeof bicubic_graph};
  if (interpolation == "bilinear") return {bilinear_graph, sizeof bilinear_graph};
  throw Error("Images are resized here by bicubic or bilinear interpolation only, and this model was evaluated with " +
              interpolation + "; prepare its images in Python.");
}

// Python's round((outer - inner) / 2), which rounds halves to even, as nearbyint does by default.
std::int64_t centred(std::int64_t outer, std::int64_t inner) {
  return static_cast<std::int64_t>(std::nearbyint(static_cast<double>(outer - inner) / 2));
}

struct Size {
  std::int64_t height, width;
};

// The size to which `image` is resized before the crop.
Size scaled(Image const& image, Metadata const& model) {
  std::int64_t const shorter = model.preprocessing.short_side, longer = std::max(shorter, model.preprocessing.long_side);
  Size const asked = model.width > model.height ? Size{shorter, longer} : Size{longer, shorter};
  if (model.preprocessing.squash) return asked;
  auto const height = static_cast<double>(image.height), width = static_cast<double>(image.width);
  if (shorter == longer) {
    std::int64_t const side = std::min(image.height, image.width);
    auto const along = [=](std::int64_t length) {
      return length == side ? shorter
                            : static_cast<std::int64_t>(static_cast<double>(shorter * length) / static_cast<double>(side));
    };
    return {along(image.height), along(image.width)};
  }
  double const ratio = std::min(height / static_cast<double>(asked.height), width / static_cast<double>(asked.width));
  // Halves to even, as Python rounds.
  return {static_cast<std::int64_t>(std::nearbyint(height / ratio)), static_cast<std::int64_t>(std::nearbyint(width / ratio))};
}

// The part of this size around the centre of `image`, padded with black where `image` is smaller.
Image centre_crop(Image const& image, std::int64_t height, std::int64_t width) {
  Image result{height, width, std::vector<std::uint8_t>(static_cast<std::size_t>(height * width * 3))};
  std::int64_t const top = centred(image.height, height), left = centred(image.width, width);
  std::int64_t const from = std::max<std::int64_t>(0, -left), to = std::min(width, image.width - left);
  for (std::int64_t row = 0; row < height; ++row) {
    std::int64_t const source = row + top;
    if (source < 0 || source >= image.height || to <= from) continue;
    std::memcpy(&result.rgb[static_cast<std::size_t>((row * width + from) * 3)],
                &image.rgb[static_cast<std::size_t>((source * image.width + from + left) * 3)],
                static_cast<std::size_t>((to - from) * 3));
  }
  return result;
}

}  // namespace

struct Preprocessor::Resizer {
  Ort::Session session;
  Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);

  Resizer(Bytes graph, int threads) : session(environment(), graph.data, graph.size, session_options(threads)) {}

  Image run(Image const& image, std::int64_t height, std::int64_t width) {
    if (image.height == height && image.width == width) return image;
    if (height * width > max_pixels)
      throw Error("An image of " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                  " pixels would become larger than " + std::to_string(max_pixels) + " when resized; cut it first.");
    Image result{height, width, std::vector<std::uint8_t>(static_cast<std::size_t>(height * width * 3))};
    std::array<std::int64_t, 4> sizes = {1, 3, height, width};
    std::array<std::int64_t, 1> const sizes_shape = {4};
    std::array<Ort::Value, 2> const inputs = {
        wrap(image), Ort::Value::CreateTensor<std::int64_t>(memory, sizes.data(), 4, sizes_shape.data(), 1)};
    Ort::Value output = wrap(result);
    std::array<char const*, 2> const input_names = {"image", "sizes"};
    std::array<char const*, 1> const output_names = {"resized"};
    session.Run(Ort::RunOptions{nullptr}, input_names.data(), inputs.data(), 2, output_names.data(), &output, 1);
    return result;
  }

  Ort::Value wrap(Image const& image) const {
    std::array<std::int64_t, 3> const shape = {image.height, image.width, 3};
    return Ort::Value::CreateTensor<std::uint8_t>(memory, const_cast<std::uint8_t*>(image.rgb.data()),
                                                  image.rgb.size(), shape.data(), shape.size());
  }
};

Preprocessor::Preprocessor(Metadata const& metadata, int threads) try
    : metadata_(metadata),
      resizer_(std::make_unique<Resizer>(graph_of(metadata.preprocessing.interpolation), threads)) {
} catch (Ort::Exception const& error) {
  throw Error("ONNX Runtime cannot prepare its resizing (" + reason(error.what()) + "); use another version of it.");
}

Preprocessor::~Preprocessor() = default;

Image Preprocessor::resize_and_crop(Image const& image) const try {
  if (image.height < 1 || image.width < 1 || image.rgb.size() != static_cast<std::size_t>(image.height * image.width * 3))
    throw Error("An image needs height x width x 3 bytes; fill Image from read_image, or with rows without gaps.");
  if (metadata_.preprocessing.short_side == 0) return resizer_->run(image, metadata_.height, metadata_.width);
  Size const size = scaled(image, metadata_);
  return centre_crop(resizer_->run(image, size.height, size.width), metadata_.height, metadata_.width);
} catch (Ort::Exception const& error) {
  throw Error("ONNX Runtime could not resize an image of " + std::to_string(image.width) + " x " +
              std::to_string(image.height) + " pixels (" + reason(error.what()) + "); use another image.");
}

Batch Preprocessor::prepare(std::vector<Image> const& images) const {
  auto const count = static_cast<std::int64_t>(images.size());
  auto const pixels = static_cast<std::size_t>(metadata_.height * metadata_.width);
  Batch batch;
  batch.type = metadata_.input;
  batch.shape = {count, 3, metadata_.height, metadata_.width};
  if (batch.type == DataType::uint8) {
    batch.shape = {count, metadata_.height, metadata_.width, 3};
    for (Image const& image : images) {
      Image const ready = resize_and_crop(image);
      batch.bytes.insert(batch.bytes.end(), ready.rgb.begin(), ready.rgb.end());
    }
    return batch;
  }
  batch.floats.resize(images.size() * 3 * pixels);
  float* plane = batch.floats.data();
  for (Image const& image : images) {
    Image const ready = resize_and_crop(image);
    for (std::size_t channel = 0; channel < 3; ++channel, plane += pixels) {
      float const mean = metadata_.preprocessing.mean[channel], deviation = metadata_.preprocessing.deviation[channel];
      for (std::size_t pixel = 0; pixel < pixels; ++pixel)
        plane[pixel] = (static_cast<float>(ready.rgb[pixel * 3 + channel]) / 255.0F - mean) / deviation;
    }
  }
  return batch;
}

Images Batch::view() const {
  return {type, type == DataType::uint8 ? static_cast<void const*>(bytes.data()) : floats.data(), shape};
}

}  // namespace dyvit
