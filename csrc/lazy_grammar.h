// Grammars that sleep until a trigger stands in the answer. llama.cpp's own lazy grammar runs its patterns over the whole
// answer at every token; here a token costs a look at the last few bytes, and the grammar wakes with the tokens from the
// trigger on.
#pragma once

#include "answer_format.h"
#include "sampler.h"

#include <deque>
#include <optional>
#include <regex>

namespace lm {

// Looks for the first trigger in a text that grows. Not within reasoning.
class trigger_search {
  public:
    explicit trigger_search(const answer_format & format);

    // Appends to the text; once a trigger is there, how many of the last bytes the grammar is about: those of the trigger,
    // or of the first group of its pattern that is not empty.
    std::optional<size_t> push(std::string_view piece);

  private:
    struct pattern {
        std::regex expression;
        std::string head; // what every match begins with, as far as it is plain text
        bool whole;       // it describes the whole answer, which must be short for that
    };

    struct place {
        size_t begin;   // of the trigger, in the window
        size_t grammar; // where the grammar begins
    };

    std::optional<place> find_trigger(size_t before) const;
    std::optional<place> find_pattern(const pattern & p) const;
    bool leave_reasoning(size_t before);

    std::vector<std::string> words_;
    std::vector<pattern> patterns_;
    std::string thinking_start_;
    std::vector<std::string> thinking_ends_;
    bool thinking_ = false;
    std::string window_;     // the end of the text
    size_t forgotten_ = 0;   // bytes of the text ahead of the window
    size_t floor_ = 0;       // of the window: a trigger begins here or later
};

class lazy_grammar {
  public:
    lazy_grammar(const answer_format & format, const vocabulary & vocab);

    // Takes note of a sampled token. Once a trigger is complete: the grammar, awake, exactly once. Null until then, and if
    // what stands after the trigger violates the grammar already.
    matcher_ptr push(llama_token id);

  private:
    bool wake(size_t length);

    const vocabulary & vocab_; // borrowed
    trigger_search search_;
    matcher_ptr grammar_; // null: handed out
    std::deque<std::pair<llama_token, size_t>> recent_; // the last tokens, and the bytes of each
};

// A grammar that rules the answer from its first token; what the template has written of the answer is behind it.
// Throws invalid_request if it does not allow that.
matcher_ptr eager_grammar(const answer_format & format, const vocabulary & vocab);

}  // namespace lm
