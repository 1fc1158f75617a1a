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

// Larger values would overflow sizes that are computed from them. Sides are in pixels, counts in classes or patches.
constexpr std::int64_t largest_side = 1 << 16;
constexpr std::int64_t largest_count = 1 << 24;

// Throws Error unless `value` is a whole number from 1 to `largest`. `what` is its name with an article.
std::int64_t positive(json const& value, std::int64_t largest, std::string const& what) {
  std::int64_t const number = value.is_number_integer() ? value.get<std::int64_t>() : 0;
  if (number < 1 || number > largest)
    throw Error("An artifact claims " + what + " of " + value.dump() + ", which is not from 1 to " +
                std::to_string(largest) + "; export it again.");
  return number;
}

std::int64_t side_of(json const& value) { return positive(value, largest_side, "an image side"); }

Preprocessing preprocessing_of(json const& facts) {
  Preprocessing result;
  json const& short_side = facts.at("short_side");
  result.short_side = short_side.is_null() ? 0 : side_of(short_side);
  json const long_side = facts.value("long_side", json());
  result.long_side = long_side.is_null() ? 0 : side_of(long_side);
  result.squash = facts.value("squash", false);
  result.interpolation = facts.at("interpolation").get<std::string>();
  for (std::size_t channel = 0; channel < 3; ++channel) {
    result.mean[channel] = facts.at("mean").at(channel).get<float>();
    result.deviation[channel] = facts.at("std").at(channel).get<float>();
  }
  return result;
}

DataType input_of(std::string const& type) {
  if (type == "float32") return DataType::float32;
  if (type == "uint8") return DataType::uint8;
  throw Error("An artifact claims an input of type " + json(type).dump() + ", and only float32 and uint8 can be run here; "
              "export it again.");
}

}  // namespace

Metadata metadata_of(json const& facts) {
  json const& model = facts.at("model");
  Metadata result;
  result.model = model.at("name").get<std::string>();
  result.height = side_of(model.at("image_size").at(0));
  result.width = side_of(model.at("image_size").at(1));
  result.preprocessing = preprocessing_of(model.at("preprocess"));
  result.classes = positive(model.at("classes"), largest_count, "a number of classes");
  result.class_names = value_or<std::vector<std::string>>(facts, "class_names", {});
  for (json const& count : value_or<std::vector<json>>(facts, "keep_counts", {}))
    result.kept_counts.push_back(positive(count, largest_count, "a number of kept patches"));
  result.precision = value_or<std::string>(facts, "precision", "float32");
  result.input = input_of(value_or<std::string>(facts, "input", "float32"));
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
