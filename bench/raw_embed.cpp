// lmlite-raw-embed MODEL THREADS TEXTS: what llama.cpp itself takes for the texts in the file TEXTS, one per line.
// Each line on standard input, a number of tokens, is answered by the seconds of one pass over all texts in packs of at
// most so many tokens (a longer text goes alone). Tokenizing is not timed.
#include "ggml-cpu.h"
#include "llama.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

using tokens = std::vector<llama_token>;

constexpr int32_t MAX_TEXTS = 64; // sequences in one call

static tokens tokenize(const llama_vocab * vocab, const std::string & text) {
    tokens ids(text.size() + 8);
    ids.resize(size_t(llama_tokenize(vocab, text.data(), int32_t(text.size()), ids.data(), int32_t(ids.size()), true, true)));
    return ids;
}

// Computes texts[from..to) in one call, and reads each vector.
static float compute(llama_context * ctx, llama_batch_ext * batch, const std::vector<tokens> & texts, size_t from, size_t to) {
    llama_batch_ext_clear(batch);
    for (size_t text = from; text < to; text++) {
        for (size_t i = 0; i < texts[text].size(); i++) {
            const int32_t at = llama_batch_ext_add_token(batch, llama_seq_id(text - from), texts[text][i]);
            const llama_pos position = llama_pos(i);
            llama_batch_ext_set_pos(batch, at, &position);
            llama_batch_ext_set_output_embd(batch, at, true);
        }
    }
    const auto type = llama_get_memory(ctx) == nullptr ? LLAMA_PROCESS_TYPE_ENCODE : LLAMA_PROCESS_TYPE_DECODE;
    if (type == LLAMA_PROCESS_TYPE_DECODE) {
        llama_memory_clear(llama_get_memory(ctx), false);
    }
    if (llama_process(ctx, type, batch) != 0) {
        throw std::runtime_error("a call failed");
    }
    float sum = 0;
    for (size_t text = from; text < to; text++) {
        sum += llama_get_embeddings_seq(ctx, llama_seq_id(text - from))[0];
    }
    return sum;
}

static double pass_s(llama_context * ctx, llama_batch_ext * batch, const std::vector<tokens> & texts, size_t budget) {
    const auto began = std::chrono::steady_clock::now();
    for (size_t from = 0; from < texts.size();) {
        size_t to = from;
        for (size_t n = 0; to < texts.size() && to - from < size_t(MAX_TEXTS); to++) {
            n += texts[to].size();
            if (n > budget && to > from) {
                break;
            }
        }
        compute(ctx, batch, texts, from, to);
        from = to;
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: lmlite-raw-embed MODEL THREADS TEXTS\n");
        return 64;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) {
        fprintf(stderr, "the model cannot be loaded\n");
        return 1;
    }
    std::vector<tokens> texts;
    std::ifstream file(argv[3]);
    size_t total = 0;
    for (std::string text; std::getline(file, text);) {
        texts.push_back(tokenize(llama_model_get_vocab(model), text));
        total += texts.back().size();
    }
    llama_context_params params = llama_context_default_params();
    params.embeddings = true;
    const size_t room = (total + MAX_TEXTS - 1) / MAX_TEXTS * MAX_TEXTS; // llama.cpp asserts a whole number of texts per batch
    params.n_ctx = params.n_batch = params.n_ubatch = uint32_t(room);
    params.n_seq_max = MAX_TEXTS;
    params.kv_unified = true;
    params.no_perf = true;
    params.n_threads = params.n_threads_batch = atoi(argv[2]);
    llama_context * ctx = llama_init_from_model(model, params);
    ggml_threadpool_params pool_params = ggml_threadpool_params_default(params.n_threads);
    ggml_threadpool * pool = ggml_threadpool_new(&pool_params);
    if (ctx == nullptr || pool == nullptr || texts.empty()) {
        fprintf(stderr, "no context, no threads or no texts\n");
        return 1;
    }
    llama_attach_threadpool(ctx, pool, pool);
    llama_batch_ext * batch = llama_batch_ext_init(ctx);
    printf("%zu\n", total);
    fflush(stdout);
    for (size_t budget; std::cin >> budget;) {
        printf("%.6f\n", pass_s(ctx, batch, texts, budget));
        fflush(stdout);
    }
    llama_batch_ext_free(batch);
    llama_free(ctx);
    ggml_threadpool_free(pool);
    llama_model_free(model);
    llama_backend_free();
}
