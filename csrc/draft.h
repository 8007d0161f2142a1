// Speculative decoding as one sequence sees it: what was asked, the guesses that go into its next step, and how the
// guesses before have fared. A guess never changes the answer: it only spares a step where it was right.
#pragma once

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace lm {

// In one step, of all sequences together: bounds the rows of logits that a context keeps.
constexpr int32_t MAX_STEP_GUESSES = 32;

enum class draft_kind { none, model, ngram };

struct draft_params {
    draft_kind kind = draft_kind::none;
    int32_t max = 16;
    int32_t min = 0;      // so many even where it does not seem to pay, and never fewer
    float min_p = 0.75f;  // a draft model less sure than this stops guessing
};

// Where the last tokens of a growing text stood before. Takes in a token in constant time, memory is 8 to 12 bytes each.
class ngram_index {
  public:
    // Takes in what `tokens` has grown by since the last call; a text that has shrunk is taken for another one.
    void update(const std::vector<llama_token> & tokens);

    // At most `n` tokens: what followed the longest of the latest passages that end as `tokens` does, going round if
    // that passage reaches the end itself. Empty if the last tokens are new. `tokens` must be what was taken in last.
    std::vector<llama_token> continuation(const std::vector<llama_token> & tokens, size_t n) const;

  private:
    static constexpr size_t GRAM = 3;          // fewer tokens in common say little
    static constexpr int MAX_PASSAGES = 16;    // looked at in one search
    static constexpr size_t LONG_MATCH = 64;   // as good as any longer one

    uint32_t bucket(const std::vector<llama_token> & tokens, size_t end) const;
    void insert(const std::vector<llama_token> & tokens, size_t end);
    void grow(const std::vector<llama_token> & tokens);

    // Chains of positions whose preceding GRAM tokens fall into one bucket, the latest first; -1 ends a chain.
    std::vector<int32_t> heads_; // by bucket; a power of two of them
    std::vector<int32_t> earlier_; // by position
};

// How likely a guess is right, by how the last few dozen have fared.
class acceptance {
  public:
    // `expected` of any text, `known` of texts like this one.
    explicit acceptance(double expected) : acceptance(expected, expected) {}
    acceptance(double expected, double known) : expected_(expected), prior_(known) {}

    double rate() const { return (right_ + prior_ * PRIOR_WEIGHT) / (met_ + PRIOR_WEIGHT); }
    void meet(bool right) {
        right_ = right_ * KEPT_PER_GUESS + (right ? 1.0 : 0.0);
        met_ = met_ * KEPT_PER_GUESS + 1.0;
    }
    // A token came without a guess: what is known ages, so that guessing is tried again in another passage.
    void age() {
        right_ *= KEPT_PER_TOKEN;
        met_ *= KEPT_PER_TOKEN;
        prior_ = expected_ + KEPT_PER_TOKEN * (prior_ - expected_);
    }
    // Whether the rate says more about the text than about what was expected.
    bool is_told() const { return met_ > PRIOR_WEIGHT; }

  private:
    static constexpr double PRIOR_WEIGHT = 2.0;
    static constexpr double KEPT_PER_GUESS = 0.95;
    static constexpr double KEPT_PER_TOKEN = 0.995;

    double expected_;
    double prior_;
    double right_ = 0;
    double met_ = 0;
};

struct draft {
    // N-grams show what they are worth before anything is spent on them; a draft model must be tried to be known.
    static constexpr double NGRAM_PRIOR = 0.7;
    static constexpr double MODEL_PRIOR = 0.9;

    draft() = default;
    explicit draft(const draft_params & params)
        : asked(params), chance(params.kind == draft_kind::model ? MODEL_PRIOR : NGRAM_PRIOR) {}

    draft_params asked;
    std::vector<llama_token> guesses; // of the step that is being made
    ngram_index index;
    acceptance chance{NGRAM_PRIOR};

    // stats: total is the sum of the others once no guess is open
    size_t total = 0;
    size_t accepted = 0;
    size_t rejected = 0; // the wrong ones, and those that came behind a wrong one
    size_t ignored = 0;  // never held against the model's own choice

    // Guesses for the next step; those of the step before are settled. `unsure`: the guesser had no guess for the
    // position behind them.
    void offer(std::vector<llama_token> next, bool unsure);
    // A guess that is not verified, only compared with what comes: it may be worth it next time.
    void expect(llama_token id) { expected_ = id; }
    // The model chose `id` where the first open guess stood, or behind the last.
    void meet(llama_token id);
    // Whether the last choice was the guess, so that the row behind it counts.
    bool holds() const { return holds_; }
    // No open guess will be met any more.
    void settle();

  private:
    size_t n_open_ = 0; // guesses that have not met a choice, the last of `guesses`
    std::optional<llama_token> expected_;
    bool holds_ = false;
    bool unsure_ = false;
};

}  // namespace lm
