// Decodes JPEG with libjpeg-turbo, which Pillow uses too, and PNG with libpng.
#include <png.h>
#include <turbojpeg.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "backend.h"
#include "dyvit/images.h"

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

Image decode_png(Content const& content, std::string const& name) {
  png_image png = {};
  png.version = PNG_IMAGE_VERSION;
  std::unique_ptr<png_image, void (*)(png_image*)> const owner(&png, png_image_free);
  if (png_image_begin_read_from_memory(&png, content.data(), content.size()) == 0) throw damaged(name, png.message);
  std::size_t const pixels = checked_pixels(png.height, png.width, name);
  // Decoded with alpha, because otherwise libpng would blend transparent pixels with a background.
  png.format = PNG_FORMAT_RGBA;
  // Otherwise libpng would treat 16-bit files as linear light.
  png.flags |= PNG_IMAGE_FLAG_16BIT_sRGB;
  Content rgba(4 * pixels);
  if (png_image_finish_read(&png, nullptr, rgba.data(), 0, nullptr) == 0) throw damaged(name, png.message);
  Image image{png.height, png.width, Content(3 * pixels)};
  for (std::size_t pixel = 0; pixel < pixels; ++pixel) std::memcpy(&image.rgb[3 * pixel], &rgba[4 * pixel], 3);
  return image;
}

}  // namespace

Image read_image(std::filesystem::path const& path) {
  require_file(path);
  std::ifstream file(path, std::ios::binary);
  Content const content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::string const name = path.string();
  if (content.size() > 2 && content[0] == 0xFF && content[1] == 0xD8) return decode_jpeg(content, name);
  if (content.size() > 8 && png_sig_cmp(content.data(), 0, 8) == 0) return decode_png(content, name);
  throw Error(name + " is neither a JPEG nor a PNG file; save it as one of them.");
}

}  // namespace dyvit
