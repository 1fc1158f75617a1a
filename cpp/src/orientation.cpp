#include "orientation.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <utility>

namespace dyvit {
namespace {

using Content = std::vector<std::uint8_t>;

constexpr std::string_view exif_mark{"Exif\0\0", 6}, png_signature{"\x89PNG\r\n\x1a\n", 8};
constexpr std::uint32_t orientation_tag = 274, short_type = 3, long_type = 4;

bool has_at(Content const& bytes, std::size_t at, std::string_view text) {
  return at <= bytes.size() && text.size() <= bytes.size() - at &&
         std::memcmp(bytes.data() + at, text.data(), text.size()) == 0;
}

// A number of `size` bytes; 0 if it is not all within `bytes`.
std::uint32_t number_at(Content const& bytes, std::size_t at, std::size_t size, bool big_endian = true) {
  if (at > bytes.size() || size > bytes.size() - at) return 0;
  std::uint32_t number = 0;
  for (std::size_t i = 0; i < size; ++i) number = number << 8 | bytes[at + (big_endian ? i : size - 1 - i)];
  return number;
}

// The EXIF block of a JPEG file: its APP1 segments before the first scan, joined as by Pillow.
Content exif_of_jpeg(Content const& file) {
  Content exif;
  for (std::size_t at = 2; at + 3 < file.size();) {
    unsigned const marker = file[at + 1];
    if (file[at] != 0xFF || marker == 0xFF) {
      ++at;
      continue;
    }
    // These have no length.
    if (marker <= 0x01 || (marker >= 0xD0 && marker <= 0xD8)) {
      at += 2;
      continue;
    }
    std::size_t const length = number_at(file, at + 2, 2);
    if (marker == 0xD9 || marker == 0xDA || length < 2 || length > file.size() - at - 2) break;
    if (marker == 0xE1 && length >= 2 + exif_mark.size() && has_at(file, at + 4, exif_mark))
      exif.insert(exif.end(), file.begin() + static_cast<std::ptrdiff_t>(at + 4 + exif_mark.size()),
                  file.begin() + static_cast<std::ptrdiff_t>(at + 2 + length));
    at += 2 + length;
  }
  return exif;
}

// The EXIF block of a PNG file: its last eXIf chunk, which may be behind the pixels.
Content exif_of_png(Content const& file) {
  Content exif;
  for (std::size_t at = png_signature.size(); at < file.size() && file.size() - at >= 12;) {
    std::size_t const length = number_at(file, at, 4);
    if (length > file.size() - at - 12) break;
    auto const start = file.begin() + static_cast<std::ptrdiff_t>(at + 8);
    if (has_at(file, at + 4, "eXIf")) exif.assign(start, start + static_cast<std::ptrdiff_t>(length));
    at += 12 + length;
  }
  return exif;
}

}  // namespace

int exif_orientation(Content const& file) {
  Content exif = has_at(file, 0, png_signature) ? exif_of_png(file) : exif_of_jpeg(file);
  if (has_at(exif, 0, exif_mark)) exif.erase(exif.begin(), exif.begin() + static_cast<std::ptrdiff_t>(exif_mark.size()));
  // A TIFF header: the byte order, 42, and the offset of a directory.
  bool const big = has_at(exif, 0, "MM");
  if ((!big && !has_at(exif, 0, "II")) || number_at(exif, 2, 2, big) != 42) return 1;
  std::size_t const directory = number_at(exif, 4, 4, big);
  std::size_t const entries = number_at(exif, directory, 2, big);
  for (std::size_t i = 0; i < entries; ++i) {
    // An entry: tag, type, number of values, value. Of several with one tag, the first counts.
    std::size_t const at = directory + 2 + 12 * i;
    if (at + 12 > exif.size()) break;
    if (number_at(exif, at, 2, big) != orientation_tag) continue;
    std::uint32_t const type = number_at(exif, at + 2, 2, big), count = number_at(exif, at + 4, 4, big);
    bool const known = count == 1 && (type == short_type || type == long_type);
    std::uint32_t const value = known ? number_at(exif, at + 8, type == short_type ? 2 : 4, big) : 1;
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

Image upright(Image image, int orientation) {
  if (orientation == 1) return image;
  // The rows of the result are columns of `image`; its rows and columns are taken from their ends.
  bool const swapped = orientation >= 5;
  bool const rows_reversed = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  bool const columns_reversed = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  Image turned{image.height, image.width, Content(image.rgb.size())};
  if (swapped) std::swap(turned.height, turned.width);
  std::uint8_t* to = turned.rgb.data();
  for (std::int64_t y = 0; y < turned.height; ++y)
    for (std::int64_t x = 0; x < turned.width; ++x, to += 3) {
      std::int64_t const row = swapped ? x : y, column = swapped ? y : x;
      std::int64_t const from = (rows_reversed ? image.height - 1 - row : row) * image.width +
                                (columns_reversed ? image.width - 1 - column : column);
      std::copy_n(image.rgb.data() + 3 * from, 3, to);
    }
  return turned;
}

}  // namespace dyvit
