#include "projector_file.h"

#include "error.h"

#include "clip-impl.h" // which kinds there are
#include "gguf.h"
#include "llama.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string_view>
#include <sys/stat.h>
#include <vector>

// Of our patch for gguf.cpp: opens a file, or FILE@OFFSET+SIZE, a part of one, and tells where that begins and how long it is.
FILE * lm_open_part(const char * path, uint64_t * begin, uint64_t * size);

namespace lm {

static constexpr uint32_t MOST_BLOCKS = 1024; // the largest towers have some sixty
static constexpr uint32_t SOUND_POSITIONS = 1500; // of Whisper's encoder: 30 s, one for each 20 ms

[[noreturn]] static void refuse(const std::string & why) {
    throw error("load_failed", "the projector " + why);
}

static std::string in_quotes(const std::string & name) {
    return "'" + name + "'";
}

namespace {

struct shape {
    int64_t id;
    ggml_type type;
    std::vector<int64_t> sides; // without the last ones of 1
};

class header {
  public:
    explicit header(const std::string & path) {
        ggml_context * tensors = nullptr;
        gguf_.reset(gguf_init_from_file(path.c_str(), {true, &tensors}));
        tensors_.reset(tensors);
        if (!gguf_) {
            refuse("is no GGUF file that can be read, or its header is cut off");
        }
    }

    const gguf_context * get() const { return gguf_.get(); }

    std::optional<uint32_t> number(const std::string & key) const {
        const int64_t id = typed(key, GGUF_TYPE_UINT32);
        return id < 0 ? std::nullopt : std::optional<uint32_t>(gguf_get_val_u32(gguf_.get(), id));
    }
    bool flag(const std::string & key) const {
        const int64_t id = typed(key, GGUF_TYPE_BOOL);
        return id >= 0 && gguf_get_val_bool(gguf_.get(), id);
    }
    std::string text(const std::string & key) const {
        const int64_t id = typed(key, GGUF_TYPE_STRING);
        return id < 0 ? "" : gguf_get_val_str(gguf_.get(), id);
    }
    bool has(const std::string & name) const { return gguf_find_tensor(gguf_.get(), name.c_str()) >= 0; }
    std::optional<shape> tensor(const std::string & name) const {
        const ggml_tensor * found = ggml_get_tensor(tensors_.get(), name.c_str());
        if (found == nullptr) {
            return std::nullopt;
        }
        return shape{gguf_find_tensor(gguf_.get(), name.c_str()), found->type,
                     std::vector<int64_t>(found->ne, found->ne + ggml_n_dims(found))};
    }
    const ggml_tensor * first() const { return ggml_get_first_tensor(tensors_.get()); }
    const ggml_tensor * next(const ggml_tensor * tensor) const {
        return ggml_get_next_tensor(tensors_.get(), const_cast<ggml_tensor *>(tensor));
    }

    // mtmd reads a value of another type than it expects as an end of the process.
    int64_t typed(const std::string & key, gguf_type type) const {
        const int64_t id = gguf_find_key(gguf_.get(), key.c_str());
        if (id >= 0 && gguf_get_kv_type(gguf_.get(), id) != type) {
            refuse("is broken: " + key + " is of type " + gguf_type_name(gguf_get_kv_type(gguf_.get(), id)) + " and not " +
                   gguf_type_name(type));
        }
        return id;
    }

  private:
    struct gguf_deleter {
        void operator()(gguf_context * context) const { gguf_free(context); }
    };
    struct ggml_deleter {
        void operator()(ggml_context * context) const { ggml_free(context); }
    };
    std::unique_ptr<ggml_context, ggml_deleter> tensors_;
    std::unique_ptr<gguf_context, gguf_deleter> gguf_;
};

// One encoder of a file, which may have two.
struct sense {
    const char * keys;   // "clip.vision."
    const char * letter; // of its tensors
    std::string kind;    // how its rows are made
    uint32_t width = 0;
    uint32_t blocks = 0;
};

}  // namespace

static bool is_one_of(std::string_view text, std::initializer_list<std::string_view> all) {
    return std::find(all.begin(), all.end(), text) != all.end();
}

// mtmd reads tensors without looking whether the file goes on so far.
static void check_size(const header & file, const std::string & path) {
    uint64_t begin = 0;
    uint64_t bytes = 0;
    if (FILE * opened = lm_open_part(path.c_str(), &begin, &bytes)) {
        fclose(opened);
    }
    uint64_t end = 0;
    for (int64_t i = 0; i < gguf_get_n_tensors(file.get()); i++) {
        end = std::max<uint64_t>(end, gguf_get_tensor_offset(file.get(), i) + gguf_get_tensor_size(file.get(), i));
    }
    const uint64_t needed = gguf_get_data_offset(file.get()) + end;
    if (needed > bytes) {
        refuse("is cut off: its file has " + std::to_string(bytes) + " of " + std::to_string(needed) + " bytes");
    }
}

static uint32_t need_number(const header & file, const std::string & key, uint32_t least, uint32_t most) {
    const std::optional<uint32_t> number = file.number(key);
    if (!number) {
        refuse("is broken: it does not tell " + key);
    }
    if (*number < least || *number > most) {
        refuse("is broken: " + key + " is " + std::to_string(*number));
    }
    return *number;
}

static void need_tensor(const header & file, const std::string & name) {
    if (!file.has(name)) {
        refuse("lacks the tensor " + in_quotes(name));
    }
}

static uint32_t count_blocks(const header & file, const std::string & letter) {
    uint32_t n = 0;
    const std::string begin = letter + ".blk.";
    for (const ggml_tensor * tensor = file.first(); tensor != nullptr; tensor = file.next(tensor)) {
        if (strncmp(tensor->name, begin.c_str(), begin.size()) == 0) {
            n = std::max(n, uint32_t(std::min(strtoul(tensor->name + begin.size(), nullptr, 10) + 1, 1ul << 20)));
        }
    }
    return n;
}

static sense read_sense(const header & file, const char * keys, const char * letter) {
    sense s{keys, letter, file.text("clip.projector_type")};
    if (s.kind.empty()) {
        s.kind = file.text(s.keys + std::string("projector_type"));
    }
    if (s.kind.empty()) {
        refuse("does not say of what kind it is (clip.projector_type)");
    }
    if (clip_projector_type_from_string(s.kind) == PROJECTOR_TYPE_UNKNOWN) {
        refuse("is of the kind " + in_quotes(s.kind) + ", which this build of llama.cpp does not know");
    }
    s.width = need_number(file, s.keys + std::string("embedding_length"), 1, 1 << 20);
    const uint32_t heads = need_number(file, s.keys + std::string("attention.head_count"), 1, s.width);
    need_number(file, s.keys + std::string("feed_forward_length"), 0, 1 << 24);
    need_number(file, s.keys + std::string("projection_dim"), 0, 1 << 24);
    s.blocks = need_number(file, s.keys + std::string("block_count"), 0, MOST_BLOCKS);
    file.typed(s.keys + std::string("attention.layer_norm_epsilon"), GGUF_TYPE_FLOAT32);
    if (s.width % heads != 0 && !file.number(s.keys + std::string("attention.head_dim"))) {
        refuse("is broken: its width of " + std::to_string(s.width) + " cannot be shared out to " + std::to_string(heads) + " heads");
    }
    return s;
}

// Where there is such a tensor.
static void need_numbers(const header & file, const std::string & name, int64_t n) {
    const std::optional<shape> found = file.tensor(name);
    if (found && (found->sides.size() != 1 || found->sides[0] != n)) {
        refuse("is broken: " + in_quotes(name) + " has " + std::to_string(found->sides[0]) + " numbers, and there have to be " +
               std::to_string(n));
    }
}

// A matrix whose side of that index is as long as the tower is wide, and what is added behind it.
static void check_matrix(const header & file, const std::string & name, size_t side, int64_t width) {
    const std::optional<shape> matrix = file.tensor(name + ".weight");
    if (!matrix) {
        return;
    }
    if (matrix->sides.size() != 2 || matrix->sides[side] != width) {
        refuse("is broken: " + in_quotes(name + ".weight") + " does not fit its width of " + std::to_string(width));
    }
    need_numbers(file, name + ".bias", matrix->sides[1]);
}

// Blocks as most towers have them: what mtmd does not look for and reads all the same.
static void check_blocks(const header & file, const sense & s) {
    const uint32_t there = count_blocks(file, s.letter);
    if (there == 0) {
        return; // of another build
    }
    if (s.blocks > there) {
        refuse("lacks blocks: it says that it has " + std::to_string(s.blocks) + ", and there are " + std::to_string(there));
    }
    for (uint32_t i = 0; i < s.blocks; i++) {
        const std::string at = s.letter + std::string(".blk.") + std::to_string(i) + ".";
        if (!file.has(at + "attn_out.weight")) {
            continue; // of another build, or named by mtmd itself
        }
        if (!file.has(at + "attn_qkv.weight")) {
            for (const char * name : {"attn_q.weight", "attn_k.weight", "attn_v.weight"}) {
                need_tensor(file, at + name);
            }
        }
        for (const char * name : {"ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias", "attn_out.bias"}) {
            if (file.has(s.letter + std::string(".blk.0.") + name)) {
                need_tensor(file, at + name); // in one, in all
            }
        }
        for (const char * name : {"ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias"}) {
            need_numbers(file, at + name, s.width);
        }
        for (const char * name : {"attn_q", "attn_k", "attn_v", "attn_qkv", "ffn_up", "ffn_gate"}) {
            check_matrix(file, at + name, 0, s.width);
        }
        for (const char * name : {"attn_out", "ffn_down"}) {
            check_matrix(file, at + name, 1, s.width);
        }
    }
}

// Of these the CPU adds and multiplies single precision only, and ends the process otherwise.
static void check_precision(const header & file) {
    for (const ggml_tensor * tensor = file.first(); tensor != nullptr; tensor = file.next(tensor)) {
        const std::string_view name = tensor->name;
        const bool is_bias = name.size() > 5 && name.substr(name.size() - 5) == ".bias";
        const bool is_norm = name.find(".ln") != std::string_view::npos || name.find("norm") != std::string_view::npos ||
                             name.find("_ln") != std::string_view::npos;
        if (ggml_n_dims(tensor) == 1 && (is_bias || is_norm) && tensor->type != GGML_TYPE_F32) {
            refuse("cannot be computed: " + in_quotes(std::string(name)) + " is of type " + ggml_type_name(tensor->type) + ", and has to be f32");
        }
    }
}

static void check_sight(const header & file, const sense & s) {
    const uint32_t side = need_number(file, "clip.vision.image_size", 0, 8192);
    const uint32_t patch = need_number(file, "clip.vision.patch_size", 1, 65535);
    for (const char * key : {"clip.vision.image_mean", "clip.vision.image_std"}) {
        const int64_t id = file.typed(key, GGUF_TYPE_ARRAY);
        if (id < 0 || gguf_get_arr_type(file.get(), id) != GGUF_TYPE_FLOAT32 || gguf_get_arr_n(file.get(), id) < 3) {
            refuse(std::string("is broken: it does not tell ") + key);
        }
    }
    const bool in_patches = is_one_of(s.kind, {"mlp", "gemma3", "pixtral", "qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger", "idefics3",
                                               "internvl", "llama4", "lfm2"});
    if (in_patches) {
        need_tensor(file, "v.patch_embd.weight");
    }
    const std::optional<shape> patches = file.tensor("v.patch_embd.weight");
    if (in_patches && patches && patches->sides.size() == 4 && (patches->sides[0] != patch || patches->sides[1] != patch)) {
        refuse("is broken: it says that its patches are " + std::to_string(patch) + " pixels wide, and 'v.patch_embd.weight' is made for " +
               std::to_string(patches->sides[0]));
    }
    const std::optional<shape> positions = file.tensor("v.position_embd.weight");
    if (is_one_of(s.kind, {"mlp", "gemma3"})) { // of one size
        const int64_t needed = int64_t(side / patch) * (side / patch) + (file.has("v.class_embd") ? 1 : 0);
        const int64_t rows = positions && positions->sides.size() > 1 ? positions->sides[1] : positions ? 1 : 0;
        if (side < patch) {
            refuse("is broken: its pictures are smaller than its patches");
        }
        if (rows < needed) {
            refuse("is broken: its table of positions has " + std::to_string(rows) + " rows, and a picture " + std::to_string(needed) +
                   " patches");
        }
    }
    if (s.kind == "mlp") {
        need_tensor(file, "mm.0.weight");
        if (!file.has("mm.3.weight")) {
            need_tensor(file, "mm.2.weight");
        }
    }
}

static void check_hearing(const header & file, const sense & s) {
    need_number(file, "clip.audio.num_mel_bins", 1, 4096);
    if (!is_one_of(s.kind, {"ultravox", "voxtral", "qwen2a", "glma", "meralion", "musicflamingo"})) {
        return;
    }
    const std::optional<shape> positions = file.tensor("a.position_embd.weight");
    const int64_t rows = positions && positions->sides.size() > 1 ? positions->sides[1] : positions ? 1 : 0;
    if (rows < SOUND_POSITIONS) {
        refuse("is broken: its table of positions has " + std::to_string(rows) + " rows, and a sound " +
               std::to_string(SOUND_POSITIONS) + " places");
    }
    if (const std::optional<uint32_t> stacked = file.number("clip.audio.projector.stack_factor")) {
        if (*stacked == 0 || *stacked > 64) {
            refuse("is broken: clip.audio.projector.stack_factor is " + std::to_string(*stacked));
        }
    }
}

// Families whose rows have a place in two dimensions, which text models without it would take for one after the other.
static void check_positions(const sense & s, const llama_model * text) {
    const bool by_row = is_one_of(s.kind, {"qwen2vl_merger", "qwen2.5vl_merger", "qwen2.5o", "qwen3vl_merger"});
    const enum llama_rope_type rope = llama_model_rope_type(text);
    if (by_row && rope != LLAMA_ROPE_TYPE_MROPE && rope != LLAMA_ROPE_TYPE_IMROPE) {
        refuse("is made for another model: a tower of kind " + in_quotes(s.kind) + " needs one whose positions are rows and columns (M-RoPE)");
    }
}

void check_projector_file(const std::string & path, const llama_model * text) {
    struct stat found;
    if (stat(path.c_str(), &found) == 0 && !S_ISREG(found.st_mode)) {
        refuse("is no file");
    }
    const header file(path);
    const std::string arch = file.text("general.architecture");
    if (arch != "clip") {
        refuse("is none: the file's architecture is " + in_quotes(arch));
    }
    check_size(file, path);
    const bool sees = file.flag("clip.has_vision_encoder");
    const bool hears = file.flag("clip.has_audio_encoder");
    if (!sees && !hears) {
        refuse("neither sees nor hears");
    }
    check_precision(file);
    for (const bool sight : {true, false}) {
        if (sight ? sees : hears) {
            const sense s = sight ? read_sense(file, "clip.vision.", "v") : read_sense(file, "clip.audio.", "a");
            check_positions(s, text);
            check_blocks(file, s);
            sight ? check_sight(file, s) : check_hearing(file, s);
        }
    }
}

}  // namespace lm
