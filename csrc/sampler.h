// Choosing the next token from one row of raw logits: the common samplers on the row itself, llama.cpp's own objects for
// the rare ones. Order as llama.cpp's default chain: bias, penalties, (dry), top-k, (typical), top-p, min-p, (xtc),
// temperature, draw. A grammar comes before all of them: what is drawn is what the chain draws from a row in which every
// token that the grammar forbids is -inf.
#pragma once

#include "matcher.h"
#include "logits.h"
#include "text.h"

#include <memory>
#include <optional>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lm {

// The steps that a choice can take, in llama.cpp's words and default order; `infill` is no part of that.
enum class sampling_step { penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc, temperature, infill };
std::optional<sampling_step> parse_sampling_step(const std::string & name);

struct sampling_params {
    float temperature = 0.8f;
    int32_t top_k = 40;
    float top_p = 0.95f;
    float min_p = 0.05f;
    float typical_p = 1.0f;
    float repeat_penalty = 1.0f;
    int32_t repeat_last_n = 64;
    float presence_penalty = 0.0f;
    float frequency_penalty = 0.0f;
    std::vector<std::pair<llama_token, float>> logit_bias;
    int32_t mirostat = 0;
    float mirostat_tau = 5.0f;
    float mirostat_eta = 0.1f;
    float dry_multiplier = 0.0f;
    float dry_base = 1.75f;
    int32_t dry_allowed_length = 2;
    int32_t dry_penalty_last_n = -1;
    std::vector<std::string> dry_sequence_breakers = {"\n", ":", "\"", "*"};
    float xtc_probability = 0.0f;
    float xtc_threshold = 0.1f;
    float top_n_sigma = -1.0f;        // of standard deviations below the best; not above 0: off
    float dynatemp_range = 0.0f;      // the temperature lies so far around `temperature`, by the entropy; 0: off
    float dynatemp_exponent = 1.0f;
    std::optional<std::vector<sampling_step>> steps; // in this order, and no others; none: the default
    size_t min_tokens = 0;            // so many are chosen before one of `ends` can be
    std::vector<llama_token> ends;
    std::optional<uint32_t> seed;
};

// One sampled token's log probability under the unmodified distribution, and the likeliest tokens.
struct token_logprob {
    llama_token id;
    float logprob;
    std::vector<candidate> top; // `logit` holds the log probability
};

struct sampler_deleter {
    void operator()(llama_sampler * s) const { llama_sampler_free(s); }
};
using sampler_ptr = std::unique_ptr<llama_sampler, sampler_deleter>;

// What `id` and the `n_top` likeliest tokens had in a row that no sampler has touched (n floats).
token_logprob read_logprob(const float * logits, int32_t n, llama_token id, int32_t n_top);

class sampler {
  public:
    // `grammar` may be null. `n_context` caps every window. `vocab` is borrowed.
    sampler(const sampling_params & params, const vocabulary & vocab, matcher_ptr grammar, int32_t n_context);

    // From here on the text obeys `grammar` (null: nothing), which stands where the text does.
    void constrain(matcher_ptr grammar) { matcher_ = std::move(grammar); }

    // Whether what comes next is part of a value that a schema rules.
    bool is_within_schema() const { return matcher_ && matcher_->is_within_schema(); }

    // Feeds a prompt token to the windows of the penalties.
    void observe(llama_token id);

    // Chooses from `logits` (vocab.size() floats, overwritten) and takes note of the choice. Without a value no token
    // satisfies the grammar. Throws error("invalid_request") if the grammar is too costly to follow.
    std::optional<llama_token> sample(float * logits);

    // What the grammar leaves no choice in, as tokens that the model is likely to choose for it.
    std::vector<llama_token> forced(size_t most);

    // Takes note of `id` as if it had been chosen; false (and nothing is noted) if the grammar forbids it.
    bool force(llama_token id);

  private:
    void apply_bias(float * logits) const;
    void put_off_the_end(float * logits) const;
    void apply_penalties(float * logits) const;
    void note(llama_token id);

    std::optional<llama_token> choose(float * logits);
    llama_token choose_any();
    std::optional<llama_token> choose_allowed(float * logits);
    std::optional<llama_token> choose_by_chain(float * logits);
    llama_token run_chain(const float * logits);
    bool mask(float * logits);
    std::optional<llama_token> choose_among_few(const float * logits);

    std::optional<llama_token> choose_among_best(float * logits, size_t n);
    llama_token draw_row();
    llama_token draw_sorted(const std::vector<candidate> & sorted, double mass);
    size_t draw(const std::vector<candidate> & sorted, size_t n);
    size_t n_kept(const std::vector<candidate> & sorted, double mass) const;
    double uniform(double below) { return std::uniform_real_distribution<double>(0, below)(rng_); }

    sampling_params params_;
    const vocabulary & vocab_; // borrowed, outlives every sequence
    matcher_ptr matcher_;      // null: unconstrained
    sampler_ptr chain_;        // null: the fast paths serve
    std::mt19937 rng_;
    size_t n_chosen_ = 0;

    // the window of the penalties, and how often each of its tokens stands in it
    std::vector<llama_token> window_;
    size_t window_size_ = 0;
    size_t window_next_ = 0;
    std::vector<std::pair<llama_token, int32_t>> counts_;
    std::unordered_map<llama_token, size_t> count_of_; // where in counts_

    // the step's, kept for their memory
    row row_;
    std::vector<llama_token_data> chain_row_;
};

}  // namespace lm
