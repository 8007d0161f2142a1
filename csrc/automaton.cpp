#include "automaton.h"

#include "json_value.h"

#include <algorithm>
#include <map>

namespace lm {

void add_range(code_set & set, uint32_t first, uint32_t last) {
    if (first <= last) {
        set.push_back({first, last});
    }
}

void normalize(code_set & set) {
    std::sort(set.begin(), set.end(), [](const code_range & a, const code_range & b) { return a.first < b.first; });
    code_set merged;
    for (const code_range & r : set) {
        if (!merged.empty() && r.first <= merged.back().last + 1) {
            merged.back().last = std::max(merged.back().last, r.last);
        } else {
            merged.push_back(r);
        }
    }
    set = std::move(merged);
}

code_set complement_of(const code_set & set) {
    code_set rest;
    uint32_t from = 0;
    for (const code_range & r : set) {
        if (r.first > from) {
            rest.push_back({from, r.first - 1});
        }
        from = r.last + 1;
    }
    if (from <= LAST_CODE_POINT) {
        rest.push_back({from, LAST_CODE_POINT});
    }
    return rest;
}

// ---- construction -----------------------------------------------------------------------------------------------------

automaton::automaton(std::vector<uint32_t> begins, std::vector<int32_t> table, std::vector<bool> accepts, std::vector<uint32_t> marks)
    : begins_(std::move(begins)), n_classes_(begins_.size()), table_(std::move(table)), accepts_(std::move(accepts)),
      marks_(std::move(marks)) {
    marks_.resize(accepts_.size());
    trim();
    for (uint32_t c = 0; c < 128; c++) {
        ascii_[c] = uint16_t(find_class(c));
    }
    measure();
}

uint32_t automaton::find_class(uint32_t code_point) const {
    return uint32_t(std::upper_bound(begins_.begin(), begins_.end(), code_point) - begins_.begin()) - 1;
}

// Keeps the states from which a word can end.
void automaton::trim() {
    const size_t n = accepts_.size();
    std::vector<std::vector<uint32_t>> from(n);
    for (size_t s = 0; s < n; s++) {
        for (size_t c = 0; c < n_classes_; c++) {
            const int32_t to = table_[s * n_classes_ + c];
            if (to >= 0 && (from[size_t(to)].empty() || from[size_t(to)].back() != s)) {
                from[size_t(to)].push_back(uint32_t(s));
            }
        }
    }
    std::vector<int32_t> moved(n, DEAD);
    std::vector<uint32_t> pending;
    for (size_t s = 0; s < n; s++) {
        if (accepts_[s]) {
            moved[s] = 0;
            pending.push_back(uint32_t(s));
        }
    }
    while (!pending.empty()) {
        const uint32_t s = pending.back();
        pending.pop_back();
        for (const uint32_t f : from[s]) {
            if (moved[f] == DEAD) {
                moved[f] = 0;
                pending.push_back(f);
            }
        }
    }
    int32_t kept = 0;
    for (size_t s = 0; s < n; s++) {
        moved[s] = moved[s] == DEAD ? DEAD : kept++;
    }
    start_ = n == 0 ? DEAD : moved[0];
    std::vector<int32_t> table(size_t(kept) * n_classes_);
    std::vector<bool> accepts(static_cast<size_t>(kept));
    std::vector<uint32_t> marks(static_cast<size_t>(kept));
    for (size_t s = 0; s < n; s++) {
        if (moved[s] == DEAD) {
            continue;
        }
        accepts[size_t(moved[s])] = accepts_[s];
        marks[size_t(moved[s])] = marks_[s];
        for (size_t c = 0; c < n_classes_; c++) {
            const int32_t to = table_[s * n_classes_ + c];
            table[size_t(moved[s]) * n_classes_ + c] = to < 0 ? DEAD : moved[size_t(to)];
        }
    }
    table_ = std::move(table);
    accepts_ = std::move(accepts);
    marks_ = std::move(marks);
}

static uint64_t n_in(uint32_t first, uint32_t last) { // surrogates are no text
    uint64_t n = uint64_t(last) - first + 1;
    const uint32_t low = std::max(first, 0xD800u);
    const uint32_t high = std::min(last, 0xDFFFu);
    return low <= high ? n - (high - low + 1) : n;
}

void automaton::measure() {
    const size_t n = accepts_.size();
    shortest_.assign(n, INFINITE);
    longest_.assign(n, 0);
    count_.assign(n, 0);
    open_.assign(n, false);
    dense_.assign(n, false);
    std::vector<std::vector<uint32_t>> from(n);
    std::vector<uint32_t> n_to(n);
    std::vector<std::vector<std::pair<uint32_t, uint64_t>>> to(n); // with how many code points lead there
    for (size_t s = 0; s < n; s++) {
        bool open = accepts_[s];
        for (size_t c = 0; c < n_classes_; c++) {
            const int32_t t = table_[s * n_classes_ + c];
            open = open && t == int32_t(s);
            if (t < 0) {
                continue;
            }
            const uint32_t last = c + 1 < n_classes_ ? begins_[c + 1] - 1 : LAST_CODE_POINT;
            const uint64_t size = n_in(begins_[c], last);
            if (!to[s].empty() && to[s].back().first == uint32_t(t)) {
                to[s].back().second += size;
            } else {
                to[s].push_back({uint32_t(t), size});
                from[size_t(t)].push_back(uint32_t(s));
                n_to[s]++;
            }
        }
        open_[s] = open;
    }
    std::vector<uint32_t> order; // by the shortest rest
    for (size_t s = 0; s < n; s++) {
        if (accepts_[s]) {
            shortest_[s] = 0;
            order.push_back(uint32_t(s));
        }
    }
    for (size_t i = 0; i < order.size(); i++) {
        for (const uint32_t f : from[order[i]]) {
            if (shortest_[f] == INFINITE) {
                shortest_[f] = shortest_[order[i]] + 1;
                order.push_back(f);
            }
        }
    }
    for (const uint32_t s : order) {
        bool dense = false;
        for (const auto & [t, size] : to[s]) {
            dense = dense || t == s || (shortest_[t] + 1 == shortest_[s] && dense_[t]) ||
                    (shortest_[s] == 0 && shortest_[t] <= 1 && shortest_[t] == 0 && dense_[t]);
        }
        dense_[s] = dense;
    }
    // Those that are on no circle and lead into none: from the ends on, counting down what is left to know.
    std::vector<uint32_t> ready;
    for (size_t s = 0; s < n; s++) {
        if (n_to[s] == 0) {
            ready.push_back(uint32_t(s));
        }
    }
    std::vector<bool> known(n);
    while (!ready.empty()) {
        const uint32_t s = ready.back();
        ready.pop_back();
        known[s] = true;
        uint64_t count = accepts_[s] ? 1 : 0;
        for (const auto & [t, size] : to[s]) {
            longest_[s] = std::max(longest_[s], longest_[t] + 1);
            count = count_[t] == INFINITE || size > INFINITE ? INFINITE : std::min<uint64_t>(INFINITE, count + size * count_[t]);
        }
        count_[s] = uint32_t(std::min<uint64_t>(count, INFINITE));
        for (const uint32_t f : from[s]) {
            if (--n_to[f] == 0) {
                ready.push_back(f);
            }
        }
    }
    for (size_t s = 0; s < n; s++) {
        if (!known[s]) {
            longest_[s] = INFINITE;
            count_[s] = INFINITE;
        }
        slack_ = dense_[s] && longest_[s] == INFINITE ? std::max(slack_, shortest_[s]) : INFINITE;
        endless_ = endless_ && count_[s] == INFINITE;
    }
}

automaton_ptr automaton::anything() {
    static const automaton_ptr all = std::make_shared<automaton>(std::vector<uint32_t>{0}, std::vector<int32_t>{0}, std::vector<bool>{true});
    return all;
}

automaton_ptr automaton::words(const std::vector<std::string> & all) {
    std::vector<std::map<uint32_t, int32_t>> tree(1);
    std::vector<bool> accepts(1);
    code_set used;
    for (const std::string & word : all) {
        int32_t at = 0;
        for (const uint32_t c : code_points(word)) {
            add_range(used, c, c);
            const auto [found, is_new] = tree[size_t(at)].try_emplace(c, int32_t(tree.size()));
            at = found->second;
            if (is_new) {
                tree.emplace_back();
                accepts.push_back(false);
            }
        }
        accepts[size_t(at)] = true;
    }
    std::vector<uint32_t> begins = {0};
    for (const code_range & r : used) {
        begins.push_back(r.first);
        begins.push_back(r.first + 1);
    }
    std::sort(begins.begin(), begins.end());
    begins.erase(std::unique(begins.begin(), begins.end()), begins.end());
    while (begins.back() > LAST_CODE_POINT) {
        begins.pop_back();
    }
    if (tree.size() * begins.size() > 8 * MAX_AUTOMATON_CELLS) {
        throw automaton_error("too many words");
    }
    std::vector<int32_t> table(tree.size() * begins.size(), DEAD);
    for (size_t s = 0; s < tree.size(); s++) {
        for (const auto & [c, to] : tree[s]) {
            const size_t at = size_t(std::lower_bound(begins.begin(), begins.end(), c) - begins.begin());
            table[s * begins.size() + at] = to;
        }
    }
    return std::make_shared<automaton>(std::move(begins), std::move(table), std::move(accepts));
}

automaton_ptr automaton::lengths(uint32_t least, uint32_t most) {
    const uint32_t n = (most == INFINITE ? least : most) + 1;
    if (n > MAX_AUTOMATON_STATES) {
        throw automaton_error("too long");
    }
    std::vector<int32_t> table(n);
    std::vector<bool> accepts(n);
    for (uint32_t i = 0; i < n; i++) {
        table[i] = i + 1 < n ? int32_t(i + 1) : most == INFINITE ? int32_t(i) : DEAD;
        accepts[i] = i >= least;
    }
    return std::make_shared<automaton>(std::vector<uint32_t>{0}, std::move(table), std::move(accepts));
}

// ---- questions --------------------------------------------------------------------------------------------------------

bool automaton::accepts(const std::string & text) const {
    int32_t state = start_;
    for (const uint32_t c : code_points(text)) {
        if (state == DEAD) {
            return false;
        }
        state = next(state, c);
    }
    return state != DEAD && accepts(state);
}

std::vector<automaton::move> automaton::moves(int32_t state) const {
    std::vector<move> all;
    for (size_t c = 0; c < n_classes_; c++) {
        const int32_t to = table_[size_t(state) * n_classes_ + c];
        if (to == DEAD) {
            continue;
        }
        const uint32_t first = begins_[c];
        const uint32_t last = c + 1 < n_classes_ ? begins_[c + 1] - 1 : LAST_CODE_POINT;
        auto known = std::find_if(all.begin(), all.end(), [&](const move & m) { return m.to == to; });
        if (known == all.end()) {
            known = all.insert(all.end(), move{{}, to});
        }
        add_range(known->with, first, std::min(last, 0xD7FFu));
        add_range(known->with, std::max(first, 0xE000u), last);
    }
    all.erase(std::remove_if(all.begin(), all.end(), [](const move & m) { return m.with.empty(); }), all.end());
    for (move & m : all) {
        normalize(m.with);
    }
    return all;
}

bool automaton::continues(int32_t state, uint32_t first, uint32_t last, uint32_t least, uint32_t most) const {
    int32_t before = DEAD;
    for (size_t c = find_class(first); c < n_classes_ && begins_[c] <= last; c++) {
        const int32_t to = table_[size_t(state) * n_classes_ + c];
        if (to != DEAD && to != before) {
            const uint32_t low = std::max(first, begins_[c]);
            const uint32_t high = std::min(last, c + 1 < n_classes_ ? begins_[c + 1] - 1 : LAST_CODE_POINT);
            if (low < 0xD800 || high > 0xDFFF) {
                if (fits(to, least, most)) {
                    return true;
                }
                before = to;
            }
        }
    }
    return false;
}

uint32_t automaton::last_alike(int32_t state, uint32_t code_point) const {
    const int32_t * const row = &table_[size_t(state) * n_classes_];
    size_t c = find_class(code_point) + 1;
    while (c < n_classes_ && row[c] == row[c - 1]) {
        c++;
    }
    return c < n_classes_ ? begins_[c] - 1 : LAST_CODE_POINT;
}

bool automaton::stays(int32_t state, code_range with) const {
    return next(state, with.first) == state && last_alike(state, with.first) >= with.last;
}

uint32_t automaton::only_next(int32_t state) const {
    uint32_t only = NONE;
    for (size_t c = 0; c < n_classes_; c++) {
        if (table_[size_t(state) * n_classes_ + c] == DEAD) {
            continue;
        }
        const uint32_t last = c + 1 < n_classes_ ? begins_[c + 1] - 1 : LAST_CODE_POINT;
        if (only != NONE || last != begins_[c]) {
            return NONE;
        }
        only = last;
    }
    return only;
}

// So many steps are taken to find a rest of a given length before the answer is no.
static constexpr size_t MAX_FIT_STEPS = 20000;

bool automaton::fits(int32_t state, uint32_t least, uint32_t most) const {
    const size_t s = size_t(state);
    if (least > most || shortest_[s] > most || longest_[s] < least) {
        return false;
    }
    if (shortest_[s] >= least || most == INFINITE || dense_[s]) {
        return true;
    }
    std::vector<uint32_t> here = {uint32_t(state)};
    std::vector<uint32_t> there;
    std::vector<uint32_t> seen(accepts_.size(), 0);
    size_t n_steps = 0;
    for (uint32_t length = 1; length <= most && !here.empty(); length++) {
        there.clear();
        for (const uint32_t from : here) {
            for (size_t c = 0; c < n_classes_; c++) {
                const int32_t to = table_[from * n_classes_ + c];
                if (++n_steps > MAX_FIT_STEPS) {
                    return false;
                }
                if (to == DEAD || seen[size_t(to)] == length) {
                    continue;
                }
                seen[size_t(to)] = length;
                const uint32_t left = most - length;
                if (length >= least ? shortest_[size_t(to)] <= left : dense_[size_t(to)] && shortest_[size_t(to)] <= left) {
                    return true;
                }
                if (shortest_[size_t(to)] <= left) {
                    there.push_back(uint32_t(to));
                }
            }
        }
        here.swap(there);
    }
    return false;
}

uint32_t automaton::count_between(uint32_t least, uint32_t most) const {
    static constexpr uint64_t ENOUGH = 1000000;
    static constexpr size_t MAX_CELLS = 200000;
    if (start_ == DEAD || !fits(start_, least, most)) {
        return 0;
    }
    uint64_t sum = 0;
    std::vector<uint64_t> rests(accepts_.begin(), accepts_.end()); // of so many code points
    std::vector<uint64_t> longer(rests.size());
    size_t n_cells = 0;
    for (uint32_t length = 0;; length++) {
        sum += length >= least ? rests[size_t(start_)] : 0;
        n_cells += table_.size();
        if (length == most || sum >= ENOUGH || n_cells > MAX_CELLS) {
            return uint32_t(std::max<uint64_t>(1, std::min(sum, ENOUGH)));
        }
        for (size_t s = 0; s < rests.size(); s++) {
            uint64_t n = 0;
            for (size_t c = 0; c < n_classes_; c++) {
                const int32_t to = table_[s * n_classes_ + c];
                const uint32_t last = c + 1 < n_classes_ ? begins_[c + 1] - 1 : LAST_CODE_POINT;
                n += to == DEAD ? 0 : n_in(begins_[c], last) * rests[size_t(to)];
            }
            longer[s] = std::min(n, ENOUGH);
        }
        rests.swap(longer);
    }
}

bool automaton::list(size_t most, std::vector<std::string> & words) const {
    if (start_ == DEAD) {
        return true;
    }
    if (count(start_) > most) {
        return false;
    }
    std::vector<std::pair<int32_t, std::string>> pending = {{start_, ""}};
    while (!pending.empty()) {
        const auto [state, text] = std::move(pending.back());
        pending.pop_back();
        if (accepts(state)) {
            words.push_back(text);
        }
        for (size_t c = n_classes_; c-- > 0;) {
            const int32_t to = table_[size_t(state) * n_classes_ + c];
            if (to == DEAD) {
                continue;
            }
            const uint32_t last = c + 1 < n_classes_ ? begins_[c + 1] - 1 : LAST_CODE_POINT;
            for (uint32_t p = last + 1; p-- > begins_[c];) {
                if (p < 0xD800 || p > 0xDFFF) {
                    pending.emplace_back(to, text);
                    append_utf8(pending.back().second, p);
                }
            }
        }
    }
    return true;
}

// ---- combinations -----------------------------------------------------------------------------------------------------

template <typename Combine>
automaton_ptr automaton::combine(const automaton & a, const automaton & b, Combine keep, size_t max_states) {
    std::vector<uint32_t> begins;
    std::set_union(a.begins_.begin(), a.begins_.end(), b.begins_.begin(), b.begins_.end(), std::back_inserter(begins));
    std::vector<uint32_t> in_a;
    std::vector<uint32_t> in_b;
    for (const uint32_t begin : begins) {
        in_a.push_back(a.find_class(begin));
        in_b.push_back(b.find_class(begin));
    }
    std::map<std::pair<int32_t, int32_t>, int32_t> known;
    std::vector<std::pair<int32_t, int32_t>> pairs;
    const auto intern = [&](int32_t x, int32_t y) -> int32_t {
        if (!keep(x != DEAD, y != DEAD, false)) { // neither can lead to a word
            return DEAD;
        }
        const auto [found, is_new] = known.try_emplace({x, y}, int32_t(pairs.size()));
        if (is_new) {
            pairs.push_back({x, y});
        }
        return found->second;
    };
    std::vector<int32_t> table;
    std::vector<bool> accepts;
    intern(a.start_, b.start_);
    for (size_t i = 0; i < pairs.size(); i++) {
        if (pairs.size() > max_states || pairs.size() * begins.size() > MAX_AUTOMATON_CELLS * 4) {
            throw automaton_error("the combination of its patterns is too large");
        }
        const auto [x, y] = pairs[i];
        accepts.push_back(keep(x != DEAD && a.accepts(x), y != DEAD && b.accepts(y), true));
        for (size_t c = 0; c < begins.size(); c++) {
            table.push_back(intern(x == DEAD ? DEAD : a.table_[size_t(x) * a.n_classes_ + in_a[c]],
                                   y == DEAD ? DEAD : b.table_[size_t(y) * b.n_classes_ + in_b[c]]));
        }
    }
    return std::make_shared<automaton>(std::move(begins), std::move(table), std::move(accepts));
}

automaton::joint automaton::run_together(const std::vector<automaton_ptr> & all, size_t max_states) {
    joint j;
    j.begins = {0};
    for (const automaton_ptr & a : all) {
        j.begins.insert(j.begins.end(), a->begins_.begin(), a->begins_.end());
    }
    std::sort(j.begins.begin(), j.begins.end());
    j.begins.erase(std::unique(j.begins.begin(), j.begins.end()), j.begins.end());
    std::map<std::vector<int32_t>, int32_t> known;
    std::vector<std::vector<int32_t>> states(1);
    for (const automaton_ptr & a : all) {
        states[0].push_back(a->start_);
    }
    known[states[0]] = 0;
    for (size_t i = 0; i < states.size(); i++) {
        if (states.size() > max_states || states.size() * j.begins.size() > MAX_AUTOMATON_CELLS) {
            throw automaton_error("the combination of its patterns is too large");
        }
        uint32_t accepted = 0;
        for (size_t k = 0; k < all.size(); k++) {
            const int32_t s = states[i][k];
            accepted |= s != DEAD && all[k]->accepts(s) ? 1u << k : 0;
        }
        j.accepted.push_back(accepted);
        for (const uint32_t begin : j.begins) {
            std::vector<int32_t> to;
            for (size_t k = 0; k < all.size(); k++) {
                const int32_t s = states[i][k];
                to.push_back(s == DEAD ? DEAD : all[k]->table_[size_t(s) * all[k]->n_classes_ + all[k]->find_class(begin)]);
            }
            const auto [found, is_new] = known.try_emplace(to, int32_t(states.size()));
            if (is_new) {
                states.push_back(std::move(to));
            }
            j.table.push_back(found->second);
        }
    }
    return j;
}

automaton_ptr automaton::both(const automaton & a, const automaton & b) {
    return combine(a, b, [](bool x, bool y, bool) { return x && y; }, MAX_AUTOMATON_STATES);
}

automaton_ptr automaton::either(const automaton & a, const automaton & b) {
    return combine(a, b, [](bool x, bool y, bool) { return x || y; }, MAX_AUTOMATON_STATES);
}

automaton_ptr automaton::complement() const {
    return combine(*anything(), *this, [](bool x, bool y, bool at_end) { return at_end ? x && !y : x; }, MAX_AUTOMATON_STATES);
}

}  // namespace lm
