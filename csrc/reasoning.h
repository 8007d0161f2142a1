// A limit on how many tokens an answer reasons for: then the mark that ends reasoning is what comes next, whatever the model
// would have said.
#pragma once

#include "answer_format.h"
#include "text.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lm {

// How many tokens an answer may reason for that has `room` for so many: those `asked` for (-1: all), and where a call has to come
// not all that there are. Nothing: no limit.
std::optional<size_t> thinking_limit(const answer_format & format, int32_t asked, size_t room);

class reasoning_budget {
  public:
    // Null if answers of this format have no marks for reasoning, and so nothing to limit.
    static std::unique_ptr<reasoning_budget> of(const answer_format & format, const vocabulary & vocab, size_t n_tokens);

    // The token that must come now, if one must.
    std::optional<llama_token> next() const;
    // Takes note of the token that came.
    void push(llama_token id);

  private:
    reasoning_budget(const answer_format & format, const vocabulary & vocab, size_t n_tokens);
    void look(std::string_view piece);

    const vocabulary & vocab_; // borrowed
    std::string start_;
    std::vector<std::string> ends_;
    std::vector<llama_token> forced_; // the mark that ends reasoning
    size_t n_forced_ = 0;             // of those, how many came
    size_t left_;                     // tokens
    bool inside_ = false;
    std::string window_;    // the end of the text, as long as a mark
    std::string character_; // the bytes of one that is not whole
};

}  // namespace lm
