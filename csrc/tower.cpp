#include "tower.h"

#include "error.h"
#include "picture.h"
#include "sound.h"

#include "hash/hash.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace lm {

// Rows of about a hundred large pictures, or of thousands of small ones.
static constexpr size_t CACHED_ROWS_BYTES = 256u << 20;

// Windows of sounds and the texts around them, of some hundred bytes each: about two days of sound.
static constexpr size_t KNOWN_SOUND_PIECES = 1u << 14;

// Pixels of pictures that wait for their turn, a few screens; the others are decoded once more when it comes.
static constexpr size_t DECODED_BYTES = 16u << 20;

// Shape of the picture that shows at load how many cells the smallest one takes.
static constexpr uint32_t SMALL_SIDE = 32;

// ---- loading ------------------------------------------------------------------------------------------------------------

// What mtmd says of a load that fails, on the thread that loads.
static thread_local std::string * errors_of_load = nullptr;

static void log_to_stderr(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
        if (errors_of_load != nullptr) {
            *errors_of_load += text;
        }
    }
}

// The last line, without the name of the function that wrote it.
static std::string refusal(const std::string & logged) {
    static const std::string MARK = "error: ";
    const size_t at = logged.rfind(MARK);
    if (at == std::string::npos) {
        return "llama.cpp refused the projector";
    }
    std::string why = logged.substr(at + MARK.size());
    why.resize(std::min(why.find('\n'), why.size()));
    return "llama.cpp refused the projector: " + why;
}

tower::tower(const settings & wanted, const llama_model * text, const progress_fn & progress)
    : text_(text), n_batch_(wanted.n_batch), picture_memory_(wanted.picture_memory), row_size_(size_t(llama_model_n_embd_inp(text))), rows_(CACHED_ROWS_BYTES),
      sounds_(KNOWN_SOUND_PIECES) {
    static std::once_flag once;
    std::call_once(once, [] { mtmd_log_set(log_to_stderr, nullptr); });
    mtmd_context_params params = mtmd_context_params_default();
    params.use_gpu = wanted.use_gpu;
    params.print_timings = false;
    params.n_threads = wanted.n_threads;
    params.cb_eval = on_node;
    params.cb_eval_user_data = this;
    params.progress_callback = [](float fraction, void * fn) { return (*static_cast<const progress_fn *>(fn))(fraction); };
    params.progress_callback_user_data = const_cast<progress_fn *>(&progress);
    std::string logged;
    errors_of_load = &logged;
    ctx_.reset(mtmd_init_from_file(wanted.path.c_str(), text, params));
    errors_of_load = nullptr;
    if (!ctx_) {
        throw error("load_failed", refusal(logged));
    }
    if (sees()) {
        check_smallest_picture();
    }
}

tower::~tower() = default;

bool tower::sees() const {
    return mtmd_support_vision(ctx_.get());
}

bool tower::hears() const {
    return mtmd_support_audio(ctx_.get());
}

static std::string too_small_a_batch(size_t n_cells, int32_t n_batch) {
    return "a picture takes " + std::to_string(n_cells) + " tokens, which this model computes together, and a batch has " +
           std::to_string(n_batch) + ": load it with an eval_batch_size of at least " + std::to_string(n_cells);
}

tower::chunks_ptr tower::cut(const mtmd_input_part * const * parts, size_t n_parts) const {
    chunks_ptr chunks(mtmd_input_chunks_init());
    return mtmd_tokenize_from_parts(ctx_.get(), chunks.get(), parts, n_parts, false) == 0 ? std::move(chunks) : nullptr;
}

static bool is_shown(const mtmd_input_chunk * chunk) {
    return mtmd_input_chunk_get_type(chunk) != MTMD_INPUT_CHUNK_TYPE_TEXT;
}

// The smallest is as large as any where they all have one size.
void tower::check_smallest_picture() const {
    const bitmap_ptr bitmap(mtmd_bitmap_init(SMALL_SIDE, SMALL_SIDE, nullptr));
    const mtmd_input_part part = {nullptr, bitmap.get()};
    const mtmd_input_part * parts[] = {&part};
    const chunks_ptr chunks = cut(parts, 1);
    for (size_t i = 0; chunks && i < mtmd_input_chunks_size(chunks.get()); i++) {
        const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks.get(), i);
        const size_t n_cells = mtmd_input_chunk_get_n_tokens(chunk);
        if (is_shown(chunk) && mtmd_decode_use_non_causal(ctx_.get(), chunk) && n_cells > size_t(n_batch_)) {
            throw invalid_request("eval_batch_size", too_small_a_batch(n_cells, n_batch_));
        }
    }
}

// ---- prompts ------------------------------------------------------------------------------------------------------------

std::string digest_of(const std::string & bytes) {
    return hash_sha256_hex(bytes.data(), bytes.size());
}

tower::bitmap_ptr tower::read(const media_file_ptr & file, bool with_pixels) const {
    if (file->kind == media_kind::sound) {
        if (!hears()) {
            throw error("model_type", "this model does not hear", R"({"needs":"audio"})");
        }
        const std::vector<float> samples = decode_sound(file->bytes(), uint32_t(mtmd_get_audio_sample_rate(ctx_.get())));
        return bitmap_ptr(mtmd_bitmap_init_from_audio(samples.size(), samples.data()));
    }
    if (!sees()) {
        throw error("model_type", "this model does not see", R"({"needs":"vision"})");
    }
    const picture_size size = look_at_picture(file->bytes(), picture_memory_);
    if (!with_pixels) {
        return bitmap_ptr(mtmd_bitmap_init(size.width, size.height, nullptr));
    }
    const std::shared_ptr<const pixels> picture = decode(file);
    return bitmap_ptr(mtmd_bitmap_init(picture->width, picture->height, picture->rgb.data()));
}

// The pixels, which are there already if few wait for their turn.
std::shared_ptr<const pixels> tower::decode(const media_file_ptr & file) const {
    if (std::shared_ptr<const pixels> waiting = std::move(file->decoded)) {
        return waiting;
    }
    return std::make_shared<const pixels>(decode_picture(file->bytes(), picture_memory_));
}

void tower::try_out(const media_file_ptr & file) const {
    if (file->kind == media_kind::sound) {
        return; // decoded already, to know its length
    }
    const std::lock_guard<std::mutex> lock(decoding_);
    auto picture = std::make_unique<const pixels>(decode_picture(file->bytes(), picture_memory_));
    const size_t size = picture->rgb.size();
    if (*decoded_bytes_ + size > DECODED_BYTES) {
        return;
    }
    *decoded_bytes_ += size;
    file->decoded.reset(picture.release(), [size, total = decoded_bytes_](const pixels * p) {
        delete p;
        *total -= size;
    });
}

// Of a prompt with at least one.
static size_t first_file(const std::vector<prompt_fragment> & fragments) {
    size_t first = SIZE_MAX;
    for (const prompt_fragment & fragment : fragments) {
        first = std::min(first, fragment.file.value_or(first));
    }
    return first;
}

tower::bitmap_ptr tower::read_for(size_t index, const media_files & files) const {
    try {
        return read(files[index], false);
    } catch (const invalid_request & e) {
        throw media_error(index, e.what());
    }
}

[[noreturn]] static void refuse_shape(size_t index) {
    throw media_error(index, "the model's projector cannot take a picture or a sound of this shape");
}

tower::pieces tower::pieces_of(const mtmd_input_chunks * chunks) {
    pieces all;
    for (size_t i = 0; i < mtmd_input_chunks_size(chunks); i++) {
        const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks, i);
        if (!is_shown(chunk)) {
            size_t n = 0;
            const llama_token * tokens = mtmd_input_chunk_get_tokens_text(chunk, &n);
            all.push_back({{tokens, tokens + n}});
            continue;
        }
        all.push_back({{}, media_chunk(mtmd_input_chunk_get_placeholder(chunk), [](const mtmd_input_chunk * c) {
                           mtmd_input_chunk_free(const_cast<mtmd_input_chunk *>(c));
                       })});
    }
    return all;
}

// Texts and pictures, which tell their sizes before they are decoded.
tower::pieces tower::cut_run(const std::vector<prompt_fragment> & fragments, size_t begin, size_t end, const media_files & files) const {
    std::vector<bitmap_ptr> bitmaps;
    std::vector<mtmd_input_text> texts(end - begin);
    std::vector<mtmd_input_part> parts(end - begin);
    std::vector<const mtmd_input_part *> pointers;
    for (size_t i = begin; i < end; i++) {
        const prompt_fragment & fragment = fragments[i];
        mtmd_input_part & part = parts[i - begin];
        if (fragment.file) {
            bitmaps.push_back(read_for(*fragment.file, files));
            mtmd_bitmap_set_id(bitmaps.back().get(), std::to_string(*fragment.file).c_str());
            part = {nullptr, bitmaps.back().get()};
        } else {
            texts[i - begin] = {fragment.text.data(), fragment.text.size(), false, fragment.parse_special};
            part = {&texts[i - begin], nullptr};
        }
        pointers.push_back(&part);
    }
    const chunks_ptr chunks = cut(pointers.data(), pointers.size());
    if (!chunks) {
        refuse_shape(first_file(fragments));
    }
    pieces all = pieces_of(chunks.get());
    for (piece & p : all) {
        p.file = p.shape ? size_t(std::stoul(mtmd_input_chunk_get_id(p.shape.get()))) : 0;
    }
    return all;
}

tower::pieces tower::cut_sound(size_t index, const media_files & files) const {
    std::shared_ptr<const pieces> known = sounds_.get(files[index]->digest);
    if (!known) {
        const bitmap_ptr bitmap = read_for(index, files);
        const mtmd_input_part part = {nullptr, bitmap.get()};
        const mtmd_input_part * parts[] = {&part};
        const chunks_ptr chunks = cut(parts, 1);
        if (!chunks) {
            refuse_shape(index);
        }
        known = std::make_shared<const pieces>(pieces_of(chunks.get()));
        sounds_.put(files[index]->digest, known, known->size());
    }
    pieces all = *known;
    for (piece & p : all) {
        p.file = index;
    }
    return all;
}

media_prompt tower::tokenize(const std::vector<prompt_fragment> & fragments, const media_files & files) const {
    const auto is_sound = [&](const prompt_fragment & f) { return f.file && files[*f.file]->kind == media_kind::sound; };
    pieces all;
    for (size_t begin = 0; begin < fragments.size();) {
        const size_t end = size_t(std::find_if(fragments.begin() + long(begin), fragments.end(), is_sound) - fragments.begin());
        pieces more = end > begin ? cut_run(fragments, begin, end, files) : cut_sound(*fragments[begin].file, files);
        std::move(more.begin(), more.end(), std::back_inserter(all));
        begin = std::max(end, begin + 1);
    }
    media_prompt prompt;
    size_t last = files.size(); // the file of the part before
    for (const piece & p : all) {
        if (!p.shape) {
            if (std::any_of(p.tokens.begin(), p.tokens.end(), is_media)) { // which would be cells that nobody can compute
                throw media_error(first_file(fragments), "the projector is made for another text model: what it writes around tiles "
                                                         "is not in this one's vocabulary");
            }
            prompt.tokens.insert(prompt.tokens.end(), p.tokens.begin(), p.tokens.end());
            continue;
        }
        const mtmd_input_chunk * shape = p.shape.get();
        const size_t n_cells = mtmd_input_chunk_get_n_tokens(shape);
        const size_t index = p.file == last ? prompt.parts.back().index + 1 : 0;
        last = p.file;
        const bool whole = mtmd_decode_use_non_causal(ctx_.get(), shape);
        if (whole && n_cells > size_t(n_batch_)) {
            throw media_error(p.file, too_small_a_batch(n_cells, n_batch_));
        }
        const media_file_ptr & file = files[p.file];
        const std::string key = digest_of(file->digest + ' ' + std::to_string(index) + ' ' + std::to_string(n_cells));
        const std::vector<llama_token> cells = media_cells(key, n_cells);
        const bool by_row = mtmd_input_chunk_get_type(shape) == MTMD_INPUT_CHUNK_TYPE_IMAGE && mtmd_decode_use_mrope(ctx_.get());
        prompt.spans.push_back({prompt.tokens.size(), n_cells, mtmd_input_chunk_get_n_pos(shape), by_row});
        prompt.tokens.insert(prompt.tokens.end(), cells.begin(), cells.end());
        prompt.parts.push_back({key, file, index, whole, p.shape});
    }
    return prompt;
}

void tower::set_position(const media_part & part, llama_pos first, size_t i, llama_pos position[4]) const {
    const mtmd_image_tokens * picture = mtmd_input_chunk_get_tokens_image(part.chunk.get());
    if (picture != nullptr && mtmd_decode_use_mrope(ctx_.get())) {
        const mtmd_decoder_pos at = mtmd_image_tokens_get_decoder_pos(picture, first, i);
        position[0] = llama_pos(at.t);
        position[1] = llama_pos(at.y);
        position[2] = llama_pos(at.x);
        position[3] = llama_pos(at.z);
    } else {
        std::fill(position, position + 4, first + llama_pos(i));
    }
}

// ---- encoding -----------------------------------------------------------------------------------------------------------

// Operations that take their time: behind the others nobody needs to pause.
static bool takes_time(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_FLASH_ATTN_EXT:
        case GGML_OP_SOFT_MAX:
        case GGML_OP_IM2COL:
        case GGML_OP_CONV_2D:
        case GGML_OP_CONV_2D_DW: return true;
        default: return false;
    }
}

bool tower::on_node(ggml_tensor * node, bool ask, void * self) {
    tower & t = *static_cast<tower *>(self);
    if (t.pause_ == nullptr) {
        return !ask; // nobody waits
    }
    if (ask) {
        return takes_time(node) || t.ended_;
    }
    t.ended_ = t.ended_ || !(*t.pause_)();
    return !t.ended_;
}

static size_t n_parts(const mtmd_input_chunks * chunks) {
    size_t n = 0;
    for (size_t i = 0; i < mtmd_input_chunks_size(chunks); i++) {
        n += is_shown(mtmd_input_chunks_get(chunks, i)) ? 1 : 0;
    }
    return n;
}

// The chunk with what is to be encoded: the file decoded, scaled and cut as it was for its size.
const mtmd_input_chunk * tower::data_of(const media_part & part) {
    if (read_ != part.file) {
        read_ = nullptr;
        std::unique_lock<std::mutex> lock(decoding_, std::defer_lock);
        if (part.file->kind == media_kind::picture) {
            lock.lock();
        }
        const bitmap_ptr bitmap = read(part.file, true);
        const mtmd_input_part whole = {nullptr, bitmap.get()};
        const mtmd_input_part * parts[] = {&whole};
        chunks_ = cut(parts, 1);
        read_ = chunks_ ? part.file : nullptr;
    }
    size_t index = 0;
    for (size_t i = 0; chunks_ && i < mtmd_input_chunks_size(chunks_.get()); i++) {
        const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks_.get(), i);
        if (is_shown(chunk) && index++ == part.index) {
            return mtmd_input_chunk_get_n_tokens(chunk) == mtmd_input_chunk_get_n_tokens(part.chunk.get()) ? chunk : nullptr;
        }
    }
    return nullptr;
}

media_rows tower::encode(const media_part & part, const pause_fn & pause) {
    const mtmd_input_chunk * chunk = data_of(part);
    if (chunk == nullptr) {
        throw error("internal", "the projector gave a picture or a sound another size than before");
    }
    const size_t n = mtmd_input_chunk_get_n_tokens(chunk) * row_size_;
    pause_ = &pause;
    ended_ = false;
    const int32_t failed = mtmd_encode_chunk(ctx_.get(), chunk);
    pause_ = nullptr;
    if (ended_ || part.index + 1 == n_parts(chunks_.get())) { // its pixels are of no more use
        read_ = nullptr;
        chunks_.reset();
    }
    if (ended_) {
        return nullptr;
    }
    const float * rows = mtmd_get_output_embd(ctx_.get());
    if (failed != 0 || !std::all_of(rows, rows + n, [](float x) { return std::isfinite(x); })) {
        throw error("internal", "the projector gave no numbers for a picture or a sound");
    }
    return std::make_shared<const std::vector<float>>(rows, rows + n);
}

}  // namespace lm
