// Attention as it is computed here against sums in double precision, and against llama.cpp's own kernels, which a process
// has until install_attention().
#include "attention.h"
#include "check.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace {

struct scene {
    ggml_type k = GGML_TYPE_F16, v = GGML_TYPE_F16;
    int dk = 64, dv = 64, heads = 8, kv_heads = 2, cells = 256;
    std::vector<std::vector<int>> seen; // of each query, the cells
    float max_bias = 0, softcap = 0;
    bool sinks = false;
    int threads = 2;
    unsigned seed = 1;
    bool steps = false; // llama.cpp's kernel is to go cell by cell, whatever it would do with so many queries
};

struct outcome {
    std::vector<float> kernel;
    std::vector<double> exact;
};

// Adds queries of a sequence that is in every `stride`-th cell: the first sees `n_before` cells, each further one more.
void add_sequence(scene & s, int from, int stride, int n_before, int n_queries) {
    for (int q = 0; q < n_queries; q++) {
        std::vector<int> cells;
        for (int i = 0; i < n_before + q; i++) {
            cells.push_back(from + i * stride);
        }
        CHECK(cells.empty() || cells.back() < s.cells);
        s.seen.push_back(cells);
    }
}

std::vector<float> floats_of(const ggml_tensor * t) {
    std::vector<float> all(size_t(ggml_nelements(t)));
    const auto to_float = ggml_get_type_traits(t->type)->to_float;
    if (to_float != nullptr) {
        to_float(t->data, all.data(), int64_t(all.size()));
    } else {
        memcpy(all.data(), t->data, all.size() * sizeof(float));
    }
    return all;
}

double slope_of(const scene & s, int head) {
    if (s.max_bias <= 0) {
        return 1;
    }
    const int n = 1 << int(std::floor(std::log2(s.heads)));
    return head < n ? std::pow(2.0, -s.max_bias / n * (head + 1)) : std::pow(2.0, -s.max_bias / 2 / n * (2 * (head - n) + 1));
}

outcome attend(const scene & s) {
    const int n = int(s.seen.size());
    std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx(ggml_init({size_t(64) << 20, nullptr, false}), ggml_free);
    ggml_tensor * q = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, s.dk, n, s.heads);
    ggml_tensor * k = ggml_new_tensor_3d(ctx.get(), s.k, s.dk, s.cells, s.kv_heads);
    ggml_tensor * v = ggml_new_tensor_3d(ctx.get(), s.v, s.dv, s.cells, s.kv_heads);
    ggml_tensor * mask = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, s.cells, n);
    ggml_tensor * sinks = s.sinks ? ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, s.heads) : nullptr;
    std::mt19937 random(s.seed);
    std::normal_distribution<float> bell;
    for (ggml_tensor * t : {q, k, v, sinks}) {
        if (t == nullptr) {
            continue;
        }
        std::vector<float> numbers(size_t(ggml_nelements(t)));
        std::generate(numbers.begin(), numbers.end(), [&] { return bell(random); });
        ggml_quantize_chunk(t->type, numbers.data(), t->data, 0, ggml_nrows(t), t->ne[0], nullptr);
    }
    auto * bias = static_cast<ggml_fp16_t *>(mask->data);
    std::fill(bias, bias + n * s.cells, ggml_fp32_to_fp16(-INFINITY));
    for (int i = 0; i < n; i++) {
        for (const int cell : s.seen[size_t(i)]) {
            bias[i * s.cells + cell] = ggml_fp32_to_fp16(s.max_bias > 0 ? float(cell - s.cells) / 16 : 0);
        }
    }
    const float scale = 1 / std::sqrt(float(s.dk));
    ggml_tensor * out = ggml_flash_attn_ext(ctx.get(), q, k, v, mask, scale, s.max_bias, s.softcap);
    ggml_flash_attn_ext_add_sinks(out, sinks);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, out);
    ggml_cplan plan = ggml_graph_plan(graph, s.threads, nullptr);
    std::vector<uint8_t> work(plan.work_size);
    plan.work_data = work.data();
    plan.use_ref = s.steps;
    CHECK(ggml_graph_compute(graph, &plan) == GGML_STATUS_SUCCESS);

    outcome both;
    both.kernel = floats_of(out);
    const std::vector<float> fq = floats_of(q), fk = floats_of(k), fv = floats_of(v);
    for (int i = 0; i < n; i++) {
        for (int h = 0; h < s.heads; h++) {
            const int kv = h / (s.heads / s.kv_heads);
            std::vector<double> scores;
            for (const int cell : s.seen[size_t(i)]) {
                const float * a = &fq[size_t((h * n + i) * s.dk)];
                const float * b = &fk[size_t((kv * s.cells + cell) * s.dk)];
                double score = std::inner_product(a, a + s.dk, b, 0.0) * scale;
                score = s.softcap == 0 ? score : s.softcap * std::tanh(score / s.softcap);
                scores.push_back(score + slope_of(s, h) * ggml_fp16_to_fp32(bias[i * s.cells + cell]) * (s.max_bias > 0));
            }
            double total = s.sinks ? std::exp(double(static_cast<float *>(sinks->data)[h])) : 0;
            std::vector<double> sums(size_t(s.dv), 0);
            for (size_t c = 0; c < scores.size(); c++) {
                const double weight = std::exp(scores[c]);
                total += weight;
                for (int d = 0; d < s.dv; d++) {
                    sums[size_t(d)] += weight * double(fv[size_t((kv * s.cells + s.seen[size_t(i)][c]) * s.dv + d)]);
                }
            }
            for (const double sum : sums) {
                both.exact.push_back(total == 0 ? 0 : sum / total);
            }
        }
    }
    return both;
}

double worst(const outcome & o) {
    double most = 0;
    for (size_t i = 0; i < o.exact.size(); i++) {
        CHECK(std::isfinite(o.kernel[i]));
        most = std::max(most, std::abs(o.exact[i] - double(o.kernel[i])));
    }
    return most;
}

constexpr double ROUNDED_TO_16_BITS = 0.02; // what llama.cpp's steps lose, over a few hundred cells
constexpr double EXACT = 1e-4;

scene one_sequence(int n_before, int n_queries, ggml_type type = GGML_TYPE_F16) {
    scene s;
    s.k = s.v = type;
    add_sequence(s, 0, 1, n_before, n_queries);
    return s;
}

}  // namespace

TEST(attention_of_streams_that_share_a_cache_is_right) {
    lm::install_attention();
    scene s;
    for (int i = 0; i < 8; i++) {
        add_sequence(s, i, 8, 20 + i, 1);
    }
    CHECK(worst(attend(s)) < ROUNDED_TO_16_BITS);
}

TEST(attention_of_a_prompt_beside_streams_is_right) {
    lm::install_attention();
    scene s;
    s.cells = 512;
    add_sequence(s, 0, 3, 150, 1);
    add_sequence(s, 1, 3, 170, 1);
    add_sequence(s, 2, 3, 100, 61);
    const outcome o = attend(s);
    CHECK(worst(o) < ROUNDED_TO_16_BITS);
    const size_t streams = size_t(2 * s.heads * s.dv);
    CHECK(worst({{o.kernel.begin() + long(streams), o.kernel.end()}, {o.exact.begin() + long(streams), o.exact.end()}}) < EXACT);
}

TEST(attention_of_texts_that_share_a_batch_is_right) {
    lm::install_attention();
    scene s;
    s.heads = s.kv_heads = 12;
    s.dk = s.dv = 32;
    for (int text = 0, from = 0; text < 12; text++) {
        const int n = 4 + text * 3;
        std::vector<int> cells(static_cast<size_t>(n));
        std::iota(cells.begin(), cells.end(), from);
        s.seen.insert(s.seen.end(), size_t(n), cells);
        from += n;
    }
    CHECK(worst(attend(s)) < ROUNDED_TO_16_BITS);
}

TEST(attention_of_any_shape_is_right) {
    lm::install_attention();
    std::mt19937 random(3);
    const auto any = [&](int least, int most) { return std::uniform_int_distribution<int>(least, most)(random); };
    const ggml_type types[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0};
    for (int round = 0; round < 150; round++) {
        scene s;
        s.seed = unsigned(round);
        s.k = types[any(0, 4)];
        s.v = types[any(0, 4)];
        s.dk = any(1, 6) * 32;
        s.dv = any(1, 6) * 32;
        s.kv_heads = any(1, 4);
        s.heads = s.kv_heads * (any(0, 9) == 0 ? 90 : any(1, 9));
        s.cells = any(3, 9) * 40;
        s.threads = any(1, 3);
        s.sinks = any(0, 3) == 0;
        s.softcap = any(0, 3) == 0 ? 30 : 0;
        s.max_bias = any(0, 3) == 0 ? 8 : 0;
        const int n_sequences = any(1, 4);
        for (int i = 0; i < n_sequences; i++) {
            const int n_queries = any(0, 1) == 0 ? 1 : any(1, 40);
            const int room = (s.cells - 1 - i) / n_sequences - n_queries;
            add_sequence(s, i, n_sequences, any(0, std::max(0, room)), std::max(1, std::min(n_queries, n_queries + room)));
        }
        const double off = worst(attend(s));
        const bool coarse = s.k == GGML_TYPE_Q4_0 || s.k == GGML_TYPE_Q8_0; // queries are rounded as keys are
        if (off > (coarse ? 0.1 : ROUNDED_TO_16_BITS)) {
            fprintf(stderr, "round %d: off by %g, keys %s, values %s\n", round, off, ggml_type_name(s.k), ggml_type_name(s.v));
            CHECK(false);
        }
    }
}

TEST(attention_of_one_stream_among_the_cells_of_others_is_right) {
    lm::install_attention();
    for (const int threads : {1, 2, 5}) {
        scene s;
        s.cells = 1024;
        s.threads = threads;
        add_sequence(s, 2, 9, 100, 1);
        CHECK(worst(attend(s)) < ROUNDED_TO_16_BITS);
    }
}

TEST(attention_of_one_stream_alone_is_llama_cpps_to_the_bit) {
    scene s;
    s.cells = 1024;
    add_sequence(s, 0, 1, 900, 1);
    const std::vector<float> own = attend(s).kernel;
    lm::install_attention();
    CHECK(attend(s).kernel == own);
}

TEST(attention_of_a_short_prompt_alone_is_llama_cpps_to_the_bit) {
    std::vector<scene> scenes;
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
        scenes.push_back(one_sequence(1, 2, type));
        scenes.push_back(one_sequence(0, 63, type));
        scenes.push_back(one_sequence(80, 40, type));
        scenes.back().sinks = true;
        scenes.push_back(one_sequence(70, 17, type));
        scenes.back().max_bias = 8;
        scenes.push_back(one_sequence(70, 17, type));
        scenes.back().softcap = 30;
    }
    std::vector<std::vector<float>> own;
    for (const scene & s : scenes) {
        own.push_back(attend(s).kernel);
    }
    lm::install_attention();
    for (size_t i = 0; i < scenes.size(); i++) {
        CHECK(attend(scenes[i]).kernel == own[i]);
    }
}

TEST(attention_of_a_short_run_that_sees_many_cells_is_exact) {
    lm::install_attention();
    for (const int n_queries : {2, 3, 17, 63}) {
        for (const int threads : {1, 3}) {
            scene s;
            s.cells = 512;
            s.threads = threads;
            add_sequence(s, 0, 1, 300, n_queries);
            CHECK(worst(attend(s)) < EXACT); // in llama.cpp's own steps 16-bit sums would show
        }
    }
}

TEST(attention_of_streams_is_llama_cpps_to_the_bit) {
    scene s;
    for (int i = 0; i < 5; i++) {
        add_sequence(s, i, 5, 20 + i, 1);
    }
    const std::vector<float> own = attend(s).kernel;
    lm::install_attention();
    CHECK(attend(s).kernel == own);
}

TEST(attention_of_a_long_prompt_alone_is_llama_cpps_but_for_the_order_of_sums) {
    const scene s = one_sequence(60, 130);
    const std::vector<float> own = attend(s).kernel;
    lm::install_attention();
    const outcome ours = attend(s);
    for (size_t i = 0; i < own.size(); i++) {
        CHECK(std::abs(own[i] - ours.kernel[i]) < 1e-5f);
    }
}

// What a batch may look like: sequences that share their first cells or none, windows that slide, gaps, queries that see nothing,
// in any order of the sequences.
static void add_any_queries(scene & s, std::mt19937 & random) {
    const auto any = [&](int least, int most) { return std::uniform_int_distribution<int>(least, most)(random); };
    const int n_sequences = any(0, 1) == 0 ? 1 : any(2, 6);
    const int n_shared = any(0, 1) == 0 ? 0 : any(1, s.cells / 2);
    const int window = any(0, 2) == 0 ? any(1, s.cells) : s.cells;
    const double lost = any(0, 3) == 0 ? 0.3 : 0; // of the cells, those that nobody of a sequence sees
    const bool is_text = any(0, 4) > 0;            // else a query sees any cells
    for (int sequence = 0; sequence < n_sequences; sequence++) {
        std::vector<int> cells(static_cast<size_t>(n_shared));
        std::iota(cells.begin(), cells.end(), 0);
        for (int cell = n_shared + sequence; cell < s.cells; cell += n_sequences) {
            if (std::uniform_real_distribution<double>()(random) >= lost) {
                cells.push_back(cell);
            }
        }
        const int n = int(cells.size());
        const int n_queries = any(0, 2) == 0 ? any(1, 3) : any(2, n_sequences == 1 && any(0, 2) > 0 ? 63 : 90);
        const int before = std::max(0, n - n_queries - any(0, 20));
        for (int q = 0; q < n_queries; q++) {
            const int end = std::min(n, before + q + 1);
            std::vector<int> seen(cells.begin() + std::max(0, end - window), cells.begin() + end);
            if (!is_text) {
                seen.erase(std::remove_if(seen.begin(), seen.end(), [&](int) { return any(0, 1) == 0; }), seen.end());
            }
            s.seen.push_back(seen);
        }
    }
    if (any(0, 3) == 0) {
        std::shuffle(s.seen.begin(), s.seen.end(), random);
    }
}

TEST(attention_of_any_batch_is_llama_cpps_steps_or_exact) {
    std::mt19937 random(5);
    const auto any = [&](int least, int most) { return std::uniform_int_distribution<int>(least, most)(random); };
    const ggml_type types[] = {GGML_TYPE_F16, GGML_TYPE_F32, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_1, GGML_TYPE_Q4_0};
    std::vector<scene> scenes;
    std::vector<std::vector<float>> steps;
    for (int round = 0; round < 120; round++) {
        scene s;
        s.seed = unsigned(round);
        s.k = any(0, 1) == 0 ? GGML_TYPE_F16 : types[any(0, 5)];
        s.v = any(0, 1) == 0 ? s.k : types[any(0, 5)];
        const auto width = [&](ggml_type type) { return ggml_blck_size(type) > 1 || any(0, 1) == 0 ? any(1, 4) * 32 : any(1, 10) * 8; };
        s.dk = width(s.k);
        s.dv = width(s.v);
        s.kv_heads = any(1, 3);
        s.heads = s.kv_heads * (any(0, 9) == 0 ? 70 : any(1, 9));
        s.cells = any(1, 8) * 64 + any(0, 1) * any(1, 63);
        s.threads = any(1, 4);
        s.sinks = any(0, 3) == 0;
        s.softcap = any(0, 3) == 0 ? 30 : 0;
        s.max_bias = any(0, 3) == 0 ? 8 : 0;
        add_any_queries(s, random);
        if (s.seen.size() == 1) {
            s.seen.push_back(s.seen[0]);
        }
        s.steps = true;
        steps.push_back(attend(s).kernel);
        s.steps = false;
        scenes.push_back(s);
    }
    lm::install_attention();
    size_t n_exact = 0, n_steps = 0;
    for (size_t round = 0; round < scenes.size(); round++) {
        const scene & s = scenes[round];
        const outcome ours = attend(s);
        for (size_t at = 0; at < ours.kernel.size(); at += size_t(s.dv)) { // of a head of a query
            double off = 0, apart = 0;
            for (size_t d = at; d < at + size_t(s.dv); d++) {
                CHECK(std::isfinite(ours.kernel[d]));
                off = std::max(off, std::abs(double(ours.kernel[d]) - ours.exact[d]));
                apart = std::max(apart, std::abs(double(ours.kernel[d] - steps[round][d])));
            }
            const bool as_steps = apart <= (s.v == GGML_TYPE_F16 ? 2e-3 : 2e-6); // a rounding or two: of 16 or 32 bits
            n_steps += apart == 0;
            n_exact += off < EXACT && apart > 0;
            if (!as_steps && off >= EXACT) {
                fprintf(stderr, "scene %zu: query %zu is off by %g, %g from steps\n", round, at / size_t(s.dv * s.heads), off, apart);
                CHECK(false);
            }
        }
    }
    CHECK(n_steps > 10000 && n_exact > 10000); // both ways were gone
}
