#include "model.h"

#include "error.h"
#include "payload.h"

#include "build-info.h"
#include "common.h"
#include "ggml-cpu.h"
#include "log.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unistd.h>

namespace lm {

// Sequence ids beyond the running ones keep cached prefixes. Up to 64 ids cost nothing per step; recurrent models
// allocate a whole state per id, so they get few.
static constexpr int32_t CACHED_SEQUENCES = 28;
static constexpr int32_t CACHED_STATES = 2;
static constexpr int32_t EMBEDDING_SEQUENCES = 64;

// The KV cache holds `parallel` full contexts where that costs at most this share of the free memory.
static constexpr double CELLS_MEMORY_SHARE = 0.25;

// Threads only get in each other's way where a decode step is shorter than waking one.
static constexpr uint64_t SINGLE_THREAD_BYTES = 16u << 20;

void threadpool_deleter::operator()(ggml_threadpool * p) const {
    ggml_threadpool_free(p);
}

// ---- process-wide set-up ------------------------------------------------------------------------------------------

static void log_to_stderr(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) { // warnings speak of what the engine handles: a full cache, a long context
        fputs(text, stderr);
    }
}

static void init_backend() {
    static std::once_flag once;
    std::call_once(once, [] {
        setenv("GGML_NO_BACKTRACE", "1", 0); // an abort must not fork a debugger
        llama_log_set(log_to_stderr, nullptr);
        common_log_set_verbosity_thold(-1);
        llama_backend_init();
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

const char * build_info() {
    static const std::string info = json_object()
                                        .add("llama_cpp", LMLITE_LLAMA_COMMIT)
                                        .add("version", llama_version())
                                        .add("backend", backend_name())
                                        .text();
    return info.c_str();
}

// ---- memory -------------------------------------------------------------------------------------------------------

static uint64_t read_number(const char * path, const char * prefix) {
    FILE * file = fopen(path, "r");
    if (file == nullptr) {
        return 0;
    }
    char line[256];
    uint64_t value = 0;
    while (fgets(line, sizeof line, file) != nullptr) {
        if (strncmp(line, prefix, strlen(prefix)) == 0) {
            value = strtoull(line + strlen(prefix), nullptr, 10);
            break;
        }
    }
    fclose(file);
    return value;
}

// Bytes that can be had without swapping: the machine's, or what the control group still allows.
static uint64_t free_memory() {
    uint64_t available = read_number("/proc/meminfo", "MemAvailable:") << 10;
    if (available == 0) {
        available = uint64_t(sysconf(_SC_PHYS_PAGES)) * uint64_t(sysconf(_SC_PAGESIZE)) / 2;
    }
    const uint64_t limit = read_number("/sys/fs/cgroup/memory.max", "");
    const uint64_t used = read_number("/sys/fs/cgroup/memory.current", "");
    return limit > used ? std::min(available, limit - used) : available;
}

static int64_t metadata_number(const llama_model * m, const std::string & key, int64_t fallback) {
    char text[64];
    return llama_model_meta_val_str(m, key.c_str(), text, sizeof text) > 0 ? strtoll(text, nullptr, 10) : fallback;
}

static int32_t round_up(int64_t n, int32_t to) {
    return int32_t((n + to - 1) / to * to);
}

int32_t model::choose_cells(const load_spec & spec) const {
    const int64_t wanted = int64_t(context_length_) * parallel_;
    if (spec.kv_cells > 0) {
        return round_up(std::max(spec.kv_cells, context_length_), 256);
    }
    llama_model * m = model_.get();
    const int64_t heads = std::max(1, llama_model_n_head(m));
    const int64_t kv_heads = std::max(1, llama_model_n_head_kv(m));
    const int64_t key = metadata_number(m, arch_ + ".attention.key_length", llama_model_n_embd(m) / heads);
    const int64_t value = metadata_number(m, arch_ + ".attention.value_length", key);
    const int64_t bytes_per_cell = llama_model_n_layer(m) * kv_heads * (key + value) * int64_t(sizeof(uint16_t));
    const double affordable = double(free_memory()) * CELLS_MEMORY_SHARE / double(std::max<int64_t>(bytes_per_cell, 1));
    const int64_t cells = std::min<int64_t>(wanted, int64_t(std::min(affordable, 1e9)));
    return round_up(std::max<int64_t>(cells, context_length_), 256);
}

// ---- loading ------------------------------------------------------------------------------------------------------

model::model(const load_spec & spec, const progress_fn & progress, const std::function<void()> & before_template) {
    init_backend();
    load_weights(spec, progress);
    vocab_ = std::make_unique<vocabulary>(llama_model_get_vocab(model_.get()));
    if (spec.vocab_only) {
        return;
    }
    make_context(spec);
    before_template();
    chat_ = std::make_unique<dialogue>(model_.get(), *vocab_);
}

void model::load_weights(const load_spec & spec, const progress_fn & progress) {
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = spec.gpu_layers;
    params.vocab_only = spec.vocab_only;
    params.progress_callback = [](float fraction, void * fn) { return (*static_cast<const progress_fn *>(fn))(fraction); };
    params.progress_callback_user_data = const_cast<progress_fn *>(&progress);
    if (spec.splits.empty()) {
        model_.reset(llama_model_load_from_file(spec.path.c_str(), params));
    } else {
        std::vector<const char *> paths;
        for (const std::string & split : spec.splits) {
            paths.push_back(split.c_str());
        }
        model_.reset(llama_model_load_from_splits(paths.data(), paths.size(), params));
    }
    if (!model_) {
        throw error("load_failed", "llama.cpp refused the file");
    }
    char arch[128] = "";
    llama_model_meta_val_str(model_.get(), "general.architecture", arch, sizeof arch);
    arch_ = arch;
    const int32_t layers = llama_model_n_layer(model_.get()) + 1; // the output layer counts as one
    gpu_layers_ = !llama_supports_gpu_offload() ? 0 : spec.gpu_layers < 0 ? layers : std::min(spec.gpu_layers, layers);
}

static bool pools_embeddings(const llama_model * m, const std::string & arch) {
    const int64_t pooling = metadata_number(m, arch + ".pooling_type", LLAMA_POOLING_TYPE_UNSPECIFIED);
    return pooling > LLAMA_POOLING_TYPE_NONE || !llama_model_has_decoder(m);
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
    embedding_ = pools_embeddings(m, arch_);
    context_length_ = spec.context_length == 0 ? trained : std::min(spec.context_length, trained);
    const bool stateful = llama_model_is_recurrent(m) || llama_model_is_hybrid(m);
    sharing_ = stateful ? sharing::whole_only : sharing::any_prefix;
    parallel_ = embedding_ ? EMBEDDING_SEQUENCES : spec.parallel;
    n_sequences_ = embedding_ ? EMBEDDING_SEQUENCES : parallel_ + (stateful ? CACHED_STATES : CACHED_SEQUENCES);
    kv_cells_ = embedding_ ? context_length_ : choose_cells(spec);
    n_batch_ = embedding_ ? context_length_ : std::min(spec.eval_batch_size, kv_cells_);

    llama_context_params params = llama_context_default_params();
    params.n_ctx = uint32_t(kv_cells_);
    params.n_batch = uint32_t(std::max(n_batch_, parallel_));
    params.n_ubatch = params.n_batch;
    params.n_seq_max = uint32_t(n_sequences_);
    params.n_outputs_max = embedding_ ? 0 : uint32_t(n_sequences_);
    params.n_threads = spec.threads > 0                                     ? spec.threads
                       : llama_model_size(m) < SINGLE_THREAD_BYTES ? 1 : std::max(1, common_cpu_get_num_math());
    params.n_threads_batch = params.n_threads;
    params.embeddings = embedding_;
    params.kv_unified = true;
    params.swa_full = true; // the window's cells could not be shared otherwise
    params.no_perf = true;
    if (spec.flash_attention) {
        params.flash_attn_type = *spec.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
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
    attach_threads(params.n_threads);
    warm_up();
}

void model::attach_threads(int32_t n_threads) {
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    threads_.reset(ggml_threadpool_new(&params));
    if (!threads_) {
        throw error("out_of_memory", "the compute threads could not be started");
    }
    llama_attach_threadpool(context_.get(), threads_.get(), threads_.get());
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

std::string model::describe(double load_ms) const {
    llama_model * m = model_.get();
    const std::string runtime = json_object()
                                    .add("name", std::string("llama.cpp-") + OS + "-" + ARCH + "-" + backend_name())
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
        .add("flash_attention", flash_attention_)
        .add("gpu_layers", gpu_layers_)
        .add("n_params", llama_model_n_params(m))
        .add("n_embd", is_vocab_only() ? 0 : llama_model_n_embd_out(m))
        .add("vocab_size", vocab_->size())
        .add("size_bytes", llama_model_size(m))
        .add("load_ms", load_ms)
        .add("has_chat_template", chat_ != nullptr && chat_->has_template())
        .add_raw("runtime", runtime)
        .text();
}

}  // namespace lm
