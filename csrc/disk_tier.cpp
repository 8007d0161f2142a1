#include "disk_tier.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

namespace lm {

// What another prompt may begin with, too, is kept from this length on: less is computed about as soon as it is read.
static constexpr size_t WORTH_KEEPING = 256;
// Of a prompt so much must have been new for it to be kept as a whole: a document, or the code of a project.
static constexpr size_t LONG = 512;
// What is brought must spare a prompt so many tokens.
static constexpr size_t WORTH_BRINGING = 64;
// A prompt that is brought may be gone again before its request has its place. Then once more.
static constexpr int MOST_FETCHES = 2;

// Pieces are copied between two steps for about so long where others stream, ...
static constexpr double COPY_MS_BESIDE_STREAMS = 10;
// ... and those that leave so far apart: nobody waits for them.
static constexpr double LEAVE_EVERY_MS = 200;
// What can only be copied as a whole is not while others stream if that takes long: some 20 ms.
static constexpr size_t MOST_BYTES_BESIDE_STREAMS = 64u << 20;

// An engine that ends goes on writing for so long: whoever unloads a model waits for it.
static constexpr double LAST_MOMENT_MS = 300;

// Prompts that are being written, and are held in their cells for it. Where there are so many, others are not kept: they are
// when they come again.
static constexpr size_t MOST_LEAVING = 16;
// Fetches in a row that took longer than it would have taken to compute what they brought: the disk is not worth it. It may have
// been busy, or the machine: after a while it is tried again, once.
static constexpr int MOST_SLOW = 3;
static constexpr double LEFT_ALONE_MS = 60000;

disk_tier::disk_tier(const model & m, prefix_cache & cache, pulse & p, std::function<void()> news)
    : model_(m), cache_(cache), pulse_(p), piece_tokens_(m.piece_tokens()),
      store_(m.prompts().folder, m.prompts().model, m.prompts().bytes, p, std::move(news)) {}

// ---- what there is --------------------------------------------------------------------------------------------------------

// Tokens of its prompt that can be kept or brought: those ahead of the first picture, and never the last, whose row is wanted.
size_t disk_tier::most_of(const sequence & s) const {
    const size_t text = s.spans.empty() ? s.tokens.size() : s.spans.front().begin;
    return std::min(text, s.tokens.size() - 1);
}

static std::vector<uint32_t> multiples(size_t of, size_t up_to) {
    std::vector<uint32_t> all;
    for (size_t n = of; n <= up_to; n += of) {
        all.push_back(uint32_t(n));
    }
    return all;
}

static std::vector<prompt_beginning> digests(const std::string & model, const std::string & key, const std::vector<llama_token> & tokens,
                                             const std::vector<uint32_t> & ends) {
    std::vector<prompt_beginning> all;
    prompt_digester digester(model, key);
    size_t n = 0;
    for (const uint32_t end : ends) {
        digester.push(tokens.data() + n, end - n);
        n = end;
        all.push_back({end, digester.digest()});
    }
    return all;
}

void disk_tier::find_beginnings(sequence & s) const {
    std::vector<uint32_t> ends = piece_tokens_ > 0 ? multiples(piece_tokens_, most_of(s)) : store_.ends();
    ends.erase(std::upper_bound(ends.begin(), ends.end(), uint32_t(most_of(s))), ends.end());
    if (piece_tokens_ == 0 || s.beginnings.size() != ends.size()) {
        s.beginnings = digests(model_.prompts().model, s.cache_key, s.tokens, ends);
    }
}

prompt_piece disk_tier::piece_of(const std::vector<llama_token> & tokens, const prompt_beginning & to, size_t begin) const {
    prompt_piece piece;
    piece.digest = to.digest;
    piece.begin = uint32_t(begin);
    piece.end = to.end;
    piece.tokens.assign(tokens.begin() + long(begin), tokens.begin() + long(to.end));
    return piece;
}

// The pieces, which are there, of what follows the first `from` tokens.
std::vector<prompt_piece> disk_tier::wanted_by(const sequence & s, size_t from) const {
    std::vector<prompt_piece> wanted;
    if (piece_tokens_ == 0) {
        const auto longest = std::find_if(s.beginnings.rbegin(), s.beginnings.rend(),
                                          [this](const prompt_beginning & b) { return store_.has(b.digest, b.end); });
        if (longest != s.beginnings.rend() && longest->end > from) {
            wanted.push_back(piece_of(s.tokens, *longest, 0));
        }
        return wanted;
    }
    for (size_t i = from / piece_tokens_; i < s.beginnings.size() && store_.has(s.beginnings[i].digest, s.beginnings[i].end); i++) {
        wanted.push_back(piece_of(s.tokens, s.beginnings[i], i * piece_tokens_));
    }
    return wanted;
}

// ---- bringing -------------------------------------------------------------------------------------------------------------

bool disk_tier::brings(sequence & s, const std::vector<sequence *> & running) {
    if (is_left_alone() || (is_large_ && !running.empty()) || s.admitted || s.is_scoring() || s.n_fetches >= MOST_FETCHES || most_of(s) < WORTH_BRINGING) {
        return false;
    }
    find_beginnings(s);
    const size_t known = cache_.reusable(s, running);
    const std::vector<prompt_piece> more = wanted_by(s, known);
    if (more.empty() || more.back().end < known + WORTH_BRINGING) {
        store_.look_again();
        return false;
    }
    if (is_fetching_) {
        return true; // after the other
    }
    const size_t end = more.back().end;
    const std::optional<size_t> begin =
        cache_.begin_arrival(s.cache_key, {s.tokens.begin(), s.tokens.begin() + long(end)}, std::max<size_t>(piece_tokens_, 1), running);
    if (!begin) {
        return false;
    }
    s.n_fetches++;
    is_fetching_ = goes_on_ = true;
    known_ = *begin;
    copy_ms_ = 0;
    store_.fetch(wanted_by(s, *begin));
    return true;
}

// One piece, or the end.
void disk_tier::take(bool beside_streams) {
    prompt_piece piece;
    switch (store_.take(piece)) {
        case prompt_store::fetched::nothing: return;
        case prompt_store::fetched::piece: {
            const auto began = steady::now();
            is_large_ = is_large_ || piece.state.size() > MOST_BYTES_BESIDE_STREAMS;
            goes_on_ = goes_on_ && !(beside_streams && is_large_) && cache_.add_to_arrival(piece.end, piece.state);
            copy_ms_ += ms_between(began, steady::now());
            return;
        }
        case prompt_store::fetched::end: return end_fetch();
    }
}

void disk_tier::end_fetch() {
    is_fetching_ = false;
    const size_t n = cache_.end_arrival();
    if (n <= known_) {
        return;
    }
    pulse_.disk_hits++;
    pulse_.disk_tokens += n - known_;
    const bool was_slow = token_ms_ > 0 && store_.read_ms() + copy_ms_ > token_ms_ * double(n - known_);
    n_slow_ = was_slow ? n_slow_ + 1 : 0;
    if (n_slow_ >= MOST_SLOW) {
        slow_at_ = steady::now();
        while (!leaving_.empty()) {
            let_go();
        }
        if (n_slow_ == MOST_SLOW) {
            fprintf(stderr, "lmlite: the prompt cache on the disk is left alone for now: to read prompts takes longer than to compute them\n");
        }
    }
}

bool disk_tier::is_left_alone() const {
    return n_slow_ >= MOST_SLOW && ms_between(slow_at_, steady::now()) < LEFT_ALONE_MS;
}

void disk_tier::learn(size_t n_prefilled, double step_ms) {
    constexpr double WEIGHT = 0.2; // of the last step
    const double ms = step_ms / double(n_prefilled);
    token_ms_ = token_ms_ == 0 ? ms : token_ms_ + (ms - token_ms_) * WEIGHT;
}

// ---- keeping --------------------------------------------------------------------------------------------------------------

void disk_tier::welcome(sequence & s) {
    s.worth_keeping.clear();
    if (is_left_alone() || s.is_scoring()) {
        return;
    }
    const size_t most = most_of(s);
    const auto is_worth = [&](size_t n) {
        if (n >= WORTH_KEEPING && n <= most) {
            s.worth_keeping.push_back(n);
            cache_.want_mark(s, n);
        }
    };
    is_worth(s.n_preamble);
    is_worth(s.n_common);
    for (const prompt_beginning & b : s.beginnings) { // what is missing ahead of one that is there
        if (piece_tokens_ > 0 && b.end > s.n_cached && store_.has(b.digest, b.end)) {
            is_worth(b.end);
        }
    }
    if (s.n_prompt >= s.n_cached + LONG) {
        is_worth(std::min(s.n_repeated > 0 ? s.n_repeated : s.n_prompt, most));
    }
}

void disk_tier::reached(sequence & s, bool beside_streams) {
    if (s.worth_keeping.empty()) {
        return;
    }
    if (model_.memory_sharing() == sharing::at_marks) {
        if (std::find(s.worth_keeping.begin(), s.worth_keeping.end(), s.n_cached) != s.worth_keeping.end()) {
            keep_whole(s, s.n_cached, beside_streams);
        }
    } else if (s.n_cached >= s.n_prompt) {
        keep_prompt(s);
        s.worth_keeping.clear();
    }
}

void disk_tier::keep_prompt(const sequence & s) {
    const size_t end = *std::max_element(s.worth_keeping.begin(), s.worth_keeping.end()) / piece_tokens_ * piece_tokens_;
    if (end == 0 || leaving_.size() == MOST_LEAVING) {
        return;
    }
    std::vector<prompt_beginning> ends = digests(model_.prompts().model, s.cache_key, s.tokens, multiples(piece_tokens_, end));
    const bool is_known = std::any_of(leaving_.begin(), leaving_.end(), [&](const leaving & other) {
        return other.ends.size() >= ends.size() && other.ends[ends.size() - 1].digest == ends.back().digest;
    });
    const bool is_there = std::all_of(ends.begin(), ends.end(), [this](const prompt_beginning & b) { return store_.has(b.digest, b.end); });
    if (is_known || is_there) {
        return;
    }
    const std::vector<llama_token> tokens(s.tokens.begin(), s.tokens.begin() + long(end));
    leaving_.push_back({std::make_shared<const text_prompt>(text_prompt{s.cache_key, tokens}), std::move(ends), 0, now_ns()});
    cache_.hold(leaving_.back().text);
}

void disk_tier::let_go() {
    const text_prompt_ptr text = leaving_.front().text;
    leaving_.pop_front();
    cache_.let_go(text);
}

void disk_tier::keep_whole(const sequence & s, size_t end, bool beside_streams) {
    const prompt_beginning to = digests(model_.prompts().model, s.cache_key, s.tokens, {uint32_t(end)}).front();
    if (cache_.bytes_of(s) > (beside_streams ? MOST_BYTES_BESIDE_STREAMS : MOST_STATE_BYTES) || !store_.has_room() || store_.has(to.digest, to.end)) {
        return;
    }
    prompt_piece piece = piece_of(s.tokens, to, 0);
    if (cache_.copy_out(s, piece.state)) {
        store_.keep(std::move(piece), now_ns());
    }
}

// The next piece of a prompt that is not on the disk yet. False: there was none.
bool disk_tier::copy_next(const std::vector<sequence *> & running) {
    while (!leaving_.empty()) {
        leaving & prompt = leaving_.front();
        while (prompt.next < prompt.ends.size() && store_.has(prompt.ends[prompt.next].digest, prompt.ends[prompt.next].end)) {
            prompt.next++;
        }
        if (prompt.next < prompt.ends.size()) {
            const prompt_beginning & to = prompt.ends[prompt.next++];
            prompt_piece piece = piece_of(prompt.text->tokens, to, to.end - piece_tokens_);
            if (cache_.copy_out(*prompt.text, piece.begin, piece.end, running, piece.state)) {
                store_.keep(std::move(piece), prompt.used_ns);
                copied_ = steady::now();
                return true;
            }
        }
        let_go(); // it is there, or its cells were needed
    }
    return false;
}

// ---- between steps ----------------------------------------------------------------------------------------------------------

void disk_tier::work(const std::vector<sequence *> & running) {
    const auto began = steady::now();
    while (is_fetching_ && store_.has_news() && (running.empty() || ms_between(began, steady::now()) < COPY_MS_BESIDE_STREAMS)) {
        take(!running.empty());
    }
    const bool may_leave = running.empty() || ms_between(copied_, began) >= LEAVE_EVERY_MS;
    if (!is_fetching_ && may_leave && !leaving_.empty() && store_.has_room()) {
        copy_next(running);
    }
}

void disk_tier::finish(const std::vector<sequence *> & running) {
    const auto began = steady::now();
    while (!leaving_.empty() && ms_between(began, steady::now()) < LAST_MOMENT_MS) {
        if (!store_.has_room()) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        } else if (!copy_next(running)) {
            return;
        }
    }
}

bool disk_tier::has_work() const {
    return (is_fetching_ && store_.has_news()) || (!is_fetching_ && !leaving_.empty() && store_.has_room());
}

bool disk_tier::awaits() const {
    return is_fetching_ && !store_.has_news();
}

}  // namespace lm
