// One row of logits and the passes over it that sampling needs. A first pass notes the largest logit of each block; the
// others skip the blocks that cannot matter. Compiled for the widest vectors that the build allows.
#pragma once

#include "llama.h"

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace lm {

struct candidate {
    llama_token id;
    float logit;
};

// The descending order of logits, equal ones in the order of their ids.
bool ranks_before(const candidate & a, const candidate & b);

class row {
  public:
    static constexpr float NEVER = -std::numeric_limits<float>::infinity();

    // What ranks before a place in the descending order of logits, tokens of equal ones in the order of their ids.
    struct cut {
        float logit = NEVER;
        llama_token end = 0; // tokens of exactly this logit rank before it if their ids are lower
        bool is_none() const { return logit == NEVER; }
    };

    // `logits` (n > 0 of them) is borrowed until the next call; they may change, but only to -inf.
    void read(const float * logits, int32_t n);

    const float * logits() const { return logits_; }
    int32_t size() const { return n_; }
    llama_token best() const { return best_; } // 0 if nothing is a number above -inf
    float max() const { return max_; }

    // The k best, in descending order; never one of -inf.
    std::vector<candidate> top(size_t k) const;

    // The sum of e^((logit - max) * scale) over all that rank before `c`. Blocks that cannot add a 1e-9th are skipped.
    double weigh(float scale, cut c);
    // Where the running sum of the last weigh() passes `left`, which is below what that returned.
    llama_token pick(double left) const;

  private:
    static constexpr int32_t BLOCK = 256;

    float threshold(size_t k) const;
    void collect(float threshold, std::vector<candidate> & kept) const;
    int32_t n_blocks() const { return int32_t(maxima_.size()); }
    int32_t block_end(int32_t b) const { return b + 1 < n_blocks() ? (b + 1) * BLOCK : n_; }

    const float * logits_ = nullptr;
    int32_t n_ = 0;
    llama_token best_ = 0;
    float max_ = NEVER;
    std::vector<float> maxima_; // of each block

    // the last weigh()
    std::vector<float> sums_;
    float scale_ = 1;
    cut cut_;
};

// e^x for x <= 0 with a relative error under 2e-7; 0 below -88 and for what is not a number. Vectorises.
inline float exp_nonpositive(float x) {
    constexpr float ROUND = 12582912.0f; // 1.5 * 2^23: adding it leaves a rounded integer
    const float clamped = x > -88.0f ? x : -88.0f;
    const float whole = (clamped * 1.44269504f + ROUND) - ROUND;
    const float r = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (int32_t(whole) + 127) << 23; // of 2^whole; at -88 it is 0
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

}  // namespace lm
