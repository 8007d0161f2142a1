// Microseconds per token of each path of the sampler at a vocabulary of 152 k, beside llama.cpp's own objects used as its
// server uses them. Run by bench/sampling.py; prints one line "path row ours theirs" each.
#include "fixture.h"
#include "sampler.h"

#include "json-schema-to-grammar.h"
#include "json.h"

#include <algorithm>
#include <random>
#include <time.h>

using namespace lm;

std::string model_path; // of the fixture; not used

static constexpr size_t N_VOCAB = 152064;
static constexpr int32_t CONTEXT = 32768;
static constexpr size_t N_ROWS = 8;

// This thread's own time: what else runs on the machine disturbs it less.
static double cpu_us() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return double(now.tv_sec) * 1e6 + double(now.tv_nsec) / 1e3;
}

// Like a model's: a few likely tokens over a wide bell. Without them: as a model of random weights gives them.
static std::vector<std::vector<float>> make_rows(bool like_a_model) {
    std::vector<std::vector<float>> rows;
    for (uint32_t seed = 0; seed < N_ROWS; seed++) {
        std::mt19937 rng(seed);
        std::normal_distribution<float> normal(0.0f, 2.5f);
        std::vector<float> row(N_VOCAB);
        for (float & logit : row) {
            logit = normal(rng);
        }
        for (int i = 0; like_a_model && i < 30; i++) {
            row[rng() % N_VOCAB] = 18.0f - 0.3f * float(i);
        }
        rows.push_back(std::move(row));
    }
    return rows;
}

// The mean time of `choose(row)`, which may overwrite its row, without the tenth that the machine disturbed most.
// `prepare()` comes before each, outside of the time.
template <typename P, typename F>
static double measure(const std::vector<std::vector<float>> & rows, int n, P prepare, F choose) {
    std::vector<double> times;
    std::vector<float> row;
    for (int i = 0; i < n; i++) {
        row = rows[size_t(i) % rows.size()];
        prepare();
        const double began = cpu_us();
        choose(row.data());
        times.push_back(cpu_us() - began);
    }
    double total = 0;
    std::sort(times.begin(), times.end());
    const size_t kept = times.size() - times.size() / 10;
    for (size_t i = 0; i < kept; i++) {
        total += times[i];
    }
    return total / double(kept);
}

// As common/sampling.cpp: candidates, chain, one test by the grammar, and all again over the masked row if that fails.
class their_sampler {
  public:
    their_sampler(const vocabulary & vocab, const sampling_params & p, const std::string & gbnf) : vocab_(vocab) {
        llama_sampler_chain_params params = llama_sampler_chain_default_params();
        params.no_perf = true;
        chain_.reset(llama_sampler_chain_init(params));
        const auto add = [&](llama_sampler * s) { llama_sampler_chain_add(chain_.get(), s); };
        if (p.mirostat == 2) {
            add(llama_sampler_init_temp(p.temperature));
            add(llama_sampler_init_mirostat_v2(1, p.mirostat_tau, p.mirostat_eta));
        } else {
            add(llama_sampler_init_penalties(vocab.size(), p.repeat_last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty));
            const char * breaker = "\n";
            add(llama_sampler_init_dry(vocab.get(), p.dry_multiplier, p.dry_base, p.dry_allowed_length, CONTEXT, &breaker, 1));
            add(llama_sampler_init_top_k(p.top_k));
            add(llama_sampler_init_typical(p.typical_p, 0));
            add(llama_sampler_init_top_p(p.top_p, 0));
            add(llama_sampler_init_min_p(p.min_p, 0));
            add(llama_sampler_init_temp(p.temperature));
            add(llama_sampler_init_dist(1));
        }
        if (!gbnf.empty()) {
            grammar_.reset(llama_sampler_init_grammar(vocab.get(), gbnf.c_str(), "root"));
        }
    }

    llama_token sample(const float * logits) {
        llama_token id = run(logits, false);
        if (grammar_) {
            llama_token_data data = {id, 1.0f, 0.0f};
            llama_token_data_array one = {&data, 1, -1, false};
            llama_sampler_apply(grammar_.get(), &one);
            if (data.logit < 0) {
                id = run(logits, true);
            }
            llama_sampler_accept(grammar_.get(), id);
        }
        llama_sampler_accept(chain_.get(), id);
        return id;
    }

    void observe(llama_token id) { llama_sampler_accept(chain_.get(), id); }

  private:
    llama_token run(const float * logits, bool masked) {
        data_.resize(N_VOCAB);
        for (llama_token id = 0; id < vocab_.size(); id++) {
            data_[size_t(id)] = {id, logits[id], 0.0f};
        }
        llama_token_data_array array = {data_.data(), data_.size(), -1, false};
        if (masked) {
            llama_sampler_apply(grammar_.get(), &array);
        }
        llama_sampler_apply(chain_.get(), &array);
        return array.data[array.selected].id;
    }

    const vocabulary & vocab_;
    sampler_ptr chain_;
    sampler_ptr grammar_;
    std::vector<llama_token_data> data_;
};

struct path {
    const char * name;
    sampling_params params;
    std::string gbnf;
    size_t n_history;
};

static sampling_params with(float temperature, int32_t top_k, float top_p, float min_p) {
    sampling_params p;
    p.temperature = temperature;
    p.top_k = top_k;
    p.top_p = top_p;
    p.min_p = min_p;
    p.seed = 1;
    p.dry_sequence_breakers = {"\n"};
    return p;
}

static sampling_params penalized(sampling_params p, int32_t window) {
    p.repeat_penalty = 1.1f;
    p.repeat_last_n = window;
    return p;
}

// A generation under a grammar ends after some tokens; the next one begins with new samplers.
template <typename Make>
static double measure_generations(const vocabulary & vocab, const std::vector<std::vector<float>> & rows, int n, Make make) {
    auto s = make();
    int length = 0;
    bool ended = false;
    const auto prepare = [&] {
        if (ended || length == 100) {
            s = make();
            length = 0;
        }
    };
    return measure(rows, n, prepare, [&](float * row) {
        const std::optional<llama_token> id = s->sample(row);
        CHECK(id.has_value());
        ended = vocab.is_eog(*id);
        length++;
    });
}

static void measure_path(const vocabulary & vocab, const path & p, const char * row_name, const std::vector<std::vector<float>> & rows) {
    const grammar_ptr compiled = p.gbnf.empty() ? nullptr : compile_grammar(vocab, p.gbnf);
    const auto observe_history = [&](auto & s) {
        for (size_t i = 0; i < p.n_history; i++) {
            s.observe(llama_token(i * 7919 % N_VOCAB));
        }
    };
    const double ours = measure_generations(vocab, rows, 300, [&] {
        auto s = std::make_unique<sampler>(p.params, vocab, compiled ? std::make_unique<matcher>(compiled, vocab) : nullptr, CONTEXT);
        observe_history(*s);
        return s;
    });
    struct theirs_adapter {
        their_sampler s;
        std::optional<llama_token> sample(const float * row) { return s.sample(row); }
    };
    const double theirs = measure_generations(vocab, rows, p.gbnf.empty() ? 60 : 30, [&] {
        auto s = std::make_unique<theirs_adapter>(theirs_adapter{{vocab, p.params, p.gbnf}});
        observe_history(s->s);
        return s;
    });
    printf("%s\t%s\t%.1f\t%.1f\n", p.name, row_name, ours, theirs);
    fflush(stdout);
}

int main() {
    const vocabulary & vocab = made_up_vocab(N_VOCAB);
    const std::string json = json_schema_to_grammar(common_json::parse("{\"type\":\"object\"}"));
    const std::string schema = json_schema_to_grammar(common_json::parse(R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"},
        "tags":{"type":"array","items":{"type":"string"}},"more":{"type":"object"}},"required":["name","age","tags","more"]})"));
    sampling_params dry = with(0.8f, 40, 0.95f, 0.05f);
    dry.dry_multiplier = 0.8f;
    sampling_params mirostat = with(0.8f, 0, 1, 0);
    mirostat.mirostat = 2;
    const std::vector<path> paths = {
        {"greedy", with(0, 40, 0.95f, 0.05f), "", 0},
        {"defaults (top-k 40, top-p 0.95, min-p 0.05)", with(0.8f, 40, 0.95f, 0.05f), "", 0},
        {"OpenAI's defaults (top-p 1)", with(1, 0, 1, 0), "", 0},
        {"top-p 0.9 alone", with(1, 0, 0.9f, 0), "", 0},
        {"top-p 0.9, temperature 0.7", with(0.7f, 0, 0.9f, 0), "", 0},
        {"min-p 0.05 alone", with(1, 0, 1, 0.05f), "", 0},
        {"defaults, penalties over 64", penalized(with(0.8f, 40, 0.95f, 0.05f), 64), "", 64},
        {"defaults, penalties over 16 k", penalized(with(0.8f, 40, 0.95f, 0.05f), 16384), "", 16384},
        {"defaults, JSON", with(0.8f, 40, 0.95f, 0.05f), json, 0},
        {"defaults, JSON schema", with(0.8f, 40, 0.95f, 0.05f), schema, 0},
        {"greedy, JSON schema", with(0, 40, 0.95f, 0.05f), schema, 0},
        {"OpenAI's defaults, JSON schema", with(1, 0, 1, 0), schema, 0},
        {"top-p 0.9 alone, JSON schema", with(1, 0, 0.9f, 0), schema, 0},
        {"dry (llama.cpp's chain)", dry, "", 64},
        {"mirostat 2 (llama.cpp's chain)", mirostat, "", 0},
    };
    for (const bool like_a_model : {true, false}) {
        const auto rows = make_rows(like_a_model);
        for (const path & p : paths) {
            measure_path(vocab, p, like_a_model ? "model" : "random", rows);
        }
    }
}
