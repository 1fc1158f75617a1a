// Stands in for CUDA in tests without a GPU: "GPU memory" is host memory, and the calls that matter are recorded.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorUnknown = 999 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaMemoryType { cudaMemoryTypeHost = 1, cudaMemoryTypeDevice = 2 };
struct cudaPointerAttributes { cudaMemoryType type; };
using cudaStream_t = void*;
constexpr unsigned int cudaStreamNonBlocking = 1;

namespace fake {

// The calls in order, such as "upload" and "enqueue".
inline std::vector<std::string> calls;
// The result of cudaDeviceSynchronize.
inline cudaError_t synchronized = cudaSuccess;

}  // namespace fake

inline char const* cudaGetErrorString(cudaError_t code) { return code == cudaSuccess ? "no error" : "unknown error"; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return fake::calls.push_back("synchronize the device"), fake::synchronized; }

inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) { return *memory = std::malloc(bytes), cudaSuccess; }
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMallocHost(void** memory, std::size_t bytes) { return cudaMalloc(memory, bytes); }
inline cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* where, void const*) {
  return where->type = cudaMemoryTypeHost, cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  fake::calls.push_back(kind == cudaMemcpyHostToDevice ? "upload" : "download");
  return std::memcpy(to, from, bytes), cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) { return *stream = nullptr, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return fake::calls.push_back("wait"), cudaSuccess; }
