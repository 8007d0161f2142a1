// Prompts for a model to fill a gap in a text, written with the fill-in-the-middle tokens of its vocabulary.
#pragma once

#include "protocol.h"
#include "text.h"

#include <vector>

namespace lm {

// The prompt: what other files there are, then what stands before the gap, what after, and the mark that the middle comes now.
// With `fits`, what is farthest from the gap is left out if all of it does not leave room among `limit` tokens for an answer
// of `max_tokens` (-1: no limit); else throws context_overflow. Throws error("model_type") if the vocabulary has not the tokens.
std::vector<llama_token> write_infill(const infill_prompt & infill, const vocabulary & vocab, size_t limit, int32_t max_tokens);

}  // namespace lm
