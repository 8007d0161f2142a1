// Grammars: GBNF compiled to a table that a matcher walks, with JSON schemas as elements of it. GBNF is read by csrc/gbnf.h
// alone and schemas by csrc/schema.h; both are followed by csrc/matcher.h. The schemas of tools still become GBNF by llama.cpp's
// compiler, whose costs are bounded before.
#pragma once

#include "schema.h"
#include "text.h"

#include <cstdint>
#include <list>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

class common_json;

namespace lm {

struct grammar_spec {
    bool is_schema;
    std::string text;
    bool strict = false; // a schema that cannot be enforced to the letter is refused
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
    std::vector<schema_ptr> schemas;
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

// What the compiling of schemas will cost, before llama.cpp's compiler sees them: it builds each spelling of a reference
// anew, a node once for each of its types, and merges under an allOf whatever the references there name, round in circles
// if they go round.
class schema_budget {
  public:
    explicit schema_budget(const char * param) : param_(param) {}

    // Throws invalid_request(param) once what was added is too much.
    void add(const common_json & schema);

  private:
    [[noreturn]] void refuse(const char * why) const;
    void charge(size_t n_nodes);
    void charge_optional(size_t n);
    void visit(const common_json & node, size_t n_path);
    void visit_children(const common_json & node, size_t n_path);
    size_t n_merged(const common_json & all_of);
    size_t n_components(const common_json * node);
    const common_json * resolve(const std::string & ref) const;

    const char * param_;
    const common_json * root_ = nullptr; // borrowed, the schema being added
    std::set<std::string> refs_;
    size_t n_nodes_ = 0;
    size_t n_names_ = 0;
    size_t n_pairs_ = 0;
};

// The GBNF of a grammar or schema. Throws invalid_request for what does not compile or would take too long to.
std::string to_gbnf(const grammar_spec & spec);

// Throws invalid_request(param) if the text does not parse, is left-recursive or grows too large. Can take a second:
// never on the decode thread. Where schema_mark(i) is a literal of the text, a value of schemas[i] is matched.
grammar_ptr compile_grammar(const vocabulary & vocab, const std::string & gbnf, const std::string & param = "grammar",
                            std::vector<schema_ptr> schemas = {});

// What stands for a schema in a GBNF that is made here: a text in quotation marks that nobody means. There are so many of them.
std::string schema_mark(size_t i);
constexpr uint32_t FIRST_SCHEMA_MARK = 0x10F000;
constexpr size_t MAX_SCHEMA_MARKS = 0xFFE;

// Throws invalid_request("response_format") for what is no schema, or one that nothing satisfies or that costs too much.
// `strict`: likewise for one that says what cannot be enforced.
schema_ptr read_schema(const std::string & text, bool strict = false);
// JSON of a schema and nothing else.
grammar_ptr schema_grammar(const vocabulary & vocab, schema_ptr s);

// What the one or the other allows.
grammar_ptr either(const grammar & a, const grammar & b);

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
