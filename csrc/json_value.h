// JSON as a schema has it: objects keep their order, numbers stay the text that was written, so that nothing is rounded.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lm {

struct json_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct json_value {
    enum class kind : uint8_t { null, boolean, number, string, array, object };

    kind what = kind::null;
    bool truth = false;
    std::string text; // a string's UTF-8, a number as it is written
    std::vector<json_value> items;
    std::vector<std::pair<std::string, json_value>> members;

    bool is_object() const { return what == kind::object; }
    bool is_array() const { return what == kind::array; }
    bool is_string() const { return what == kind::string; }
    bool is_number() const { return what == kind::number; }
    bool is_boolean() const { return what == kind::boolean; }
    // The member of that name (the last one, as everywhere), null if there is none or this is no object.
    const json_value * find(std::string_view name) const;
};

// Throws json_error for what is no JSON, or nests deeper than `max_depth`.
json_value parse_json(std::string_view text, int max_depth = 256);

void append_utf8(std::string & text, uint32_t code_point);
// The code points of valid UTF-8.
std::vector<uint32_t> code_points(std::string_view text);

}  // namespace lm
