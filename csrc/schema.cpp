#include "schema.h"

#include "json_value.h"
#include "schema_document.h"
#include "schema_mending.h"
#include "schema_terms.h"

#include <algorithm>
#include <deque>
#include <map>
#include <set>

namespace lm {

static constexpr uint32_t INFINITE = automaton::INFINITE;
static constexpr size_t MAX_TEXT = 1 << 20;
static constexpr size_t MAX_NODES = 200000;        // of all kinds
static constexpr size_t MAX_NAME_STATES = 4000;    // of the names of one object
static constexpr size_t MAX_NAMES = 20000;         // of one object
static constexpr size_t MAX_LISTED = 200000;       // names of all objects: each disjunct lists its own
static constexpr size_t MAX_PLACES = 5000;         // items that have a schema of their own
static constexpr int MAX_ROUNDS = 16;              // in which values turn out to be out of reach; two at most in schemas that people write
static constexpr size_t MAX_COMBINED = 3000000;    // cells of all automata that are made from others

size_t schema::n_bytes() const {
    size_t n = sizeof(*this);
    for (const string_node & s : strings) {
        n += sizeof(s) + s.words->n_bytes();
    }
    n += numbers.size() * sizeof(number_set);
    for (const array_node & a : arrays) {
        n += sizeof(a) + a.contains.size() * sizeof(contains_node);
        for (const auto & place : a.places) {
            n += sizeof(place) + place.size() * sizeof(item_choice);
        }
    }
    for (const object_node & o : objects) {
        n += sizeof(o) + o.n_required.size() * 8 + (o.others ? o.others->n_bytes() : 0);
        for (const property & p : o.listed) {
            n += sizeof(p) + p.name.capacity();
        }
        for (const name_tree_node & t : o.names) {
            n += sizeof(t) + t.below.size() * 4;
        }
    }
    for (const value_node & v : values) {
        n += sizeof(v) + 4 * (v.strings.size() + v.numbers.size() + v.arrays.size() + v.objects.size());
    }
    return n;
}

namespace {

// An object's names that are not listed, until it is known which values there are.
struct open_names {
    automaton::joint together;
    std::vector<uint32_t> value_of; // by the bits of the patterns that match; NEVER_MET: not a name
    std::vector<uint32_t> pattern_bits;
    uint32_t name_bits = 0; // all of these must match
    bool simple = false;    // any name, one value
    uint32_t value = 0;
    bool present = false;
    std::vector<uint32_t> values; // all that there may be
};

class compiler {
  public:
    explicit compiler(json_value root) : document_(std::move(root)), algebra_(document_), made_(std::make_shared<schema>()) {}

    std::shared_ptr<schema> compile(bool objects_only = false) {
        if (!document_.root().is_object() && !document_.root().is_boolean()) {
            throw schema_error("a schema is an object or a boolean");
        }
        value_of(algebra_.root());
        if (objects_only) {
            build_objects();
        }
        while (next_ < goals_.size()) {
            build(next_);
            next_++;
            if (made_->strings.size() + made_->numbers.size() + made_->arrays.size() + made_->objects.size() > MAX_NODES) {
                throw schema_error("the schema is too large");
            }
        }
        find_nesting();
        close_names();
        int n_rounds = 0;
        do {
            if (n_rounds++ == MAX_ROUNDS) {
                throw schema_error("what its uniqueItems leave depends on too much");
            }
            count_values();
            bound_arrays();
            find_nesting(); // again: what is counted may be out of reach
        } while (forget_unmet_names());
        if (made_->values[0].nesting >= MAX_JSON_NESTING) {
            throw schema_error(std::string("no value satisfies the schema") +
                               (algebra_.denies_open_names() ? ", but for what it denies of members that it does not list, which is not followed" : ""));
        }
        made_->unenforced = algebra_.unenforced();
        return made_;
    }

  private:
    uint32_t value_of(goal_id goal) {
        const auto [found, is_new] = values_.try_emplace(goal, uint32_t(goals_.size()));
        if (is_new) {
            goals_.push_back(goal);
            made_->values.emplace_back();
        }
        return found->second;
    }

    // Of the root. What refers to it gets a value of its own, which may be anything that the root allows.
    void build_objects() {
        values_.clear();
        build(0);
        schema::value_node objects;
        objects.objects = std::move(made_->values[0].objects);
        made_->values[0] = std::move(objects);
        next_ = 1;
    }

    void build(size_t at) {
        schema::value_node v;
        for (schema_term & t : algebra_.terms(goals_[at])) {
            v.null = v.null || (t.types & schema_term::null);
            v.truth = v.truth || (t.types & schema_term::truth);
            v.falsehood = v.falsehood || (t.types & schema_term::falsehood);
            if (t.types & schema_term::number) {
                add_number(t, v);
            }
            if (t.types & schema_term::string) {
                add_string(t, v);
            }
            if (t.types & schema_term::array) {
                add_array(t, v);
            }
            if (t.types & schema_term::object) {
                add_object(t, v);
            }
        }
        made_->values[at] = std::move(v);
    }

    void add_number(const schema_term & t, schema::value_node & v) {
        number_set set(t.numbers);
        if (set.is_empty()) {
            return;
        }
        if (t.numbers.is_free()) { // the two most frequent ones, shared by all
            const bool whole = !t.numbers.multiples.empty();
            uint32_t & known = whole ? any_integer_ : any_number_;
            if (known == 0) {
                made_->numbers.push_back(set);
                known = uint32_t(made_->numbers.size());
            }
            if (std::find(v.numbers.begin(), v.numbers.end(), known - 1) == v.numbers.end()) {
                v.numbers.push_back(known - 1);
            }
            return;
        }
        made_->numbers.push_back(std::move(set));
        v.numbers.push_back(uint32_t(made_->numbers.size() - 1));
    }

    automaton_ptr both(const automaton_ptr & a, const automaton_ptr & b) {
        if (a == b || b == automaton::anything()) {
            return a;
        }
        if (a == automaton::anything()) {
            return b;
        }
        automaton_ptr & known = combined_[{std::min(a, b), std::max(a, b)}];
        if (!known) {
            known = automaton::both(*a, *b);
            n_combined_ += known->n_bytes() / 4;
            if (n_combined_ > MAX_COMBINED) {
                throw automaton_error("too many patterns");
            }
        }
        return known;
    }

    void add_string(const schema_term & t, schema::value_node & v) {
        automaton_ptr words = automaton::anything();
        try {
            for (const automaton_ptr & a : t.words) {
                words = both(words, a);
            }
        } catch (const automaton_error & e) {
            if (t.words.size() > 1) {
                return; // too large: less is accepted
            }
            throw schema_error(e.what());
        }
        if (words->start() == automaton::DEAD || !words->fits(words->start(), t.least_length, t.most_length)) {
            return;
        }
        const auto same = strings_.find({words, {t.least_length, t.most_length}});
        uint32_t id = 0;
        if (same == strings_.end()) {
            id = uint32_t(made_->strings.size());
            made_->strings.push_back({words, t.least_length, t.most_length});
            strings_[{words, {t.least_length, t.most_length}}] = id;
        } else {
            id = same->second;
        }
        if (std::find(v.strings.begin(), v.strings.end(), id) == v.strings.end()) {
            v.strings.push_back(id);
        }
    }

    void add_array(const schema_term & t, schema::value_node & v) {
        const bool costly = t.unique && !t.contains.empty() && t.least_items > MAX_PLACES; // looked through item by item
        if (t.contains.size() > MAX_CONTAINS || t.places.size() > MAX_PLACES || costly) {
            return;
        }
        schema::array_node a;
        a.least = t.least_items;
        a.most = t.most_items;
        a.unique = t.unique;
        a.nesting = NEVER_MET;
        made_->has_unique = made_->has_unique || t.unique;
        size_t n_places = t.places.size();
        for (const auto & c : t.contains) {
            a.contains.push_back({c.from, c.least, c.most});
            n_places = std::max<size_t>(n_places, c.from);
        }
        for (size_t i = 0; i <= n_places; i++) {
            const goal_id item = i < t.places.size() ? t.places[i] : t.items;
            goal_id plain = item; // what counts for nothing, as far as that must be counted
            for (const auto & c : t.contains) {
                if (i >= c.from && c.most != INFINITE) {
                    plain = algebra_.both(plain, algebra_.inverse(c.goal));
                }
            }
            std::vector<schema::item_choice> choices;
            if (plain != NOTHING) {
                choices.push_back({value_of(plain), -1});
            }
            for (size_t k = 0; k < t.contains.size(); k++) {
                goal_id counted = i >= t.contains[k].from ? algebra_.both(item, t.contains[k].goal) : NOTHING;
                for (size_t other = 0; other < t.contains.size() && counted != NOTHING; other++) {
                    if (other != k && i >= t.contains[other].from && t.contains[other].most != INFINITE) {
                        counted = algebra_.both(counted, algebra_.inverse(t.contains[other].goal));
                    }
                }
                if (counted != NOTHING) {
                    choices.push_back({value_of(counted), int32_t(k)});
                }
            }
            a.places.push_back(std::move(choices));
        }
        v.arrays.push_back(uint32_t(made_->arrays.size()));
        made_->arrays.push_back(std::move(a));
    }

    // Null where the goal has strings that are not to be followed.
    automaton_ptr words_of(goal_id goal) {
        automaton_ptr all;
        for (const schema_term & t : algebra_.terms(goal)) {
            if (!(t.types & schema_term::string)) {
                continue;
            }
            automaton_ptr words = automaton::anything();
            for (const automaton_ptr & a : t.words) {
                words = both(words, a);
            }
            if (t.least_length > 0 || t.most_length != INFINITE) {
                words = both(words, automaton::lengths(t.least_length, t.most_length));
            }
            all = all ? automaton::either(*all, *words) : words;
        }
        return all ? all : automaton::words({});
    }

    void add_object(const schema_term & t, schema::value_node & v) {
        schema::object_node o;
        open_names names;
        std::vector<automaton_ptr> name_words;
        try {
            for (const goal_id goal : t.names) {
                name_words.push_back(words_of(goal));
            }
        } catch (const automaton_error &) {
            return; // too large: less is accepted
        }
        std::map<std::string, size_t> index;
        const auto list = [&](const std::string & name) {
            const auto [found, is_new] = index.try_emplace(name, o.listed.size());
            if (is_new) {
                o.listed.push_back({name, ANYTHING, false});
            }
            return found->second;
        };
        for (const auto & shape : t.shapes) {
            for (const auto & property : shape->properties) {
                list(property.first);
            }
        }
        o.n_ordered = uint32_t(o.listed.size());
        for (const std::string & name : t.required) {
            o.listed[list(name)].required = true;
        }
        if (o.listed.size() > o.n_ordered + MAX_LATER) {
            o.n_ordered = uint32_t(o.listed.size());
        }
        n_listed_ += o.listed.size();
        if (o.listed.size() > MAX_NAMES || n_listed_ > MAX_LISTED) {
            throw schema_error("the schema has too many names");
        }
        std::vector<goal_id> goals(o.listed.size(), ANYTHING);
        for (const auto & shape : t.shapes) {
            std::vector<bool> spoken(o.listed.size());
            for (const auto & [name, goal] : shape->properties) {
                const size_t at = index[name];
                goals[at] = algebra_.both(goals[at], goal);
                spoken[at] = true;
            }
            if (shape->patterns.empty() && shape->rest == ANYTHING) {
                continue;
            }
            for (size_t i = 0; i < o.listed.size(); i++) {
                for (const auto & [words, goal] : shape->patterns) {
                    if (words->accepts(o.listed[i].name)) {
                        goals[i] = algebra_.both(goals[i], goal);
                        spoken[i] = true;
                    }
                }
                if (!spoken[i]) {
                    goals[i] = algebra_.both(goals[i], shape->rest);
                }
            }
        }
        for (size_t i = 0; i < o.listed.size(); i++) {
            for (const automaton_ptr & words : name_words) {
                if (!words->accepts(o.listed[i].name)) {
                    goals[i] = NOTHING;
                }
            }
            if (goals[i] == NOTHING && o.listed[i].required) {
                return;
            }
            o.listed[i].value = value_of(goals[i]);
        }
        o.least = t.least_members;
        o.most = t.most_members;
        o.nesting = NEVER_MET;
        o.n_others = 0;
        open(t, name_words, names);
        v.objects.push_back(uint32_t(made_->objects.size()));
        made_->objects.push_back(std::move(o));
        open_.push_back(std::move(names));
    }

    // What names that are not listed stand for.
    void open(const schema_term & t, const std::vector<automaton_ptr> & name_words, open_names & names) {
        std::vector<automaton_ptr> automata;
        for (const automaton_ptr & words : name_words) {
            names.name_bits |= 1u << automata.size();
            automata.push_back(words);
        }
        goal_id rest = ANYTHING; // where no pattern matches
        for (const auto & shape : t.shapes) {
            rest = algebra_.both(rest, shape->rest);
            for (const auto & pattern : shape->patterns) {
                if (std::find(automata.begin() + int64_t(name_words.size()), automata.end(), pattern.first) == automata.end()) {
                    automata.push_back(pattern.first);
                }
            }
        }
        if (automata.empty()) {
            names.simple = true;
            names.present = rest != NOTHING;
            if (names.present) {
                names.value = value_of(rest);
                names.values.push_back(names.value);
            }
            return;
        }
        if (automata.size() > 20) {
            return; // none, then: less is accepted
        }
        try {
            names.together = automaton::run_together(automata, MAX_NAME_STATES);
            n_combined_ += names.together.table.size();
            if (n_combined_ > MAX_COMBINED) {
                throw automaton_error("too many patterns");
            }
        } catch (const automaton_error &) {
            names.together = {};
            return;
        }
        std::map<uint32_t, uint32_t> known;
        for (const uint32_t bits : names.together.accepted) {
            if ((bits & names.name_bits) != names.name_bits || known.count(bits) != 0) {
                continue;
            }
            goal_id goal = ANYTHING;
            for (const auto & shape : t.shapes) {
                bool spoken = false;
                for (const auto & [words, g] : shape->patterns) {
                    const size_t k = size_t(std::find(automata.begin() + int64_t(name_words.size()), automata.end(), words) - automata.begin());
                    if (bits >> k & 1) {
                        goal = algebra_.both(goal, g);
                        spoken = true;
                    }
                }
                if (!spoken) {
                    goal = algebra_.both(goal, shape->rest);
                }
            }
            known[bits] = goal == NOTHING ? NEVER_MET : value_of(goal);
            if (goal != NOTHING) {
                names.values.push_back(known[bits]);
            }
        }
        names.present = !names.values.empty();
        for (const uint32_t bits : names.together.accepted) {
            const auto found = known.find(bits);
            names.value_of.push_back(found == known.end() ? NEVER_MET : found->second);
        }
    }

    // ---- what can be satisfied at all ------------------------------------------------------------------------------------

    uint32_t nesting_of(const schema::array_node & a) const {
        std::vector<uint32_t> needs;
        std::vector<uint32_t> rooms; // for what counts and is not needed
        size_t n_needed = 0;
        for (const auto & c : a.contains) {
            rooms.push_back(c.most == INFINITE ? INFINITE : c.most - std::min(c.least, c.most));
            if (c.least > c.most) {
                return NEVER_MET;
            }
            needs.push_back(c.least);
            n_needed += c.least;
        }
        if (a.least > a.most || n_needed > a.most) {
            return NEVER_MET;
        }
        const size_t last = a.places.size() - 1;
        uint32_t deepest = 0;
        bool tail_seen = false;
        for (size_t i = 0; n_needed > 0 || i < a.least; i++) {
            if (i > last + a.contains.size() * 2 + 1 && tail_seen && n_needed == 0) {
                break; // the rest is like this one
            }
            if (i + std::max<size_t>(n_needed, 1) > a.most) {
                return NEVER_MET;
            }
            for (size_t k = 0; i >= last && k < needs.size(); k++) { // the rest is all alike
                const bool there = needs[k] == 0 || std::any_of(a.places[last].begin(), a.places[last].end(), [&](const auto & c) {
                    return c.contains == int32_t(k) && made_->values[c.value].nesting != NEVER_MET;
                });
                if (!there) {
                    return NEVER_MET;
                }
            }
            uint32_t best = NEVER_MET;
            int32_t counts = -1;
            for (const auto & choice : a.places[std::min(i, last)]) {
                const uint32_t nesting = made_->values[choice.value].nesting;
                const bool needed = choice.contains >= 0 && needs[size_t(choice.contains)] > 0;
                if (nesting != NEVER_MET && (needed || (counts < 0 && nesting < best && choice.contains < 0))) {
                    best = nesting;
                    counts = needed ? choice.contains : -1;
                    if (needed) {
                        break;
                    }
                }
            }
            if (best == NEVER_MET) {
                for (const auto & choice : a.places[std::min(i, last)]) { // one more of those that count without an end
                    if (choice.contains >= 0 && a.contains[size_t(choice.contains)].most == INFINITE) {
                        best = std::min(best, made_->values[choice.value].nesting);
                    }
                }
            }
            if (best == NEVER_MET) { // or of those that count, and may
                uint64_t room = 0;
                std::vector<bool> seen(needs.size());
                for (const auto & choice : a.places[std::min(i, last)]) {
                    const uint32_t nesting = made_->values[choice.value].nesting;
                    if (choice.contains < 0 || nesting == NEVER_MET || rooms[size_t(choice.contains)] == 0 || seen[size_t(choice.contains)]) {
                        continue;
                    }
                    seen[size_t(choice.contains)] = true;
                    room += rooms[size_t(choice.contains)];
                    best = std::min(best, nesting);
                    if (i < last) {
                        rooms[size_t(choice.contains)]--;
                        break;
                    }
                }
                if (i >= last && (room == 0 || i + n_needed + room < a.least)) {
                    return NEVER_MET;
                }
            }
            if (best == NEVER_MET) {
                return NEVER_MET;
            }
            if (counts >= 0) {
                uint32_t & need = needs[size_t(counts)];
                if (i >= last) { // the tail is all alike
                    n_needed -= need;
                    need = 0;
                } else {
                    need--;
                    n_needed--;
                }
            }
            deepest = std::max(deepest, best);
            tail_seen = i >= last;
        }
        return deepest + 1;
    }

    uint32_t nesting_of(const schema::object_node & o, const open_names & names) const {
        uint32_t deepest = 0;
        size_t n_required = 0;
        std::vector<uint32_t> possible;
        for (const schema::property & p : o.listed) {
            const uint32_t nesting = made_->values[p.value].nesting;
            if (p.required) {
                if (nesting == NEVER_MET) {
                    return NEVER_MET;
                }
                n_required++;
                deepest = std::max(deepest, nesting);
            } else if (nesting != NEVER_MET) {
                possible.push_back(nesting);
            }
        }
        if (n_required > o.most) {
            return NEVER_MET;
        }
        if (o.least > n_required) {
            size_t more = o.least - n_required;
            std::sort(possible.begin(), possible.end());
            const size_t n_taken = std::min(more, possible.size());
            if (n_taken > 0) {
                deepest = std::max(deepest, possible[n_taken - 1]);
            }
            more -= n_taken;
            if (more > 0) {
                const uint32_t others = closed_ ? o.n_others : names.present ? INFINITE : 0;
                uint32_t best = NEVER_MET;
                for (const uint32_t value : names.values) {
                    const uint32_t nesting = made_->values[value].nesting;
                    // With several kinds of names the deepest: which of them one gets is not known here.
                    best = nesting == NEVER_MET ? best : best == NEVER_MET ? nesting : std::max(best, nesting);
                }
                if (others < more || best == NEVER_MET) {
                    return NEVER_MET;
                }
                deepest = std::max(deepest, best);
            }
        }
        return deepest + 1;
    }

    // The least fixed point: what is recursive must come to an end.
    void find_nesting() {
        for (schema::array_node & a : made_->arrays) {
            a.nesting = NEVER_MET;
        }
        for (schema::object_node & o : made_->objects) {
            o.nesting = NEVER_MET;
        }
        for (schema::value_node & v : made_->values) {
            const bool flat = v.null || v.truth || v.falsehood || !v.strings.empty() || !v.numbers.empty();
            v.nesting = flat ? 0 : NEVER_MET;
        }
        for (bool changed = true; changed;) {
            changed = false;
            for (size_t i = made_->values.size(); i-- > 0;) {
                schema::value_node & v = made_->values[i];
                for (const uint32_t id : v.arrays) {
                    schema::array_node & a = made_->arrays[id];
                    a.nesting = std::min(a.nesting, nesting_of(a));
                    changed = changed || a.nesting < v.nesting;
                    v.nesting = std::min(v.nesting, a.nesting);
                }
                for (const uint32_t id : v.objects) {
                    schema::object_node & o = made_->objects[id];
                    o.nesting = std::min(o.nesting, nesting_of(o, open_[id]));
                    changed = changed || o.nesting < v.nesting;
                    v.nesting = std::min(v.nesting, o.nesting);
                }
            }
        }
    }

    // ---- names -------------------------------------------------------------------------------------------------------------

    bool is_met(uint32_t value) const { return made_->values[value].nesting != NEVER_MET; }

    void close_names() {
        for (size_t id = 0; id < made_->objects.size(); id++) {
            schema::object_node & o = made_->objects[id];
            close_names(o, open_[id]);
            make_name_tree(o);
            for (size_t i = o.n_ordered; i < o.listed.size(); i++) {
                o.required_later |= 1u << (i - o.n_ordered);
            }
            count_names(o);
        }
        closed_ = true;
    }

    // Names for which it has turned out that nothing can stand. True if there were any.
    bool forget_unmet_names() {
        bool any = false;
        for (schema::object_node & o : made_->objects) {
            const uint32_t n_possible = o.n_possible[0];
            bool fewer = false;
            if (o.others) {
                std::vector<bool> accepts(o.others->n_states());
                for (size_t i = 0; i < accepts.size(); i++) {
                    const bool is_name = o.others->accepts(int32_t(i));
                    accepts[i] = is_name && is_met(o.others->mark(int32_t(i)));
                    fewer = fewer || accepts[i] != is_name;
                }
                if (fewer) {
                    o.others = o.others->ending_in(accepts);
                    o.others = o.others->start() == automaton::DEAD ? nullptr : o.others;
                }
            }
            count_names(o);
            any = any || fewer || o.n_possible[0] != n_possible;
        }
        return any;
    }

    // How many may come, from each on.
    void count_names(schema::object_node & o) {
        const size_t n = o.n_ordered;
        o.n_required.assign(n + 1, 0);
        o.n_possible.assign(n + 1, 0);
        for (size_t i = n; i-- > 0;) {
            o.n_required[i] = o.n_required[i + 1] + o.listed[i].required;
            o.n_possible[i] = o.n_possible[i + 1] + is_met(o.listed[i].value);
        }
        o.n_others = 0;
        o.others_nesting = 0;
        if (!o.others) {
            return;
        }
        for (size_t i = 0; i < o.others->n_states(); i++) {
            if (o.others->accepts(int32_t(i))) {
                o.others_nesting = std::max(o.others_nesting, made_->values[o.others->mark(int32_t(i))].nesting);
            }
        }
        for (schema::name_tree_node & at : o.names) {
            at.n_also_others = 0;
        }
        const uint32_t count = o.others->count(o.others->start());
        uint32_t n_taken = 0; // names that are listed are no others
        for (size_t i = 0; !o.others->is_endless() && i < o.listed.size(); i++) {
            if (o.others->accepts(o.listed[i].name)) {
                n_taken++;
                note_other(o, o.listed[i].name);
            }
        }
        o.n_others = count == INFINITE ? INFINITE : count - n_taken;
        if (o.n_others == 0) {
            o.others = nullptr;
        }
    }

    void close_names(schema::object_node & o, open_names & names) {
        if (!names.present) {
            return;
        }
        if (names.simple) {
            if (is_met(names.value)) {
                automaton_ptr & known = any_name_[names.value];
                if (!known) {
                    known = std::make_shared<automaton>(std::vector<uint32_t>{0}, std::vector<int32_t>{0}, std::vector<bool>{true},
                                                        std::vector<uint32_t>{names.value});
                }
                o.others = known;
            }
            return;
        }
        std::vector<bool> accepts;
        for (const uint32_t value : names.value_of) {
            accepts.push_back(value != NEVER_MET && is_met(value));
        }
        o.others = std::make_shared<automaton>(std::move(names.together.begins), std::move(names.together.table), std::move(accepts),
                                               std::move(names.value_of));
        if (o.others->start() == automaton::DEAD) {
            o.others = nullptr;
        }
    }

    void note_other(schema::object_node & o, const std::string & name) {
        uint32_t at = 0;
        o.names[0].n_also_others++;
        for (const uint32_t c : code_points(name)) {
            at = o.names[at].child;
            while (o.names[at].code_point != c) {
                at = o.names[at].sibling;
            }
            o.names[at].n_also_others++;
        }
    }

    void make_name_tree(schema::object_node & o) {
        o.names.push_back({0, 0, 0, -1, {}, 0});
        for (size_t i = 0; i < o.listed.size(); i++) {
            uint32_t at = 0;
            o.names[0].below.push_back(uint32_t(i));
            for (const uint32_t c : code_points(o.listed[i].name)) {
                uint32_t child = o.names[at].child;
                while (child != 0 && o.names[child].code_point != c) {
                    child = o.names[child].sibling;
                }
                if (child == 0) {
                    child = uint32_t(o.names.size());
                    o.names.push_back({c, 0, o.names[at].child, -1, {}, 0});
                    o.names[at].child = child;
                }
                at = child;
                o.names[at].below.push_back(uint32_t(i));
            }
            o.names[at].property = int32_t(i);
        }
    }

    // ---- how many values there are -------------------------------------------------------------------------------------------

    static uint32_t times(uint32_t a, uint32_t b) { return uint32_t(std::min<uint64_t>(INFINITE, uint64_t(a) * b)); }

    void count_values() {
        if (!made_->has_unique) {
            return;
        }
        std::vector<schema::value_node> & values = made_->values;
        for (int round = 0; round < 4; round++) { // each a lower bound
            for (size_t i = values.size(); i-- > 0;) {
                schema::value_node & v = values[i];
                uint32_t strings = 0;
                for (const uint32_t id : v.strings) {
                    const schema::string_node & s = made_->strings[id];
                    const uint32_t all = s.words->count(s.words->start());
                    const uint32_t n = s.least == 0 && s.most == INFINITE ? all : s.words->count_between(s.least, s.most);
                    strings = std::max(strings, n);
                }
                uint32_t numbers = 0;
                for (const uint32_t id : v.numbers) {
                    numbers = std::max(numbers, made_->numbers[id].count());
                }
                uint32_t containers = 0;
                for (const uint32_t id : v.arrays) {
                    containers = std::max(containers, count_of(made_->arrays[id]));
                }
                for (const uint32_t id : v.objects) {
                    containers = std::max(containers, count_of(made_->objects[id]));
                }
                const uint64_t sum = uint64_t(v.null) + v.truth + v.falsehood + strings + numbers + containers;
                v.count = uint32_t(std::min<uint64_t>(INFINITE, sum));
            }
        }
    }

    uint32_t count_of(const schema::array_node & a) const {
        if (a.nesting == NEVER_MET) {
            return 0;
        }
        uint32_t n = 1;
        if (!a.contains.empty() || a.unique) {
            return n;
        }
        for (size_t i = 0; i < std::min<size_t>(a.least, a.places.size() + 64); i++) {
            const auto & place = a.places[std::min(i, a.places.size() - 1)];
            n = place.empty() ? n : times(n, std::max(1u, made_->values[place[0].value].count));
        }
        const auto & tail = a.places.back();
        const uint32_t more = std::min<uint32_t>(a.most, 64) > a.least ? std::min<uint32_t>(a.most, 64) - a.least : 0;
        if (!tail.empty() && is_met(tail[0].value) && a.least >= a.places.size() - 1) {
            const uint32_t base = made_->values[tail[0].value].count;
            uint32_t all = n;
            for (uint32_t k = 0; k < more; k++) {
                n = times(n, std::max(1u, base));
                all = uint32_t(std::min<uint64_t>(INFINITE, uint64_t(all) + n));
            }
            return all;
        }
        return n;
    }

    uint32_t count_of(const schema::object_node & o) const {
        if (o.nesting == NEVER_MET) {
            return 0;
        }
        uint32_t n_required = o.n_required[0];
        for (uint32_t left = o.required_later; left != 0; left &= left - 1) {
            n_required++;
        }
        if (o.n_others == INFINITE && o.most > n_required) {
            return INFINITE; // one more, of any name
        }
        const bool counted = o.least > o.n_required[0] + (o.listed.size() - o.n_ordered) || o.most < o.listed.size() + 1;
        uint32_t n = 1;
        for (const schema::property & p : o.listed) {
            const uint32_t count = made_->values[p.value].count;
            if (p.required) {
                n = times(n, std::max(1u, count));
            } else if (!counted && count > 0) {
                n = times(n, count == INFINITE ? count : count + 1);
            }
        }
        if (!counted && o.n_others != 0 && o.n_others != INFINITE) {
            n = times(n, 2);
        }
        return n;
    }

    // No more items than there are values that differ, and none where nothing can stand.
    void bound_arrays() {
        for (schema::array_node & a : made_->arrays) {
            for (size_t k = 0; a.unique && k < a.contains.size(); k++) { // so many that count, and no two alike
                uint32_t count = 0;
                for (const auto & place : a.places) {
                    for (const schema::item_choice & choice : place) {
                        count = choice.contains == int32_t(k) ? std::max(count, made_->values[choice.value].count) : count;
                    }
                }
                if (count < a.contains[k].least) {
                    a.least = 1;
                    a.most = 0;
                }
            }
            for (size_t i = 0; i < a.places.size(); i++) {
                bool any = false;
                uint32_t count = 0;
                for (const schema::item_choice & choice : a.places[i]) {
                    any = any || is_met(choice.value);
                    count = std::max(count, made_->values[choice.value].count);
                }
                if (!any) {
                    a.most = std::min(a.most, uint32_t(i));
                    break;
                }
                if (a.unique && i + 1 == a.places.size()) {
                    a.most = std::min(a.most, std::max(count, uint32_t(i)));
                } else if (a.unique && count <= i) {
                    a.most = std::min(a.most, uint32_t(i));
                }
            }
        }
    }

    schema_document document_;
    schema_algebra algebra_;
    std::shared_ptr<schema> made_;
    std::map<goal_id, uint32_t> values_;
    std::vector<goal_id> goals_; // of each value
    size_t next_ = 0;            // value to build
    std::vector<open_names> open_;
    std::map<std::pair<automaton_ptr, automaton_ptr>, automaton_ptr> combined_;
    std::map<std::pair<automaton_ptr, std::pair<uint32_t, uint32_t>>, uint32_t> strings_;
    std::map<uint32_t, automaton_ptr> any_name_;
    uint32_t any_integer_ = 0; // one past its index, 0: not made yet
    uint32_t any_number_ = 0;
    size_t n_combined_ = 0;
    size_t n_listed_ = 0;
    bool closed_ = false;
};

}  // namespace

static schema_ptr compile(const std::string & text, bool are_arguments) {
    if (text.size() > MAX_TEXT) {
        throw schema_error("the schema is too large");
    }
    try {
        json_value root = parse_json(text);
        if (!are_arguments) {
            return compiler(std::move(root)).compile();
        }
        const std::vector<std::string> left_out = mend_schema(root);
        const std::shared_ptr<schema> made = compiler(std::move(root)).compile(true);
        made->unenforced.insert(made->unenforced.end(), left_out.begin(), left_out.end());
        return made;
    } catch (const json_error & e) {
        throw schema_error(std::string("the schema is no JSON: ") + e.what());
    } catch (const automaton_error & e) {
        throw schema_error(e.what());
    }
}

schema_ptr compile_schema(const std::string & text) {
    return compile(text, false);
}

schema_ptr compile_arguments(const std::string & text) {
    return compile(text, true);
}

}  // namespace lm
