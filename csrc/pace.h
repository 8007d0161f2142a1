// How many prompt tokens a step may take so that it lasts about as long as wanted: learned from the steps themselves,
// because the cost of a token depends on the model, the machine, the batch and what is in the cache.
#pragma once

#include <cstddef>

namespace lm {

class prefill_pace {
  public:
    explicit prefill_pace(double target_ms) : target_ms_(target_ms) {}

    // Prompt tokens for a step that has `n_others` tokens already.
    size_t grant(size_t n_others);
    // The step with `n` of the prompt tokens granted last took `step_ms`.
    void learn(size_t n, double step_ms);

  private:
    static constexpr double FIRST = 128;
    static constexpr double LEAST = 16;
    static constexpr double MOST = 1 << 14;

    // llama.cpp's attention takes queries in tiles of this many, and pays for a tile that is not full as for a full one.
    // Without a full tile each query costs several times as much over a long cache, so that a smaller step is not a
    // shorter one: a tile is worth this much patience.
    static constexpr size_t TILE = 64;
    static constexpr double MOST_TILE_MS = 450;

    double target_ms_;
    double tokens_ = FIRST;
    size_t granted_ = 0;
    size_t n_others_ = 0;
    int n_slow_tiles_ = 0; // in a row
};

}  // namespace lm
