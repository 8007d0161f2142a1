// Command payloads to values and event facts to payloads: the only place that knows their JSON (csrc/protocol.md).
// Everything read here is range-checked; what is wrong throws invalid_request with the key at fault.
#pragma once

#include "draft.h"
#include "grammar.h"
#include "sampler.h"
#include "tower.h"

#include "json.h" // llama.cpp's common_json

#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace lm {

struct lora_file {
    std::string path;
    float scale;
};

// `id` is an index of LOAD's list.
struct lora_choice {
    int32_t id;
    float scale;
};

struct load_spec {
    std::string path;
    std::vector<std::string> splits; // empty: `path` is the whole model
    int32_t gpu_layers = -1;
    int32_t context_length = 4096; // 0: the model's own
    int32_t parallel = 4;
    int32_t max_queue = 512; // requests that may wait for admission
    int32_t kv_cells = 0; // 0: chosen from the free memory
    int32_t eval_batch_size = 512;
    int32_t threads = 0; // 0: `cores` of them, or fewer if the model gains nothing from more
    int32_t cores = 0; // that this process may use; 0: nobody said
    std::optional<bool> flash_attention;
    bool vocab_only = false;
    ggml_type k_cache_type = GGML_TYPE_F16;
    ggml_type v_cache_type = GGML_TYPE_F16;
    bool offload_kv_cache = true;
    int32_t n_experts = 0; // 0: the model's own
    bool mmap = true;
    bool mlock = false;
    int32_t main_gpu = 0;
    llama_split_mode split_mode = LLAMA_SPLIT_MODE_LAYER;
    std::vector<float> tensor_split; // empty: by free memory
    int32_t idle_cells = -1; // -1: chosen from the context
    int64_t spill_bytes = -1; // -1: chosen from the free memory
    uint64_t host_memory = 0; // bytes that the machine, or the control group, has for all of it; 0: nobody said
    std::vector<lora_file> loras;
    std::string projector; // by which it sees or hears; empty: it does not
    std::string chat_template; // a template or the name of one; empty: the file's own
    std::string prompt_cache; // the folder for prompts that outlive the engine; empty: there is none
    int64_t prompt_cache_bytes = 0; // that it may have; 0: nothing is kept there
    bool drafts = false; // for another model: no chat template is read, no prefixes are kept
    bool only_measured = false; // neither weights nor cache come to be: what they would take can be asked
};

enum class tool_choice { automatic, none, required };

struct chat_prompt {
    common_json messages;
    media_files media = {}; // which parts of them name by index
    common_json template_kwargs;
    common_json tools; // an array
    tool_choice choice = tool_choice::automatic;
    std::optional<bool> parallel_tool_calls; // none: if the template can write several calls of one message
    // Whether the last message, an answer without calls, is gone on with; none: if nothing rules what answers look like.
    std::optional<bool> continues;

    bool may_call_tools() const { return !tools.empty() && choice != tool_choice::none; }
};

// A text with a gap to be filled.
struct infill_prompt {
    struct file {
        std::string name;
        std::string text;
    };

    std::string prefix;
    std::string suffix;
    std::string begun;       // what the gap begins with; special tokens written in it are parsed
    std::optional<std::vector<file>> files; // others that may be of use, ahead of this one; none: no files are spoken of
    bool fits = false; // what is far from the gap goes if there is no room
};

using prompt_spec = std::variant<chat_prompt, std::string, std::vector<llama_token>, infill_prompt>;

// What happens to what does not fit the context.
enum class overflow_policy { error, stop, drop_middle };

struct generate_spec {
    prompt_spec prompt;
    int32_t max_tokens = -1;
    std::vector<std::string> stops;
    bool echo = false;
    bool progress = false; // is told of from the beginning, however short the prompt
    bool whole = false;
    bool ignore_eos = false;
    std::optional<int32_t> top_logprobs;
    std::optional<grammar_spec> grammar;
    draft_params draft;
    sampling_params sampling;
    std::vector<llama_token> stop_tokens;
    int32_t min_tokens = 0;         // neither a token nor a string ends the answer before
    int32_t line_ms = 0;            // once a line is complete, the answer ends after so long; 0: it does not
    int32_t reasoning_budget = -1;  // tokens; -1: no limit
    std::optional<std::vector<lora_choice>> loras; // none: the scales of the load
    overflow_policy overflow = overflow_policy::error;
    std::string scope;
};

using embed_input = std::variant<std::string, std::vector<llama_token>>;

load_spec parse_load(const std::string & payload);
// How the model of ATTACH_DRAFT is loaded beside the one that was loaded by `target`.
load_spec parse_attach_draft(const std::string & payload, const load_spec & target);
// `frames` are the request's pictures and sounds.
generate_spec parse_generate(const std::string & payload, media_frames && frames);

struct embed_spec {
    std::vector<embed_input> inputs;
    bool as_json;
    int32_t dimensions; // 0: all
};
embed_spec parse_embed(const std::string & payload);

struct rerank_spec {
    std::string query;
    std::vector<std::string> documents;
};
rerank_spec parse_rerank(const std::string & payload);

std::vector<llama_token> parse_detokenize(const std::string & payload);

struct render_spec {
    chat_prompt chat;
    std::optional<grammar_spec> grammar;
    bool count; // the prompt's tokens are to be counted

    const grammar_spec * ruled_by() const { return grammar ? &*grammar : nullptr; }
};
render_spec parse_render(const std::string & payload, media_frames && frames);

struct tokenize_spec {
    std::string text;
    bool add_special;
    bool parse_special;
};
tokenize_spec parse_tokenize(const std::string & payload);

}  // namespace lm
