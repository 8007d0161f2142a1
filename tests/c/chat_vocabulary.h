// The bundled model's vocabulary, and its tokens of one byte each: any text can be pushed byte by byte.
#pragma once

#include "check.h"

#include "text.h"

#include "llama.h"

#include <memory>
#include <string>

struct chat_vocabulary {
    chat_vocabulary() {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        llama_model_params params = llama_model_default_params();
        params.vocab_only = true;
        model.reset(llama_model_load_from_file(model_path.c_str(), params));
        CHECK(model);
        vocab = std::make_unique<lm::vocabulary>(llama_model_get_vocab(model.get()));
        for (llama_token id = 0; id < vocab->size(); id++) {
            const std::string_view piece = vocab->piece(id);
            if (piece.size() == 1) {
                bytes[static_cast<unsigned char>(piece[0])] = id;
            }
        }
    }

    llama_token byte(char c) const { return bytes[static_cast<unsigned char>(c)]; }

    struct deleter {
        void operator()(llama_model * m) const { llama_model_free(m); }
    };
    std::unique_ptr<llama_model, deleter> model;
    std::unique_ptr<lm::vocabulary> vocab;
    llama_token bytes[256] = {};
};
