// dyvit-run: prints the most probable classes of images.
#include <iomanip>

#include "command_line.h"
#include "dyvit/images.h"

namespace {

struct PrintOptions {
  std::size_t top = 5;
  bool kept = false;
};

struct ImageOptions {
  std::vector<std::string> paths;
  bool orient = false;
};

void print_answer(dyvit::Outputs const& outputs, dyvit::Metadata const& facts, PrintOptions const& print) {
  for (auto const& [index, probability] : dyvit::top_classes(outputs, 0, print.top))
    std::cout << "  " << std::fixed << std::setprecision(2) << std::setw(6) << 100 * probability << " %  "
              << facts.label(index) << '\n';
  for (std::size_t stage = 0; print.kept && stage < outputs.kept.size(); ++stage) {
    std::cout << "  kept after stage " << stage << ":";
    for (std::int64_t const patch : outputs.kept[stage]) std::cout << ' ' << patch;
    std::cout << '\n';
  }
}

int run(dyvit::Common const& common, ImageOptions const& images, PrintOptions const& print) {
  auto const engine = dyvit::Engine::open(common.artifact, common.options);
  if (print.kept && !engine.metadata().outputs_kept)
    throw dyvit::Error(common.artifact + " does not output the patches that it keeps; export it again with --with-tokens.");
  dyvit::Preprocessor const preprocessor(engine.metadata(), common.options.threads);
  int code = 0;
  for (std::string const& path : images.paths) {
    try {
      auto const batch = preprocessor.prepare({dyvit::read_image(path, images.orient)});
      auto const outputs = engine.infer(batch.view());
      std::cout << path << '\n';
      print_answer(outputs, engine.metadata(), print);
    } catch (dyvit::Error const& error) {
      // The other images still run.
      std::cerr << "dyvit-run: " << error.what() << '\n';
      code = dyvit::exit_failed;
    }
  }
  return code;
}

}  // namespace

int main(int count, char** arguments) {
  CLI::App app("The most probable classes of images.", "dyvit-run");
  dyvit::Common common;
  ImageOptions images;
  PrintOptions print;
  add_common(app, common);
  app.add_option("images", images.paths, "JPEG or PNG files")->required();
  app.add_flag("--orient", images.orient, "turn images as their EXIF orientation says, which training ignores");
  app.add_option("--top", print.top, "classes per image")->check(CLI::PositiveNumber);
  app.add_flag("--kept", print.kept, "also print the patches that survive each stage, in the original grid, best first");
  return dyvit::run_program(app, count, arguments, [&] { return run(common, images, print); });
}
