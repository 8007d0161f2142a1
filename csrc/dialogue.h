// Conversations to prompts, through the model's own chat template (llama.cpp's common/chat.h does the rendering).
// What a message says is text: a control token of the vocabulary that is written in a message stays text.
#pragma once

#include "text.h"

#include <memory>
#include <string>
#include <vector>

struct common_chat_templates;
class common_json;

namespace lm {

class dialogue {
  public:
    // Compiles the template of `model`. A template that does not compile is kept as `problem()`.
    dialogue(const llama_model * model, const vocabulary & vocab);
    ~dialogue();

    bool has_template() const { return explicit_; } // false: the model brings none, ChatML stands in
    const std::string & problem() const { return problem_; }

    // `messages` is an array of {"role", "content"}; `kwargs` an object of template variables.
    // Throws invalid_request("messages") with the template's word for what is wrong.
    std::string render(const common_json & messages, const common_json & kwargs) const;
    // Throws context_overflow unless the prompt has fewer than `limit` tokens.
    std::vector<llama_token> tokenize(const common_json & messages, const common_json & kwargs, size_t limit) const;

  private:
    std::string render_marked(const common_json & messages, const common_json & kwargs) const;
    std::string mark_controls(const std::string & text) const;

    const vocabulary & vocab_; // borrowed from the model
    std::shared_ptr<common_chat_templates> templates_;
    bool explicit_ = false;
    std::string problem_;
    bool control_starts_[256] = {};
};

}  // namespace lm
