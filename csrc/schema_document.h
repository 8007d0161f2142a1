// A schema's text with everything in it that a reference can name.
#pragma once

#include "json_value.h"

#include <string>
#include <unordered_map>

namespace lm {

enum class schema_draft { before_2019, since_2019 };

class schema_document {
  public:
    // Throws json_error.
    explicit schema_document(const std::string & text) : schema_document(parse_json(text)) {}
    explicit schema_document(json_value root);
    schema_document(const schema_document &) = delete;

    const json_value & root() const { return root_; }
    schema_draft draft() const { return draft_; }
    bool knows(const json_value & object) const { return base_.count(&object) != 0; }
    // What a `$ref` at `from` names; null if it is not in here.
    const json_value * resolve(const json_value & from, const std::string & reference) const;

  private:
    void index(const json_value & at, const std::string & base, int depth);
    const json_value * follow(const json_value * at, const std::string & pointer) const;

    json_value root_;
    schema_draft draft_ = schema_draft::since_2019;
    std::unordered_map<std::string, const json_value *> named_;
    std::unordered_map<const json_value *, std::string> base_; // of each object
};

}  // namespace lm
