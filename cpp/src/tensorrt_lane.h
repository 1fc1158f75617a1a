// One execution context on one stream, with its memory: what a call has to itself.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
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
  explicit Lane(nvinfer1::ICudaEngine& engine) : context_(engine.createExecutionContext()) {}
  ~Lane() { stream_.settle(); }         // after an error a batch may still run in the context and the memory
  bool works() const { return context_ != nullptr; }

  // Runs `batch` images, filled up with the first one to `padded`, in `profile`; `targets` take the outputs in order.
  // False when TensorRT refuses; its log says why.
  bool run(EngineTensor const& input, std::vector<EngineTensor> const& outputs, void const* images, std::int64_t batch,
           std::int64_t padded, int profile, std::vector<void*> const& targets);

 private:
  bool prepare(EngineTensor const& input, std::vector<EngineTensor> const& outputs, std::int64_t padded, int profile);

  Stream stream_;                       // outlives the context and the memory that it works on
  Buffer source_;
  std::vector<Buffer> results_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::int64_t prepared_ = 0;           // images that shapes and addresses are set for
};

}  // namespace dyvit
