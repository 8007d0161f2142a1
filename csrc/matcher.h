// Where a text stands in a grammar, and which tokens may come next. The grammar runs on bytes, as a deterministic automaton
// that is built while it is walked: a token that was seen in the same place before costs one table look-up per byte. Beside it
// run the schemas that the text may be inside of (csrc/schema_walk.h): where one may end, the grammar goes on behind it.
//
// A place is a set of items (an element to match, and where to return to); returns form a graph that shares equal tails, so
// ambiguous grammars, which have exponentially many stacks, stay polynomial here. What is left is bounded by a budget.
//
// Semantics are llama.cpp's, except that bytes which cannot become valid UTF-8 are never allowed.
#pragma once

#include "grammar.h"
#include "schema_walk.h"
#include "text.h"

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace lm {

class matcher {
  public:
    // At the beginning of a text. `vocab` is borrowed. All members but n_states() throw error("invalid_request") once the
    // grammar has cost too much.
    matcher(grammar_ptr g, const vocabulary & vocab);
    matcher(const matcher &) = delete; // its tables' hash functions point to it
    matcher & operator=(const matcher &) = delete;

    bool allows(llama_token id);
    // A bit per token. Borrowed until the next call of a member.
    const std::vector<uint64_t> & allowed();
    // Both move past what comes next; false (and no move) if the grammar does not allow it.
    bool accept(llama_token id);
    bool accept(std::string_view text);

    // What must follow, byte by byte; as far as that is plain to see, and `longest` bytes at most.
    std::string forced(size_t longest);
    // That as tokens, the longest at each place: what a model is likely to choose.
    std::vector<llama_token> forced_tokens(size_t most);
    // The only token that is allowed, where that is plain to see.
    std::optional<llama_token> only();

    // Whether schemas rule all that may come next: allowed() costs no more than some hundred tokens one by one then.
    bool is_within_schema() const;

    size_t n_states() const { return states_.size(); }

  private:
    using state_id = uint16_t;
    using node_id = uint32_t;

    // Match the element at `at`, then continue after it; at its alternative's end, return to `node`.
    struct item {
        uint32_t at;
        node_id node;
        bool operator==(const item & o) const { return at == o.at && node == o.node; }
        bool operator<(const item & o) const { return at < o.at || (at == o.at && node < o.node); }
    };
    // A return: to the element `at`, with any of the parents as the return of that. Node 0 is the end of the text.
    struct node {
        uint32_t at;
        uint32_t parents_begin;
        uint32_t parents_end;
    };
    // The bytes of a character that is not whole yet.
    struct partial {
        uint32_t value = 0;
        uint8_t n_left = 0;
        uint8_t length = 0;
        bool decided = false; // every item matches every character that the bytes can still become
        bool operator==(const partial & o) const {
            return value == o.value && n_left == o.n_left && length == o.length && decided == o.decided;
        }
    };
    struct state {
        uint32_t items_begin;
        uint32_t items_end;
        partial bytes;
        bool may_end;   // the text may end here
        bool has_schema; // some item is a schema
        bool has_token; // some item matches whole tokens
    };
    // A schema that the text is inside of.
    struct reading {
        item back; // the schema's element
        std::shared_ptr<schema_walk> walk;
        schema_walk::place at;
        schema_walk::mark made; // by the walk, up to here
    };
    struct position {
        state_id state = 0;
        std::vector<reading> readings; // the first n of them: the others are kept for their memory
        size_t n = 0;
    };
    // A node while its index is being closed: parents still arrive.
    struct open_node {
        uint32_t at;
        std::vector<node_id> parents; // as in items of a closure: open ones have OPEN set
        bool returned = false;
        node_id closed = 0; // 0: not interned yet
    };

    struct state_hash {
        const matcher * owner;
        size_t operator()(state_id id) const;
    };
    struct state_equal {
        const matcher * owner;
        bool operator()(state_id a, state_id b) const;
    };
    struct node_hash {
        const matcher * owner;
        size_t operator()(node_id id) const;
    };
    struct node_equal {
        const matcher * owner;
        bool operator()(node_id a, node_id b) const;
    };

    state_id step(state_id from, uint8_t byte);
    state_id compute_step(state_id from, uint8_t byte);
    state_id narrow(state_id from, partial bytes);
    state_id advance(state_id from, const uint32_t * code_point);
    state_id walk(state_id from, std::string_view bytes);
    void token_seeds(state_id from, llama_token id, std::vector<item> & seeds) const;
    bool matches_token(const item & i, llama_token id) const;
    bool move(state_id to);
    void find_allowed(std::vector<uint64_t> & bits);

    // with schemas
    bool has_schemas() const { return !grammar_->schemas.empty(); }
    bool advance(const position & from, uint8_t byte, position & to);
    void read_on(const reading & from, uint8_t byte, position & to, std::vector<item> & ended);
    bool walk(llama_token id, position & to);
    bool walk(std::string_view bytes, position & to);
    state_id join(state_id a, state_id b);
    state_id behind(item schema);
    void settle();
    const std::vector<uint64_t> & allowed_inside();
    bool find_in_strings();
    void find_behind_string(const reading & closed, const std::vector<uint64_t> & ahead);
    void test_inside(std::vector<llama_token> & ids);
    void find_inside();
    void set_inside(llama_token id) { inside_[size_t(id) / 64] |= uint64_t(1) << (id % 64); }

    // closing a set of items over calls and returns
    state_id close(const std::vector<item> & seeds);
    void visit(item i);
    void return_to(node_id n);
    void add_parent(node_id open, node_id parent);
    node_id open(uint32_t at);
    node_id closed(node_id n);
    state_id intern_state(std::vector<item> & items, partial bytes, bool may_end);
    node_id intern_node(uint32_t at, std::vector<node_id> & parents);

    void spend(size_t n);
    void start_token();
    void compact();
    void reset_tables();

    grammar_ptr grammar_;
    const vocabulary & vocab_;   // borrowed
    const token_tree & tokens_;  // borrowed from the vocabulary
    state_id current_ = 0;
    position here_; // with schemas: that in full
    std::vector<position> path_; // of the look-ahead
    std::vector<uint64_t> inside_; // the mask there
    std::unique_ptr<string_masks> string_masks_; // with schemas
    std::unordered_map<uint64_t, state_id> behind_; // of an element and its node
    size_t spent_ = 0; // of this token's budget

    std::vector<state> states_; // the first is dead
    std::vector<std::array<state_id, 256>> next_;
    std::vector<item> items_;
    std::vector<node> nodes_; // parents come before their children
    std::vector<node_id> parents_;
    std::unordered_set<state_id, state_hash, state_equal> known_states_;
    std::unordered_set<node_id, node_hash, node_equal> known_nodes_;
    std::unordered_map<state_id, std::vector<uint64_t>> masks_;
    size_t compact_at_ = 0; // nodes

    // the closure under way
    std::vector<item> pending_;
    std::unordered_set<uint64_t> visited_;
    std::vector<open_node> open_;
    std::unordered_map<uint32_t, node_id> open_at_; // by the element that they return to
    std::vector<item> found_;
    bool may_end_ = false;
};

using matcher_ptr = std::unique_ptr<matcher>;

}  // namespace lm
