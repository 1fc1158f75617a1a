// What dyvit-run and dyvit-bench share: their common options and exit codes.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <iostream>
#include <new>
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

// Throws Error: something of stdout was not written, such as on a full disk.
inline void finish_output() {
  bool const written = std::cout.flush() && std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  if (!written) throw Error("The output could not be written to its end; free space there, or write it elsewhere.");
}

// Parses the command line and calls `work`, whose result is the exit code. Whatever it throws is one sentence on stderr.
template <typename Work>
int run_program(CLI::App& app, int count, char** arguments, Work work) {
  auto const failed = [&](std::string const& sentence) {
    std::cerr << app.get_name() << ": " << sentence << '\n';
    return exit_failed;
  };
  try {
    int code = 0;
    try {
      app.parse(count, arguments);
      code = work();
    } catch (CLI::ParseError const& error) {              // or a wish for help, which goes to stdout
      code = app.exit(error) == 0 ? 0 : exit_usage;
    }
    finish_output();
    return code;
  } catch (Error const& error) {
    return failed(error.what());
  } catch (std::bad_alloc const&) {
    bool const batched = app.get_option_no_throw("--batch") != nullptr;
    return failed(std::string("Not enough memory; ") + (batched ? "use a smaller --batch." : "use smaller images."));
  } catch (std::exception const& error) {
    return failed(std::string("Something unforeseen failed (") + error.what() + "); please report it.");
  }
}

}  // namespace dyvit
