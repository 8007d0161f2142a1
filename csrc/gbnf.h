// GBNF, llama.cpp's notation of grammars, read into the table that a matcher walks. This is the one reading of it: what a
// text would cost is counted while it is read, not guessed from its looks before.
#pragma once

#include "grammar.h"

#include <stdexcept>
#include <string>

namespace lm {

// Why a GBNF text is refused; whose text it is, the caller knows.
struct gbnf_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Means what llama.cpp's parser makes of it, but for what that gets wrong: an upper bound of a repetition that is large stays
// a bound, one below the lower bound is refused, and text that is not UTF-8 is. Recurses as deep as parentheses may nest.
// `vocab` is for tokens that are written as <text>. Throws gbnf_error. Left recursion is not looked for.
// The marks of `leaves` (csrc/grammar.h) are read as such.
grammar parse_gbnf(const vocabulary & vocab, const std::string & text, const std::vector<grammar_leaf> & leaves = {});

}  // namespace lm
