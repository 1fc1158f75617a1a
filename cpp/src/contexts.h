// Creates the execution contexts of an engine, with the settings that only TensorRT for RTX has.
#pragma once

#include <NvInferRuntime.h>

#include <memory>

namespace dyvit {

// Must outlive the contexts that it makes; `make` returns nullptr when TensorRT fails.
class Contexts {
 public:
#ifdef TRT_MAJOR_RTX
  // By default the kernels for a batch size are compiled in the background, and slower ones run, and are timed, meanwhile.
  // Eager compilation makes the first call wait instead, as in the Python runner.
  explicit Contexts(nvinfer1::ICudaEngine& engine) : engine_(engine), settings_(engine.createRuntimeConfig()) {
    using Strategy = nvinfer1::DynamicShapesKernelSpecializationStrategy;
    if (settings_) settings_->setDynamicShapesKernelSpecializationStrategy(Strategy::kEAGER);
  }
  std::unique_ptr<nvinfer1::IExecutionContext> make() {
    return std::unique_ptr<nvinfer1::IExecutionContext>(settings_ ? engine_.createExecutionContext(settings_.get()) : nullptr);
  }
#else
  explicit Contexts(nvinfer1::ICudaEngine& engine) : engine_(engine) {}
  std::unique_ptr<nvinfer1::IExecutionContext> make() {
    return std::unique_ptr<nvinfer1::IExecutionContext>(engine_.createExecutionContext());
  }
#endif

 private:
  nvinfer1::ICudaEngine& engine_;
#ifdef TRT_MAJOR_RTX
  std::unique_ptr<nvinfer1::IRuntimeConfig> settings_;
#endif
};

}  // namespace dyvit
