// Copies of a sequence's memory in host memory: a whole sequence that makes room, or the part of it that cannot be cut.
#pragma once

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace lm {

class saved_state {
  public:
    enum class part {
        all,
        uncut, // recurrent states and sliding windows: what a shared prefix needs besides its attention cells
    };

    // Bytes that a copy of what `seq` holds now would take; 0 if it cannot be had.
    static size_t size_of(llama_context * ctx, llama_seq_id seq, part what);
    // The copy, or null where memory for it is short. `total` counts the bytes of all copies that are alive.
    static std::shared_ptr<const saved_state> of(llama_context * ctx, llama_seq_id seq, part what,
                                                 const std::shared_ptr<size_t> & total);
    ~saved_state() { *total_ -= bytes_.size(); }
    saved_state(const saved_state &) = delete;
    saved_state & operator=(const saved_state &) = delete;

    // Puts the copy under `seq`, in place of the same part there. False if there are too few free cells; `seq` is empty then.
    bool restore(llama_context * ctx, llama_seq_id seq) const;

  private:
    saved_state(part what, std::shared_ptr<size_t> total) : what_(what), total_(std::move(total)) {}

    part what_;
    std::vector<uint8_t> bytes_;
    std::shared_ptr<size_t> total_;
};
// What `seq` holds, as bytes that can leave this process. False if they cannot be had.
bool copy_state(llama_context * ctx, llama_seq_id seq, std::vector<uint8_t> & bytes);
// In place of what `seq` holds. False if there are too few free cells; `seq` is empty then.
bool put_state(llama_context * ctx, llama_seq_id seq, const std::vector<uint8_t> & bytes);

using saved_state_ptr = std::shared_ptr<const saved_state>;

// A place at which a sequence can be taken over although its memory cannot be cut anywhere.
struct mark {
    size_t position; // tokens before it
    saved_state_ptr state;
    bool wanted = true; // false: made in passing, the first to go
};

}  // namespace lm
