// The EXIF orientation of image files, by the rules of dyvit_deploy/data/preprocess.py.
#pragma once

#include <cstdint>
#include <vector>

#include "dyvit/images.h"

namespace dyvit {

// The orientation in the EXIF block of a JPEG or PNG file, 1 to 8; 1, which is upright, if it has none or a damaged one.
int exif_orientation(std::vector<std::uint8_t> const& file);

// `image` turned so that it is upright.
Image upright(Image image, int orientation);

}  // namespace dyvit
