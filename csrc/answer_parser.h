// What llama.cpp knows of how answers are written (its common/chat.h), and how more is told to it.
#pragma once

#include "answer_format.h"

#include "chat.h"

#include <optional>
#include <string>

class common_chat_peg_builder;

namespace lm {

struct answer_parser {
    common_chat_format syntax = COMMON_CHAT_FORMAT_PEG_NATIVE; // chooses the reader of the parsed tree
    common_peg_arena tree;
};

// How an answer is read that must be JSON of a schema, for templates of which llama.cpp knows how tools are called but not
// how this is written. `plain` is what it says of their answers.
common_chat_params json_format(const common_chat_params & plain, const std::string & schema);

// The reasoning that may stand ahead of everything else; nothing if answers have none.
common_peg_parser reasoning_ahead(common_chat_peg_builder & p, const common_chat_params & plain);

// Answers are read by `parser` from here on, and its grammar rules them: from the beginning where a call is `required`, else
// from `begin` on.
void set_calls(common_chat_params & params, const common_peg_arena & parser, bool required, const std::string & begin);

// The grammar of the answers that `parser` reads, with the mark of a leaf for their content, all of which has one place then;
// nothing where there is no content.
std::optional<std::string> grammar_around_content(common_peg_arena parser);

}  // namespace lm
