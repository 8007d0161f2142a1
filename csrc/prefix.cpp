#include "prefix.h"

#include <algorithm>
#include <iterator>

namespace lm {

// A mark costs a copy of state and ends a chunk of prefill: so few tokens are computed again instead.
static constexpr size_t WORTH_A_MARK = 32;

// A chunk of fewer tokens takes hardly less time than one of so many, and nearly all of it comes on top.
static constexpr size_t WORTH_A_STEP = 64;

// Fewer tokens are computed again rather than brought back from host memory.
static constexpr size_t WORTH_BRINGING_BACK = 32;

// Of a sequence. Those made in passing are thinned out to this number, so that each lies about as far from the one before as
// its place asks for: what is computed again is a small part of what is not.
static constexpr size_t MAX_MARKS = 16;

// A mark in passing takes at most this part of the time that computing up to it took, ...
static constexpr double PASSING_SHARE = 0.01;
// ... lies so many tokens behind the one before, ...
static constexpr size_t PASSING_TOKENS = 128;
// ... and leaves this part of the host memory to others.
static constexpr size_t PASSING_MEMORY = 2;

// Cells that each running sequence may still need for its answer when another one is admitted.
static constexpr size_t ROOM_TO_ANSWER = 64;

static size_t common_prefix(const std::vector<llama_token> & a, size_t n_a, const std::vector<llama_token> & b, size_t n_b) {
    const size_t n = std::min(n_a, n_b);
    return size_t(std::mismatch(a.begin(), a.begin() + long(n), b.begin()).first - a.begin());
}

prefix_cache::prefix_cache(llama_context * ctx, sharing kind, int32_t window, int32_t n_sequences, const cache_limits & limits,
                           bool moves)
    : ctx_(ctx), memory_(llama_get_memory(ctx)), kind_(kind), window_(size_t(window)), limits_(limits) {
    if (moves && kind == sharing::any_prefix) {
        moving_ = --n_sequences;
    }
    for (llama_seq_id id = n_sequences - 1; id >= 0; id--) {
        free_.push_back(id);
    }
}

// ---- what there is ------------------------------------------------------------------------------------------------------

// What occupies cells: tokens under a key.
struct prefix_cache::occupant {
    const std::string & key;
    const std::vector<llama_token> & tokens;
};

// Each occupant counts from where it parts from all before it.
size_t prefix_cache::distinct_cells(const std::vector<occupant> & all) {
    size_t cells = 0;
    for (size_t i = 0; i < all.size(); i++) {
        const std::vector<llama_token> & tokens = all[i].tokens;
        size_t shared = 0;
        for (size_t j = 0; j < i; j++) {
            if (all[j].key == all[i].key) {
                shared = std::max(shared, common_prefix(tokens, tokens.size(), all[j].tokens, all[j].tokens.size()));
            }
        }
        cells += tokens.size() - shared;
    }
    return cells;
}

bool prefix_cache::has_room(const sequence & s, const std::vector<sequence *> & running) const {
    size_t wanted = s.tokens.size();
    std::vector<occupant> all = {{s.cache_key, s.tokens}};
    for (const sequence * other : running) {
        wanted += other->tokens.size();
        all.push_back({other->cache_key, other->tokens});
    }
    const size_t room = limits_.cells - std::min(limits_.cells, ROOM_TO_ANSWER * all.size());
    return running.empty() || wanted <= room || distinct_cells(all) <= room;
}

size_t prefix_cache::idle_tokens() const {
    std::vector<occupant> resident;
    for (const entry & e : idle_) {
        if (e.seq >= 0) {
            resident.push_back({e.key, e.tokens});
        }
    }
    return distinct_cells(resident);
}

// How much of `common` tokens can be taken over from a sequence with these marks.
static const mark * last_mark(const std::vector<mark> & marks, size_t common) {
    const mark * last = nullptr;
    for (const mark & m : marks) {
        last = m.position <= common ? &m : last;
    }
    return last;
}

// `position` is that of the token behind the `common` ones.
void prefix_cache::consider(source & best, const source & other, size_t common, size_t position) const {
    source found = other;
    const bool held = window_ > 0 && found.held_from + window_ <= std::max(position, window_);
    if (kind_ == sharing::any_prefix || found.whole || held) {
        found.shared = common;
    } else if (const mark * m = last_mark(*found.marks, common)) {
        found.shared = m->position;
    }
    const size_t needed = best.shared + (found.seq < 0 ? WORTH_BRINGING_BACK : 0);
    const bool better = found.shared > needed || (found.shared == needed && found.shared > 0 && found.whole);
    const size_t most_common = std::max(best.common, common);
    if (better) {
        best = found;
    }
    best.common = most_common;
}

// The first of `n` positions that the layers with a sliding window hold for `seq`, or for a copy in host memory.
size_t prefix_cache::held_from(llama_seq_id seq, size_t n) const {
    if (seq < 0) {
        return n - std::min(n, window_);
    }
    const llama_pos first = llama_memory_seq_pos_min(memory_, seq);
    return first < 0 ? n : size_t(first);
}

prefix_cache::source prefix_cache::longest_prefix(const sequence & s, const std::vector<sequence *> & running) {
    // whose rows are wanted must be computed again
    const size_t most = s.is_scoring() ? s.n_scored : s.tokens.size() - 1;
    source best;
    const auto position = [&](size_t n) { return size_t(position_of(s.spans, n)); };
    for (const bool resident : {true, false}) { // a sequence in host memory must be better than any in the cells
        for (auto it = idle_.begin(); it != idle_.end(); ++it) {
            if ((it->seq >= 0) == resident && it->key == s.cache_key) {
                source idle;
                const size_t n = without_part(s.spans, common_prefix(s.tokens, most, it->tokens, it->tokens.size()));
                idle.seq = it->seq;
                idle.held_from = held_from(it->seq, size_t(position_of(it->spans, it->tokens.size())));
                idle.marks = &it->marks;
                idle.idle = it;
                idle.is_idle = true;
                idle.whole = n == it->tokens.size();
                consider(best, idle, n, position(n));
            }
        }
        for (const sequence * other : running) {
            if (resident && other->cache_key == s.cache_key) {
                source running_one;
                running_one.seq = other->seq;
                running_one.held_from = held_from(other->seq, size_t(position_of(other->spans, other->n_cached)));
                running_one.marks = &other->marks;
                const size_t n = without_part(s.spans, common_prefix(s.tokens, most, other->tokens, other->n_cached));
                consider(best, running_one, n, position(n));
            }
        }
    }
    return best;
}

// ---- taking over --------------------------------------------------------------------------------------------------------

bool prefix_cache::assign(sequence & s, const std::vector<sequence *> & running) {
    const source from = longest_prefix(s, running);
    s.n_common = from.whole ? 0 : from.common;
    s.marks.clear();
    s.cuts.clear();
    s.unmarked_ms = 0;
    if (from.whole && from.seq >= 0) {
        go_on_in(from.idle, s);
    } else {
        spared_ = from.is_idle ? &*from.idle : nullptr;
        s.seq = take_free_id();
        s.n_cached = s.seq >= 0 && from.shared > 0 ? take_over(from, s) : 0;
        spared_ = nullptr;
        if (s.seq < 0) {
            return false;
        }
    }
    if (kind_ == sharing::at_marks) {
        want_marks(s, from.common);
    }
    return true;
}

void prefix_cache::go_on_in(entries::iterator idle, sequence & s) {
    s.seq = idle->seq;
    s.n_cached = idle->tokens.size();
    s.marks = std::move(idle->marks);
    idle_.erase(idle);
}

// Returns how many tokens `s` has in its cells now.
size_t prefix_cache::take_over(const source & from, sequence & s) {
    for (const mark & m : *from.marks) {
        if (m.position <= from.shared) {
            s.marks.push_back(m);
        }
    }
    const bool taken = from.seq >= 0 ? copy_prefix(from.seq, from, s) : bring_back(from, s);
    if (!taken || !holds(s, from.shared)) {
        llama_memory_seq_rm(memory_, s.seq, -1, -1); // compute afresh
        s.marks.clear();
        return 0;
    }
    if (from.is_idle && from.seq < 0 && from.whole) {
        idle_.erase(from.idle);
    } else if (from.is_idle) {
        idle_.splice(idle_.begin(), idle_, from.idle);
    }
    return from.shared;
}

bool prefix_cache::copy_prefix(llama_seq_id from, const source & what, sequence & s) {
    llama_memory_seq_cp(memory_, from, s.seq, 0, position_of(s.spans, what.shared));
    if (kind_ == sharing::any_prefix) {
        return true;
    }
    const mark * last = last_mark(*what.marks, what.shared);
    return last != nullptr && last->position == what.shared ? restore(*last->state, s.seq) : have_own_window(s, what.shared);
}

// `s` shares the `n` cells of another sequence, those of the window, too: it gets a copy of these, for llama.cpp does not use
// shared ones again that have left both windows.
bool prefix_cache::have_own_window(sequence & s, size_t n) {
    const saved_state_ptr kept = save(s.seq, saved_state::part::uncut);
    const saved_state_ptr own = kept ? kept : saved_state::of(ctx_, s.seq, saved_state::part::uncut, std::make_shared<size_t>(0));
    if (kept) {
        s.marks.push_back({n, kept});
    }
    return own && restore(*own, s.seq);
}

bool prefix_cache::bring_back(const source & from, sequence & s) {
    const saved_state & saved = *from.idle->saved;
    if (kind_ == sharing::any_prefix || from.whole) {
        return restore(saved, s.seq) && (from.whole || remove_from(s, from.shared));
    }
    const llama_seq_id whole = take_free_id();
    if (whole < 0) {
        return false;
    }
    const bool taken = restore(saved, whole) && copy_prefix(whole, from, s);
    free_id(whole);
    return taken;
}

bool prefix_cache::restore(const saved_state & saved, llama_seq_id into) {
    while (!saved.restore(ctx_, into)) {
        if (!evict()) {
            return false;
        }
    }
    return true;
}

// All cells of `s` behind the first `n`.
bool prefix_cache::remove_from(const sequence & s, size_t n) {
    return llama_memory_seq_rm(memory_, s.seq, position_of(s.spans, n), -1);
}

// A memory's own word for what it kept is not to be trusted; its positions are.
bool prefix_cache::holds(const sequence & s, size_t n) const {
    if (n == 0) {
        return llama_memory_seq_pos_max(memory_, s.seq) < 0;
    }
    const llama_pos first = llama_memory_seq_pos_min(memory_, s.seq);
    const llama_pos last = last_position(s.spans, n);
    return llama_memory_seq_pos_max(memory_, s.seq) == last && (kind_ == sharing::any_prefix ? first == 0 : first >= 0 && first <= last);
}

// ---- from and to the disk -------------------------------------------------------------------------------------------------

// A sequence whose first `n` tokens are these and lie in cells; -1: there is none.
llama_seq_id prefix_cache::seq_with(const std::string & key, const std::vector<llama_token> & tokens, size_t n,
                                    const std::vector<sequence *> & running) const {
    for (const entry & e : idle_) {
        if (e.seq >= 0 && e.key == key && common_prefix(tokens, n, e.tokens, e.tokens.size()) == n) {
            return e.seq;
        }
    }
    for (const sequence * s : running) {
        if (s->seq >= 0 && s->cache_key == key && common_prefix(tokens, n, s->tokens, s->n_cached) == n) {
            return s->seq;
        }
    }
    return -1;
}

bool prefix_cache::copy_out(const text_prompt & prompt, size_t begin, size_t end, const std::vector<sequence *> & running,
                            std::vector<uint8_t> & state) {
    const llama_seq_id from = seq_with(prompt.key, prompt.tokens, end, running);
    if (from < 0) {
        return false;
    }
    llama_memory_seq_cp(memory_, from, moving_, llama_pos(begin), llama_pos(end));
    const bool copied = copy_state(ctx_, moving_, state);
    llama_memory_seq_rm(memory_, moving_, -1, -1);
    return copied;
}

void prefix_cache::let_go(const text_prompt_ptr & prompt) {
    held_.erase(std::remove(held_.begin(), held_.end(), prompt), held_.end());
    trim();
}

bool prefix_cache::is_held(const entry & e) const {
    return std::any_of(held_.begin(), held_.end(), [&](const text_prompt_ptr & p) {
        return p->key == e.key && common_prefix(p->tokens, p->tokens.size(), e.tokens, e.tokens.size()) == p->tokens.size();
    });
}

std::optional<size_t> prefix_cache::begin_arrival(const std::string & key, std::vector<llama_token> tokens, size_t size,
                                                  const std::vector<sequence *> & running) {
    size_t n = kind_ == sharing::any_prefix ? tokens.size() / size * size : 0;
    llama_seq_id from = -1;
    while (n > 0 && (from = seq_with(key, tokens, n, running)) < 0) {
        n -= size;
    }
    const llama_seq_id id = take_free_id(); // which may take the one that was found
    if (id < 0) {
        return std::nullopt;
    }
    if (n > 0 && (from = seq_with(key, tokens, n, running)) >= 0) {
        llama_memory_seq_cp(memory_, from, id, 0, llama_pos(n));
    } else {
        n = 0;
    }
    arriving_ = std::move(tokens);
    arrival_ = entry{key, {arriving_.begin(), arriving_.begin() + long(n)}, {}, {}, id, nullptr};
    return n;
}

bool prefix_cache::make_room_for(llama_seq_id seq, const std::vector<uint8_t> & state) {
    while (!put_state(ctx_, seq, state)) {
        if (!evict()) {
            return false;
        }
    }
    return true;
}

bool prefix_cache::add_to_arrival(size_t end, const std::vector<uint8_t> & state) {
    if (end > arriving_.size()) {
        return false; // it was abandoned
    }
    const size_t begin = arrival_->tokens.size();
    const bool in_pieces = kind_ == sharing::any_prefix;
    const llama_seq_id into = in_pieces ? moving_ : arrival_->seq;
    bool good = make_room_for(into, state) && llama_memory_seq_pos_max(memory_, into) == llama_pos(end) - 1 &&
                (!in_pieces || llama_memory_seq_pos_min(memory_, into) == llama_pos(begin));
    if (in_pieces) {
        if (good) {
            llama_memory_seq_cp(memory_, into, arrival_->seq, llama_pos(begin), llama_pos(end));
        }
        llama_memory_seq_rm(memory_, into, -1, -1);
    }
    if (good) {
        arrival_->tokens.assign(arriving_.begin(), arriving_.begin() + long(end));
    }
    return good;
}

bool prefix_cache::abandon_arrival() {
    if (!arrival_ || arrival_->tokens.empty()) {
        return false;
    }
    llama_memory_seq_rm(memory_, arrival_->seq, -1, -1);
    arrival_->tokens.clear();
    arriving_.clear();
    return true;
}

size_t prefix_cache::end_arrival() {
    entry come = std::move(*arrival_);
    arrival_.reset();
    const size_t n = come.tokens.size();
    const bool is_whole = n > 0 && llama_memory_seq_pos_max(memory_, come.seq) == llama_pos(n) - 1 &&
                          (kind_ != sharing::any_prefix || llama_memory_seq_pos_min(memory_, come.seq) == 0);
    if (!is_whole) {
        free_id(come.seq);
        return 0;
    }
    if (kind_ == sharing::at_marks) { // who goes on from here must not take it from others
        if (saved_state_ptr state = save(come.seq, saved_state::part::uncut)) {
            come.marks.push_back({n, std::move(state)});
        }
    }
    idle_.push_front(std::move(come));
    trim();
    return n;
}

// ---- marks --------------------------------------------------------------------------------------------------------------

void prefix_cache::want_mark(sequence & s, size_t position) const {
    position = without_part(s.spans, position);
    if (kind_ == sharing::at_marks && position >= WORTH_A_MARK && position > s.n_cached && position <= s.tokens.size() &&
        std::find(s.cuts.begin(), s.cuts.end(), position) == s.cuts.end()) {
        s.cuts.push_back(position);
    }
}

// Where prompts may part from `s`, of which `common` tokens are not the first of their kind. Each mark within a prompt ends a
// chunk of its computation, so one that is close behind another is spared, and where there are windows only what they showed
// to be needed is marked.
void prefix_cache::want_marks(sequence & s, size_t common) const {
    want_mark(s, common);
    if (window_ > 0) {
        return want_mark(s, s.n_prompt);
    }
    if (s.n_preamble >= std::max(s.n_cached, common) + WORTH_A_MARK) {
        want_mark(s, s.n_preamble);
    }
    const size_t end = s.n_repeated > 0 ? s.n_repeated : s.n_prompt;
    const bool is_near = std::any_of(s.cuts.begin(), s.cuts.end(), [&](size_t cut) { return cut <= end && end < cut + WORTH_A_STEP; });
    if (!is_near || end == s.n_prompt) {
        want_mark(s, end);
    }
}

size_t prefix_cache::until_mark(const sequence & s) const {
    size_t next = s.tokens.size();
    for (const size_t cut : s.cuts) {
        next = cut > s.n_cached ? std::min(next, cut) : next;
    }
    return next - s.n_cached;
}

void prefix_cache::reached(sequence & s, double step_ms) {
    if (kind_ != sharing::at_marks) {
        return;
    }
    s.unmarked_ms += step_ms;
    const auto wanted = std::find(s.cuts.begin(), s.cuts.end(), s.n_cached);
    if (wanted != s.cuts.end()) {
        s.cuts.erase(wanted);
        return add_mark(s, true);
    }
    const size_t last = s.marks.empty() ? 0 : s.marks.back().position;
    const bool is_prompt = s.n_cached < s.n_prompt && without_part(s.spans, s.n_cached) == s.n_cached;
    if (is_prompt && s.n_cached >= last + PASSING_TOKENS && mark_ms_ <= s.unmarked_ms * PASSING_SHARE &&
        *host_bytes_ <= limits_.host_bytes / PASSING_MEMORY) {
        add_mark(s, false);
    }
}

// Of the marks that can go, the one that is missed least: those in passing first, then whose neighbours are closest for where
// they are. The first is the most widely shared, the last ones the likeliest to be used.
static void thin_out(std::vector<mark> & marks) {
    constexpr size_t LAST_ONES = 4;
    const auto missed = [&](size_t i) {
        const double gap = double(marks[i + 1].position - marks[i - 1].position) / double(marks[i + 1].position);
        return std::make_pair(marks[i].wanted, gap);
    };
    size_t least = 1;
    for (size_t i = 2; i + LAST_ONES < marks.size(); i++) {
        least = missed(i) < missed(least) ? i : least;
    }
    marks.erase(marks.begin() + long(least));
}

void prefix_cache::add_mark(sequence & s, bool wanted) {
    const auto began = steady::now();
    if (saved_state_ptr state = save(s.seq, saved_state::part::uncut)) {
        mark_ms_ = ms_between(began, steady::now());
        s.marks.push_back({s.n_cached, std::move(state), wanted});
        s.unmarked_ms = 0;
        if (s.marks.size() > MAX_MARKS) {
            thin_out(s.marks);
        }
    }
}

// ---- giving back --------------------------------------------------------------------------------------------------------

// A picture of which only a part was computed: nobody can go on from there.
void prefix_cache::forget_part(sequence & s) {
    cut(s, without_part(s.spans, s.n_cached));
}

static media_spans spans_within(const media_spans & spans, size_t n) {
    media_spans within;
    std::copy_if(spans.begin(), spans.end(), std::back_inserter(within), [&](const media_span & span) { return span.end() <= n; });
    return within;
}

void prefix_cache::keep(sequence & s) {
    if (s.seq < 0) {
        return;
    }
    forget_part(s);
    if (s.n_cached == 0) {
        return drop(s);
    }
    s.tokens.resize(s.n_cached);
    idle_.push_front({s.cache_key, std::move(s.tokens), spans_within(s.spans, s.n_cached), std::move(s.marks), s.seq, nullptr});
    s.seq = -1;
    s.n_cached = 0;
    trim();
}

void prefix_cache::set_aside(sequence & s) {
    forget_part(s);
    saved_state_ptr saved = s.n_cached > 0 ? save(s.seq, saved_state::part::all) : nullptr;
    if (saved) {
        std::vector<llama_token> computed(s.tokens.begin(), s.tokens.begin() + long(s.n_cached));
        idle_.push_front({s.cache_key, std::move(computed), spans_within(s.spans, s.n_cached), s.marks, -1, std::move(saved)});
    }
    drop(s);
}

void prefix_cache::cut(sequence & s, size_t n) {
    if (n >= s.n_cached) {
        return;
    }
    s.marks.clear();
    s.n_cached = n;
    if (kind_ != sharing::any_prefix || !remove_from(s, n) || !holds(s, n)) {
        llama_memory_seq_rm(memory_, s.seq, -1, -1);
        s.n_cached = 0;
    }
}

void prefix_cache::drop(sequence & s) {
    if (s.seq >= 0) {
        free_id(s.seq);
        s.seq = -1;
        s.n_cached = 0;
        s.marks.clear();
    }
}

// The sequence that was kept last stays, whatever its size: its next turn may be on its way.
void prefix_cache::trim() {
    spared_ = idle_.empty() ? nullptr : &idle_.front();
    while (idle_tokens() > limits_.idle_cells && evict(false)) {
    }
    spared_ = nullptr;
}

// ---- eviction -----------------------------------------------------------------------------------------------------------

// Of those that are held, or of the others.
bool prefix_cache::evict(bool held) {
    const auto oldest = std::find_if(idle_.rbegin(), idle_.rend(),
                                     [&](const entry & e) { return e.seq >= 0 && &e != spared_ && is_held(e) == held; });
    if (oldest == idle_.rend()) {
        return false;
    }
    const auto leaving = std::next(oldest).base();
    leaving->saved = save(leaving->seq, saved_state::part::all);
    free_id(leaving->seq);
    leaving->seq = -1;
    if (!leaving->saved) {
        idle_.erase(leaving);
    }
    return true;
}

// One of the least recently used sequence that has any; false if there is none.
bool prefix_cache::forget_mark(bool in_passing) {
    for (auto e = idle_.rbegin(); e != idle_.rend(); ++e) {
        const auto found = std::find_if(e->marks.begin(), e->marks.end(), [&](const mark & m) { return !(in_passing && m.wanted); });
        if (found != e->marks.end() && &*e != spared_) {
            e->marks.erase(found);
            return true;
        }
    }
    return false;
}

// A copy within the budget. What is forgotten for it: marks made in passing, the least recently used sequences in host memory,
// the other marks.
saved_state_ptr prefix_cache::save(llama_seq_id seq, saved_state::part what) {
    const size_t size = saved_state::size_of(ctx_, seq, what);
    if (size == 0 || size > limits_.host_bytes) {
        return nullptr;
    }
    while (*host_bytes_ + size > limits_.host_bytes) {
        if (forget_mark(true)) {
            continue;
        }
        const auto oldest = std::find_if(idle_.rbegin(), idle_.rend(),
                                         [&](const entry & e) { return e.seq < 0 && e.saved && &e != spared_; });
        if (oldest != idle_.rend()) {
            idle_.erase(std::next(oldest).base());
        } else if (!forget_mark(false)) {
            return nullptr;
        }
    }
    return saved_state::of(ctx_, seq, what, host_bytes_);
}

llama_seq_id prefix_cache::take_free_id() {
    if (free_.empty() && !evict()) {
        return -1;
    }
    const llama_seq_id id = free_.back();
    free_.pop_back();
    return id;
}

void prefix_cache::free_id(llama_seq_id seq) {
    llama_memory_seq_rm(memory_, seq, -1, -1);
    free_.push_back(seq);
}

}  // namespace lm
