#include "pace.h"

#include <algorithm>

namespace lm {

void prefill_pace::learn(size_t n, double step_ms) {
    const bool full = n >= granted_; // a shorter prompt tells only that it was not too long
    if (full || step_ms > target_ms_) {
        const double scale = std::clamp(target_ms_ / std::max(step_ms, 0.1), 0.5, full ? 2.0 : 1.0);
        tokens_ = std::clamp((full ? double(n) : tokens_) * scale, LEAST, MOST);
    }
}

void lent_time::streams_took(double ms, bool is_there_other_work) {
    balance_ms_ = std::min(balance_ms_ + ms * share_, is_there_other_work ? most_owed_ms_ : 0);
}

}  // namespace lm
