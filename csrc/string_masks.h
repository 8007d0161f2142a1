// Masks of the tokens that may follow within a string that an automaton rules, kept for as long as they are asked for again.
#pragma once

#include "string_tree.h"

#include <cstdint>
#include <list>
#include <vector>

namespace lm {

using token_bits = std::vector<uint64_t>;

class string_masks {
  public:
    struct mask {
        token_bits body; // tokens that leave the string open
        // Those that end it, if what they have ahead of the quote ends a word, by the automaton's mark there.
        std::vector<std::pair<uint32_t, token_bits>> tails;
    };

    // `tree` is borrowed.
    string_masks(const string_tree & tree, size_t n_vocab);

    const string_tree & tree() const { return tree_; }
    // From a state on, to a word of `least` to `most` more characters. Borrowed until the next call; the automaton must outlive
    // this.
    const mask & get(const automaton & words, int32_t state, uint32_t least, uint32_t most);
    // Likewise, of the tokens that go on with each text behind a quote: a bit per token with such a tail.
    token_bits with_tails(const std::vector<bool> & tails) const;

  private:
    struct entry {
        const automaton * words; // borrowed, only compared
        int32_t state;
        mask known;
    };

    const mask & unbounded(const automaton & words, int32_t state);
    void find(const automaton & words, int32_t state, uint32_t least, uint32_t most, mask & out) const;

    const string_tree & tree_;
    const size_t n_words_;
    std::list<entry> entries_; // the most recently used first
    mask bounded_;
};

}  // namespace lm
