#include "state.h"

#include <new>

namespace lm {

static llama_state_seq_flags flags_of(saved_state::part what) {
    return what == saved_state::part::all ? LLAMA_STATE_SEQ_FLAGS_NONE : LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
}

size_t saved_state::size_of(llama_context * ctx, llama_seq_id seq, part what) {
    return llama_state_seq_get_size_ext(ctx, seq, flags_of(what));
}

saved_state_ptr saved_state::of(llama_context * ctx, llama_seq_id seq, part what, const std::shared_ptr<size_t> & total) {
    const size_t size = size_of(ctx, seq, what);
    std::shared_ptr<saved_state> saved(new saved_state(what, total));
    try {
        saved->bytes_.resize(size);
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
    *total += size;
    const size_t written = llama_state_seq_get_data_ext(ctx, saved->bytes_.data(), size, seq, flags_of(what));
    return size > 0 && written == size ? saved : nullptr;
}

static bool put(llama_context * ctx, llama_seq_id seq, const std::vector<uint8_t> & bytes, llama_state_seq_flags flags) {
    if (llama_state_seq_set_data_ext(ctx, bytes.data(), bytes.size(), seq, flags) == bytes.size()) {
        return true;
    }
    llama_memory_seq_rm(llama_get_memory(ctx), seq, -1, -1);
    return false;
}

bool saved_state::restore(llama_context * ctx, llama_seq_id seq) const {
    return put(ctx, seq, bytes_, flags_of(what_));
}

bool copy_state(llama_context * ctx, llama_seq_id seq, std::vector<uint8_t> & bytes) {
    constexpr llama_state_seq_flags all = LLAMA_STATE_SEQ_FLAGS_NONE;
    const size_t size = llama_state_seq_get_size_ext(ctx, seq, all);
    try {
        bytes.resize(size);
    } catch (const std::bad_alloc &) {
        return false;
    }
    return size > 0 && llama_state_seq_get_data_ext(ctx, bytes.data(), size, seq, all) == size;
}

bool put_state(llama_context * ctx, llama_seq_id seq, const std::vector<uint8_t> & bytes) {
    return put(ctx, seq, bytes, LLAMA_STATE_SEQ_FLAGS_NONE);
}

}  // namespace lm
