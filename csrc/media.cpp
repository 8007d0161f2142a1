#include "media.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace lm {

llama_pos position_of(const media_spans & spans, size_t cell) {
    llama_pos position = llama_pos(cell);
    for (const media_span & span : spans) {
        if (span.end() > cell) {
            break;
        }
        position += span.n_pos - llama_pos(span.n_cells);
    }
    return position;
}

llama_pos last_position(const media_spans & spans, size_t n) {
    const media_span * last = span_at(spans, n - 1);
    if (last == nullptr) {
        return position_of(spans, n - 1);
    }
    return position_of(spans, last->begin) + (last->by_row ? 0 : llama_pos(n - 1 - last->begin));
}

const media_span * span_at(const media_spans & spans, size_t cell) {
    for (const media_span & span : spans) {
        if (span.begin <= cell && cell < span.end()) {
            return &span;
        }
    }
    return nullptr;
}

size_t without_part(const media_spans & spans, size_t n) {
    const media_span * span = n > 0 ? span_at(spans, n - 1) : nullptr;
    return span != nullptr && span->end() > n ? span->begin : n;
}

size_t text_ahead(const media_spans & spans, size_t cell, size_t end) {
    for (const media_span & span : spans) {
        if (span.begin > cell) {
            return std::min(span.begin, end) - cell;
        }
    }
    return end - cell;
}

std::vector<llama_token> media_cells(const std::string & key, size_t n_cells) {
    uint64_t words[4] = {};
    for (size_t i = 0; i < 4 && 16 * (i + 1) <= key.size(); i++) {
        words[i] = strtoull(key.substr(16 * i, 16).c_str(), nullptr, 16);
    }
    std::vector<llama_token> cells;
    cells.reserve(n_cells);
    for (size_t i = 0; i < n_cells; i++) {
        // all of the key's digits within eight cells, then mixed with the place
        const uint64_t half = words[i / 2 % 4] >> (i % 2 * 32);
        const uint64_t mixed = i < 8 ? half : (half + i) * 0x9E3779B97F4A7C15ull >> 17;
        cells.push_back(-1 - llama_token(mixed & 0x7FFFFFFE));
    }
    return cells;
}

}  // namespace lm
