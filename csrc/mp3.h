// MP3 files, frame by frame.
#pragma once

#include <cstdint>
#include <string_view>

namespace lm {

struct mp3_header {
    uint32_t rate, channels;
    uint64_t frames; // a sample of each channel
    std::string_view data; // the coded frames, without tags
};

// Throws invalid_request for what is no whole MP3 file, or changes on the way.
mp3_header read_mp3(std::string_view bytes);

}  // namespace lm
