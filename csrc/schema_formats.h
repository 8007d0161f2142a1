// The values of `format` that are enforced, as automata.
#pragma once

#include "automaton.h"

#include <string>

namespace lm {

struct text_format {
    automaton_ptr words;
    uint32_t most; // code points
    bool exact; // holds all texts of the format: what is not in there is not of the format either
};

// Null words for a format that is not known. Thread safe.
text_format find_format(const std::string & name);

}  // namespace lm
