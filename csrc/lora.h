// The LoRA adapters of one model. They change a whole context, so each decode step runs with one set of scales.
#pragma once

#include "protocol.h"

#include "llama.h"

#include <optional>
#include <string>
#include <vector>

namespace lm {

// The scale of each adapter, in LOAD's order; empty if none has an effect. Equal sets are equal vectors.
using lora_scales = std::vector<float>;

// The same text for the same scales and no others; empty for no effect.
std::string to_key(const lora_scales & scales);

class lora_adapters {
  public:
    lora_adapters() = default;
    // Throws error("load_failed") that names the file. `m` owns the adapters and outlives this.
    lora_adapters(llama_model * m, const std::vector<lora_file> & files);

    bool empty() const { return adapters_.empty(); }
    // What a request asked for: those that it does not name are off; without a choice, the scales of the load.
    // Throws invalid_request("lora").
    lora_scales scales_for(const std::optional<std::vector<lora_choice>> & chosen) const;
    lora_scales full() const { return lora_scales(adapters_.size(), 1.0f); }
    // Costs a new reservation of the compute buffers if the context had other scales, and nothing if it had these.
    void apply(llama_context * ctx, const lora_scales & scales);

  private:
    std::vector<llama_adapter_lora *> adapters_; // owned by the model
    lora_scales loaded_;
};

}  // namespace lm
