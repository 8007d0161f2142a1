#include "pace.h"

#include <algorithm>

namespace lm {

size_t prefill_pace::grant(size_t n_others) {
    const size_t step = n_others + size_t(tokens_);
    const size_t in_tiles = step - step % TILE;
    n_others_ = n_others;
    granted_ = in_tiles > n_others ? in_tiles - n_others : size_t(tokens_);
    return granted_;
}

void prefill_pace::learn(size_t n, double step_ms) {
    const bool full = n >= granted_; // a shorter prompt tells only that it was not too long
    if (full || step_ms > target_ms_) {
        const double scale = std::clamp(target_ms_ / std::max(step_ms, 0.1), 0.5, full ? 2.0 : 1.0);
        const double tile_ms = step_ms * double(TILE) / double(std::max<size_t>(n + n_others_, 1));
        n_slow_tiles_ = tile_ms <= MOST_TILE_MS ? 0 : n_slow_tiles_ + 1;
        const bool tiles = n + n_others_ >= TILE && n_slow_tiles_ < 2; // one alone may be the machine's doing
        tokens_ = std::clamp((full ? double(n) : tokens_) * scale, tiles ? double(TILE) : LEAST, MOST);
    }
}

}  // namespace lm
