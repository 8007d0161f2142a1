#pragma once

#include <cstdint>

namespace lm {

// A value of a pixel that is laid on white with `alpha`.
inline uint8_t on_white(uint8_t value, uint8_t alpha) {
    return uint8_t((uint32_t(value) * alpha + 255u * (255u - alpha) + 127u) / 255u);
}

}  // namespace lm
