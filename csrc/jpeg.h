// JPEG files as their segments tell of them.
#pragma once

#include <cstdint>
#include <string_view>

namespace lm {

struct jpeg_header {
    uint32_t width, height; // as stored
    int turn;               // as exif_turn
    uint64_t decoding_bytes; // the most that stb_image has allocated at once for it
};

// Throws invalid_request for what is no JPEG file that stb_image decodes rightly. `whole` also looks for the end of its data;
// otherwise nothing behind the header is read.
jpeg_header read_jpeg(std::string_view bytes, bool whole);

}  // namespace lm
