// The fast paths against llama.cpp's own sampler objects: the same token where the choice is certain, the same
// distribution where it is drawn.
#include "check.h"
#include "error.h"
#include "protocol.h"
#include "sampler.h"

#include <cmath>
#include <map>
#include <random>

using namespace lm;

static const vocabulary & vocab() {
    static llama_model * model = [] {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        llama_model_params params = llama_model_default_params();
        params.vocab_only = true;
        return llama_model_load_from_file(model_path.c_str(), params);
    }();
    CHECK(model != nullptr);
    static const vocabulary loaded(llama_model_get_vocab(model));
    return loaded;
}

static std::vector<float> random_row(uint32_t seed, float spread) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal(0.0f, spread);
    std::vector<float> row(size_t(vocab().size()));
    for (float & logit : row) {
        logit = normal(rng);
    }
    return row;
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

static std::map<llama_token, double> ours(const sampling_params & p, const std::vector<float> & row, int n) {
    sampler s(p, vocab(), nullptr, 4096);
    std::map<llama_token, double> counts;
    for (int i = 0; i < n; i++) {
        std::vector<float> copy = row;
        counts[*s.sample(copy.data())] += 1.0 / n;
    }
    return counts;
}

// The exact distribution that llama.cpp's chain draws from.
static std::map<llama_token, double> theirs(const sampling_params & p, const std::vector<float> & row) {
    sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_top_k(p.top_k));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_top_p(p.top_p, 0));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_min_p(p.min_p, 0));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_temp(p.temperature));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(1));
    std::vector<llama_token_data> data;
    for (size_t i = 0; i < row.size(); i++) {
        data.push_back({llama_token(i), row[i], 0.0f});
    }
    llama_token_data_array array = {data.data(), data.size(), -1, false};
    llama_sampler_apply(chain.get(), &array);
    double max = -INFINITY;
    double total = 0;
    for (size_t i = 0; i < array.size; i++) {
        max = std::max(max, double(array.data[i].logit));
    }
    std::map<llama_token, double> p_of;
    for (size_t i = 0; i < array.size; i++) {
        total += p_of[array.data[i].id] = std::exp(double(array.data[i].logit) - max);
    }
    for (auto & [id, probability] : p_of) {
        probability /= total;
    }
    return p_of;
}

// Total variation distance: 0 the same, 1 disjoint. With 40,000 draws from up to a few hundred tokens, chance alone
// gives about 0.02.
static double distance(const std::map<llama_token, double> & a, const std::map<llama_token, double> & b) {
    double d = 0;
    for (const auto & [id, p] : a) {
        const auto found = b.find(id);
        d += std::fabs(p - (found == b.end() ? 0.0 : found->second));
    }
    for (const auto & [id, p] : b) {
        d += a.count(id) ? 0.0 : p;
    }
    return d / 2;
}

static void check_distribution(const sampling_params & p) {
    for (uint32_t seed = 1; seed <= 3; seed++) {
        const std::vector<float> row = random_row(seed, 3.0f);
        const auto exact = theirs(p, row);
        const auto drawn = ours(p, row, 40000);
        CHECK(distance(drawn, exact) < 0.03);
        sampling_params other = p;
        other.temperature *= 1.5f; // the control: a test that sees no difference here could not fail
        CHECK(distance(drawn, theirs(other, row)) > 0.03);
    }
}

TEST(temperature_alone_draws_from_the_whole_row) {
    check_distribution(plain());
}

TEST(top_k_draws_as_llama_cpp) {
    sampling_params p = plain();
    p.top_k = 40;
    check_distribution(p);
}

TEST(top_p_without_top_k_draws_as_llama_cpp) {
    sampling_params p = plain();
    p.top_p = 0.8f;
    check_distribution(p);
}

TEST(min_p_without_top_k_draws_as_llama_cpp) {
    sampling_params p = plain();
    p.min_p = 0.05f;
    check_distribution(p);
}

TEST(top_p_and_min_p_together_draw_as_llama_cpp) {
    sampling_params p = plain();
    p.top_p = 0.9f;
    p.min_p = 0.02f;
    p.temperature = 0.7f;
    check_distribution(p);
}

TEST(the_default_chain_draws_as_llama_cpp) {
    sampling_params p;
    p.seed = 7;
    check_distribution(p);
}

TEST(temperature_zero_is_the_largest_logit) {
    sampling_params p;
    p.temperature = 0;
    sampler s(p, vocab(), nullptr, 4096);
    for (uint32_t seed = 0; seed < 50; seed++) {
        std::vector<float> row = random_row(seed, 1.0f);
        const auto largest = llama_token(std::max_element(row.begin(), row.end()) - row.begin());
        CHECK(*s.sample(row.data()) == largest);
    }
}

TEST(the_same_seed_draws_the_same_tokens) {
    sampling_params p;
    p.seed = 5;
    sampler a(p, vocab(), nullptr, 4096);
    sampler b(p, vocab(), nullptr, 4096);
    for (uint32_t i = 0; i < 20; i++) {
        std::vector<float> row = random_row(i, 2.0f);
        std::vector<float> copy = row;
        CHECK(*a.sample(row.data()) == *b.sample(copy.data()));
    }
}

// The penalised row itself, by sampling greedily over a history with every kind of repetition.
TEST(penalties_choose_as_llama_cpp) {
    sampling_params p;
    p.temperature = 0;
    p.repeat_penalty = 1.3f;
    p.presence_penalty = 0.4f;
    p.frequency_penalty = 0.2f;
    p.repeat_last_n = 8;
    sampler s(p, vocab(), nullptr, 4096);
    sampler_ptr reference(llama_sampler_init_penalties(vocab().size(), p.repeat_last_n, p.repeat_penalty,
                                                       p.frequency_penalty, p.presence_penalty));
    for (llama_token id = 0; id < 12; id++) {
        s.observe(id % 5);
        llama_sampler_accept(reference.get(), id % 5);
    }
    for (uint32_t seed = 0; seed < 100; seed++) {
        std::vector<float> row = random_row(seed, 0.5f);
        std::vector<llama_token_data> data;
        for (size_t i = 0; i < row.size(); i++) {
            data.push_back({llama_token(i), row[i], 0.0f});
        }
        llama_token_data_array array = {data.data(), data.size(), -1, false};
        llama_sampler_apply(reference.get(), &array);
        const auto best = std::max_element(data.begin(), data.end(), [](const auto & a, const auto & b) { return a.logit < b.logit; });
        const llama_token chosen = *s.sample(row.data());
        CHECK(chosen == best->id);
        llama_sampler_accept(reference.get(), chosen);
    }
}

TEST(a_banned_token_is_never_chosen) {
    std::vector<float> row = random_row(3, 1.0f);
    const auto largest = llama_token(std::max_element(row.begin(), row.end()) - row.begin());
    sampling_params p;
    p.temperature = 0;
    p.logit_bias = {{largest, -INFINITY}};
    sampler s(p, vocab(), nullptr, 4096);
    CHECK(*s.sample(row.data()) != largest);
}

TEST(a_grammar_admits_only_what_it_spells) {
    for (const float temperature : {0.0f, 1.0f}) {
        sampling_params p = plain();
        p.temperature = temperature;
        sampler s(p, vocab(), compile_grammar(vocab(), "root ::= \"yes\" | \"no\""), 4096);
        std::string text;
        for (uint32_t i = 0; i < 8; i++) {
            std::vector<float> row = random_row(i, 3.0f);
            const std::optional<llama_token> id = s.sample(row.data());
            CHECK(id.has_value());
            if (vocab().is_eog(*id)) {
                break;
            }
            text += vocab().piece(*id);
        }
        CHECK(text == "yes" || text == "no");
    }
}

TEST(a_grammar_with_every_valid_token_banned_is_a_dead_end_and_not_a_crash) {
    sampling_params p;
    p.temperature = 0;
    for (llama_token id = 0; id < vocab().size(); id++) {
        p.logit_bias.push_back({id, -INFINITY});
    }
    sampler s(p, vocab(), compile_grammar(vocab(), "root ::= \"yes\""), 4096);
    std::vector<float> row = random_row(1, 1.0f);
    CHECK(!s.sample(row.data()).has_value());
}

TEST(rows_that_are_not_numbers_end_in_some_token) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
        for (const int32_t top_k : {0, 40}) {
            sampling_params p;
            p.top_k = top_k;
            sampler s(p, vocab(), nullptr, 4096);
            std::vector<float> row(size_t(vocab().size()), bad);
            CHECK(vocab().contains(*s.sample(row.data())));
        }
    }
}

TEST(logprobs_are_the_softmax_of_the_untouched_row) {
    const std::vector<float> row = random_row(9, 3.0f);
    double total = 0;
    for (const float logit : row) {
        total += std::exp(double(logit));
    }
    const token_logprob read = read_logprob(row.data(), vocab().size(), 17, 5);
    CHECK(std::fabs(double(read.logprob) - (double(row[17]) - std::log(total))) < 1e-4);
    CHECK(read.top.size() == 5);
    for (size_t i = 1; i < read.top.size(); i++) {
        CHECK(read.top[i - 1].logit >= read.top[i].logit);
    }
}

static bool refused(const grammar_spec & spec) {
    try {
        to_gbnf(spec);
        return false;
    } catch (const error & e) {
        return e.code == "invalid_request";
    }
}

TEST(grammars_that_would_crash_or_hang_llama_cpp_are_refused) {
    CHECK(refused({false, "root ::= " + std::string(20000, '(') + "\"a\"" + std::string(20000, ')')}));
    CHECK(refused({false, "root ::= \"a\"{5,2}"}));
    CHECK(refused({true, "{\"type\":\"string\",\"minLength\":5,\"maxLength\":2}"}));
    std::string deep;
    for (int i = 0; i < 20000; i++) {
        deep += "{\"type\":\"array\",\"items\":";
    }
    CHECK(refused({true, deep + "{}" + std::string(20000, '}')}));
    CHECK(refused({true, "not json"}));
    CHECK(!refused({false, "root ::= \"(((({5,2}\" [({] \"a\"{2,5} \"b\"{3} \"c\"{2,}"}));
    CHECK(!refused({true, "{\"type\":\"object\"}"}));
}
