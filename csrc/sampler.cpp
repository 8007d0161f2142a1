#include "sampler.h"

#include "error.h"

#include <algorithm>
#include <cmath>

namespace lm {

static constexpr float NEVER = row::NEVER;

// Under a grammar this many of the best tokens are tested one by one, then more; only where that does not settle the
// choice is the whole vocabulary asked for. One test costs about 50 ns, all of them up to a millisecond or two. Within a schema
// it is 300 ns and 50 µs: a model that knows JSON has what fits among its very best, with another one there is nothing to find.
static constexpr size_t TESTED[] = {128, 512};
static constexpr size_t TESTED_WITHIN_SCHEMA = 128;
static constexpr size_t TESTED_WITHIN_SCHEMA_GREEDY = 16;

// So few tokens are sorted faster than the row is read again.
static constexpr size_t MAX_FEW = 1024;

token_logprob read_logprob(const float * logits, int32_t n, llama_token id, int32_t n_top) {
    row r;
    r.read(logits, n);
    const float log_total = r.max() + float(std::log(r.weigh(1.0f, {})));
    token_logprob read = {id, logits[id] - log_total, {}};
    if (n_top > 0) {
        read.top = r.top(size_t(n_top));
        for (candidate & c : read.top) {
            c.logit -= log_total;
        }
    }
    return read;
}

// ---- llama.cpp's samplers -------------------------------------------------------------------------------------------

static constexpr std::pair<const char *, sampling_step> STEPS[] = {
    {"penalties", sampling_step::penalties}, {"dry", sampling_step::dry},     {"top_n_sigma", sampling_step::top_n_sigma},
    {"top_k", sampling_step::top_k},         {"typ_p", sampling_step::typ_p}, {"top_p", sampling_step::top_p},
    {"min_p", sampling_step::min_p},         {"xtc", sampling_step::xtc},     {"temperature", sampling_step::temperature},
    {"infill", sampling_step::infill}};

std::optional<sampling_step> parse_sampling_step(const std::string & name) {
    for (const auto & [known, step] : STEPS) {
        if (name == known) {
            return step;
        }
    }
    return std::nullopt;
}

// Steps in the default order are that order with those switched off that are not named: the fast paths serve it.
static sampling_params without_default_order(sampling_params p) {
    if (!p.steps || p.mirostat != 0) {
        p.steps.reset(); // mirostat takes no other steps
        return p;
    }
    const std::vector<sampling_step> & steps = *p.steps;
    const bool in_order = std::adjacent_find(steps.begin(), steps.end(), [](auto a, auto b) { return a >= b; }) == steps.end();
    const auto has = [&](sampling_step step) { return std::find(steps.begin(), steps.end(), step) != steps.end(); };
    if (!in_order || has(sampling_step::infill)) {
        return p;
    }
    p.repeat_last_n = has(sampling_step::penalties) ? p.repeat_last_n : 0;
    p.dry_multiplier = has(sampling_step::dry) ? p.dry_multiplier : 0;
    p.top_n_sigma = has(sampling_step::top_n_sigma) ? p.top_n_sigma : -1;
    p.top_k = has(sampling_step::top_k) ? p.top_k : 0;
    p.typical_p = has(sampling_step::typ_p) ? p.typical_p : 1;
    p.top_p = has(sampling_step::top_p) ? p.top_p : 1;
    p.min_p = has(sampling_step::min_p) ? p.min_p : 0;
    p.xtc_probability = has(sampling_step::xtc) ? p.xtc_probability : 0;
    if (!has(sampling_step::temperature)) {
        p.temperature = 1;
        p.dynatemp_range = 0;
    }
    p.steps.reset();
    return p;
}

static bool needs_chain(const sampling_params & p) {
    return p.mirostat != 0 || p.dry_multiplier > 0 || p.typical_p < 1.0f || p.xtc_probability > 0 || p.top_n_sigma > 0 ||
           p.dynatemp_range > 0 || p.steps;
}

static int32_t window_of(int32_t asked, int32_t n_context) {
    return asked < 0 ? n_context : std::min(asked, n_context);
}

static llama_sampler * make_dry(const sampling_params & p, const vocabulary & vocab, int32_t n_context) {
    std::vector<const char *> breakers;
    for (const std::string & breaker : p.dry_sequence_breakers) {
        breakers.push_back(breaker.c_str());
    }
    return llama_sampler_init_dry(vocab.get(), p.dry_multiplier, p.dry_base, p.dry_allowed_length,
                                  window_of(p.dry_penalty_last_n, n_context), breakers.data(), breakers.size());
}

// Ownership passes to the caller.
static llama_sampler * make_step(sampling_step step, const sampling_params & p, const vocabulary & vocab, uint32_t seed,
                                 int32_t n_context) {
    switch (step) {
        case sampling_step::penalties:
            return llama_sampler_init_penalties(vocab.size(), window_of(p.repeat_last_n, n_context), p.repeat_penalty,
                                                p.frequency_penalty, p.presence_penalty);
        case sampling_step::dry: return make_dry(p, vocab, n_context);
        case sampling_step::top_n_sigma: return llama_sampler_init_top_n_sigma(p.top_n_sigma);
        case sampling_step::top_k: return llama_sampler_init_top_k(p.top_k);
        case sampling_step::typ_p: return llama_sampler_init_typical(p.typical_p, 0);
        case sampling_step::top_p: return llama_sampler_init_top_p(p.top_p, 0);
        case sampling_step::min_p: return llama_sampler_init_min_p(p.min_p, 0);
        case sampling_step::xtc: return llama_sampler_init_xtc(p.xtc_probability, p.xtc_threshold, 0, seed);
        case sampling_step::infill: return llama_sampler_init_infill(vocab.get());
        case sampling_step::temperature: break;
    }
    return llama_sampler_init_temp_ext(p.temperature, p.dynatemp_range, p.dynatemp_exponent);
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
    std::vector<sampling_step> steps = {sampling_step::top_n_sigma, sampling_step::top_k, sampling_step::typ_p, sampling_step::top_p,
                                        sampling_step::min_p,       sampling_step::xtc,   sampling_step::temperature};
    if (p.dry_multiplier > 0) {
        steps.insert(steps.begin(), sampling_step::dry);
    }
    for (const sampling_step step : p.steps ? *p.steps : steps) { // the penalties of the default order are ours
        add(make_step(step, p, vocab, seed, n_context));
    }
    add(llama_sampler_init_dist(seed));
    return chain;
}

// Mirostat controls the surprise of the whole distribution; llama.cpp gives it no penalties either.
static bool penalizes(const sampling_params & p) {
    return p.mirostat == 0 && !p.steps && p.repeat_last_n != 0 &&
           (p.repeat_penalty != 1.0f || p.presence_penalty != 0 || p.frequency_penalty != 0);
}

// ---- before the choice ----------------------------------------------------------------------------------------------

sampler::sampler(const sampling_params & params, const vocabulary & vocab, matcher_ptr grammar, int32_t n_context)
    : params_(without_default_order(params)), vocab_(vocab), matcher_(std::move(grammar)) {
    const uint32_t seed = params_.seed ? *params_.seed : std::random_device{}();
    rng_.seed(seed);
    if (needs_chain(params_)) {
        chain_ = make_chain(params_, vocab, seed, n_context);
    }
    if (penalizes(params_)) {
        window_size_ = size_t(window_of(params_.repeat_last_n, n_context));
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
    if (window_.size() < window_size_) {
        window_.push_back(id);
    } else {
        const auto oldest = count_of_.find(window_[window_next_]);
        const size_t at = oldest->second;
        if (--counts_[at].second == 0) {
            count_of_[counts_.back().first] = at;
            counts_[at] = counts_.back();
            counts_.pop_back();
            count_of_.erase(window_[window_next_]);
        }
        window_[window_next_] = id;
        window_next_ = (window_next_ + 1) % window_size_;
    }
    const auto [found, is_new] = count_of_.try_emplace(id, counts_.size());
    if (is_new) {
        counts_.push_back({id, 0});
    }
    counts_[found->second].second++;
}

void sampler::put_off_the_end(float * logits) const {
    if (n_chosen_ < params_.min_tokens) {
        for (const llama_token id : params_.ends) {
            logits[id] = NEVER;
        }
    }
}

void sampler::note(llama_token id) {
    n_chosen_++;
    observe(id);
    if (matcher_) {
        matcher_->accept(id);
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

static double mass_of(const std::vector<candidate> & sorted) {
    double mass = 0;
    for (const candidate & c : sorted) {
        mass += double(exp_nonpositive(c.logit - sorted[0].logit));
    }
    return mass;
}

// ---- the choice -----------------------------------------------------------------------------------------------------

std::optional<llama_token> sampler::sample(float * logits) {
    if (const std::optional<llama_token> only = matcher_ ? matcher_->only() : std::nullopt) {
        note(*only); // whatever the row says
        return only;
    }
    apply_bias(logits);
    apply_penalties(logits);
    put_off_the_end(logits);
    const std::optional<llama_token> id = chain_ ? choose_by_chain(logits) : choose(logits);
    if (id) {
        note(*id);
    }
    return id;
}

std::vector<llama_token> sampler::forced(size_t most) {
    try {
        return matcher_ ? matcher_->forced_tokens(most) : std::vector<llama_token>();
    } catch (const error &) { // too costly to follow, as the next choice will say
        return {};
    }
}

bool sampler::force(llama_token id) {
    if (matcher_ && !matcher_->allows(id)) {
        return false;
    }
    note(id);
    return true;
}

std::optional<llama_token> sampler::choose(float * logits) {
    row_.read(logits, vocab_.size());
    return matcher_ ? choose_allowed(logits) : choose_any();
}

llama_token sampler::choose_any() {
    if (params_.temperature <= 0 || !std::isfinite(row_.max())) {
        return row_.best();
    }
    if (params_.top_k > 0) {
        const std::vector<candidate> sorted = row_.top(size_t(params_.top_k));
        return draw_sorted(sorted, mass_of(sorted));
    }
    return draw_row();
}

// Without top-k. Nothing is sorted: a token is drawn at the temperature from all that min-p leaves, and kept if the mass
// that ranks before it is under top-p. If not, it and all that rank behind it are out, and another one is drawn.
llama_token sampler::draw_row() {
    const float scale = 1.0f / params_.temperature;
    row::cut rest;
    if (params_.min_p > 0) {
        rest = {row_.max() + std::log(params_.min_p), vocab_.size()};
    }
    double mass = 0; // of the row; 0: not known yet
    for (;;) {
        const double total = row_.weigh(scale, rest);
        const llama_token id = row_.pick(uniform(total));
        if (params_.top_p >= 1.0f || id == row_.best()) {
            return id;
        }
        if (scale == 1.0f && rest.is_none()) {
            mass = total;
        }
        const row::cut place = {row_.logits()[id], id};
        const double before = row_.weigh(1.0f, place);
        const double known = before + double(exp_nonpositive(place.logit - row_.max()));
        if (before < double(params_.top_p) * known) {
            return id; // whatever else there is
        }
        if (mass == 0) {
            mass = row_.weigh(1.0f, {});
        }
        if (before < double(params_.top_p) * mass) {
            return id;
        }
        rest = place;
    }
}

// How many of the candidates top-p and min-p leave; `mass` is what top-p is a share of, relative to the first.
size_t sampler::n_kept(const std::vector<candidate> & sorted, double mass) const {
    const float max = sorted[0].logit;
    const float least = params_.min_p > 0 ? max + std::log(params_.min_p) : NEVER;
    const double wanted = params_.top_p < 1.0f ? double(params_.top_p) * mass : std::numeric_limits<double>::infinity();
    double before = 0;
    size_t n = 0;
    while (n < sorted.size() && (n == 0 || (before < wanted && sorted[n].logit >= least))) {
        before += double(exp_nonpositive(sorted[n].logit - max));
        n++;
    }
    return n;
}

llama_token sampler::draw_sorted(const std::vector<candidate> & sorted, double mass) {
    return sorted[draw(sorted, n_kept(sorted, mass))].id;
}

// The index of one of the first `n`, drawn at the temperature.
size_t sampler::draw(const std::vector<candidate> & sorted, size_t n) {
    const float scale = 1.0f / params_.temperature;
    const auto weight = [&](size_t i) { return double(exp_nonpositive((sorted[i].logit - sorted[0].logit) * scale)); };
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        total += weight(i);
    }
    double left = uniform(total);
    for (size_t i = 0; i < n; i++) {
        left -= weight(i);
        if (left < 0) {
            return i;
        }
    }
    return 0;
}

// ---- under a grammar ------------------------------------------------------------------------------------------------

// Sets those of 64 logits to -inf whose bits are not set.
static void keep(float * logits, uint64_t bits) {
    if (bits == 0) {
        std::fill(logits, logits + 64, NEVER);
    } else if (bits != UINT64_MAX) {
        for (int i = 0; i < 64; i++) {
            logits[i] = bits >> i & 1 ? logits[i] : NEVER;
        }
    }
}

// Sets what the grammar forbids to -inf; false if that is everything.
bool sampler::mask(float * logits) {
    const std::vector<uint64_t> & allowed = matcher_->allowed();
    const int32_t whole = vocab_.size() / 64 * 64;
    for (int32_t begin = 0; begin < whole; begin += 64) {
        keep(logits + begin, allowed[size_t(begin) / 64]);
    }
    for (llama_token id = whole; id < vocab_.size(); id++) {
        logits[id] = allowed[size_t(id) / 64] >> (id % 64) & 1 ? logits[id] : NEVER;
    }
    row_.read(logits, vocab_.size());
    return row_.max() > NEVER;
}

// The choice among the tokens that the grammar allows; nothing if they are too many to be listed.
std::optional<llama_token> sampler::choose_among_few(const float * logits) {
    const std::vector<uint64_t> & allowed = matcher_->allowed();
    std::vector<candidate> few;
    for (size_t block = 0; block < allowed.size(); block++) {
        llama_token id = llama_token(block * 64);
        for (uint64_t bits = allowed[block]; bits != 0; bits >>= 1, id++) {
            if (bits & 1 && logits[id] > NEVER) {
                few.push_back({id, logits[id]});
            }
        }
        if (few.size() > MAX_FEW) {
            return std::nullopt;
        }
    }
    if (few.empty()) {
        return std::nullopt;
    }
    std::sort(few.begin(), few.end(), ranks_before);
    if (params_.temperature <= 0) {
        return few[0].id;
    }
    few.resize(std::min(few.size(), params_.top_k > 0 ? size_t(params_.top_k) : few.size()));
    return draw_sorted(few, mass_of(few));
}

std::optional<llama_token> sampler::choose_allowed(float * logits) {
    const bool is_cut = params_.top_k > 0 || params_.top_p < 1.0f || params_.min_p > 0;
    if (params_.temperature > 0 && !is_cut) {
        // One draw from all: it is as good as one from those that are allowed, if it is one of them. If not, to draw again costs
        // more than to ask for these.
        if (std::isfinite(row_.max())) {
            const llama_token id = draw_row();
            if (matcher_->allows(id)) {
                return id;
            }
        }
    } else if (matcher_->is_within_schema()) {
        if (const std::optional<llama_token> id = choose_among_best(logits, params_.temperature <= 0 ? TESTED_WITHIN_SCHEMA_GREEDY : TESTED_WITHIN_SCHEMA)) {
            return id;
        }
    } else {
        for (const size_t n : TESTED) {
            if (const std::optional<llama_token> id = choose_among_best(logits, n)) {
                return id;
            }
        }
    }
    if (std::isfinite(row_.max())) {
        if (const std::optional<llama_token> id = choose_among_few(logits)) {
            return id;
        }
    }
    return mask(logits) ? std::optional(choose_any()) : std::nullopt;
}

// The choice among the allowed ones of the `n` best tokens, if it is certain that no other has a part in it.
std::optional<llama_token> sampler::choose_among_best(float * logits, size_t n) {
    const bool greedy = params_.temperature <= 0;
    const size_t enough = greedy ? 1 : params_.top_k > 0 ? size_t(params_.top_k) : size_t(vocab_.size());
    const std::vector<candidate> best = row_.top(n);
    std::vector<candidate> allowed;
    double tested = 0; // their mass, relative to the row's best
    for (const candidate & c : best) {
        tested += double(exp_nonpositive(c.logit - row_.max()));
        if (!matcher_->allows(c.id)) {
            continue;
        }
        allowed.push_back(c);
        if (allowed.size() == enough) {
            return greedy ? c.id : draw_sorted(allowed, mass_of(allowed));
        }
    }
    if (allowed.empty() || greedy) {
        return std::nullopt;
    }
    const bool rest_is_cut = params_.min_p > 0 && best.back().logit < allowed[0].logit + std::log(params_.min_p);
    const double least = mass_of(allowed);
    if (params_.top_p >= 1.0f) {
        return rest_is_cut ? std::optional(draw_sorted(allowed, least)) : std::nullopt;
    }
    if (params_.top_k > 0) {
        return std::nullopt;
    }
    // The mass of all that is allowed lies between what was found and that plus all that was not tested.
    const double untested = std::max(0.0, row_.weigh(1.0f, {}) - tested);
    const double most = least + untested * std::exp(double(row_.max()) - double(allowed[0].logit));
    const size_t n_most = n_kept(allowed, most);
    if (n_most == allowed.size() && !rest_is_cut) {
        return std::nullopt;
    }
    // One drawn from too many is as good as one of the right ones, if it is one of those.
    const size_t drawn = draw(allowed, n_most);
    if (drawn < n_kept(allowed, least) || !mask(logits)) {
        return allowed[drawn].id;
    }
    const size_t n_true = n_kept(allowed, row_.weigh(1.0f, {}));
    return allowed[drawn < n_true ? drawn : draw(allowed, n_true)].id;
}

// ---- the rare samplers ----------------------------------------------------------------------------------------------

// In llama.cpp's order: the chain's choice if the grammar allows it, else the chain's choice from the masked row.
std::optional<llama_token> sampler::choose_by_chain(float * logits) {
    const llama_token id = run_chain(logits);
    if (!matcher_ || matcher_->allows(id)) {
        return id;
    }
    if (!mask(logits)) {
        return std::nullopt;
    }
    return run_chain(logits);
}

llama_token sampler::run_chain(const float * logits) {
    chain_row_.resize(size_t(vocab_.size()));
    for (llama_token id = 0; id < vocab_.size(); id++) {
        chain_row_[size_t(id)] = {id, logits[id], 0.0f};
    }
    llama_token_data_array array = {chain_row_.data(), chain_row_.size(), -1, false};
    llama_sampler_apply(chain_.get(), &array);
    if (array.selected < 0 || array.selected >= int64_t(array.size)) {
        row_.read(logits, vocab_.size());
        return row_.best();
    }
    return array.data[array.selected].id;
}

}  // namespace lm
