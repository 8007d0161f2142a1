// Tokens to text and back: the vocabulary with every piece cached, and the answer's text as it may be shown.
#pragma once

#include "llama.h"

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace lm {

class vocabulary;
class string_tree;

// The bytes of every token as a prefix tree, in depth-first order. Control tokens spell their names, as grammars write them.
class token_tree {
  public:
    explicit token_tree(const vocabulary & vocab);

    struct node {
        uint32_t next;      // the first node that does not descend from this one
        uint32_t ids_begin; // the tokens that end here, a range of ids()
        uint32_t ids_end;
        uint16_t depth; // from 1
        uint8_t byte;
    };

    const std::vector<node> & nodes() const { return nodes_; }
    const std::vector<llama_token> & ids() const { return ids_; }
    const std::vector<llama_token> & ends() const { return end_ids_; } // tokens that end a generation: not in the tree
    size_t depth() const { return depth_; }

    // Those that are not shown.
    const std::vector<llama_token> & controls() const { return control_ids_; }

    // Empty for a token that a grammar can never spell.
    std::string_view bytes(llama_token id) const;

  private:
    void grow();

    std::string bytes_; // all tokens', one after another
    std::vector<uint32_t> ends_;
    std::vector<llama_token> ids_;
    std::vector<llama_token> end_ids_;
    std::vector<node> nodes_;
    std::vector<llama_token> control_ids_;
    size_t depth_ = 0;
};

// A model's vocabulary. Immutable after construction, thread safe.
class vocabulary {
  public:
    explicit vocabulary(const llama_vocab * vocab);
    ~vocabulary();

    const llama_vocab * get() const { return vocab_; }
    int32_t size() const { return int32_t(ends_.size()); }
    bool contains(int64_t id) const { return id >= 0 && id < int64_t(ends_.size()); }

    // The token's bytes; empty for control tokens unless `special`. `id` must be contained.
    std::string_view piece(llama_token id) const;
    std::string special_piece(llama_token id) const;
    bool is_eog(llama_token id) const { return eog_[size_t(id)]; }

    // Special tokens written in `text` are parsed only if `parse_special`; BOS/EOS are added as the model asks, but no BOS to a
    // text that begins with one.
    std::vector<llama_token> tokenize(std::string_view text, bool add_special, bool parse_special) const;
    // The same for a text that must leave `spare` of `limit` tokens: throws context_overflow, for a text far beyond that
    // after a part of the work and with a lower bound of what it needs.
    std::vector<llama_token> tokenize_within(std::string_view text, size_t limit, size_t spare, bool add_special = true,
                                             bool parse_special = true) const;
    // The tokens of a text, or of its beginning and its end alone if it has many times `limit`.
    std::vector<llama_token> tokenize_ends(std::string_view text, size_t limit, bool add_special = true, bool parse_special = true) const;
    // Only the refusal of a text far beyond that.
    void refuse_overlong(std::string_view text, size_t limit, size_t spare) const;
    std::string detokenize(const std::vector<llama_token> & tokens) const;

    // Built at the first call: only grammars need it.
    const token_tree & tree() const;
    // Likewise: only schemas need it.
    const string_tree & strings() const;

    // The texts of the control tokens, longest first: what a message must not be able to say.
    const std::vector<std::string> & control_texts() const { return control_texts_; }

  private:
    bool begins_twice(std::string_view text, const std::vector<llama_token> & tokens) const;

    const llama_vocab * vocab_; // borrowed from the model
    std::string pieces_;        // all pieces, one after another
    size_t longest_piece_ = 1;  // bytes
    std::vector<uint32_t> ends_;
    std::vector<bool> eog_;
    std::vector<std::string> control_texts_;
    mutable std::once_flag tree_once_;
    mutable std::unique_ptr<const token_tree> tree_;
    mutable std::once_flag strings_once_;
    mutable std::unique_ptr<const string_tree> strings_;
};

// Moves what is whole UTF-8 from `bytes` to `out`; a sequence that cannot become valid turns into U+FFFD, one that may
// still be completed stays.
void decode_utf8(std::string & bytes, std::string & out);
bool is_utf8(std::string_view bytes); // all of it, and whole

// The text of one answer as it grows: holds back the start of a character and whatever could begin a stop string.
class answer_text {
  public:
    explicit answer_text(std::vector<std::string> stops) : stops_(std::move(stops)) {}

    // From here on these end the text.
    void set_stops(std::vector<std::string> stops) { stops_ = std::move(stops); }

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
