// Windows bitmaps.
#pragma once

#include "shown_rows.h"

#include <array>
#include <cstdint>
#include <string_view>

namespace lm {

struct bmp_header {
    uint32_t width, height;
    bool top_down;
    uint32_t bits;                 // per pixel
    std::array<uint32_t, 4> masks; // of red, green, blue and alpha in a pixel of 16 or 32 bits; 0: there is none
    std::string_view palette;
    uint32_t entry_bytes; // of the palette
    uint64_t data_at, row_bytes;
};

// Both throw invalid_request for what is no whole bitmap of a kind that is read.
bmp_header read_bmp(std::string_view bytes);
// Alpha is blended on white.
void decode_bmp(std::string_view bytes, const bmp_header & header, shown_rows & shown);

}  // namespace lm
