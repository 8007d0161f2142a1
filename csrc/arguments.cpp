#include "arguments.h"

#include "error.h"
#include "grammar.h"

#include "json.h"

#include <vector>

namespace lm {

static bool is_object(const std::string & text) {
    try {
        check_nesting(text, "arguments");
    } catch (const error &) {
        return false;
    }
    const common_json value = common_json::parse_no_throw(text);
    return !value.is_discarded() && value.is_object();
}

// Places where `text` may be cut so that closing what is open there makes whole JSON: in an open string that is a value,
// at its end; behind each whole value and each opening bracket. The last ones first.
struct cut {
    size_t length;
    std::string closers;
};

static std::string reversed(const std::string & brackets) {
    return std::string(brackets.rbegin(), brackets.rend());
}

static std::vector<cut> find_cuts(const std::string & text) {
    static constexpr size_t KEPT = 4; // behind the last of them is at most one unfinished member
    std::vector<cut> cuts;
    std::string open; // closing brackets of what is open
    const auto note = [&](size_t length, const std::string & first = "") {
        cuts.push_back({length, first + reversed(open)});
        if (cuts.size() > KEPT) {
            cuts.erase(cuts.begin());
        }
    };
    for (size_t i = 0; i < text.size(); i++) {
        switch (text[i]) {
            case '"': {
                size_t whole = i + 1; // behind the last whole character, escapes counted as one
                size_t at = whole;
                while (at < text.size() && text[at] != '"') {
                    const bool is_unicode = text[at] == '\\' && at + 1 < text.size() && text[at + 1] == 'u';
                    at += text[at] != '\\' ? 1 : is_unicode ? 6 : 2;
                    whole = at <= text.size() ? at : whole;
                }
                if (at >= text.size()) {
                    note(whole, "\"");
                    return cuts;
                }
                i = at;
                note(i + 1);
                break;
            }
            case '{':
            case '[':
                open += text[i] == '{' ? '}' : ']';
                note(i + 1);
                break;
            case '}':
            case ']':
                if (open.empty()) {
                    return cuts;
                }
                open.pop_back();
                note(i + 1);
                break;
            case ',':
                note(i);
                break;
            default:
                break;
        }
    }
    note(text.size());
    return cuts;
}

std::string mend_arguments(const std::string & text) {
    if (text.find_first_not_of(" \t\r\n") == std::string::npos) {
        return "{}"; // what some models write where there are no arguments
    }
    if (is_object(text)) {
        return text;
    }
    const std::vector<cut> cuts = find_cuts(text);
    for (auto it = cuts.rbegin(); it != cuts.rend(); ++it) {
        const std::string mended = text.substr(0, it->length) + it->closers;
        if (is_object(mended)) {
            return mended;
        }
    }
    return common_json::object({{"arguments", text}}).dump();
}

}  // namespace lm
