// What dyvit-run and dyvit-bench share: their common options and exit codes.
#pragma once

#include <CLI/CLI.hpp>
#include <iostream>
#include <string>

#include "dyvit/engine.h"

namespace dyvit {

constexpr int exit_failed = 1, exit_usage = 2;

struct Common {
  std::string artifact;
  Options options;
};

inline void add_common(CLI::App& app, Common& common) {
  app.add_option("artifact", common.artifact, "model.onnx or engine.plan")->required();
  app.add_option("--provider", common.options.provider, "of ONNX Runtime: cpu, cuda or tensorrt")
      ->check(CLI::IsMember({"cpu", "cuda", "tensorrt"}));
  app.add_option("--threads", common.options.threads, "of ONNX Runtime; 0 takes all cores")->check(CLI::Range(0, 4096));
  app.add_option("--device", common.options.device, "number of the GPU")->check(CLI::NonNegativeNumber);
  app.add_flag("--trust", common.options.trust, "load a plan that is not the file which its .json describes");
}

// Parses the command line and calls `work`, whose result is the exit code.
template <typename Work>
int run_program(CLI::App& app, int count, char** arguments, Work work) {
  try {
    app.parse(count, arguments);
  } catch (CLI::ParseError const& error) {
    return app.exit(error) == 0 ? 0 : exit_usage;
  }
  try {
    return work();
  } catch (Error const& error) {
    std::cerr << app.get_name() << ": " << error.what() << '\n';
    return exit_failed;
  }
}

}  // namespace dyvit
