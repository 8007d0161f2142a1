// The header of a model's file, read before llama.cpp is given the file: for some of what may stand there it ends the process,
// and some of what it is asked for depends on it.
#pragma once

#include "gguf.h"

#include <cstdint>
#include <memory>
#include <string>

namespace lm {

class model_file {
  public:
    // Never throws: what cannot be read, the load refuses by itself, and until then it has no tensors and no metadata.
    explicit model_file(const std::string & path);

    // What a load reads of it: all up to the end of the last tensor.
    uint64_t bytes() const { return bytes_; }
    // Not where more than padding lies behind that: mapping reads it ahead, be it a hole of a terabyte. Nor in an archive that
    // does not begin it on a page.
    bool can_be_mapped() const;
    // 0: there is no such tensor.
    uint64_t tensor_bytes(const char * name) const;

    // Throws error("load_failed") for a vocabulary that llama.cpp aborts for.
    void check_vocabulary() const;
    // The metadata key that sets how many experts a token has. Throws invalid_request where there are not `n_experts` of them,
    // which llama.cpp aborts for.
    std::string experts_key(int32_t n_experts) const;

  private:
    struct deleter {
        void operator()(gguf_context * header) const { gguf_free(header); }
    };
    int64_t find(const std::string & key, gguf_type type) const;
    int64_t find_array(const std::string & key, gguf_type type) const;
    std::string text(const std::string & key) const;

    std::unique_ptr<gguf_context, deleter> header_; // null: cannot be read
    bool is_aligned_ = false;
    uint64_t file_bytes_ = 0;
    uint64_t bytes_ = 0;
};

// Tells the file from any other, and from what it was before it was written anew: its size, when it was written, and what stands
// at its beginning (where a model's header is), at its end, and in some places between. Empty if it cannot be read.
std::string fingerprint(const std::string & path);

}  // namespace lm
