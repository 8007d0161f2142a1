// Regular expressions as JSON schemas have them (ECMA-262, with the u flag's idea of a character) as automata. Whatever is no
// regular language, or is not read here, is refused: back references, word boundaries, look-around but for look-ahead at the
// beginning, properties of characters.
#pragma once

#include "automaton.h"

#include <string>

namespace lm {

// The texts in which the expression finds a match, or with `whole` those that it matches from end to end.
// Throws automaton_error, a malformed_error for what nobody could read.
automaton_ptr compile_regex(const std::string & expression, bool whole = false);

// Whether it can be read at all; it may still be beyond what automata can do.
bool is_regex(const std::string & expression);

}  // namespace lm
