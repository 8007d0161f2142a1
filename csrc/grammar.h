// Grammars: GBNF compiled to a table that a matcher walks, with JSON schemas as elements of it, and regular expressions and
// choices as rules of it. GBNF is read by csrc/gbnf.h alone and schemas by csrc/schema.h; both are followed by csrc/matcher.h.
#pragma once

#include "schema.h"
#include "text.h"

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lm {

enum class grammar_kind : uint8_t {
    gbnf,
    schema,
    regex,  // the whole text matches it
    choice, // a list of texts, as JSON: one of them
};

struct grammar_spec {
    grammar_kind kind;
    std::string text;
    bool strict = false; // a schema that cannot be enforced to the letter is refused
    bool is_schema() const { return kind == grammar_kind::schema; }
};

// A context-free grammar. Immutable, shared by the requests that use it.
struct grammar {
    enum class kind : uint8_t { end, characters, call, token, other_token, schema };

    struct element {
        kind what;
        uint32_t value; // the index of a set of characters, of a rule or of a schema, or a token id
    };
    struct range {
        uint32_t first;
        uint32_t last;
    };

    std::vector<element> elements;      // every alternative's, each closed by an `end`
    std::vector<uint32_t> alternatives; // where they begin among the elements, rule by rule
    std::vector<uint32_t> rules;        // where each rule begins among the alternatives, and one past the last
    std::vector<range> ranges;          // every set's ranges of code points, ascending and disjoint
    std::vector<uint32_t> sets;         // where each set begins among the ranges, and one past the last
    std::vector<schema_part> schemas;
    uint32_t start = 0;                 // the element that calls the root

    // Whether position `at` is the last of its alternative.
    bool is_last(uint32_t at) const { return elements[at + 1].what == kind::end; }
    bool contains(uint32_t set, uint32_t code_point) const;
    size_t n_bytes() const;
    void shrink(); // to what it holds
};
using grammar_ptr = std::shared_ptr<const grammar>;

// Brackets outside of strings: what reads and frees JSON trees recurses. Throws invalid_request(param).
void check_nesting(const std::string & json, const char * param, int limit = 256);

// What stands in a grammar where its GBNF has a mark: JSON of a schema, or the words of an automaton.
struct grammar_leaf {
    grammar_leaf(schema_ptr s, uint32_t value = 0, uint8_t kinds = ALL_KINDS) : json{std::move(s), value, kinds} {}
    grammar_leaf(automaton_ptr w) : words(std::move(w)) {}

    schema_part json;
    automaton_ptr words;
};

// Throws invalid_request(param) if the text does not parse, is left-recursive, grows too large or never ends. Can take a second:
// never on the decode thread. Where leaf_mark(i) in quotation marks is a literal of the text, leaves[i] is matched.
grammar_ptr compile_grammar(const vocabulary & vocab, const std::string & gbnf, const std::string & param = "grammar",
                            const std::vector<grammar_leaf> & leaves = {});

// Likewise of what a client asks for.
grammar_ptr compile_grammar(const vocabulary & vocab, const grammar_spec & spec);

// What stands for a leaf in a GBNF that is made here, between quotation marks: a character that nobody means.
std::string leaf_mark(size_t i);
constexpr uint32_t FIRST_LEAF_MARK = 0x100000;
constexpr size_t MAX_LEAVES = 0xFFFE;

// Throws invalid_request("response_format") for what is no schema, or one that nothing satisfies or that costs too much.
// `strict`: likewise for one that says what cannot be enforced.
schema_ptr read_schema(const std::string & text, bool strict = false);
// A leaf and nothing else.
grammar_ptr leaf_grammar(const vocabulary & vocab, const grammar_leaf & leaf, const std::string & param);
// Both throw invalid_request("grammar") for what cannot be read, would cost too much, or leaves no text at all.
automaton_ptr read_regex(const std::string & expression);
automaton_ptr read_choice(const std::string & list);

// What the one or the other allows.
grammar_ptr either(const grammar & a, const grammar & b);
// `around` with `leaf`, which has no schema, in the place of its schema.
grammar_ptr with_leaf(const grammar & around, const grammar & leaf);

// Compiled grammars by their text, the least recently used forgotten first. For one thread.
class grammar_cache {
  public:
    explicit grammar_cache(const vocabulary & vocab) : vocab_(vocab) {}

    grammar_ptr get(const grammar_spec & spec);
    size_t n_bytes() const { return n_bytes_; }

  private:
    struct entry {
        std::string key;
        grammar_ptr compiled;
        size_t n_bytes;
    };

    const vocabulary & vocab_; // borrowed, outlives the cache
    std::list<entry> entries_; // the most recently used first
    std::unordered_map<std::string_view, std::list<entry>::iterator> by_key_; // views of the entries' own keys
    size_t n_bytes_ = 0;
};

}  // namespace lm
