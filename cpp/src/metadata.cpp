#include "metadata.h"

#include "backend.h"

namespace dyvit {
namespace {

using nlohmann::json;

template <typename T>
T value_or(json const& object, char const* key, T otherwise) {
  auto const found = object.find(key);
  return found == object.end() || found->is_null() ? otherwise : found->get<T>();
}

constexpr std::int64_t largest_side = 1 << 16;   // pixels; more would overflow what is computed of it

std::int64_t side_of(json const& value) {
  auto const side = value.get<std::int64_t>();
  if (side < 1 || side > largest_side)
    throw Error("An artifact claims an image side of " + std::to_string(side) + " pixels; export it again.");
  return side;
}

Preprocessing preprocessing_of(json const& facts) {
  Preprocessing result;
  json const& short_side = facts.at("short_side");
  result.short_side = short_side.is_null() ? 0 : side_of(short_side);
  result.interpolation = facts.at("interpolation").get<std::string>();
  for (std::size_t channel = 0; channel < 3; ++channel) {
    result.mean[channel] = facts.at("mean").at(channel).get<float>();
    result.deviation[channel] = facts.at("std").at(channel).get<float>();
  }
  return result;
}

}  // namespace

Metadata metadata_of(json const& facts) {
  json const& model = facts.at("model");
  Metadata result;
  result.model = model.at("name").get<std::string>();
  result.height = side_of(model.at("image_size").at(0));
  result.width = side_of(model.at("image_size").at(1));
  result.preprocessing = preprocessing_of(model.at("preprocess"));
  result.classes = model.at("classes").get<std::int64_t>();
  result.class_names = value_or<std::vector<std::string>>(facts, "class_names", {});
  result.kept_counts = value_or<std::vector<std::int64_t>>(facts, "keep_counts", {});
  result.precision = value_or<std::string>(facts, "precision", "float32");
  result.input = value_or<std::string>(facts, "input", "float32") == "uint8" ? DataType::uint8 : DataType::float32;
  return result;
}

Metadata parse_metadata(std::string const& text, std::string const& where) {
  try {
    json const facts = json::parse(text);
    int const format = facts.at("format").get<int>();
    if (format != metadata_format)
      throw Error(where + " was written in format " + std::to_string(format) + ", this dyvit reads format " +
                  std::to_string(metadata_format) + "; use the dyvit version that wrote it, or export again.");
    return metadata_of(facts);
  } catch (json::exception const& error) {
    throw Error("The dyvit metadata in " + where + " cannot be read (" + reason(error.what()) + "); export it again.");
  }
}

}  // namespace dyvit
