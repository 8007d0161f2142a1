// What llama.cpp is told of the arguments of tools.
#pragma once

#include "call_grammar.h"

#include <string>

namespace lm {

// The least that it must know of arguments to read them: their names and whether they are texts. It wants none of them, so that they
// are read in any order.
std::string outline_of(const schema & arguments, call_notation notation);

}  // namespace lm
