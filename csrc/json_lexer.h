// The bytes of a JSON text read as characters: which of them a string's have become, or may still become. Characters of ASCII
// stand for themselves or are written as the short escape that JSON has for them.
#pragma once

#include "automaton.h"

#include <cstddef>
#include <cstdint>

namespace lm {

// What of a character has been written.
struct json_lexer {
    enum class part : uint8_t { none, utf8, escape, hex, pair_escape, pair_u, pair_hex };
    bool in_string = false;
    bool raw = false; // the string has neither quotes nor escapes, and ends with the text
    part at = part::none;
    uint8_t n_left = 0;
    uint8_t length = 0;
    uint32_t value = 0;
    uint32_t high = 0; // the first half of a surrogate pair
};

// What one byte was.
struct json_reading {
    enum class event : uint8_t { partial, character, quote, structure };
    event what = event::structure;
    uint32_t character = 0; // that is whole now
    code_range ranges[4];   // that a partial one may become
    size_t n_ranges = 0;
};

// False if no text goes on with that byte. Of what is outside of strings it knows quotes alone.
bool read_json(const json_lexer & from, uint8_t byte, json_lexer & to, json_reading & read);

}  // namespace lm
