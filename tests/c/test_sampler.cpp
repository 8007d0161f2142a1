// The sampler against llama.cpp's own chain, built with the same parameters: the same token where the choice is certain,
// the same tokens possible and the same distribution where it is drawn. Under a grammar the chain gets the row with all
// that llama.cpp's grammar sampler forbids at -inf.
#include "check.h"
#include "error.h"
#include "fixture.h"
#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>

#include "json-schema-to-grammar.h"
#include "json.h"

using namespace lm;

static std::string object_gbnf() {
    return json_schema_to_grammar(common_json::parse("{\"type\":\"object\"}"));
}

static constexpr int32_t CONTEXT = 4096;

// ---- rows -----------------------------------------------------------------------------------------------------------

enum class shape { normal, flat, peaked, ties, holes };
static const shape SHAPES[] = {shape::normal, shape::flat, shape::peaked, shape::ties, shape::holes};

static std::vector<float> make_row(shape kind, uint32_t seed, size_t n) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal(0.0f, kind == shape::flat ? 0.1f : 3.0f);
    std::vector<float> logits(n);
    for (float & logit : logits) {
        logit = normal(rng);
        if (kind == shape::ties) {
            logit = std::round(logit);
        } else if (kind == shape::holes && rng() % 2 == 0) {
            logit = -INFINITY;
        }
    }
    if (kind == shape::peaked) {
        logits[rng() % n] += 15;
    }
    return logits;
}

// ---- the oracle -----------------------------------------------------------------------------------------------------

struct situation {
    const vocabulary & vocab;
    sampling_params params;
    std::vector<llama_token> history;
    std::string gbnf; // empty: no grammar
};

static matcher_ptr make_matcher(const vocabulary & vocab, const std::string & gbnf) {
    return gbnf.empty() ? nullptr : std::make_unique<matcher>(compile_grammar(vocab, gbnf), vocab);
}

struct llama_chain {
    explicit llama_chain(const situation & s, bool with_rare = false)
        : chain(llama_sampler_chain_init(llama_sampler_chain_default_params())) {
        const sampling_params & p = s.params;
        const int32_t n = s.vocab.size();
        const auto add = [&](llama_sampler * sampler) { llama_sampler_chain_add(chain.get(), sampler); };
        if (!p.logit_bias.empty()) {
            std::vector<llama_logit_bias> biases;
            for (const auto & [id, bias] : p.logit_bias) {
                biases.push_back({id, bias});
            }
            add(llama_sampler_init_logit_bias(n, int32_t(biases.size()), biases.data()));
        }
        if (p.mirostat == 0) {
            add(llama_sampler_init_penalties(n, p.repeat_last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty));
        }
        if (!s.gbnf.empty()) {
            add(llama_sampler_init_grammar(s.vocab.get(), s.gbnf.c_str(), "root"));
        }
        if (p.mirostat != 0) {
            add(llama_sampler_init_temp(p.temperature));
            add(p.mirostat == 1 ? llama_sampler_init_mirostat(n, *p.seed, p.mirostat_tau, p.mirostat_eta, 100)
                                : llama_sampler_init_mirostat_v2(*p.seed, p.mirostat_tau, p.mirostat_eta));
        } else {
            if (with_rare) {
                std::vector<const char *> breakers;
                for (const std::string & breaker : p.dry_sequence_breakers) {
                    breakers.push_back(breaker.c_str());
                }
                add(llama_sampler_init_dry(s.vocab.get(), p.dry_multiplier, p.dry_base, p.dry_allowed_length, CONTEXT,
                                           breakers.data(), breakers.size()));
            }
            add(llama_sampler_init_top_k(p.top_k));
            add(llama_sampler_init_typical(p.typical_p, 0));
            add(llama_sampler_init_top_p(p.top_p, 0));
            add(llama_sampler_init_min_p(p.min_p, 0));
            if (with_rare) {
                add(llama_sampler_init_xtc(p.xtc_probability, p.xtc_threshold, 0, *p.seed));
            }
            add(llama_sampler_init_temp(p.temperature));
            add(llama_sampler_init_dist(*p.seed));
        }
    }

    // What is left of `logits`, with its probabilities, and the token that the chain chose.
    std::map<llama_token, double> apply(const std::vector<float> & logits, llama_token * chosen = nullptr) {
        std::vector<llama_token_data> data;
        for (size_t i = 0; i < logits.size(); i++) {
            data.push_back({llama_token(i), logits[i], 0.0f});
        }
        llama_token_data_array array = {data.data(), data.size(), -1, false};
        llama_sampler_apply(chain.get(), &array);
        if (chosen != nullptr) {
            *chosen = array.data[array.selected].id;
        }
        std::map<llama_token, double> p_of;
        for (size_t i = 0; i < array.size; i++) {
            if (array.data[i].p > 0) {
                p_of[array.data[i].id] = double(array.data[i].p);
            }
        }
        return p_of;
    }

    sampler_ptr chain;
};

static std::map<llama_token, double> theirs(const situation & s, const std::vector<float> & logits) {
    llama_chain chain(s);
    // Only the penalties are told of the history: the grammar stands at its beginning.
    for (int i = 0; i < llama_sampler_chain_n(chain.chain.get()); i++) {
        llama_sampler * member = llama_sampler_chain_get(chain.chain.get(), i);
        if (std::string(llama_sampler_name(member)).find("penalties") != std::string::npos) {
            for (const llama_token id : s.history) {
                llama_sampler_accept(member, id);
            }
        }
    }
    return chain.apply(logits);
}

// One draw in the situation, whatever was drawn before.
class draws {
  public:
    explicit draws(const situation & s) : s_(s), grammar_(s.gbnf.empty() ? nullptr : compile_grammar(s.vocab, s.gbnf)) {}

    std::optional<llama_token> next(std::vector<float> logits) {
        sampling_params p = s_.params;
        p.seed = seed_++;
        sampler one(p, s_.vocab, grammar_ ? std::make_unique<matcher>(grammar_, s_.vocab) : nullptr, CONTEXT);
        for (const llama_token id : s_.history) {
            one.observe(id);
        }
        return one.sample(logits.data());
    }

  private:
    const situation & s_;
    grammar_ptr grammar_;
    uint32_t seed_ = 1;
};

// ---- comparing distributions ----------------------------------------------------------------------------------------

// Pearson's statistic over the tokens that are expected five times or more, the others taken together, as its distance
// from the mean in standard deviations. Chance alone stays below 5.
static double chi_square(const std::map<llama_token, double> & expected, const std::map<llama_token, int> & drawn, int n) {
    double statistic = 0;
    double bins = 0;
    double rest_expected = 0;
    int rest_drawn = n;
    for (const auto & [id, p] : expected) {
        const double e = p * n;
        const auto found = drawn.find(id);
        const int d = found == drawn.end() ? 0 : found->second;
        if (e < 5) {
            rest_expected += e;
            continue;
        }
        statistic += (d - e) * (d - e) / e;
        bins++;
        rest_drawn -= d;
    }
    if (rest_expected >= 1) {
        statistic += (rest_drawn - rest_expected) * (rest_drawn - rest_expected) / rest_expected;
        bins++;
    }
    const double freedom = std::max(bins - 1, 1.0);
    return (statistic - freedom) / std::sqrt(2 * freedom);
}

static std::map<llama_token, int> draw_many(const situation & s, const std::vector<float> & logits, int n) {
    draws d(s);
    std::map<llama_token, int> counts;
    for (int i = 0; i < n; i++) {
        const std::optional<llama_token> id = d.next(logits);
        CHECK(id.has_value());
        counts[*id]++;
    }
    return counts;
}

static void check_distribution(const situation & s, const std::vector<float> & logits, int n) {
    const auto expected = theirs(s, logits);
    const auto drawn = draw_many(s, logits, n);
    for (const auto & [id, count] : drawn) {
        CHECK(expected.count(id) == 1);
    }
    CHECK(chi_square(expected, drawn, n) < 6);
}

// At a temperature at which all that is left is equally likely, everything that is left gets drawn. Which of several equal
// tokens a cut leaves is not fixed: their logits are compared.
static void check_support(situation s, const std::vector<float> & logits) {
    s.params.temperature = 1e4f;
    const auto expected = theirs(s, logits);
    if (expected.size() > 60) {
        return;
    }
    const auto drawn = draw_many(s, logits, 20 * int(expected.size()) + 20);
    std::multiset<float> left, seen;
    for (const auto & [id, p] : expected) {
        left.insert(logits[size_t(id)]);
    }
    for (const auto & [id, count] : drawn) {
        seen.insert(logits[size_t(id)]);
    }
    CHECK(left == seen);
}

static sampling_params plain() {
    sampling_params p;
    p.temperature = 1.0f;
    p.top_k = 0;
    p.top_p = 1.0f;
    p.min_p = 0.0f;
    p.seed = 1;
    return p;
}

// Digits, some words of the made-up vocabularies, and the end.
static const char SOME_WORDS[] = "root ::= ([0-9]+ | [a-f]+ \"'\" | \" t\" [a-z]* \"'\" | \"\")";

// Of one to eight letters: most of the vocabulary.
static const char MOST_WORDS[] = "root ::= (\" \"? [a-z]+ \"'\")+";

template <typename F>
static void for_each_cut(F body) {
    for (const int32_t top_k : {0, 1, 40}) {
        for (const float top_p : {1.0f, 0.8f}) {
            for (const float min_p : {0.0f, 0.05f}) {
                sampling_params p = plain();
                p.top_k = top_k;
                p.top_p = top_p;
                p.min_p = min_p;
                body(p);
            }
        }
    }
}

static void check_all_cuts(bool penalized, const std::string & gbnf) {
    const vocabulary & vocab = made_up_vocab(500);
    uint32_t seed = 0;
    for_each_cut([&](sampling_params p) {
        for (const shape kind : SHAPES) {
            situation s = {vocab, p, {}, gbnf};
            if (penalized) {
                s.params.repeat_penalty = 1.4f;
                s.params.frequency_penalty = 0.3f;
                s.params.presence_penalty = 0.2f;
                for (llama_token id = 0; id < 100; id++) {
                    s.history.push_back(300 + id * id % 97);
                }
            }
            const std::vector<float> logits = make_row(kind, ++seed, size_t(vocab.size()));
            if (!penalized && kind == shape::normal) {
                check_support(s, logits);
            }
            s.params.temperature = seed % 2 == 0 ? 0.6f : 1.7f;
            if (kind != shape::ties || (p.top_k == 0 && p.top_p >= 1.0f)) {
                check_distribution(s, logits, gbnf.empty() ? 1500 : 400);
            }
        }
    });
}

TEST(every_cut_draws_as_llama_cpp) {
    check_all_cuts(false, "");
}

TEST(every_cut_draws_as_llama_cpp_with_penalties) {
    check_all_cuts(true, "");
}

TEST(every_cut_draws_as_llama_cpp_under_a_grammar_that_allows_little) {
    check_all_cuts(false, SOME_WORDS);
}

TEST(every_cut_draws_as_llama_cpp_under_a_grammar_that_allows_much) {
    check_all_cuts(false, MOST_WORDS);
}

TEST(every_cut_draws_as_llama_cpp_with_penalties_under_a_grammar) {
    check_all_cuts(true, MOST_WORDS);
}

TEST(cuts_through_equal_logits_leave_as_many_as_llama_cpp) {
    const vocabulary & vocab = made_up_vocab(500);
    for_each_cut([&](sampling_params p) {
        for (const char * gbnf : {"", SOME_WORDS}) {
            check_support({vocab, p, {}, gbnf}, make_row(shape::ties, 5, size_t(vocab.size())));
        }
    });
}

// A test of the tests: the same comparison must see a wrong temperature, a wrong cut and a wrong penalty.
TEST(the_comparison_sees_small_differences) {
    const vocabulary & vocab = made_up_vocab(500);
    const std::vector<float> logits = make_row(shape::normal, 3, size_t(vocab.size()));
    situation s = {vocab, plain(), {400, 401, 402}, ""};
    s.params.top_p = 0.9f;
    const auto drawn = draw_many(s, logits, 8000);
    const auto differs = [&](auto change) {
        situation other = s;
        change(other.params);
        return chi_square(theirs(other, logits), drawn, 8000) > 6;
    };
    CHECK(!differs([](sampling_params &) {}));
    CHECK(differs([](sampling_params & p) { p.temperature = 1.15f; }));
    CHECK(differs([](sampling_params & p) { p.top_p = 0.8f; }));
    CHECK(differs([](sampling_params & p) { p.top_k = 10; }));
    CHECK(differs([](sampling_params & p) { p.min_p = 0.1f; }));
}

TEST(rows_of_a_hundred_and_fifty_thousand_draw_as_llama_cpp) {
    const vocabulary & vocab = made_up_vocab(152064);
    sampling_params p = plain();
    for (const float top_p : {1.0f, 0.9f}) {
        p.top_p = top_p;
        for (const float min_p : {0.0f, 0.1f}) {
            p.min_p = min_p;
            situation s = {vocab, p, {}, ""};
            check_distribution(s, make_row(shape::peaked, 2, size_t(vocab.size())), 150);
            check_distribution(s, make_row(shape::normal, 2, size_t(vocab.size())), 150);
        }
    }
    p = sampling_params();
    p.seed = 1;
    check_distribution({vocab, p, {}, ""}, make_row(shape::normal, 3, size_t(vocab.size())), 150);
}

// The boundary of top-p may differ by what single precision loses; what is drawn must rank before the boundary of a
// slightly larger top-p.
TEST(top_p_of_a_flat_row_keeps_as_many_as_it_should) {
    const vocabulary & vocab = made_up_vocab(152064);
    const std::vector<float> logits = make_row(shape::flat, 4, size_t(vocab.size()));
    std::vector<float> sorted = logits;
    std::sort(sorted.begin(), sorted.end(), std::greater<float>());
    double total = 0;
    for (const float logit : sorted) {
        total += std::exp(double(logit));
    }
    sampling_params p = plain();
    p.top_p = 0.3f;
    const situation s = {vocab, p, {}, ""};
    double before = 0;
    size_t n = 0;
    while (before < 0.3001 * total) {
        before += std::exp(double(sorted[n++]));
    }
    float lowest = INFINITY;
    draws d(s);
    for (int i = 0; i < 100; i++) {
        lowest = std::min(lowest, logits[size_t(*d.next(logits))]);
    }
    CHECK(lowest >= sorted[n]);
    CHECK(lowest < sorted[n - n / 10]); // and the whole of it is drawn from
}

// ---- certain choices ------------------------------------------------------------------------------------------------

// Generates greedily with both, each seeing its own choices.
static void check_greedy(const situation & s, int n_steps) {
    sampler ours(s.params, s.vocab, make_matcher(s.vocab, s.gbnf), CONTEXT);
    llama_chain theirs(s);
    for (const llama_token id : s.history) {
        ours.observe(id);
        for (int i = 0; i < llama_sampler_chain_n(theirs.chain.get()); i++) {
            llama_sampler * member = llama_sampler_chain_get(theirs.chain.get(), i);
            if (std::string(llama_sampler_name(member)).find("grammar") == std::string::npos) {
                llama_sampler_accept(member, id);
            }
        }
    }
    for (int step = 0; step < n_steps; step++) {
        std::vector<float> logits = make_row(shape::normal, uint32_t(step), size_t(s.vocab.size()));
        llama_token expected = -1;
        theirs.apply(logits, &expected);
        const std::optional<llama_token> chosen = ours.sample(logits.data());
        CHECK(chosen.has_value());
        CHECK(*chosen == expected);
        if (s.vocab.is_eog(expected)) {
            return;
        }
        llama_sampler_accept(theirs.chain.get(), expected);
    }
}

TEST(greedy_choices_are_llama_cpps_whatever_the_penalties_and_the_grammar) {
    const vocabulary & vocab = made_up_vocab(3000);
    for (const int32_t window : {1, 8, 64, 1000}) {
        for (const std::string & gbnf : {std::string(), std::string(SOME_WORDS), std::string(MOST_WORDS),
                                         object_gbnf()}) {
            sampling_params p = plain();
            p.temperature = 0;
            p.repeat_penalty = 1.3f;
            p.presence_penalty = 0.4f;
            p.frequency_penalty = 0.2f;
            p.repeat_last_n = window;
            p.logit_bias = {{400, 4.0f}, {401, -2.0f}, {402, -INFINITY}, {2, -3.0f}};
            situation s = {vocab, p, {}, gbnf};
            for (llama_token id = 0; id < 200; id++) {
                s.history.push_back(300 + id * id % 89);
            }
            check_greedy(s, 60);
        }
    }
}

TEST(greedy_choices_of_a_real_vocabulary_are_llama_cpps) {
    sampling_params p = plain();
    p.temperature = 0;
    check_greedy({bundled_vocab(), p, {}, object_gbnf()}, 40);
}

TEST(a_window_without_limit_is_the_whole_context) {
    const vocabulary & vocab = made_up_vocab(500);
    sampling_params p = plain();
    p.temperature = 0;
    p.presence_penalty = 5.0f;
    p.repeat_last_n = -1;
    sampler s(p, vocab, nullptr, 300);
    std::vector<float> logits(size_t(vocab.size()), 0.0f);
    logits[400] = 3;
    logits[450] = 1;
    s.observe(400);
    for (int i = 0; i < 299; i++) {
        s.observe(10);
    }
    std::vector<float> copy = logits;
    CHECK(*s.sample(copy.data()) == 450); // 400 stands in the window still, and 450 joins it
    CHECK(*s.sample(logits.data()) == 400); // now it is out
}

TEST(the_same_seed_draws_the_same_tokens) {
    const vocabulary & vocab = made_up_vocab(3000);
    for_each_cut([&](sampling_params p) {
        for (const char * gbnf : {"", MOST_WORDS}) {
            p.seed = 5;
            sampler a(p, vocab, make_matcher(vocab, gbnf), CONTEXT);
            sampler b(p, vocab, make_matcher(vocab, gbnf), CONTEXT);
            std::set<llama_token> seen;
            for (uint32_t i = 0; i < 20; i++) {
                std::vector<float> logits = make_row(shape::flat, i, size_t(vocab.size()));
                std::vector<float> copy = logits;
                const llama_token id = *a.sample(logits.data());
                CHECK(*b.sample(copy.data()) == id);
                seen.insert(id);
                if (vocab.is_eog(id)) {
                    break;
                }
            }
            CHECK(seen.size() > 5);
        }
    });
}

// ---- the rare samplers ----------------------------------------------------------------------------------------------

TEST(rare_samplers_choose_exactly_as_llama_cpp) {
    const vocabulary & vocab = made_up_vocab(3000);
    std::vector<sampling_params> all(6, plain());
    all[0].mirostat = 1;
    all[1].mirostat = 2;
    all[1].repeat_penalty = 1.5f; // mirostat has no penalties in llama.cpp
    all[2].typical_p = 0.7f;
    all[3].xtc_probability = 0.5f;
    all[3].xtc_threshold = 0.05f;
    all[4].dry_multiplier = 0.8f;
    all[4].top_k = 40;
    all[5].dry_multiplier = 0.8f;
    all[5].temperature = 0;
    for (const sampling_params & p : all) {
        const situation s = {vocab, p, {}, ""};
        sampler ours(p, vocab, nullptr, CONTEXT);
        llama_chain theirs(s, true);
        for (int i = 0; i < 30; i++) {
            ours.observe(300 + i % 6);
            llama_sampler_accept(theirs.chain.get(), 300 + i % 6);
        }
        for (uint32_t step = 0; step < 40; step++) {
            std::vector<float> logits = make_row(shape::normal, step, size_t(vocab.size()));
            llama_token expected = -1;
            theirs.apply(logits, &expected);
            CHECK(*ours.sample(logits.data()) == expected);
            llama_sampler_accept(theirs.chain.get(), expected);
        }
    }
}

// llama.cpp's own objects in a given order, with the parameters of `p`.
static sampler_ptr ordered_chain(const sampling_params & p, const std::vector<sampling_step> & steps, const vocabulary & vocab) {
    sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    for (const sampling_step step : steps) {
        llama_sampler * one = nullptr;
        switch (step) {
            case sampling_step::penalties:
                one = llama_sampler_init_penalties(vocab.size(), p.repeat_last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty);
                break;
            case sampling_step::dry: {
                const char * breakers[] = {"\n", ":", "\"", "*"};
                one = llama_sampler_init_dry(vocab.get(), p.dry_multiplier, p.dry_base, p.dry_allowed_length, CONTEXT, breakers, 4);
                break;
            }
            case sampling_step::top_n_sigma: one = llama_sampler_init_top_n_sigma(p.top_n_sigma); break;
            case sampling_step::top_k: one = llama_sampler_init_top_k(p.top_k); break;
            case sampling_step::typ_p: one = llama_sampler_init_typical(p.typical_p, 0); break;
            case sampling_step::top_p: one = llama_sampler_init_top_p(p.top_p, 0); break;
            case sampling_step::min_p: one = llama_sampler_init_min_p(p.min_p, 0); break;
            case sampling_step::xtc: one = llama_sampler_init_xtc(p.xtc_probability, p.xtc_threshold, 0, *p.seed); break;
            case sampling_step::temperature: one = llama_sampler_init_temp_ext(p.temperature, p.dynatemp_range, p.dynatemp_exponent); break;
            case sampling_step::infill: one = llama_sampler_init_infill(vocab.get()); break;
        }
        llama_sampler_chain_add(chain.get(), one);
    }
    llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(*p.seed));
    return chain;
}

static const std::vector<sampling_step> DEFAULT_STEPS = {
    sampling_step::penalties, sampling_step::dry,   sampling_step::top_n_sigma, sampling_step::top_k,      sampling_step::typ_p,
    sampling_step::top_p,     sampling_step::min_p, sampling_step::xtc,         sampling_step::temperature};

static void check_steps(const sampling_params & p, const std::vector<sampling_step> & steps) {
    const vocabulary & vocab = made_up_vocab(3000);
    sampler ours(p, vocab, nullptr, CONTEXT);
    const sampler_ptr theirs = ordered_chain(p, steps, vocab);
    for (int i = 0; i < 30; i++) {
        ours.observe(300 + i % 6);
        llama_sampler_accept(theirs.get(), 300 + i % 6);
    }
    for (uint32_t round = 0; round < 40; round++) {
        std::vector<float> logits = make_row(round % 2 == 0 ? shape::normal : shape::flat, round, size_t(vocab.size()));
        std::vector<llama_token_data> data;
        for (llama_token id = 0; id < vocab.size(); id++) {
            data.push_back({id, logits[size_t(id)], 0.0f});
        }
        llama_token_data_array array = {data.data(), data.size(), -1, false};
        llama_sampler_apply(theirs.get(), &array);
        const llama_token expected = array.data[array.selected].id;
        CHECK(*ours.sample(logits.data()) == expected);
        llama_sampler_accept(theirs.get(), expected);
    }
}

TEST(sigma_cuts_and_moving_temperatures_choose_exactly_as_llama_cpp) {
    std::vector<sampling_params> all(4, plain());
    all[0].top_n_sigma = 1.5f;
    all[1].dynatemp_range = 0.6f;
    all[2].dynatemp_range = 0.4f;
    all[2].dynatemp_exponent = 2.0f;
    all[2].temperature = 1.3f;
    all[3].top_n_sigma = 2.0f;
    all[3].top_k = 30;
    all[3].top_p = 0.9f;
    for (sampling_params & p : all) {
        p.seed = 5;
        check_steps(p, DEFAULT_STEPS);
    }
}

TEST(steps_in_another_order_choose_exactly_as_llama_cpp) {
    using step = sampling_step;
    const std::vector<std::vector<sampling_step>> orders = {
        {step::temperature, step::top_p, step::top_k},
        {step::top_p, step::penalties, step::top_k, step::min_p, step::temperature},
        {step::top_k, step::top_p, step::infill},
        {step::xtc, step::temperature, step::typ_p, step::dry},
        {step::top_k, step::top_k, step::top_n_sigma},
    };
    for (const auto & order : orders) {
        sampling_params p = plain();
        p.seed = 9;
        p.temperature = 1.2f;
        p.top_k = 50;
        p.top_p = 0.9f;
        p.min_p = 0.02f;
        p.typical_p = 0.9f;
        p.xtc_probability = 0.5f;
        p.xtc_threshold = 0.05f;
        p.dry_multiplier = 0.8f;
        p.top_n_sigma = 1.8f;
        p.repeat_penalty = 1.3f;
        p.repeat_last_n = 20;
        p.steps = order;
        check_steps(p, order);
    }
}

TEST(steps_that_are_not_named_are_off_in_the_default_order) {
    sampling_params p = plain();
    p.seed = 3;
    p.temperature = 0; // without its step nothing is greedy
    p.top_k = 1;
    p.repeat_penalty = 5;
    p.steps = std::vector<sampling_step>{sampling_step::top_p};
    p.top_p = 0.99f;
    const vocabulary & vocab = made_up_vocab(500);
    const std::vector<float> flat(size_t(vocab.size()), 0.0f);
    sampler s(p, vocab, nullptr, CONTEXT);
    std::set<llama_token> drawn;
    for (int i = 0; i < 50; i++) {
        std::vector<float> logits = flat;
        drawn.insert(*s.sample(logits.data()));
    }
    CHECK(drawn.size() > 20);
    p.steps = std::vector<sampling_step>{sampling_step::top_k, sampling_step::temperature};
    sampler greedy(p, vocab, nullptr, CONTEXT);
    std::vector<float> logits = make_row(shape::normal, 1, size_t(vocab.size()));
    const auto largest = llama_token(std::max_element(logits.begin(), logits.end()) - logits.begin());
    CHECK(*greedy.sample(logits.data()) == largest);
}

TEST(the_end_is_put_off_for_as_many_tokens_as_it_should) {
    const vocabulary & vocab = made_up_vocab(500);
    for (const float typical_p : {1.0f, 0.9f}) { // our own paths, and llama.cpp's objects
        sampling_params p = plain();
        p.typical_p = typical_p;
        p.min_tokens = 3;
        p.ends = {2, 400};
        sampler s(p, vocab, nullptr, CONTEXT);
        for (int i = 0; i < 5; i++) {
            std::vector<float> logits(size_t(vocab.size()), 0.0f);
            logits[2] = logits[400] = 50;
            const llama_token id = *s.sample(logits.data());
            CHECK((id == 2 || id == 400) == (i >= 3));
        }
    }
}

TEST(rare_samplers_obey_the_grammar) {
    const vocabulary & vocab = made_up_vocab(3000);
    std::vector<sampling_params> all(4, plain());
    all[0].mirostat = 2;
    all[1].typical_p = 0.5f;
    all[2].xtc_probability = 1.0f;
    all[3].dry_multiplier = 0.8f;
    for (const sampling_params & p : all) {
        sampler s(p, vocab, make_matcher(vocab, SOME_WORDS), CONTEXT);
        matcher check(compile_grammar(vocab, SOME_WORDS), vocab);
        for (uint32_t step = 0; step < 20; step++) {
            std::vector<float> logits = make_row(shape::normal, step, size_t(vocab.size()));
            const llama_token id = *s.sample(logits.data());
            CHECK(check.accept(id));
            if (vocab.is_eog(id)) {
                break;
            }
        }
    }
}

// ---- edges ----------------------------------------------------------------------------------------------------------

TEST(a_banned_token_is_never_chosen) {
    const vocabulary & vocab = made_up_vocab(500);
    std::vector<float> logits = make_row(shape::normal, 3, size_t(vocab.size()));
    const auto largest = llama_token(std::max_element(logits.begin(), logits.end()) - logits.begin());
    sampling_params p;
    p.temperature = 0;
    p.logit_bias = {{largest, -INFINITY}};
    sampler s(p, vocab, nullptr, CONTEXT);
    CHECK(*s.sample(logits.data()) != largest);
}

TEST(a_grammar_admits_only_what_it_spells) {
    for (const float temperature : {0.0f, 1.0f}) {
        sampling_params p = plain();
        p.temperature = temperature;
        sampler s(p, bundled_vocab(), make_matcher(bundled_vocab(), "root ::= \"yes\" | \"no\""), CONTEXT);
        std::string text;
        for (uint32_t i = 0; i < 8; i++) {
            std::vector<float> logits = make_row(shape::normal, i, size_t(bundled_vocab().size()));
            const std::optional<llama_token> id = s.sample(logits.data());
            CHECK(id.has_value());
            if (bundled_vocab().is_eog(*id)) {
                break;
            }
            text += bundled_vocab().piece(*id);
        }
        CHECK(text == "yes" || text == "no");
    }
}

TEST(a_grammar_may_begin_in_the_middle_of_an_answer) {
    const vocabulary & vocab = made_up_vocab(500);
    sampling_params p = plain();
    p.temperature = 0;
    sampler s(p, vocab, nullptr, CONTEXT);
    const std::vector<float> logits = make_row(shape::normal, 1, size_t(vocab.size()));
    std::vector<float> copy = logits;
    const llama_token free = *s.sample(copy.data());
    matcher_ptr late = make_matcher(vocab, "root ::= \"call(\" [0-9] \")\"");
    CHECK(late->accept("call("));
    s.constrain(std::move(late));
    copy = logits;
    const llama_token digit = *s.sample(copy.data());
    CHECK(vocab.piece(digit).size() == 1 && isdigit(vocab.piece(digit)[0]));
    s.constrain(nullptr);
    copy = logits;
    CHECK(*s.sample(copy.data()) == free);
}

TEST(a_grammar_with_every_valid_token_banned_is_a_dead_end_and_not_a_crash) {
    const vocabulary & vocab = made_up_vocab(500);
    for (const float temperature : {0.0f, 1.0f}) {
        for (const int32_t mirostat : {0, 2}) {
            sampling_params p = plain();
            p.temperature = temperature;
            p.mirostat = mirostat;
            for (llama_token id = 0; id < vocab.size(); id++) {
                p.logit_bias.push_back({id, -INFINITY});
            }
            sampler s(p, vocab, make_matcher(vocab, "root ::= \"yes\""), CONTEXT);
            std::vector<float> logits = make_row(shape::normal, 1, size_t(vocab.size()));
            CHECK(!s.sample(logits.data()).has_value());
        }
    }
}

TEST(rows_that_are_not_numbers_end_in_some_token) {
    const vocabulary & vocab = made_up_vocab(500);
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
        for_each_cut([&](sampling_params p) {
            sampler s(p, vocab, nullptr, CONTEXT);
            std::vector<float> logits(size_t(vocab.size()), bad);
            CHECK(vocab.contains(*s.sample(logits.data())));
            logits = make_row(shape::normal, 1, logits.size());
            logits[7] = logits[303] = bad;
            CHECK(vocab.contains(*s.sample(logits.data())));
            sampler constrained(p, vocab, make_matcher(vocab, SOME_WORDS), CONTEXT);
            logits.assign(logits.size(), bad);
            const std::optional<llama_token> id = constrained.sample(logits.data());
            CHECK(!id || vocab.contains(*id));
        });
    }
}

TEST(some_numbers_among_nans_are_drawn_as_if_the_nans_were_not_there) {
    const vocabulary & vocab = made_up_vocab(500);
    std::vector<float> logits(size_t(vocab.size()), NAN);
    logits[310] = 1;
    logits[450] = 2;
    for_each_cut([&](sampling_params p) {
        for (uint32_t seed = 0; seed < 20; seed++) {
            p.seed = seed;
            sampler s(p, vocab, nullptr, CONTEXT);
            std::vector<float> copy = logits;
            const llama_token id = *s.sample(copy.data());
            CHECK(id == 310 || id == 450);
        }
    });
}

TEST(logprobs_are_the_softmax_of_the_untouched_row) {
    for (const size_t n : {size_t(10), size_t(127), size_t(129), size_t(5000), size_t(152064)}) {
        const std::vector<float> logits = make_row(shape::normal, 9, n);
        double total = 0;
        for (const float logit : logits) {
            total += std::exp(double(logit));
        }
        const token_logprob read = read_logprob(logits.data(), int32_t(n), 7, 5);
        CHECK(std::fabs(double(read.logprob) - (double(logits[7]) - std::log(total))) < 1e-4);
        std::vector<float> sorted = logits;
        std::sort(sorted.begin(), sorted.end(), std::greater<float>());
        CHECK(read.top.size() == 5);
        for (size_t i = 0; i < read.top.size(); i++) {
            CHECK(std::fabs(double(read.top[i].logit) - (double(sorted[i]) - std::log(total))) < 1e-4);
        }
    }
}

// ---- the row --------------------------------------------------------------------------------------------------------

TEST(the_best_of_rows_of_every_length_are_found) {
    for (const size_t n : {1, 2, 10, 127, 128, 129, 1000, 20000}) {
        for (const shape kind : SHAPES) {
            const std::vector<float> logits = make_row(kind, uint32_t(n), n);
            row r;
            r.read(logits.data(), int32_t(n));
            std::vector<candidate> sorted;
            for (size_t i = 0; i < n; i++) {
                if (logits[i] > -INFINITY) {
                    sorted.push_back({llama_token(i), logits[i]});
                }
            }
            std::stable_sort(sorted.begin(), sorted.end(), [](const candidate & a, const candidate & b) { return a.logit > b.logit; });
            CHECK(r.best() == (sorted.empty() ? 0 : sorted[0].id));
            for (const size_t k : {size_t(1), size_t(40), size_t(1000), n}) {
                const std::vector<candidate> top = r.top(k);
                CHECK(top.size() == std::min(k, sorted.size()));
                for (size_t i = 0; i < top.size(); i++) {
                    CHECK(top[i].id == sorted[i].id);
                }
            }
        }
    }
}

TEST(sums_of_exponentials_are_exact_to_single_precision) {
    for (const size_t n : {size_t(10), size_t(1000), size_t(152064)}) {
        for (const shape kind : SHAPES) {
            for (const float scale : {0.3f, 1.0f, 4.0f}) {
                const std::vector<float> logits = make_row(kind, 8, n);
                row r;
                r.read(logits.data(), int32_t(n));
                double all = 0, before = 0;
                const row::cut half = {logits[n / 2], llama_token(n / 2)};
                for (size_t i = 0; i < n; i++) {
                    const double w = std::exp((double(logits[i]) - double(r.max())) * double(scale));
                    all += w;
                    before += logits[i] > half.logit || (logits[i] == half.logit && llama_token(i) < half.end) ? w : 0;
                }
                CHECK(std::fabs(r.weigh(scale, {}) - all) < 5e-6 * all);
                CHECK(std::fabs(r.weigh(scale, half) - before) < 5e-6 * all);
            }
        }
    }
}
