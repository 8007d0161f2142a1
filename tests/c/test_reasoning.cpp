// The limit on reasoning: when the mark that ends it has to come, token by token.
#include "reasoning.h"
#include "answer_parser.h"
#include "chat_vocabulary.h"
#include "check.h"

using namespace lm;

static const chat_vocabulary & tokens() {
    static const chat_vocabulary all;
    return all;
}

static answer_format format_with(const char * opening) {
    answer_format format;
    format.opening = opening;
    format.thinking_start = "<think>";
    format.thinking_ends = {"</think>"};
    return format;
}

// Lets a model say `text` byte by byte: what there is at the end, with what had to come in its place.
static std::string say(const answer_format & format, size_t n_tokens, const std::string & text) {
    const auto budget = reasoning_budget::of(format, *tokens().vocab, n_tokens);
    CHECK(budget);
    std::string said;
    size_t at = 0;
    while (at < text.size()) {
        const std::optional<llama_token> must = budget->next();
        const llama_token id = must ? *must : tokens().byte(text[at++]);
        said += tokens().vocab->special_piece(id);
        budget->push(id);
        CHECK(said.size() < 1000);
    }
    return said;
}

TEST(reasoning_that_the_template_opens_ends_at_its_limit) {
    const answer_format format = format_with("<|im_start|>assistant\n<think>\n");
    CHECK(say(format, 0, "Yes.") == "</think>Yes.");
    CHECK(say(format, 3, "Hm so Yes.") == "Hm </think>so Yes.");
    CHECK(say(format, 100, "Hm.</think>Yes.") == "Hm.</think>Yes.");
    CHECK(say(format, 11, "Hm.</think>Yes.") == "Hm.</think>Yes."); // the mark's own bytes are the last
}

TEST(reasoning_that_the_model_opens_ends_at_its_limit) {
    const answer_format format = format_with("<|im_start|>assistant\n");
    CHECK(say(format, 0, "Yes, of course.") == "Yes, of course.");
    CHECK(say(format, 0, "<think>Yes.") == "<think></think>Yes.");
    CHECK(say(format, 2, "<think>abcdef") == "<think>ab</think>cdef");
    CHECK(say(format, 10, "<think>ab</think>c<think>defg") == "<think>ab</think>c<think></think>defg"); // one limit for all of it
}

TEST(a_closed_opening_has_no_reasoning_left_to_limit) {
    CHECK(say(format_with("<think>\n\n</think>\n\n"), 0, "Yes.") == "Yes.");
}

TEST(a_character_that_has_begun_is_finished_before_reasoning_ends) {
    CHECK(say(format_with("<think>"), 1, "\xC3\xA9!") == "\xC3\xA9</think>!");
    CHECK(say(format_with("<think>"), 2, "\xE4\xB8\xAD!") == "\xE4\xB8\xAD</think>!");
}

TEST(answers_without_marks_for_reasoning_have_no_budget) {
    CHECK(!reasoning_budget::of(answer_format(), *tokens().vocab, 5));
}
