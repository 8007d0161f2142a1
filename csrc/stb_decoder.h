// What stb_image decodes for us, PNG and JPEG, in memory that is counted: its own limits allow gigabytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

namespace lm {

struct stb_pixels {
    struct deleter {
        void operator()(uint8_t * bytes) const;
    };
    std::unique_ptr<uint8_t, deleter> bytes; // null: `failure` says why
    uint32_t width = 0;
    uint32_t height = 0;
    const char * failure = ""; // static; empty for want of memory
};

// `channels` bytes a pixel, 3 or 4. At no time more than `memory` bytes are allocated.
stb_pixels stb_decode(std::string_view file, int channels, uint64_t memory);

}  // namespace lm
