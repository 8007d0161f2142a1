// What stb_image decodes for us, JPEG, in memory that is counted: its own limits allow gigabytes.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

namespace lm {

struct stb_outcome {
    bool whole = false; // all rows were given
    const char * failure = ""; // static; empty for want of memory, or if its size is another one
};

// Gives `take` the rows of a JPEG of that size, three bytes a pixel. At no time more than `memory` bytes are allocated; of a
// progressive file's planes all but a few rows are never touched.
stb_outcome stb_decode_jpeg(std::string_view file, uint32_t width, uint32_t height, uint64_t memory,
                            const std::function<void(const uint8_t *)> & take);

}  // namespace lm
