#include "json_value.h"

namespace lm {

const json_value * json_value::find(std::string_view name) const {
    for (size_t i = members.size(); i-- > 0;) {
        if (members[i].first == name) {
            return &members[i].second;
        }
    }
    return nullptr;
}

void append_utf8(std::string & text, uint32_t c) {
    if (c < 0x80) {
        text += char(c);
    } else if (c < 0x800) {
        text += char(0xC0 | c >> 6);
        text += char(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        text += char(0xE0 | c >> 12);
        text += char(0x80 | (c >> 6 & 0x3F));
        text += char(0x80 | (c & 0x3F));
    } else {
        text += char(0xF0 | c >> 18);
        text += char(0x80 | (c >> 12 & 0x3F));
        text += char(0x80 | (c >> 6 & 0x3F));
        text += char(0x80 | (c & 0x3F));
    }
}

std::vector<uint32_t> code_points(std::string_view text) {
    std::vector<uint32_t> all;
    for (size_t i = 0; i < text.size();) {
        const uint8_t lead = uint8_t(text[i]);
        const size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
        uint32_t value = length == 1 ? lead : lead & (0x7Fu >> length);
        for (size_t k = 1; k < length && i + k < text.size(); k++) {
            value = value << 6 | (uint8_t(text[i + k]) & 0x3F);
        }
        all.push_back(value);
        i += length;
    }
    return all;
}

namespace {

class reader {
  public:
    reader(std::string_view text, int max_depth) : text_(text), max_depth_(max_depth) {}

    json_value read_all() {
        json_value value = read(0);
        skip_blanks();
        if (at_ != text_.size()) {
            fail("something follows the value");
        }
        return value;
    }

  private:
    [[noreturn]] void fail(const char * why) const { throw json_error(std::string(why) + " at byte " + std::to_string(at_)); }

    void skip_blanks() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
            at_++;
        }
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    void expect(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) {
            fail("no JSON");
        }
        at_ += word.size();
    }

    json_value read(int depth) {
        if (depth > max_depth_) {
            fail("nested too deep");
        }
        skip_blanks();
        json_value value;
        switch (peek()) {
            case 'n': expect("null"); break;
            case 't': expect("true"); value.what = json_value::kind::boolean; value.truth = true; break;
            case 'f': expect("false"); value.what = json_value::kind::boolean; break;
            case '"': value.what = json_value::kind::string; value.text = read_string(); break;
            case '[': read_array(value, depth); break;
            case '{': read_object(value, depth); break;
            default: read_number(value);
        }
        return value;
    }

    void read_array(json_value & value, int depth) {
        value.what = json_value::kind::array;
        at_++;
        skip_blanks();
        if (peek() == ']') {
            at_++;
            return;
        }
        for (;;) {
            value.items.push_back(read(depth + 1));
            skip_blanks();
            if (peek() == ']') {
                at_++;
                return;
            }
            expect(",");
        }
    }

    void read_object(json_value & value, int depth) {
        value.what = json_value::kind::object;
        at_++;
        skip_blanks();
        if (peek() == '}') {
            at_++;
            return;
        }
        for (;;) {
            skip_blanks();
            if (peek() != '"') {
                fail("a name is expected");
            }
            std::string name = read_string();
            skip_blanks();
            expect(":");
            value.members.emplace_back(std::move(name), read(depth + 1));
            skip_blanks();
            if (peek() == '}') {
                at_++;
                return;
            }
            expect(",");
        }
    }

    void read_number(json_value & value) {
        value.what = json_value::kind::number;
        const size_t begin = at_;
        const auto digits = [&] {
            const size_t first = at_;
            while (peek() >= '0' && peek() <= '9') {
                at_++;
            }
            if (at_ == first) {
                fail("no JSON");
            }
        };
        if (peek() == '-') {
            at_++;
        }
        digits();
        if (peek() == '.') {
            at_++;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            at_++;
            if (peek() == '+' || peek() == '-') {
                at_++;
            }
            digits();
        }
        value.text = std::string(text_.substr(begin, at_ - begin));
    }

    uint32_t read_hex() {
        uint32_t value = 0;
        for (int i = 0; i < 4; i++) {
            const char c = peek();
            const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
            if (digit < 0) {
                fail("no hexadecimal digit");
            }
            value = value << 4 | uint32_t(digit);
            at_++;
        }
        return value;
    }

    std::string read_string() {
        std::string text;
        at_++;
        for (;;) {
            if (at_ >= text_.size()) {
                fail("a string has no end");
            }
            const char c = text_[at_++];
            if (c == '"') {
                return text;
            }
            if (uint8_t(c) < 0x20) {
                fail("a control character in a string");
            }
            if (c != '\\') {
                text += c;
                continue;
            }
            switch (at_ < text_.size() ? text_[at_++] : '\0') {
                case '"': text += '"'; break;
                case '\\': text += '\\'; break;
                case '/': text += '/'; break;
                case 'b': text += '\b'; break;
                case 'f': text += '\f'; break;
                case 'n': text += '\n'; break;
                case 'r': text += '\r'; break;
                case 't': text += '\t'; break;
                case 'u': {
                    uint32_t code = read_hex();
                    if (code >= 0xD800 && code < 0xDC00 && text_.substr(at_, 2) == "\\u") {
                        at_ += 2;
                        const uint32_t low = read_hex();
                        if (low < 0xDC00 || low > 0xDFFF) {
                            fail("half a surrogate pair");
                        }
                        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                    } else if (code >= 0xD800 && code < 0xE000) {
                        code = 0xFFFD; // it can be no text
                    }
                    append_utf8(text, code);
                    break;
                }
                default: fail("an unknown escape");
            }
        }
    }

    std::string_view text_;
    size_t at_ = 0;
    int max_depth_;
};

}  // namespace

json_value parse_json(std::string_view text, int max_depth) {
    return reader(text, max_depth).read_all();
}

}  // namespace lm
