#include "logits.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

namespace lm {

// A block whose best token is this many nats (after temperature) under the row's best is skipped: 150 k such tokens
// together are 2e-6 of the total at most, a tenth of what single precision loses in a row of that length anyway.
static constexpr float NEGLIGIBLE_NATS = 25.0f;

static constexpr int32_t LANES = 16;
static constexpr int32_t SAMPLE_STRIDE = 8;

static float block_max(const float * logits, int32_t n) {
    float lanes[LANES];
    std::fill(lanes, lanes + LANES, row::NEVER);
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int32_t lane = 0; lane < LANES; lane++) {
            lanes[lane] = logits[i + lane] > lanes[lane] ? logits[i + lane] : lanes[lane];
        }
    }
    for (; i < n; i++) {
        lanes[0] = logits[i] > lanes[0] ? logits[i] : lanes[0];
    }
    for (int32_t half = LANES / 2; half > 0; half /= 2) {
        for (int32_t lane = 0; lane < half; lane++) {
            lanes[lane] = lanes[lane + half] > lanes[lane] ? lanes[lane + half] : lanes[lane];
        }
    }
    return lanes[0];
}

static inline float weight(float logit, int32_t id, float max, float scale, row::cut c) {
    const float w = exp_nonpositive((logit - max) * scale);
    const bool before = (logit > c.logit) | ((logit == c.logit) & (id < c.end)); // -inf weighs nothing anyway
    return before ? w : 0.0f;
}

template <typename W>
static float sum_of(int32_t begin, int32_t end, W weight_at) {
    float lanes[LANES] = {};
    int32_t i = begin;
    for (; i + LANES <= end; i += LANES) {
        for (int32_t lane = 0; lane < LANES; lane++) {
            lanes[lane] += weight_at(i + lane);
        }
    }
    for (; i < end; i++) {
        lanes[0] += weight_at(i);
    }
    float sum = 0;
    for (const float lane : lanes) {
        sum += lane;
    }
    return sum;
}

static float block_weight(const float * logits, int32_t begin, int32_t end, float max, float scale, row::cut c) {
    if (c.is_none()) {
        return sum_of(begin, end, [=](int32_t i) { return exp_nonpositive((logits[i] - max) * scale); });
    }
    return sum_of(begin, end, [=](int32_t i) { return weight(logits[i], i, max, scale, c); });
}

void row::read(const float * logits, int32_t n) {
    logits_ = logits;
    n_ = n;
    maxima_.resize(size_t((n + BLOCK - 1) / BLOCK));
    max_ = NEVER;
    best_ = 0;
    int32_t best_block = 0;
    for (int32_t b = 0; b < n_blocks(); b++) {
        const float m = block_max(logits + b * BLOCK, block_end(b) - b * BLOCK);
        maxima_[size_t(b)] = m;
        if (m > max_) {
            max_ = m;
            best_block = b;
        }
    }
    for (int32_t i = best_block * BLOCK; max_ > NEVER && i < block_end(best_block); i++) {
        if (logits[i] == max_) {
            best_ = i;
            break;
        }
    }
}

bool ranks_before(const candidate & a, const candidate & b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static float kth_largest(std::vector<float> values, size_t k) {
    std::nth_element(values.begin(), values.begin() + long(k - 1), values.end(), std::greater<float>());
    return values[k - 1];
}

// A logit that at least k tokens reach, and not many more. The k-th best block has a best token, so k tokens are at least
// as good as that; for more tokens than blocks it is guessed from a sample of the row.
float row::threshold(size_t k) const {
    if (k <= maxima_.size()) {
        return kth_largest(maxima_, k);
    }
    std::vector<float> sample;
    for (int32_t i = 0; i < n_; i += SAMPLE_STRIDE) {
        sample.push_back(logits_[i] > NEVER ? logits_[i] : NEVER);
    }
    const double expected = double(k) / SAMPLE_STRIDE;
    const size_t rank = size_t(expected + 4 * std::sqrt(expected)) + 4;
    return rank <= sample.size() ? kth_largest(std::move(sample), rank) : NEVER;
}

void row::collect(float threshold, std::vector<candidate> & kept) const {
    for (int32_t b = 0; b < n_blocks(); b++) {
        if (maxima_[size_t(b)] < threshold || maxima_[size_t(b)] == NEVER) {
            continue;
        }
        for (int32_t i = b * BLOCK; i < block_end(b); i++) {
            if (logits_[i] >= threshold && logits_[i] > NEVER) {
                kept.push_back({i, logits_[i]});
            }
        }
    }
}

std::vector<candidate> row::top(size_t k) const {
    std::vector<candidate> kept;
    if (k > 0) {
        k = std::min(k, size_t(n_));
        kept.reserve(2 * k);
        collect(threshold(k), kept);
    }
    if (kept.size() < k) { // fewer are above -inf, or the sample was not like the row
        kept.clear();
        collect(NEVER, kept);
    }
    if (kept.size() > k) {
        std::nth_element(kept.begin(), kept.begin() + long(k), kept.end(), ranks_before);
        kept.resize(k);
    }
    std::sort(kept.begin(), kept.end(), ranks_before);
    return kept;
}

double row::weigh(float scale, cut c) {
    scale_ = scale;
    cut_ = c;
    sums_.resize(maxima_.size());
    double total = 0;
    for (int32_t b = 0; b < n_blocks(); b++) {
        const float m = maxima_[size_t(b)];
        const bool matters = m >= c.logit && m > NEVER && (max_ - m) * scale < NEGLIGIBLE_NATS;
        sums_[size_t(b)] = matters ? block_weight(logits_, b * BLOCK, block_end(b), max_, scale, c) : 0.0f;
        total += double(sums_[size_t(b)]);
    }
    return total;
}

llama_token row::pick(double left) const {
    for (int32_t b = 0; b < n_blocks(); b++) {
        const double sum = double(sums_[size_t(b)]);
        if (sum == 0 || left >= sum) {
            left -= sum;
            continue;
        }
        llama_token last = best_;
        for (int32_t i = b * BLOCK; i < block_end(b); i++) {
            const float w = weight(logits_[i], i, max_, scale_, cut_);
            left -= double(w);
            if (w > 0) {
                last = i;
            }
            if (w > 0 && left < 0) {
                break;
            }
        }
        return last; // also where the block's sum was rounded up
    }
    return best_;
}

}  // namespace lm
