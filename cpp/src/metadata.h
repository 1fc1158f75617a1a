// The facts that dyvit writes into its artifacts (dyvit_deploy/artifacts/facts.py), as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "dyvit/engine.h"

namespace dyvit {

constexpr int metadata_format = 1;
constexpr char metadata_key[] = "dyvit";

// Parses the text under `metadata_key` of the ONNX file `where`. Throws Error if it is not dyvit's.
Metadata parse_metadata(std::string const& text, std::string const& where);

// The same facts without their format, as in the sidecar of a plan. Throws nlohmann's exceptions.
Metadata metadata_of(nlohmann::json const& facts);

}  // namespace dyvit
