// How many prompt tokens a step may take so that it lasts about as long as wanted: learned from the steps themselves,
// because the cost of a token depends on the model, the machine, the batch and what is in the cache.
#pragma once

#include <cstddef>

namespace lm {

class prefill_pace {
  public:
    explicit prefill_pace(double target_ms) : target_ms_(target_ms) {}

    // Prompt tokens for the next step.
    size_t grant() {
        granted_ = size_t(tokens_);
        return granted_;
    }
    // The step with `n` of the prompt tokens granted last took `step_ms`.
    void learn(size_t n, double step_ms);

  private:
    static constexpr double FIRST = 128;
    static constexpr double LEAST = 16; // fewer at a time would take several times as long each
    static constexpr double MOST = 1 << 14;

    double target_ms_;
    double tokens_ = FIRST;
    size_t granted_ = 0;
};

}  // namespace lm
