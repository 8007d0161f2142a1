// A small model that guesses what a large one with the same vocabulary will say: greedily, all sequences in one batch,
// and only as far as it is sure. It keeps up with the sequences by itself; the decode thread is the only one to use it.
#pragma once

#include "costs.h"
#include "model.h"
#include "pace.h"
#include "sequence.h"

#include <atomic>
#include <memory>
#include <vector>

namespace lm {

class draft_model {
  public:
    // Guesses wanted for `s`: at most `n` tokens. The rest is the answer; `unsure` tells why it is short of `n`.
    struct wish {
        sequence * s; // borrowed
        size_t n;
        std::vector<llama_token> guesses;
        bool unsure;
    };

    // `m` is loaded with load_spec::drafts. Throws invalid_request if it cannot draft for `target`.
    draft_model(std::unique_ptr<model> m, const model & target);

    // From now on computes with the threads of `target`, which must outlive it, and gives up where `stopping` is set.
    void work_for(model & target, std::atomic<bool> & stopping);

    // Longer sequences get no guesses.
    size_t longest() const { return size_t(model_->context_length()); }

    // Fills in what it guesses. `running` are all sequences that may come back with a wish. Of a sequence that it does
    // not know yet it computes a part per call, without a guess before the last. Throws if the model fails.
    void guess(std::vector<wish> & wishes, const std::vector<sequence *> & running);

    // How long its steps take, by the tokens in them.
    const step_costs & costs() const { return costs_; }
    // How many tokens of `s` it must read before it can guess.
    size_t missing(const sequence & s) const;
    uint64_t size() const { return llama_model_size(model_->get()); } // bytes of weights

  private:
    struct slot { // one per sequence id
        ticket_ptr user; // null: nobody's
        std::vector<llama_token> tokens; // that have cells
        size_t n_agreed = 0; // of them are known to be the user's
        uint64_t used_at = 0;
    };
    struct active {
        wish * w;
        llama_seq_id seq;
        int32_t output;
    };

    llama_seq_id slot_of(const sequence & s, const std::vector<sequence *> & running);
    void align(llama_seq_id seq, const sequence & s);
    std::vector<active> catch_up(std::vector<wish> & wishes, const std::vector<sequence *> & running);
    std::vector<active> extend(const std::vector<active> & guessing);
    bool knows(const std::vector<llama_token> & tokens, size_t from, size_t to) const;
    int32_t add(llama_seq_id seq, llama_token id, bool output);
    bool decode();
    bool make_room();
    void clear(llama_seq_id seq);

    std::unique_ptr<model> model_;
    const vocabulary & target_vocab_; // borrowed
    std::unique_ptr<llama_batch_ext, void (*)(llama_batch_ext *)> batch_;
    std::vector<slot> slots_;
    size_t n_batched_ = 0;
    uint64_t now_ = 0; // calls so far
    prefill_pace pace_;
    step_costs costs_;
};

}  // namespace lm
