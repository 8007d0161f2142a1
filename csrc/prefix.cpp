#include "prefix.h"

#include <algorithm>

namespace lm {

prefix_cache::prefix_cache(llama_memory_t memory, sharing kind, int32_t n_sequences) : memory_(memory), kind_(kind) {
    for (llama_seq_id id = n_sequences - 1; id >= 0; id--) {
        free_.push_back(id);
    }
}

static size_t common_prefix(const std::vector<llama_token> & a, size_t n_a, const std::vector<llama_token> & b, size_t n_b) {
    const size_t n = std::min(n_a, n_b);
    return size_t(std::mismatch(a.begin(), a.begin() + long(n), b.begin()).first - a.begin());
}

prefix_cache::source prefix_cache::longest_prefix(const sequence & s, const std::vector<sequence *> & running) {
    const size_t most = s.tokens.size() - 1;
    source best;
    for (auto it = idle_.begin(); it != idle_.end(); ++it) {
        if (it->cache_key != s.cache_key) {
            continue;
        }
        const size_t n = common_prefix(s.tokens, most, it->tokens, it->tokens.size());
        const bool whole = n == it->tokens.size();
        const bool usable = whole || kind_ == sharing::any_prefix;
        if (usable && (n > best.shared || (n == best.shared && n > 0 && whole))) {
            best = {it->seq, n, it, whole};
        }
    }
    if (kind_ == sharing::any_prefix) {
        for (const sequence * other : running) {
            if (other->cache_key != s.cache_key) {
                continue;
            }
            const size_t n = common_prefix(s.tokens, most, other->tokens, other->n_cached);
            if (n > best.shared) {
                best = {other->seq, n, {}, false};
            }
        }
    }
    return best;
}

llama_seq_id prefix_cache::take_free_id() {
    if (free_.empty() && !evict()) {
        return -1;
    }
    const llama_seq_id id = free_.back();
    free_.pop_back();
    return id;
}

bool prefix_cache::share(llama_seq_id from, sequence & s, size_t n) {
    llama_memory_seq_cp(memory_, from, s.seq, 0, llama_pos(n));
    const bool complete = llama_memory_seq_pos_min(memory_, s.seq) == 0 &&
                          llama_memory_seq_pos_max(memory_, s.seq) == llama_pos(n) - 1;
    if (!complete) {
        llama_memory_seq_rm(memory_, s.seq, -1, -1); // a memory that does not keep all positions: compute afresh
    }
    return complete;
}

bool prefix_cache::assign(sequence & s, const std::vector<sequence *> & running) {
    source from = longest_prefix(s, running);
    if (from.whole) {
        s.seq = from.seq;
        s.n_cached = from.shared;
        idle_.erase(from.idle);
        return true;
    }
    // the source must survive an eviction that finds a free id
    if (from.shared > 0) {
        const auto idle = std::find_if(idle_.begin(), idle_.end(), [&](const entry & e) { return e.seq == from.seq; });
        if (idle != idle_.end()) {
            idle_.splice(idle_.begin(), idle_, idle);
        }
    }
    if (free_.empty() && idle_.size() == 1 && idle_.front().seq == from.seq) {
        // only the source itself could make room: cut it to what is shared and go on in it
        s.seq = from.seq;
        llama_memory_seq_rm(memory_, s.seq, llama_pos(from.shared), -1);
        s.n_cached = from.shared;
        idle_.clear();
        return true;
    }
    s.seq = take_free_id();
    if (s.seq < 0) {
        return false;
    }
    s.n_cached = from.shared > 0 && share(from.seq, s, from.shared) ? from.shared : 0;
    return true;
}

void prefix_cache::keep(sequence & s) {
    if (s.seq < 0) {
        return;
    }
    if (s.n_cached == 0) {
        drop(s);
        return;
    }
    s.tokens.resize(s.n_cached);
    idle_.push_front({s.seq, std::move(s.tokens), std::move(s.cache_key)});
    s.seq = -1;
    s.n_cached = 0;
}

void prefix_cache::drop(sequence & s) {
    if (s.seq >= 0) {
        llama_memory_seq_rm(memory_, s.seq, -1, -1);
        free_.push_back(s.seq);
        s.seq = -1;
        s.n_cached = 0;
    }
}

bool prefix_cache::evict() {
    if (idle_.empty()) {
        return false;
    }
    llama_memory_seq_rm(memory_, idle_.back().seq, -1, -1);
    free_.push_back(idle_.back().seq);
    idle_.pop_back();
    return true;
}

size_t prefix_cache::idle_tokens() const {
    size_t n = 0;
    for (const entry & e : idle_) {
        n += e.tokens.size();
    }
    return n;
}

}  // namespace lm
