// Pictures and sounds among the tokens of a sequence.
//
// Each cell that one takes is a negative number there, made of what is shown and of its place in it: equal cells are equal
// numbers, so that prefixes can be compared as those of text are. A picture is encoded whole, or in tiles, and a sound in
// windows: each of these is one span, which is computed and taken over whole.
#pragma once

#include "llama.h"

#include <cstddef>
#include <string>
#include <vector>

namespace lm {

struct media_span {
    size_t begin;    // the first of its cells, in the sequence
    size_t n_cells;
    llama_pos n_pos; // positions that it takes
    bool by_row = false; // its cells are told apart by row and column, and are all at one time: they take fewer positions

    size_t end() const { return begin + n_cells; }
};
using media_spans = std::vector<media_span>; // in order

inline bool is_media(llama_token token) { return token < 0; }

// The position of a cell that lies in no span or begins one; of the number of all cells: of what comes next.
llama_pos position_of(const media_spans & spans, size_t cell);
// The position that the memory holds for the last of the first `n` cells. Not 0.
llama_pos last_position(const media_spans & spans, size_t n);
// Without the span that the first `n` cells have only a part of.
size_t without_part(const media_spans & spans, size_t n);
// The span that `cell` is in; null if it is none's.
const media_span * span_at(const media_spans & spans, size_t cell);
// Cells from `cell`, which is text, to the next span, or to `end`.
size_t text_ahead(const media_spans & spans, size_t cell, size_t end);

// What stands for the cells of a span in a sequence; `key` names what is shown: 64 hexadecimal digits.
std::vector<llama_token> media_cells(const std::string & key, size_t n_cells);

}  // namespace lm
