// Memory and streams of the GPU, freed when they go out of scope.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "backend.h"

namespace dyvit {

inline void check_cuda(cudaError_t code, char const* what) {
  if (code == cudaErrorMemoryAllocation)
    throw Error("The GPU has too little free memory; choose a smaller batch, or free the GPU.");
  if (code != cudaSuccess)
    throw Error(std::string("CUDA cannot ") + what + " (" + reason(cudaGetErrorString(code)) + "); check it with nvidia-smi.");
}

// Call this before any TensorRT function: without a GPU, its lean runtime is created as an invalid pointer, which crashes
// later.
inline void require_gpu(int device, std::string const& path) {
  int count = 0;
  cudaError_t const code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess || count == 0)
    throw Error(path + " cannot load here: no NVIDIA GPU with a driver works here (" +
                (code == cudaSuccess ? "none found" : reason(cudaGetErrorString(code))) +
                "); take it to a machine with one.");
  if (device < 0 || device >= count)
    throw Error("There is no GPU " + std::to_string(device) + " here; the last one is " + std::to_string(count - 1) + ".");
}

class Stream {
 public:
  Stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "make a stream"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(Stream const&) = delete;
  Stream& operator=(Stream const&) = delete;
  cudaStream_t get() const { return stream_; }
  void wait() const { check_cuda(cudaStreamSynchronize(stream_), "finish a batch"); }
  void settle() const noexcept { cudaStreamSynchronize(stream_); }

 private:
  cudaStream_t stream_ = nullptr;
};

// Memory on the GPU, and a pinned buffer of the same size on the host, so that copies run at full speed.
class Buffer {
 public:
  void reserve(std::size_t bytes) {
    if (bytes <= size_) return;
    size_ = 0;
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, bytes), "allocate memory");
    device_.reset(memory);
    check_cuda(cudaMallocHost(&memory, bytes), "allocate pinned memory");
    host_.reset(memory);
    size_ = bytes;
  }
  void* device() const { return device_.get(); }
  void* host() const { return host_.get(); }
  void upload(std::size_t bytes, Stream const& stream) const { copy(device(), host(), bytes, cudaMemcpyHostToDevice, stream); }
  void download(std::size_t bytes, Stream const& stream) const { copy(host(), device(), bytes, cudaMemcpyDeviceToHost, stream); }

 private:
  static void copy(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind, Stream const& stream) {
    check_cuda(cudaMemcpyAsync(to, from, bytes, kind, stream.get()), "copy a batch");
  }
  struct OnDevice { void operator()(void* memory) const { cudaFree(memory); } };
  struct OnHost { void operator()(void* memory) const { cudaFreeHost(memory); } };
  std::unique_ptr<void, OnDevice> device_;
  std::unique_ptr<void, OnHost> host_;
  std::size_t size_ = 0;
};

}  // namespace dyvit
