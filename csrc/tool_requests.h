// Tools for models whose template knows none: LM Studio's default format. The system prompt describes the tools, a call is
// [TOOL_REQUEST]{"name": ..., "arguments": {...}}[END_TOOL_REQUEST] in the answer, its result comes in a user's turn.
#pragma once

#include "chat.h"

#include <string>

namespace lm {

// Rewrites `inputs` so that a template without tools can render it: tools, calls and results become text.
void spell_tools(common_chat_templates_inputs & inputs);

// How an answer in that format is read. `plain` is what the template says of an answer without tools.
common_chat_params tool_request_format(const common_chat_templates_inputs & inputs, const common_chat_params & plain);

}  // namespace lm
