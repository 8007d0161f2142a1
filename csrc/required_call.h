// What an answer that has to call a tool may hold: thoughts, in one stretch, and calls. Words beside them could go on without an
// end, and llama.cpp lets them.
#pragma once

#include "call_tree.h"

namespace lm {

// Takes all content out of a tree by which answers are read, with what only frames it, and all but one of the stretches of
// thought.
void leave_calls_alone(common_peg_arena & parser);

}  // namespace lm
