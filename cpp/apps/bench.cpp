// dyvit-bench: times Engine::infer, from a batch in host memory to outputs in host memory, or, without transfers, a batch that
// is already on the GPU. Decoding and preprocessing are not timed. Prints a table; the last line of stdout is JSON.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "command_line.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t least_runs = 10;
constexpr int warm_up_runs = 3;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Noise of the model's input type; time does not depend on the content of an image.
struct Noise {
  std::vector<float> floats;
  std::vector<std::uint8_t> bytes;
  dyvit::Images images;

  Noise(dyvit::Metadata const& facts, std::int64_t batch) {
    auto const size = static_cast<std::size_t>(batch * 3 * facts.height * facts.width);
    std::mt19937 random(0);
    if (facts.input == dyvit::DataType::uint8) {
      bytes.resize(size);
      for (auto& value : bytes) value = static_cast<std::uint8_t>(random());
      images = {facts.input, bytes.data(), {batch, facts.height, facts.width, 3}};
    } else {
      floats.resize(size);
      std::normal_distribution<float> normal;
      for (auto& value : floats) value = normal(random);
      images = {facts.input, floats.data(), {batch, 3, facts.height, facts.width}};
    }
  }
};

// The quantile of the sorted `values` at `share`, interpolated linearly between two values.
double quantile(std::vector<double> const& values, double share) {
  double const place = share * static_cast<double>(values.size() - 1);
  auto const below = static_cast<std::size_t>(std::floor(place));
  std::size_t const above = std::min(below + 1, values.size() - 1);
  return values[below] + (place - static_cast<double>(below)) * (values[above] - values[below]);
}

nlohmann::ordered_json time_calls(std::function<void()> const& call, std::int64_t batch, double seconds) {
  for (int i = 0; i < warm_up_runs; ++i) call();
  std::vector<double> ms;
  auto const start = Clock::now();
  while (ms.size() < least_runs || seconds_since(start) < seconds) {
    auto const begin = Clock::now();
    call();
    ms.push_back(1000 * seconds_since(begin));
  }
  std::sort(ms.begin(), ms.end());
  double const median = quantile(ms, 0.5);
  return {{"batch", batch},
          {"runs", ms.size()},
          {"latency_ms_p50", median},
          {"latency_ms_p90", quantile(ms, 0.9)},
          {"latency_ms_p99", quantile(ms, 0.99)},
          {"images_per_sec", 1000.0 * static_cast<double>(batch) / median}};
}

// Before a batch is allocated, and before any is timed.
void check_batches(dyvit::Metadata const& facts, std::string const& artifact, std::vector<std::int64_t> const& batches) {
  for (std::int64_t const batch : batches)
    if (batch < facts.batch_min || (facts.batch_max > 0 && batch > facts.batch_max))
      throw dyvit::Error(artifact + " takes from " + std::to_string(facts.batch_min) + " to " +
                         std::to_string(facts.batch_max) + " images at once, not " + std::to_string(batch) +
                         "; choose another --batch.");
}

struct Timing {
  std::vector<std::int64_t> batches = {1};
  double seconds = 5;
  bool transfers = true;
};

void print_head(dyvit::Engine const& engine, std::string const& artifact, bool transfers) {
  std::printf("%s, %s, %s, %s\n%6s %8s %10s %10s %10s %10s\n", artifact.c_str(), engine.metadata().precision.c_str(),
              engine.backend().c_str(), transfers ? "from host memory to host memory" : "on the GPU, without transfers",
              "batch", "runs", "p50 ms", "p90 ms", "p99 ms", "images/s");
}

int bench(dyvit::Common const& common, Timing const& timing) {
  auto const start = Clock::now();
  auto const engine = dyvit::Engine::open(common.artifact, common.options);
  double const opening_ms = 1000 * seconds_since(start);
  check_batches(engine.metadata(), common.artifact, timing.batches);
  auto rows = nlohmann::ordered_json::array();
  for (std::int64_t const batch : timing.batches) {
    Noise const noise(engine.metadata(), batch);
    dyvit::Outputs outputs;
    std::function<void()> call = [&] { engine.infer(noise.images, outputs); };
    if (!timing.transfers) call = engine.call_without_transfers(noise.images);
    if (rows.empty()) print_head(engine, common.artifact, timing.transfers);
    auto const row = time_calls(call, batch, timing.seconds);
    std::printf("%6lld %8zu %10.3f %10.3f %10.3f %10.1f\n", static_cast<long long>(batch), row["runs"].get<std::size_t>(),
                row["latency_ms_p50"].get<double>(), row["latency_ms_p90"].get<double>(),
                row["latency_ms_p99"].get<double>(), row["images_per_sec"].get<double>());
    std::fflush(stdout);
    rows.push_back(row);
  }
  nlohmann::ordered_json const report = {{"artifact", common.artifact},
                                         {"model", engine.metadata().model},
                                         {"precision", engine.metadata().precision},
                                         {"backend", engine.backend()},
                                         {"threads", common.options.threads},
                                         {"transfers", timing.transfers},
                                         {"opening_ms", opening_ms},
                                         {"timings", rows}};
  // JSON must be UTF-8, but a path need not be.
  std::puts(report.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  CLI::App app("Times an artifact: percentiles of the time of one batch.", "dyvit-bench");
  dyvit::Common common;
  common.options.allow_cpu_fallback = false;
  Timing timing;
  add_common(app, common);
  app.add_option("--batch", timing.batches, "images per batch, like 1,8")->delimiter(',')->check(CLI::Range(1, 65536));
  app.add_option("--seconds", timing.seconds, "seconds of timing per batch size")->check(CLI::PositiveNumber);
  app.add_flag_callback("--no-transfers", [&] { timing.transfers = false; },
                        "time a batch that is already on the GPU, without copies between host and GPU; engine plans only");
  app.add_flag("--allow-cpu-fallback", common.options.allow_cpu_fallback,
               "with --provider cuda or tensorrt: also time a model of which some nodes run on the CPU");
  return dyvit::run_program(app, count, arguments, [&] { return bench(common, timing); });
}
