#include "sampler.h"

#include "error.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace lm {

static constexpr float NEVER = -std::numeric_limits<float>::infinity();

// Candidates are tested against a grammar in descending order, this many first, then more; a valid token is nearly
// always among the first few.
static constexpr size_t GRAMMAR_TIERS[] = {64, 1024, std::numeric_limits<size_t>::max()};

// A candidate this many nats (after temperature) under the best one cannot be drawn in practice: e^-16 is 1e-7.
static constexpr float NEGLIGIBLE_NATS = 16.0f;

sampler_ptr compile_grammar(const vocabulary & vocab, const std::string & gbnf) {
    sampler_ptr grammar(llama_sampler_init_grammar(vocab.get(), gbnf.c_str(), "root"));
    if (!grammar) {
        throw invalid_request("grammar", "the grammar does not parse");
    }
    return grammar;
}

// ---- scans over the row ---------------------------------------------------------------------------------------------

static llama_token argmax(const float * logits, int32_t n) {
    llama_token best = 0;
    float best_logit = NEVER;
    for (int32_t i = 0; i < n; i++) {
        if (logits[i] > best_logit) {
            best_logit = logits[i];
            best = i;
        }
    }
    return best;
}

static void sort_descending(std::vector<candidate> & candidates) {
    std::sort(candidates.begin(), candidates.end(), [](const candidate & a, const candidate & b) {
        return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
    });
}

// The k largest, sorted: one pass with a threshold that rises whenever 2k have been seen.
static std::vector<candidate> top_candidates(const float * logits, int32_t n, size_t k) {
    const auto larger = [](const candidate & a, const candidate & b) { return a.logit > b.logit; };
    std::vector<candidate> kept;
    k = std::min(k, size_t(n));
    kept.reserve(2 * k);
    float threshold = NEVER;
    for (int32_t i = 0; i < n; i++) {
        if (logits[i] > threshold) {
            kept.push_back({i, logits[i]});
            if (kept.size() == 2 * k && k < size_t(n)) {
                std::nth_element(kept.begin(), kept.begin() + long(k - 1), kept.end(), larger);
                kept.resize(k);
                threshold = kept[k - 1].logit;
            }
        }
    }
    sort_descending(kept);
    kept.resize(std::min(kept.size(), k));
    return kept;
}

static std::vector<candidate> candidates_above(const float * logits, int32_t n, float threshold) {
    std::vector<candidate> kept;
    for (int32_t i = 0; i < n; i++) {
        if (logits[i] >= threshold) {
            kept.push_back({i, logits[i]});
        }
    }
    sort_descending(kept);
    return kept;
}

// e^x for x <= 0 with a relative error under 2e-7, written so that compilers vectorise it.
static inline float exp_nonpositive(float x) {
    x = std::max(x, -87.0f);
    const float scaled = x * 1.44269504f;
    const float whole = std::floor(scaled + 0.5f);
    const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (int32_t(whole) + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

// Sum of e^((l - max) * scale). Partial sums keep the error of a 150 k row below 1e-6.
static double sum_exp(const float * logits, int32_t n, float max, float scale) {
    double total = 0;
    for (int32_t begin = 0; begin < n; begin += 1024) {
        const int32_t end = std::min(n, begin + 1024);
        float lanes[16] = {};
        int32_t i = begin;
        for (; i + 16 <= end; i += 16) {
            for (int lane = 0; lane < 16; lane++) {
                lanes[lane] += exp_nonpositive((logits[i + lane] - max) * scale);
            }
        }
        for (; i < end; i++) {
            lanes[0] += exp_nonpositive((logits[i] - max) * scale);
        }
        for (const float lane : lanes) {
            total += double(lane);
        }
    }
    return total;
}

token_logprob read_logprob(const float * logits, int32_t n, llama_token id, int32_t n_top) {
    const float max = logits[argmax(logits, n)];
    const float log_total = max + float(std::log(sum_exp(logits, n, max, 1.0f)));
    token_logprob read = {id, logits[id] - log_total, {}};
    if (n_top > 0) {
        read.top = top_candidates(logits, n, size_t(n_top));
        for (candidate & c : read.top) {
            c.logit -= log_total;
        }
    }
    return read;
}

// ---- the sampler ----------------------------------------------------------------------------------------------------

static bool needs_chain(const sampling_params & p) {
    return p.mirostat != 0 || p.dry_multiplier > 0 || p.typical_p < 1.0f || p.xtc_probability > 0;
}

static sampler_ptr make_chain(const sampling_params & p, const vocabulary & vocab, uint32_t seed, int32_t n_context) {
    llama_sampler_chain_params chain_params = llama_sampler_chain_default_params();
    chain_params.no_perf = true;
    sampler_ptr chain(llama_sampler_chain_init(chain_params));
    const auto add = [&](llama_sampler * s) { llama_sampler_chain_add(chain.get(), s); };
    if (p.mirostat != 0) {
        add(llama_sampler_init_temp(p.temperature));
        add(p.mirostat == 1 ? llama_sampler_init_mirostat(vocab.size(), seed, p.mirostat_tau, p.mirostat_eta, 100)
                            : llama_sampler_init_mirostat_v2(seed, p.mirostat_tau, p.mirostat_eta));
        return chain;
    }
    if (p.dry_multiplier > 0) {
        std::vector<const char *> breakers;
        for (const std::string & breaker : p.dry_sequence_breakers) {
            breakers.push_back(breaker.c_str());
        }
        const int32_t window = p.dry_penalty_last_n < 0 ? n_context : std::min(p.dry_penalty_last_n, n_context);
        add(llama_sampler_init_dry(vocab.get(), p.dry_multiplier, p.dry_base, p.dry_allowed_length, window,
                                   breakers.data(), breakers.size()));
    }
    add(llama_sampler_init_top_k(p.top_k));
    add(llama_sampler_init_typical(p.typical_p, 0));
    add(llama_sampler_init_top_p(p.top_p, 0));
    add(llama_sampler_init_min_p(p.min_p, 0));
    add(llama_sampler_init_xtc(p.xtc_probability, p.xtc_threshold, 0, seed));
    add(llama_sampler_init_temp(p.temperature));
    add(llama_sampler_init_dist(seed));
    return chain;
}

static bool penalizes(const sampling_params & p) {
    return p.repeat_last_n != 0 && (p.repeat_penalty != 1.0f || p.presence_penalty != 0 || p.frequency_penalty != 0);
}

sampler::sampler(const sampling_params & params, const vocabulary & vocab, sampler_ptr grammar, int32_t n_context)
    : params_(params), vocab_(vocab), grammar_(std::move(grammar)) {
    const uint32_t seed = params_.seed ? *params_.seed : std::random_device{}();
    rng_.seed(seed);
    if (needs_chain(params_)) {
        chain_ = make_chain(params_, vocab, seed, n_context);
    }
    if (penalizes(params_)) {
        const int32_t asked = params_.repeat_last_n < 0 ? n_context : params_.repeat_last_n;
        window_size_ = size_t(std::min(asked, n_context));
    }
    int32_t n_suppressed = 0;
    const llama_token * suppressed = llama_vocab_get_suppress_tokens(vocab.get(), &n_suppressed);
    for (int32_t i = 0; i < n_suppressed; i++) {
        params_.logit_bias.push_back({suppressed[i], NEVER});
    }
}

void sampler::observe(llama_token id) {
    if (chain_) {
        llama_sampler_accept(chain_.get(), id);
    }
    if (window_size_ == 0) {
        return;
    }
    const auto count_of = [&](llama_token t) {
        return std::find_if(counts_.begin(), counts_.end(), [t](const auto & c) { return c.first == t; });
    };
    if (window_.size() < window_size_) {
        window_.push_back(id);
    } else {
        const auto oldest = count_of(window_[window_next_]);
        if (--oldest->second == 0) {
            *oldest = counts_.back();
            counts_.pop_back();
        }
        window_[window_next_] = id;
        window_next_ = (window_next_ + 1) % window_size_;
    }
    const auto counted = count_of(id);
    if (counted == counts_.end()) {
        counts_.push_back({id, 1});
    } else {
        counted->second++;
    }
}

void sampler::note(llama_token id) {
    observe(id);
    if (grammar_) {
        llama_sampler_accept(grammar_.get(), id); // throws on a token it does not allow: `id` was tested
    }
}

void sampler::apply_bias(float * logits) const {
    for (const auto & [id, bias] : params_.logit_bias) {
        logits[id] += bias;
    }
}

void sampler::apply_penalties(float * logits) const {
    for (const auto & [id, count] : counts_) {
        float & logit = logits[id];
        logit = logit <= 0 ? logit * params_.repeat_penalty : logit / params_.repeat_penalty;
        logit -= float(count) * params_.frequency_penalty + params_.presence_penalty;
    }
}

std::optional<llama_token> sampler::sample(float * logits) {
    apply_bias(logits);
    apply_penalties(logits);
    std::optional<llama_token> id = choose(logits);
    if (id && grammar_ && !allowed(*id)) {
        id = choose_constrained(logits);
    }
    if (id) {
        note(*id);
    }
    return id;
}

// The choice without the grammar. For greedy decoding, and for a chain, testing it first is exact enough (upstream does
// the same); a random draw under a grammar goes straight to the constrained choice.
std::optional<llama_token> sampler::choose(const float * logits) {
    if (chain_) {
        return choose_by_chain(logits);
    }
    if (params_.temperature <= 0) {
        return argmax(logits, vocab_.size());
    }
    if (grammar_) {
        return choose_constrained(logits);
    }
    if (params_.top_k > 0) {
        std::vector<candidate> sorted = top_candidates(logits, vocab_.size(), size_t(params_.top_k));
        return sorted.empty() ? argmax(logits, vocab_.size()) : draw(sorted, 0);
    }
    return draw_row(logits);
}

// Without top-k: the normaliser needs the whole row once, the sorting only what top-p and min-p can leave.
llama_token sampler::draw_row(const float * logits) {
    const int32_t n = vocab_.size();
    const llama_token best = argmax(logits, n);
    const float max = logits[best];
    if (!std::isfinite(max)) {
        return best;
    }
    const bool nucleus = params_.top_p < 1.0f;
    if (params_.min_p > 0) {
        std::vector<candidate> sorted = candidates_above(logits, n, max + std::log(params_.min_p));
        return draw(sorted, nucleus ? sum_exp(logits, n, max, 1.0f) : 0);
    }
    if (nucleus) {
        const double total = sum_exp(logits, n, max, 1.0f);
        for (float depth = 6.0f;; depth *= 2) {
            std::vector<candidate> sorted = candidates_above(logits, n, max - depth);
            double mass = 0;
            for (const candidate & c : sorted) {
                mass += double(exp_nonpositive(c.logit - max));
            }
            if (mass >= double(params_.top_p) * total || depth > 80.0f) {
                return draw(sorted, total);
            }
        }
    }
    const float scale = 1.0f / params_.temperature;
    double left = std::uniform_real_distribution<double>(0, sum_exp(logits, n, max, scale))(rng_);
    for (int32_t i = 0; i < n; i++) {
        left -= double(exp_nonpositive((logits[i] - max) * scale));
        if (left < 0 && logits[i] > NEVER) {
            return i;
        }
    }
    return best;
}

// Cuts by top-p and min-p, then draws at the temperature. `total` is the mass that top-p is a share of, relative to the
// first candidate; 0: that of the candidates themselves.
llama_token sampler::draw(std::vector<candidate> & sorted, double total) {
    const float max = sorted[0].logit;
    if (!std::isfinite(max)) {
        return sorted[0].id;
    }
    const float floor = params_.min_p > 0 ? max + std::log(params_.min_p) : NEVER;
    if (total == 0) {
        for (const candidate & c : sorted) {
            total += double(exp_nonpositive(c.logit - max));
        }
    }
    const double wanted = params_.top_p < 1.0f ? double(params_.top_p) * total : std::numeric_limits<double>::infinity();
    const float scale = 1.0f / params_.temperature;
    double mass = 0;
    double weight = 0;
    size_t n = 0;
    while (n < sorted.size() && (n == 0 || (mass < wanted && sorted[n].logit >= floor))) {
        const float below = sorted[n].logit - max;
        mass += double(exp_nonpositive(below));
        weight += double(exp_nonpositive(below * scale));
        n++;
    }
    double left = std::uniform_real_distribution<double>(0, weight)(rng_);
    for (size_t i = 0; i < n; i++) {
        left -= double(exp_nonpositive((sorted[i].logit - max) * scale));
        if (left < 0) {
            return sorted[i].id;
        }
    }
    return sorted[0].id;
}

bool sampler::allowed(llama_token id) const {
    llama_token_data data = {id, 1.0f, 0.0f};
    llama_token_data_array one = {&data, 1, -1, false};
    llama_sampler_apply(grammar_.get(), &one);
    return data.logit > NEVER;
}

// Walks down the candidates in descending order until enough of them satisfy the grammar; then as without one.
std::optional<llama_token> sampler::choose_constrained(const float * logits) {
    const bool greedy = params_.temperature <= 0;
    const size_t enough = greedy ? 1 : params_.top_k > 0 ? size_t(params_.top_k) : std::numeric_limits<size_t>::max();
    const float depth = params_.min_p > 0 ? -std::log(params_.min_p)
                                          : NEGLIGIBLE_NATS * std::max(1.0f, params_.temperature);
    const auto pick = [&](std::vector<candidate> & from) -> std::optional<llama_token> {
        if (from.empty()) {
            return std::nullopt;
        }
        return greedy ? from[0].id : draw(from, 0);
    };
    std::vector<candidate> valid;
    size_t tested = 0;
    for (const size_t tier : GRAMMAR_TIERS) {
        const std::vector<candidate> sorted = top_candidates(logits, vocab_.size(), tier);
        for (; tested < sorted.size(); tested++) {
            const candidate & c = sorted[tested];
            const bool too_deep = !valid.empty() && c.logit < valid[0].logit - depth;
            if (valid.size() >= enough || too_deep || c.logit == NEVER) {
                return pick(valid);
            }
            if (allowed(c.id)) {
                valid.push_back(c);
            }
        }
    }
    return pick(valid);
}

std::optional<llama_token> sampler::choose_by_chain(const float * logits) {
    std::vector<llama_token_data> row;
    row.reserve(size_t(vocab_.size()));
    for (llama_token id = 0; id < vocab_.size(); id++) {
        row.push_back({id, logits[id], 0.0f});
    }
    llama_token_data_array array = {row.data(), row.size(), -1, false};
    llama_sampler_apply(chain_.get(), &array);
    if (array.selected < 0 || array.selected >= int64_t(array.size)) {
        return argmax(logits, vocab_.size());
    }
    return array.data[array.selected].id;
}

}  // namespace lm
