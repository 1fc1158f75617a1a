// Options and exit codes that dyvit-run and dyvit-bench share.
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
  app.add_option("--provider", common.options.provider, "provider of ONNX Runtime: cpu, cuda or tensorrt")
      ->check(CLI::IsMember({"cpu", "cuda", "tensorrt"}));
  app.add_option("--threads", common.options.threads, "threads of ONNX Runtime; 0 uses all cores")->check(CLI::Range(0, 4096));
  app.add_option("--device", common.options.device, "index of the GPU")->check(CLI::NonNegativeNumber);
  app.add_flag("--trust", common.options.trust,
               "load a plan whose hash differs from its .json; plans contain native code: only do this for files you trust");
}

// Throws Error if stdout could not be written completely, for example on a full disk.
inline void finish_output() {
  bool const written = std::cout.flush() && std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  if (!written) throw Error("The output could not be written to its end; free space there, or write it elsewhere.");
}

// Parses the command line and calls `work`, whose result is the exit code. An exception is printed as one sentence on stderr.
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
    } catch (CLI::ParseError const& error) {
      // Also thrown for --help, which prints to stdout.
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
    return failed(std::string("Unexpected error (") + error.what() + "); please report it.");
  }
}

}  // namespace dyvit
