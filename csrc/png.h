// PNG files as their chunks tell of them.
#pragma once

#include "shown_rows.h"

#include <cstdint>
#include <string_view>

namespace lm {

struct png_header {
    uint32_t width, height;
    int turn; // as exif_turn
    uint64_t decoding_bytes; // the most that is held of it at once: of an interlaced one, all its pixels
};

// Throws invalid_request for what is no whole PNG file that can be decoded. `whole` also reads every byte (sums over the
// chunks); otherwise only their heads are read.
png_header read_png(std::string_view bytes, bool whole);
// Of a file that was read. Alpha is blended on white, 16 bits become 8.
void decode_png(std::string_view bytes, shown_rows & out);

}  // namespace lm
