#include "gbnf.h"

#include "json_value.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <unordered_map>

namespace lm {

// Limits of time, memory and stack. The dialects have a narrower one of the text.
static constexpr size_t MAX_TEXT_BYTES = 4 << 20; // those of many tools are the largest
static constexpr size_t MAX_ELEMENTS = 1 << 20; // 8 bytes each; repetitions are written out
static constexpr size_t MAX_DEPTH = 128;
static constexpr size_t MAX_TOKEN_BYTES = 1024; // of a token written as <text>

static constexpr size_t MAX_QUOTED = 60; // of the text, in an error

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

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || is_digit(c);
}

namespace {

class gbnf_parser {
  public:
    gbnf_parser(const vocabulary & vocab, const std::string & text, const std::vector<grammar_leaf> & leaves)
        : vocab_(vocab), text_(text), leaves_(leaves), leaf_places_(leaves.size(), UINT32_MAX) {}

    grammar parse() {
        skip_space(true);
        while (at_ < text_.size()) {
            read_rule();
        }
        return finish();
    }

  private:
    using body = std::vector<grammar::element>; // of a rule, every alternative closed by an `end`
    struct rule {
        uint32_t begin = 0; // its body among the elements
        uint32_t n = 0;     // 0: not defined
    };

    // ---- the text

    char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; } // it holds no zeros

    [[noreturn]] void fail(const std::string & why) const {
        std::string rest = text_.substr(at_, MAX_QUOTED);
        std::string quoted;
        decode_utf8(rest, quoted);
        throw gbnf_error("the grammar does not parse: " + why + " at " + (quoted.empty() ? "its end" : quoted));
    }

    // A comment ends with its line, which a CR ends, too.
    void skip_space(bool lines) {
        for (; at_ < text_.size(); at_++) {
            if (peek() == '#') {
                at_ = std::min(text_.find_first_of("\r\n", at_), text_.size());
            }
            const bool blank = peek() == ' ' || peek() == '\t' || (lines && (peek() == '\r' || peek() == '\n'));
            if (!blank) {
                return;
            }
        }
    }

    std::string_view read_name() {
        const size_t begin = at_;
        while (is_word(peek())) {
            at_++;
        }
        if (at_ == begin) {
            fail("expecting a name");
        }
        return std::string_view(text_).substr(begin, at_ - begin);
    }

    // Numbers above what any grammar can hold are all the same.
    uint32_t read_count() {
        if (!is_digit(peek())) {
            fail("expecting a number");
        }
        uint32_t n = 0;
        for (; is_digit(peek()); at_++) {
            n = uint32_t(std::min<uint64_t>(uint64_t(n) * 10 + uint64_t(peek() - '0'), MAX_ELEMENTS + 1));
        }
        return n;
    }

    uint32_t read_hex(size_t n_digits) {
        uint32_t value = 0;
        for (size_t i = 0; i < n_digits; i++, at_++) {
            const char c = peek();
            const int digit = is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
            if (digit < 0) {
                fail("expecting " + std::to_string(n_digits) + " hexadecimal digits");
            }
            value = value << 4 | uint32_t(digit);
        }
        return value;
    }

    uint32_t read_escape() {
        const char c = peek(1);
        switch (c) {
            case 'x': at_ += 2; return read_hex(2);
            case 'u': at_ += 2; return read_hex(4);
            case 'U': at_ += 2; return read_hex(8);
            case 't': at_ += 2; return '\t';
            case 'r': at_ += 2; return '\r';
            case 'n': at_ += 2; return '\n';
            case '\\':
            case '"':
            case '[':
            case ']':
            case '-': at_ += 2; return uint32_t(c);
            default: fail("unknown escape");
        }
    }

    // One code point; the text is UTF-8.
    uint32_t read_character() {
        if (at_ == text_.size()) {
            fail("unexpected end");
        }
        const uint8_t lead = uint8_t(peek());
        if (lead == '\\') {
            return read_escape();
        }
        at_++;
        if (lead < 0x80) {
            return lead;
        }
        const int n_more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
        uint32_t value = lead & (0x3Fu >> n_more);
        for (int i = 0; i < n_more; i++, at_++) {
            value = value << 6 | (uint8_t(peek()) & 0x3Fu);
        }
        return value;
    }

    // ---- rules

    uint32_t new_rule() {
        rules_.emplace_back();
        return uint32_t(rules_.size() - 1);
    }

    uint32_t rule_of(std::string_view name) {
        const auto [found, is_new] = names_.try_emplace(std::string(name), uint32_t(rules_.size()));
        return is_new ? new_rule() : found->second;
    }

    void define(uint32_t id, const body & elements) {
        rules_[id] = {uint32_t(table_.elements.size()), uint32_t(elements.size())};
        table_.elements.insert(table_.elements.end(), elements.begin(), elements.end());
    }

    // Counted here, where they come to be: bodies only move them.
    void add(body & to, grammar::kind what, uint32_t value) {
        if (++n_elements_ > MAX_ELEMENTS) {
            throw gbnf_error("the grammar grows too large");
        }
        to.push_back({what, value});
    }

    void read_rule() {
        const uint32_t id = rule_of(read_name());
        skip_space(false);
        if (text_.compare(at_, 3, "::=") != 0) {
            fail("expecting ::=");
        }
        at_ += 3;
        skip_space(true);
        define(id, read_alternatives(false)); // the last of several definitions counts, as in llama.cpp
        if (at_ < text_.size() && peek() != '\r' && peek() != '\n') {
            fail("expecting the end of the line");
        }
        skip_space(true);
    }

    body read_alternatives(bool nested) {
        body all;
        read_sequence(all, nested);
        while (peek() == '|') {
            at_++;
            add(all, grammar::kind::end, 0);
            skip_space(true);
            read_sequence(all, nested);
        }
        add(all, grammar::kind::end, 0);
        return all;
    }

    void read_sequence(body & all, bool nested) {
        const size_t begin = all.size();
        size_t symbol = begin; // where the last symbol begins, to which a repetition applies
        for (;;) {
            const char c = peek();
            if (c == '*' || c == '+' || c == '?' || c == '{') {
                if (symbol == all.size()) {
                    fail("expecting something to repeat");
                }
                read_repetition(all, symbol, nested);
            } else {
                const size_t before = all.size();
                if (!read_symbol(all)) {
                    return;
                }
                symbol = before;
            }
            skip_space(nested);
        }
    }

    bool read_symbol(body & all) {
        switch (peek()) {
            case '"': read_literal(all); return true;
            case '[': read_class(all); return true;
            case '<':
            case '!': read_token(all); return true;
            case '(': read_group(all); return true;
            case '.':
                at_++;
                add(all, grammar::kind::characters, set_of({{0, LAST_CODE_POINT}}));
                return true;
            default: break;
        }
        if (!is_word(peek())) {
            return false;
        }
        add(all, grammar::kind::call, rule_of(read_name()));
        return true;
    }

    void read_literal(body & all) {
        const uint32_t mark = read_leaf_mark();
        if (mark < leaves_.size()) {
            add_leaf(all, mark);
            return;
        }
        for (at_++; peek() != '"';) {
            const uint32_t c = read_character();
            add(all, grammar::kind::characters, set_of(c <= LAST_CODE_POINT ? ranges{{c, c}} : ranges()));
        }
        at_++;
    }

    // The index of a leaf, if the literal is its mark in quotation marks.
    uint32_t read_leaf_mark() {
        static constexpr size_t LENGTH = 10; // "\"mark\"", with four bytes of a mark
        if (leaves_.empty() || text_.compare(at_, 3, "\"\\\"") != 0 || text_.compare(at_ + 7, 3, "\\\"\"") != 0) {
            return UINT32_MAX;
        }
        const std::vector<uint32_t> mark = code_points(text_.substr(at_ + 3, 4));
        if (mark.size() != 1 || mark[0] < FIRST_LEAF_MARK || mark[0] >= FIRST_LEAF_MARK + leaves_.size()) {
            return UINT32_MAX;
        }
        at_ += LENGTH;
        return mark[0] - FIRST_LEAF_MARK;
    }

    void add_leaf(body & to, uint32_t leaf) {
        uint32_t & place = leaf_places_[leaf];
        const bool is_schema = leaves_[leaf].json.schema != nullptr;
        if (place == UINT32_MAX && is_schema) {
            place = uint32_t(table_.schemas.size());
            table_.schemas.push_back(leaves_[leaf].json);
        } else if (place == UINT32_MAX) {
            place = rule_of_words(*leaves_[leaf].words);
        }
        add(to, is_schema ? grammar::kind::schema : grammar::kind::call, place);
    }

    // A rule for each state; what calls last needs no return, so that the matcher walks them as the automaton that they are.
    uint32_t rule_of_words(const automaton & words) {
        if (words.start() == automaton::DEAD) {
            throw gbnf_error("no text is possible in some place");
        }
        const uint32_t first = uint32_t(rules_.size());
        for (size_t s = 0; s < words.n_states(); s++) {
            new_rule();
        }
        for (size_t s = 0; s < words.n_states(); s++) {
            body moves;
            for (const automaton::move & m : words.moves(int32_t(s))) {
                ranges set;
                for (const code_range & r : m.with) {
                    set.push_back({r.first, r.last});
                }
                add(moves, grammar::kind::characters, set_of(set));
                add(moves, grammar::kind::call, first + uint32_t(m.to));
                add(moves, grammar::kind::end, 0);
            }
            if (words.accepts(int32_t(s))) {
                add(moves, grammar::kind::end, 0);
            }
            define(first + uint32_t(s), moves);
        }
        return first + uint32_t(words.start());
    }

    // One of no characters at all is the empty text, as in llama.cpp.
    void read_class(body & all) {
        at_++;
        const bool negated = peek() == '^';
        at_ += negated;
        ranges set;
        bool empty = true;
        for (; peek() != ']'; empty = false) {
            const uint32_t first = read_character();
            uint32_t last = first;
            if (peek() == '-' && peek(1) != ']') {
                at_++;
                last = read_character();
            }
            if (first <= last && first <= LAST_CODE_POINT) {
                set.push_back({first, std::min(last, LAST_CODE_POINT)});
            }
        }
        at_++;
        if (!empty) {
            set = merged(std::move(set));
            add(all, grammar::kind::characters, set_of(negated ? complement(set) : set));
        }
    }

    void read_token(body & all) {
        const bool negated = peek() == '!';
        at_ += negated;
        if (peek() != '<') {
            fail("expecting <");
        }
        add(all, negated ? grammar::kind::other_token : grammar::kind::token, peek(1) == '[' ? read_token_id() : read_token_text());
    }

    uint32_t read_token_id() {
        at_ += 2;
        uint64_t id = 0;
        if (!is_digit(peek())) {
            fail("expecting a number");
        }
        for (; is_digit(peek()); at_++) {
            id = id * 10 + uint64_t(peek() - '0');
            if (id > UINT32_MAX) {
                fail("the token id is too large");
            }
        }
        if (text_.compare(at_, 2, "]>") != 0) {
            fail("expecting ]>");
        }
        at_ += 2;
        return uint32_t(id);
    }

    uint32_t read_token_text() {
        const size_t end = text_.find('>', at_);
        if (end == std::string::npos || end - at_ > MAX_TOKEN_BYTES) {
            fail("expecting > after the text of a token");
        }
        const std::vector<llama_token> ids = vocab_.tokenize(std::string_view(text_).substr(at_, end + 1 - at_), false, true);
        if (ids.size() != 1) {
            fail("this is no token");
        }
        at_ = end + 1;
        return uint32_t(ids[0]);
    }

    void read_group(body & all) {
        if (++depth_ > MAX_DEPTH) {
            throw gbnf_error("the grammar nests too deep");
        }
        at_++;
        skip_space(true);
        const uint32_t id = new_rule();
        define(id, read_alternatives(true));
        if (peek() != ')') {
            fail("expecting )");
        }
        at_++;
        depth_--;
        add(all, grammar::kind::call, id);
    }

    // ---- repetitions

    void read_repetition(body & all, size_t symbol, bool nested) {
        switch (text_[at_++]) {
            case '*': return repeat(all, symbol, 0, std::nullopt);
            case '+': return repeat(all, symbol, 1, std::nullopt);
            case '?': return repeat(all, symbol, 0, 1);
            default: break;
        }
        skip_space(nested);
        const uint32_t least = read_count();
        std::optional<uint32_t> most = least;
        skip_space(nested);
        if (peek() == ',') {
            at_++;
            skip_space(nested);
            most.reset();
            if (is_digit(peek())) {
                most = read_count();
                skip_space(nested);
            }
        }
        if (peek() != '}') {
            fail("expecting }");
        }
        at_++;
        if (most && *most < least) {
            throw gbnf_error("a repetition's lower bound is above its upper bound");
        }
        repeat(all, symbol, least, most);
    }

    // S{n,m} is n times S and then S', where S' ::= S S'' | "", and so on m - n times; S{n,} ends with S' ::= S S' | "".
    void repeat(body & all, size_t symbol, uint32_t least, std::optional<uint32_t> most) {
        const body one = named(body(all.begin() + ptrdiff_t(symbol), all.end()));
        all.resize(symbol);
        for (uint32_t i = 0; i < least; i++) {
            add(all, one[0].what, one[0].value);
        }
        const uint32_t n_optional = most ? *most - least : 1;
        std::optional<uint32_t> rest;
        for (uint32_t i = 0; i < n_optional; i++) {
            const uint32_t id = new_rule();
            body optional;
            add(optional, one[0].what, one[0].value);
            if (!most) {
                add(optional, grammar::kind::call, id);
            } else if (rest) {
                add(optional, grammar::kind::call, *rest);
            }
            add(optional, grammar::kind::end, 0);
            add(optional, grammar::kind::end, 0);
            define(id, optional);
            rest = id;
        }
        if (rest) {
            add(all, grammar::kind::call, *rest);
        }
    }

    // One element that means the same: what is repeated is not copied.
    body named(body symbol) {
        if (symbol.size() == 1) {
            return symbol;
        }
        const uint32_t id = new_rule();
        add(symbol, grammar::kind::end, 0);
        define(id, symbol);
        return {{grammar::kind::call, id}};
    }

    // ---- the table

    // Equal sets share one index.
    uint32_t set_of(const ranges & set) {
        std::string key(reinterpret_cast<const char *>(set.data()), set.size() * sizeof(grammar::range));
        const auto [found, is_new] = known_sets_.try_emplace(std::move(key), uint32_t(table_.sets.size()));
        if (is_new) {
            table_.sets.push_back(uint32_t(table_.ranges.size()));
            table_.ranges.insert(table_.ranges.end(), set.begin(), set.end());
        }
        return found->second;
    }

    grammar finish() {
        for (const auto & [name, id] : names_) {
            if (rules_[id].n == 0) {
                throw gbnf_error("the grammar does not define " + name.substr(0, MAX_QUOTED));
            }
        }
        const auto root = names_.find("root");
        if (root == names_.end()) {
            throw gbnf_error("the grammar does not define root");
        }
        for (const rule & r : rules_) {
            table_.rules.push_back(uint32_t(table_.alternatives.size()));
            bool begins = true;
            for (uint32_t at = r.begin; at < r.begin + r.n; at++) {
                if (begins) {
                    table_.alternatives.push_back(at);
                }
                begins = table_.elements[at].what == grammar::kind::end;
            }
        }
        table_.rules.push_back(uint32_t(table_.alternatives.size()));
        table_.sets.push_back(uint32_t(table_.ranges.size()));
        table_.start = uint32_t(table_.elements.size());
        table_.elements.push_back({grammar::kind::call, root->second});
        table_.elements.push_back({grammar::kind::end, 0});
        table_.shrink();
        return std::move(table_);
    }

    const vocabulary & vocab_; // borrowed
    const std::string & text_; // borrowed
    const std::vector<grammar_leaf> & leaves_; // borrowed
    std::vector<uint32_t> leaf_places_; // of each the index of its schema, or of the rule of its words
    size_t at_ = 0;
    size_t depth_ = 0;
    size_t n_elements_ = 0;
    std::unordered_map<std::string, uint32_t> names_;
    std::vector<rule> rules_;
    grammar table_;
    std::unordered_map<std::string, uint32_t> known_sets_;
};

}  // namespace

grammar parse_gbnf(const vocabulary & vocab, const std::string & text, const std::vector<grammar_leaf> & leaves) {
    if (text.size() > MAX_TEXT_BYTES || text.find('\0') != std::string::npos) {
        throw gbnf_error("the grammar is too large, or holds a zero byte");
    }
    if (!is_utf8(text)) {
        throw gbnf_error("the grammar is not UTF-8");
    }
    return gbnf_parser(vocab, text, leaves).parse();
}

}  // namespace lm
