// JPEG files as their segments tell of them.
#pragma once

#include "shown_rows.h"

#include <cstdint>
#include <string_view>

namespace lm {

struct jpeg_header {
    uint32_t width, height; // as stored
    int turn;               // as exif_turn
    uint64_t decoding_bytes;  // the most that is held of it at once
    uint64_t allocated_bytes; // by stb_image, of which it does not touch all
};

// Throws invalid_request for what is no JPEG file that stb_image decodes rightly. `whole` also looks for the end of its data;
// otherwise nothing behind the header is read.
jpeg_header read_jpeg(std::string_view bytes, bool whole);
// Of a file that was read.
void decode_jpeg(std::string_view bytes, shown_rows & out);

}  // namespace lm
