#include "lora.h"

#include "error.h"

#include <algorithm>
#include <cstdio>

namespace lm {

// No effect has one spelling, so that comparing sets is comparing vectors.
static lora_scales canonical(lora_scales scales) {
    for (float & scale : scales) {
        scale += 0.0f; // a negative zero is no other zero
    }
    const bool has_effect = std::any_of(scales.begin(), scales.end(), [](float scale) { return scale != 0.0f; });
    return has_effect ? scales : lora_scales();
}

std::string to_key(const lora_scales & scales) {
    std::string key;
    for (size_t id = 0; id < scales.size(); id++) {
        if (scales[id] != 0.0f) {
            char pair[48];
            snprintf(pair, sizeof pair, "%zu:%.9g;", id, double(scales[id])); // nine digits tell all floats apart
            key += pair;
        }
    }
    return key;
}

lora_adapters::lora_adapters(llama_model * m, const std::vector<lora_file> & files) {
    for (const lora_file & file : files) {
        llama_adapter_lora * adapter = llama_adapter_lora_init(m, file.path.c_str());
        if (adapter == nullptr) {
            throw error("load_failed", "'" + file.path + "' is no LoRA adapter for this model");
        }
        if (llama_adapter_get_alora_n_invocation_tokens(adapter) > 0) {
            throw error("load_failed", "'" + file.path + "' is an adapter that some tokens switch on, which is not served");
        }
        adapters_.push_back(adapter);
        loaded_.push_back(file.scale);
    }
    loaded_ = canonical(std::move(loaded_));
}

lora_scales lora_adapters::scales_for(const std::optional<std::vector<lora_choice>> & chosen) const {
    if (!chosen) {
        return loaded_;
    }
    lora_scales scales(adapters_.size(), 0.0f);
    std::vector<bool> named(adapters_.size(), false);
    for (const lora_choice & choice : *chosen) {
        if (size_t(choice.id) >= adapters_.size()) {
            throw invalid_request("lora", "there is no LoRA adapter " + std::to_string(choice.id) + ", the model has " +
                                              std::to_string(adapters_.size()));
        }
        if (named[size_t(choice.id)]) {
            throw invalid_request("lora", "LoRA adapter " + std::to_string(choice.id) + " is named twice");
        }
        named[size_t(choice.id)] = true;
        scales[size_t(choice.id)] = choice.scale;
    }
    return canonical(std::move(scales));
}

void lora_adapters::apply(llama_context * ctx, const lora_scales & scales) {
    lora_scales all = scales;
    all.resize(adapters_.size(), 0.0f);
    llama_set_adapters_lora(ctx, adapters_.data(), adapters_.size(), all.data());
}

}  // namespace lm
