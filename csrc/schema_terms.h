// What a schema says, in disjunctive form: a list of conjunctions ("terms") of which a value must satisfy one. Everything that
// combines schemas is gone from them: references, allOf, anyOf, oneOf, not, if, dependencies. What a child must satisfy stays
// a goal, a set of schemas and negated schemas, and is resolved when its turn comes: schemas may be recursive.
//
// Where an exact form would be too large, or there is none, terms are left out: less is accepted then, never more.
#pragma once

#include "automaton.h"
#include "number_set.h"
#include "schema_document.h"

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <memory>
#include <string>
#include <vector>

namespace lm {

using goal_id = uint32_t;
constexpr goal_id ANYTHING = 0;
constexpr goal_id NOTHING = 1;

struct schema_term {
    enum type : uint8_t { null = 1, truth = 2, falsehood = 4, number = 8, string = 16, array = 32, object = 64, all = 127 };

    // The members that one schema object speaks of.
    struct shape {
        std::vector<std::pair<std::string, goal_id>> properties;
        std::vector<std::pair<automaton_ptr, goal_id>> patterns;
        goal_id rest = ANYTHING;
        bool has_rest = false;  // said, and be it that anything goes
        bool evaluates = false; // what it speaks of counts for unevaluatedProperties
    };
    struct containing {
        goal_id goal;
        uint32_t from;
        uint32_t least;
        uint32_t most;
    };

    uint8_t types = all;
    number_terms numbers;
    std::vector<automaton_ptr> words; // a string is in all of these
    uint32_t least_length = 0;
    uint32_t most_length = automaton::INFINITE;
    std::vector<goal_id> places; // the first items of an array
    goal_id items = ANYTHING;
    uint32_t n_evaluated = 0; // items, for unevaluatedItems
    uint32_t least_items = 0;
    uint32_t most_items = automaton::INFINITE;
    bool unique = false;
    std::vector<containing> contains;
    std::vector<std::shared_ptr<const shape>> shapes;
    std::vector<std::string> required;
    std::vector<goal_id> names;
    uint32_t least_members = 0;
    uint32_t most_members = automaton::INFINITE;
};

class schema_algebra {
  public:
    explicit schema_algebra(const schema_document & document);

    goal_id root() { return goal_of(document_.root(), false); }
    // The terms of a goal; nothing satisfies it if there are none. Borrowed until the next call.
    std::vector<schema_term> terms(goal_id goal);
    goal_id both(goal_id a, goal_id b);
    goal_id not_of(const json_value & schema) { return goal_of(schema, true); }
    // That which is no `goal`, for a goal of one schema; NOTHING for another.
    goal_id inverse(goal_id goal);

    const std::vector<std::string> & unenforced() const { return unenforced_; }
    // Whether texts are left out for which it was denied that all members are as something says of names that it does not list.
    bool denies_open_names() const { return denies_open_names_; }

  private:
    struct literal {
        const json_value * schema;
        bool negated;
        bool operator<(const literal & o) const { return schema < o.schema || (schema == o.schema && negated < o.negated); }
        bool operator==(const literal & o) const { return schema == o.schema && negated == o.negated; }
    };
    using terms_t = std::vector<schema_term>;

    goal_id goal_of(const json_value & schema, bool negated);
    goal_id intern(std::vector<literal> literals);

    const terms_t & form(const json_value & schema, bool negated);
    terms_t positive(const json_value & schema);
    terms_t negative(const json_value & schema);
    void add_plain(const json_value & schema, schema_term & t);
    void add_numbers(const json_value & schema, schema_term & t);
    void add_strings(const json_value & schema, schema_term & t);
    void add_items(const json_value & schema, schema_term & t);
    void add_members(const json_value & schema, schema_term & t);
    terms_t listed(const std::vector<const json_value *> & values);
    terms_t exactly_one(const json_value & list);
    terms_t any_of(const json_value & list, bool all_subsets);
    terms_t dependent(const json_value & schema);
    void add_unevaluated(const json_value & schema, terms_t & all);
    void negate_numbers(const json_value & schema, terms_t & out);
    void negate_strings(const json_value & schema, terms_t & out);
    void negate_items(const json_value & schema, terms_t & out);
    void negate_members(const json_value & schema, terms_t & out);
    void negate_values(const std::vector<const json_value *> & values, terms_t & out);
    const json_value * target(const json_value & schema);
    const json_value * as_schema(const json_value & value); // of the value and of nothing else

    terms_t product(const terms_t & a, const terms_t & b);
    bool merge(schema_term & into, const schema_term & other);
    bool is_hopeless(const schema_term & t);
    bool is_hopeless(goal_id goal);
    void append(terms_t & to, const terms_t & more);
    void spend(size_t n);

    automaton_ptr pattern(const std::string & expression);
    void leave_out(const std::string & what);
    uint32_t count(const json_value & schema, const char * keyword, uint32_t otherwise);
    std::vector<const json_value *> values_of(const json_value & schema, bool & any);

    const schema_document & document_; // borrowed
    std::vector<std::vector<literal>> goals_;
    std::map<std::vector<literal>, goal_id> known_goals_;
    std::map<std::pair<goal_id, goal_id>, goal_id> known_both_;
    std::map<literal, std::unique_ptr<terms_t>> forms_;
    std::map<std::string, automaton_ptr> patterns_;
    std::deque<json_value> made_; // schemas of values
    std::map<const json_value *, const json_value *> schema_of_;
    std::map<goal_id, bool> hopeless_;
    std::vector<std::string> unenforced_;
    bool denies_open_names_ = false;
    // Terms may say less than their schema does, where something of it is negated: then it is not known what is apart from it.
    size_t n_doubts_ = 0; // counts up with each use of such terms
    std::set<literal> doubtful_forms_;
    size_t spent_ = 0;
    int depth_ = 0;
};

}  // namespace lm
