// Query and document as the one text that a reranking model reads: by the model's own template, or joined as the
// tokenizer joins two sentences. What the two say is never taken for control tokens.
#pragma once

#include "text.h"

#include <string>
#include <string_view>
#include <vector>

namespace lm {

class rerank_prompt {
  public:
    // One query for many documents. `vocab` is borrowed. Throws context_overflow if the query alone is over `limit`.
    rerank_prompt(const llama_model * model, const vocabulary & vocab, std::string query, size_t limit);

    // Throws context_overflow.
    std::vector<llama_token> tokenize(std::string_view document) const;

  private:
    std::vector<llama_token> joined(std::string_view document) const;
    std::vector<llama_token> templated(std::string_view document) const;
    std::vector<llama_token> plain_words(std::string_view text) const;
    size_t control_at(std::string_view text, size_t at) const;

    const vocabulary & vocab_; // borrowed
    const std::string query_;
    const size_t limit_;
    const char * template_;           // borrowed from the model; null: it has none
    std::string control_starts_;      // the first letters of control tokens
    std::vector<llama_token> before_; // a document, where there is no template
    std::vector<llama_token> after_;
};

}  // namespace lm
