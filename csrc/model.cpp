#include "model.h"

#include "attention.h"
#include "chat_template.h"

#include "error.h"
#include "kernels.h"
#include "model_file.h"
#include "payload.h"
#include "tower_trial.h"
#include "heartbeat.h"

#include "build-info.h"
#include "common.h"
#include "ggml-cpu.h"
#include "log.h"

#include "../src/llama-ext.h" // the memory that a context takes, by device

#include "hash/hash.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

namespace lm {

// Sequence ids beyond the running ones keep cached prefixes. Up to 64 ids cost nothing per step; recurrent models
// allocate a whole state per id, so they get few.
static constexpr int32_t CACHED_SEQUENCES = 28;
static constexpr int32_t CACHED_STATES = 2;
static constexpr int32_t EMBEDDING_SEQUENCES = 64;

// Prompts that outlive the engine are kept in pieces of so many tokens. One is 16 MB for a model of 8 billion weights, which are
// copied in some milliseconds; up to so many tokens at the end of a prompt are computed again. A window may allow no more than
// fewer, but files for a handful are not worth their names.
static constexpr size_t MOST_PIECE_TOKENS = 128;
static constexpr size_t LEAST_PIECE_TOKENS = 16;

// Lanes beyond the first, each for its share of the threads. llama.cpp keeps a row of outputs, logits included, for each token
// of a computation: a vocabulary of 30,000 allows the most tokens, one of 250,000 the fewest.
static constexpr int32_t MAX_LANES = int32_t(MOST_STEPS);
static constexpr int32_t MOST_LANE_TOKENS = 256; // longer texts gain little: their operations are long, too
static constexpr int32_t LEAST_LANE_TOKENS = 128;
static constexpr int64_t LANE_OUTPUT_BYTES = 128 << 20;
static constexpr double LANES_MEMORY_SHARE = 0.125; // of what is free, for all lanes beyond the first

// The KV cache holds `parallel` full contexts where that costs at most this share of the free memory. A GPU's is for little
// else than models.
static constexpr double CELLS_MEMORY_SHARE = 0.25;
static constexpr double CELLS_GPU_SHARE = 0.5;

// Contexts that only show what is possible and what it costs.
static constexpr uint32_t PROBE_CELLS = 256;
static constexpr uint32_t PROBE_BATCH = 16;

// llama.cpp aborts on a copy of a part of such a sequence.
static constexpr char COMPRESSED_ARCH[] = "deepseek4";

// Like the one above, this cannot give the output of all tokens at once.
static constexpr char HASHED_ARCH[] = "qwen4exp";

// llama.cpp stores the states of several such sequences in one batch where those of others are.
static constexpr char SOLITARY_ARCH[] = "plamo2";

// Of a batch of such tokens llama.cpp gives the first one's output for the last one's.
static constexpr char MISREAD_ARCH[] = "cogvlm";

// Idle sequences beyond those that stay in the cells are copied to host memory, up to this share of what is free.
static constexpr double SPILL_MEMORY_SHARE = 0.125;

// Threads only get in each other's way where a decode step is shorter than waking one.
static constexpr uint64_t SINGLE_THREAD_BYTES = 16u << 20;

void threadpool_deleter::operator()(ggml_threadpool * p) const {
    ggml_threadpool_free(p);
}

// ---- process-wide set-up ------------------------------------------------------------------------------------------

// What llama.cpp says of a load that fails: it is logged by the thread that loads, and told nowhere else.
static thread_local std::string * errors_of_load = nullptr;

static void log_to_stderr(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) { // warnings speak of what the engine handles: a full cache, a long context
        fputs(text, stderr);
        if (errors_of_load != nullptr) {
            *errors_of_load += text;
        }
    }
}

static void init_backend() {
    static std::once_flag once;
    std::call_once(once, [] {
        setenv("GGML_NO_BACKTRACE", "1", 0); // an abort must not fork a debugger
        llama_log_set(log_to_stderr, nullptr);
        common_log_set_verbosity_thold(-1);
        llama_backend_init();
        install_attention();
    });
}

static std::string backend_name() {
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU) {
            std::string name = ggml_backend_reg_name(ggml_backend_dev_backend_reg(device));
            std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return char(tolower(c)); });
            return name;
        }
    }
    return "cpu";
}

#if defined(__APPLE__)
static constexpr char OS[] = "macos";
#elif defined(__linux__)
static constexpr char OS[] = "linux";
#else
static constexpr char OS[] = "unix";
#endif

#if defined(__x86_64__)
static constexpr char ARCH[] = "x86_64";
#elif defined(__aarch64__)
static constexpr char ARCH[] = "arm64";
#else
static constexpr char ARCH[] = "unknown";
#endif

#ifndef LMLITE_LLAMA_COMMIT
#define LMLITE_LLAMA_COMMIT "unknown"
#endif

// LM Studio's form: "llama.cpp-linux-x86_64-cpu".
static std::string runtime_name() {
    return std::string("llama.cpp-") + OS + "-" + ARCH + "-" + backend_name();
}

const char * build_info() {
    static const std::string info = json_object()
                                        .add("llama_cpp", LMLITE_LLAMA_COMMIT)
                                        .add("version", llama_version())
                                        .add("backend", backend_name())
                                        .add("runtime", runtime_name())
                                        .add("kernels", kernels())
                                        .text();
    return info.c_str();
}

// ---- memory -------------------------------------------------------------------------------------------------------

// Bytes that the machine has without swapping. What a control group allows is for whoever starts the engine to say.
static uint64_t free_host_memory() {
    unsigned long long kib = 0;
    if (FILE * file = fopen("/proc/meminfo", "r")) {
        char line[256];
        while (fgets(line, sizeof line, file) != nullptr && sscanf(line, "MemAvailable: %llu", &kib) != 1) {
        }
        fclose(file);
    }
    return kib > 0 ? uint64_t(kib) << 10 : uint64_t(sysconf(_SC_PHYS_PAGES)) * uint64_t(sysconf(_SC_PAGESIZE)) / 2;
}

static int64_t metadata_number(const llama_model * m, const std::string & key, int64_t fallback) {
    char text[64];
    if (llama_model_meta_val_str(m, key.c_str(), text, sizeof text) <= 0) {
        return fallback;
    }
    return strtoll(text + (text[0] == '['), nullptr, 10); // of an array, one number per layer: the first
}

static int32_t round_up(int64_t n, int32_t to) {
    return int32_t((n + to - 1) / to * to);
}

uint64_t free_memory_now(ggml_backend_dev_t device) {
    size_t free = 0;
    size_t total = 0;
    if (device != nullptr) {
        ggml_backend_dev_memory(device, &free, &total);
    }
    return total > 0 ? free : free_host_memory();
}

uint64_t model::weights(ggml_backend_dev_t device) const {
    const auto found = weights_.find(device);
    return found == weights_.end() ? 0 : found->second;
}

// What is free once the weights are where they will be.
uint64_t model::free_memory(ggml_backend_dev_t device) const {
    const uint64_t free = free_memory_now(device);
    return only_measured_ ? free - std::min(free, weights(device)) : free; // else they are there already
}

// The part of it that is meant for this model.
uint64_t model::own_memory(ggml_backend_dev_t device) const {
    const uint64_t free = free_memory(device);
    if (device != nullptr || host_memory_ == 0) {
        return free;
    }
    return std::min(free, host_memory_ - std::min(host_memory_, weights(nullptr)));
}

// A context that only shows whether these settings are possible and what they cost; null if they are not.
model::context_ptr model::probe(llama_context_params params, uint32_t n_cells) const {
    params.n_ctx = n_cells;
    params.n_batch = params.n_ubatch = PROBE_BATCH;
    params.n_seq_max = params.n_outputs_max = 1;
    params.n_threads = params.n_threads_batch = 1;
    return context_ptr(llama_init_from_model(model_.get(), params));
}

// Quantised blocks must divide each head. llama.cpp checks this with flash attention and aborts without.
void model::check_cache_types(llama_context_params params) const {
    if (params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED && ggml_is_quantized(params.type_v)) {
        throw invalid_request("v_cache_type", "a quantised V cache needs flash attention");
    }
    if (params.type_k == GGML_TYPE_F16 && params.type_v == GGML_TYPE_F16) {
        return;
    }
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_AUTO;
    if (probe(params, PROBE_CELLS)) {
        return;
    }
    const std::string k = ggml_type_name(params.type_k);
    const std::string v = ggml_type_name(params.type_v);
    for (const ggml_type other : {params.type_k, GGML_TYPE_F16}) {
        params.type_v = other;
        if (v != ggml_type_name(other) && probe(params, PROBE_CELLS)) {
            throw invalid_request("v_cache_type", "this model cannot have a V cache of type " + v + " beside a K cache of type " +
                                                      k + "; " + ggml_type_name(other) + " is possible");
        }
    }
    throw invalid_request("k_cache_type", "this model cannot have a K cache of type " + k);
}

// The CPU has types of its own for weights that it repacks, which are in the machine's memory although others cannot read them.
ggml_backend_dev_t memory_device(ggml_backend_buffer_type_t type) {
    ggml_backend_dev_t device = ggml_backend_buft_is_host(type) ? nullptr : ggml_backend_buft_get_device(type);
    return device != nullptr && ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU ? nullptr : device;
}

static std::map<ggml_backend_dev_t, uint64_t> cache_bytes(const llama_context * ctx) {
    std::map<ggml_backend_dev_t, uint64_t> bytes;
    for (const auto & [type, use] : llama_get_memory_breakdown(ctx)) {
        bytes[memory_device(type)] += use.context;
    }
    return bytes;
}

// Measured, because architectures differ in what a cell holds: heads per layer, latent attention, layers without a cache.
model::device_bytes model::bytes_per_cell(const llama_context_params & params) {
    const context_ptr with_cells = probe(params, 2 * PROBE_CELLS);
    note_weights(with_cells.get());
    const context_ptr with_half = has_states() ? probe(params, PROBE_CELLS) : nullptr; // whose states are as large
    device_bytes bytes = with_cells ? cache_bytes(with_cells.get()) : device_bytes();
    const device_bytes half = with_half ? cache_bytes(with_half.get()) : device_bytes();
    for (auto & [device, n] : bytes) {
        const auto found = half.find(device);
        n = (found == half.end() ? n : 2 * (n - found->second)) / (2 * PROBE_CELLS);
    }
    return bytes;
}

void model::note_weights(const llama_context * ctx) {
    if (ctx != nullptr) {
        for (const auto & [type, use] : llama_get_memory_breakdown(ctx)) {
            weights_[memory_device(type)] += is_mapped(type) ? 0 : use.model;
        }
    }
}

// The compute buffers have room for a step over all cells, but memory comes to be where it is written to: one context that
// is full, which is all that `parallel` promises to one request, writes only so far. Of a GPU's memory all is taken at once.
void model::note_compute(llama_context_params params) {
    params.n_ctx = std::min(params.n_ctx, uint32_t(round_up(context_length_, 256)));
    if (const context_ptr with_one = context_ptr(llama_init_from_model(model_.get(), params))) {
        for (const auto & [type, use] : llama_get_memory_breakdown(with_one.get())) {
            host_compute_bytes_ += memory_device(type) == nullptr ? use.compute : 0;
        }
    }
}

void model::note_states(const device_bytes & per_cell) {
    if (has_states()) {
        const device_bytes bytes = cache_bytes(context_.get());
        const auto all = bytes.find(nullptr);
        const auto cell = per_cell.find(nullptr);
        const uint64_t cells = cell == per_cell.end() ? 0 : cell->second * uint64_t(kv_cells_);
        host_state_bytes_ = all == bytes.end() ? 0 : all->second - std::min(all->second, cells);
    }
}

// As many cells as were asked for, or as are cheap, but never fewer than one context: the cache is filled with zeros when it
// is made, so one that is larger than the memory would end the process.
int32_t model::choose_cells(const load_spec & spec, const device_bytes & bytes) const {
    int64_t cheap = int64_t(context_length_) * parallel_;
    int64_t possible = std::numeric_limits<int64_t>::max();
    for (const auto & [device, per_cell] : bytes) {
        const double share = device == nullptr ? CELLS_MEMORY_SHARE : CELLS_GPU_SHARE;
        if (per_cell == 0) {
            continue;
        }
        cheap = std::min(cheap, int64_t(double(own_memory(device)) * share / double(per_cell)));
        possible = std::min(possible, int64_t(double(free_memory(device)) / double(per_cell)));
    }
    const int64_t chosen = spec.kv_cells > 0 ? spec.kv_cells : cheap;
    const int32_t cells = round_up(std::max<int64_t>(chosen, context_length_), 256);
    if (cells > possible && !only_measured_) {
        throw error("out_of_memory", "there is memory for a KV cache of " + std::to_string(possible) + " cells, not of " +
                                         std::to_string(cells));
    }
    return cells;
}

// ---- what this machine and this file allow ------------------------------------------------------------------------

static bool is_same_card(ggml_backend_dev_t a, ggml_backend_dev_t b) {
    ggml_backend_dev_props of_a;
    ggml_backend_dev_props of_b;
    ggml_backend_dev_get_props(a, &of_a);
    ggml_backend_dev_get_props(b, &of_b);
    return of_a.device_id != nullptr && of_b.device_id != nullptr && strcmp(of_a.device_id, of_b.device_id) == 0;
}

// The devices that llama.cpp splits a model across, in its order: each card once, integrated ones only where there are no others.
static std::vector<ggml_backend_dev_t> gpus() {
    std::vector<ggml_backend_dev_t> cards;
    std::vector<ggml_backend_dev_t> integrated;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const auto same = [&](ggml_backend_dev_t other) { return is_same_card(device, other); };
        if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            integrated.push_back(device);
        } else if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU &&
                   std::none_of(cards.begin(), cards.end(), same)) {
            cards.push_back(device);
        }
    }
    return cards.empty() ? integrated : cards;
}

std::string told_without_gpu() {
    for (size_t i = 0; gpus().empty() && i < ggml_backend_reg_count(); i++) {
        ggml_backend_reg_t backend = ggml_backend_reg_get(i);
        if (ggml_backend_reg_dev_count(backend) == 0) {
            return std::string("this build computes with ") + ggml_backend_reg_name(backend) +
                   ", which found no GPU (or no driver for it): the model is computed on the CPU";
        }
    }
    return "";
}

static bool can_split_rows(ggml_backend_dev_t device) {
    return ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_split_buffer_type") != nullptr;
}

static void check_devices(const load_spec & spec) {
    const std::vector<ggml_backend_dev_t> devices = gpus();
    const std::string count = "this machine has " + std::to_string(devices.size()) + " GPUs that llama.cpp can use";
    if (spec.main_gpu > 0 && size_t(spec.main_gpu) >= devices.size()) {
        throw invalid_request("main_gpu", "there is no GPU " + std::to_string(spec.main_gpu) + ": " + count);
    }
    if (spec.tensor_split.size() > devices.size()) {
        throw invalid_request("tensor_split", "there are more shares than GPUs: " + count);
    }
    const auto is_zero = [](float share) { return share == 0; };
    if (!spec.tensor_split.empty() && std::all_of(spec.tensor_split.begin(), spec.tensor_split.end(), is_zero)) {
        throw invalid_request("tensor_split", "no GPU has a share above 0");
    }
    if (spec.split_mode == LLAMA_SPLIT_MODE_ROW && !std::all_of(devices.begin(), devices.end(), can_split_rows)) {
        throw invalid_request("split_mode", "these GPUs cannot split a model by rows");
    }
    if (spec.split_mode == LLAMA_SPLIT_MODE_TENSOR) {
        if (devices.empty()) {
            throw invalid_request("split_mode", "splitting by tensors needs a GPU: " + count);
        }
        if (spec.flash_attention && !*spec.flash_attention) {
            throw invalid_request("flash_attention", "splitting by tensors needs flash attention");
        }
    }
}

// Whether this much memory may be locked, found out with pages that never come to be.
static bool can_lock(size_t bytes) {
#if defined(__linux__) && defined(MLOCK_ONFAULT)
    void * pages = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) {
        return false;
    }
    const bool refused = mlock2(pages, bytes, MLOCK_ONFAULT) != 0 && (errno == ENOMEM || errno == EPERM || errno == EAGAIN);
    munmap(pages, bytes);
    return !refused;
#else
    return bytes > 0; // llama.cpp locks what it may
#endif
}

std::vector<std::string> files_of(const load_spec & spec) {
    return spec.splits.empty() ? std::vector<std::string>{spec.path} : spec.splits;
}

static void check_mlock(const load_spec & spec, const std::vector<model_file> & files) {
    const bool stays_in_memory = spec.gpu_layers == 0 || gpus().empty();
    if (!spec.mlock || spec.vocab_only || !stays_in_memory) {
        return;
    }
    uint64_t bytes = 0;
    for (const model_file & file : files) {
        bytes += file.bytes();
    }
    if (bytes > 0 && !can_lock(bytes)) {
        throw invalid_request("mlock", "this process may not lock " + std::to_string(bytes) +
                                           " bytes of memory; raise its limit (ulimit -l)");
    }
}

// ---- loading ------------------------------------------------------------------------------------------------------

model::model(const load_spec & spec, const progress_fn & progress, const std::function<void()> & before_template)
    : only_measured_(spec.only_measured), host_memory_(spec.host_memory) {
    init_backend();
    check_devices(spec);
    load_weights(spec, progress);
    check_vocabulary();
    vocab_ = std::make_unique<vocabulary>(llama_model_get_vocab(model_.get()));
    try_vocabulary();
    if (spec.vocab_only) {
        return;
    }
    if (!only_measured_) {
        loras_ = lora_adapters(model_.get(), spec.loras);
    }
    make_context(spec);
    if (spec.drafts || only_measured_) {
        return;
    }
    tower_ = load_tower(spec, progress);
    before_template();
    chat_ = std::make_unique<chat_template>(model_.get(), *vocab_, embedding_ ? std::string() : spec.chat_template);
    chat_->see_with(tower_.get());
}

model::~model() = default;

static llama_load_mode load_mode(bool map, bool lock) {
    if (lock) {
        return map ? LLAMA_LOAD_MODE_MMAP_MLOCK : LLAMA_LOAD_MODE_MLOCK;
    }
    return map ? LLAMA_LOAD_MODE_AUTO : LLAMA_LOAD_MODE_NONE; // AUTO: unless a device cannot
}

// What LLAMA_LOAD_MODE_AUTO goes by.
static bool devices_can_map(const llama_model * m) {
    for (int32_t i = 0; i < llama_model_n_devices(m); i++) {
        ggml_backend_dev_props props;
        ggml_backend_dev_get_props(llama_model_get_device(m, i), &props);
        if (!props.caps.mmap_support) {
            return false;
        }
    }
    return true;
}

bool model::is_mapped(ggml_backend_buffer_type_t type) const {
    ggml_backend_dev_t device = ggml_backend_buft_get_device(type);
    if (device == nullptr) {
        device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    }
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(device, &props);
    return maps_file_ && props.caps.buffer_from_host_ptr && type == ggml_backend_dev_buffer_type(device);
}

// Why a load failed, of what was logged meanwhile.
static std::string refusal(const std::string & logged) {
    static const std::string MARK = "error loading model: ";
    const size_t at = logged.find(MARK);
    if (at == std::string::npos) {
        return "llama.cpp refused the file";
    }
    const size_t begin = at + MARK.size();
    std::string why = logged.substr(begin, logged.find('\n', begin) - begin);
    if (why.find("unknown ") != std::string::npos) { // another build may know it
        why += std::string("; this engine is llama.cpp ") + llama_version() + "+" + LMLITE_LLAMA_COMMIT;
    }
    return "llama.cpp refused the file: " + why;
}

// A vocabulary with which no text can be read, or none written, is told now and not by each request.
void model::check_vocabulary() const {
    const llama_vocab * v = llama_model_get_vocab(model_.get());
    const int32_t n = llama_vocab_n_tokens(v);
    if (llama_vocab_type(v) == LLAMA_VOCAB_TYPE_NONE || n <= 0) {
        throw error("load_failed", "the file has no vocabulary");
    }
    for (const char * name : {"bos", "eos"}) { // which llama.cpp takes others for then, whatever those are
        const int64_t id = metadata_number(model_.get(), std::string("tokenizer.ggml.") + name + "_token_id", 0);
        if (id >= n && id != UINT32_MAX) { // there is none
            throw error("load_failed", std::string("its ") + name + " token is " + std::to_string(id) + ", outside of the vocabulary of " +
                                           std::to_string(n) + " tokens");
        }
    }
}

// The same, of what only shows when it is used: plain words, since a vocabulary may well lack what is rare.
void model::try_vocabulary() const {
    std::vector<llama_token> ids;
    try {
        ids = vocab_->tokenize("Hello world, how are you?\n", false, false);
    } catch (const std::exception & e) {
        throw error("load_failed", std::string("the tokenizer cannot read a text with this vocabulary: ") + e.what());
    }
    if (ids.empty()) {
        throw error("load_failed", "the tokenizer makes no tokens of a text with this vocabulary");
    }
    for (const llama_token id : ids) {
        if (!vocab_->contains(id)) {
            throw error("load_failed", "the tokenizer makes token " + std::to_string(id) + " of a text, and the vocabulary has " +
                                           std::to_string(vocab_->size()) + " tokens");
        }
    }
}

void model::load_weights(const load_spec & spec, const progress_fn & progress) {
    std::vector<model_file> files;
    for (const std::string & path : files_of(spec)) {
        files.emplace_back(path);
    }
    check_mlock(spec, files);
    files[0].check_vocabulary();
    const std::string experts_key = spec.n_experts > 0 ? files[0].experts_key(spec.n_experts) : "";
    const bool map = spec.mmap && std::all_of(files.begin(), files.end(), [](const model_file & f) { return f.can_be_mapped(); });
    files.clear();
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = spec.gpu_layers;
    params.vocab_only = spec.vocab_only;
    params.load_mode = only_measured_ ? LLAMA_LOAD_MODE_NONE : load_mode(map, spec.mlock); // mapping is loading
    params.no_alloc = only_measured_;
    params.main_gpu = spec.main_gpu;
    params.split_mode = spec.split_mode;
    params.progress_callback = [](float fraction, void * fn) { return (*static_cast<const progress_fn *>(fn))(fraction); };
    params.progress_callback_user_data = const_cast<progress_fn *>(&progress);
    std::vector<float> shares = spec.tensor_split;
    if (!shares.empty()) {
        shares.resize(llama_max_devices(), 0.0f);
        params.tensor_split = shares.data();
    }
    llama_model_kv_override overrides[2] = {}; // the second one ends the list
    if (spec.n_experts > 0) {
        overrides[0].tag = LLAMA_KV_OVERRIDE_TYPE_INT;
        overrides[0].val_i64 = spec.n_experts;
        snprintf(overrides[0].key, sizeof overrides[0].key, "%s", experts_key.c_str());
        params.kv_overrides = overrides;
    }
    std::vector<const char *> paths;
    for (const std::string & split : spec.splits) {
        paths.push_back(split.c_str());
    }
    std::string logged;
    errors_of_load = &logged;
    model_.reset(paths.empty() ? llama_model_load_from_file(spec.path.c_str(), params)
                               : llama_model_load_from_splits(paths.data(), paths.size(), params));
    errors_of_load = nullptr;
    if (!model_) {
        throw error("load_failed", refusal(logged));
    }
    char arch[128] = "";
    llama_model_meta_val_str(model_.get(), "general.architecture", arch, sizeof arch);
    arch_ = arch;
    const int32_t layers = llama_model_n_layer(model_.get()) + 1; // the output layer counts as one
    gpu_layers_ = !llama_supports_gpu_offload() ? 0 : spec.gpu_layers < 0 ? layers : std::min(spec.gpu_layers, layers);
    offload_kv_cache_ = spec.offload_kv_cache && gpu_layers_ > 0;
    lacks_gpu_ = spec.gpu_layers != 0 ? told_without_gpu() : "";
    maps_file_ = map && (spec.mlock || devices_can_map(model_.get()));
    if (!spec.vocab_only && llama_model_n_expert(model_.get()) > 0) {
        n_experts_ = spec.n_experts > 0 ? spec.n_experts
                                        : int32_t(metadata_number(model_.get(), arch_ + ".expert_used_count", 0));
    }
}

// Of the memory that is there for the model, decoding a picture may take this part.
static constexpr uint64_t PICTURE_SHARE = 8;

std::unique_ptr<tower> model::load_tower(const load_spec & spec, const progress_fn & progress) const {
    if (spec.projector.empty()) {
        return nullptr;
    }
    if (embedding_) {
        throw invalid_request("projector", "a model for embeddings takes no projector");
    }
    tower::settings wanted;
    wanted.path = spec.projector;
    wanted.n_threads = choose_threads(spec, model_file(spec.projector).bytes());
    wanted.use_gpu = gpu_layers_ > 0;
    wanted.n_batch = n_batch_;
    wanted.picture_memory = std::clamp(own_memory(nullptr) / PICTURE_SHARE, LEAST_PICTURE_MEMORY, MOST_PICTURE_MEMORY);
    return lm::load_tower(wanted, model_.get(), progress);
}

static bool attends_to_later_tokens(const llama_model * m, const std::string & arch) {
    char causal[8] = "";
    llama_model_meta_val_str(m, (arch + ".attention.causal").c_str(), causal, sizeof causal);
    return strcmp(causal, "false") == 0;
}

static bool names_pooling(const llama_model * m, const std::string & arch) {
    const int64_t type = metadata_number(m, arch + ".pooling_type", LLAMA_POOLING_TYPE_UNSPECIFIED);
    return int32_t(type) > LLAMA_POOLING_TYPE_NONE; // files store it without a sign, llama.cpp's -1 as 4294967295
}

// Files of rerankers seldom name their pooling: their classification head tells what they are. An encoder with neither is
// pooled as most are.
enum llama_pooling_type model::choose_pooling(const load_spec & spec) const {
    if (!embedding_ || names_pooling(model_.get(), arch_)) {
        return LLAMA_POOLING_TYPE_UNSPECIFIED; // llama.cpp's choice, which is the file's
    }
    const std::vector<std::string> paths = files_of(spec);
    const bool classifies = std::any_of(paths.begin(), paths.end(), [](const std::string & path) {
        const model_file file(path);
        return file.tensor_bytes("cls.weight") + file.tensor_bytes("cls.output.weight") > 0;
    });
    return classifies ? LLAMA_POOLING_TYPE_RANK : LLAMA_POOLING_TYPE_MEAN;
}

bool model::is_reranker() const {
    return embedding_ && llama_pooling_type(context_.get()) == LLAMA_POOLING_TYPE_RANK;
}

// Whether the layers with a sliding window keep no more than the window of each sequence. That takes a fraction of the
// memory, but such a sequence can only be taken over at marks: not worth it where the window is about the context.
bool model::keeps_windows_only() const {
    const int64_t window = llama_model_n_swa(model_.get());
    return window > 0 && !embedding_ && arch_ != COMPRESSED_ARCH && window * (parallel_ + CACHED_STATES) + n_batch_ <= kv_cells_ / 2;
}

bool model::has_states() const {
    return llama_model_is_recurrent(model_.get()) || llama_model_is_hybrid(model_.get());
}

static bool wants_prompts(const load_spec & spec) {
    return spec.prompt_cache_bytes > 0 && !spec.prompt_cache.empty() && !spec.drafts;
}

bool model::keeps_prompts(const load_spec & spec) const {
    const bool can = sharing_ == sharing::at_marks || (sharing_ == sharing::any_prefix && piece_tokens() >= LEAST_PIECE_TOKENS);
    return can && !embedding_ && wants_prompts(spec);
}

size_t model::piece_tokens() const {
    if (sharing_ != sharing::any_prefix) {
        return 0;
    }
    const size_t window = size_t(std::max(llama_model_n_swa(model_.get()), 0));
    size_t n = MOST_PIECE_TOKENS;
    while (window > 0 && n > window / 2) { // llama.cpp copies no more than a window of what is behind the end of a piece
        n /= 2;
    }
    return n;
}

void model::choose_prompt_place(const load_spec & spec) {
    if (only_measured_ || !keeps_prompts(spec)) {
        return;
    }
    std::string identity = std::string(build_info()) + '\n';
    std::vector<std::string> files = files_of(spec);
    for (const lora_file & lora : spec.loras) {
        files.push_back(lora.path);
    }
    for (const std::string & path : files) {
        const std::string file = fingerprint(path);
        if (file.empty()) {
            return;
        }
        identity += file + '\n';
    }
    // some models turn positions otherwise where the context is longer than what they were first trained for
    const int64_t original = metadata_number(model_.get(), arch_ + ".rope.scaling.original_context_length", 0);
    const bool is_long = original > 0 && kv_cells_ > original;
    identity += std::string(ggml_type_name(spec.k_cache_type)) + ' ' + ggml_type_name(spec.v_cache_type) + ' ' +
                (flash_attention_ ? "flash " : "") + (is_long ? "long " : "") + std::to_string(gpu_layers_) + ' ' +
                (offload_kv_cache_ ? "there " : "") + std::to_string(n_experts_) + ' ' +
                std::to_string(int(sharing_)) + ' ' + std::to_string(piece_tokens());
    prompts_ = {spec.prompt_cache, hash_sha256_hex(identity.data(), identity.size()).substr(0, 32), uint64_t(spec.prompt_cache_bytes)};
}

void model::choose_sharing(const load_spec & spec) {
    sharing_ = arch_ == COMPRESSED_ARCH           ? sharing::whole_only
               : has_states() || keeps_windows_only() ? sharing::at_marks
                                                  : sharing::any_prefix;
    n_sequences_ = embedding_ ? EMBEDDING_SEQUENCES
                              : parallel_ + (spec.drafts                        ? 0
                                           : sharing_ == sharing::any_prefix ? CACHED_SEQUENCES
                                                                             : CACHED_STATES);
    const bool has_pieces = sharing_ == sharing::any_prefix && wants_prompts(spec);
    n_sequences_ += has_pieces ? 1 : 0; // for one on its way to the disk, or from it
    idle_cells_ = spec.idle_cells >= 0 ? spec.idle_cells : std::max(context_length_, kv_cells_ / 4);
    spill_bytes_ = spec.spill_bytes >= 0 ? uint64_t(spec.spill_bytes) : uint64_t(double(own_memory(nullptr)) * SPILL_MEMORY_SHARE);
}

void model::make_context(const load_spec & spec) {
    llama_model * m = model_.get();
    const int32_t trained = llama_model_n_ctx_train(m);
    if (trained <= 0) {
        throw error("load_failed", "the file states no usable context length");
    }
    if (llama_model_is_diffusion(m) || (llama_model_has_encoder(m) && llama_model_has_decoder(m))) {
        throw error("load_failed", "models of the kind '" + arch_ + "' do not write token by token and are not served");
    }
    if (arch_ == MISREAD_ARCH) {
        throw error("load_failed", "models of the kind '" + arch_ + "' are not served: llama.cpp gives wrong outputs for them");
    }
    if (names_pooling(m, arch_) && (arch_ == COMPRESSED_ARCH || arch_ == HASHED_ARCH)) { // llama.cpp would abort
        throw error("load_failed", "models of the kind '" + arch_ + "' give no embeddings, which this file's pooling type asks for");
    }
    embedding_ = names_pooling(m, arch_) || attends_to_later_tokens(m, arch_) || !llama_model_has_decoder(m);
    context_length_ = spec.context_length == 0 ? trained : std::min(spec.context_length, trained);
    parallel_ = embedding_ ? EMBEDDING_SEQUENCES : arch_ == SOLITARY_ARCH ? 1 : spec.parallel;

    llama_context_params params = llama_context_default_params();
    params.embeddings = embedding_;
    params.kv_unified = true;
    params.swa_full = true; // the cells are counted for the dearer kind
    params.no_perf = true;
    params.offload_kqv = spec.offload_kv_cache;
    if (spec.flash_attention) {
        params.flash_attn_type = *spec.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    device_bytes per_cell;
    if (embedding_) {
        params.pooling_type = choose_pooling(spec);
        kv_cells_ = n_batch_ = round_up(context_length_, EMBEDDING_SEQUENCES); // llama.cpp asserts that all can have a share
    } else {
        params.type_k = spec.k_cache_type;
        params.type_v = spec.v_cache_type;
        check_cache_types(params);
        per_cell = bytes_per_cell(params);
        kv_cells_ = choose_cells(spec, per_cell);
        n_batch_ = std::min(spec.eval_batch_size, kv_cells_);
    }
    choose_sharing(spec);
    params.swa_full = !keeps_windows_only();
    params.n_ctx = uint32_t(kv_cells_);
    params.n_batch = uint32_t(std::max(n_batch_, parallel_));
    params.n_ubatch = params.n_batch;
    params.n_seq_max = uint32_t(n_sequences_);
    n_outputs_ = embedding_ ? 0 : std::max(n_sequences_, parallel_ + (spec.drafts ? 0 : MAX_STEP_GUESSES));
    params.n_outputs_max = uint32_t(n_outputs_);
    params.n_threads = n_threads_ = choose_threads(spec, llama_model_size(model_.get()));
    params.n_threads_batch = params.n_threads;
    if (only_measured_) {
        note_compute(params);
    }
    context_.reset(llama_init_from_model(m, params));
    if (!context_) {
        throw error("out_of_memory", "llama.cpp could not create a context of " + std::to_string(kv_cells_) + " cells");
    }
    n_batch_ = int32_t(params.n_batch);
    flash_attention_ = params.flash_attn_type != LLAMA_FLASH_ATTN_TYPE_DISABLED;
    if (llama_get_memory(context_.get()) == nullptr) {
        kv_cells_ = 0;
    }
    choose_prompt_place(spec);
    make_lanes(params);
    if (only_measured_) {
        note_states(per_cell);
        return;
    }
    attach_threads();
    warm_up_loras();
    warm_up();
}

// For weights of so many bytes.
int32_t model::choose_threads(const load_spec & spec, uint64_t n_bytes) const {
    if (spec.threads > 0) {
        return spec.threads;
    }
    if (n_bytes < SINGLE_THREAD_BYTES) {
        return 1;
    }
    return std::clamp(spec.cores > 0 ? spec.cores : common_cpu_get_num_math(), 1, GGML_MAX_N_THREADS);
}

model::threadpool_ptr model::start_threads(int32_t n_threads) const {
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    if (embedding_) {
        params.poll = 0; // threads that look out for the next step, for a fifth of a second, take the CPU from other lanes
    }
    threadpool_ptr threads(ggml_threadpool_new(&params));
    if (!threads) {
        throw error("out_of_memory", "the compute threads could not be started");
    }
    return threads;
}

void model::attach_threads() {
    threads_ = start_threads(n_threads_);
    llama_attach_threadpool(context_.get(), threads_.get(), threads_.get());
    for (lane & l : lanes_) {
        if (lanes_.size() > 1) {
            l.threads = start_threads(l.n_threads);
        }
    }
}

// One for each thread of the CPU, up to a few, where a further context is little more than its buffers.
int32_t model::choose_lanes(int32_t n_threads) {
    lane_tokens_ = n_batch_;
    const bool keeps_nothing = embedding_ && llama_get_memory(context_.get()) == nullptr;
    if (!keeps_nothing || gpu_layers_ > 0 || !gpus().empty() || !loras_.empty()) {
        return 1;
    }
    const int64_t row_bytes = (int64_t(vocab_->size()) + llama_model_n_embd_out(model_.get())) * int64_t(sizeof(float));
    const int64_t in_bytes = LANE_OUTPUT_BYTES / row_bytes / EMBEDDING_SEQUENCES * EMBEDDING_SEQUENCES;
    lane_tokens_ = std::min(n_batch_, int32_t(std::clamp<int64_t>(in_bytes, LEAST_LANE_TOKENS, MOST_LANE_TOKENS)));
    const double affordable = double(free_memory(nullptr)) * LANES_MEMORY_SHARE / double(lane_tokens_ * row_bytes);
    return std::min({n_threads, MAX_LANES, 1 + int32_t(std::min(affordable, double(MAX_LANES)))});
}

void model::make_lanes(llama_context_params params) {
    const int32_t n_threads = params.n_threads;
    const int32_t n_lanes = choose_lanes(n_threads);
    params.n_batch = params.n_ubatch = uint32_t(lane_tokens_);
    lanes_.resize(size_t(n_lanes));
    for (int32_t i = 0; i < n_lanes; i++) {
        lane & l = lanes_[size_t(i)];
        l.n_threads = (n_threads + i) / n_lanes;
        if (i > 0) {
            params.n_threads = params.n_threads_batch = l.n_threads;
            l.own.reset(llama_init_from_model(model_.get(), params));
            if (!l.own) {
                throw error("out_of_memory", "llama.cpp could not create a context for " + std::to_string(lane_tokens_) + " tokens");
            }
        }
        l.context = i > 0 ? l.own.get() : context_.get();
    }
}

void model::use_threads(size_t lane, bool all) {
    struct lane & l = lanes_[lane];
    if (l.threads) {
        ggml_threadpool * threads = all ? threads_.get() : l.threads.get();
        const int32_t n_threads = all ? n_threads_ : l.n_threads;
        llama_attach_threadpool(l.context, threads, threads);
        llama_set_n_threads(l.context, n_threads, n_threads);
    }
}

// With all adapters at once: one that cannot be computed must end the load, not somebody's request.
void model::warm_up_loras() {
    if (!loras_.empty()) {
        use(loras_.full());
        warm_up();
        use(loras_.scales_for({}));
    }
}

void model::share_threads(const model & other) {
    llama_attach_threadpool(context_.get(), other.threads_.get(), other.threads_.get());
    // its own stay, asleep: the backend still pauses them when it first computes with the others
}

// One token through the whole model: pages of a mapped file are read and buffers allocated before the first request.
void model::warm_up() {
    llama_context * ctx = context_.get();
    llama_batch_ext * batch = llama_batch_ext_init(ctx);
    const llama_pos start = 0;
    const llama_token bos = llama_vocab_bos(vocab_->get());
    llama_batch_ext_add_token(batch, 0, vocab_->contains(bos) ? bos : 0);
    llama_batch_ext_set_pos(batch, 0, &start);
    llama_batch_ext_set_output_logits(batch, 0, true);
    const bool encode = embedding_ && kv_cells_ == 0;
    const int32_t failed = llama_process(ctx, encode ? LLAMA_PROCESS_TYPE_ENCODE : LLAMA_PROCESS_TYPE_DECODE, batch);
    llama_batch_ext_free(batch);
    if (failed != 0) {
        throw error("load_failed", "the first decode step failed");
    }
    llama_synchronize(ctx);
    if (llama_memory_t memory = llama_get_memory(ctx)) {
        llama_memory_clear(memory, false);
    }
}

std::string model::warnings() const {
    std::vector<std::string> each = chat_ && !embedding_ ? chat_->warnings() : std::vector<std::string>();
    if (!lacks_gpu_.empty()) {
        each.push_back(lacks_gpu_);
    }
    std::string all;
    for (const std::string & warning : each) {
        all += all.empty() ? "" : ",";
        append_json_string(all, warning);
    }
    return "[" + all + "]";
}

std::string model::describe(double load_ms) const {
    llama_model * m = model_.get();
    const std::string runtime = json_object()
                                    .add("name", runtime_name())
                                    .add("version", std::string(llama_version()) + "+" + LMLITE_LLAMA_COMMIT)
                                    .text();
    return json_object()
        .add("type", is_vocab_only() ? "vocab" : embedding_ ? "embedding" : "llm")
        .add("arch", arch_)
        .add("context_length", context_length_)
        .add("train_context_length", is_vocab_only() ? 0 : llama_model_n_ctx_train(m))
        .add("parallel", parallel_)
        .add("kv_cells", kv_cells_)
        .add("eval_batch_size", n_batch_)
        .add("threads", n_threads_)
        .add("flash_attention", flash_attention_)
        .add("gpu_layers", gpu_layers_)
        .add("offload_kv_cache", offload_kv_cache_)
        .add("n_experts", n_experts_)
        .add("n_params", llama_model_n_params(m))
        .add("n_embd", is_vocab_only() ? 0 : llama_model_n_embd_out(m))
        .add("vocab_size", vocab_->size())
        .add("size_bytes", llama_model_size(m))
        .add("load_ms", load_ms)
        .add("has_chat_template", chat_ != nullptr && chat_->has_template())
        .add("tool_use", chat_ != nullptr && chat_->has_template() && chat_->knows_tools())
        .add("vision", tower_ != nullptr && tower_->sees())
        .add("audio", tower_ != nullptr && tower_->hears())
        .add_raw("warnings", warnings())
        .add_raw("runtime", runtime)
        .text();
}

}  // namespace lm
