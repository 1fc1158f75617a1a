// One execution context with its own stream and memory, used by one call at a time.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <utility>
#include <vector>

#include "cuda.h"

namespace dyvit {

// An input or output of the engine. `sides` are its dimensions without the batch.
struct EngineTensor {
  std::string name;
  std::size_t bytes_per_image;
  std::vector<std::int64_t> sides;
};

class GpuStream {
 public:
  explicit GpuStream(std::unique_ptr<nvinfer1::IExecutionContext> context) : context_(std::move(context)) {}
  // After an error, a batch may still be running in the context and its memory.
  ~GpuStream() { stream_.settle(); }

  // Starts to copy `batch` images to the GPU, padded with copies of the first one to `padded`, for `profile`. No other batch
  // may be running on the stream. Returns false when TensorRT fails; the reason is in its log.
  bool upload(EngineTensor const& input, std::vector<EngineTensor> const& outputs, void const* images, std::int64_t batch,
              std::int64_t padded, int profile);
  // Starts to run the batch that was uploaded last. Returns false when TensorRT fails; the reason is in its log.
  bool launch() { return context_->enqueueV3(stream_.get()); }
  // Copies the outputs of `batch` images into `targets`, in order, and waits for them.
  void download(std::vector<EngineTensor> const& outputs, std::int64_t batch, std::vector<void*> const& targets);
  void wait() const { stream_.wait(); }

 private:
  bool prepare(EngineTensor const& input, std::vector<EngineTensor> const& outputs, std::int64_t padded, int profile);

  // Declared first, so that it outlives the context and the memory that it works on.
  Stream stream_;
  Buffer source_;
  std::vector<Buffer> results_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  // Number of images that shapes and addresses are set for.
  std::int64_t prepared_ = 0;
};

}  // namespace dyvit
