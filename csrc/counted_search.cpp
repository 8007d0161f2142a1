#include "counted_search.h"

#include "budget.h"

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

namespace lm {

// Bytes that are looked at in about the time of an allocation.
static constexpr size_t BYTES_PER_STEP = 256;

// A shorter part is sought by the library: it compares no more than this many bytes at each place.
static constexpr size_t SHORT_PART = 64;

// Longer texts are handed to it in pieces, so that the clock is looked at between.
static constexpr size_t PIECE = 256u << 10;

static void count_bytes(size_t n) {
    for (size_t i = 0; i <= n / BYTES_PER_STEP; i++) {
        count_step();
    }
}

static size_t find_short(const std::string & text, const std::string & part, size_t from) {
    while (from <= text.size()) {
        const size_t n = std::min(PIECE, text.size() - from);
        const size_t found = std::string_view(text).substr(from, n).find(part);
        count_bytes(found == std::string::npos ? n : found);
        if (found != std::string::npos) {
            return from + found;
        }
        if (from + n == text.size()) {
            break;
        }
        from += n - (part.size() - 1); // one may lie across the end
    }
    return std::string::npos;
}

// Of each beginning of `part`, how long the longest shorter beginning is that it ends with.
template <typename Iterator> static std::vector<uint32_t> borders_of(Iterator part, size_t n) {
    std::vector<uint32_t> borders(n, 0);
    uint32_t border = 0;
    for (size_t i = 1; i < n; i++) {
        while (border > 0 && part[ptrdiff_t(i)] != part[ptrdiff_t(border)]) {
            border = borders[border - 1];
        }
        border += part[ptrdiff_t(i)] == part[ptrdiff_t(border)] ? 1 : 0;
        borders[i] = border;
        if (i % BYTES_PER_STEP == 0) {
            count_step();
        }
    }
    return borders;
}

// How many of the `n_text` bytes from `text` on lie before the end of the first `part` there; npos: it is not there.
template <typename Iterator> static size_t end_of_first(Iterator text, size_t n_text, Iterator part, size_t n_part) {
    const std::vector<uint32_t> borders = borders_of(part, n_part);
    size_t matched = 0;
    for (size_t i = 0; i < n_text; i++) {
        while (matched > 0 && text[ptrdiff_t(i)] != part[ptrdiff_t(matched)]) {
            matched = borders[matched - 1];
        }
        matched += text[ptrdiff_t(i)] == part[ptrdiff_t(matched)] ? 1 : 0;
        if (matched == n_part) {
            return i + 1;
        }
        if (i % BYTES_PER_STEP == 0) {
            count_step();
        }
    }
    return std::string::npos;
}

size_t find_counted(const std::string & text, const std::string & part, size_t from) {
    if (part.size() <= SHORT_PART) {
        return part.empty() ? text.find(part, from) : find_short(text, part, from);
    }
    if (from > text.size() || text.size() - from < part.size()) {
        return std::string::npos;
    }
    const size_t end = end_of_first(text.begin() + ptrdiff_t(from), text.size() - from, part.begin(), part.size());
    return end == std::string::npos ? end : from + end - part.size();
}

size_t rfind_counted(const std::string & text, const std::string & part) {
    if (part.empty() || text.size() < part.size()) {
        return text.rfind(part);
    }
    const size_t end = end_of_first(text.rbegin(), text.size(), part.rbegin(), part.size());
    return end == std::string::npos ? end : text.size() - end;
}

void replace_counted(std::string & text, const std::string & part, const std::string & by) {
    std::string replaced;
    size_t from = 0;
    for (size_t at = 0; (at = find_counted(text, part, from)) != std::string::npos; from = at + part.size()) {
        replaced.append(text, from, at - from);
        replaced += by;
    }
    if (from > 0) {
        replaced.append(text, from);
        text = std::move(replaced);
    }
}

}  // namespace lm
