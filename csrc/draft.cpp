#include "draft.h"

#include <algorithm>

namespace lm {

// ---- n-grams ------------------------------------------------------------------------------------------------------------

static constexpr size_t FIRST_BUCKETS = 256;

// The bucket of the GRAM tokens before `end`.
uint32_t ngram_index::bucket(const std::vector<llama_token> & tokens, size_t end) const {
    uint64_t hash = 0;
    for (size_t i = end - GRAM; i < end; i++) {
        hash = (hash + uint64_t(uint32_t(tokens[i])) + 1) * 0x9E3779B97F4A7C15ull;
        hash ^= hash >> 29;
    }
    return uint32_t(hash & (heads_.size() - 1));
}

void ngram_index::insert(const std::vector<llama_token> & tokens, size_t end) {
    int32_t & head = heads_[bucket(tokens, end)];
    earlier_[end] = head;
    head = int32_t(end);
}

void ngram_index::grow(const std::vector<llama_token> & tokens) {
    heads_.assign(std::max(FIRST_BUCKETS, 2 * heads_.size()), -1);
    for (size_t end = GRAM; end < earlier_.size(); end++) {
        insert(tokens, end);
    }
}

// A position enters when the token at it is known: only then has its passage a continuation.
void ngram_index::update(const std::vector<llama_token> & tokens) {
    if (earlier_.size() > tokens.size()) { // another text
        earlier_.clear();
        heads_.clear();
    }
    while (earlier_.size() < tokens.size()) {
        if (earlier_.size() >= heads_.size()) {
            grow(tokens);
        }
        earlier_.push_back(-1);
        if (earlier_.size() > GRAM) {
            insert(tokens, earlier_.size() - 1);
        }
    }
}

std::vector<llama_token> ngram_index::continuation(const std::vector<llama_token> & tokens, size_t n) const {
    const size_t size = tokens.size();
    if (size <= GRAM || earlier_.size() != size) {
        return {};
    }
    size_t from = 0;
    size_t longest = GRAM - 1;
    int32_t at = heads_[bucket(tokens, size)];
    for (int i = 0; i < MAX_PASSAGES && at >= 0 && longest < LONG_MATCH; i++, at = earlier_[size_t(at)]) {
        const size_t most = std::min(size_t(at), LONG_MATCH);
        size_t match = 0;
        while (match < most && tokens[size_t(at) - 1 - match] == tokens[size - 1 - match]) {
            match++;
        }
        if (match > longest) {
            longest = match;
            from = size_t(at);
        }
    }
    std::vector<llama_token> next;
    for (size_t i = 0; from > 0 && i < n; i++) {
        next.push_back(from + i < size ? tokens[from + i] : next[from + i - size]);
    }
    return next;
}

// ---- guesses ------------------------------------------------------------------------------------------------------------

void draft::offer(std::vector<llama_token> next, bool unsure) {
    settle();
    guesses = std::move(next);
    unsure_ = unsure;
    n_open_ = guesses.size();
    total += n_open_;
}

void draft::meet(llama_token id) {
    holds_ = false;
    if (n_open_ == 0) {
        if (unsure_) {
            chance.meet(false); // a guess was wanted, and none was there to be right
            unsure_ = false;
        }
        if (expected_) {
            chance.meet(*expected_ == id);
            expected_.reset();
        }
        return;
    }
    holds_ = guesses[guesses.size() - n_open_] == id;
    chance.meet(holds_);
    if (holds_) {
        accepted++;
        n_open_--;
    } else {
        rejected += n_open_;
        n_open_ = 0;
        unsure_ = false;
    }
}

void draft::settle() {
    ignored += n_open_;
    n_open_ = 0;
    holds_ = false;
    unsure_ = false;
    expected_.reset();
    guesses.clear();
}

}  // namespace lm
