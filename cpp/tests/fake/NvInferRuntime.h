// Stands in for TensorRT, or with FAKE_RTX for TensorRT for RTX, as far as the runtime uses them. The engine takes 2 to 4
// images [B, 3, 2, 2]; the logits of an image are its first value and the number of images that ran with it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <unordered_map>

#ifdef FAKE_RTX
#define TRT_MAJOR_RTX 1
#else
#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 7
#endif

namespace fake {

// If false, enqueueV3 fails.
inline bool enqueues = true;

}  // namespace fake

namespace nvinfer1 {

enum class DataType { kFLOAT, kUINT8, kINT64 };
enum class OptProfileSelector { kMIN, kOPT, kMAX };
enum class SeekPosition { kSET, kCUR, kEND };

struct Dims {
  std::int32_t nbDims = 0;
  std::int64_t d[8] = {};
};

class ILogger {
 public:
  enum class Severity { kINTERNAL_ERROR, kERROR, kWARNING };
  virtual ~ILogger() = default;
  virtual void log(Severity severity, char const* message) noexcept = 0;
};

class IStreamReaderV2 {
 public:
  virtual ~IStreamReaderV2() = default;
  virtual std::int64_t read(void* target, std::int64_t size, cudaStream_t stream) noexcept = 0;
  virtual bool seek(std::int64_t offset, SeekPosition where) noexcept = 0;
};

class IExecutionContext {
 public:
  bool setOptimizationProfileAsync(int, cudaStream_t) { return true; }
  bool setInputShape(char const*, Dims const& shape) { return batch_ = shape.d[0], true; }
  bool setTensorAddress(char const* name, void* memory) { return memory_[name] = static_cast<float*>(memory), true; }
  bool enqueueV3(cudaStream_t) {
    fake::calls.push_back("enqueue");
    for (std::int64_t i = 0; i < batch_; ++i) {
      memory_["logits"][2 * i] = memory_["images"][12 * i];
      memory_["logits"][2 * i + 1] = static_cast<float>(batch_);
    }
    return fake::enqueues;
  }

 private:
  std::int64_t batch_ = 0;
  std::unordered_map<std::string, float*> memory_;
};

#ifdef FAKE_RTX
enum class DynamicShapesKernelSpecializationStrategy { kLAZY, kEAGER };

class IRuntimeConfig {
 public:
  void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy chosen) { strategy = chosen; }
  DynamicShapesKernelSpecializationStrategy strategy = DynamicShapesKernelSpecializationStrategy::kLAZY;
};
#endif

class ICudaEngine {
 public:
  std::int32_t getNbIOTensors() const { return 2; }
  std::int32_t getNbOptimizationProfiles() const { return 1; }
  Dims getTensorShape(std::string const& name) const {
    return name == "images" ? Dims{4, {-1, 3, 2, 2}} : name == "logits" ? Dims{2, {-1, 2}} : Dims{};
  }
  DataType getTensorDataType(char const*) const { return DataType::kFLOAT; }
  Dims getProfileShape(char const*, int, OptProfileSelector which) const {
    return {4, {which == OptProfileSelector::kMIN ? 2 : 4, 3, 2, 2}};
  }
  IExecutionContext* createExecutionContext() { return fake::calls.push_back("make a context"), new IExecutionContext; }
#ifdef FAKE_RTX
  IRuntimeConfig* createRuntimeConfig() { return new IRuntimeConfig; }
  IExecutionContext* createExecutionContext(IRuntimeConfig* settings) {
    bool const eager = settings->strategy == DynamicShapesKernelSpecializationStrategy::kEAGER;
    return fake::calls.push_back(eager ? "make an eager context" : "make a lazy context"), new IExecutionContext;
  }
#endif
};

class IRuntime {
 public:
  void setEngineHostCodeAllowed(bool) {}
  ICudaEngine* deserializeCudaEngine(IStreamReaderV2&) { return fake::calls.push_back("deserialize"), new ICudaEngine; }
};

inline IRuntime* createInferRuntime(ILogger&) { return new IRuntime; }

}  // namespace nvinfer1
