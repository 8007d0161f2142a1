// How the tokens of a vocabulary go on within a string of JSON: as characters, escapes read. With an automaton, whole subtrees
// of tokens are told in a look; what stands behind the string's end is the same few texts again and again.
#pragma once

#include "automaton.h"
#include "text.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lm {

class string_tree {
  public:
    // Tokens that are not shown are none of a string's.
    explicit string_tree(const vocabulary & vocab);

    // In depth-first order, siblings by their characters; the first is the root, for no character at all.
    struct node {
        uint32_t next;       // the first node that does not descend from this one
        uint32_t code_point;
        uint32_t whole;      // the tokens that end here: from there on in `ids`, to where `parts` begin
        uint32_t parts;      // those that end within a further character, to where `tails` begin
        uint32_t tails;      // those that end the string, to where the next node's begin
        uint32_t groups;     // of the characters below, a bit each
        uint16_t depth;      // characters
    };
    enum class ending : uint8_t { whole, part, tail };

    const std::vector<node> & nodes() const { return nodes_; } // and one past the last
    const std::vector<llama_token> & ids() const { return ids_; }
    // What a token's last character may still become, or the index of what stands behind the string: in the order of `ids`.
    const std::vector<uint32_t> & ends() const { return ends_; }
    const std::vector<ending> & endings() const { return endings_; } // likewise

    // The root's first child for a later character, or one past the last node: it has thousands, most of them of scripts that an
    // expression says nothing about.
    uint32_t first_after(uint32_t code_point) const;

    // Characters that expressions treat alike, as ranges.
    struct group {
        uint32_t index;
        code_range range;
    };
    static const std::vector<group> & groups();

    const std::vector<std::vector<code_range>> & partials() const { return partials_; }
    // The texts behind strings, each a quote and more, as a prefix tree in depth-first order; and the tokens with each of them.
    struct tail_node {
        uint32_t next;  // the first node that does not descend from this one
        int32_t tail;   // that ends here, -1: none
        uint16_t depth; // bytes
        uint8_t byte;
    };
    const std::vector<tail_node> & tail_nodes() const { return tail_nodes_; }
    const std::vector<std::vector<llama_token>> & tail_ids() const { return tail_ids_; }

    // With the characters ahead of a quote or a part of one: all tokens, the longest first; those with a tail; those with a part.
    using lengths = std::vector<std::pair<uint32_t, llama_token>>;
    const lengths & by_length() const { return by_length_; }
    const lengths & closing() const { return closing_; }
    const lengths & cut() const { return cut_; }
    // A bit for each token that leaves a string open of which nothing is asked.
    const std::vector<uint64_t> & open() const { return open_; }
    uint32_t depth() const { return by_length_.empty() ? 0 : by_length_.front().first; }

  private:
    struct first {
        uint32_t code_point;
        uint32_t node;
    };

    void grow_tails(const std::map<std::string, uint32_t> & tails);
    void note_groups();

    std::vector<node> nodes_;
    std::vector<llama_token> ids_;
    std::vector<uint32_t> ends_;
    std::vector<ending> endings_;
    std::vector<first> firsts_; // the children of the root
    std::vector<std::vector<code_range>> partials_;
    std::vector<tail_node> tail_nodes_;
    std::vector<std::vector<llama_token>> tail_ids_;
    lengths by_length_;
    lengths closing_;
    lengths cut_;
    std::vector<uint64_t> open_;
};

}  // namespace lm
