// How the decode thread's time is dealt out among those who want it.
#pragma once

#include <cstddef>

namespace lm {

// How many prompt tokens a step may take so that it lasts about as long as wanted: learned from the steps themselves,
// because the cost of a token depends on the model, the machine, the batch and what is in the cache.
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

// Whose turn it is where steps of streams and other work alternate. The other work is lent its time, and the streams get theirs
// before it is lent any more: so it begins at once, and in pieces that are long enough for a change over not to count.
class lent_time {
  public:
    // The other work gets `share` of what the streams get. Of time that it is owed, because it overlapped with them, no more than
    // `most_owed_ms` is kept.
    lent_time(double share, double most_owed_ms) : share_(share), most_owed_ms_(most_owed_ms) {}

    // What is owed while there is no other work is forgotten; what was lent is not.
    void streams_took(double ms, bool is_there_other_work);
    void others_took(double ms) { balance_ms_ -= ms; }
    // There are no streams any more.
    void settle() { balance_ms_ = 0; }
    bool is_others_turn() const { return balance_ms_ >= 0; }

  private:
    const double share_;
    const double most_owed_ms_;
    double balance_ms_ = 0;
};

}  // namespace lm
