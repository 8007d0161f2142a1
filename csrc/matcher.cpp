#include "matcher.h"

#include "error.h"

#include <algorithm>

namespace lm {

// Items and nodes that one token may cost, about a tenth of a second. JSON's grammars need some hundreds.
static constexpr size_t MAX_STEPS = 1 << 21;

// Tables are emptied, all but the current state, when they have grown to this.
static constexpr size_t MAX_STATES = 2048;            // half a kilobyte each
static constexpr size_t MAX_STATES_OF_A_TOKEN = 65000; // an id has 16 bits
static constexpr size_t MAX_ITEMS = 1 << 18;
static constexpr size_t MAX_MASKS = 32; // 19 kB each for 152 k tokens
static constexpr size_t MIN_COMPACTED_NODES = 1 << 14;

static constexpr uint16_t DEAD = 0;
static constexpr uint16_t UNKNOWN = UINT16_MAX;
static constexpr uint32_t OPEN = 1u << 31; // marks the id of an open node

static constexpr uint32_t LEAST_OF_LENGTH[] = {0, 0, 0x80, 0x800, 0x10000};

static bool is_surrogate(uint32_t code_point) {
    return code_point >= 0xD800 && code_point <= 0xDFFF;
}

template <typename T>
static void sort_unique(std::vector<T> & values) {
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
}

static size_t mix(size_t hash, uint64_t value) {
    return (hash ^ value) * 0x9E3779B97F4A7C15ull + (hash >> 29);
}

size_t matcher::state_hash::operator()(state_id id) const {
    const state & s = owner->states_[id];
    size_t hash = mix(s.bytes.value, uint64_t(s.bytes.n_left) * 4 + s.bytes.decided * 2 + s.may_end);
    for (uint32_t i = s.items_begin; i < s.items_end; i++) {
        hash = mix(hash, uint64_t(owner->items_[i].at) << 32 | owner->items_[i].node);
    }
    return hash;
}

bool matcher::state_equal::operator()(state_id a, state_id b) const {
    const state & s = owner->states_[a];
    const state & t = owner->states_[b];
    const auto items = owner->items_.begin();
    return s.bytes == t.bytes && s.may_end == t.may_end &&
           std::equal(items + s.items_begin, items + s.items_end, items + t.items_begin, items + t.items_end);
}

size_t matcher::node_hash::operator()(node_id id) const {
    const node & n = owner->nodes_[id];
    size_t hash = n.at;
    for (uint32_t i = n.parents_begin; i < n.parents_end; i++) {
        hash = mix(hash, owner->parents_[i]);
    }
    return hash;
}

bool matcher::node_equal::operator()(node_id a, node_id b) const {
    const node & m = owner->nodes_[a];
    const node & n = owner->nodes_[b];
    const auto parents = owner->parents_.begin();
    return m.at == n.at && std::equal(parents + m.parents_begin, parents + m.parents_end, parents + n.parents_begin,
                                      parents + n.parents_end);
}

matcher::matcher(grammar_ptr g, const vocabulary & vocab)
    : grammar_(std::move(g)), vocab_(vocab), tokens_(vocab.tree()), known_states_(64, {this}, {this}),
      known_nodes_(64, {this}, {this}) {
    reset_tables();
    current_ = close({{grammar_->start, 0}});
    here_.state = current_;
    path_.resize(tokens_.depth() + 2);
    if (has_schemas()) {
        string_masks_ = std::make_unique<string_masks>(vocab.strings(), size_t(vocab.size()));
    }
}

void matcher::reset_tables() {
    states_ = {{0, 0, {}, false, false, false}};
    next_.assign(1, {});
    next_[DEAD].fill(DEAD);
    items_.clear();
    nodes_ = {{0, 0, 0}};
    parents_.clear();
    known_states_.clear();
    known_nodes_.clear();
    masks_.clear();
    behind_.clear();
    compact_at_ = MIN_COMPACTED_NODES;
}

void matcher::spend(size_t n) {
    spent_ += n;
    if (spent_ > MAX_STEPS || states_.size() > MAX_STATES_OF_A_TOKEN) {
        throw invalid_request("grammar", "the grammar is too ambiguous to follow");
    }
}

// ---- tokens ---------------------------------------------------------------------------------------------------------

bool matcher::matches_token(const item & i, llama_token id) const {
    const grammar::element & e = grammar_->elements[i.at];
    return (e.what == grammar::kind::token && e.value == uint32_t(id)) ||
           (e.what == grammar::kind::other_token && e.value != uint32_t(id));
}

void matcher::token_seeds(state_id from, llama_token id, std::vector<item> & seeds) const {
    const state & s = states_[from];
    if (!s.has_token || !is_utf8(tokens_.bytes(id))) {
        return;
    }
    for (uint32_t i = s.items_begin; i < s.items_end; i++) {
        if (matches_token(items_[i], id)) {
            seeds.push_back({items_[i].at + 1, items_[i].node});
        }
    }
}

matcher::state_id matcher::walk(state_id from, std::string_view bytes) {
    for (const char c : bytes) {
        if (from == DEAD) {
            break;
        }
        from = step(from, uint8_t(c));
    }
    return from;
}

bool matcher::allows(llama_token id) {
    if (vocab_.is_eog(id)) {
        return states_[current_].may_end;
    }
    const std::string_view bytes = tokens_.bytes(id);
    if (bytes.empty()) {
        return false;
    }
    std::vector<item> seeds;
    token_seeds(current_, id, seeds);
    return !seeds.empty() || walk(id, path_[0]);
}

const std::vector<uint64_t> & matcher::allowed() {
    if (has_schemas()) {
        return allowed_inside();
    }
    const auto found = masks_.find(current_);
    if (found != masks_.end()) {
        return found->second;
    }
    if (masks_.size() == MAX_MASKS) {
        masks_.clear();
    }
    std::vector<uint64_t> bits((size_t(vocab_.size()) + 63) / 64);
    find_allowed(bits);
    return masks_[current_] = std::move(bits);
}

void matcher::find_allowed(std::vector<uint64_t> & bits) {
    const auto set = [&](llama_token id) { bits[size_t(id) / 64] |= uint64_t(1) << (id % 64); };
    if (states_[current_].has_token) {
        for (llama_token id = 0; id < vocab_.size(); id++) {
            if (allows(id)) {
                set(id);
            }
        }
        return;
    }
    if (states_[current_].may_end) {
        std::for_each(tokens_.ends().begin(), tokens_.ends().end(), set);
    }
    std::vector<state_id> path(tokens_.depth() + 1, current_);
    const std::vector<token_tree::node> & nodes = tokens_.nodes();
    for (size_t i = 0; i < nodes.size();) {
        const token_tree::node & n = nodes[i];
        const state_id to = step(path[n.depth - 1], n.byte);
        if (to == DEAD) {
            i = n.next;
            continue;
        }
        path[n.depth] = to;
        std::for_each(tokens_.ids().begin() + n.ids_begin, tokens_.ids().begin() + n.ids_end, set);
        i++;
    }
}

bool matcher::move(state_id to) {
    if (to != DEAD) {
        current_ = to;
    }
    return to != DEAD;
}

bool matcher::accept(llama_token id) {
    start_token();
    if (vocab_.is_eog(id)) {
        return states_[current_].may_end;
    }
    const std::string_view bytes = tokens_.bytes(id);
    if (has_schemas()) {
        position & to = path_[0];
        std::vector<item> seeds;
        token_seeds(current_, id, seeds);
        const bool walked = walk(id, to);
        if (!walked && seeds.empty()) {
            return false;
        }
        if (!walked) {
            to.state = DEAD;
            to.n = 0;
        }
        to.state = seeds.empty() ? to.state : join(to.state, close(seeds));
        std::swap(here_, to);
        settle();
        return true;
    }
    const state_id walked = bytes.empty() ? state_id(DEAD) : walk(current_, bytes);
    std::vector<item> items;
    token_seeds(current_, id, items);
    if (items.empty()) {
        return move(walked);
    }
    // Both readings of the token live on, as itself and as its text.
    const state & by_token = states_[close(items)];
    const state & by_text = states_[walked];
    const bool may_end = by_token.may_end || by_text.may_end;
    items.assign(items_.begin() + by_token.items_begin, items_.begin() + by_token.items_end);
    items.insert(items.end(), items_.begin() + by_text.items_begin, items_.begin() + by_text.items_end);
    return move(intern_state(items, {}, may_end)); // a token that stands for itself is whole UTF-8
}

bool matcher::accept(std::string_view text) {
    start_token();
    if (has_schemas()) {
        if (!walk(text, path_[0])) {
            return false;
        }
        std::swap(here_, path_[0]);
        settle();
        return true;
    }
    return move(walk(current_, text));
}

// ---- schemas --------------------------------------------------------------------------------------------------------

// Bytes that are looked ahead where no other ones may come: some dozen tokens.
static constexpr size_t MAX_FORCED = 64;

// Things that walks keep before they are looked through for what is still needed.
static constexpr size_t MAX_FRAMES = 4096;

bool matcher::advance(const position & from, uint8_t byte, position & to) {
    to.n = 0;
    to.state = from.state == DEAD ? state_id(DEAD) : step(from.state, byte);
    std::vector<item> ended;
    for (size_t i = 0; i < from.n; i++) {
        read_on(from.readings[i], byte, to, ended);
    }
    if (from.state != DEAD && states_[from.state].has_schema) {
        for (uint32_t i = states_[from.state].items_begin; i < states_[from.state].items_end; i++) {
            const item it = items_[i];
            if (grammar_->elements[it.at].what == grammar::kind::schema) {
                reading begun = {it, std::make_shared<schema_walk>(grammar_->schemas[grammar_->elements[it.at].value]), {}, {}};
                begun.at = begun.walk->begin();
                begun.made = begun.walk->here();
                read_on(begun, byte, to, ended);
            }
        }
    }
    for (const item & it : ended) {
        to.state = join(to.state, behind(it));
    }
    return to.state != DEAD || to.n > 0;
}

void matcher::read_on(const reading & from, uint8_t byte, position & to, std::vector<item> & ended) {
    if (to.readings.size() == to.n) {
        to.readings.emplace_back();
    }
    reading & next = to.readings[to.n];
    from.walk->forget(from.made); // of other ways that were tried from here
    if (!from.walk->step(from.at, byte, next.at)) {
        return;
    }
    spend(next.at.threads.size());
    if (next.walk != from.walk) {
        next.walk = from.walk;
    }
    next.back = from.back;
    next.made = from.walk->here();
    to.n++;
    if (from.walk->may_end(next.at)) {
        ended.push_back(from.back);
    }
}

// Past a token. One that is not shown is none of a schema's text.
bool matcher::walk(llama_token id, position & to) {
    const std::string_view bytes = tokens_.bytes(id);
    if (has_schemas() && !vocab_.piece(id).empty()) {
        return walk(bytes, to);
    }
    to.n = 0;
    to.state = bytes.empty() ? state_id(DEAD) : walk(current_, bytes);
    return to.state != DEAD;
}

bool matcher::walk(std::string_view bytes, position & to) {
    const position * from = &here_;
    for (size_t i = 0; i < bytes.size(); i++) { // there and back between two, the last of which is `to`
        position & next = (bytes.size() - i) % 2 == 1 ? to : path_[1];
        if (!advance(*from, uint8_t(bytes[i]), next)) {
            return false;
        }
        from = &next;
    }
    return !bytes.empty();
}

// The grammar's state of one place and another.
matcher::state_id matcher::join(state_id a, state_id b) {
    if (a == DEAD || b == DEAD || a == b) {
        return a == DEAD ? b : a;
    }
    std::vector<item> items(items_.begin() + states_[a].items_begin, items_.begin() + states_[a].items_end);
    items.insert(items.end(), items_.begin() + states_[b].items_begin, items_.begin() + states_[b].items_end);
    spend(items.size());
    return intern_state(items, {}, states_[a].may_end || states_[b].may_end); // no schema ends within a character
}

matcher::state_id matcher::behind(item schema) {
    const auto [found, is_new] = behind_.try_emplace(uint64_t(schema.at) << 32 | schema.node, state_id(DEAD));
    if (is_new) {
        const state_id to = close({{schema.at + 1, schema.node}});
        behind_[uint64_t(schema.at) << 32 | schema.node] = to;
        return to;
    }
    return found->second;
}

bool matcher::is_within_schema() const {
    const auto begin = items_.begin();
    return has_schemas() && std::all_of(begin + states_[current_].items_begin, begin + states_[current_].items_end, [&](const item & i) {
        return grammar_->elements[i.at].what == grammar::kind::schema;
    });
}

void matcher::settle() {
    current_ = here_.state;
    here_.readings.resize(here_.n);
    for (reading & r : here_.readings) {
        r.walk->settle(r.at);
        if (r.walk->n_frames() > MAX_FRAMES) {
            r.walk->compact(r.at);
        }
        r.made = r.walk->here();
    }
    inside_.clear();
}

const std::vector<uint64_t> & matcher::allowed_inside() {
    if (!inside_.empty()) {
        return inside_;
    }
    inside_.assign((size_t(vocab_.size()) + 63) / 64, 0);
    if (!find_in_strings()) {
        inside_.assign(inside_.size(), 0);
        find_inside();
    }
    if (current_ != DEAD && states_[current_].may_end) {
        for (const llama_token id : tokens_.ends()) {
            set_inside(id);
        }
    }
    if (current_ != DEAD && states_[current_].has_token) {
        for (llama_token id = 0; id < vocab_.size(); id++) {
            std::vector<item> seeds;
            token_seeds(current_, id, seeds);
            if (!seeds.empty()) {
                set_inside(id);
            }
        }
    }
    for (const llama_token id : tokens_.controls()) {
        inside_[size_t(id) / 64] &= ~(uint64_t(1) << (id % 64));
        if (current_ != DEAD && allows(id)) {
            set_inside(id);
        }
    }
    return inside_;
}

// ---- what must follow -----------------------------------------------------------------------------------------------

std::string matcher::forced(size_t longest) {
    std::string text;
    if (!has_schemas() || current_ != DEAD || here_.n != 1) {
        return text;
    }
    start_token();
    const position * from = &here_;
    while (text.size() < longest && from->state == DEAD && from->n == 1) {
        const reading & r = from->readings[0];
        const int byte = r.walk->only_byte(r.at);
        position & next = path_[text.size() % 2];
        if (byte < 0 || !advance(*from, uint8_t(byte), next)) {
            break;
        }
        text += char(byte);
        from = &next;
    }
    return text;
}

// The child of a node, or of the root, for that byte; null: there is none.
static const token_tree::node * child_of(const token_tree & tree, const token_tree::node * parent, uint8_t byte) {
    const token_tree::node * const nodes = tree.nodes().data();
    const token_tree::node * const end = nodes + (parent == nullptr ? tree.nodes().size() : parent->next);
    for (const token_tree::node * n = parent == nullptr ? nodes : parent + 1; n < end; n = nodes + n->next) {
        if (n->byte == byte) {
            return n;
        }
    }
    return nullptr;
}

std::vector<llama_token> matcher::forced_tokens(size_t most) {
    std::vector<llama_token> ids;
    const std::string text = most == 0 ? "" : forced(MAX_FORCED);
    for (size_t begin = 0; begin < text.size() && ids.size() < most;) {
        const token_tree::node * at = nullptr;
        const token_tree::node * longest = nullptr;
        for (size_t i = begin; i < text.size(); i++) {
            at = child_of(tokens_, at, uint8_t(text[i]));
            if (at == nullptr) {
                break;
            }
            longest = at->ids_begin < at->ids_end ? at : longest;
        }
        if (longest == nullptr) {
            break;
        }
        ids.push_back(tokens_.ids()[longest->ids_begin]);
        begin += longest->depth;
    }
    return ids;
}

std::optional<llama_token> matcher::only() {
    const std::string text = forced(tokens_.depth());
    const token_tree::node * at = nullptr;
    std::optional<llama_token> id;
    for (const char c : text) {
        at = child_of(tokens_, at, uint8_t(c));
        if (at == nullptr) {
            return id;
        }
        if (at->ids_begin == at->ids_end) {
            continue;
        }
        if (id || at->ids_end - at->ids_begin > 1) {
            return std::nullopt;
        }
        id = tokens_.ids()[at->ids_begin];
    }
    // Where the text ends is a choice: a token that is longer may stand there.
    const bool may_go_on = at != nullptr && at->next > uint32_t(at - tokens_.nodes().data()) + 1;
    return may_go_on ? std::nullopt : id;
}

// ---- tokens within strings ------------------------------------------------------------------------------------------

// False where something besides strings may go on.
bool matcher::find_in_strings() {
    if (current_ != DEAD) {
        return false;
    }
    std::vector<llama_token> doubtful;
    for (size_t i = 0; i < here_.n; i++) {
        const reading & r = here_.readings[i];
        if (!r.walk->is_in_string(r.at)) {
            return false;
        }
        r.walk->forget(r.made);
        std::vector<schema_walk::closing> closings;
        for (size_t t = 0; t < r.at.threads.size(); t++) {
            if (!r.walk->find_tokens(r.at, t, *string_masks_, inside_, doubtful, closings)) {
                return false;
            }
        }
        const schema_walk::mark made = r.walk->here();
        for (schema_walk::closing & c : closings) {
            if (!c.at.threads.empty()) {
                find_behind_string({r.back, r.walk, std::move(c.at), made}, c.ahead);
            }
        }
    }
    sort_unique(doubtful);
    test_inside(doubtful);
    return true;
}

// Sets or clears the bits of some tokens. What two of them begin with alike is walked once.
void matcher::test_inside(std::vector<llama_token> & ids) {
    std::sort(ids.begin(), ids.end(), [&](llama_token a, llama_token b) { return tokens_.bytes(a) < tokens_.bytes(b); });
    std::string_view before;
    size_t n = 0; // bytes that may follow, first of the token before, then of this one
    for (const llama_token id : ids) {
        spent_ = 0;
        const std::string_view bytes = tokens_.bytes(id);
        const size_t n_shared = size_t(std::mismatch(bytes.begin(), bytes.end(), before.begin(), before.end()).first - bytes.begin());
        const bool fails = n_shared > n; // where that one did
        n = std::min(n, n_shared);
        while (!fails && n < bytes.size() && advance(n == 0 ? here_ : path_[n + 1], uint8_t(bytes[n]), path_[n + 2])) {
            n++;
        }
        inside_[size_t(id) / 64] &= ~(uint64_t(1) << (id % 64));
        if (n == bytes.size()) {
            set_inside(id);
        }
        before = bytes;
    }
}

// Those of the tokens `ahead` that go on behind their quote, where the schema then is.
void matcher::find_behind_string(const reading & closed, const std::vector<uint64_t> & ahead) {
    const string_tree & tree = string_masks_->tree();
    std::vector<bool> tails(tree.tail_ids().size());
    position & begin = path_[1];
    if (begin.readings.empty()) {
        begin.readings.emplace_back();
    }
    begin.n = 1;
    begin.readings[0] = closed;
    begin.state = closed.walk->may_end(closed.at) ? behind(closed.back) : state_id(DEAD);
    for (size_t i = 0; i < tree.tail_nodes().size();) {
        const string_tree::tail_node & n = tree.tail_nodes()[i];
        spent_ = 0;
        if (n.depth > 1 && !advance(path_[n.depth - 1], n.byte, path_[n.depth])) {
            i = n.next;
            continue;
        }
        if (n.tail >= 0) {
            tails[size_t(n.tail)] = true;
        }
        i++;
    }
    const std::vector<uint64_t> bits = string_masks_->with_tails(tails);
    for (size_t i = 0; i < bits.size(); i++) {
        inside_[i] |= bits[i] & ahead[i];
    }
}

void matcher::find_inside() {
    const std::vector<token_tree::node> & nodes = tokens_.nodes();
    for (size_t i = 0; i < nodes.size();) {
        const token_tree::node & n = nodes[i];
        spent_ = 0;
        if (!advance(n.depth == 1 ? here_ : path_[n.depth], n.byte, path_[n.depth + 1])) {
            i = n.next;
            continue;
        }
        for (uint32_t k = n.ids_begin; k < n.ids_end; k++) {
            set_inside(tokens_.ids()[k]);
        }
        i++;
    }
}

// ---- bytes ----------------------------------------------------------------------------------------------------------

matcher::state_id matcher::step(state_id from, uint8_t byte) {
    const state_id known = next_[from][byte];
    if (known != UNKNOWN) {
        return known;
    }
    return next_[from][byte] = compute_step(from, byte); // C++17: the right side first, it moves the table
}

matcher::state_id matcher::compute_step(state_id from, uint8_t byte) {
    partial bytes = states_[from].bytes;
    spend(states_[from].items_end - states_[from].items_begin + 1);
    if (bytes.n_left == 0) {
        const uint32_t code_point = byte;
        if (byte < 0x80) {
            return byte == 0 ? DEAD : advance(from, &code_point);
        }
        if (byte < 0xC2 || byte > 0xF4) {
            return DEAD;
        }
        bytes.length = uint8_t(byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4);
        bytes.n_left = uint8_t(bytes.length - 1);
        bytes.value = byte & (0x7Fu >> bytes.length);
        return narrow(from, bytes);
    }
    if ((byte & 0xC0) != 0x80) {
        return DEAD;
    }
    bytes.n_left--;
    if (bytes.decided) {
        return bytes.n_left == 0 ? advance(from, nullptr) : narrow(from, bytes);
    }
    bytes.value = bytes.value << 6 | (byte & 0x3F);
    if (bytes.n_left > 0) {
        return narrow(from, bytes);
    }
    const bool valid = bytes.value >= LEAST_OF_LENGTH[bytes.length] && bytes.value <= LAST_CODE_POINT && !is_surrogate(bytes.value);
    return valid ? advance(from, &bytes.value) : DEAD;
}

// The items of `from` that some character beginning with `bytes` satisfies.
matcher::state_id matcher::narrow(state_id from, partial bytes) {
    const std::vector<item> all(items_.begin() + states_[from].items_begin, items_.begin() + states_[from].items_end);
    if (bytes.decided) {
        std::vector<item> items = all;
        return intern_state(items, bytes, false);
    }
    const uint32_t least = bytes.value << (6 * bytes.n_left);
    const uint32_t most = least | ((1u << (6 * bytes.n_left)) - 1);
    const uint32_t first = std::max(least, LEAST_OF_LENGTH[bytes.length]);
    const uint32_t last = std::min(most, LAST_CODE_POINT);
    if (first > last || (is_surrogate(first) && is_surrogate(last))) {
        return DEAD;
    }
    bool decided = first == least && last == most && !(first <= 0xDFFF && last >= 0xD800);
    std::vector<item> items;
    for (const item & i : all) {
        const grammar::element & e = grammar_->elements[i.at];
        if (e.what != grammar::kind::characters) {
            continue;
        }
        const grammar::range * begin = grammar_->ranges.data() + grammar_->sets[e.value];
        const grammar::range * end = grammar_->ranges.data() + grammar_->sets[e.value + 1];
        const grammar::range * at = std::partition_point(begin, end, [&](const grammar::range & r) { return r.last < first; });
        if (at != end && at->first <= last) {
            items.push_back(i);
            decided = decided && at->first <= first && at->last >= last;
        }
    }
    if (items.empty()) {
        return DEAD;
    }
    return intern_state(items, decided ? partial{0, bytes.n_left, 0, true} : bytes, false);
}

// Past one character; without a code point every item matches it.
matcher::state_id matcher::advance(state_id from, const uint32_t * code_point) {
    std::vector<item> seeds;
    for (uint32_t i = states_[from].items_begin; i < states_[from].items_end; i++) {
        const grammar::element & e = grammar_->elements[items_[i].at];
        if (e.what == grammar::kind::characters && (code_point == nullptr || grammar_->contains(e.value, *code_point))) {
            seeds.push_back({items_[i].at + 1, items_[i].node});
        }
    }
    return seeds.empty() ? DEAD : close(seeds);
}

// ---- closing a set of items -----------------------------------------------------------------------------------------

// All items that the seeds reach through calls and returns without a character. Calls from one place share one node, to
// which parents are added as they are found (a graph-structured stack, as in generalized LL parsing).
matcher::state_id matcher::close(const std::vector<item> & seeds) {
    pending_ = seeds;
    visited_.clear();
    open_.clear();
    open_at_.clear();
    found_.clear();
    may_end_ = false;
    while (!pending_.empty()) {
        const item i = pending_.back();
        pending_.pop_back();
        if (visited_.insert(uint64_t(i.at) << 32 | i.node).second) {
            spend(1);
            visit(i);
        }
    }
    std::vector<item> items;
    items.reserve(found_.size());
    for (const item & i : found_) {
        items.push_back({i.at, closed(i.node)});
    }
    return items.empty() && !may_end_ ? DEAD : intern_state(items, {}, may_end_);
}

void matcher::visit(item i) {
    const grammar::element & e = grammar_->elements[i.at];
    switch (e.what) {
        case grammar::kind::end: return_to(i.node); break;
        case grammar::kind::call: {
            node_id back = i.node;
            if (!grammar_->is_last(i.at)) { // the last call needs no return of its own: repetitions stay flat
                back = open(i.at + 1);
                add_parent(back, i.node);
            }
            for (uint32_t a = grammar_->rules[e.value]; a < grammar_->rules[e.value + 1]; a++) {
                pending_.push_back({grammar_->alternatives[a], back});
            }
            break;
        }
        default: found_.push_back(i);
    }
}

void matcher::return_to(node_id n) {
    if (n == 0) {
        may_end_ = true;
    } else if (n & OPEN) {
        open_node & o = open_[n & ~OPEN];
        o.returned = true;
        for (const node_id parent : o.parents) {
            pending_.push_back({o.at, parent});
        }
    } else {
        const node & c = nodes_[n];
        for (uint32_t i = c.parents_begin; i < c.parents_end; i++) {
            pending_.push_back({c.at, parents_[i]});
        }
    }
}

matcher::node_id matcher::open(uint32_t at) {
    const auto [found, is_new] = open_at_.try_emplace(at, node_id(open_.size()) | OPEN);
    if (is_new) {
        open_.push_back({at, {}, false, 0});
    }
    return found->second;
}

void matcher::add_parent(node_id n, node_id parent) {
    open_node & o = open_[n & ~OPEN];
    if (std::find(o.parents.begin(), o.parents.end(), parent) != o.parents.end()) {
        return;
    }
    spend(1 + o.parents.size() / 8);
    o.parents.push_back(parent);
    if (o.returned) {
        pending_.push_back({o.at, parent});
    }
}

// The lasting node that an open one has become. Without recursion: calls may be nested a hundred thousand deep; without
// left recursion they form no circle.
matcher::node_id matcher::closed(node_id n) {
    if (!(n & OPEN)) {
        return n;
    }
    std::vector<node_id> path = {n};
    while (!path.empty()) {
        open_node & o = open_[path.back() & ~OPEN];
        const size_t depth = path.size();
        for (const node_id parent : o.parents) {
            if ((parent & OPEN) && open_[parent & ~OPEN].closed == 0) {
                path.push_back(parent);
            }
        }
        if (path.size() > depth) {
            continue;
        }
        path.pop_back();
        if (o.closed == 0) {
            std::vector<node_id> parents;
            for (const node_id parent : o.parents) {
                parents.push_back((parent & OPEN) ? open_[parent & ~OPEN].closed : parent);
            }
            spend(parents.size());
            o.closed = intern_node(o.at, parents);
        }
    }
    return open_[n & ~OPEN].closed;
}

// ---- tables ---------------------------------------------------------------------------------------------------------

matcher::state_id matcher::intern_state(std::vector<item> & items, partial bytes, bool may_end) {
    sort_unique(items);
    const uint32_t begin = uint32_t(items_.size());
    items_.insert(items_.end(), items.begin(), items.end());
    const bool has_token = bytes.n_left == 0 && std::any_of(items.begin(), items.end(), [&](const item & i) {
        return grammar_->elements[i.at].what == grammar::kind::token || grammar_->elements[i.at].what == grammar::kind::other_token;
    });
    const bool has_schema = bytes.n_left == 0 && std::any_of(items.begin(), items.end(), [&](const item & i) {
        return grammar_->elements[i.at].what == grammar::kind::schema;
    });
    states_.push_back({begin, uint32_t(items_.size()), bytes, may_end, has_schema, has_token});
    const auto [found, is_new] = known_states_.insert(state_id(states_.size() - 1));
    if (is_new) {
        next_.emplace_back();
        next_.back().fill(UNKNOWN);
    } else {
        states_.pop_back();
        items_.resize(begin);
    }
    return *found;
}

matcher::node_id matcher::intern_node(uint32_t at, std::vector<node_id> & parents) {
    sort_unique(parents);
    const uint32_t begin = uint32_t(parents_.size());
    parents_.insert(parents_.end(), parents.begin(), parents.end());
    nodes_.push_back({at, begin, uint32_t(parents_.size())});
    const auto [found, is_new] = known_nodes_.insert(node_id(nodes_.size() - 1));
    if (!is_new) {
        nodes_.pop_back();
        parents_.resize(begin);
    }
    return *found;
}

void matcher::start_token() {
    spent_ = 0;
    if (states_.size() > MAX_STATES || items_.size() > MAX_ITEMS || nodes_.size() > compact_at_) {
        compact();
    }
}

// Keeps the current state and the nodes that it can return to.
void matcher::compact() {
    const state here = states_[current_];
    std::vector<item> items(items_.begin() + here.items_begin, items_.begin() + here.items_end);
    std::vector<bool> live(nodes_.size());
    for (const item & i : items) {
        live[i.node] = true;
    }
    for (size_t i = 0; i < here_.n; i++) {
        live[here_.readings[i].back.node] = true;
    }
    for (size_t n = nodes_.size(); n-- > 1;) {
        for (uint32_t i = nodes_[n].parents_begin; live[n] && i < nodes_[n].parents_end; i++) {
            live[parents_[i]] = true;
        }
    }
    const std::vector<node> old_nodes = std::move(nodes_);
    const std::vector<node_id> old_parents = std::move(parents_);
    reset_tables();
    std::vector<node_id> moved(old_nodes.size());
    for (size_t n = 1; n < old_nodes.size(); n++) {
        if (live[n]) {
            std::vector<node_id> parents;
            for (uint32_t i = old_nodes[n].parents_begin; i < old_nodes[n].parents_end; i++) {
                parents.push_back(moved[old_parents[i]]);
            }
            moved[n] = intern_node(old_nodes[n].at, parents);
        }
    }
    for (item & i : items) {
        i.node = moved[i.node];
    }
    for (size_t i = 0; i < here_.n; i++) {
        here_.readings[i].back.node = moved[here_.readings[i].back.node];
    }
    compact_at_ = std::max(MIN_COMPACTED_NODES, 2 * nodes_.size());
    current_ = current_ == DEAD ? state_id(DEAD) : intern_state(items, here.bytes, here.may_end);
    here_.state = current_;
}

}  // namespace lm
