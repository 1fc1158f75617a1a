// Decodes JPEG with libjpeg-turbo, which Pillow uses too, and PNG with libpng.
#include <png.h>
#include <turbojpeg.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"
#include "dyvit/images.h"
#include "orientation.h"

namespace dyvit {
namespace {

using Content = std::vector<std::uint8_t>;

// Throws Error if the size is invalid or too large to decode. `name` is the file's.
std::size_t checked_pixels(std::int64_t height, std::int64_t width, std::string const& name) {
  if (height < 1 || width < 1 || height > max_pixels || width > max_pixels || height * width > max_pixels)
    throw Error(name + " has " + std::to_string(width) + " x " + std::to_string(height) + " pixels, and more than " +
                std::to_string(max_pixels) + " are not decoded; make it smaller.");
  return static_cast<std::size_t>(height * width);
}

Error damaged(std::string const& name, std::string const& why) {
  return Error(name + " is damaged or cut short (" + reason(why) + "); copy or save it again.");
}

// Whether a marker FF D9 ends the image after a scan. Segments are skipped, because a thumbnail in one has its own FF D9.
bool jpeg_ends(Content const& content) {
  bool scanned = false;
  for (std::size_t at = 2; at + 1 < content.size();) {
    unsigned const marker = content[at + 1];
    // Stuffed bytes and restart markers have no length.
    bool const alone = marker <= 0x01 || (marker >= 0xD0 && marker <= 0xD8);
    if (content[at] != 0xFF || marker == 0xFF) {
      ++at;
    } else if (marker == 0xD9) {
      return scanned;
    } else if (alone || at + 3 >= content.size()) {
      at += 2;
    } else {
      scanned = scanned || marker == 0xDA;
      at += 2U + (content[at + 2] << 8 | content[at + 3]);
    }
  }
  return false;
}

Image decode_jpeg(Content const& content, std::string const& name) {
  // libjpeg-turbo may only warn about this.
  if (!jpeg_ends(content)) throw damaged(name, "the end of the image is missing");
  std::unique_ptr<void, int (*)(void*)> const decoder(tjInitDecompress(), tjDestroy);
  if (!decoder) throw Error("libjpeg-turbo cannot start; there is too little memory.");
  int width = 0, height = 0, sampling = 0, colours = 0;
  auto const size = static_cast<unsigned long>(content.size());
  if (tjDecompressHeader3(decoder.get(), content.data(), size, &width, &height, &sampling, &colours) != 0)
    throw damaged(name, tjGetErrorStr2(decoder.get()));
  if (colours == TJCS_CMYK || colours == TJCS_YCCK)
    throw Error(name + " is a CMYK JPEG, which is not decoded here; save it as RGB.");
  Image image{height, width, Content(3 * checked_pixels(height, width, name))};
  // The accurate DCT is the one that Pillow uses. Without a limit, an image with many scans could take minutes.
  int const failed = tjDecompress2(decoder.get(), content.data(), size, image.rgb.data(), width, 0, height, TJPF_RGB,
                                   TJFLAG_ACCURATEDCT | TJFLAG_LIMITSCANS);
  std::string const message = failed != 0 ? tjGetErrorStr2(decoder.get()) : "";
  // Of the warnings, Pillow treats only a premature end as an error; others, such as superfluous bytes, are common.
  bool const warning = failed != 0 && tjGetErrorCode(decoder.get()) == TJERR_WARNING;
  if (failed != 0 && (!warning || message.find("Premature end") != std::string::npos)) throw damaged(name, message);
  return image;
}

// Reads a PNG file from memory. libpng reports an error with longjmp, which must not pass objects with destructors: `run`
// catches it, and its steps have none.
class PngReader {
 public:
  explicit PngReader(Content const& content) : content_(content) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, fail, ignore);
    info_ = png_ == nullptr ? nullptr : png_create_info_struct(png_);
    if (info_ == nullptr) throw Error("libpng cannot start; there is too little memory.");
    png_set_read_fn(png_, this, read);
  }
  ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngReader(PngReader const&) = delete;
  PngReader& operator=(PngReader const&) = delete;

  // Throws Error if libpng fails in `step`, which takes its two structures.
  template <typename Step>
  void run(std::string const& name, Step step) {
    if (setjmp(png_jmpbuf(png_)) != 0) throw damaged(name, message_.data());
    step(png_, info_);
  }

 private:
  static PngReader& self(void* pointer) { return *static_cast<PngReader*>(pointer); }
  static void ignore(png_structp, png_const_charp) {}
  static void fail(png_structp png, png_const_charp message) {
    auto& text = self(png_get_error_ptr(png)).message_;
    std::strncpy(text.data(), message, text.size() - 1);
    png_longjmp(png, 1);
  }
  static void read(png_structp png, png_bytep to, std::size_t size) {
    auto& reader = self(png_get_io_ptr(png));
    if (size > reader.content_.size() - reader.at_) png_error(png, "the file ends early");
    std::memcpy(to, reader.content_.data() + reader.at_, size);
    reader.at_ += size;
  }

  Content const& content_;
  std::size_t at_ = 0;
  std::array<char, 200> message_{};
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
};

// 16-bit grey as RGB: the upper 8 bits, as in Python. Throws Error if no value but 0 uses the upper 4.
Content upper_bits(Content const& grey, std::string const& name) {
  Content rgb(grey.size() / 2 * 3);
  unsigned largest = 0;
  for (std::size_t pixel = 0; pixel < grey.size() / 2; ++pixel) {
    largest = std::max(largest, grey[2 * pixel] * 256U + grey[2 * pixel + 1]);
    std::fill_n(&rgb[3 * pixel], 3, grey[2 * pixel]);
  }
  if (largest > 0 && largest < 4096)
    throw Error(name + " has 16-bit pixels of " + std::to_string(largest) + " at most, 12 bits or fewer, whose range is "
                "unknown; save it with 8 bits per channel.");
  return rgb;
}

// Without libpng's simplified interface, which rounds 16 bits, applies gamma and blends transparent pixels.
Image decode_png(Content const& content, std::string const& name) {
  PngReader reader(content);
  png_uint_32 width = 0, height = 0;
  int depth = 0, colours = 0;
  reader.run(name, [&](png_structp png, png_infop info) {
    png_read_info(png, info);
    png_get_IHDR(png, info, &width, &height, &depth, &colours, nullptr, nullptr, nullptr);
  });
  std::size_t const pixels = checked_pixels(height, width, name);
  // Grey with alpha is treated as colour, as by Pillow.
  bool const deep_grey = depth == 16 && colours == PNG_COLOR_TYPE_GRAY;
  std::size_t const row_size = (deep_grey ? 2U : 3U) * std::size_t{width};
  Content decoded(pixels / width * row_size);
  std::vector<png_bytep> rows(height);
  for (std::size_t row = 0; row < rows.size(); ++row) rows[row] = decoded.data() + row * row_size;
  reader.run(name, [&](png_structp png, png_infop info) {
    png_set_expand(png);
    if (!deep_grey) {
      png_set_strip_16(png);
      png_set_gray_to_rgb(png);
    }
    png_set_strip_alpha(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    if (png_get_rowbytes(png, info) != row_size) png_error(png, "its rows have another size");
    png_read_image(png, rows.data());
  });
  return {height, width, deep_grey ? upper_bits(decoded, name) : std::move(decoded)};
}

}  // namespace

Image read_image(std::filesystem::path const& path, bool orient) {
  require_file(path);
  std::ifstream file(path, std::ios::binary);
  Content const content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::string const name = path.string();
  bool const jpeg = content.size() > 2 && content[0] == 0xFF && content[1] == 0xD8;
  if (!jpeg && (content.size() <= 8 || png_sig_cmp(content.data(), 0, 8) != 0))
    throw Error(name + " is neither a JPEG nor a PNG file; save it as one of them.");
  Image image = jpeg ? decode_jpeg(content, name) : decode_png(content, name);
  return orient ? upright(std::move(image), exif_orientation(content)) : image;
}

}  // namespace dyvit
