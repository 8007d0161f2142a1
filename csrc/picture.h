// Pictures that somebody sent. Their headers are read here before any decoder sees them: what is none of the formats that are
// served, too large, broken or cut off is refused with a reason. PNG and JPEG are decoded by stb_image, which is given nothing
// else and counted memory; GIF and BMP here.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace lm {

// More comes in no request body; the Python API could send more.
constexpr uint64_t MOST_PICTURE_BYTES = 32 << 20;
// A screen of 7680 x 4320 has as many; towers look at a few million at most.
constexpr uint64_t MOST_PICTURE_PIXELS = 1ull << 25;
// Longer than pages are photographed; towers compute with twice as much at most.
constexpr uint32_t MOST_PICTURE_SIDE = 32768;
// That decoding takes at once, the result included, which is 3 bytes a pixel. A photograph of 12 million pixels takes 75 MB,
// a progressive one up to 145 MB.
constexpr uint64_t MOST_PICTURE_MEMORY = 400ull << 20;

struct picture_size {
    const char * format; // static
    uint32_t width, height; // as shown, after the turn that Exif asks for
};

struct pixels {
    uint32_t width, height;
    std::vector<uint8_t> rgb;
};

// Both throw invalid_request (`media`) with a message that says what is wrong. This one reads nothing but the header.
picture_size look_at_picture(std::string_view bytes);
// Alpha is blended on white, the Exif turn applied, 16 bits become 8; of a GIF the first picture.
pixels decode_picture(std::string_view bytes);

}  // namespace lm
