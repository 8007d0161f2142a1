#include "string_masks.h"

#include <algorithm>
#include <unordered_map>

namespace lm {

static constexpr uint32_t INFINITE = automaton::INFINITE;
static constexpr size_t MAX_ENTRIES = 24; // of some 40 kB at 152 k tokens
static constexpr uint32_t MIN_SUBTREE = 16; // nodes below one that are worth a look at whether they are all alike

static void set(token_bits & bits, llama_token id) {
    bits[size_t(id) / 64] |= uint64_t(1) << (id % 64);
}

static void clear(token_bits & bits, llama_token id) {
    bits[size_t(id) / 64] &= ~(uint64_t(1) << (id % 64));
}

string_masks::string_masks(const string_tree & tree, size_t n_vocab) : tree_(tree), n_words_((n_vocab + 63) / 64) {}

token_bits string_masks::with_tails(const std::vector<bool> & tails) const {
    token_bits bits(n_words_);
    for (size_t i = 0; i < tails.size(); i++) {
        if (tails[i]) {
            for (const llama_token id : tree_.tail_ids()[i]) {
                set(bits, id);
            }
        }
    }
    return bits;
}

const string_masks::mask & string_masks::get(const automaton & words, int32_t state, uint32_t least, uint32_t most) {
    least = words.shortest(state) >= least ? 0 : least;
    most = words.longest(state) <= most ? INFINITE : most;
    if (least == 0 && most == INFINITE) {
        return unbounded(words, state);
    }
    const uint32_t slack = words.slack();
    const bool as_if_unbounded = slack != INFINITE && (slack == 0 || most == INFINITE || most >= uint64_t(tree_.depth()) + 1 + slack);
    if (!as_if_unbounded) {
        bounded_ = {};
        find(words, state, least, most, bounded_);
        return bounded_;
    }
    bounded_ = unbounded(words, state);
    for (const auto & [length, id] : tree_.by_length()) {
        if (length <= most) {
            break;
        }
        clear(bounded_.body, id);
    }
    if (most <= tree_.depth()) {
        for (const auto & [length, id] : tree_.cut()) {
            if (length >= most) { // no room for what is begun
                clear(bounded_.body, id);
            }
        }
    }
    for (auto & [mark, bits] : bounded_.tails) {
        for (const auto & [length, id] : tree_.closing()) {
            if (length < least || length > most) {
                clear(bits, id);
            }
        }
    }
    return bounded_;
}

const string_masks::mask & string_masks::unbounded(const automaton & words, int32_t state) {
    const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const entry & e) { return e.words == &words && e.state == state; });
    if (found != entries_.end()) {
        entries_.splice(entries_.begin(), entries_, found);
        return entries_.front().known;
    }
    if (entries_.size() == MAX_ENTRIES) {
        entries_.pop_back();
    }
    entries_.push_front({&words, state, {}});
    mask & out = entries_.front().known;
    if (words.is_open(state)) {
        out.body = tree_.open();
        out.tails.emplace_back(words.mark(state), token_bits(n_words_));
        for (const auto & [length, id] : tree_.closing()) {
            set(out.tails[0].second, id);
        }
    } else {
        find(words, state, 0, INFINITE, out);
    }
    return out;
}

void string_masks::find(const automaton & words, int32_t state, uint32_t least, uint32_t most, mask & out) const {
    out.body.resize(n_words_);
    const bool bounded = least > 0 || most != INFINITE;
    std::vector<int32_t> path(tree_.depth() + 1, state);
    const std::vector<string_tree::node> & nodes = tree_.nodes();
    const std::vector<llama_token> & ids = tree_.ids();
    std::unordered_map<uint64_t, bool> known_fits; // of what takes a search
    std::unordered_map<uint64_t, bool> known_cuts;
    const auto fits = [&](int32_t to, uint32_t depth, uint32_t needed, uint32_t room) {
        if (!bounded || words.shortest(to) > room || words.longest(to) < needed) {
            return !bounded;
        }
        if (words.shortest(to) >= needed || room == INFINITE || words.is_dense(to)) {
            return true;
        }
        const auto [found, is_new] = known_fits.try_emplace(uint64_t(depth) << 32 | uint32_t(to), false);
        if (is_new) {
            found->second = words.fits(to, needed, room);
        }
        return found->second;
    };
    const auto may_go_on = [&](int32_t here, uint32_t partial, uint32_t depth, uint32_t needed, uint32_t room) {
        if (words.is_open(here)) {
            return true;
        }
        const uint64_t key = bounded ? (uint64_t(depth) << 48) ^ (uint64_t(partial) << 32) ^ uint32_t(here) : uint64_t(partial) << 32 | uint32_t(here);
        const auto [found, is_new] = known_cuts.try_emplace(key, false);
        if (is_new) {
            const std::vector<code_range> & ranges = tree_.partials()[partial];
            found->second = std::any_of(ranges.begin(), ranges.end(), [&](const code_range & r) { return words.continues(here, r.first, r.last, needed, room); });
        }
        return found->second;
    };
    std::unordered_map<int32_t, uint32_t> known_loops;
    const auto loops = [&](int32_t here) { // groups of characters with all of which the state stays as it is
        const auto [found, is_new] = known_loops.try_emplace(here, 0);
        if (is_new) {
            uint32_t left = 0;
            for (const string_tree::group & g : string_tree::groups()) {
                left |= words.stays(here, g.range) ? 0 : 1u << g.index;
            }
            found->second = ~left;
        }
        return found->second;
    };
    const auto tails_of = [&](int32_t here) -> token_bits & {
        auto group = std::find_if(out.tails.begin(), out.tails.end(), [&](const auto & g) { return g.first == words.mark(here); });
        if (group == out.tails.end()) {
            group = out.tails.insert(group, {words.mark(here), token_bits(n_words_)});
        }
        return group->second;
    };
    for (uint32_t i = 0; i + 1 < nodes.size();) {
        const string_tree::node & n = nodes[i];
        const uint32_t needed = least > n.depth ? least - n.depth : 0;
        const uint32_t room = most == INFINITE ? INFINITE : most - std::min<uint32_t>(n.depth, most);
        if (n.depth > 0) {
            const int32_t to = n.depth > most ? automaton::DEAD : words.next(path[n.depth - 1], n.code_point);
            if (to == automaton::DEAD || !fits(to, n.depth, needed, room)) {
                i = n.depth == 1 ? tree_.first_after(words.last_alike(state, n.code_point)) : n.next;
                continue;
            }
            path[n.depth] = to;
        }
        const int32_t here = path[n.depth];
        if (!bounded && n.next - i >= MIN_SUBTREE && (n.groups & ~loops(here)) == 0) { // so it is with all below
            token_bits * const tails = words.accepts(here) ? &tails_of(here) : nullptr;
            for (uint32_t k = n.whole; k < nodes[n.next].whole; k++) {
                const string_tree::ending how = tree_.endings()[k];
                if (how == string_tree::ending::tail ? tails != nullptr : how == string_tree::ending::whole || may_go_on(here, tree_.ends()[k], 0, 0, INFINITE)) {
                    set(how == string_tree::ending::tail ? *tails : out.body, ids[k]);
                }
            }
            i = n.next;
            continue;
        }
        for (uint32_t k = n.whole; k < n.parts; k++) {
            set(out.body, ids[k]);
        }
        for (uint32_t k = n.parts; k < n.tails && room > 0; k++) {
            const uint32_t after = room == INFINITE ? INFINITE : room - 1;
            if (may_go_on(here, tree_.ends()[k], n.depth, needed > 0 ? needed - 1 : 0, after)) {
                set(out.body, ids[k]);
            }
        }
        if (n.tails < nodes[i + 1].whole && words.accepts(here) && needed == 0) {
            token_bits & tails = tails_of(here);
            for (uint32_t k = n.tails; k < nodes[i + 1].whole; k++) {
                set(tails, ids[k]);
            }
        }
        i++;
    }
}

}  // namespace lm
