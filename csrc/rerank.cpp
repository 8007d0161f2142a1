#include "rerank.h"

#include "error.h"

#include <algorithm>

namespace lm {

// What a template says where the texts belong.
static constexpr std::string_view QUERY = "{query}";
static constexpr std::string_view DOCUMENT = "{document}";

rerank_prompt::rerank_prompt(const llama_model * model, const vocabulary & vocab, std::string query, size_t limit)
    : vocab_(vocab), query_(std::move(query)), limit_(limit), template_(llama_model_chat_template(model, "rerank")) {
    for (const std::string & control : vocab.control_texts()) {
        control_starts_ += control[0];
    }
    const auto add = [&](std::vector<llama_token> & to, bool wanted, llama_token id) {
        if (wanted && vocab.contains(id)) {
            to.push_back(id);
        }
    };
    const llama_vocab * v = vocab.get();
    const llama_token end = vocab.contains(llama_vocab_eos(v)) ? llama_vocab_eos(v) : llama_vocab_sep(v);
    const std::vector<llama_token> words = plain_words(query_);
    add(before_, llama_vocab_get_add_bos(v), llama_vocab_bos(v));
    before_.insert(before_.end(), words.begin(), words.end());
    add(before_, llama_vocab_get_add_eos(v), end);
    add(before_, llama_vocab_get_add_sep(v), llama_vocab_sep(v));
    add(after_, llama_vocab_get_add_eos(v), end);
    if (before_.size() > limit) {
        throw context_overflow(before_.size(), limit);
    }
}

std::vector<llama_token> rerank_prompt::tokenize(std::string_view document) const {
    std::vector<llama_token> tokens = template_ == nullptr ? joined(document) : templated(document);
    if (tokens.size() > limit_) {
        throw context_overflow(tokens.size(), limit_);
    }
    return tokens;
}

std::vector<llama_token> rerank_prompt::plain_words(std::string_view text) const {
    vocab_.refuse_overlong(text, limit_, 0);
    return vocab_.tokenize(text, false, false);
}

std::vector<llama_token> rerank_prompt::joined(std::string_view document) const {
    const std::vector<llama_token> words = plain_words(document);
    std::vector<llama_token> tokens = before_;
    tokens.insert(tokens.end(), words.begin(), words.end());
    tokens.insert(tokens.end(), after_.begin(), after_.end());
    return tokens;
}

// Tokenized in one go, because tokens reach over the seams; but a control token's text in the query or the document is
// a piece of its own.
std::vector<llama_token> rerank_prompt::templated(std::string_view document) const {
    vocab_.refuse_overlong(document, limit_, 0);
    std::vector<llama_token> tokens;
    std::string piece;
    const auto end_piece = [&](bool parse_special) {
        const std::vector<llama_token> more = vocab_.tokenize(piece, false, parse_special);
        tokens.insert(tokens.end(), more.begin(), more.end());
        piece.clear();
    };
    const auto say = [&](std::string_view text) {
        for (size_t at = 0; at < text.size();) {
            const size_t control = control_at(text, at);
            if (control > 0) {
                end_piece(true);
                piece = text.substr(at, control);
                end_piece(false);
                at += control;
            } else {
                const size_t next = std::min(text.find_first_of(control_starts_, at + 1), text.size());
                piece += text.substr(at, next - at);
                at = next;
            }
        }
    };
    for (std::string_view rest = template_; !rest.empty();) {
        if (rest.substr(0, QUERY.size()) == QUERY) {
            say(query_);
            rest.remove_prefix(QUERY.size());
        } else if (rest.substr(0, DOCUMENT.size()) == DOCUMENT) {
            say(document);
            rest.remove_prefix(DOCUMENT.size());
        } else {
            piece += rest.front();
            rest.remove_prefix(1);
        }
    }
    end_piece(true);
    return tokens;
}

// The length of the control token's text that begins at `at`, 0 if none does.
size_t rerank_prompt::control_at(std::string_view text, size_t at) const {
    for (const std::string & control : vocab_.control_texts()) { // longest first
        if (text.compare(at, control.size(), control) == 0) {
            return control.size();
        }
    }
    return 0;
}

}  // namespace lm
