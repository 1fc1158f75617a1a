// Runs engine plans with TensorRT or TensorRT for RTX, whichever this build is linked with.
// Compiled against the headers of TensorRT 10.7 to 11.1 and of TensorRT for RTX 1.3 to 1.6; unverified on a GPU.
#include <NvInferRuntime.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <utility>

#include "backend.h"
#include "contexts.h"
#include "cuda.h"
#include "plan.h"
#include "profiles.h"
#include "tensorrt_stream.h"

#if !defined(TRT_MAJOR_RTX) && (NV_TENSORRT_MAJOR < 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR < 7))
#error "dyvit streams plans by IStreamReaderV2: set TENSORRT_ROOT to TensorRT 10.7 or later."
#endif

namespace dyvit {
namespace {

using nvinfer1::DataType;

std::string library_name() {
  return DYVIT_TENSORRT_FORMAT == std::string("rtx") ? "TensorRT for RTX" : "TensorRT";
}

// Keeps the last error for our own error messages; TensorRT calls it from several threads.
class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, char const* message) noexcept override {
    if (severity > Severity::kERROR) return;
    std::lock_guard<std::mutex> const guard(mutex_);
    last_ = message;
  }
  std::string last() {
    std::lock_guard<std::mutex> const guard(mutex_);
    return last_.empty() ? "no reason given" : reason(last_);
  }

 private:
  std::mutex mutex_;
  std::string last_;
};

// Passes the plan to TensorRT in pieces, so that the whole plan is never in host memory.
class PlanReader : public nvinfer1::IStreamReaderV2 {
 public:
  explicit PlanReader(Plan& plan) : plan_(plan) {}

  std::int64_t read(void* target, std::int64_t size, cudaStream_t stream) noexcept override try {
    cudaPointerAttributes where = {};
    bool const on_device = cudaPointerGetAttributes(&where, target) == cudaSuccess && where.type == cudaMemoryTypeDevice;
    if (!on_device) return plan_.read(target, size);
    std::vector<char> piece(static_cast<std::size_t>(size));
    std::int64_t const found = plan_.read(piece.data(), size);
    bool const copied = cudaMemcpyAsync(target, piece.data(), static_cast<std::size_t>(found), cudaMemcpyHostToDevice,
                                        stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess;
    return copied ? found : -1;
  } catch (std::bad_alloc const&) {
    return -1;
  }

  bool seek(std::int64_t offset, nvinfer1::SeekPosition where) noexcept override {
    if (where == nvinfer1::SeekPosition::kSET) return plan_.seek(offset, SEEK_SET);
    return plan_.seek(offset, where == nvinfer1::SeekPosition::kCUR ? SEEK_CUR : SEEK_END);
  }

 private:
  Plan& plan_;
};

class TensorRt : public Backend {
 public:
  TensorRt(std::filesystem::path const& path, Options const& options) : device_(options.device) {
    Plan plan(path, options.trust);
    if (plan.sidecar.builder != DYVIT_TENSORRT_FORMAT)
      throw Error(path.string() + " was built by " + (plan.sidecar.builder == "rtx" ? "TensorRT for RTX" : "TensorRT") +
                  ", and this dyvit is linked with " + library_name() + "; build dyvit with the other TENSORRT_ROOT.");
    require_gpu(device_, path.string());
    use_device();
    file = path.filename().string();
    name = library_name() + " cuda";
    metadata = plan.sidecar.metadata;
    load(path.string(), plan, options.trust);
    read_interface(path.string());
    read_profiles();
  }

  void run(Images const& images, Outputs& outputs) override {
    std::int64_t const batch = images.shape[0];
    std::vector<void*> targets = {outputs.logits.data()};
    for (auto& stage : outputs.kept) targets.push_back(stage.data());
    std::unique_ptr<GpuStream> stream = upload(images);
    if (!stream->launch()) refuse(batch);
    stream->download(outputs_, batch, targets);
    std::lock_guard<std::mutex> const guard(mutex_);
    // A stream that failed is not reused.
    idle_.push_back(std::move(stream));
  }

  std::function<void()> call_without_transfers(Images const& images) override {
    std::shared_ptr<GpuStream> const stream = upload(images);
    stream->wait();
    return [this, stream, batch = images.shape[0]] {
      use_device();
      if (!stream->launch()) refuse(batch);
      stream->wait();
    };
  }

 private:
  // The current GPU is a setting of each thread.
  void use_device() const { check_cuda(cudaSetDevice(device_), "use that GPU"); }

  [[noreturn]] void refuse(std::int64_t batch) {
    throw Error(library_name() + " could not run " + file + " at batch " + std::to_string(batch) + " (" + logger_.last() +
                "); build it again, or run dyvit doctor --target PLAN.");
  }

  // Takes a stream for the batch and starts to copy the batch to the GPU.
  std::unique_ptr<GpuStream> upload(Images const& images) {
    use_device();
    std::int64_t const batch = images.shape[0];
    auto const [profile, padded] = place(batch, profiles_);
    std::unique_ptr<GpuStream> stream = take_stream();
    if (!stream->upload(input_, outputs_, images.data, batch, padded, profile)) refuse(batch);
    return stream;
  }

  void load(std::string const& path, Plan& plan, bool trust) {
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (!runtime_) throw Error(library_name() + " cannot start (" + logger_.last() + "); reinstall it and the driver.");
    if (trust || plan.sidecar.host_code) runtime_->setEngineHostCodeAllowed(true);
    PlanReader reader(plan);
    engine_.reset(runtime_->deserializeCudaEngine(reader));
    if (!engine_)
      throw Error(path + ", built by version " + plan.sidecar.version + ", cannot be loaded by " + library_name() +
                  " here (" + logger_.last() + "); build it again here: " + plan.sidecar.rebuild);
    // A plan that is read from a stream "may not be valid immediately after the function returns" (NvInferRuntime.h).
    check_cuda(cudaDeviceSynchronize(), "load the engine's weights");
    contexts_.emplace(*engine_);
  }

  // Compares the engine with its metadata, because memory is laid out by the metadata.
  void read_interface(std::string const& path) {
    bool const bytes = metadata.input == dyvit::DataType::uint8;
    std::vector<std::int64_t> sides = {3, metadata.height, metadata.width};
    if (bytes) sides = {metadata.height, metadata.width, 3};
    metadata.outputs_kept = engine_->getNbIOTensors() > 2;
    bool fits = add(input_, "images", bytes ? DataType::kUINT8 : DataType::kFLOAT, sides) &&
                add(outputs_.emplace_back(), "logits", DataType::kFLOAT, {metadata.classes});
    for (std::size_t stage = 0; fits && metadata.outputs_kept && stage < metadata.kept_counts.size(); ++stage)
      fits = add(outputs_.emplace_back(), "kept_" + std::to_string(stage), DataType::kINT64, {metadata.kept_counts[stage]});
    if (!fits || engine_->getNbIOTensors() != static_cast<std::int32_t>(outputs_.size() + 1))
      throw Error("The inputs and outputs of " + path + " differ from its metadata; build it again.");
  }

  // Fills `tensor` and returns true if the engine has a tensor of this name, type and dimensions after the batch.
  bool add(EngineTensor& tensor, std::string const& name_in_engine, DataType type, std::vector<std::int64_t> sides) const {
    nvinfer1::Dims const shape = engine_->getTensorShape(name_in_engine.c_str());
    if (shape.nbDims != static_cast<std::int32_t>(sides.size() + 1) ||
        !std::equal(sides.begin(), sides.end(), shape.d + 1) ||
        engine_->getTensorDataType(name_in_engine.c_str()) != type)
      return false;
    std::size_t size = type == DataType::kUINT8 ? 1 : type == DataType::kFLOAT ? sizeof(float) : sizeof(std::int64_t);
    for (std::int64_t const side : sides) size *= static_cast<std::size_t>(side);
    tensor = {name_in_engine, size, std::move(sides)};
    return true;
  }

  void read_profiles() {
    std::int64_t const fixed = engine_->getTensorShape(input_.name.c_str()).d[0];
    if (fixed > 0) {
      profiles_ = {{fixed, fixed, fixed}};
      metadata.batch_max = fixed;
      return;
    }
    using Select = nvinfer1::OptProfileSelector;
    auto const batch = [this](int profile, Select select) {
      return std::int64_t{engine_->getProfileShape(input_.name.c_str(), profile, select).d[0]};
    };
    for (int i = 0; i < engine_->getNbOptimizationProfiles(); ++i)
      profiles_.push_back({batch(i, Select::kMIN), batch(i, Select::kOPT), batch(i, Select::kMAX)});
    metadata.batch_max = largest_batch(profiles_);
  }

  std::unique_ptr<GpuStream> take_stream() {
    std::lock_guard<std::mutex> const guard(mutex_);
    if (!idle_.empty()) {
      auto stream = std::move(idle_.back());
      idle_.pop_back();
      return stream;
    }
    auto context = contexts_->make();
    if (!context)
      throw Error(library_name() + " cannot prepare " + file + " (" + logger_.last() +
                  "); free GPU memory, or build it with a smaller largest batch.");
    return std::make_unique<GpuStream>(std::move(context));
  }

  int device_;
  // Each of these outlives the next; the streams, which hold contexts, are destroyed first.
  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::optional<Contexts> contexts_;
  EngineTensor input_;
  // logits, kept_0, kept_1, ...
  std::vector<EngineTensor> outputs_;
  std::vector<Profile> profiles_;
  // Guards idle_ and the creation of contexts.
  std::mutex mutex_;
  std::vector<std::unique_ptr<GpuStream>> idle_;
};

}  // namespace

std::unique_ptr<Backend> open_tensorrt(std::filesystem::path const& path, Options const& options) {
  return std::make_unique<TensorRt>(path, options);
}

}  // namespace dyvit
