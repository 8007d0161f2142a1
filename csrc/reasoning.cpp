#include "reasoning.h"

#include <algorithm>

namespace lm {

static constexpr size_t CALL_SHARE = 4; // a quarter of the room is for the call: arguments are short beside thoughts

std::optional<size_t> thinking_limit(const answer_format & format, int32_t asked, size_t room) {
    const size_t limit = asked < 0 ? SIZE_MAX : size_t(asked);
    const size_t most = format.must_call ? std::min(limit, room - room / CALL_SHARE) : limit;
    return most == SIZE_MAX ? std::nullopt : std::optional(most);
}

std::unique_ptr<reasoning_budget> reasoning_budget::of(const answer_format & format, const vocabulary & vocab, size_t n_tokens) {
    if (format.thinking_start.empty() || format.thinking_ends.empty()) {
        return nullptr;
    }
    return std::unique_ptr<reasoning_budget>(new reasoning_budget(format, vocab, n_tokens));
}

reasoning_budget::reasoning_budget(const answer_format & format, const vocabulary & vocab, size_t n_tokens)
    : vocab_(vocab), start_(format.thinking_start), ends_(format.thinking_ends),
      forced_(vocab.tokenize(format.thinking_ends.front(), false, true)), left_(n_tokens) {
    look(format.opening);
}

void reasoning_budget::look(std::string_view piece) {
    window_ += piece;
    for (;;) {
        size_t at = std::string::npos;
        size_t length = 0;
        if (inside_) {
            for (const std::string & end : ends_) {
                const size_t found = window_.find(end);
                if (found < at) {
                    at = found;
                    length = end.size();
                }
            }
        } else {
            at = window_.find(start_);
            length = start_.size();
        }
        if (at == std::string::npos) {
            break;
        }
        inside_ = !inside_;
        n_forced_ = 0;
        window_.erase(0, at + length);
    }
    size_t longest = start_.size();
    for (const std::string & end : ends_) {
        longest = std::max(longest, end.size());
    }
    if (window_.size() > longest) {
        window_.erase(0, window_.size() - longest);
    }
}

std::optional<llama_token> reasoning_budget::next() const {
    const bool must = inside_ && left_ == 0 && n_forced_ < forced_.size();
    const bool is_whole = character_.empty() || n_forced_ > 0; // a character that has begun is finished first
    return must && is_whole ? std::optional(forced_[n_forced_]) : std::nullopt;
}

void reasoning_budget::push(llama_token id) {
    const bool was_inside = inside_;
    const bool was_forced = next() == id;
    const std::string piece = vocab_.special_piece(id);
    character_ += piece;
    std::string whole;
    decode_utf8(character_, whole);
    if (was_forced) {
        n_forced_++;
    } else if (was_inside && left_ > 0) {
        left_--;
    }
    look(piece);
}

}  // namespace lm
