// Rules of a GBNF as they are made, and the lists of members that arguments form in them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lm {

// What is not known how to spell: the tool is left as llama.cpp has it.
struct unknown_notation {};

class call_rules {
  public:
    using text_t = std::optional<std::string>; // nothing: there is nothing that could be written

    struct way {
        text_t first; // ahead of all others
        text_t next;  // behind another one
        bool required;
    };

    static std::string name_of(size_t rule) { return "lm-" + std::to_string(rule); }
    static std::string group(const std::string & text) { return "(" + text + ")"; }
    // One of these, as what can stand in a sequence.
    static text_t any_of(const std::vector<std::string> & ways);

    std::string text() const; // all of them
    // A rule that may be named before it is set. Throws unknown_notation, as all that adds rules, once they are too many.
    size_t begin();
    void set(size_t rule, std::string text) { rules_[rule] = std::move(text); }
    std::string add(std::string text); // and its name

    // From `least` to `most` members, each once, and all that are required.
    text_t in_any_order(const std::vector<way> & ways, uint32_t least, uint32_t most);
    // Likewise in this order, then any number of `others`. `lost` is set where they are too many to be counted.
    text_t in_order(const std::vector<way> & ways, uint32_t least, uint32_t most, const std::vector<way> & others, bool & lost);

  private:
    std::vector<std::string> rules_;
};

}  // namespace lm
