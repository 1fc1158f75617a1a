// One execution context on one stream, with its memory: what a call has to itself.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <utility>
#include <vector>

#include "cuda.h"

namespace dyvit {

// An input or output of the engine: `bytes_per_image` in GPU memory; sides beyond the batch.
struct EngineTensor {
  std::string name;
  std::size_t bytes_per_image;
  std::vector<std::int64_t> sides;
};

class Lane {
 public:
  explicit Lane(std::unique_ptr<nvinfer1::IExecutionContext> context) : context_(std::move(context)) {}
  ~Lane() { stream_.settle(); }         // after an error a batch may still run in the context and the memory

  // Starts to copy `batch` images to the GPU, filled up with the first one to `padded`, for `profile`. No other batch may
  // run on the lane. False when TensorRT refuses; its log says why.
  bool upload(EngineTensor const& input, std::vector<EngineTensor> const& outputs, void const* images, std::int64_t batch,
              std::int64_t padded, int profile);
  // Starts to run the batch that was uploaded last. False when TensorRT refuses; its log says why.
  bool launch() { return context_->enqueueV3(stream_.get()); }
  // Copies the outputs of `batch` images into `targets`, in order, and waits for them.
  void download(std::vector<EngineTensor> const& outputs, std::int64_t batch, std::vector<void*> const& targets);
  void wait() const { stream_.wait(); }

 private:
  bool prepare(EngineTensor const& input, std::vector<EngineTensor> const& outputs, std::int64_t padded, int profile);

  Stream stream_;                       // outlives the context and the memory that it works on
  Buffer source_;
  std::vector<Buffer> results_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::int64_t prepared_ = 0;           // images that shapes and addresses are set for
};

}  // namespace dyvit
