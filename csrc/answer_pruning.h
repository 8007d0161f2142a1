// What an answer may hold of which something is asked: thoughts, in one stretch, and that. Words beside it could go on without an
// end, and llama.cpp lets them.
#pragma once

#include "call_tree.h"

#include <optional>

namespace lm {

// Takes all content out of a tree by which answers are read, with what only frames it, and all but one of the stretches of
// thought: calls are left.
void leave_calls_alone(common_peg_arena & parser);

// Likewise all but the last place where content may be, which an answer then has; that place, or nothing if there is none.
std::optional<parser_id> leave_one_content(common_peg_arena & parser);

}  // namespace lm
