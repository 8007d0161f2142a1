#include "tool_requests.h"

#include "answer_parser.h"

#include "chat-peg-parser.h"
#include "json-schema-to-grammar.h"

#include <utility>

namespace lm {

static const char CALL_BEGIN[] = "[TOOL_REQUEST]";
static const char CALL_END[] = "[END_TOOL_REQUEST]";

static std::string describe(const common_chat_templates_inputs & inputs) {
    std::string text = "You can call the tools listed below. To call one, write a line of exactly this form:\n";
    text += std::string(CALL_BEGIN) + R"({"name": "<the tool's name>", "arguments": {<its arguments as JSON>}})" + CALL_END;
    text += inputs.parallel_tool_calls ? "\nYou may write several such lines. " : "\nWrite at most one such line. ";
    text += inputs.tool_choice == COMMON_CHAT_TOOL_CHOICE_REQUIRED
                ? "Answer with a call and nothing else; the result will be in the next message."
                : "Write nothing after them: the results will be in the next message. If no tool is of use, just answer.";
    text += "\n\nTools:";
    const common_json tools = common_chat_tools_to_json_oaicompat(inputs.tools);
    for (const common_json & tool : tools) {
        text += "\n" + tool.at("function").dump();
    }
    return text;
}

static std::string text_of(const common_chat_msg & message) {
    return message.content_parts.empty() ? message.content : message.render_content("\n");
}

static void append_text(common_chat_msg & message, const std::string & text, const char * separator) {
    if (message.content_parts.empty()) {
        message.content += (message.content.empty() ? "" : separator) + text;
    } else {
        message.content_parts.push_back({"text", text});
    }
}

static std::string spell(const common_chat_tool_call & call) {
    return std::string(CALL_BEGIN) + "{\"name\": " + common_json::make(call.name).dump() + ", \"arguments\": " +
           (call.arguments.empty() ? "{}" : call.arguments) + "}" + CALL_END;
}

// Results are a user's turn, and one with what the user says next: many templates insist that turns alternate.
static void add_to_user_turn(std::vector<common_chat_msg> & messages, common_chat_msg message, bool goes_on) {
    if (message.role == "tool") {
        const std::string text = "[TOOL_RESULT]" + text_of(message) + "[END_TOOL_RESULT]";
        message = {};
        message.role = "user";
        message.content = text;
    }
    if (!goes_on) {
        messages.push_back(std::move(message));
    } else if (message.content_parts.empty()) {
        append_text(messages.back(), message.content, "\n");
    } else { // images and the like stay where they are
        common_chat_msg & turn = messages.back();
        message.content_parts.insert(message.content_parts.begin(), {"text", std::exchange(turn.content, {})});
        turn.content_parts.insert(turn.content_parts.end(), message.content_parts.begin(), message.content_parts.end());
    }
}

void spell_tools(common_chat_templates_inputs & inputs) {
    std::vector<common_chat_msg> messages;
    bool after_result = false;
    for (common_chat_msg & message : inputs.messages) {
        const bool is_result = message.role == "tool";
        if (is_result || (after_result && message.role == "user")) {
            add_to_user_turn(messages, std::move(message), after_result);
            after_result = is_result;
            continue;
        }
        after_result = false;
        for (const common_chat_tool_call & call : message.tool_calls) {
            append_text(message, spell(call), "\n");
        }
        message.tool_calls.clear();
        messages.push_back(std::move(message));
    }
    if (!inputs.tools.empty()) {
        if (messages.empty() || (messages[0].role != "system" && messages[0].role != "developer")) {
            common_chat_msg system;
            system.role = "system";
            messages.insert(messages.begin(), std::move(system));
        }
        append_text(messages[0], describe(inputs), "\n\n");
    }
    inputs.messages = std::move(messages);
    inputs.tools.clear();
    inputs.tool_choice = COMMON_CHAT_TOOL_CHOICE_AUTO;
}

common_chat_params tool_request_format(const common_chat_templates_inputs & inputs, const common_chat_params & plain) {
    common_chat_params params = plain;
    const bool required = inputs.tool_choice == COMMON_CHAT_TOOL_CHOICE_REQUIRED;
    const common_json tools = common_chat_tools_to_json_oaicompat(inputs.tools);
    const common_peg_arena parser = build_chat_peg_parser([&](common_chat_peg_builder & p) {
        const common_peg_parser call = p.standard_json_tools(CALL_BEGIN, CALL_END, tools, false, true);
        common_peg_parser calls = inputs.parallel_tool_calls ? p.one_or_more(call + p.space()) : call + p.space();
        calls = p.trigger_rule("tool-requests", calls);
        const common_peg_parser body =
            required ? calls : p.optional(p.content(p.until(CALL_BEGIN))) + p.optional(calls);
        return reasoning_ahead(p, plain) + body + p.end();
    });
    set_calls(params, parser, required, CALL_BEGIN);
    return params;
}

}  // namespace lm
