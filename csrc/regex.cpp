#include "regex.h"

#include "json_value.h"

#include <algorithm>
#include <map>

namespace lm {

static constexpr int MAX_DEPTH = 100;         // of parentheses
static constexpr size_t MAX_PLACES = 50000;   // of the expression with its repetitions written out
static constexpr size_t MAX_STEPS = 6000000;  // of building one automaton: a tenth of a second
static constexpr uint32_t UNBOUNDED = UINT32_MAX;

namespace {

struct tree {
    enum class kind { set, sequence, choice, repeat, begin, end, ahead, not_ahead };

    kind what = kind::sequence;
    code_set set;
    std::vector<tree> children;
    uint32_t least = 0;
    uint32_t most = 0;
};

const code_set DIGITS = {{'0', '9'}};
const code_set WORD = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const code_set SPACE = {{'\t', '\r'}, {' ', ' '}, {0xA0, 0xA0}, {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029},
                        {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
const code_set LINE_ENDS = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

class parser {
  public:
    explicit parser(const std::string & text) : text_(code_points(text)) {}

    tree parse() {
        tree t = parse_choice(0);
        if (at_ != text_.size()) {
            fail("an unmatched ')'");
        }
        if (!declined_.empty()) {
            decline(declined_);
        }
        return t;
    }

  private:
    [[noreturn]] void fail(const std::string & why) const { throw malformed_error(why); }
    [[noreturn]] void decline(const std::string & why) const { throw automaton_error(why); }

    bool is(uint32_t c, size_t ahead = 0) const { return at_ + ahead < text_.size() && text_[at_ + ahead] == c; }
    bool skip(uint32_t c) {
        const bool there = is(c);
        at_ += there;
        return there;
    }

    tree parse_choice(int depth) {
        if (depth > MAX_DEPTH) {
            decline("parentheses nest too deep");
        }
        tree choice;
        choice.what = tree::kind::choice;
        do {
            choice.children.push_back(parse_sequence(depth));
        } while (skip('|'));
        if (choice.children.size() == 1) {
            return std::move(choice.children[0]);
        }
        return choice;
    }

    tree parse_sequence(int depth) {
        tree sequence;
        while (at_ < text_.size() && !is('|') && !is(')')) {
            sequence.children.push_back(parse_repeat(depth));
        }
        return sequence;
    }

    tree parse_repeat(int depth) {
        tree item = parse_item(depth);
        for (;;) {
            uint32_t least = 0;
            uint32_t most = UNBOUNDED;
            if (skip('*')) {
            } else if (skip('+')) {
                least = 1;
            } else if (skip('?')) {
                most = 1;
            } else if (!is('{') || !parse_counts(least, most)) {
                return item;
            }
            skip('?'); // lazy: the same language
            if (is('+')) {
                decline("a possessive quantifier");
            }
            if (item.what == tree::kind::begin || item.what == tree::kind::end || item.what == tree::kind::ahead ||
                item.what == tree::kind::not_ahead) {
                decline("a quantifier after an assertion");
            }
            tree repeat;
            repeat.what = tree::kind::repeat;
            repeat.least = least;
            repeat.most = most;
            repeat.children.push_back(std::move(item));
            item = std::move(repeat);
        }
    }

    bool parse_number(uint32_t & n) {
        const size_t begin = at_;
        uint64_t value = 0;
        while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
            value = std::min<uint64_t>(value * 10 + (text_[at_] - '0'), MAX_PLACES + 1);
            at_++;
        }
        n = uint32_t(value);
        return at_ > begin;
    }

    // False, and nothing moved, if the brace is one for itself.
    bool parse_counts(uint32_t & least, uint32_t & most) {
        const size_t begin = at_++;
        bool good = parse_number(least);
        if (!good && is(',')) {
            declined_ = "a repetition without a lower bound"; // text to ECMA, a repetition to Python: who knows
        }
        most = least;
        if (good && skip(',')) {
            most = UNBOUNDED;
            if (!is('}')) {
                good = parse_number(most);
            }
        }
        if (!good || !skip('}')) {
            at_ = begin;
            return false;
        }
        if (least > most) {
            fail("a repetition out of order");
        }
        return true;
    }

    tree of_set(code_set set) {
        normalize(set);
        tree t;
        t.what = tree::kind::set;
        t.set = std::move(set);
        return t;
    }

    tree parse_item(int depth) {
        const uint32_t c = text_[at_++];
        switch (c) {
            case '(': return parse_group(depth);
            case '[': return of_set(parse_class());
            case '.': return of_set(complement_of(LINE_ENDS));
            case '^': return assertion(tree::kind::begin);
            case '$': return assertion(tree::kind::end);
            case '\\': return of_set(parse_escape(false));
            case '*': case '+': case '?': fail("nothing to repeat");
            case '{':
                at_--;
                {
                    uint32_t least;
                    uint32_t most;
                    if (parse_counts(least, most)) {
                        fail("nothing to repeat");
                    }
                }
                at_++;
                return of_set({{c, c}});
            default: return of_set({{c, c}});
        }
    }

    tree assertion(tree::kind what) {
        tree t;
        t.what = what;
        return t;
    }

    tree parse_group(int depth) {
        tree::kind ahead = tree::kind::sequence;
        if (skip('?')) {
            if (skip('=')) {
                ahead = tree::kind::ahead;
            } else if (skip('!')) {
                ahead = tree::kind::not_ahead;
            } else if (is('<') && !is('=', 1) && !is('!', 1)) {
                while (at_ < text_.size() && !is('>')) {
                    at_++;
                }
                skip('>');
            } else if (!skip(':')) {
                decline("a kind of group that is not known");
            }
        }
        tree inside = parse_choice(depth + 1);
        if (!skip(')')) {
            fail("a '(' without a ')'");
        }
        if (ahead == tree::kind::sequence) {
            return inside;
        }
        tree t;
        t.what = ahead;
        t.children.push_back(std::move(inside));
        return t;
    }

    uint32_t parse_hex(size_t n) {
        uint32_t value = 0;
        for (size_t i = 0; i < n; i++, at_++) {
            const uint32_t c = at_ < text_.size() ? text_[at_] : 0;
            const int digit = c >= '0' && c <= '9' ? int(c) - '0' : c >= 'a' && c <= 'f' ? int(c) - 'a' + 10 : c >= 'A' && c <= 'F' ? int(c) - 'A' + 10 : -1;
            if (digit < 0) {
                fail("a bad escape");
            }
            value = value << 4 | uint32_t(digit);
        }
        return value;
    }

    code_set parse_escape(bool in_class) {
        if (at_ == text_.size()) {
            fail("a '\\' at the end");
        }
        const uint32_t c = text_[at_++];
        switch (c) {
            case 'd': return DIGITS;
            case 'D': return complement_of(DIGITS);
            case 'w': return WORD;
            case 'W': return complement_of(WORD);
            case 's': return SPACE;
            case 'S': return complement_of(SPACE);
            case 't': return {{'\t', '\t'}};
            case 'n': return {{'\n', '\n'}};
            case 'r': return {{'\r', '\r'}};
            case 'f': return {{'\f', '\f'}};
            case 'v': return {{'\v', '\v'}};
            case '0': return {{0, 0}};
            case 'x': return single(parse_hex(2));
            case 'u': return parse_unicode_escape();
            case 'c': {
                const uint32_t letter = at_ < text_.size() ? text_[at_++] : 0;
                if (!(letter >= 'a' && letter <= 'z') && !(letter >= 'A' && letter <= 'Z')) {
                    fail("a bad escape");
                }
                return single(letter & 31);
            }
            case 'b':
                if (in_class) {
                    return {{'\b', '\b'}};
                }
                decline("a word boundary");
            default: break;
        }
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) {
            decline(std::string("the escape \\") + char(c));
        }
        return single(c);
    }

    static code_set single(uint32_t c) { return {{c, c}}; }

    code_set parse_unicode_escape() {
        if (skip('{')) {
            uint32_t value = 0;
            while (at_ < text_.size() && !is('}')) {
                value = value << 4 | parse_hex(1);
                if (value > LAST_CODE_POINT) {
                    fail("a bad escape");
                }
            }
            if (!skip('}')) {
                fail("a bad escape");
            }
            return single(value);
        }
        const uint32_t high = parse_hex(4);
        if (high >= 0xD800 && high < 0xDC00 && is('\\') && is('u', 1)) {
            const size_t before = at_;
            at_ += 2;
            const uint32_t low = parse_hex(4);
            if (low >= 0xDC00 && low < 0xE000) {
                return single(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00));
            }
            at_ = before;
        }
        return single(high);
    }

    code_set parse_class() {
        const bool negated = skip('^');
        code_set all;
        while (!is(']')) {
            if (at_ == text_.size()) {
                fail("a '[' without a ']'");
            }
            code_set low = parse_class_item();
            if (!is('-') || is(']', 1)) {
                all.insert(all.end(), low.begin(), low.end());
                continue;
            }
            at_++;
            if (at_ == text_.size()) {
                fail("a '[' without a ']'");
            }
            code_set high = parse_class_item();
            const auto is_single = [](const code_set & set) { return set.size() == 1 && set[0].first == set[0].last; };
            if (!is_single(low) || !is_single(high)) { // [\w-.]: the '-' is one for itself
                all.insert(all.end(), low.begin(), low.end());
                all.insert(all.end(), high.begin(), high.end());
                add_range(all, '-', '-');
                continue;
            }
            if (low[0].first > high[0].first) {
                fail("a range out of order");
            }
            add_range(all, low[0].first, high[0].first);
        }
        at_++;
        normalize(all);
        return negated ? complement_of(all) : all;
    }

    code_set parse_class_item() {
        const uint32_t c = text_[at_++];
        return c == '\\' ? parse_escape(true) : single(c);
    }

    std::vector<uint32_t> text_;
    size_t at_ = 0;
    std::string declined_; // why, once all of it is read
};

// ---- the nondeterministic automaton -----------------------------------------------------------------------------------

struct place {
    enum class kind : uint8_t { set, split, begin, end, accept };

    kind what;
    uint32_t set = 0;
    uint32_t next = 0;
    uint32_t other = 0; // of a split
};

class builder {
  public:
    builder() { accept_ = add({place::kind::accept}); }

    uint32_t accept() const { return accept_; }

    // The place from which the tree is matched and `next` follows.
    uint32_t build(const tree & t, uint32_t next) {
        switch (t.what) {
            case tree::kind::set: return add({place::kind::set, set_id(t.set), next});
            case tree::kind::begin: return add({place::kind::begin, 0, next});
            case tree::kind::end: return add({place::kind::end, 0, next});
            case tree::kind::ahead:
            case tree::kind::not_ahead: throw automaton_error("look-ahead that is not at the beginning");
            case tree::kind::sequence:
                for (size_t i = t.children.size(); i-- > 0;) {
                    next = build(t.children[i], next);
                }
                return next;
            case tree::kind::choice: {
                uint32_t at = build(t.children.back(), next);
                for (size_t i = t.children.size() - 1; i-- > 0;) {
                    const uint32_t first = build(t.children[i], next);
                    at = add({place::kind::split, 0, first, at});
                }
                return at;
            }
            case tree::kind::repeat: break;
        }
        const tree & inside = t.children[0];
        uint32_t at = next;
        if (t.most == UNBOUNDED) {
            at = add({place::kind::split, 0, 0, next});
            const uint32_t body = build(inside, at);
            places_[at].next = body;
        } else {
            for (uint32_t i = t.least; i < t.most; i++) {
                at = add({place::kind::split, 0, build(inside, at), next});
            }
        }
        for (uint32_t i = 0; i < t.least; i++) {
            at = build(inside, at);
        }
        return at;
    }

    automaton_ptr determine(uint32_t start) {
        std::vector<uint32_t> begins = {0};
        for (const code_set & set : sets_) {
            for (const code_range & r : set) {
                begins.push_back(r.first);
                begins.push_back(r.last + 1);
            }
        }
        std::sort(begins.begin(), begins.end());
        begins.erase(std::unique(begins.begin(), begins.end()), begins.end());
        while (begins.back() > LAST_CODE_POINT) {
            begins.pop_back();
        }
        const size_t n_classes = begins.size();
        std::vector<std::vector<uint32_t>> classes_of(sets_.size());
        for (size_t s = 0; s < sets_.size(); s++) {
            for (const code_range & r : sets_[s]) {
                for (size_t c = size_t(std::lower_bound(begins.begin(), begins.end(), r.first) - begins.begin());
                     c < n_classes && begins[c] <= r.last; c++) {
                    classes_of[s].push_back(uint32_t(c));
                }
            }
        }
        std::map<std::vector<uint32_t>, int32_t> known;
        std::vector<std::vector<uint32_t>> states;
        std::vector<bool> accepts;
        std::vector<int32_t> table;
        // '^' holds in the first state alone, so that one is not found again
        std::vector<uint32_t> closed = close({start}, true, false);
        accepts.push_back(ends(close({start}, true, true)));
        states.push_back(closed);
        std::vector<std::vector<uint32_t>> targets(n_classes);
        for (size_t i = 0; i < states.size(); i++) {
            if (states.size() > MAX_AUTOMATON_STATES || states.size() * n_classes > MAX_AUTOMATON_CELLS) {
                throw automaton_error("the expression is too large");
            }
            for (auto & t : targets) {
                t.clear();
            }
            for (const uint32_t p : states[i]) {
                if (places_[p].what == place::kind::set) {
                    for (const uint32_t c : classes_of[places_[p].set]) {
                        targets[c].push_back(places_[p].next);
                        spend(1);
                    }
                }
            }
            std::map<std::vector<uint32_t>, int32_t> of_targets;
            for (size_t c = 0; c < n_classes; c++) {
                int32_t to = automaton::DEAD;
                if (!targets[c].empty()) {
                    const auto [same, is_first] = of_targets.try_emplace(targets[c], 0);
                    if (is_first) {
                        std::vector<uint32_t> set = close(targets[c], false, false);
                        const auto [found, is_new] = known.try_emplace(set, int32_t(states.size()));
                        if (is_new) {
                            accepts.push_back(ends(close(targets[c], false, true)));
                            states.push_back(std::move(set));
                        }
                        same->second = found->second;
                    }
                    to = same->second;
                }
                table.push_back(to);
            }
        }
        return std::make_shared<automaton>(std::move(begins), std::move(table), std::move(accepts));
    }

    uint32_t any_loop(uint32_t next) { // any text, then `next`
        const uint32_t at = add({place::kind::split, 0, 0, next});
        const uint32_t any = add({place::kind::set, set_id({{0, LAST_CODE_POINT}}), at});
        places_[at].next = any;
        return at;
    }

  private:
    uint32_t add(place p) {
        if (places_.size() >= MAX_PLACES) {
            throw automaton_error("the expression is too large");
        }
        places_.push_back(p);
        return uint32_t(places_.size() - 1);
    }

    uint32_t set_id(const code_set & set) {
        for (size_t i = 0; i < sets_.size() && i < 200; i++) {
            if (sets_[i].size() == set.size() && std::equal(set.begin(), set.end(), sets_[i].begin(), [](const code_range & a, const code_range & b) {
                    return a.first == b.first && a.last == b.last;
                })) {
                return uint32_t(i);
            }
        }
        sets_.push_back(set);
        return uint32_t(sets_.size() - 1);
    }

    void spend(size_t n) {
        n_steps_ += n;
        if (n_steps_ > MAX_STEPS) {
            throw automaton_error("the expression is too ambiguous");
        }
    }

    // Where one stands without another character, sorted: the places of sets, and whether the accepting one is among them.
    std::vector<uint32_t> close(const std::vector<uint32_t> & from, bool at_begin, bool at_end) {
        mark_++;
        seen_.resize(places_.size());
        std::vector<uint32_t> pending = from;
        std::vector<uint32_t> found;
        while (!pending.empty()) {
            const uint32_t p = pending.back();
            pending.pop_back();
            if (seen_[p] == mark_) {
                continue;
            }
            seen_[p] = mark_;
            spend(1);
            const place & here = places_[p];
            switch (here.what) {
                case place::kind::split: pending.push_back(here.other); pending.push_back(here.next); break;
                case place::kind::begin: if (at_begin) { pending.push_back(here.next); } break;
                case place::kind::end:
                    if (at_end) {
                        pending.push_back(here.next);
                    } else {
                        found.push_back(p);
                    }
                    break;
                default: found.push_back(p);
            }
        }
        std::sort(found.begin(), found.end());
        return found;
    }

    bool ends(const std::vector<uint32_t> & closed) const {
        return std::binary_search(closed.begin(), closed.end(), accept_);
    }

    std::vector<place> places_;
    std::vector<code_set> sets_;
    std::vector<uint32_t> seen_;
    uint32_t mark_ = 0;
    uint32_t accept_;
    size_t n_steps_ = 0;
};

automaton_ptr compile_tree(const tree & t, bool whole, bool from_begin, bool to_end) {
    builder b;
    uint32_t next = whole || to_end ? b.accept() : b.any_loop(b.accept());
    uint32_t at = b.build(t, next);
    if (!whole && !from_begin) {
        at = b.any_loop(at);
    }
    return b.determine(at);
}

bool is_assertion(const tree & t) {
    return t.what == tree::kind::ahead || t.what == tree::kind::not_ahead;
}

// Look-ahead where the text begins is an intersection.
automaton_ptr compile_alternative(tree t, bool whole) {
    if (t.what == tree::kind::choice) {
        bool looks = false;
        for (const tree & child : t.children) {
            for (const tree & item : child.children) {
                looks = looks || is_assertion(item);
            }
        }
        if (!looks) {
            return compile_tree(t, whole, false, false);
        }
        automaton_ptr all;
        for (tree & child : t.children) {
            automaton_ptr one = compile_alternative(std::move(child), whole);
            all = all ? automaton::either(*all, *one) : one;
        }
        return all;
    }
    if (t.what != tree::kind::sequence) {
        return compile_tree(t, whole, false, false);
    }
    bool anchored = whole;
    size_t n = 0;
    std::vector<const tree *> looks;
    while (n < t.children.size() && (t.children[n].what == tree::kind::begin || is_assertion(t.children[n]))) {
        if (t.children[n].what == tree::kind::begin) {
            anchored = true;
        } else {
            looks.push_back(&t.children[n]);
        }
        n++;
    }
    if (looks.empty()) {
        return compile_tree(t, whole, false, false);
    }
    if (!anchored) {
        throw automaton_error("look-ahead that is not at the beginning");
    }
    tree rest;
    rest.children.assign(t.children.begin() + int64_t(n), t.children.end());
    automaton_ptr all = compile_tree(rest, whole, true, false);
    for (const tree * look : looks) {
        automaton_ptr seen = compile_tree(look->children[0], false, true, false);
        all = automaton::both(*all, look->what == tree::kind::ahead ? *seen : *seen->complement());
    }
    return all;
}

}  // namespace

static constexpr size_t MAX_EXPRESSION = 20000; // bytes; the parser recurses

bool is_regex(const std::string & expression) {
    try {
        if (expression.size() <= MAX_EXPRESSION) {
            parser(expression).parse();
        }
        return true;
    } catch (const malformed_error &) {
        return false;
    } catch (const automaton_error &) {
        return true;
    }
}

automaton_ptr compile_regex(const std::string & expression, bool whole) {
    if (expression.size() > MAX_EXPRESSION) {
        throw automaton_error("the expression is too long");
    }
    return compile_alternative(parser(expression).parse(), whole);
}

}  // namespace lm
