// What rules the calls of tools: the grammar of the very tree that reads them (llama.cpp's, which knows how each family writes calls),
// with what a tool's schema allows in the place of each argument, and of all of them together.
//
// JSON is matched by the schema itself, and so are texts without quotes whose length is bounded; other texts are automata, and
// arguments that are not JSON as a whole (tags, Gemma's own objects) are rules made of the compiled schema. There they come in any
// order as long as they are few, each once.
#pragma once

#include "grammar.h"

#include "chat.h"

#include <string>
#include <utility>
#include <vector>

namespace lm {

struct tool_rules {
    std::string name;
    schema_ptr arguments;
};

struct call_grammar {
    std::string gbnf;
    std::vector<grammar_leaf> leaves;
    std::vector<std::string> loosened; // tools of which not everything can be held to in this notation, by name
};

// `parser` reads answers with calls of `tools`; `lazy` as in llama.cpp: the grammar begins with a call.
call_grammar make_call_grammar(common_peg_arena parser, bool lazy, const std::vector<tool_rules> & tools);

// How calls are written, as far as it matters to what llama.cpp is told of their arguments.
enum class call_notation {
    json,   // all at once
    tagged, // one by one, texts without quotes
    nested, // likewise, and what is in them too
};
call_notation notation_of(const common_peg_arena & parser);

}  // namespace lm
