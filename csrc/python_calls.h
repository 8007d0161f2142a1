// Calls in the manner of Python, which LFM2's models make between two marks: <|tool_call_start|>[name(key="value", n=3)]
// <|tool_call_end|>. Values are JSON of their schemas. Some of the family's templates list tools but show no calls.
#pragma once

#include "chat.h"
#include "conversation.h"

#include <string>

namespace lm {

// Whether `params`, which a template says of answers with tools, are of this kind.
bool are_python_calls(const common_chat_params & params);

// Writes the calls of `messages` into what was said with them, for a template that leaves them out.
void write_python_calls(conversation & messages);

// How an answer with such calls is read. `plain` is what llama.cpp says of it; `thinks`: reasoning may come first.
common_chat_params python_call_format(const common_chat_templates_inputs & inputs, const common_chat_params & plain, bool thinks);

}  // namespace lm
