// The sequence ids of the unified cache and what they hold. The cells of a finished request stay, for later prompts.
//
// A prompt takes the longest prefix that any idle or running sequence has, by sharing its cells. A sliding window can be cut
// where all of it that the next token sees is still there. Elsewhere, and where there are recurrent states, a sequence is
// taken over at a mark, where a copy of its state was made: at the end of what a later turn will repeat, ahead of the first
// user's message, where two prompts were seen to part, and in passing wherever a copy costs next to nothing.
// Idle cells make every prefill slower, so only so many stay: the least recently used sequences move to host memory, and
// are forgotten when that is full.
#pragma once

#include "model.h"
#include "sequence.h"
#include "state.h"

#include <list>
#include <optional>
#include <vector>

namespace lm {

// A beginning of a prompt that is text, and what else its cells depend on.
struct text_prompt {
    std::string key;
    std::vector<llama_token> tokens;
};
using text_prompt_ptr = std::shared_ptr<const text_prompt>;

struct cache_limits {
    size_t cells;      // that running sequences may take together
    size_t idle_cells; // beyond this, idle sequences leave for host memory
    size_t host_bytes; // for them and for the marks
};

class prefix_cache {
  public:
    // `window`: what cannot be cut are layers that see so many of the last tokens; 0: there are states. `moves`: pieces of
    // sequences will be copied out and put back, for which the last of the ids is left free.
    prefix_cache(llama_context * ctx, sharing kind, int32_t window, int32_t n_sequences, const cache_limits & limits, bool moves);

    // Whether the cells of `running` leave room for `s` to be computed.
    bool has_room(const sequence & s, const std::vector<sequence *> & running) const;

    // Gives `s` a sequence id and the longest prefix there is (never a token whose row is wanted, as is the last one's), from idle
    // sequences or `running` ones. Evicts if no id is free. Sets s.seq, s.n_cached and s.marks; false if no id can be had.
    bool assign(sequence & s, const std::vector<sequence *> & running);

    // How many of the tokens that `s` still has to compute lie before the next place where a mark is wanted.
    size_t until_mark(const sequence & s) const;
    // `s` has computed up to s.n_cached, the last part in `step_ms`: makes a mark if one is wanted there, or costs little.
    void reached(sequence & s, double step_ms);
    // `s`, which is computing, will part from another prompt after `position` tokens.
    void want_mark(sequence & s, size_t position) const;

    // Takes the cells of a sequence that ended, to be reused until they are evicted.
    void keep(sequence & s);
    // Takes the cells of a sequence that will come back, and copies them to host memory so that others can have them.
    void set_aside(sequence & s);
    // Keeps the cells of the first `n` tokens only, or none where the memory cannot be cut there.
    void cut(sequence & s, size_t n);
    // Frees the cells of a sequence at once.
    void drop(sequence & s);
    // Moves the least recently used idle sequence out of the cells; false if there is none.
    bool evict() { return evict(false) || evict(true); }

    size_t idle_tokens() const; // in cells, what sequences share counted once

    // How many tokens `s` would have if it were assigned now.
    size_t reusable(const sequence & s, const std::vector<sequence *> & running) { return longest_prefix(s, running).shared; }
    // Where any prefix can be shared: copies what the tokens from `begin` to `end` of such a prompt have in the cells. False if
    // they are not there, or no memory is.
    bool copy_out(const text_prompt & prompt, size_t begin, size_t end, const std::vector<sequence *> & running,
                  std::vector<uint8_t> & state);
    // Idle sequences that begin so stay in the cells until it is let go, beyond the limit of what may be idle; they leave when
    // others need the cells, after all that nothing holds.
    void hold(text_prompt_ptr prompt) { held_.push_back(std::move(prompt)); }
    void let_go(const text_prompt_ptr & prompt);
    // All of `s`, as it is now; where its memory cannot be cut.
    bool copy_out(const sequence & s, std::vector<uint8_t> & state) const { return copy_state(ctx_, s.seq, state); }
    size_t bytes_of(const sequence & s) const { return saved_state::size_of(ctx_, s.seq, saved_state::part::all); }
    // A prompt comes from elsewhere, piece by piece, and is idle when the last has come. It begins with what of it lies in the
    // cells, in pieces of `size` tokens; returns how much that is, or nothing where no id can be had.
    std::optional<size_t> begin_arrival(const std::string & key, std::vector<llama_token> tokens, size_t size,
                                        const std::vector<sequence *> & running);
    // The next tokens of it up to `end`. False if there is no room, or the state is not theirs; then no more can be added.
    bool add_to_arrival(size_t end, const std::vector<uint8_t> & state);
    // Returns how many tokens have come together.
    size_t end_arrival();
    // Cells are short: what has come is dropped, and no more can be added. False if that frees none.
    bool abandon_arrival();

  private:
    struct entry {
        std::string key;
        std::vector<llama_token> tokens;
        media_spans spans;
        std::vector<mark> marks;
        llama_seq_id seq = -1; // -1: `saved` holds it
        saved_state_ptr saved;
    };
    using entries = std::list<entry>;
    struct source {
        size_t shared = 0;     // tokens that can be taken over
        size_t common = 0;     // tokens that the longest common prefix with any sequence has
        llama_seq_id seq = -1; // -1: in host memory
        size_t held_from = 0;  // the first position that layers with a sliding window still hold
        const std::vector<mark> * marks = nullptr;
        entries::iterator idle;
        bool is_idle = false;
        bool whole = false; // an idle sequence that the prompt continues to the letter
    };

    struct occupant;

    static size_t distinct_cells(const std::vector<occupant> & all);
    size_t held_from(llama_seq_id seq, size_t n) const;
    source longest_prefix(const sequence & s, const std::vector<sequence *> & running);
    void consider(source & best, const source & other, size_t common, size_t position) const;
    void go_on_in(entries::iterator idle, sequence & s);
    size_t take_over(const source & from, sequence & s);
    bool have_own_window(sequence & s, size_t n);
    bool remove_from(const sequence & s, size_t n);
    bool copy_prefix(llama_seq_id from, const source & what, sequence & s);
    bool bring_back(const source & from, sequence & s);
    bool restore(const saved_state & saved, llama_seq_id into);
    bool holds(const sequence & s, size_t n) const;
    void forget_part(sequence & s);

    llama_seq_id seq_with(const std::string & key, const std::vector<llama_token> & tokens, size_t n,
                          const std::vector<sequence *> & running) const;
    bool make_room_for(llama_seq_id seq, const std::vector<uint8_t> & state);

    bool is_held(const entry & e) const;
    bool evict(bool held);
    llama_seq_id take_free_id();
    void free_id(llama_seq_id seq);
    void trim();
    saved_state_ptr save(llama_seq_id seq, saved_state::part what);
    void want_marks(sequence & s, size_t common) const;
    bool forget_mark(bool in_passing);
    void add_mark(sequence & s, bool wanted);

    llama_context * ctx_; // borrowed
    llama_memory_t memory_;
    sharing kind_;
    size_t window_;
    cache_limits limits_;
    double mark_ms_ = 0; // what the last mark took
    llama_seq_id moving_ = -1; // for pieces; -1: there are none
    std::optional<entry> arrival_; // its tokens are those that have come
    std::vector<llama_token> arriving_; // and those that will
    std::vector<text_prompt_ptr> held_; // being copied out
    std::vector<llama_seq_id> free_;
    entries idle_; // most recently used first
    const entry * spared_ = nullptr; // what is made room for: must not leave for it
    std::shared_ptr<size_t> host_bytes_ = std::make_shared<size_t>(0);
};

}  // namespace lm
