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

// What is cut of files that wait for the encoding of their parts, about: the longest sound, or some pictures in tiles. Others are
// decoded once more, and again where parts of several files are encoded in turns.
static constexpr size_t CUT_BYTES = 96u << 20;
static constexpr size_t BYTES_PER_SAMPLE = 4; // of a sound's analysis: 128 floats for 160 samples
static constexpr size_t BYTES_PER_PIXEL = 3 * sizeof(float);

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

cut_media tower::cut(const mtmd_input_part * const * parts, size_t n_parts) const {
    const std::shared_ptr<mtmd_input_chunks> chunks(mtmd_input_chunks_init(), mtmd_input_chunks_free);
    return mtmd_tokenize_from_parts(ctx_.get(), chunks.get(), parts, n_parts, false) == 0 ? chunks : nullptr;
}

static bool is_shown(const mtmd_input_chunk * chunk) {
    return mtmd_input_chunk_get_type(chunk) != MTMD_INPUT_CHUNK_TYPE_TEXT;
}

// The smallest is as large as any where they all have one size.
void tower::check_smallest_picture() const {
    const bitmap_ptr bitmap(mtmd_bitmap_init(SMALL_SIDE, SMALL_SIDE, nullptr));
    const mtmd_input_part part = {nullptr, bitmap.get()};
    const mtmd_input_part * parts[] = {&part};
    const cut_media chunks = cut(parts, 1);
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
    const std::lock_guard<queue_lock> lock(decoding_);
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
    const cut_media chunks = cut(pointers.data(), pointers.size());
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
        known = listen(index, files);
    }
    pieces all = *known;
    for (piece & p : all) {
        p.file = index;
    }
    return all;
}

std::shared_ptr<const tower::pieces> tower::listen(size_t index, const media_files & files) const {
    const media_file & file = *files[index];
    bitmap_ptr bitmap = read_for(index, files);
    const size_t n_samples = mtmd_bitmap_get_nx(bitmap.get());
    const mtmd_input_part part = {nullptr, bitmap.get()};
    const mtmd_input_part * parts[] = {&part};
    const cut_media chunks = cut(parts, 1);
    if (!chunks) {
        refuse_shape(index);
    }
    auto known = std::make_shared<const pieces>(pieces_of(chunks.get()));
    sounds_.put(file.digest, known, known->size());
    keep_cut(file, chunks, n_samples * BYTES_PER_SAMPLE);
    return known;
}

void tower::listen_to(size_t index, const media_files & files) const {
    if (!has_heard(*files[index])) {
        listen(index, files);
    }
}

static std::string key_of(const media_file & file, size_t index, size_t n_cells) {
    return digest_of(file.digest + ' ' + std::to_string(index) + ' ' + std::to_string(n_cells));
}

bool tower::has_heard(const media_file & file) const {
    const std::shared_ptr<const pieces> known = file.kind == media_kind::sound ? sounds_.get(file.digest) : nullptr;
    if (file.kind != media_kind::sound || (known && file.cut)) {
        return true;
    }
    size_t index = 0;
    return known && std::all_of(known->begin(), known->end(), [&](const piece & p) {
        return !p.shape || rows_.get(key_of(file, index++, mtmd_input_chunk_get_n_tokens(p.shape.get())));
    });
}

// With the file, if there is room.
void tower::keep_cut(const media_file & file, const cut_media & chunks, size_t size) const {
    if (*cut_bytes_ + size <= CUT_BYTES) {
        *cut_bytes_ += size;
        file.cut = cut_media(chunks.get(), [held = cut_media(chunks), size, total = cut_bytes_](const mtmd_input_chunks *) mutable {
            held.reset();
            *total -= size;
        });
    }
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
        const std::string key = key_of(*file, index, n_cells);
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

// What is to be encoded of the file, decoded, scaled and cut as it was for its size.
cut_media tower::data_of(const media_file_ptr & file) {
    if (file->cut) {
        return file->cut;
    }
    if (read_ == file) {
        return chunks_;
    }
    read_ = nullptr;
    chunks_.reset();
    std::unique_lock<queue_lock> lock(decoding_, std::defer_lock);
    if (file->kind == media_kind::picture && !file->decoded) {
        lock.lock();
    }
    const bitmap_ptr bitmap = read(file, true);
    const mtmd_input_part whole = {nullptr, bitmap.get()};
    const mtmd_input_part * parts[] = {&whole};
    cut_media chunks = cut(parts, 1);
    if (!chunks || n_parts(chunks.get()) < 2) {
        return chunks;
    }
    const size_t n_pixels = size_t(mtmd_bitmap_get_nx(bitmap.get())) * mtmd_bitmap_get_ny(bitmap.get());
    keep_cut(*file, chunks, n_pixels * (file->kind == media_kind::sound ? BYTES_PER_SAMPLE : BYTES_PER_PIXEL));
    if (!file->cut) {
        read_ = file;
        chunks_ = chunks;
    }
    return chunks;
}

// The part of that index, if it has as many cells as was told; null if not.
static const mtmd_input_chunk * part_of(const mtmd_input_chunks * chunks, const media_part & part) {
    size_t index = 0;
    for (size_t i = 0; chunks != nullptr && i < mtmd_input_chunks_size(chunks); i++) {
        const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks, i);
        if (is_shown(chunk) && index++ == part.index) {
            return mtmd_input_chunk_get_n_tokens(chunk) == mtmd_input_chunk_get_n_tokens(part.chunk.get()) ? chunk : nullptr;
        }
    }
    return nullptr;
}

media_rows tower::encode(const media_part & part, const pause_fn & pause) {
    const cut_media chunks = data_of(part.file);
    const mtmd_input_chunk * chunk = part_of(chunks.get(), part);
    if (chunk == nullptr) {
        throw error("internal", "the projector gave a picture or a sound another size than before");
    }
    const size_t n = mtmd_input_chunk_get_n_tokens(chunk) * row_size_;
    pause_ = &pause;
    ended_ = false;
    const int32_t failed = mtmd_encode_chunk(ctx_.get(), chunk);
    pause_ = nullptr;
    if (part.index + 1 == n_parts(chunks.get())) { // its pixels are of no more use
        part.file->cut.reset();
    }
    if (ended_ || part.index + 1 == n_parts(chunks.get())) {
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
