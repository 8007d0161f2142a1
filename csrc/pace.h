// How many prompt tokens a step may take so that it lasts about as long as wanted: learned from the steps themselves,
// because the cost of a token depends on the model, the machine, the batch and what is in the cache.
#pragma once

#include <cstddef>

namespace lm {

class prefill_pace {
  public:
    explicit prefill_pace(double target_ms) : target_ms_(target_ms) {}

    size_t tokens() const { return size_t(tokens_); }
    // A step with `n` prompt tokens took `step_ms`.
    void learn(size_t n, double step_ms);

  private:
    static constexpr double FIRST = 128;
    static constexpr double LEAST = 16;
    static constexpr double MOST = 1 << 14;

    double target_ms_;
    double tokens_ = FIRST;
};

}  // namespace lm
