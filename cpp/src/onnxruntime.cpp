// Runs ONNX files with ONNX Runtime. Input and outputs are in the caller's memory; on the CPU nothing is copied.
#include <array>
#include <memory>
#include <utility>

#include "backend.h"
#include "metadata.h"
#include "onnxruntime_session.h"

namespace dyvit {
namespace {

constexpr char input_name[] = "images";

template <typename Options, typename Create, typename Release>
std::unique_ptr<Options, Release> provider_options(Create create, Release release) {
  Options* options = nullptr;
  Ort::ThrowOnError(create(&options));
  return {options, release};
}

void add_cuda(Ort::SessionOptions& session, std::string const& device) {
  OrtApi const& api = Ort::GetApi();
  auto const options = provider_options<OrtCUDAProviderOptionsV2>(api.CreateCUDAProviderOptions,
                                                                  api.ReleaseCUDAProviderOptions);
  // With TF32, float32 products would round their inputs; the Python runner turns it off too.
  std::array<char const*, 2> const keys = {"device_id", "use_tf32"}, values = {device.c_str(), "0"};
  Ort::ThrowOnError(api.UpdateCUDAProviderOptions(options.get(), keys.data(), values.data(), keys.size()));
  session.AppendExecutionProvider_CUDA_V2(*options);
}

void add_tensorrt(Ort::SessionOptions& session, std::string const& device) {
  OrtApi const& api = Ort::GetApi();
  auto const options = provider_options<OrtTensorRTProviderOptionsV2>(api.CreateTensorRTProviderOptions,
                                                                      api.ReleaseTensorRTProviderOptions);
  std::array<char const*, 1> const keys = {"device_id"}, values = {device.c_str()};
  Ort::ThrowOnError(api.UpdateTensorRTProviderOptions(options.get(), keys.data(), values.data(), keys.size()));
  session.AppendExecutionProvider_TensorRT_V2(*options);
}

void add_provider(Ort::SessionOptions& session, Options const& options) {
  std::string const& provider = options.provider;
  if (provider != "cpu" && provider != "cuda" && provider != "tensorrt")
    throw Error("Unknown provider " + provider + "; choose cpu, cuda or tensorrt.");
  try {
    std::string const device = std::to_string(options.device);
    if (provider == "tensorrt") add_tensorrt(session, device);
    // CUDA runs the nodes that TensorRT does not support.
    if (provider != "cpu") add_cuda(session, device);
  } catch (Ort::Exception const& error) {
    throw Error("ONNX Runtime cannot use its provider " + provider + " here (" + reason(error.what()) +
                "); install a build that has it, with its libraries and the NVIDIA driver, or choose the provider cpu.");
  }
}

// Also used with provider tensorrt: if CUDA has a kernel for every node, no node that TensorRT leaves out can fall back to
// the CPU.
Ort::SessionOptions cuda_options(Options options) {
  Ort::SessionOptions settings = session_options(options.threads);
  options.provider = "cuda";
  add_provider(settings, options);
  return settings;
}

Ort::Session load(std::filesystem::path const& path, Options const& options) {
  // Created before the providers, which log to it.
  Ort::Env const& env = environment();
  Ort::SessionOptions settings = session_options(options.threads);
  add_provider(settings, options);
  try {
    Ort::Session session(env, path.c_str(), settings);
    if (options.provider != "cpu" && !options.allow_cpu_fallback) require_no_cpu_fallback(path, cuda_options(options));
    return session;
  } catch (Ort::Exception const& error) {
    throw Error(path.string() + " is not an ONNX model that ONNX Runtime can load here (" + reason(error.what()) +
                "); make or copy it again.");
  }
}

struct Tensor {
  std::string name;
  ONNXTensorElementDataType type;
  // -1 for free dimensions.
  std::vector<std::int64_t> shape;
};

Tensor describe(std::string name, Ort::TypeInfo const& type) {
  if (type.GetONNXType() != ONNX_TYPE_TENSOR) return {std::move(name), ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, {}};
  auto const tensor = type.GetTensorTypeAndShapeInfo();
  return {std::move(name), tensor.GetElementType(), tensor.GetShape()};
}

class OnnxRuntime : public Backend {
 public:
  OnnxRuntime(std::filesystem::path const& path, Options const& options) : session_(load(path, options)) {
    file = path.filename().string();
    name = "ONNX Runtime " + Ort::GetVersionString() + " " + options.provider;
    read_metadata(path.string());
    read_interface(path.string());
  }

  void run(Images const& images, Outputs& outputs) override {
    auto const batch = images.shape[0];
    try {
      std::vector<Ort::Value> results;
      results.push_back(wrap(outputs.logits, {batch, metadata.classes}));
      for (std::size_t stage = 0; stage < outputs.kept.size(); ++stage)
        results.push_back(wrap(outputs.kept[stage], {batch, metadata.kept_counts[stage]}));
      Ort::Value const input = wrap(images);
      std::array<char const*, 1> const inputs = {input_name};
      session_.Run(Ort::RunOptions{nullptr}, inputs.data(), &input, 1, names_.data(), results.data(), results.size());
    } catch (Ort::Exception const& error) {
      throw Error("ONNX Runtime could not run " + file + " at batch " + std::to_string(batch) + " (" +
                  reason(error.what()) + "); check its input, or export it again.");
    }
  }

 private:
  void read_metadata(std::string const& path) {
    Ort::AllocatorWithDefaultOptions allocator;
    auto const text = session_.GetModelMetadata().LookupCustomMetadataMapAllocated(metadata_key, allocator);
    if (!text)
      throw Error(path + " has no metadata of dyvit, so its preprocessing is not known; make it with dyvit export.");
    metadata = parse_metadata(text.get(), path);
  }

  // Compares the graph with its metadata, because `run` wraps the caller's memory in the types and shapes of the metadata.
  void read_interface(std::string const& path) {
    Ort::AllocatorWithDefaultOptions allocator;
    std::vector<Tensor> inputs, outputs;
    for (std::size_t i = 0; i < session_.GetInputCount(); ++i)
      inputs.push_back(describe(session_.GetInputNameAllocated(i, allocator).get(), session_.GetInputTypeInfo(i)));
    for (std::size_t i = 0; i < session_.GetOutputCount(); ++i)
      outputs.push_back(describe(session_.GetOutputNameAllocated(i, allocator).get(), session_.GetOutputTypeInfo(i)));

    bool const bytes = metadata.input == DataType::uint8;
    std::vector<std::int64_t> sides = {3, metadata.height, metadata.width};
    if (bytes) sides = {metadata.height, metadata.width, 3};
    bool fits = inputs.size() == 1 && inputs[0].name == input_name && matches(
        inputs[0], bytes ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, sides);
    metadata.outputs_kept = outputs.size() > 1;
    names_ = {"logits"};
    kept_names_.reserve(metadata.kept_counts.size());
    for (std::size_t stage = 0; metadata.outputs_kept && stage < metadata.kept_counts.size(); ++stage)
      names_.push_back(kept_names_.emplace_back("kept_" + std::to_string(stage)).c_str());
    fits = fits && outputs.size() == names_.size();
    for (std::size_t i = 0; fits && i < outputs.size(); ++i)
      fits = outputs[i].name == names_[i] &&
             (i == 0 ? matches(outputs[i], ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {metadata.classes})
                     : matches(outputs[i], ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, {metadata.kept_counts[i - 1]}));
    if (!fits)
      throw Error("The inputs and outputs of " + path + " differ from its dyvit metadata; export it again.");
    if (inputs[0].shape[0] > 0) metadata.batch_min = metadata.batch_max = inputs[0].shape[0];
  }

  // True when the tensor has this type and, after the batch, these sides.
  static bool matches(Tensor const& tensor, ONNXTensorElementDataType type, std::vector<std::int64_t> const& sides) {
    return tensor.type == type && tensor.shape.size() == sides.size() + 1 &&
           std::vector<std::int64_t>(tensor.shape.begin() + 1, tensor.shape.end()) == sides;
  }

  template <typename T>
  Ort::Value wrap(std::vector<T>& values, std::array<std::int64_t, 2> const& shape) const {
    return Ort::Value::CreateTensor<T>(memory_, values.data(), values.size(), shape.data(), shape.size());
  }

  Ort::Value wrap(Images const& images) const {
    std::size_t size = images.type == DataType::uint8 ? sizeof(std::uint8_t) : sizeof(float);
    for (std::int64_t const side : images.shape) size *= static_cast<std::size_t>(side);
    auto const type = images.type == DataType::uint8 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
                                                     : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    return Ort::Value::CreateTensor(memory_, const_cast<void*>(images.data), size, images.shape.data(),
                                    images.shape.size(), type);
  }

  Ort::Session session_;
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  std::vector<std::string> kept_names_;
  std::vector<char const*> names_;
};

}  // namespace

void require_no_cpu_fallback(std::filesystem::path const& path, Ort::SessionOptions options) {
  options.AddConfigEntry("session.disable_cpu_ep_fallback", "1");
  // ONNX Runtime deliberately places arithmetic on shapes on the CPU. With a fixed batch this arithmetic is folded into
  // constants, and the nodes that remain on the CPU have no CUDA kernel.
  Ort::ThrowOnError(Ort::GetApi().AddFreeDimensionOverrideByName(options, "batch", 1));
  try {
    Ort::Session const session(environment(), path.c_str(), options);
  } catch (Ort::Exception const& error) {
    throw Error(path.string() + " cannot run on CUDA alone (" + reason(error.what()) + "); allow a part of it on the CPU "
                "with --allow-cpu-fallback or Options::allow_cpu_fallback, or choose the provider cpu.");
  }
}

std::unique_ptr<Backend> open_onnxruntime(std::filesystem::path const& path, Options const& options) try {
  return std::make_unique<OnnxRuntime>(path, options);
} catch (Ort::Exception const& error) {
  throw Error("ONNX Runtime cannot prepare " + path.string() + " (" + reason(error.what()) + "); export it again.");
}

}  // namespace dyvit
