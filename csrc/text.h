// Tokens to text and back: the vocabulary with every piece cached, and the answer's text as it may be shown.
#pragma once

#include "llama.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lm {

// A model's vocabulary. Immutable after construction, thread safe.
class vocabulary {
  public:
    explicit vocabulary(const llama_vocab * vocab);

    const llama_vocab * get() const { return vocab_; }
    int32_t size() const { return int32_t(ends_.size()); }
    bool contains(int64_t id) const { return id >= 0 && id < int64_t(ends_.size()); }

    // The token's bytes; empty for control tokens unless `special`. `id` must be contained.
    std::string_view piece(llama_token id) const;
    std::string special_piece(llama_token id) const;
    bool is_eog(llama_token id) const { return eog_[size_t(id)]; }

    // Special tokens written in `text` are parsed only if `parse_special`; BOS/EOS are added as the model asks.
    std::vector<llama_token> tokenize(std::string_view text, bool add_special, bool parse_special) const;
    // The same for a text that must leave `spare` of `limit` tokens: throws context_overflow, for a text far beyond that
    // after a part of the work and with a lower bound of what it needs.
    std::vector<llama_token> tokenize_within(std::string_view text, size_t limit, size_t spare) const;
    // The tokens of a text, or of its beginning and its end alone if it has many times `limit`.
    std::vector<llama_token> tokenize_ends(std::string_view text, size_t limit) const;
    // Only the refusal of a text far beyond that.
    void refuse_overlong(std::string_view text, size_t limit, size_t spare) const;
    std::string detokenize(const std::vector<llama_token> & tokens) const;

    // The texts of the control tokens, longest first: what a message must not be able to say.
    const std::vector<std::string> & control_texts() const { return control_texts_; }

  private:
    const llama_vocab * vocab_; // borrowed from the model
    std::string pieces_;        // all pieces, one after another
    size_t longest_piece_ = 1;  // bytes
    std::vector<uint32_t> ends_;
    std::vector<bool> eog_;
    std::vector<std::string> control_texts_;
};

// Moves what is whole UTF-8 from `bytes` to `out`; a sequence that cannot become valid turns into U+FFFD, one that may
// still be completed stays.
void decode_utf8(std::string & bytes, std::string & out);

// The text of one answer as it grows: holds back the start of a character and whatever could begin a stop string.
class answer_text {
  public:
    explicit answer_text(std::vector<std::string> stops) : stops_(std::move(stops)) {}

    // Appends a token's bytes; true once a stop string has been found (nothing after it is kept).
    bool push(std::string_view bytes);
    // What can be shown now, each byte once. After push() returned true or after finish(), all of it.
    std::string take();
    // The same with what was held back: what follows is not part of this text.
    std::string take_all();
    // No more tokens come: what was held back may be shown.
    void finish();

    const std::string * stop() const { return stop_; } // the stop string found, borrowed; null if none
    const std::vector<std::string> & stops() const { return stops_; }
    size_t taken() const { return taken_; }            // bytes shown so far
    size_t known() const { return taken_ + held_.size(); }

  private:
    size_t held_for_stop() const;

    std::vector<std::string> stops_;
    std::string tail_; // the bytes of a character that is not whole yet
    std::string held_; // text not shown yet
    size_t taken_ = 0;
    bool finished_ = false;
    const std::string * stop_ = nullptr;
};

}  // namespace lm
