// What zlib packed (RFC 1950 and 1951), unpacked a piece at a time: all of it never lies in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

namespace lm {

// Gives `take` what the `parts` of one packed stream hold, in order. Throws bad_media, in which `what` names the file ("this PNG").
void inflate(const std::vector<std::string_view> & parts, const char * what, const std::function<void(const uint8_t *, size_t)> & take);

}  // namespace lm
