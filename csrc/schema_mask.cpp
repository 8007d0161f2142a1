// The part of a walk that answers for all tokens at once where it stands within strings.
#include "json_value.h"
#include "schema_walk.h"

#include <algorithm>

namespace lm {

static constexpr uint32_t INFINITE = automaton::INFINITE;

bool schema_walk::is_in_string(const place & at) const {
    return at.characters.in_string && !at.characters.raw && at.characters.at == json_lexer::part::none;
}

static void set(token_bits & bits, llama_token id) {
    bits[size_t(id) / 64] |= uint64_t(1) << (id % 64);
}

static void merge(token_bits & bits, const token_bits & more) {
    for (size_t i = 0; i < bits.size(); i++) {
        bits[i] |= more[i];
    }
}

static void append(std::vector<llama_token> & ids, const token_bits & bits) {
    for (size_t block = 0; block < bits.size(); block++) {
        llama_token id = llama_token(block * 64);
        for (uint64_t rest = bits[block]; rest != 0; rest >>= 1, id++) {
            if (rest & 1) {
                ids.push_back(id);
            }
        }
    }
}

// The child of a node that is for that character; 0: there is none.
static uint32_t child_of(const string_tree & tree, uint32_t node, uint32_t code_point) {
    const std::vector<string_tree::node> & nodes = tree.nodes();
    for (uint32_t i = node + 1; i < nodes[node].next; i = nodes[i].next) {
        if (nodes[i].code_point >= code_point) {
            return nodes[i].code_point == code_point ? i : 0;
        }
    }
    return 0;
}

static void append_all(std::vector<llama_token> & ids, const string_tree & tree, uint32_t node, bool only_tails) {
    const uint32_t first = only_tails ? tree.nodes()[node].tails : tree.nodes()[node].whole;
    ids.insert(ids.end(), tree.ids().begin() + first, tree.ids().begin() + tree.nodes()[node + 1].whole);
}

bool schema_walk::find_tokens(const place & at, size_t thread_index, string_masks & masks, token_bits & bits, std::vector<llama_token> & doubtful,
                              std::vector<closing> & closings) {
    const thread & t = at.threads[thread_index];
    word_begin_ = at.word_begin;
    word_.resize(at.n_word);
    if (t.at != mode::string && t.at != mode::name) {
        return true; // it ends with the next byte, whatever that is
    }
    if (t.unlike != 0) {
        find_alike(t.unlike, masks.tree(), at.n_text, doubtful);
    }
    if (t.at == mode::name) {
        return find_name_tokens(at, t, masks, bits, doubtful, closings);
    }
    const schema::string_node & s = schema_->strings[t.node];
    const uint32_t least = s.least > t.count ? s.least - t.count : 0;
    const uint32_t most = s.most == INFINITE ? INFINITE : s.most - t.count;
    const string_masks::mask & m = masks.get(*s.words, int32_t(t.place), least, most);
    merge(bits, m.body);
    if (m.tails.empty()) {
        return true;
    }
    if (frames_[t.frame].strict) { // what follows depends on what the string was
        for (const auto & [mark, ahead] : m.tails) {
            append(doubtful, ahead);
        }
        return true;
    }
    closings.emplace_back();
    closings.back().ahead = m.tails[0].second;
    for (size_t i = 1; i < m.tails.size(); i++) {
        merge(closings.back().ahead, m.tails[i].second);
    }
    close_string(at, t, closings.back());
    return true;
}

// The value that the thread reads is whole with the string that it is in.
void schema_walk::close_string(const place & at, const thread & t, closing & to) {
    from_ = &at;
    to_ = {};
    n_text_ = at.n_text;
    word_begin_ = at.word_begin;
    n_word_ = at.n_word;
    to.at.n_text = at.n_text;
    to.at.word_begin = at.word_begin;
    to.at.n_word = at.n_word;
    out_ = &to.at.threads;
    if (t.at == mode::string) {
        finish(t);
        return;
    }
    put(t); // behind a name
}

// ---- names ------------------------------------------------------------------------------------------------------------

bool schema_walk::find_name_tokens(const place & at, const thread & t, string_masks & masks, token_bits & bits, std::vector<llama_token> & doubtful,
                                   std::vector<closing> & closings) {
    const frame f = frames_[t.frame];
    const schema::object_node & o = schema_->objects[f.node];
    if (t.place != NEVER_MET) {
        find_listed(t, masks.tree(), bits, doubtful);
    }
    if (t.count == NEVER_MET) {
        return true;
    }
    if (!o.others->is_endless()) {
        return false;
    }
    const string_masks::mask & m = masks.get(*o.others, int32_t(t.count), 0, INFINITE);
    merge(bits, m.body);
    for (uint32_t w = f.list; w != 0; w = words_[w].before) { // none comes twice
        const std::string & used = words_[w].text;
        const std::string_view begun = word();
        if (used.compare(0, begun.size(), begun) != 0) {
            continue;
        }
        uint32_t node = 0;
        bool is_there = true;
        for (const uint32_t c : code_points(used.substr(begun.size()))) {
            node = child_of(masks.tree(), node, c);
            is_there = node != 0;
            if (!is_there) {
                break;
            }
        }
        if (is_there) {
            append_all(doubtful, masks.tree(), node, true);
        }
    }
    for (const auto & [mark, ahead] : m.tails) {
        if (f.strict) {
            append(doubtful, ahead);
            continue;
        }
        const schema::value_node & value = schema_->values[mark];
        if (value.nesting == NEVER_MET || f.depth + value.nesting > MAX_JSON_NESTING) {
            continue;
        }
        thread next;
        next.at = mode::colon;
        next.node = mark;
        frame after = f;
        after.n++;
        after.next = o.n_ordered;
        words_.push_back({f.list, "\xFF"}); // some name that is not there yet
        after.list = uint32_t(words_.size() - 1);
        next.frame = add_frame(after);
        closings.emplace_back();
        closings.back().ahead = ahead;
        close_string(at, next, closings.back());
    }
    return true;
}

// The tokens along the names that are listed. Those that end one are doubtful, also where it may not follow: then no other name
// is spelled so.
void schema_walk::find_listed(const thread & t, const string_tree & tree, token_bits & bits, std::vector<llama_token> & doubtful) const {
    struct step {
        uint32_t name; // in the tree of names
        uint32_t node; // in that of tokens
        bool may_follow;
    };
    const frame & f = frames_[t.frame];
    const schema::object_node & o = schema_->objects[f.node];
    std::vector<step> pending = {{t.place, 0, has_listed(f, o, t.place)}};
    while (!pending.empty()) {
        const step at = pending.back();
        pending.pop_back();
        const string_tree::node & n = tree.nodes()[at.node];
        for (uint32_t k = n.whole; at.may_follow && k < n.parts; k++) {
            set(bits, tree.ids()[k]);
        }
        if (o.names[at.name].property >= 0) {
            append_all(doubtful, tree, at.node, true);
        }
        for (uint32_t child = o.names[at.name].child; child != 0; child = o.names[child].sibling) {
            const bool may_follow = at.may_follow && has_listed(f, o, child);
            if (!may_follow && t.count == NEVER_MET) {
                continue;
            }
            const uint32_t c = o.names[child].code_point;
            for (uint32_t k = n.parts; may_follow && k < n.tails; k++) {
                const std::vector<code_range> & ranges = tree.partials()[tree.ends()[k]];
                if (std::any_of(ranges.begin(), ranges.end(), [&](const code_range & r) { return r.first <= c && c <= r.last; })) {
                    set(bits, tree.ids()[k]);
                }
            }
            if (const uint32_t to = child_of(tree, at.node, c); to != 0) {
                pending.push_back({child, to, may_follow});
            }
        }
    }
}

// ---- items that must differ -------------------------------------------------------------------------------------------

// Tokens with which the text would stay like that of an earlier item.
void schema_walk::find_alike(uint32_t id, const string_tree & tree, uint32_t n_text, std::vector<llama_token> & doubtful) const {
    for (; id != 0; id = records_[id].outer) {
        const record & r = records_[id];
        for (uint32_t i = r.first; i < r.last; i++) {
            size_t at = candidates_[i].begin + (n_text - r.start);
            std::string rest; // of the string there
            while (at < candidates_[i].end && text_[at] != '"') {
                at += text_[at] == '\xFF' ? 1 : 0;
                rest += text_[at++];
            }
            uint32_t node = 0;
            append_all(doubtful, tree, node, false);
            for (const uint32_t c : code_points(rest)) {
                node = child_of(tree, node, c);
                if (node == 0) {
                    break;
                }
                append_all(doubtful, tree, node, false);
            }
        }
    }
}

}  // namespace lm
