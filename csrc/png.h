// PNG files as their chunks tell of them.
#pragma once

#include <cstdint>
#include <string_view>

namespace lm {

struct png_header {
    uint32_t width, height;
    bool alpha;
    int turn; // as exif_turn
    uint64_t decoding_bytes; // the most that stb_image has allocated at once for it
};

// Throws invalid_request for what is no whole PNG file that can be decoded. `whole` also reads every byte (sums over the
// chunks); otherwise only their heads are read.
png_header read_png(std::string_view bytes, bool whole);

}  // namespace lm
