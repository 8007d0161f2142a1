// Who guesses in a step, and how much: n-grams of a sequence's own text or a draft model, as long as it pays.
// Whether it does is measured: what steps of each width take, what the draft model takes, how often guesses are right.
// So guessing ends by itself where the sequences that run already fill the hardware.
#pragma once

#include "draft_model.h"
#include "model.h"
#include "sequence.h"

#include <array>
#include <atomic>
#include <memory>
#include <vector>

namespace lm {

// How long a step takes by the number of tokens in it: measured for the widths there were, between them interpolated.
class step_costs {
  public:
    void learn(size_t width, double ms);
    // 0: nothing is known. Beyond what was measured no more than there: what is not known is worth trying.
    double ms(size_t width) const;
    // Whether that very width was measured not long ago.
    bool sure(size_t width) const;

  private:
    static constexpr size_t WIDEST = 256;
    struct measure {
        double ms = 0;
        uint64_t at = 0; // 0: never
    };
    bool remembered(const measure & m) const;

    std::array<measure, WIDEST + 1> measured_;
    uint64_t now_ = 0; // measures so far
};

class drafter {
  public:
    // `target` is borrowed. Where `stopping` is set, a draft model gives up.
    drafter(model & target, std::atomic<bool> & stopping) : target_(target), stopping_(stopping) {}

    void attach(std::unique_ptr<draft_model> m);

    // Offers guesses to those of `decoding` that ask for them, `room` tokens at most in all. Never throws.
    void propose(const std::vector<sequence *> & decoding, size_t room);

    // A step with `width` tokens, none of them of a prompt, took `ms`.
    void learn(size_t width, double ms) { costs_.learn(width, ms); }

  private:
    struct candidate_draft {
        sequence * s; // borrowed
        size_t most;
        size_t granted;
        std::vector<llama_token> guesses; // of n-grams, known beforehand
        bool unsure;
    };

    std::vector<candidate_draft> candidates(const std::vector<sequence *> & decoding, size_t room) const;
    size_t most_guesses(const sequence & s, size_t room) const;
    void grant(std::vector<candidate_draft> & drafts, size_t n_decoding, size_t room) const;
    void ask_model(std::vector<candidate_draft> & drafts, const std::vector<sequence *> & decoding);

    model & target_; // borrowed
    std::atomic<bool> & stopping_;
    std::unique_ptr<draft_model> draft_model_; // null: none is attached
    step_costs costs_;
};

}  // namespace lm
