// The first picture of a GIF file.
#pragma once

#include "shown_rows.h"

#include <cstdint>
#include <string_view>

namespace lm {

struct gif_header {
    uint32_t width, height; // of what is shown, as large as its first picture at least
    uint32_t left, top, frame_width, frame_height; // that picture's place in it
    bool interlaced;
    int transparent; // index of a color, or -1
    std::string_view palette; // of three bytes each
    size_t data_at;           // where its coded pixels begin
};

// Both throw invalid_request for what is no GIF file with a whole first picture.
gif_header read_gif(std::string_view bytes);
// What is transparent is white. Takes a byte for each pixel of the first picture.
void decode_gif(std::string_view bytes, const gif_header & header, shown_rows & out);

}  // namespace lm
