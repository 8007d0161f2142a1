#include "protocol.h"

#include "error.h"

#include <algorithm>
#include <map>
#include <cctype>
#include <cmath>
#include <limits>
#include <set>

namespace lm {

// Limits against values that would make llama.cpp allocate or recurse without end. The dialects have narrower ones.
static constexpr int32_t MAX_CONTEXT = 1 << 24;
static constexpr int32_t MAX_PARALLEL = 200; // llama.cpp has 256 sequence ids; the rest hold cached prefixes
static constexpr int32_t MAX_BATCH = 1 << 14;
static constexpr int32_t MAX_THREADS = 512;
static constexpr int32_t MAX_GPUS = 64;
static constexpr size_t MAX_PATH_BYTES = 8192;
static constexpr size_t MAX_SPLITS = 4096;
static constexpr size_t MAX_LORAS = 64;
static constexpr double MAX_LORA_SCALE = 100;
static constexpr int32_t MAX_TOP_LOGPROBS = 128;
static constexpr size_t MAX_STOPS = 64;
static constexpr size_t MAX_STOP_LENGTH = 4096;
static constexpr size_t MAX_DRY_BREAKERS = 64;
static constexpr int32_t MAX_DRAFT = 64;
static constexpr int MAX_PAYLOAD_DEPTH = 1024;
static constexpr size_t MAX_TOOLS_BYTES = 1 << 20;
static constexpr size_t MAX_TOOL_NAME = 256;
static constexpr size_t MAX_FILES = 1024;
static constexpr size_t MAX_STEPS = 32;
static constexpr size_t MAX_STOP_TOKENS = 1024;

static common_json parse_object(const std::string & payload) {
    check_nesting(payload, "payload", MAX_PAYLOAD_DEPTH);
    common_json parsed = common_json::parse_no_throw(payload);
    if (parsed.is_discarded() || !parsed.is_object()) {
        throw error("invalid_request", "the payload is not a JSON object");
    }
    return parsed;
}

// ---- typed readers ----------------------------------------------------------------------------------------------------

static bool has(const common_json & object, const char * key) {
    return object.contains(key) && !object.at(key).is_null();
}

static int64_t integer(const common_json & value, const char * key, int64_t low, int64_t high) {
    if (!value.is_number_integer()) {
        throw invalid_request(key, std::string(key) + " must be an integer");
    }
    const int64_t n = value.get<int64_t>();
    if (n < low || n > high) {
        throw invalid_request(key, std::string(key) + " is out of range");
    }
    return n;
}

static void read(const common_json & object, const char * key, int32_t & into, int64_t low, int64_t high) {
    if (has(object, key)) {
        into = int32_t(integer(object.at(key), key, low, high));
    }
}

static void read(const common_json & object, const char * key, float & into, double low, double high) {
    if (!has(object, key)) {
        return;
    }
    if (!object.at(key).is_number()) {
        throw invalid_request(key, std::string(key) + " must be a number");
    }
    const double value = object.at(key).get<double>();
    if (!(value >= low && value <= high)) {
        throw invalid_request(key, std::string(key) + " is out of range");
    }
    into = float(value);
}

static bool read_bool(const common_json & object, const char * key, bool fallback) {
    if (!has(object, key)) {
        return fallback;
    }
    if (!object.at(key).is_boolean()) {
        throw invalid_request(key, std::string(key) + " must be a boolean");
    }
    return object.at(key).get<bool>();
}

static std::string read_string(const common_json & object, const char * key) {
    if (!has(object, key) || !object.at(key).is_string()) {
        throw invalid_request(key, std::string(key) + " must be a string");
    }
    return object.at(key).get<std::string>();
}

static std::vector<std::string> read_strings(const common_json & object, const char * key, size_t most, size_t longest) {
    std::vector<std::string> strings;
    if (!has(object, key)) {
        return strings;
    }
    const common_json & array = object.at(key);
    if (!array.is_array() || array.size() > most) {
        throw invalid_request(key, std::string(key) + " must be a short array of strings");
    }
    for (size_t i = 0; i < array.size(); i++) {
        if (!array.at(i).is_string()) {
            throw invalid_request(key, std::string(key) + " must hold strings");
        }
        strings.push_back(array.at(i).get<std::string>());
        if (strings.back().empty() || strings.back().size() > longest) {
            throw invalid_request(key, std::string(key) + " holds an empty or overlong string");
        }
    }
    return strings;
}

// The elements of an array of at most `most`; none if the key is absent.
static std::vector<common_json> read_array(const common_json & object, const char * key, size_t most) {
    std::vector<common_json> elements;
    if (!has(object, key)) {
        return elements;
    }
    const common_json & array = object.at(key);
    if (!array.is_array() || array.size() > most) {
        throw invalid_request(key, std::string(key) + " must be an array of at most " + std::to_string(most) + " elements");
    }
    for (size_t i = 0; i < array.size(); i++) {
        elements.push_back(array.at(i));
    }
    return elements;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// A file's path: a string, or {"hex": s} of its bytes where they are not UTF-8, as JSON's strings have to be.
static std::string to_path(const common_json & value, const char * key) {
    std::string path;
    if (value.is_string()) {
        path = value.get<std::string>();
    } else if (value.is_object() && has(value, "hex")) {
        const std::string hex = read_string(value, "hex");
        for (size_t i = 0; i + 1 < hex.size(); i += 2) {
            const int high = hex_digit(hex[i]), low = hex_digit(hex[i + 1]);
            if (high < 0 || low < 0) {
                throw invalid_request(key, std::string(key) + " has no hexadecimal bytes");
            }
            path += char(high * 16 + low);
        }
    } else {
        throw invalid_request(key, std::string(key) + " must be a string");
    }
    if (path.empty() || path.size() > MAX_PATH_BYTES || path.find('\0') != std::string::npos) {
        throw invalid_request(key, std::string(key) + " is no path");
    }
    return path;
}

static std::string read_path(const common_json & object) {
    if (!has(object, "path")) {
        throw invalid_request("path", "path must be a string");
    }
    return to_path(object.at("path"), "path");
}

static std::vector<std::string> read_splits(const common_json & object) {
    std::vector<std::string> paths;
    for (const common_json & item : read_array(object, "splits", MAX_SPLITS)) {
        paths.push_back(to_path(item, "splits"));
    }
    return paths;
}

static double number(const common_json & value, const char * key, double low, double high) {
    if (!value.is_number()) {
        throw invalid_request(key, std::string(key) + " must hold numbers");
    }
    const double n = value.get<double>();
    if (!(n >= low && n <= high)) {
        throw invalid_request(key, std::string(key) + " holds a number that is out of range");
    }
    return n;
}

static std::vector<llama_token> read_tokens(const common_json & array, const char * key) {
    if (!array.is_array()) {
        throw invalid_request(key, std::string(key) + " must be an array of token ids");
    }
    std::vector<llama_token> tokens;
    tokens.reserve(array.size());
    for (size_t i = 0; i < array.size(); i++) {
        tokens.push_back(llama_token(integer(array.at(i), key, 0, std::numeric_limits<int32_t>::max())));
    }
    return tokens;
}

// ---- commands -----------------------------------------------------------------------------------------------------------

// The types that llama.cpp can keep a KV cache in; others abort or crash it.
static ggml_type read_cache_type(const common_json & object, const char * key) {
    static constexpr ggml_type types[] = {GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0,  GGML_TYPE_Q5_1,
                                          GGML_TYPE_Q5_0, GGML_TYPE_Q4_1, GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL};
    if (!has(object, key)) {
        return GGML_TYPE_F16;
    }
    const std::string name = read_string(object, key);
    for (const ggml_type type : types) {
        if (name == ggml_type_name(type)) {
            return type;
        }
    }
    throw invalid_request(key, std::string(key) + " is not a type of the KV cache");
}

static llama_split_mode read_split_mode(const common_json & object) {
    static constexpr std::pair<const char *, llama_split_mode> modes[] = {{"none", LLAMA_SPLIT_MODE_NONE},
                                                                          {"layer", LLAMA_SPLIT_MODE_LAYER},
                                                                          {"row", LLAMA_SPLIT_MODE_ROW},
                                                                          {"tensor", LLAMA_SPLIT_MODE_TENSOR}};
    if (!has(object, "split_mode")) {
        return LLAMA_SPLIT_MODE_LAYER;
    }
    const std::string name = read_string(object, "split_mode");
    for (const auto & [known, mode] : modes) {
        if (name == known) {
            return mode;
        }
    }
    throw invalid_request("split_mode", "split_mode must be none, layer, row or tensor");
}

static std::vector<lora_file> parse_lora_files(const common_json & object) {
    std::vector<lora_file> files;
    for (const common_json & item : read_array(object, "loras", MAX_LORAS)) {
        if (!item.is_object()) {
            throw invalid_request("loras", "loras must hold objects");
        }
        files.push_back({read_path(item), 1.0f});
        read(item, "scale", files.back().scale, -MAX_LORA_SCALE, MAX_LORA_SCALE);
    }
    return files;
}

static std::vector<lora_choice> parse_lora_choices(const common_json & object) {
    std::vector<lora_choice> choices;
    for (const common_json & item : read_array(object, "loras", MAX_LORAS)) {
        if (!item.is_object() || !has(item, "id") || !has(item, "scale")) {
            throw invalid_request("lora", "a choice of LoRA adapters must hold objects with id and scale");
        }
        choices.push_back({int32_t(integer(item.at("id"), "lora", 0, std::numeric_limits<int32_t>::max())),
                           float(number(item.at("scale"), "lora", -MAX_LORA_SCALE, MAX_LORA_SCALE))});
    }
    return choices;
}

static uint64_t read_host_memory(const common_json & object) {
    const char * key = "host_memory";
    return has(object, key) ? uint64_t(integer(object.at(key), key, 0, std::numeric_limits<int64_t>::max())) : 0;
}

load_spec parse_load(const std::string & payload) {
    const common_json object = parse_object(payload);
    load_spec spec;
    spec.path = read_path(object);
    spec.splits = read_splits(object);
    read(object, "gpu_layers", spec.gpu_layers, -1, 1 << 20);
    read(object, "context_length", spec.context_length, 0, MAX_CONTEXT);
    read(object, "parallel", spec.parallel, 1, MAX_PARALLEL);
    read(object, "max_queue", spec.max_queue, 1, 1 << 20);
    read(object, "kv_cells", spec.kv_cells, 0, MAX_CONTEXT);
    read(object, "eval_batch_size", spec.eval_batch_size, 1, MAX_BATCH);
    read(object, "threads", spec.threads, 0, MAX_THREADS);
    read(object, "cores", spec.cores, 0, std::numeric_limits<int32_t>::max());
    if (has(object, "flash_attention")) {
        spec.flash_attention = read_bool(object, "flash_attention", false);
    }
    spec.vocab_only = read_bool(object, "vocab_only", false);
    spec.k_cache_type = read_cache_type(object, "k_cache_type");
    spec.v_cache_type = read_cache_type(object, "v_cache_type");
    spec.offload_kv_cache = read_bool(object, "offload_kv_cache", true);
    read(object, "n_experts", spec.n_experts, 0, std::numeric_limits<int32_t>::max());
    spec.mmap = read_bool(object, "mmap", true);
    spec.mlock = read_bool(object, "mlock", false);
    read(object, "main_gpu", spec.main_gpu, 0, MAX_GPUS - 1);
    spec.split_mode = read_split_mode(object);
    for (const common_json & share : read_array(object, "tensor_split", MAX_GPUS)) {
        spec.tensor_split.push_back(float(number(share, "tensor_split", 0, 1e6)));
    }
    read(object, "idle_cells", spec.idle_cells, -1, MAX_CONTEXT);
    if (has(object, "spill_bytes")) {
        spec.spill_bytes = integer(object.at("spill_bytes"), "spill_bytes", -1, std::numeric_limits<int64_t>::max());
    }
    spec.host_memory = read_host_memory(object);
    spec.loras = parse_lora_files(object);
    if (has(object, "projector")) {
        spec.projector = to_path(object.at("projector"), "projector");
    }
    if (has(object, "chat_template")) {
        spec.chat_template = read_string(object, "chat_template");
    }
    if (has(object, "prompt_cache")) {
        spec.prompt_cache = to_path(object.at("prompt_cache"), "prompt_cache");
    }
    if (has(object, "prompt_cache_bytes")) {
        spec.prompt_cache_bytes = integer(object.at("prompt_cache_bytes"), "prompt_cache_bytes", 0, std::numeric_limits<int64_t>::max());
    }
    return spec;
}

load_spec parse_attach_draft(const std::string & payload, const load_spec & target) {
    const common_json object = parse_object(payload);
    load_spec spec = target;
    spec.path = read_path(object);
    spec.splits = read_splits(object);
    // what was said of the other model's shape is not meant for this one
    spec.host_memory = read_host_memory(object);
    spec.kv_cells = spec.n_experts = 0;
    spec.k_cache_type = spec.v_cache_type = GGML_TYPE_F16;
    spec.loras.clear();
    spec.projector.clear();
    spec.drafts = true;
    return spec;
}

static draft_params parse_draft(const common_json & object) {
    draft_params draft;
    const std::string kind = read_string(object, "kind");
    if (kind != "model" && kind != "ngram") {
        throw invalid_request("draft", "unknown kind of draft");
    }
    draft.kind = kind == "model" ? draft_kind::model : draft_kind::ngram;
    read(object, "max", draft.max, 1, MAX_DRAFT);
    read(object, "min", draft.min, 0, MAX_DRAFT);
    read(object, "min_p", draft.min_p, 0, 1);
    return draft;
}

static sampling_params parse_sampling(const common_json & object) {
    constexpr double big = 1e6;
    sampling_params p;
    read(object, "temperature", p.temperature, 0, 100);
    read(object, "top_k", p.top_k, -1, std::numeric_limits<int32_t>::max());
    read(object, "top_p", p.top_p, 0, 1);
    read(object, "min_p", p.min_p, 0, 1);
    read(object, "typical_p", p.typical_p, 0, 1);
    read(object, "repeat_penalty", p.repeat_penalty, 1e-3, 1e3);
    read(object, "repeat_last_n", p.repeat_last_n, -1, MAX_CONTEXT);
    read(object, "presence_penalty", p.presence_penalty, -1e3, 1e3);
    read(object, "frequency_penalty", p.frequency_penalty, -1e3, 1e3);
    read(object, "mirostat", p.mirostat, 0, 2);
    read(object, "mirostat_tau", p.mirostat_tau, 0, big);
    read(object, "mirostat_eta", p.mirostat_eta, 0, big);
    read(object, "dry_multiplier", p.dry_multiplier, 0, big);
    read(object, "dry_base", p.dry_base, 0, big);
    read(object, "dry_allowed_length", p.dry_allowed_length, 0, MAX_CONTEXT);
    read(object, "dry_penalty_last_n", p.dry_penalty_last_n, -1, MAX_CONTEXT);
    if (has(object, "dry_sequence_breakers")) {
        p.dry_sequence_breakers = read_strings(object, "dry_sequence_breakers", MAX_DRY_BREAKERS, 256);
    }
    read(object, "xtc_probability", p.xtc_probability, 0, 1);
    read(object, "xtc_threshold", p.xtc_threshold, 0, 1);
    read(object, "top_n_sigma", p.top_n_sigma, -1, 1e3);
    read(object, "dynatemp_range", p.dynatemp_range, 0, 100);
    read(object, "dynatemp_exponent", p.dynatemp_exponent, 0, 100);
    if (has(object, "samplers")) {
        p.steps.emplace();
        for (const std::string & name : read_strings(object, "samplers", MAX_STEPS, 64)) {
            const std::optional<sampling_step> step = parse_sampling_step(name);
            if (!step) {
                throw invalid_request("samplers", "there is no sampler " + name);
            }
            p.steps->push_back(*step);
        }
    }
    if (has(object, "seed")) {
        p.seed = uint32_t(integer(object.at("seed"), "seed", 0, std::numeric_limits<uint32_t>::max()));
    }
    if (has(object, "logit_bias")) {
        const common_json & pairs = object.at("logit_bias");
        for (size_t i = 0; i < pairs.size(); i++) {
            const common_json & pair = pairs.at(i);
            if (!pair.is_array() || pair.size() != 2) {
                throw invalid_request("logit_bias", "logit_bias must hold [id, bias] pairs");
            }
            const int64_t id = integer(pair.at(size_t(0)), "logit_bias", 0, std::numeric_limits<int32_t>::max());
            float bias = -std::numeric_limits<float>::infinity();
            if (!pair.at(1).is_null()) {
                bias = float(pair.at(1).get<double>());
                if (!std::isfinite(bias)) {
                    throw invalid_request("logit_bias", "a bias must be finite");
                }
            }
            p.logit_bias.push_back({llama_token(id), bias});
        }
    }
    return p;
}

static bool is_tool_name(const std::string & name) {
    const auto plain = [](unsigned char c) { return isalnum(c) || c == '_' || c == '-' || c == '.'; };
    return !name.empty() && name.size() <= MAX_TOOL_NAME && std::all_of(name.begin(), name.end(), plain);
}

// Tools as the chat templates expect them: {"type": "function", "function": {"name", "description", "parameters"}}.
static common_json read_tools(const common_json & object) {
    common_json tools = common_json::array();
    if (!has(object, "tools")) {
        return tools;
    }
    if (!object.at("tools").is_array()) {
        throw invalid_request("tools", "tools must be an array");
    }
    std::set<std::string> names;
    for (const common_json & tool : object.at("tools")) {
        if (!tool.is_object() || !has(tool, "function") || !tool.at("function").is_object()) {
            throw invalid_request("tools", "a tool must have a function");
        }
        const common_json & function = tool.at("function");
        const std::string name = has(function, "name") && function.at("name").is_string() ? function.at("name").get<std::string>() : "";
        if (!is_tool_name(name)) {
            throw invalid_request("tools", "a tool's name must be letters, digits and _-., at most " +
                                               std::to_string(MAX_TOOL_NAME) + " of them");
        }
        if (!names.insert(name).second) {
            throw invalid_request("tools", "two tools are called " + name);
        }
        const common_json parameters = has(function, "parameters") ? function.at("parameters") : common_json::object();
        const std::string description = has(function, "description") ? read_string(function, "description") : "";
        tools.push_back(common_json::object({{"type", "function"},
                                             {"function", common_json::object({{"name", name},
                                                                               {"description", description},
                                                                               {"parameters", parameters}})}}));
    }
    const std::string text = tools.dump();
    check_nesting(text, "tools");
    if (text.size() > MAX_TOOLS_BYTES) {
        throw invalid_request("tools", "the tools are larger than " + std::to_string(MAX_TOOLS_BYTES) + " bytes");
    }
    return tools;
}

static tool_choice read_tool_choice(const common_json & object) {
    const std::string choice = has(object, "tool_choice") ? read_string(object, "tool_choice") : "auto";
    if (choice == "none") {
        return tool_choice::none;
    }
    if (choice == "required") {
        return tool_choice::required;
    }
    if (choice != "auto") {
        throw invalid_request("tool_choice", "tool_choice must be auto, none or required");
    }
    return tool_choice::automatic;
}

// What the parts of messages say of the files that came ahead of them: what each is. One without a part that names it is
// taken for a picture, and never looked at.
static std::vector<media_kind> read_media_kinds(const common_json & messages, size_t n_files) {
    std::vector<media_kind> kinds(n_files, media_kind::picture);
    for (const common_json & message : messages) {
        if (!message.is_object() || !has(message, "content") || !message.at("content").is_array()) {
            continue;
        }
        for (const common_json & part : message.at("content")) {
            if (!part.is_object() || !has(part, "type") || !part.at("type").is_string() || part.at("type") != "media") {
                continue;
            }
            if (!has(part, "index")) {
                throw invalid_request("messages", "a part of the type media has an index");
            }
            const int64_t index = integer(part.at("index"), "index", 0, int64_t(n_files) - 1);
            const std::string kind = read_string(part, "kind");
            if (kind != "image" && kind != "audio") {
                throw invalid_request("messages", "unknown kind of media");
            }
            kinds[size_t(index)] = kind == "audio" ? media_kind::sound : media_kind::picture;
        }
    }
    return kinds;
}

static std::string read_scope(const common_json & object) {
    return has(object, "scope") ? read_string(object, "scope") : "";
}

static media_files read_media(const common_json & messages, media_frames && frames, const std::string & scope) {
    const std::vector<media_kind> kinds = read_media_kinds(messages, frames.size());
    media_files files;
    for (size_t i = 0; i < frames.size(); i++) {
        std::string digest = digest_of(scope + '\n' + digest_of(frames[i].bytes())); // who is in another scope must not notice it
        files.push_back(std::make_shared<const media_file>(media_file{kinds[i], std::move(frames[i]), std::move(digest)}));
    }
    return files;
}

static chat_prompt parse_chat(const common_json & object, media_frames && frames) {
    chat_prompt prompt;
    prompt.messages = object.at("messages");
    prompt.template_kwargs = has(object, "template_kwargs") ? object.at("template_kwargs") : common_json::object();
    if (!prompt.messages.is_array() || prompt.messages.empty()) {
        throw invalid_request("messages", "messages must be an array that is not empty");
    }
    if (!prompt.template_kwargs.is_object()) {
        throw invalid_request("template_kwargs", "template_kwargs must be an object");
    }
    prompt.media = read_media(prompt.messages, std::move(frames), read_scope(object));
    prompt.tools = read_tools(object);
    prompt.choice = read_tool_choice(object);
    if (has(object, "parallel_tool_calls")) {
        prompt.parallel_tool_calls = read_bool(object, "parallel_tool_calls", true);
    }
    if (has(object, "continue_final")) {
        prompt.continues = read_bool(object, "continue_final", true);
    }
    if (prompt.choice == tool_choice::required && prompt.tools.empty()) {
        throw invalid_request("tool_choice", "a tool is required, but there are none");
    }
    return prompt;
}

static infill_prompt parse_infill(const common_json & object) {
    if (!object.is_object()) {
        throw invalid_request("infill", "infill must be an object");
    }
    infill_prompt infill;
    infill.prefix = read_string(object, "prefix");
    infill.suffix = read_string(object, "suffix");
    infill.begun = has(object, "begun") ? read_string(object, "begun") : "";
    if (!has(object, "files")) {
        return infill;
    }
    infill.fits = true;
    infill.files.emplace();
    for (const common_json & file : read_array(object, "files", MAX_FILES)) {
        if (!file.is_object()) {
            throw invalid_request("files", "files must hold objects");
        }
        infill.files->push_back({read_string(file, "name"), read_string(file, "text")});
    }
    return infill;
}

static prompt_spec parse_prompt(const common_json & object, media_frames && frames) {
    if (has(object, "messages")) {
        return parse_chat(object, std::move(frames));
    }
    if (!frames.empty()) {
        throw invalid_request("messages", "pictures and sounds are parts of messages");
    }
    if (has(object, "tokens")) {
        return read_tokens(object.at("tokens"), "prompt");
    }
    if (has(object, "infill")) {
        return parse_infill(object.at("infill"));
    }
    return read_string(object, "text");
}

static overflow_policy parse_overflow(const std::string & word) {
    if (word == "error") {
        return overflow_policy::error;
    }
    if (word == "stop") {
        return overflow_policy::stop;
    }
    if (word == "drop_middle") {
        return overflow_policy::drop_middle;
    }
    throw invalid_request("overflow", "unknown overflow policy");
}

// `chat` is null where the prompt is none.
static std::optional<grammar_spec> parse_grammar(const common_json & object, const chat_prompt * chat) {
    if (!has(object, "grammar")) {
        return std::nullopt;
    }
    const std::string kind = read_string(object.at("grammar"), "kind");
    static const std::map<std::string, grammar_kind> kinds = {{"gbnf", grammar_kind::gbnf},
                                                              {"json_schema", grammar_kind::schema},
                                                              {"regex", grammar_kind::regex},
                                                              {"choice", grammar_kind::choice}};
    const auto found = kinds.find(kind);
    if (found == kinds.end()) {
        throw invalid_request("grammar", "unknown kind of grammar");
    }
    if (chat != nullptr && chat->may_call_tools() && found->second != grammar_kind::schema) {
        throw invalid_request("grammar", "a grammar cannot be combined with tools");
    }
    return grammar_spec{found->second, read_string(object.at("grammar"), "text"), read_bool(object.at("grammar"), "strict", false)};
}

generate_spec parse_generate(const std::string & payload, media_frames && frames) {
    const common_json object = parse_object(payload);
    generate_spec spec;
    spec.prompt = parse_prompt(object, std::move(frames));
    read(object, "max_tokens", spec.max_tokens, -1, std::numeric_limits<int32_t>::max());
    spec.stops = read_strings(object, "stop", MAX_STOPS, MAX_STOP_LENGTH);
    if (has(object, "stop_tokens")) {
        spec.stop_tokens = read_tokens(object.at("stop_tokens"), "stop_token_ids");
        if (spec.stop_tokens.size() > MAX_STOP_TOKENS) {
            throw invalid_request("stop_token_ids", "stop_token_ids are too many");
        }
    }
    read(object, "min_tokens", spec.min_tokens, 0, std::numeric_limits<int32_t>::max());
    read(object, "line_ms", spec.line_ms, 0, std::numeric_limits<int32_t>::max());
    read(object, "reasoning_budget", spec.reasoning_budget, -1, std::numeric_limits<int32_t>::max());
    spec.echo = read_bool(object, "echo", false);
    spec.whole = read_bool(object, "whole", false);
    spec.progress = read_bool(object, "progress", false);
    spec.ignore_eos = read_bool(object, "ignore_eos", false);
    if (has(object, "top_logprobs")) {
        spec.top_logprobs = int32_t(integer(object.at("top_logprobs"), "top_logprobs", 0, MAX_TOP_LOGPROBS));
    }
    spec.grammar = parse_grammar(object, std::get_if<chat_prompt>(&spec.prompt));
    if (has(object, "draft")) {
        spec.draft = parse_draft(object.at("draft"));
    }
    if (has(object, "sampling")) {
        spec.sampling = parse_sampling(object.at("sampling"));
    }
    if (has(object, "loras")) {
        spec.loras = parse_lora_choices(object);
    }
    if (has(object, "overflow")) {
        spec.overflow = parse_overflow(read_string(object, "overflow"));
    }
    spec.scope = read_scope(object);
    return spec;
}

embed_spec parse_embed(const std::string & payload) {
    const common_json object = parse_object(payload);
    if (!has(object, "inputs") || !object.at("inputs").is_array() || object.at("inputs").empty()) {
        throw invalid_request("input", "inputs must be an array that is not empty");
    }
    const common_json & inputs = object.at("inputs");
    std::vector<embed_input> parsed;
    parsed.reserve(inputs.size());
    for (size_t i = 0; i < inputs.size(); i++) {
        const common_json & input = inputs.at(i);
        if (input.is_string()) {
            parsed.push_back(input.get<std::string>());
        } else {
            parsed.push_back(read_tokens(input, "input"));
        }
    }
    int32_t dimensions = 0;
    read(object, "dimensions", dimensions, 1, std::numeric_limits<int32_t>::max());
    return {std::move(parsed), read_bool(object, "as_json", false), dimensions};
}

rerank_spec parse_rerank(const std::string & payload) {
    const common_json object = parse_object(payload);
    rerank_spec spec{read_string(object, "query"), {}};
    if (!has(object, "documents") || !object.at("documents").is_array() || object.at("documents").empty()) {
        throw invalid_request("documents", "documents must be an array that is not empty");
    }
    const common_json & documents = object.at("documents");
    spec.documents.reserve(documents.size());
    for (size_t i = 0; i < documents.size(); i++) {
        if (!documents.at(i).is_string()) {
            throw invalid_request("documents", "documents must hold strings");
        }
        spec.documents.push_back(documents.at(i).get<std::string>());
    }
    return spec;
}

std::vector<llama_token> parse_detokenize(const std::string & payload) {
    const common_json object = parse_object(payload);
    if (!has(object, "tokens")) {
        throw invalid_request("tokens", "tokens must be an array of token ids");
    }
    return read_tokens(object.at("tokens"), "tokens");
}

render_spec parse_render(const std::string & payload, media_frames && frames) {
    const common_json object = parse_object(payload);
    if (!has(object, "messages")) {
        throw invalid_request("messages", "messages must be an array that is not empty");
    }
    render_spec spec{parse_chat(object, std::move(frames)), std::nullopt, read_bool(object, "count", false)};
    spec.grammar = parse_grammar(object, &spec.chat);
    return spec;
}

tokenize_spec parse_tokenize(const std::string & payload) {
    const common_json object = parse_object(payload);
    return {read_string(object, "text"), read_bool(object, "add_special", false),
            read_bool(object, "parse_special", false)};
}

}  // namespace lm
