// What make_reference.py wrote: models, images, and what Python made of them.
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dyvit/engine.h"

namespace reference {

inline std::filesystem::path const folder = DYVIT_REFERENCE;

inline nlohmann::json const& manifest() {
  static auto const content = nlohmann::json::parse(std::ifstream(folder / "manifest.json"));
  return content;
}

template <typename T>
std::vector<T> array(nlohmann::json const& name) {
  std::ifstream file(folder / name.get<std::string>(), std::ios::binary);
  std::vector<char> const bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::vector<T> values(bytes.size() / sizeof(T));
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(values.data()));
  return values;
}

// The sentence of the dyvit::Error that `work` throws; empty without one.
template <typename Work>
std::string complaint(Work work) {
  try {
    work();
  } catch (dyvit::Error const& error) {
    return error.what();
  }
  return "";
}

inline bool has(std::string const& text, char const* part) { return text.find(part) != std::string::npos; }

// Without the reference there is nothing to compare with: ctest counts this exit code as skipped.
constexpr int skipped = 77;

}  // namespace reference
