#include "tensorrt_stream.h"

#include <cstring>

namespace dyvit {

bool GpuStream::prepare(EngineTensor const& input, std::vector<EngineTensor> const& outputs, std::int64_t padded,
                        int profile) {
  prepared_ = 0;
  nvinfer1::Dims shape = {};
  shape.nbDims = static_cast<std::int32_t>(input.sides.size() + 1);
  shape.d[0] = padded;
  for (std::size_t i = 0; i < input.sides.size(); ++i) shape.d[i + 1] = input.sides[i];
  if (!context_->setOptimizationProfileAsync(profile, stream_.get())) return false;
  stream_.wait();
  if (!context_->setInputShape(input.name.c_str(), shape)) return false;
  auto const images = static_cast<std::size_t>(padded);
  source_.reserve(images * input.bytes_per_image);
  results_.resize(outputs.size());
  if (!context_->setTensorAddress(input.name.c_str(), source_.device())) return false;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    results_[i].reserve(images * outputs[i].bytes_per_image);
    if (!context_->setTensorAddress(outputs[i].name.c_str(), results_[i].device())) return false;
  }
  prepared_ = padded;
  return true;
}

bool GpuStream::upload(EngineTensor const& input, std::vector<EngineTensor> const& outputs, void const* images,
                       std::int64_t batch, std::int64_t padded, int profile) {
  if (prepared_ != padded && !prepare(input, outputs, padded, profile)) return false;
  auto const count = static_cast<std::size_t>(batch), filled = static_cast<std::size_t>(padded);
  auto* const host = static_cast<std::uint8_t*>(source_.host());
  std::memcpy(host, images, count * input.bytes_per_image);
  for (std::size_t image = count; image < filled; ++image)
    std::memcpy(host + image * input.bytes_per_image, images, input.bytes_per_image);
  source_.upload(filled * input.bytes_per_image, stream_);
  return true;
}

void GpuStream::download(std::vector<EngineTensor> const& outputs, std::int64_t batch,
                         std::vector<void*> const& targets) {
  auto const count = static_cast<std::size_t>(batch);
  for (std::size_t i = 0; i < outputs.size(); ++i) results_[i].download(count * outputs[i].bytes_per_image, stream_);
  stream_.wait();
  for (std::size_t i = 0; i < outputs.size(); ++i)
    std::memcpy(targets[i], results_[i].host(), count * outputs[i].bytes_per_image);
}

}  // namespace dyvit
