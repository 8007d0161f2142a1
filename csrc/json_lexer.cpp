#include "json_lexer.h"

#include <algorithm>

namespace lm {

static int hex_digit(uint8_t c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool read_json(const json_lexer & from, uint8_t byte, json_lexer & to, json_reading & read) {
    using part = json_lexer::part;
    using event = json_reading::event;
    to = from;
    read.n_ranges = 0;
    const auto may_become = [&](uint32_t first, uint32_t last) {
        if (first <= last) {
            read.ranges[read.n_ranges++] = {first, last};
        }
    };
    const auto whole = [&](uint32_t c) {
        to = {};
        to.in_string = true;
        to.raw = from.raw;
        read.character = c;
        read.what = event::character;
        return true;
    };
    if (!from.in_string) {
        read.what = event::structure;
        to.in_string = byte == '"';
        return byte < 0x80;
    }
    read.what = event::partial;
    switch (from.at) {
        case part::none:
            if (from.raw) {
                if (byte < 0x80) {
                    return byte != 0 && whole(byte);
                }
            } else if (byte == '"') {
                to = {};
                read.what = event::quote;
                return true;
            }
            if (byte == '\\') {
                to.at = part::escape;
                may_become(0, 0x1F);
                may_become('"', '"');
                may_become('\\', '\\');
                may_become(0x7F, LAST_CODE_POINT);
                return true;
            }
            if (byte < 0x20) {
                return false;
            }
            if (byte < 0x80) {
                return whole(byte);
            }
            if (byte < 0xC2 || byte > 0xF4) {
                return false;
            }
            to.at = part::utf8;
            to.length = uint8_t(byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4);
            to.n_left = uint8_t(to.length - 1);
            to.value = byte & (0x7Fu >> to.length);
            break;
        case part::utf8:
            if ((byte & 0xC0) != 0x80) {
                return false;
            }
            to.value = from.value << 6 | (byte & 0x3F);
            to.n_left--;
            break;
        case part::escape:
            switch (byte) {
                case '"': return whole('"');
                case '\\': return whole('\\');
                case 'b': return whole('\b');
                case 'f': return whole('\f');
                case 'n': return whole('\n');
                case 'r': return whole('\r');
                case 't': return whole('\t');
                case 'u': break;
                default: return false;
            }
            to.at = part::hex;
            to.value = 0;
            to.n_left = 4;
            may_become(0, 0x1F);
            may_become(0x7F, LAST_CODE_POINT);
            return true;
        case part::hex:
        case part::pair_hex: {
            const int digit = hex_digit(byte);
            if (digit < 0) {
                return false;
            }
            to.value = from.value << 4 | uint32_t(digit);
            to.n_left--;
            const uint32_t first = to.value << (4 * to.n_left);
            const uint32_t last = first | ((1u << (4 * to.n_left)) - 1);
            if (from.at == part::pair_hex) {
                const uint32_t low = std::max(first, 0xDC00u);
                const uint32_t high = std::min(last, 0xDFFFu);
                if (low > high) {
                    return false;
                }
                const uint32_t base = 0x10000 + ((from.high - 0xD800) << 10);
                if (to.n_left == 0) {
                    return whole(base + (to.value - 0xDC00));
                }
                may_become(base + low - 0xDC00, base + high - 0xDC00);
                return true;
            }
            if (to.n_left == 0) {
                const uint32_t c = to.value;
                if (c >= 0xD800 && c < 0xDC00) {
                    to.at = part::pair_escape;
                    to.high = c;
                    may_become(0x10000 + ((c - 0xD800) << 10), 0x10000 + ((c - 0xD800) << 10) + 0x3FF);
                    return true;
                }
                return (c < 0x20 || c >= 0x7F) && !(c >= 0xDC00 && c < 0xE000) ? whole(c) : false;
            }
            may_become(first, std::min(last, 0x1Fu));
            may_become(std::max(first, 0x7Fu), std::min(last, 0xD7FFu));
            may_become(std::max(first, 0xE000u), last);
            const uint32_t low = std::max(first, 0xD800u);
            const uint32_t high = std::min(last, 0xDBFFu);
            if (low <= high) {
                may_become(0x10000 + ((low - 0xD800) << 10), 0x10000 + ((high - 0xD800) << 10) + 0x3FF);
            }
            return read.n_ranges > 0;
        }
        case part::pair_escape:
        case part::pair_u:
            if (byte != (from.at == part::pair_escape ? '\\' : 'u')) {
                return false;
            }
            to.at = from.at == part::pair_escape ? part::pair_u : part::pair_hex;
            to.value = 0;
            to.n_left = 4;
            may_become(0x10000 + ((from.high - 0xD800) << 10), 0x10000 + ((from.high - 0xD800) << 10) + 0x3FF);
            return true;
    }
    // UTF-8
    static const uint32_t LEAST[] = {0, 0, 0x80, 0x800, 0x10000};
    if (to.n_left == 0) {
        return to.value >= LEAST[to.length] && to.value <= LAST_CODE_POINT && !(to.value >= 0xD800 && to.value < 0xE000) ? whole(to.value) : false;
    }
    const uint32_t first = std::max(to.value << (6 * to.n_left), LEAST[to.length]);
    const uint32_t last = std::min((to.value << (6 * to.n_left)) | ((1u << (6 * to.n_left)) - 1), LAST_CODE_POINT);
    if (first > last || (first >= 0xD800 && last < 0xE000)) {
        return false;
    }
    may_become(first, last);
    return true;
}

}  // namespace lm
