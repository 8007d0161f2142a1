#include "grammar.h"

#include "error.h"

#include "json-schema-to-grammar.h"
#include "json.h"
#include "src/llama-grammar.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace lm {

// Limits against texts that would keep the parsers busy or recursing without end. The dialects have narrower ones.
static constexpr size_t MAX_TEXT_BYTES = 1 << 20;
static constexpr int MAX_GBNF_DEPTH = 128;
static constexpr int MAX_SCHEMA_DEPTH = 256;
static constexpr size_t MAX_ELEMENTS = 1 << 20; // after repetitions are written out; 24 bytes each while parsing

// What the schema compiler's time grows with faster than the text. At these limits it takes half a second here.
static constexpr size_t MAX_SCHEMA_NODES = 1 << 16; // as often as the compiler visits them
static constexpr size_t MAX_OPTIONAL_PAIRS = 250000; // summed over the objects; 500 optional properties in one
static constexpr size_t MAX_NAME_BYTES = 4u << 20;  // rules are named by their path, and regular expressions read the names
static constexpr size_t MAX_KEY_BYTES = 1024;
static constexpr size_t MAX_TYPES = 16; // of one node, which is copied for each

static constexpr size_t MAX_CACHED_BYTES = 16u << 20;
static constexpr uint32_t LAST_CODE_POINT = 0x10FFFF;

// A parser quotes the whole rest of the text at fault.
static constexpr size_t MAX_QUOTED = 200;

// Why a GBNF text does not compile; whose text it is, the caller knows.
struct refusal : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// ---- what is refused before a parser sees it ------------------------------------------------------------------------

// How much of the parsed grammar the text up to here makes: repetitions copy the symbol before them.
class expansion {
  public:
    void symbol(size_t n_elements) {
        add(n_elements);
        last_ = n_elements;
    }
    void repeat(size_t times) {
        if (times > MAX_ELEMENTS) {
            throw refusal("a repetition is too long");
        }
        add((last_ + 4) * times);
        last_ *= std::max<size_t>(times, 1);
    }

  private:
    void add(size_t n) {
        total_ += n;
        if (total_ > MAX_ELEMENTS) {
            throw refusal("the grammar grows too large");
        }
    }

    size_t last_ = 0;
    size_t total_ = 0;
};

// Reads the {n}, {n,} or {n,m} at `text[i]`; anything else is left to the parser's error.
static void check_repetition(const std::string & text, size_t i, expansion & size) {
    const char * at = text.c_str() + i + 1;
    char * end = nullptr;
    const unsigned long low = strtoul(at, &end, 10);
    unsigned long high = low;
    at = end + strspn(end, " \t\r\n");
    if (*at == ',') {
        at += 1 + strspn(at + 1, " \t\r\n");
        high = std::max(low, 1ul);
        if (*at >= '0' && *at <= '9') {
            high = strtoul(at, nullptr, 10);
            if (low > high) {
                throw refusal("a repetition's lower bound is above its upper bound");
            }
        }
    }
    size.repeat(high);
}

// Past the literal or class that begins at `i`; the number of characters in it is added to the expansion.
static size_t skip_quoted(const std::string & text, size_t i, char close, expansion & size) {
    size_t n = 0;
    for (i++; i < text.size() && text[i] != close; i++, n++) {
        i += text[i] == '\\';
    }
    size.symbol(n);
    return i;
}

// Outside of literals, classes, tokens and comments: nesting of parentheses, and repetitions.
static void check_gbnf(const std::string & text) {
    if (text.size() > MAX_TEXT_BYTES || text.find('\0') != std::string::npos) {
        throw refusal("the grammar is too large, or holds a zero byte");
    }
    expansion size;
    int depth = 0;
    for (size_t i = 0; i < text.size(); i++) {
        switch (text[i]) {
            case '"': i = skip_quoted(text, i, '"', size); break;
            case '[': i = skip_quoted(text, i, ']', size); break;
            case '<':
                i = std::min(text.find('>', i), text.size());
                size.symbol(1);
                break;
            case '#': i = std::min(text.find('\n', i), text.size()); break;
            case '(':
                if (++depth > MAX_GBNF_DEPTH) {
                    throw refusal("the grammar nests too deep");
                }
                break;
            case ')':
                depth--;
                size.symbol(1);
                break;
            case '{': check_repetition(text, i, size); break;
            default: size.symbol(1); // a reference is counted once for each of its letters
        }
    }
}

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

// ---- what a schema will cost ----------------------------------------------------------------------------------------

static size_t size_of(const common_json & node) {
    size_t n = 1;
    if (node.is_object() || node.is_array()) {
        for (const common_json & child : node) {
            n += size_of(child);
        }
    }
    return n;
}

static size_t n_optional(const common_json & node) {
    const common_json & properties = node.at("properties");
    std::set<std::string> required;
    if (node.contains("required") && node.at("required").is_array()) {
        for (const common_json & name : node.at("required")) {
            if (name.is_string() && properties.contains(name.get<std::string>())) {
                required.insert(name.get<std::string>());
            }
        }
    }
    return properties.size() - required.size();
}

void schema_budget::add(const common_json & schema) {
    root_ = &schema;
    refs_.clear();
    visit(schema, 0);
}

void schema_budget::refuse(const char * why) const {
    throw invalid_request(param_, std::string("a JSON schema has ") + why);
}

void schema_budget::charge(size_t n_nodes) {
    n_nodes_ += n_nodes;
    if (n_nodes_ > MAX_SCHEMA_NODES) {
        refuse("too many parts");
    }
}

void schema_budget::visit(const common_json & node, size_t n_path) {
    charge(1);
    n_names_ += n_path;
    if (n_names_ > MAX_NAME_BYTES) {
        refuse("too many long names");
    }
    if (!node.is_object()) {
        return;
    }
    if (node.contains("$ref")) {
        const common_json & ref = node.at("$ref");
        if (ref.is_string() && refs_.insert(ref.get<std::string>()).second) {
            if (const common_json * target = resolve(ref.get<std::string>())) {
                visit(*target, ref.get<std::string>().size());
            }
        }
        return;
    }
    if (node.contains("type") && node.at("type").is_array()) {
        if (node.at("type").size() > MAX_TYPES) {
            refuse("too many types in one place");
        }
        const size_t n = size_of(node);
        for (size_t i = 0; i < node.at("type").size(); i++) {
            charge(n);
            visit_children(node, n_path);
        }
        return;
    }
    visit_children(node, n_path);
}

void schema_budget::visit_children(const common_json & node, size_t n_path) {
    if (node.contains("pattern")) {
        charge(n_nodes_ / 16); // all rules so far are copied
    }
    if (node.contains("enum")) {
        charge(size_of(node.at("enum")) / 4);
    }
    if (node.contains("properties") && node.at("properties").is_object()) {
        charge_optional(n_optional(node));
        for (const auto & [key, child] : node.at("properties").items()) {
            if (key.size() > MAX_KEY_BYTES) {
                refuse("a property name that is too long");
            }
            visit(child, n_path + key.size() + 1);
        }
    }
    for (const char * key : {"items", "prefixItems", "oneOf", "anyOf", "allOf", "additionalProperties"}) {
        if (!node.contains(key)) {
            continue;
        }
        const common_json & child = node.at(key);
        if (!child.is_array()) {
            visit(child, n_path + 16);
            continue;
        }
        for (size_t i = 0; i < child.size(); i++) {
            visit(child.at(i), n_path + 16);
        }
    }
    if (node.contains("allOf") && node.at("allOf").is_array()) {
        charge_optional(n_merged(node.at("allOf")));
    }
}

// The compiler writes down of each optional property which others may follow it.
void schema_budget::charge_optional(size_t n) {
    n_pairs_ += n * n;
    if (n_pairs_ > MAX_OPTIONAL_PAIRS) {
        refuse("too many optional properties");
    }
}

size_t schema_budget::n_merged(const common_json & all_of) {
    size_t n = 0;
    for (size_t i = 0; i < all_of.size(); i++) {
        const common_json & child = all_of.at(i);
        const char * const key = !child.is_object()        ? nullptr
                                 : child.contains("oneOf") ? "oneOf"
                                 : child.contains("anyOf") ? "anyOf"
                                                           : nullptr;
        if (key == nullptr || !child.at(key).is_array()) {
            n += n_components(&child);
            continue;
        }
        for (size_t j = 0; j < child.at(key).size(); j++) {
            n += n_components(&child.at(key).at(j));
        }
    }
    return n;
}

size_t schema_budget::n_components(const common_json * node) {
    for (int hops = 0; node != nullptr && node->is_object(); hops++) {
        charge(1);
        if (!node->contains("$ref")) {
            return node->contains("properties") ? node->at("properties").size() : 0;
        }
        if (hops > MAX_SCHEMA_DEPTH || !node->at("$ref").is_string()) {
            refuse("too many references in a row"); // the compiler follows a circle of them without end
        }
        node = resolve(node->at("$ref").get<std::string>());
    }
    return 0;
}

// Null where the compiler will complain.
const common_json * schema_budget::resolve(const std::string & ref) const {
    if (ref.compare(0, 2, "#/") != 0) {
        return nullptr;
    }
    const common_json * node = root_;
    for (size_t at = 2; at <= ref.size();) {
        const size_t next = std::min(ref.find('/', at), ref.size());
        const std::string name = ref.substr(at, next - at);
        if (node->is_object() && node->contains(name)) {
            node = &node->at(name);
        } else if (node->is_array() && strtoul(name.c_str(), nullptr, 10) < node->size()) {
            node = &node->at(size_t(strtoul(name.c_str(), nullptr, 10)));
        } else {
            return nullptr;
        }
        at = next + 1;
    }
    return node;
}

static std::string schema_to_gbnf(const std::string & text) {
    check_nesting(text, "response_format");
    try {
        const common_json schema = common_json::parse(text);
        schema_budget("response_format").add(schema);
        return json_schema_to_grammar(schema);
    } catch (const error &) {
        throw;
    } catch (const std::exception & e) {
        throw invalid_request("response_format", "the JSON schema is refused: " + clipped(e.what()));
    }
}

std::string to_gbnf(const grammar_spec & spec) {
    if (spec.text.size() > MAX_TEXT_BYTES) {
        throw invalid_request(spec.is_schema ? "response_format" : "grammar", "the grammar is too large");
    }
    return spec.is_schema ? schema_to_gbnf(spec.text) : spec.text;
}

// ---- from llama.cpp's rules to the table ----------------------------------------------------------------------------

static void parse(llama_grammar_parser & parser, const std::string & gbnf) {
    const char * at = gbnf.c_str();
    while (*at != '\0' && strchr(" \t\r\n#", *at) != nullptr) {
        at = *at == '#' ? at + strcspn(at, "\r\n") : at + 1;
    }
    try {
        while (*at != '\0') {
            at = parser.parse_rule(at);
        }
    } catch (const std::exception & e) {
        throw refusal("the grammar does not parse: " + clipped(e.what()));
    }
    parser.rules.resize(std::max(parser.rules.size(), parser.symbol_ids.size()));
    for (const auto & [name, id] : parser.symbol_ids) {
        if (parser.rules[id].empty()) {
            throw refusal("the grammar does not define " + clipped(name));
        }
    }
    if (parser.symbol_ids.count("root") == 0) {
        throw refusal("the grammar does not define root");
    }
}

using ranges = std::vector<grammar::range>;

static ranges merged(ranges all) {
    std::sort(all.begin(), all.end(), [](const auto & a, const auto & b) { return a.first < b.first; });
    ranges disjoint;
    for (const grammar::range & r : all) {
        if (!disjoint.empty() && r.first <= disjoint.back().last + 1) {
            disjoint.back().last = std::max(disjoint.back().last, r.last);
        } else {
            disjoint.push_back(r);
        }
    }
    return disjoint;
}

static ranges complement(const ranges & disjoint) {
    ranges others;
    uint32_t next = 0;
    for (const grammar::range & r : disjoint) {
        if (r.first > next) {
            others.push_back({next, r.first - 1});
        }
        next = r.last + 1;
    }
    if (next <= LAST_CODE_POINT) {
        others.push_back({next, LAST_CODE_POINT});
    }
    return others;
}

// The set that begins at `at`, which moves past it.
static ranges read_set(const llama_grammar_rule & rule, size_t & at) {
    const llama_gretype type = rule[at].type;
    if (type == LLAMA_GRETYPE_CHAR_ANY) {
        at++;
        return {{0, LAST_CODE_POINT}};
    }
    ranges all;
    do {
        const uint32_t first = rule[at].value;
        uint32_t last = first;
        if (rule[at + 1].type == LLAMA_GRETYPE_CHAR_RNG_UPPER) {
            last = rule[++at].value;
        }
        if (first <= last && first <= LAST_CODE_POINT) {
            all.push_back({first, std::min(last, LAST_CODE_POINT)});
        }
        at++;
    } while (rule[at].type == LLAMA_GRETYPE_CHAR_ALT);
    all = merged(std::move(all));
    return type == LLAMA_GRETYPE_CHAR_NOT ? complement(all) : all;
}

class table_builder {
  public:
    explicit table_builder(const llama_grammar_parser & parsed) {
        for (const llama_grammar_rule & rule : parsed.rules) {
            table_.rules.push_back(uint32_t(table_.alternatives.size()));
            add(rule);
        }
        table_.rules.push_back(uint32_t(table_.alternatives.size()));
        table_.sets.push_back(uint32_t(table_.ranges.size()));
        table_.start = uint32_t(table_.elements.size());
        push(grammar::kind::call, parsed.symbol_ids.at("root"));
        push(grammar::kind::end, 0);
    }

    grammar take() { return std::move(table_); }

  private:
    void push(grammar::kind what, uint32_t value) { table_.elements.push_back({what, value}); }

    void add(const llama_grammar_rule & rule) {
        bool at_start = true;
        for (size_t at = 0; at < rule.size();) {
            if (at_start) {
                table_.alternatives.push_back(uint32_t(table_.elements.size()));
                at_start = false;
            }
            switch (rule[at].type) {
                case LLAMA_GRETYPE_ALT: at_start = true; [[fallthrough]];
                case LLAMA_GRETYPE_END:
                    push(grammar::kind::end, 0);
                    at++;
                    break;
                case LLAMA_GRETYPE_RULE_REF: push(grammar::kind::call, rule[at++].value); break;
                case LLAMA_GRETYPE_TOKEN: push(grammar::kind::token, rule[at++].value); break;
                case LLAMA_GRETYPE_TOKEN_NOT: push(grammar::kind::other_token, rule[at++].value); break;
                default: push(grammar::kind::characters, set_of(read_set(rule, at)));
            }
        }
    }

    // Equal sets share one index.
    uint32_t set_of(const ranges & set) {
        std::string key(reinterpret_cast<const char *>(set.data()), set.size() * sizeof(grammar::range));
        const auto [found, is_new] = known_.try_emplace(std::move(key), uint32_t(table_.sets.size()));
        if (is_new) {
            table_.sets.push_back(uint32_t(table_.ranges.size()));
            table_.ranges.insert(table_.ranges.end(), set.begin(), set.end());
        }
        return found->second;
    }

    grammar table_;
    std::unordered_map<std::string, uint32_t> known_;
};

// ---- left recursion -------------------------------------------------------------------------------------------------

// Calls `body(element)` for every element of every alternative of `rule` until it returns false for one of them.
template <typename F>
static void for_each_beginning(const grammar & g, uint32_t rule, F body) {
    for (uint32_t a = g.rules[rule]; a < g.rules[rule + 1]; a++) {
        for (uint32_t at = g.alternatives[a]; g.elements[at].what != grammar::kind::end && body(at); at++) {
        }
    }
}

// Which rules can be empty: an alternative is, once all that it calls are.
static std::vector<bool> find_nullable(const grammar & g) {
    const size_t n_rules = g.rules.size() - 1;
    std::vector<bool> nullable(n_rules);
    std::vector<std::vector<uint32_t>> callers(n_rules); // alternatives
    std::vector<uint32_t> owner(g.alternatives.size());
    std::vector<uint32_t> n_waiting(g.alternatives.size());
    std::vector<uint32_t> empty; // alternatives
    for (uint32_t rule = 0; rule < n_rules; rule++) {
        for (uint32_t a = g.rules[rule]; a < g.rules[rule + 1]; a++) {
            owner[a] = rule;
            for (uint32_t at = g.alternatives[a]; g.elements[at].what != grammar::kind::end; at++) {
                n_waiting[a]++; // a terminal is waited for in vain
                if (g.elements[at].what == grammar::kind::call) {
                    callers[g.elements[at].value].push_back(a);
                }
            }
            if (n_waiting[a] == 0) {
                empty.push_back(a);
            }
        }
    }
    while (!empty.empty()) {
        const uint32_t rule = owner[empty.back()];
        empty.pop_back();
        if (nullable[rule]) {
            continue;
        }
        nullable[rule] = true;
        for (const uint32_t a : callers[rule]) {
            if (--n_waiting[a] == 0) {
                empty.push_back(a);
            }
        }
    }
    return nullable;
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
    const std::vector<bool> nullable = find_nullable(g);
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
                throw refusal("the grammar is left-recursive");
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
           (alternatives.size() + rules.size() + sets.size()) * sizeof(uint32_t);
}

grammar_ptr compile_grammar(const vocabulary & vocab, const std::string & gbnf, const std::string & param) {
    try {
        check_gbnf(gbnf);
        llama_grammar_parser parser(vocab.get());
        parse(parser, gbnf);
        auto compiled = std::make_shared<grammar>(table_builder(parser).take());
        refuse_left_recursion(*compiled);
        return compiled;
    } catch (const refusal & e) {
        throw invalid_request(param, e.what());
    }
}

grammar_ptr grammar_cache::get(const grammar_spec & spec) {
    std::string key = (spec.is_schema ? "s" : "g") + spec.text;
    if (const auto found = by_key_.find(key); found != by_key_.end()) {
        entries_.splice(entries_.begin(), entries_, found->second);
        return entries_.front().compiled;
    }
    grammar_ptr compiled = compile_grammar(vocab_, to_gbnf(spec), spec.is_schema ? "response_format" : "grammar");
    const size_t n_bytes = compiled->n_bytes() + 2 * key.size();
    entries_.push_front({key, compiled, n_bytes});
    by_key_.emplace(std::move(key), entries_.begin());
    n_bytes_ += n_bytes;
    while (n_bytes_ > MAX_CACHED_BYTES) {
        n_bytes_ -= entries_.back().n_bytes;
        by_key_.erase(entries_.back().key);
        entries_.pop_back();
    }
    return compiled;
}

}  // namespace lm
