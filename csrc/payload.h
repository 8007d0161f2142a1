// Writing JSON without a tree: enough for the event payloads, which are small and flat. Reading is common_json's work.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lm {

// Appends `text` as a JSON string. Bytes that are not UTF-8 must not reach it.
void append_json_string(std::string & out, std::string_view text);

// Appends `numbers`, all finite, as a JSON array, each with the digits that give back the same float.
void append_json_numbers(std::string & out, const std::vector<float> & numbers);

// Builds one flat object: json_object().add("done", 3).add("total", 9).text()
class json_object {
  public:
    json_object & add(std::string_view key, int64_t value);
    json_object & add(std::string_view key, int value) { return add(key, int64_t(value)); }
    json_object & add(std::string_view key, uint32_t value) { return add(key, int64_t(value)); }
    json_object & add(std::string_view key, uint64_t value) { return add(key, int64_t(value)); }
    json_object & add(std::string_view key, double value); // not finite: null
    json_object & add(std::string_view key, bool value);
    json_object & add(std::string_view key, std::string_view value);
    json_object & add(std::string_view key, const char * value) { return add(key, std::string_view(value)); }
    json_object & add_raw(std::string_view key, std::string_view json);

    std::string text() const { return out_ + "}"; }

  private:
    void add_key(std::string_view key);

    std::string out_ = "{";
};

}  // namespace lm
