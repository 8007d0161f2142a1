// Pictures that somebody sent. Their headers are read here before any decoder sees them: what is none of the formats that are
// served, too large, broken or cut off is refused with a reason. JPEG is decoded by stb_image, which is given nothing else and
// counted memory; PNG, GIF and BMP here.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace lm {

// More comes in no request body; the Python API could send more.
constexpr uint64_t MOST_PICTURE_BYTES = 32 << 20;
// A screen of 7680 x 4320 has as many.
constexpr uint64_t MOST_PICTURE_PIXELS = 1ull << 25;
// Longer than pages are photographed; towers compute with twice as much at most.
constexpr uint32_t MOST_PICTURE_SIDE = 32768;
// What has more is averaged down to as many while it is decoded: a screen of 3840 x 2160 is looked at as it is, and towers look
// at a few million at most.
constexpr uint64_t MOST_PIXELS_LOOKED_AT = 1ull << 23;
// That decoding may take at once, the result included, which is 3 bytes for each pixel that is looked at: 25 MB at most. Ordinary
// files take little more than their result, or 1.5 to 3 bytes a pixel (JPEG); progressive and interlaced ones up to 6.
constexpr uint64_t MOST_PICTURE_MEMORY = 96ull << 20;
// Where memory is short: enough for all PNGs that are not interlaced, and for photographs of 16 million pixels.
constexpr uint64_t LEAST_PICTURE_MEMORY = 48ull << 20;

struct picture_sides {
    uint32_t width, height;
};

// Of a picture of that size, as it is given to a tower.
picture_sides sides_looked_at(uint32_t width, uint32_t height);

struct picture_size {
    const char * format; // static
    uint32_t width, height; // as looked at, after the turn that Exif asks for
};

struct pixels {
    uint32_t width, height;
    std::vector<uint8_t> rgb;
};

// Both throw invalid_request (`media`) with a message that says what is wrong, or that decoding would take more than
// `most_memory`. This one reads nothing but the header.
picture_size look_at_picture(std::string_view bytes, uint64_t most_memory = MOST_PICTURE_MEMORY);
// Alpha is blended on white, the Exif turn applied, 16 bits become 8; of a GIF the first picture.
pixels decode_picture(std::string_view bytes, uint64_t most_memory = MOST_PICTURE_MEMORY);

}  // namespace lm
