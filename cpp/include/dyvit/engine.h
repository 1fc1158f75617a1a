// Runs what `dyvit export` makes: ONNX files with ONNX Runtime, engine plans with TensorRT or TensorRT for RTX.
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

// Every failure of this library: one sentence that says what is wrong and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class DataType { float32, uint8 };

// How a photo becomes model input: short side resized (in pixels; 0 resizes straight to the input size), centre
// cropped, scaled to 0..1, minus mean, over standard deviation, per channel of RGB.
struct Preprocessing {
  std::int64_t short_side = 0;
  float mean[3] = {};
  float deviation[3] = {};
  std::string interpolation;            // "nearest", "bilinear", "bicubic" or "lanczos"
};

// What an artifact says about itself.
struct Metadata {
  std::string model;                    // e.g. "deit-s"
  std::int64_t height = 0, width = 0;   // of the input, in pixels
  Preprocessing preprocessing;
  std::vector<std::string> class_names; // empty where it has none
  std::int64_t classes = 0;
  std::vector<std::int64_t> kept_counts;  // K_s, patches that survive each stage; empty for a dense model
  bool tells_kept = false;              // exported with --with-tokens: Outputs::kept is filled
  std::string precision;                // "float32", "float16", "bfloat16", "int8" or "float8"
  DataType input = DataType::float32;
  std::int64_t batch_min = 1, batch_max = 0;  // batches that are taken; a max of 0 is none

  // The name of class `index`, or "class 7".
  std::string label(std::size_t index) const;
};

struct Options {
  std::string provider = "cpu";         // of ONNX Runtime: "cpu", "cuda" or "tensorrt"; plans run on the GPU anyway
  int threads = 0;                      // of ONNX Runtime within a call; 0 takes all cores
  int device = 0;                       // the GPU's number
  bool trust = false;                   // load a plan that is not the file which its sidecar describes
  bool allow_cpu_fallback = true;       // with "cuda" or "tensorrt": nodes that have no CUDA kernel run on the CPU
};

// A batch in the caller's memory, which must outlive the call: float32 [B, 3, H, W], normalised, or uint8
// [B, H, W, 3], raw RGB, rows without gaps.
struct Images {
  DataType type;
  void const* data;
  std::vector<std::int64_t> shape;
};

// What a model computes; reuse one object to save allocations.
struct Outputs {
  std::size_t batch = 0;
  std::vector<float> logits;                    // [B, classes]
  std::vector<std::vector<std::int64_t>> kept;  // per stage [B, K_s], patches in the original grid, best first
};

struct Prediction {
  std::size_t index;
  float probability;                    // softmax over all classes
};

// The `count` most probable classes of image `image` of the batch, best first. Throws Error: its logits are no numbers.
std::vector<Prediction> top_classes(Outputs const& outputs, std::size_t image, std::size_t count);

class Backend;

// One artifact, ready to run. `infer` may be called from several threads at once; each call that runs at the same
// time has its own execution context, on a GPU with its own stream and memory.
class Engine {
 public:
  // Throws Error: no such file, not an artifact of dyvit, altered, or not runnable in this build or on this machine.
  static Engine open(std::filesystem::path const& path, Options const& options = {});

  Metadata const& metadata() const;
  std::string const& backend() const;   // library and device, e.g. "ONNX Runtime 1.31.1 cpu"

  // Throws Error: the batch does not fit (type, rank, size, number of images), or the backend failed.
  Outputs infer(Images const& images) const;
  void infer(Images const& images, Outputs& outputs) const;

  // Copies the batch to the GPU and returns a call that runs it there, again each time, and waits; it copies nothing from
  // or to the host. For timing. Only one thread at a time may use the call, and it must not outlive the engine.
  // Throws Error: see `infer`, or the backend takes host memory (ONNX Runtime).
  std::function<void()> call_without_transfers(Images const& images) const;

  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();

 private:
  explicit Engine(std::unique_ptr<Backend> backend);
  std::unique_ptr<Backend> backend_;
};

}  // namespace dyvit
