// One loaded model: weights, vocabulary, chat template and a context sized for the machine. Loading can be cancelled.
#pragma once

#include "lora.h"
#include "protocol.h"
#include "tower.h"

#include "llama.h"

#include <functional>
#include <map>
#include <memory>
#include <string>

struct ggml_threadpool;

namespace lm {

class chat_template;

// What of a sequence's memory another sequence can take over.
enum class sharing {
    any_prefix, // full attention: any prefix, by sharing cells
    at_marks,   // recurrent states, sliding windows: where it ended, or where its state was copied on the way
    whole_only, // nothing can be copied in part: only where it ended
};

struct model_deleter {
    void operator()(llama_model * m) const { llama_model_free(m); }
};
struct context_deleter {
    void operator()(llama_context * c) const { llama_free(c); }
};
struct threadpool_deleter {
    void operator()(ggml_threadpool * p) const;
};

class model {
  public:
    // Returns false to cancel.
    using progress_fn = std::function<bool(float)>;

    // Throws error("load_failed"), error("out_of_memory"), or invalid_request with the key of a setting that this model
    // or machine cannot have. `before_template` is called ahead of the work whose time
    // depends on the file's own program, its chat template.
    model(const load_spec & spec, const progress_fn & progress, const std::function<void()> & before_template);
    ~model();

    const vocabulary & vocab() const { return *vocab_; }
    const chat_template & chat() const { return *chat_; }
    tower * sight() const { return tower_.get(); } // null: it neither sees nor hears
    // What `spec` names for it, loaded and tried; null: nothing.
    std::unique_ptr<tower> load_tower(const load_spec & spec, const progress_fn & progress) const;
    llama_context * context() const { return context_.get(); } // null for a vocabulary alone
    llama_model * get() const { return model_.get(); }
    // Short texts are embedded faster side by side, in lanes with a thread or a few each, than one after the other with all
    // threads. A lane is a context over the same weights; the first is context(), and where it is the only one nothing is
    // computed beside it. Different lanes may be used by different threads at once.
    size_t n_lanes() const { return lanes_.size(); }
    llama_context * lane_context(size_t lane) const { return lanes_[lane].context; }
    int32_t lane_tokens() const { return lane_tokens_; } // of one computation in a lane beside others
    // The lane's next computation has its share of the threads, or all of them: then nothing else may be computed meanwhile.
    void use_threads(size_t lane, bool all);
    // From now on computes with the threads of `other`, which must outlive this one, never while the other does.
    void share_threads(const model & other);

    bool is_embedding() const { return embedding_; } // gives vectors or scores, no text
    bool is_reranker() const;
    bool is_vocab_only() const { return !context_; }
    sharing memory_sharing() const { return sharing_; }
    // Where what cannot be cut are layers with a sliding window: how many of the last tokens they see; else 0.
    int32_t window() const { return has_states() || sharing_ != sharing::at_marks ? 0 : llama_model_n_swa(model_.get()); }
    int32_t context_length() const { return context_length_; } // tokens one request may use
    int32_t parallel() const { return parallel_; }
    int32_t n_batch() const { return n_batch_; }
    int32_t n_outputs() const { return n_outputs_; } // rows of logits that a batch can have
    int32_t n_sequences() const { return n_sequences_; } // sequence ids there are, live and cached ones together
    int32_t kv_cells() const { return kv_cells_; }
    int32_t n_threads() const { return n_threads_; } // that compute together; of all lanes, where there are some
    int32_t gpu_layers() const { return gpu_layers_; }
    bool maps_file() const { return maps_file_; } // the file is mapped into memory, not read
    // Whether weights in memory of this type are the mapped file itself.
    bool is_mapped(ggml_backend_buffer_type_t type) const;
    const lora_adapters & loras() const { return loras_; }
    // The scales of the adapters from the next decode on.
    void use(const lora_scales & scales) { loras_.apply(context_.get(), scales); }
    int32_t idle_cells() const { return idle_cells_; }    // of kv_cells, what finished requests may keep
    uint64_t spill_bytes() const { return spill_bytes_; } // host memory for what does not stay in the cells
    // Where prompts outlive the engine.
    struct prompt_place {
        std::string folder; // empty: nowhere
        std::string model;  // stands for all that their states depend on besides their tokens
        uint64_t bytes = 0;
    };
    const prompt_place & prompts() const { return prompts_; }
    bool keeps_prompts(const load_spec & spec) const;
    // They are kept in pieces of so many tokens; 0: as a whole.
    size_t piece_tokens() const;
    // Of the memory that the context keeps on the machine's own side, what does not grow with the cells: recurrent states.
    uint64_t host_state_bytes() const { return host_state_bytes_; }
    // What a full context writes to of the compute buffers on that side.
    uint64_t host_compute_bytes() const { return host_compute_bytes_; }

    // The LOADED event.
    std::string describe(double load_ms) const;

  private:
    using context_ptr = std::unique_ptr<llama_context, context_deleter>;
    using threadpool_ptr = std::unique_ptr<ggml_threadpool, threadpool_deleter>;
    struct lane {
        int32_t n_threads = 0;
        threadpool_ptr threads; // its share; null where it has all
        context_ptr own;        // null in the first lane
        llama_context * context = nullptr; // borrowed: own or the model's
    };
    using device_bytes = std::map<ggml_backend_dev_t, uint64_t>; // the machine's own memory under null

    std::string warnings() const;
    void check_vocabulary() const;
    void try_vocabulary() const;
    void load_weights(const load_spec & spec, const progress_fn & progress);
    void make_context(const load_spec & spec);
    enum llama_pooling_type choose_pooling(const load_spec & spec) const;
    threadpool_ptr start_threads(int32_t n_threads) const;
    void attach_threads();
    int32_t choose_threads(const load_spec & spec, uint64_t n_bytes) const;
    int32_t choose_lanes(int32_t n_threads);
    void make_lanes(llama_context_params params);
    void warm_up();
    void warm_up_loras();
    context_ptr probe(llama_context_params params, uint32_t n_cells) const;
    void check_cache_types(llama_context_params params) const;
    device_bytes bytes_per_cell(const llama_context_params & params);
    uint64_t weights(ggml_backend_dev_t device) const;
    uint64_t free_memory(ggml_backend_dev_t device) const;
    uint64_t own_memory(ggml_backend_dev_t device) const;
    void note_weights(const llama_context * ctx);
    void note_compute(llama_context_params params);
    void note_states(const device_bytes & per_cell);
    bool has_states() const;
    int32_t choose_cells(const load_spec & spec, const device_bytes & bytes) const;
    void choose_sharing(const load_spec & spec);
    void choose_prompt_place(const load_spec & spec);
    bool keeps_windows_only() const;

    // in order of construction: the context goes before the model, the threads after the context
    threadpool_ptr threads_;
    int32_t n_threads_ = 1;
    std::unique_ptr<llama_model, model_deleter> model_;
    std::unique_ptr<vocabulary> vocab_;
    std::unique_ptr<tower> tower_;
    std::unique_ptr<chat_template> chat_;
    std::vector<lane> lanes_;
    int32_t lane_tokens_ = 0;
    context_ptr context_;
    lora_adapters loras_;

    std::string arch_;
    bool only_measured_ = false;
    uint64_t host_memory_ = 0; // what the machine had for the model before it was loaded; 0: nobody said
    bool maps_file_ = false;
    device_bytes weights_; // but those that are the mapped file itself
    uint64_t host_state_bytes_ = 0; // only measured, and the next one
    uint64_t host_compute_bytes_ = 0;
    bool embedding_ = false;
    bool flash_attention_ = false;
    sharing sharing_ = sharing::any_prefix;
    int32_t context_length_ = 0;
    int32_t parallel_ = 1;
    int32_t n_batch_ = 0;
    int32_t n_outputs_ = 0;
    int32_t n_sequences_ = 1;
    int32_t kv_cells_ = 0;
    int32_t idle_cells_ = 0;
    uint64_t spill_bytes_ = 0;
    prompt_place prompts_;
    int32_t gpu_layers_ = 0;
    int32_t n_experts_ = 0; // per token; 0: the model has none
    bool offload_kv_cache_ = false;
    std::string lacks_gpu_;
};

// Where a buffer of this type lies: null for the machine's own memory.
ggml_backend_dev_t memory_device(ggml_backend_buffer_type_t type);
// Of a device, or (null) of the machine.
uint64_t free_memory_now(ggml_backend_dev_t device);
// The parts of the model's file.
std::vector<std::string> files_of(const load_spec & spec);

// {"llama_cpp", "version", "backend"} of this build.
const char * build_info();

// Where the build has a backend for GPUs that found none ("CUDA"): a sentence about it; else empty.
std::string told_without_gpu();

}  // namespace lm
