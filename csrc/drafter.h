// Who guesses in a step, and how much: what a schema leaves no choice in, n-grams of a sequence's own text, or a draft model, as long
// as it pays.
// Whether it does is measured: what steps of each width take, what the draft model takes, how often guesses are right. Before
// that it is expected: of wider steps by what prompts take per token, of a draft model by its size, of guesses by how those of
// earlier requests fared. So guessing ends by itself, or never begins, where the sequences that run already fill the hardware.
#pragma once

#include "costs.h"
#include "draft_model.h"
#include "model.h"
#include "sequence.h"

#include <atomic>
#include <memory>
#include <vector>

namespace lm {

class drafter {
  public:
    // `target` is borrowed. Where `stopping` is set, a draft model gives up.
    drafter(model & target, std::atomic<bool> & stopping);

    void attach(std::unique_ptr<draft_model> m);

    // Offers guesses to those of `decoding` that ask for them, `room` tokens at most in all. Never throws.
    void propose(const std::vector<sequence *> & decoding, size_t room);

    // A step with `width` tokens took `ms`; `with_prompt`: some of them were of a prompt.
    void learn(size_t width, double ms, bool with_prompt);
    // The first and the last that is heard of a sequence: what is known of its guesses' chances, and what it showed of them.
    void welcome(sequence & s);
    void bid_farewell(const sequence & s);

  private:
    struct candidate_draft {
        sequence * s; // borrowed
        size_t most;
        size_t granted;
        std::vector<llama_token> guesses; // of n-grams, known beforehand
        bool unsure;
        double entry_ms; // per token of the answer: what a draft model needs to know the text so far
    };

    double draft_ms(size_t width) const;
    double entry_ms(const sequence & s) const;
    std::vector<candidate_draft> candidates(const std::vector<sequence *> & decoding, size_t room) const;
    size_t most_guesses(const sequence & s, size_t room) const;
    void grant(std::vector<candidate_draft> & drafts, size_t n_decoding, size_t room) const;
    void ask_model(std::vector<candidate_draft> & drafts, const std::vector<sequence *> & decoding);

    model & target_; // borrowed
    std::atomic<bool> & stopping_;
    std::unique_ptr<draft_model> draft_model_; // null: none is attached
    double draft_share_ = 0; // of the target's size, the draft model's
    double row_factor_ = 1;  // what a token with a row of logits takes, in tokens of a prompt
    step_costs costs_;
    // How likely guesses are right, of recent requests
    double ngram_chance_ = draft::NGRAM_PRIOR;
    double model_chance_ = draft::MODEL_PRIOR;
};

}  // namespace lm
