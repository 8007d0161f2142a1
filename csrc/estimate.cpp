#include "estimate.h"

#include "error.h"
#include "model.h"
#include "model_file.h"
#include "payload.h"
#include "prompt_store.h"
#include "tower_trial.h"

#include "../src/llama-context.h" // how large its graphs are
#include "../src/llama-ext.h"     // the memory that a context takes, by device

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <unistd.h>

#if defined(__APPLE__)
#include <mach/mach.h>
#elif defined(__GLIBC__)
#include <malloc.h>
#endif

namespace lm {

// llama.cpp leaves a tensor of this name in the file and reads rows of it as they are needed, if it is larger than this.
static constexpr char LAZY_TENSOR[] = "per_layer_token_embd.weight";
static constexpr uint64_t LAZY_BYTES = 4ull << 30;

// A small tower encodes its largest picture for an estimate, in about this time. Of a larger one, a single operation of which
// may take half a minute, the buffers are taken to be in use as a whole.
static constexpr uint64_t SMALL_TOWER_BYTES = 64 << 20;
static constexpr double LARGEST_PICTURE_S = 1.5;

struct device_use {
    uint64_t weights = 0;
    uint64_t mapped = 0; // of the weights, what is the mapped file itself
    uint64_t cache = 0;
    uint64_t compute = 0;
};
using memory_use = std::map<ggml_backend_dev_t, device_use>; // the machine's own under null

struct file_facts {
    uint64_t bytes = 0;
    uint64_t lazy_bytes = 0;
};

static file_facts read_facts(const std::string & path) {
    const model_file file(path);
    const uint64_t size = file.tensor_bytes(LAZY_TENSOR);
    return {file.bytes(), size > LAZY_BYTES ? size : 0};
}

static file_facts sum_of_facts(const load_spec & spec) {
    file_facts sum;
    for (const std::string & path : files_of(spec)) {
        const file_facts part = read_facts(path);
        sum.bytes += part.bytes;
        sum.lazy_bytes += part.lazy_bytes;
    }
    return sum;
}

// What this process has in memory now.
static uint64_t resident_bytes() {
#if defined(__APPLE__)
    mach_task_basic_info info;
    mach_msg_type_number_t count = MACH_TASK_BASIC_INFO_COUNT;
    const bool known = task_info(mach_task_self(), MACH_TASK_BASIC_INFO, task_info_t(&info), &count) == KERN_SUCCESS;
    return known ? info.resident_size : 0;
#else
    unsigned long pages = 0;
    if (FILE * file = fopen("/proc/self/statm", "r")) {
        if (fscanf(file, "%*u %lu", &pages) != 1) {
            pages = 0;
        }
        fclose(file);
    }
    return uint64_t(pages) * uint64_t(sysconf(_SC_PAGESIZE));
#endif
}

// The most that it had since the peak was forgotten, where the system tells: only Linux does.
static uint64_t peak_bytes() {
    unsigned long long kib = 0;
    if (FILE * file = fopen("/proc/self/status", "r")) {
        char line[256];
        while (fgets(line, sizeof line, file) != nullptr && sscanf(line, "VmHWM: %llu", &kib) != 1) {
        }
        fclose(file);
    }
    return std::max(uint64_t(kib) << 10, resident_bytes());
}

static void forget_peak() {
    if (FILE * file = fopen("/proc/self/clear_refs", "w")) {
        fputs("5", file);
        fclose(file);
    }
}

// Memory that is allocated counts once it is written to. What is allocated meanwhile is, at once.
class written_allocations {
  public:
#if defined(__GLIBC__)
    written_allocations() { mallopt(M_PERTURB, 1); }
    ~written_allocations() { mallopt(M_PERTURB, 0); }
#endif
    written_allocations(const written_allocations &) = delete;
    written_allocations & operator=(const written_allocations &) = delete;
};

// A projector is loaded and tried for this: what it takes is nowhere told. Beside its buffers, a file may be decoded.
// What lies on a GPU is added to `uses`; returned is what the machine's own memory has to give.
static uint64_t projector_bytes(const model & m, const load_spec & spec, memory_use & uses) {
    std::map<ggml_backend_dev_t, uint64_t> free;
    for (const auto & [device, use] : uses) {
        free[device] = device == nullptr ? 0 : free_memory_now(device);
    }
    forget_peak();
    const uint64_t before = resident_bytes();
    const std::unique_ptr<tower> sight = m.load_tower(spec, [](float) { return true; });
    if (!sight) {
        return 0;
    }
    if (model_file(spec.projector).bytes() > SMALL_TOWER_BYTES || !encode_largest_picture(*sight, LARGEST_PICTURE_S)) {
        const written_allocations all;
        encode_largest_picture(*sight, 0);
    }
    for (auto & [device, use] : uses) {
        const uint64_t left = device == nullptr ? 0 : free_memory_now(device);
        use.compute += free[device] - std::min(free[device], left);
    }
    const uint64_t peak = std::max(peak_bytes(), resident_bytes() + (sight->sees() ? sight->picture_memory() : 0));
    return peak - std::min(peak, before);
}

static memory_use use_of(const model & m) {
    memory_use uses;
    uses[nullptr] = {};
    for (const auto & [type, bytes] : llama_get_memory_breakdown(m.context())) {
        device_use & use = uses[memory_device(type)];
        use.weights += bytes.model;
        use.mapped += m.is_mapped(type) ? bytes.model : 0;
        use.cache += bytes.context;
        use.compute += bytes.compute;
    }
    return uses;
}

// An embedding model gives a row of outputs for each token of a batch; the context has room for one per sequence until then.
static uint64_t missing_output_bytes(const model & m, int32_t n_batch) {
    if (!m.is_embedding()) {
        return 0;
    }
    const uint64_t row = uint64_t(m.vocab().size()) + uint64_t(llama_model_n_embd_out(m.get()));
    return row * sizeof(float) * uint64_t(std::max(0, n_batch - m.n_sequences()));
}

// A context keeps the graphs of its last steps, one with outputs and one without, which are made at the first such step.
static uint64_t missing_graph_bytes(const model & m, const llama_context * context) {
    const uint32_t n_tokens = std::min(llama_n_ctx(context), llama_n_ubatch(context));
    const uint64_t nodes = context->graph_max_nodes(n_tokens);
    const uint64_t graph = nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(nodes, false);
    return m.is_embedding() ? graph : 2 * graph;
}

// Of the contexts of all lanes but the first.
static uint64_t further_lanes_bytes(const model & m) {
    uint64_t bytes = 0;
    for (size_t lane = 1; lane < m.n_lanes(); lane++) {
        const llama_context * context = m.lane_context(lane);
        bytes += missing_output_bytes(m, m.lane_tokens()) + missing_graph_bytes(m, context);
        for (const auto & [type, use] : llama_get_memory_breakdown(context)) {
            bytes += use.compute;
        }
    }
    return bytes;
}

// Adapters lie where the weights do that they change: with all layers on a GPU there, else mostly in the machine's memory.
static void add_loras(memory_use & uses, const load_spec & spec, const model & m) {
    uint64_t bytes = 0;
    for (const lora_file & lora : spec.loras) {
        bytes += model_file(lora.path).bytes();
    }
    const auto most = std::max_element(uses.begin(), uses.end(), [](const auto & a, const auto & b) {
        return a.second.weights < b.second.weights;
    });
    (m.gpu_layers() > 0 ? most->second : uses[nullptr]).weights += bytes;
}

// Of prompts that are on their way to the disk, or from it.
static uint64_t moving_prompts_bytes(const model & m, const load_spec & spec, const memory_use & uses) {
    if (!m.keeps_prompts(spec)) {
        return 0;
    }
    uint64_t cache = 0;
    for (const auto & [device, use] : uses) {
        cache += use.cache;
    }
    if (m.piece_tokens() > 0) {
        return cache / uint64_t(m.kv_cells()) * m.piece_tokens() * MOST_PIECES_MOVING;
    }
    return std::min(cache, MOST_STATE_BYTES) * MOST_PROMPTS_MOVING; // each is a whole prompt
}

static bool shares_host_memory(ggml_backend_dev_t device) {
#if defined(__APPLE__)
    return true; // one memory for all
#else
    return device == nullptr || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_IGPU;
#endif
}

static std::string describe(ggml_backend_dev_t device, const device_use & use) {
    return json_object()
        .add("name", device == nullptr ? "CPU" : ggml_backend_dev_name(device))
        .add("gpu", device != nullptr)
        .add("shares_host_memory", shares_host_memory(device))
        .add("weights", use.weights)
        .add("kv_cache", use.cache)
        .add("compute", use.compute)
        .add("free", free_memory_now(device))
        .text();
}

std::string estimate_payload(load_spec spec) {
    const auto began = std::chrono::steady_clock::now();
    spec.only_measured = true;
    const model m(spec, [](float) { return true; }, [] {});
    if (m.is_vocab_only()) {
        throw invalid_request("vocab_only", "a vocabulary alone is not estimated");
    }
    const uint64_t resident = resident_bytes();
    memory_use uses = use_of(m);
    add_loras(uses, spec, m);
    device_use & host = uses[nullptr];
    host.compute = std::min(host.compute, m.host_compute_bytes()) + missing_output_bytes(m, m.n_batch()) +
                   missing_graph_bytes(m, m.context()) + further_lanes_bytes(m) + moving_prompts_bytes(m, spec, uses);

    const file_facts facts = sum_of_facts(spec);
    const uint64_t left_in_file = std::min(facts.lazy_bytes, host.weights);
    host.weights -= left_in_file;
    uint64_t used_where_mapped = 0;
    std::string devices;
    for (const auto & [device, use] : uses) {
        used_where_mapped += use.mapped;
        devices += (devices.empty() ? "[" : ",") + describe(device, use);
    }
    const uint64_t projector = projector_bytes(m, spec, uses);
    const uint64_t passing = m.maps_file() ? facts.bytes - std::min(facts.bytes, std::max(used_where_mapped, left_in_file)) : 0;
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    return json_object()
        .add_raw("devices", devices + "]")
        .add("process", resident - std::min(resident, m.host_state_bytes()))
        .add("projector", projector)
        .add("file_pages", passing)
        .add("context_length", m.context_length())
        .add("kv_cells", m.kv_cells())
        .add("threads", m.n_threads())
        .add("estimate_ms", took.count())
        .text();
}

}  // namespace lm
