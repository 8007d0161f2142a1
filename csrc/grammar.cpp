#include "grammar.h"

#include "error.h"
#include "gbnf.h"
#include "json_value.h"
#include "regex.h"

#include "json.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace lm {

// A limit against texts that would keep the parsers busy without end. The dialects have narrower ones.
static constexpr size_t MAX_TEXT_BYTES = 1 << 20;

// Of compiled grammars that nobody uses: about as many as agents with all their tools come back with.
static constexpr size_t MAX_CACHED_BYTES = 8u << 20;

// A parser quotes the whole rest of the text at fault.
static constexpr size_t MAX_QUOTED = 200;

// ---- texts ----------------------------------------------------------------------------------------------------------

void check_nesting(const std::string & json, const char * param, int limit) {
    int depth = 0;
    for (size_t i = 0; i < json.size(); i++) {
        if (json[i] == '"') {
            for (i++; i < json.size() && json[i] != '"'; i++) {
                i += json[i] == '\\';
            }
        } else if (json[i] == '{' || json[i] == '[') {
            if (++depth > limit) {
                throw invalid_request(param, std::string(param) + ": the JSON nests too deep");
            }
        } else if (json[i] == '}' || json[i] == ']') {
            depth--;
        }
    }
}

static std::string clipped(const std::string & message) {
    std::string whole;
    std::string bytes = message.substr(0, MAX_QUOTED);
    decode_utf8(bytes, whole);
    return whole;
}

// ---- what rules come to ---------------------------------------------------------------------------------------------

// Calls `body(element)` for every element of every alternative of `rule` until it returns false for one of them.
template <typename F>
static void for_each_beginning(const grammar & g, uint32_t rule, F body) {
    for (uint32_t a = g.rules[rule]; a < g.rules[rule + 1]; a++) {
        for (uint32_t at = g.alternatives[a]; g.elements[at].what != grammar::kind::end && body(at); at++) {
        }
    }
}

// Which rules come to an end: an alternative does, once all that it calls do. With `empty`, without a character.
static std::vector<bool> find_ending(const grammar & g, bool empty) {
    const size_t n_rules = g.rules.size() - 1;
    std::vector<bool> ending(n_rules);
    std::vector<std::vector<uint32_t>> callers(n_rules); // alternatives
    std::vector<uint32_t> owner(g.alternatives.size());
    std::vector<uint32_t> n_waiting(g.alternatives.size());
    std::vector<uint32_t> found; // alternatives
    for (uint32_t rule = 0; rule < n_rules; rule++) {
        for (uint32_t a = g.rules[rule]; a < g.rules[rule + 1]; a++) {
            owner[a] = rule;
            for (uint32_t at = g.alternatives[a]; g.elements[at].what != grammar::kind::end; at++) {
                const bool is_call = g.elements[at].what == grammar::kind::call;
                n_waiting[a] += is_call || empty; // a terminal is waited for in vain
                if (is_call) {
                    callers[g.elements[at].value].push_back(a);
                }
            }
            if (n_waiting[a] == 0) {
                found.push_back(a);
            }
        }
    }
    while (!found.empty()) {
        const uint32_t rule = owner[found.back()];
        found.pop_back();
        if (ending[rule]) {
            continue;
        }
        ending[rule] = true;
        for (const uint32_t a : callers[rule]) {
            if (--n_waiting[a] == 0) {
                found.push_back(a);
            }
        }
    }
    return ending;
}

static void refuse_endless(const grammar & g) {
    if (!find_ending(g, false)[g.elements[g.start].value]) {
        throw gbnf_error("no text satisfies the grammar");
    }
}

struct left_call {
    uint32_t callee;
    bool pushes; // more follows the call: its return has to be remembered
};

// The strongly connected component of each rule under "calls before any character" (Tarjan, without recursion: a grammar
// may chain a hundred thousand rules).
static std::vector<uint32_t> components(const std::vector<std::vector<left_call>> & calls) {
    static constexpr uint32_t NONE = UINT32_MAX;
    struct frame {
        uint32_t rule;
        size_t next;
    };
    const size_t n = calls.size();
    std::vector<uint32_t> index(n, NONE), low(n), component(n, NONE), open;
    std::vector<frame> frames;
    uint32_t n_seen = 0;
    for (uint32_t first = 0; first < n; first++) {
        if (index[first] != NONE) {
            continue;
        }
        frames.push_back({first, 0});
        while (!frames.empty()) {
            frame & top = frames.back();
            const uint32_t rule = top.rule;
            if (top.next == 0) {
                index[rule] = low[rule] = n_seen++;
                open.push_back(rule);
            } else {
                low[rule] = std::min(low[rule], low[calls[rule][top.next - 1].callee]);
            }
            while (top.next < calls[rule].size() && index[calls[rule][top.next].callee] != NONE) {
                const uint32_t callee = calls[rule][top.next++].callee;
                if (component[callee] == NONE) {
                    low[rule] = std::min(low[rule], index[callee]);
                }
            }
            if (top.next < calls[rule].size()) {
                frames.push_back({calls[rule][top.next++].callee, 0});
                continue;
            }
            if (low[rule] == index[rule]) {
                uint32_t member;
                do {
                    member = open.back();
                    open.pop_back();
                    component[member] = rule;
                } while (member != rule);
            }
            frames.pop_back();
        }
    }
    return component;
}

// A rule that calls itself before any character, with more to follow, would push returns without end. One that does so
// as its last act ((a*)*) only visits itself again.
static void refuse_left_recursion(const grammar & g) {
    const std::vector<bool> nullable = find_ending(g, true);
    std::vector<std::vector<left_call>> calls(g.rules.size() - 1);
    for (uint32_t rule = 0; rule < calls.size(); rule++) {
        for_each_beginning(g, rule, [&](uint32_t at) {
            if (g.elements[at].what != grammar::kind::call) {
                return false;
            }
            const uint32_t callee = g.elements[at].value;
            calls[rule].push_back({callee, !g.is_last(at)});
            return bool(nullable[callee]);
        });
    }
    const std::vector<uint32_t> component = components(calls);
    for (uint32_t rule = 0; rule < calls.size(); rule++) {
        for (const left_call & call : calls[rule]) {
            if (call.pushes && component[call.callee] == component[rule]) {
                throw gbnf_error("the grammar is left-recursive");
            }
        }
    }
}

// ---- the grammar ----------------------------------------------------------------------------------------------------

bool grammar::contains(uint32_t set, uint32_t code_point) const {
    const range * begin = ranges.data() + sets[set];
    const range * end = ranges.data() + sets[set + 1];
    const range * at = std::partition_point(begin, end, [&](const range & r) { return r.last < code_point; });
    return at != end && at->first <= code_point;
}

size_t grammar::n_bytes() const {
    return sizeof *this + elements.size() * sizeof(element) + ranges.size() * sizeof(range) +
           (alternatives.size() + rules.size() + sets.size()) * sizeof(uint32_t) +
           std::accumulate(schemas.begin(), schemas.end(), size_t(0), [](size_t n, const schema_part & s) { return n + s.schema->n_bytes(); });
}

void grammar::shrink() {
    elements.shrink_to_fit();
    alternatives.shrink_to_fit();
    rules.shrink_to_fit();
    ranges.shrink_to_fit();
    sets.shrink_to_fit();
}

// Adds the elements and rules of another one behind those that are there; its root stays without a call.
static void append(grammar & to, const grammar & more) {
    const uint32_t n_elements = uint32_t(to.elements.size());
    const uint32_t n_alternatives = uint32_t(to.alternatives.size());
    const uint32_t n_rules = uint32_t(to.rules.size()) - 1;
    const uint32_t n_sets = uint32_t(to.sets.size()) - 1;
    const size_t n_ranges = to.ranges.size();
    for (grammar::element e : more.elements) {
        e.value += e.what == grammar::kind::call         ? n_rules
                   : e.what == grammar::kind::characters ? n_sets
                   : e.what == grammar::kind::schema     ? uint32_t(to.schemas.size())
                                                         : 0;
        to.elements.push_back(e);
    }
    const auto add = [](std::vector<uint32_t> & all, const std::vector<uint32_t> & from, size_t offset) {
        for (const uint32_t index : from) {
            all.push_back(uint32_t(index + offset));
        }
    };
    to.rules.pop_back();
    to.sets.pop_back();
    add(to.alternatives, more.alternatives, n_elements);
    add(to.rules, more.rules, n_alternatives);
    add(to.sets, more.sets, n_ranges);
    to.ranges.insert(to.ranges.end(), more.ranges.begin(), more.ranges.end());
    to.schemas.insert(to.schemas.end(), more.schemas.begin(), more.schemas.end());
}

grammar_ptr either(const grammar & a, const grammar & b) {
    auto both = std::make_shared<grammar>(a);
    append(*both, b);
    both->alternatives.insert(both->alternatives.end(), {a.start, uint32_t(a.elements.size()) + b.start}); // a rule of its own
    both->rules.push_back(uint32_t(both->alternatives.size()));
    both->start = uint32_t(both->elements.size());
    both->elements.push_back({grammar::kind::call, uint32_t(both->rules.size()) - 2});
    both->elements.push_back({grammar::kind::end, 0});
    both->shrink();
    return both;
}

grammar_ptr with_leaf(const grammar & around, const grammar & leaf) {
    auto whole = std::make_shared<grammar>(around);
    append(*whole, leaf);
    const grammar::element root = whole->elements[around.elements.size() + leaf.start];
    for (grammar::element & e : whole->elements) {
        e = e.what == grammar::kind::schema ? root : e;
    }
    whole->schemas.clear();
    whole->shrink();
    return whole;
}

grammar_ptr compile_grammar(const vocabulary & vocab, const std::string & gbnf, const std::string & param,
                            const std::vector<grammar_leaf> & leaves) {
    try {
        auto compiled = std::make_shared<grammar>(parse_gbnf(vocab, gbnf, leaves));
        refuse_left_recursion(*compiled);
        refuse_endless(*compiled);
        return compiled;
    } catch (const gbnf_error & e) {
        throw invalid_request(param, e.what());
    }
}

std::string leaf_mark(size_t i) {
    std::string mark;
    append_utf8(mark, FIRST_LEAF_MARK + uint32_t(i));
    return mark;
}

schema_ptr read_schema(const std::string & text, bool strict) {
    try {
        schema_ptr made = compile_schema(text);
        for (const std::string & what : made->unenforced) {
            if (strict && what.compare(0, 7, "format ") != 0) { // an unknown format is a note, no rule
                throw schema_error(what + " cannot be enforced, as strict asks");
            }
        }
        return made;
    } catch (const schema_error & e) {
        throw invalid_request("response_format", "response_format: " + clipped(e.what()));
    }
}

grammar_ptr leaf_grammar(const vocabulary & vocab, const grammar_leaf & leaf, const std::string & param) {
    return compile_grammar(vocab, "root ::= \"\\\"" + leaf_mark(0) + "\\\"\"", param, {leaf});
}

automaton_ptr read_regex(const std::string & expression) {
    try {
        automaton_ptr words = compile_regex(expression, true);
        if (words->start() == automaton::DEAD) {
            throw automaton_error("no text matches it");
        }
        return words;
    } catch (const automaton_error & e) {
        throw invalid_request("grammar", "the regular expression is refused: " + clipped(e.what()));
    }
}

automaton_ptr read_choice(const std::string & list) {
    const common_json texts = common_json::parse_no_throw(list);
    const bool is_list = !texts.is_discarded() && texts.is_array() && !texts.empty();
    std::vector<std::string> words;
    for (const common_json & text : is_list ? texts : common_json::array()) {
        if (text.is_string()) {
            words.push_back(text.get<std::string>());
        }
    }
    if (!is_list || words.size() != texts.size()) {
        throw invalid_request("grammar", "a choice is a list of texts, one at least");
    }
    try {
        return automaton::words(words);
    } catch (const automaton_error & e) {
        throw invalid_request("grammar", std::string("the choice is refused: ") + e.what());
    }
}

grammar_ptr compile_grammar(const vocabulary & vocab, const grammar_spec & spec) {
    if (spec.text.size() > MAX_TEXT_BYTES) {
        throw invalid_request(spec.is_schema() ? "response_format" : "grammar", "the grammar is too large");
    }
    switch (spec.kind) {
        case grammar_kind::schema: return leaf_grammar(vocab, read_schema(spec.text), "response_format");
        case grammar_kind::regex: return leaf_grammar(vocab, read_regex(spec.text), "grammar");
        case grammar_kind::choice: return leaf_grammar(vocab, read_choice(spec.text), "grammar");
        default: return compile_grammar(vocab, spec.text);
    }
}

grammar_ptr grammar_cache::get(const grammar_spec & spec) {
    std::string key = std::to_string(int(spec.kind)) + spec.text;
    if (const auto found = by_key_.find(key); found != by_key_.end()) {
        entries_.splice(entries_.begin(), entries_, found->second);
        return entries_.front().compiled;
    }
    grammar_ptr compiled = compile_grammar(vocab_, spec);
    const size_t n_bytes = compiled->n_bytes() + key.size();
    entries_.push_front({std::move(key), compiled, n_bytes});
    by_key_.emplace(entries_.front().key, entries_.begin());
    n_bytes_ += n_bytes;
    while (n_bytes_ > MAX_CACHED_BYTES && entries_.size() > 1) { // a large one takes the longest to compile
        n_bytes_ -= entries_.back().n_bytes;
        by_key_.erase(entries_.back().key);
        entries_.pop_back();
    }
    return compiled;
}

}  // namespace lm
