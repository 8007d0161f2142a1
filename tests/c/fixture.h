// Vocabularies to sample from: the bundled model's, and made-up ones of any size, written as a GGUF without weights.
#pragma once

#include "check.h"
#include "text.h"

#include "gguf.h"
#include "llama.h"

#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <unistd.h>
#include <vector>

inline const lm::vocabulary & load_vocab(const std::string & path) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    llama_model * model = llama_model_load_from_file(path.c_str(), params); // lives as long as the program
    CHECK(model != nullptr);
    return *new lm::vocabulary(llama_model_get_vocab(model));
}

inline const lm::vocabulary & bundled_vocab() {
    static const lm::vocabulary & vocab = load_vocab(model_path);
    return vocab;
}

// `n` tokens (at least 300): the control tokens, every byte, then `words` and made-up words of one to eight letters.
inline const lm::vocabulary & made_up_vocab(size_t n) {
    static std::map<size_t, const lm::vocabulary *> known;
    const lm::vocabulary *& vocab = known[n];
    if (vocab != nullptr) {
        return *vocab;
    }
    std::vector<std::string> tokens = {"<unk>", "<s>", "</s>", "<|mark|>"};
    std::vector<int32_t> types = {LLAMA_TOKEN_TYPE_UNKNOWN, LLAMA_TOKEN_TYPE_CONTROL, LLAMA_TOKEN_TYPE_CONTROL,
                                  LLAMA_TOKEN_TYPE_CONTROL};
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", byte);
        tokens.push_back(name);
        types.push_back(LLAMA_TOKEN_TYPE_BYTE);
    }
    for (const char * word : {"true", "false", "null", "\":", "\",", "{\"", "\"}", "[]", "{}", "ab", "abc", "\xC3\xA9t\xC3\xA9",
                              "\xE4\xB8\xAD\xE6\x96\x87", "12", "3.14", "\xE2\x96\x81", "\xE2\x96\x81\xE2\x96\x81", "yes", "no"}) {
        tokens.push_back(word);
    }
    const std::string letters = "etaoinshrdlucmfwypvbgkjqxz";
    for (size_t i = 0; tokens.size() < n; i++) {
        std::string word = i % 3 == 0 ? "\xE2\x96\x81" : "";
        for (size_t rest = i + 1; rest > 0; rest /= letters.size()) {
            word += letters[rest % letters.size()];
        }
        tokens.push_back(word + "'");
    }
    tokens.resize(n);
    types.resize(n, LLAMA_TOKEN_TYPE_NORMAL);
    const std::vector<float> scores(n, 0.0f);
    std::vector<const char *> texts;
    for (const std::string & token : tokens) {
        texts.push_back(token.c_str());
    }

    char path[] = "/tmp/lmlite-vocab-XXXXXX";
    const int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    gguf_context * gguf = gguf_init_empty();
    gguf_set_val_str(gguf, "general.architecture", "llama");
    for (const char * key : {"context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"}) {
        gguf_set_val_u32(gguf, (std::string("llama.") + key).c_str(), 32);
    }
    gguf_set_val_f32(gguf, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_set_val_str(gguf, "tokenizer.ggml.model", "llama");
    gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", texts.data(), n);
    gguf_set_arr_data(gguf, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), n);
    gguf_set_arr_data(gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), n);
    gguf_set_val_u32(gguf, "tokenizer.ggml.bos_token_id", 1);
    gguf_set_val_u32(gguf, "tokenizer.ggml.eos_token_id", 2);
    CHECK(gguf_write_to_file(gguf, path, true));
    gguf_free(gguf);
    vocab = &load_vocab(path);
    unlink(path);
    return *vocab;
}
