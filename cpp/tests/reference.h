// The files of make_reference.py: models, images, and the results of the Python runtime.
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

// The message of the dyvit::Error that `work` throws; empty if it throws none.
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

// The exit code without a reference, which ctest counts as skipped.
constexpr int skipped = 77;

}  // namespace reference
