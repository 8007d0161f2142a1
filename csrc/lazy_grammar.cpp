#include "lazy_grammar.h"

#include "answer_parser.h"
#include "error.h"

#include <algorithm>
#include <cctype>

namespace lm {

// Longer than any trigger, short enough for a regular expression that recurses per character.
static constexpr size_t WINDOW = 512;

static std::string escaped(const std::string & word) {
    std::string pattern;
    for (const char c : word) {
        if (std::string_view(".^$|()*+?[]{}\\").find(c) != std::string_view::npos) {
            pattern += '\\';
        }
        pattern += c;
    }
    return pattern;
}

static std::string anchored(const std::string & pattern) {
    return (pattern.empty() || pattern.front() != '^' ? "^" : "") + pattern +
           (pattern.empty() || pattern.back() != '$' ? "$" : "");
}

// The pattern as llama.cpp's grammar wants it.
static std::string to_pattern(const common_grammar_trigger & trigger) {
    switch (trigger.type) {
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN: return trigger.value;
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL: return anchored(trigger.value);
        default: return escaped(trigger.value);
    }
}

// The plain text that a pattern begins with.
static std::string literal_head(const std::string & pattern) {
    std::string head;
    for (size_t i = 0; i < pattern.size(); i++) {
        const bool is_escape = pattern[i] == '\\' && i + 1 < pattern.size();
        const char c = is_escape ? pattern[i + 1] : pattern[i];
        const bool plain = is_escape ? ispunct(static_cast<unsigned char>(c)) != 0
                                     : std::string_view(".^$|()*+?[]{}").find(c) == std::string_view::npos;
        if (!plain) {
            if (!is_escape && std::string_view("*?{").find(c) != std::string_view::npos && !head.empty()) {
                head.pop_back(); // may be repeated zero times
            }
            return c == '|' && !is_escape ? "" : head;
        }
        head += c;
        i += is_escape;
    }
    return head;
}

// ---- the search -----------------------------------------------------------------------------------------------------

trigger_search::trigger_search(const answer_format & format)
    : thinking_start_(format.thinking_start), thinking_ends_(format.thinking_ends) {
    for (const common_grammar_trigger & trigger : format.triggers) {
        if (trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD || trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN) {
            words_.push_back(trigger.value);
        } else {
            const std::string text = to_pattern(trigger);
            const bool whole = text.size() > 1 && text.front() == '^' && text.back() == '$';
            patterns_.push_back({std::regex(text), literal_head(text), whole});
        }
    }
    if (thinking_start_.empty() || thinking_ends_.empty()) {
        thinking_start_.clear();
        return;
    }
    const size_t start = format.opening.rfind(thinking_start_);
    thinking_ = start != std::string::npos &&
                std::none_of(thinking_ends_.begin(), thinking_ends_.end(), [&](const std::string & end) {
                    return format.opening.find(end, start + thinking_start_.size()) != std::string::npos;
                });
}

// The first place at or after `from` where one of `words` stands.
static std::pair<size_t, size_t> find_first(const std::string & text, const std::vector<std::string> & words, size_t from) {
    std::pair<size_t, size_t> first = {std::string::npos, 0};
    for (const std::string & word : words) {
        const size_t at = text.find(word, from);
        if (at < first.first) {
            first = {at, word.size()};
        }
    }
    return first;
}

// What a match that was searched from `from` on says of the text.
static size_t grammar_begin(const std::smatch & match, size_t from) {
    for (size_t i = 1; i < match.size(); i++) {
        if (match.length(i) > 0) {
            return from + size_t(match.position(i));
        }
    }
    return from + size_t(match.position(0));
}

std::optional<trigger_search::place> trigger_search::find_pattern(const pattern & p) const {
    std::smatch match;
    const auto found = [&](size_t from) { return place{from + size_t(match.position(0)), grammar_begin(match, from)}; };
    if (p.whole) {
        const bool fits = forgotten_ == 0 && floor_ == 0;
        return fits && std::regex_match(window_, match, p.expression) ? std::optional<place>(found(0)) : std::nullopt;
    }
    if (p.head.empty()) {
        const auto flags = forgotten_ + floor_ > 0 ? std::regex_constants::match_not_bol : std::regex_constants::match_default;
        const bool is_there = std::regex_search(window_.begin() + long(floor_), window_.end(), match, p.expression, flags);
        return is_there ? std::optional<place>(found(floor_)) : std::nullopt;
    }
    for (size_t at = window_.find(p.head, floor_); at != std::string::npos; at = window_.find(p.head, at + 1)) {
        if (std::regex_search(window_.begin() + long(at), window_.end(), match, p.expression,
                              std::regex_constants::match_continuous)) {
            return found(at);
        }
    }
    return std::nullopt;
}

std::optional<trigger_search::place> trigger_search::find_trigger(size_t before) const {
    size_t longest = 1;
    for (const std::string & word : words_) {
        longest = std::max(longest, word.size());
    }
    const size_t from = std::max(floor_, before >= longest ? before - longest + 1 : 0);
    const size_t word = find_first(window_, words_, from).first;
    place first = {word, word};
    for (const pattern & p : patterns_) {
        const std::optional<place> at = find_pattern(p);
        if (at && at->begin < first.begin) {
            first = *at;
        }
    }
    return first.begin == std::string::npos ? std::nullopt : std::optional<place>(first);
}

// Whether the reasoning ends in what is new; a trigger may begin with the tag that ends it.
bool trigger_search::leave_reasoning(size_t before) {
    size_t longest = 1;
    for (const std::string & end : thinking_ends_) {
        longest = std::max(longest, end.size());
    }
    const size_t from = std::max(floor_, before >= longest ? before - longest + 1 : 0);
    const auto [at, size] = find_first(window_, thinking_ends_, from);
    if (at == std::string::npos) {
        return false;
    }
    floor_ = at;
    thinking_ = false;
    return true;
}

std::optional<size_t> trigger_search::push(std::string_view piece) {
    if (window_.size() > 2 * WINDOW) {
        const size_t n = window_.size() - WINDOW;
        window_.erase(0, n);
        forgotten_ += n;
        floor_ -= std::min(floor_, n);
    }
    size_t before = window_.size();
    window_ += piece;
    for (;;) {
        if (thinking_ && !leave_reasoning(before)) {
            return std::nullopt;
        }
        const std::optional<place> trigger = find_trigger(before);
        size_t start = std::string::npos;
        if (!thinking_start_.empty()) {
            const size_t n = thinking_start_.size();
            start = window_.find(thinking_start_, std::max(floor_, before >= n ? before - n + 1 : 0));
        }
        if (trigger && trigger->begin <= start) {
            return window_.size() - trigger->grammar;
        }
        if (start == std::string::npos) {
            return std::nullopt;
        }
        thinking_ = true;
        floor_ = start + thinking_start_.size();
        before = std::max(before, floor_);
    }
}

// ---- the grammars ---------------------------------------------------------------------------------------------------

lazy_grammar::lazy_grammar(const answer_format & format, const vocabulary & vocab)
    : vocab_(vocab), search_(format), grammar_(std::make_unique<matcher>(format.compiled, vocab)) {}

matcher_ptr lazy_grammar::push(llama_token id) {
    if (!grammar_) {
        return nullptr;
    }
    const std::string piece = vocab_.special_piece(id);
    recent_.push_back({id, piece.size()});
    const std::optional<size_t> length = search_.push(piece);
    if (!length) {
        if (recent_.size() > 4 * WINDOW) {
            recent_.erase(recent_.begin(), recent_.end() - long(2 * WINDOW)); // more bytes than the search remembers
        }
        return nullptr;
    }
    return wake(*length) ? std::move(grammar_) : nullptr;
}

// Moves the grammar past the last `length` bytes; false if it forbids them.
bool lazy_grammar::wake(size_t length) {
    size_t bytes = 0;
    auto first = recent_.end();
    while (first != recent_.begin() && bytes < length) {
        bytes += (--first)->second;
    }
    bool fits = true;
    try {
        for (auto token = first; fits && token != recent_.end(); ++token) {
            if (token->second == 0) {
                continue; // it says nothing
            }
            const bool split = token == first && bytes > length; // it began ahead of the trigger
            fits = split ? grammar_->accept(std::string_view(vocab_.special_piece(token->first)).substr(bytes - length))
                         : grammar_->accept(token->first);
        }
    } catch (const error &) { // it costs too much to follow
        fits = false;
    }
    if (!fits) {
        grammar_.reset();
    }
    return fits;
}

matcher_ptr eager_grammar(const answer_format & format, const vocabulary & vocab) {
    auto grammar = std::make_unique<matcher>(format.compiled, vocab);
    const std::vector<llama_token> tokens = vocab.tokenize(format.opening, false, true);
    for (size_t i = 0; i < tokens.size(); i++) {
        const std::string piece = vocab.special_piece(tokens[i]);
        // some tokenizers put a space ahead of a text
        const bool has_space = i == 0 && !piece.empty() && isspace(static_cast<unsigned char>(piece[0])) &&
                               !isspace(static_cast<unsigned char>(format.opening[0]));
        const bool fits = has_space ? piece.size() == 1 || grammar->accept(std::string_view(piece).substr(1)) : grammar->accept(tokens[i]);
        if (!fits) {
            throw invalid_request(!format.tools.empty() ? "tools" : format.content_is_json ? "response_format" : "grammar",
                                  "the chat template begins answers in a way that rules this out");
        }
    }
    return grammar;
}

}  // namespace lm
