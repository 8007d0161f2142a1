#include "costs.h"

#include <algorithm>
#include <limits>

namespace lm {

static constexpr double WEIGHT = 0.2; // of a new measurement

// In steps. What a step without guesses takes is measured as often as the one, at the price of one such step; a width
// that was given up as too dear is tried again after the other, for the machine may have been busy.
static constexpr uint64_t SURE = 64;
static constexpr uint64_t REMEMBERED = 1024;

static void blend(double & known, double ms) {
    known += WEIGHT * (ms - known);
}

void step_costs::learn(size_t width, double ms) {
    if (width > WIDEST) {
        return;
    }
    measure & m = measured_[width];
    now_++;
    if (remembered(m)) {
        blend(m.ms, ms);
    } else {
        m.ms = ms;
    }
    m.at = now_;
}

void step_costs::learn_slope(double ms_per_token) {
    if (slope_ms_ > 0) {
        blend(slope_ms_, ms_per_token);
    } else {
        slope_ms_ = ms_per_token;
    }
}

bool step_costs::remembered(const measure & m) const {
    return m.at > 0 && now_ - m.at < REMEMBERED;
}

bool step_costs::sure(size_t width) const {
    return width <= WIDEST && measured_[width].at > 0 && now_ - measured_[width].at < SURE;
}

// `below` is the widest that is known.
double step_costs::beyond(size_t below, size_t width) const {
    const double ms = measured_[below].ms;
    const double nothing_shared = ms / double(below);
    const double slope = slope_ms_ > 0 ? std::min(slope_ms_, nothing_shared) : nothing_shared / 2;
    return ms + slope * double(width - below);
}

double step_costs::ms(size_t width) const {
    size_t below = 0; // the nearest narrower width that is known; 0: none
    double interpolated = 0;
    double least = std::numeric_limits<double>::infinity(); // of wider steps: a moment in which the machine was busy is not believed
    for (size_t w = 1; w <= WIDEST; w++) {
        const measure & m = measured_[w];
        if (!remembered(m)) {
            continue;
        }
        if (w < width) {
            below = w;
        } else {
            if (interpolated == 0) {
                const double from = below == 0 ? m.ms : measured_[below].ms;
                interpolated = w == width ? m.ms : from + (m.ms - from) * double(width - below) / double(w - below);
            }
            least = std::min(least, m.ms);
        }
    }
    return interpolated > 0 ? std::min(interpolated, least) : below > 0 ? beyond(below, width) : 0;
}

}  // namespace lm
