// FLAC files as their first block tells of them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lm {

struct flac_header {
    uint32_t rate, channels;
    uint64_t frames; // a sample of each channel; where the header does not say how many, the last coded frame does
    std::string_view stream_info;
    std::string_view data; // the coded frames
};

// Throws invalid_request for what does not begin as a FLAC file does.
flac_header read_flac(std::string_view bytes);

// The same sound without pictures, tags and tables.
std::string plain_flac(const flac_header & header);

}  // namespace lm
