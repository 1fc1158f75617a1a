// Runs the artifacts of `dyvit export`: ONNX files with ONNX Runtime, engine plans with TensorRT or TensorRT for RTX.
//
// Letters: B batch, H and W height and width in pixels, K_s patches kept after stage s.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace dyvit {

// Every failure of this library. The message is one sentence: the problem and the fix.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class DataType { float32, uint8 };

// The steps from a photo to the model input: resize the short side (in pixels; 0 resizes directly to the input size), crop
// the centre, scale to 0..1, and per RGB channel subtract the mean and divide by the standard deviation. For inputs that are
// not square, the resized image is just large enough for `short_side` along the input's shorter side and `long_side` along
// its longer one (0: as `short_side`). With `squash`, it becomes exactly so large, whatever its aspect ratio.
struct Preprocessing {
  std::int64_t short_side = 0;
  bool squash = false;
  float mean[3] = {};
  float deviation[3] = {};
  // "nearest", "bilinear", "bicubic" or "lanczos".
  std::string interpolation;
  std::int64_t long_side = 0;
};

// The facts recorded in an artifact.
struct Metadata {
  // Such as "deit-s".
  std::string model;
  // Size of the input, in pixels.
  std::int64_t height = 0, width = 0;
  Preprocessing preprocessing;
  // Empty if the artifact has none.
  std::vector<std::string> class_names;
  std::int64_t classes = 0;
  // K_s, the number of patches that survive each stage; empty for a dense model.
  std::vector<std::int64_t> kept_counts;
  // Exported with --with-tokens, so that Outputs::kept is filled.
  bool outputs_kept = false;
  // "float32", "float16", "bfloat16", "int8" or "float8".
  std::string precision;
  DataType input = DataType::float32;
  // Smallest and largest supported batch; a batch_max of 0 means no limit.
  std::int64_t batch_min = 1, batch_max = 0;

  // The name of class `index`, or "class 7".
  std::string label(std::size_t index) const;
};

struct Options {
  // Execution provider of ONNX Runtime: "cpu", "cuda" or "tensorrt". Plans always run on the GPU.
  std::string provider = "cpu";
  // Threads of ONNX Runtime within one call; 0 uses all cores.
  int threads = 0;
  // Index of the GPU.
  int device = 0;
  // Load a plan whose hash differs from its sidecar. Plans contain native code: only do this for files you trust.
  bool trust = false;
  // With "cuda" or "tensorrt": run nodes without a CUDA kernel on the CPU.
  bool allow_cpu_fallback = true;
};

// A batch in the caller's memory, which must outlive the call: float32 [B, 3, H, W], normalised, or uint8
// [B, H, W, 3], raw RGB, rows without gaps.
struct Images {
  DataType type;
  void const* data;
  std::vector<std::int64_t> shape;
};

// The outputs of a model; reuse one object to save allocations.
struct Outputs {
  std::size_t batch = 0;
  std::vector<float> logits;                    // [B, classes]
  std::vector<std::vector<std::int64_t>> kept;  // per stage [B, K_s], patches in the original grid, best first
};

struct Prediction {
  std::size_t index;
  // Softmax over all classes.
  float probability;
};

// The `count` most probable classes of image `image` of the batch, best first. Throws Error if its logits
// are not finite.
std::vector<Prediction> top_classes(Outputs const& outputs, std::size_t image, std::size_t count);

class Backend;

// One artifact, ready to run. `infer` may be called from several threads at once. On a GPU, each concurrent call has its own
// execution context, stream and memory.
class Engine {
 public:
  // Throws Error if the file is missing, not an artifact of dyvit, altered, or not runnable in this build or on this machine.
  static Engine open(std::filesystem::path const& path, Options const& options = {});

  Metadata const& metadata() const;
  // Library and device, such as "ONNX Runtime 1.31.1 cpu".
  std::string const& backend() const;

  // Throws Error if the batch does not fit (type, rank, size, number of images) or the backend fails.
  Outputs infer(Images const& images) const;
  void infer(Images const& images, Outputs& outputs) const;

  // For timing: copies the batch to the GPU once, and returns a function that runs it there and waits, without copies from or
  // to the host. Only one thread at a time may call the function, and it must not outlive the engine. Throws Error as `infer`
  // does, or if the backend takes host memory (ONNX Runtime).
  std::function<void()> call_without_transfers(Images const& images) const;

  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();

 private:
  explicit Engine(std::unique_ptr<Backend> backend);
  std::unique_ptr<Backend> backend_;
};

}  // namespace dyvit
