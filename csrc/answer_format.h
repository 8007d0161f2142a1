// How the answers of one template are written: the parsers that split a text into reasoning, content and tool calls, and
// the grammar that keeps the calls well-formed. Built by `chat_template`, immutable, shared by the requests that agree on it.
#pragma once

#include "grammar.h"
#include "text.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

struct common_grammar_trigger;

namespace lm {

struct answer_parser;

// To make, copy or destroy one takes `answer_parser.h`.
struct answer_format {
    std::vector<answer_parser> parsers;    // tried in this order
    std::string opening;                   // what is written of the answer already; the parsers begin there
    std::string begun_reasoning;           // of that, what is reasoning and content: an answer that is gone on with
    std::string begun_content;
    std::vector<std::string> tools;        // the names a call may have
    bool content_is_json = false;          // a schema rules the content
    bool one_call = false;                 // the answer is over with its first call
    bool must_call = false;                // it has one

    grammar_ptr compiled;      // the grammar that it obeys; null: none
    std::vector<std::string> loosened; // tools of which that says less than their schemas, for the notation that calls have
    bool grammar_lazy = false; // it applies from a trigger on
    std::vector<common_grammar_trigger> triggers;
    std::string thinking_start; // within these no trigger counts
    std::vector<std::string> thinking_ends;

    std::vector<std::string> stops;    // texts that end the answer and do not belong to it
    std::vector<llama_token> visible;  // control tokens whose text belongs to the answer, ascending
    std::vector<std::string> tags;     // what can end a stretch of reasoning or content, the stops among it
};

// What the parsers say of an answer, or of the part of it that is there.
struct parsed_answer {
    struct tool_call {
        std::string name;
        std::string arguments;
        size_t end = 0;        // where its text ends
        bool complete = false; // nothing of it can follow
    };
    enum class stretch { none, reasoning, content };

    std::string reasoning;
    std::string content;
    std::vector<tool_call> calls;
    std::vector<std::pair<size_t, size_t>> reasoning_spans; // of the text, and so are those of the content
    std::vector<std::pair<size_t, size_t>> content_spans;
    size_t text_end = 0;            // where the last reasoning or content ends
    stretch last = stretch::none;   // the kind of that
    bool calls_follow = false;      // a call, or the start of one, comes after that
};

// Fills `into` from the text of an answer; false if it does not match. `whole`: no more text comes, so that what is
// unfinished does not match either. Recurses as deep as the text nests.
bool parse_answer(const answer_format & format, const std::string & text, bool whole, parsed_answer & into);

// Fills in `tags` and `visible`, which follow from the rest.
void derive(answer_format & format, const vocabulary & vocab);

}  // namespace lm
