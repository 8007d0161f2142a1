#include "chat_vocabulary.h"

#include "answer_parser.h"
#include "lazy_grammar.h"

using namespace lm;

static answer_format triggered_by(std::vector<common_grammar_trigger> triggers) {
    answer_format format;
    format.triggers = std::move(triggers);
    return format;
}

static const common_grammar_trigger WORD = {COMMON_GRAMMAR_TRIGGER_TYPE_WORD, "<tool_call>"};

// Where a trigger is found when `text` comes in pieces of `step` bytes: begin and end, or nothing.
static std::optional<std::pair<size_t, size_t>> found(const answer_format & format, const std::string & text, size_t step) {
    trigger_search search(format);
    for (size_t at = 0; at < text.size(); at += step) {
        const std::string_view piece = std::string_view(text).substr(at, step);
        if (const std::optional<size_t> length = search.push(piece)) {
            return std::make_pair(at + piece.size() - *length, at + piece.size());
        }
    }
    return std::nullopt;
}

TEST(a_trigger_word_is_found_wherever_it_is_split) {
    const std::string text = std::string(5000, 'x') + "<tool_<tool_call>\n{";
    const size_t begin = text.find("<tool_call>");
    for (size_t step = 1; step < 40; step++) {
        const auto at = found(triggered_by({WORD}), text, step);
        CHECK(at && at->first == begin);
        CHECK(at->second >= begin + 11 && at->second < begin + 11 + step);
    }
    CHECK(!found(triggered_by({WORD}), std::string(5000, 'x') + "<tool_call <tool", 3));
}

TEST(a_trigger_within_reasoning_does_not_count) {
    answer_format format = triggered_by({WORD});
    format.thinking_start = "<think>";
    format.thinking_ends = {"</think>"};
    const std::string text = "<think>not <tool_call> yet</think><tool_call>";
    for (size_t step = 1; step < 12; step++) {
        CHECK(found(format, text, step)->first == text.rfind("<tool_call>"));
    }
    CHECK(!found(format, "<think>not <tool_call> yet", 1));
    format.opening = "assistant\n<think>\n"; // the template has opened it
    CHECK(!found(format, "not <tool_call> yet", 1));
    CHECK(found(format, "so</think><tool_call>", 1));
    format.opening = "assistant\n<think>\n\n</think>\n";
    CHECK(found(format, "<tool_call>", 1));
}

TEST(a_trigger_pattern_is_found_as_the_grammar_would_find_it) {
    const answer_format harmony = triggered_by({
        {COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN, "^\\s+to$"},
        {COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN, "<\\|start\\|>assistant(<\\|channel\\|>(?:commentary|analysis)\\s+to)"},
    });
    CHECK(found(harmony, " to=functions.x", 1) == std::make_pair(size_t(0), size_t(3)));
    const std::string long_text = std::string(3000, 'y');
    CHECK(!found(harmony, long_text + " to", 1));
    const std::string later = long_text + "<|start|>assistant<|channel|>commentary to";
    CHECK(found(harmony, later, 1) == std::make_pair(later.rfind("<|channel|>"), later.size()));
    CHECK(!found(harmony, long_text + "<|start|>assistant<|channel|>final", 1));
    const answer_format headless = triggered_by({{COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN, "(?:^|@)( to=[a-z]+;)"}});
    CHECK(found(headless, " to=abc;", 1)->first == 0);
    CHECK(found(headless, long_text + "@ to=abc;", 1)->first == long_text.size() + 1);
    CHECK(!found(headless, long_text + " to=abc;", 1));
}

TEST(a_sleeping_grammar_wakes_with_the_text_from_its_trigger_on) {
    const chat_vocabulary tokens;
    answer_format format = triggered_by({WORD});
    format.grammar_lazy = true;
    format.compiled = compile_grammar(*tokens.vocab, "root ::= \"<tool_call>\" [0-9]+ \"</tool_call>\"");
    lazy_grammar sleeping(format, *tokens.vocab);
    const std::string text = std::string(300, '<') + "<tool_call>";
    matcher_ptr awake;
    for (const char c : text) {
        CHECK(!awake);
        awake = sleeping.push(tokens.byte(c));
    }
    CHECK(awake);
    const auto allowed = [&](char c) { return awake->allows(tokens.byte(c)); };
    CHECK(allowed('7') && !allowed('x') && !allowed('<'));
    CHECK(awake->accept(tokens.byte('7')));
    CHECK(allowed('8') && allowed('<'));
    CHECK(!sleeping.push(tokens.byte('7'))); // handed out once
}
