// JSON schemas compiled to what a matcher walks. A schema becomes, for each place where a value may stand, a list of
// alternatives per type of value; each alternative is a plain conjunction, of which is known whether anything satisfies it.
//
// Draft 2020-12, and what drafts 4 to 7 and 2019-09 spell otherwise. What is accepted is valid, always. A valid text is accepted
// in its canonical form:
//   - members in the order in which `properties` lists them (a schema's own ahead of those of what it refers to or combines),
//     then all others in any order; no name twice
//   - white space after `{ [ , :` and before `} ]` only: one blank, or a line break and an indentation; none at the ends
//   - plain numbers: no exponent where the value is bounded in any way, no `1.0` for an integer, no `-0`
//   - characters of ASCII as themselves, or as the short escape that JSON has for them
//   - values nested at most MAX_JSON_NESTING deep
// and where it is valid for something else than a denial (`not`, `oneOf`, `if`) of what all members satisfy whose names are not listed
// (`additionalProperties`, `patternProperties`, `propertyNames`): that some one of them is otherwise is no conjunction of statements
// on each, and such texts are refused. All that random walks found refused was that.
#pragma once

#include "automaton.h"
#include "number_set.h"

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace lm {

// Why a schema is refused: it is none, or would cost too much.
struct schema_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

constexpr uint32_t NEVER_MET = UINT32_MAX; // the nesting of what nothing satisfies
constexpr uint32_t MAX_JSON_NESTING = 120;
constexpr size_t MAX_CONTAINS = 4; // `contains` that hold for one array
constexpr size_t MAX_LATER = 32;   // names of an object that are required alone and may come in any order

struct schema {
    struct string_node {
        automaton_ptr words;
        uint32_t least;
        uint32_t most;
    };

    // How one item of an array may be filled: with a value that also satisfies some `contains`, or with one that is not counted.
    struct item_choice {
        uint32_t value;
        int32_t contains; // the index of what it counts for, -1: for none
    };
    struct contains_node {
        uint32_t from; // items ahead of that do not count
        uint32_t least;
        uint32_t most;
    };
    struct array_node {
        std::vector<std::vector<item_choice>> places; // the last is for all that follow
        std::vector<contains_node> contains;
        uint32_t least;
        uint32_t most;
        bool unique;
        uint32_t nesting;
    };

    struct property {
        std::string name;
        uint32_t value;
        bool required;
    };
    struct name_tree_node {
        uint32_t code_point;
        uint32_t child;   // 0: none
        uint32_t sibling; // 0: none
        int32_t property; // the name ends here: its index, else -1
        std::vector<uint32_t> below; // indexes of the properties in this subtree, ascending
        uint32_t n_also_others = 0;  // of them, those that `others` holds too, where that is finite
    };
    struct object_node {
        std::vector<property> listed;     // those in order, then those that are required alone: they come in any order
        uint32_t n_ordered;
        uint32_t required_later = 0;      // bits of the latter that are required: from the first of them on
        std::vector<uint32_t> n_required; // of those in order, from each index on, one past the last too
        std::vector<uint32_t> n_possible; // how many of them have a value
        std::vector<name_tree_node> names;
        automaton_ptr others; // names that are not listed; null: none. A state's mark is the value
        uint32_t n_others;    // at most so many of them, INFINITE
        uint32_t others_nesting = 0; // of the deepest of their flattest values
        uint32_t least;
        uint32_t most;
        uint32_t nesting;
    };

    struct value_node {
        bool null = false;
        bool truth = false;
        bool falsehood = false;
        std::vector<uint32_t> strings;
        std::vector<uint32_t> numbers;
        std::vector<uint32_t> arrays;
        std::vector<uint32_t> objects;
        uint32_t nesting = NEVER_MET; // of the flattest value
        uint32_t count = 0;           // at least so many different values
    };

    std::vector<string_node> strings;
    std::vector<number_set> numbers;
    std::vector<array_node> arrays;
    std::vector<object_node> objects;
    std::vector<value_node> values; // the first is the root
    bool has_unique = false;        // texts of items must be compared
    bool raw = false;               // the root is a string, and that stands there without quotes and escapes

    // Keywords that are not enforced, in words; empty for most schemas.
    std::vector<std::string> unenforced;

    size_t n_bytes() const;
};
using schema_ptr = std::shared_ptr<const schema>;

// Kinds of JSON values.
enum json_kind : uint8_t { KIND_NULL = 1, KIND_BOOLEAN = 2, KIND_NUMBER = 4, KIND_STRING = 8, KIND_ARRAY = 16, KIND_OBJECT = 32 };
constexpr uint8_t ALL_KINDS = 63;

// One of the values of a schema, or what of it is of some kinds.
struct schema_part {
    schema_ptr schema;
    uint32_t value = 0;
    uint8_t kinds = ALL_KINDS;
};

// Throws schema_error. `text` is JSON. Costs are bounded, whatever the schema: some 50 ms.
schema_ptr compile_schema(const std::string & text);

// Of what a tool is called with: objects alone, whatever else the schema says. What cannot be compiled in it is left out, which
// `unenforced` tells, rather than refused. Throws schema_error where that leaves too much to compile, or nothing that satisfies it.
schema_ptr compile_arguments(const std::string & text);

}  // namespace lm
