// How a camera was held.
#pragma once

#include <string_view>

namespace lm {

// The orientation in `tiff`, what an Exif block holds behind its name: 1 to 8, or 1 if it does not say, or is broken.
int exif_turn(std::string_view tiff);

}  // namespace lm
