#include "answer_format.h"

#include "answer_parser.h"

#include "chat-peg-parser.h"

#include <algorithm>

namespace lm {

static std::unique_ptr<common_chat_peg_mapper> make_mapper(common_chat_format syntax, common_chat_msg & message) {
    switch (syntax) {
        case COMMON_CHAT_FORMAT_PEG_GEMMA4: return std::make_unique<common_chat_peg_gemma4_mapper>(message);
        case COMMON_CHAT_FORMAT_PEG_MINIMAX_M3: return std::make_unique<common_chat_peg_minimax_m3_mapper>(message);
        default: return std::make_unique<common_chat_peg_mapper>(message);
    }
}

// Where the parts of the tree stand in the text.
static void locate(const common_peg_ast_arena & tree, const common_peg_parse_result & result, size_t opening,
                   parsed_answer & into) {
    const auto place = [&](size_t at) { return at > opening ? at - opening : 0; };
    std::vector<std::pair<size_t, bool>> calls; // end, complete
    tree.visit(result, [&](const common_peg_ast_node & node) {
        const size_t end = place(node.end);
        if (node.tag == common_chat_peg_builder::REASONING || node.tag == common_chat_peg_builder::CONTENT) {
            const bool reasoning = node.tag == common_chat_peg_builder::REASONING;
            if (end > place(node.start)) {
                (reasoning ? into.reasoning_spans : into.content_spans).push_back({place(node.start), end});
            }
            if (end >= into.text_end && node.end > node.start) {
                into.text_end = end;
                into.last = reasoning ? parsed_answer::stretch::reasoning : parsed_answer::stretch::content;
                into.calls_follow = false;
            }
        } else if (node.tag == common_chat_peg_builder::TOOL) {
            calls.push_back({end, !node.is_partial});
            into.calls_follow = true;
        }
    });
    for (size_t i = 0; i < into.calls.size(); i++) {
        const bool followed = i + 1 < into.calls.size();
        into.calls[i].complete = followed || (i < calls.size() && calls[i].second);
        into.calls[i].end = i < calls.size() ? calls[i].first : 0;
    }
}

// What was there before the answer goes on is not said again. The parsers trim white space.
static void remove_beginning(std::string & text, const std::string & beginning) {
    const size_t blanks = std::min(beginning.find_first_not_of(" \t\r\n"), beginning.size());
    const bool trimmed = blanks > 0 && text.compare(0, beginning.size(), beginning) != 0;
    text.erase(0, std::min(text.size(), beginning.size() - (trimmed ? blanks : 0)));
}

bool parse_answer(const answer_format & format, const std::string & text, bool whole, parsed_answer & into) {
    for (const answer_parser & parser : format.parsers) {
        common_peg_parse_context context(format.opening + text,
                                         whole ? COMMON_PEG_PARSE_FLAG_NONE : COMMON_PEG_PARSE_FLAG_LENIENT);
        const common_peg_parse_result result = parser.tree.parse(context);
        if (result.fail()) {
            continue;
        }
        common_chat_msg message;
        make_mapper(parser.syntax, message)->from_ast(context.ast, result);
        into = {};
        into.reasoning = std::move(message.reasoning_content);
        into.content = std::move(message.content);
        remove_beginning(into.reasoning, format.begun_reasoning);
        remove_beginning(into.content, format.begun_content);
        for (common_chat_tool_call & call : message.tool_calls) {
            into.calls.push_back({std::move(call.name), std::move(call.arguments)});
        }
        locate(context.ast, result, format.opening.size(), into);
        if (into.reasoning.empty()) { // white space between the tags does not count
            into.reasoning_spans.clear();
            if (into.last == parsed_answer::stretch::reasoning) {
                into.last = parsed_answer::stretch::none;
                into.text_end = 0;
            }
        }
        return true;
    }
    return false;
}

void derive(answer_format & format, const vocabulary & vocab) {
    std::string mentioned; // every text that the parsers look for
    const auto mention = [&](const std::string & text) { (mentioned += text) += '\n'; };
    for (const answer_parser & parser : format.parsers) {
        for (common_peg_parser_id id = 0; id < parser.tree.size(); id++) {
            const common_peg_parser_variant & rule = parser.tree.get(id);
            if (const auto * until = std::get_if<common_peg_until_parser>(&rule)) {
                format.tags.insert(format.tags.end(), until->delimiters.begin(), until->delimiters.end());
            } else if (const auto * literal = std::get_if<common_peg_literal_parser>(&rule)) {
                mention(literal->literal);
            }
        }
    }
    format.tags.insert(format.tags.end(), format.stops.begin(), format.stops.end());
    std::sort(format.tags.begin(), format.tags.end());
    format.tags.erase(std::unique(format.tags.begin(), format.tags.end()), format.tags.end());
    for (const auto * texts : {&format.tags, &format.thinking_ends}) {
        std::for_each(texts->begin(), texts->end(), mention);
    }
    mention(format.thinking_start);
    for (const common_grammar_trigger & trigger : format.triggers) {
        mention(trigger.value);
    }
    for (const std::string & control : vocab.control_texts()) {
        if (mentioned.find(control) != std::string::npos) {
            const std::vector<llama_token> ids = vocab.tokenize(control, false, true);
            if (!ids.empty()) {
                format.visible.push_back(ids.back());
            }
        }
    }
    std::sort(format.visible.begin(), format.visible.end());
}

}  // namespace lm
