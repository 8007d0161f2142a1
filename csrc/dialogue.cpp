#include "dialogue.h"

#include "error.h"

#include "chat.h"
#include "json.h"
#include "log.h"

namespace lm {

// Unicode noncharacters: no template looks for them, no text legitimately holds them. Between the two, what a message
// wrote looks like a control token and must be tokenized as text.
static const std::string LITERAL_BEGIN = "\xEF\xB7\x90";
static const std::string LITERAL_END = "\xEF\xB7\x91";

// Both marks have the same length and differ in their last byte alone. One pass: a hostile message is a million marks.
static std::string without_marks(const std::string & text) {
    const std::string common = LITERAL_BEGIN.substr(0, LITERAL_BEGIN.size() - 1);
    std::string kept;
    size_t copied = 0;
    for (size_t at = text.find(common); at != std::string::npos; at = text.find(common, at)) {
        if (text.compare(at, LITERAL_BEGIN.size(), LITERAL_BEGIN) == 0 || text.compare(at, LITERAL_END.size(), LITERAL_END) == 0) {
            kept.append(text, copied, at - copied);
            at = copied = at + LITERAL_BEGIN.size();
        } else {
            at++;
        }
    }
    return kept.append(text, copied, std::string::npos);
}

dialogue::dialogue(const llama_model * model, const vocabulary & vocab) : vocab_(vocab) {
    for (const std::string & text : vocab.control_texts()) {
        control_starts_[static_cast<unsigned char>(text[0])] = true;
    }
    try {
        templates_ = common_chat_templates_init(model, "");
        explicit_ = common_chat_templates_was_explicit(templates_.get());
    } catch (const std::exception & e) {
        problem_ = e.what();
    }
}

dialogue::~dialogue() = default;

std::string dialogue::mark_controls(const std::string & text) const {
    std::string marked;
    size_t copied = 0;
    for (size_t at = 0; at < text.size(); at++) {
        if (!control_starts_[static_cast<unsigned char>(text[at])]) {
            continue;
        }
        for (const std::string & control : vocab_.control_texts()) {
            if (text.compare(at, control.size(), control) == 0) {
                marked.append(text, copied, at - copied);
                marked += LITERAL_BEGIN + control + LITERAL_END;
                at += control.size() - 1;
                copied = at + 1;
                break;
            }
        }
    }
    return copied == 0 ? text : marked.append(text, copied, std::string::npos);
}

std::string dialogue::render_marked(const common_json & messages, const common_json & kwargs) const {
    if (!templates_) {
        throw invalid_request("messages", "the model's chat template was rejected: " + problem_);
    }
    try {
        common_chat_templates_inputs inputs;
        inputs.messages = common_chat_msgs_parse_oaicompat(messages);
        for (common_chat_msg & message : inputs.messages) {
            message.content = mark_controls(without_marks(message.content));
            for (common_chat_msg_content_part & part : message.content_parts) {
                part.text = mark_controls(without_marks(part.text));
            }
        }
        for (const auto & [name, value] : kwargs.items()) {
            inputs.chat_template_kwargs[name] = value.dump();
            if (name == "enable_thinking" && value.is_boolean()) {
                inputs.enable_thinking = value.get<bool>();
            }
        }
        inputs.force_pure_content = true; // the answer is plain text; no parser for it has to be derived
        return common_chat_templates_apply(templates_.get(), inputs).prompt;
    } catch (const std::exception & e) {
        throw invalid_request("messages", std::string("the chat template refuses this conversation: ") + e.what());
    }
}

std::string dialogue::render(const common_json & messages, const common_json & kwargs) const {
    return without_marks(render_marked(messages, kwargs));
}

std::vector<llama_token> dialogue::tokenize(const common_json & messages, const common_json & kwargs, size_t limit) const {
    if (messages.size() >= limit) { // each is a token at least; rendering them all could take seconds
        throw context_overflow(messages.size() + 1, limit);
    }
    const std::string prompt = render_marked(messages, kwargs);
    if (prompt.find(LITERAL_BEGIN) == std::string::npos) {
        return vocab_.tokenize_within(prompt, limit, 1); // and one to answer with
    }
    vocab_.tokenize_within(without_marks(prompt), limit, 1); // of about the same size
    std::vector<llama_token> tokens;
    if (llama_vocab_get_add_bos(vocab_.get())) {
        tokens.push_back(llama_vocab_bos(vocab_.get()));
    }
    const auto append = [&](const std::string & text, bool parse_special) {
        const std::vector<llama_token> more = vocab_.tokenize(without_marks(text), false, parse_special);
        tokens.insert(tokens.end(), more.begin(), more.end());
    };
    size_t at = 0;
    while (at < prompt.size()) {
        const size_t begin = std::min(prompt.find(LITERAL_BEGIN, at), prompt.size());
        append(prompt.substr(at, begin - at), true);
        const size_t end = std::min(prompt.find(LITERAL_END, begin), prompt.size());
        append(prompt.substr(begin, end - begin), false);
        at = end;
    }
    return tokens;
}

}  // namespace lm
