#include "dyvit/engine.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <system_error>
#include <utility>

#include "backend.h"

namespace dyvit {
namespace {

char const* type_name(DataType type) { return type == DataType::uint8 ? "uint8" : "float32"; }

// Plans are recognised by their first bytes ("vtrt" of TensorRT for RTX, "ftrt" of TensorRT) or by their name.
bool is_plan(std::filesystem::path const& path) {
  char head[4] = {};
  std::ifstream(path, std::ios::binary).read(head, sizeof head);
  return std::string_view(head + 1, 3) == "trt" || path.extension() == ".plan" || path.extension() == ".engine";
}

std::unique_ptr<Backend> open_backend(std::filesystem::path const& path, Options const& options) {
  if (is_plan(path)) {
#ifdef DYVIT_TENSORRT_FORMAT
    return open_tensorrt(path, options);
#else
    throw Error(path.string() + " is an engine plan, and this dyvit was built without TensorRT; build it with TENSORRT_ROOT.");
#endif
  }
#ifdef DYVIT_ONNXRUNTIME
  return open_onnxruntime(path, options);
#else
  throw Error(path.string() + " is not an engine plan, and this dyvit was built without ONNX Runtime; build it with "
              "ONNXRUNTIME_ROOT.");
#endif
}

void check(Images const& images, Backend const& backend) {
  Metadata const& facts = backend.metadata;
  std::vector<std::int64_t> wanted = {-1, 3, facts.height, facts.width};
  if (facts.input == DataType::uint8) wanted = {-1, facts.height, facts.width, 3};
  bool const fits = images.type == facts.input && images.shape.size() == wanted.size() &&
                    std::equal(wanted.begin() + 1, wanted.end(), images.shape.begin() + 1);
  if (!fits)
    throw Error(backend.file + " takes " + type_name(facts.input) + " [" + shape_text(wanted) + "], not " +
                type_name(images.type) + " [" + shape_text(images.shape) + "]; prepare the images as its metadata says.");
  std::int64_t const batch = images.shape[0];
  if (batch < 1 || images.data == nullptr) throw Error("A batch needs at least one image; this one has none.");
  if (facts.batch_max > 0 && batch > facts.batch_max)
    throw Error(backend.file + " takes at most " + std::to_string(facts.batch_max) + " images at once, not " +
                std::to_string(batch) + "; split the batch, or make the artifact for a larger one.");
  if (batch < facts.batch_min)
    throw Error(backend.file + " takes at least " + std::to_string(facts.batch_min) + " images at once, not " +
                std::to_string(batch) + "; pad the batch.");
}

}  // namespace

std::function<void()> Backend::call_without_transfers(Images const&) {
  throw Error(file + " runs with " + name + ", which takes and gives host memory, so its copies cannot be left out; time it "
              "with transfers, or time an engine plan.");
}

std::string Metadata::label(std::size_t index) const {
  return index < class_names.size() ? class_names[index] : "class " + std::to_string(index);
}

void require_file(std::filesystem::path const& path) {
  std::error_code error;
  auto const status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) throw Error(path.string() + " does not exist; check the path.");
  if (std::filesystem::is_directory(status)) throw Error(path.string() + " is a folder; name a file in it.");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(path.string() + " cannot be read; change its permissions.");
  if (file.peek() == std::ifstream::traits_type::eof())
    throw Error(path.string() + " is empty; it was probably not written completely, so make or copy it again.");
}

std::string reason(std::string_view message) {
  auto const start = message.find_first_not_of(" \n\t");
  message = start == std::string_view::npos ? "no reason given" : message.substr(start);
  message = message.substr(0, message.find('\n'));
  message = message.substr(0, message.find_last_not_of(" .;:\r") + 1);
  return std::string(message);
}

std::string shape_text(std::vector<std::int64_t> const& shape) {
  std::string text;
  for (std::int64_t const side : shape) text += (text.empty() ? "" : ", ") + (side < 0 ? "any" : std::to_string(side));
  return text;
}

std::vector<Prediction> top_classes(Outputs const& outputs, std::size_t image, std::size_t count) {
  if (image >= outputs.batch) throw Error("There is no image " + std::to_string(image) + " in this batch.");
  std::size_t const classes = outputs.logits.size() / outputs.batch;
  float const* logits = outputs.logits.data() + image * classes;
  if (!std::all_of(logits, logits + classes, [](float logit) { return std::isfinite(logit); }))
    throw Error("The logits of image " + std::to_string(image) + " are not finite; compare the artifact with dyvit check.");
  float const highest = *std::max_element(logits, logits + classes);
  double const sum = std::accumulate(logits, logits + classes, 0.0,
                                     [=](double total, float logit) { return total + std::exp(logit - highest); });
  std::vector<std::size_t> order(classes);
  std::iota(order.begin(), order.end(), std::size_t{0});
  count = std::min(count, classes);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [=](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  std::vector<Prediction> best;
  for (std::size_t rank = 0; rank < count; ++rank)
    best.push_back({order[rank], static_cast<float>(std::exp(logits[order[rank]] - highest) / sum)});
  return best;
}

Engine Engine::open(std::filesystem::path const& path, Options const& options) {
  require_file(path);
  return Engine(open_backend(path, options));
}

Metadata const& Engine::metadata() const { return backend_->metadata; }

std::string const& Engine::backend() const { return backend_->name; }

Outputs Engine::infer(Images const& images) const {
  Outputs outputs;
  infer(images, outputs);
  return outputs;
}

void Engine::infer(Images const& images, Outputs& outputs) const {
  check(images, *backend_);
  Metadata const& facts = backend_->metadata;
  outputs.batch = static_cast<std::size_t>(images.shape[0]);
  outputs.logits.resize(outputs.batch * static_cast<std::size_t>(facts.classes));
  outputs.kept.resize(facts.outputs_kept ? facts.kept_counts.size() : 0);
  for (std::size_t stage = 0; stage < outputs.kept.size(); ++stage)
    outputs.kept[stage].resize(outputs.batch * static_cast<std::size_t>(facts.kept_counts[stage]));
  backend_->run(images, outputs);
}

std::function<void()> Engine::call_without_transfers(Images const& images) const {
  check(images, *backend_);
  return backend_->call_without_transfers(images);
}

Engine::Engine(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

}  // namespace dyvit
