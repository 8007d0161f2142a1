#include "python_calls.h"

#include "answer_parser.h"

#include "chat-auto-parser.h"
#include "chat-peg-parser.h"
#include "json-schema-to-grammar.h"
#include "json.h"
#include "parsers/parsers.h"

#include <algorithm>

namespace lm {

static const char CALL_BEGIN[] = "<|tool_call_start|>";
static const char CALL_END[] = "<|tool_call_end|>";

bool are_python_calls(const common_chat_params & params) {
    const auto & tokens = params.preserved_tokens;
    return std::find(tokens.begin(), tokens.end(), CALL_BEGIN) != tokens.end();
}

static std::string spell(const common_chat_tool_call & call) {
    std::string text = call.name + "(";
    const common_json arguments = common_json::parse_no_throw(call.arguments);
    if (!arguments.is_discarded() && arguments.is_object()) {
        for (const auto & [name, value] : arguments.items()) {
            text += (text.back() == '(' ? "" : ", ") + name + "=" + value.dump();
        }
    }
    return text + ")";
}

void write_python_calls(conversation & messages) {
    for (common_chat_msg & message : messages) {
        if (message.tool_calls.empty()) {
            continue;
        }
        std::string text = CALL_BEGIN;
        text += '[';
        for (const common_chat_tool_call & call : message.tool_calls) {
            text += (text.back() == '[' ? "" : ", ") + spell(call);
        }
        text += ']';
        text += CALL_END;
        message.tool_calls.clear();
        if (message.content_parts.empty()) {
            message.content += text;
        } else {
            message.content_parts.push_back({"text", text});
        }
    }
}

static common_peg_parser call_of(common_chat_peg_builder & p, const common_json & function) {
    const std::string name = function.at("name");
    common_peg_parser any = p.choice(); // in any order, between commas: the grammar says which of them
    bool has_some = false;
    foreach_parameter(function, [&](const common_chat_schema_property & argument, const common_chat_schema_document_ptr & document) {
        const std::string rule = "tool-" + name + "-arg-" + argument.name;
        const common_peg_parser value = p.schema(p.json(), rule + "-schema", document, *argument.schema);
        const common_peg_parser whole =
            p.rule(rule, p.tool_arg(p.tool_arg_open(p.tool_arg_name(p.literal(argument.name)) + p.literal("=")) +
                                    p.tool_arg_json_value(value) + p.tool_arg_close(p.eps())));
        any |= whole;
        has_some = true;
    });
    const common_peg_parser all = has_some ? p.optional(any + p.zero_or_more(p.literal(",") + p.space() + any)) : p.eps();
    return p.rule("tool-" + name, p.tool(p.tool_open(p.tool_name(p.literal(name)) + p.literal("(")) + p.space() +
                                         p.tool_args(all) + p.space() + p.tool_close(p.literal(")"))));
}

common_chat_params python_call_format(const common_chat_templates_inputs & inputs, const common_chat_params & plain, bool thinks) {
    common_chat_params params = plain;
    params.supports_thinking = thinks;
    const bool required = inputs.tool_choice == COMMON_CHAT_TOOL_CHOICE_REQUIRED;
    const common_json tools = common_chat_tools_to_json_oaicompat(inputs.tools);
    const common_peg_arena parser = build_chat_peg_parser([&](common_chat_peg_builder & p) {
        common_peg_parser any = p.choice();
        foreach_function(tools, [&](const common_json & tool) { any |= call_of(p, tool.at("function")); });
        common_peg_parser several = any;
        if (inputs.parallel_tool_calls) {
            several = several + p.zero_or_more(p.literal(",") + p.space() + any);
        }
        const common_peg_parser calls = p.trigger_rule(
            "tool-calls", p.literal(CALL_BEGIN) + p.literal("[") + p.space() + several + p.space() + p.literal("]") + p.literal(CALL_END));
        const common_peg_parser body = required ? calls : p.optional(p.content(p.until(CALL_BEGIN))) + p.optional(calls);
        return reasoning_ahead(p, params) + body + p.space() + p.end();
    });
    set_calls(params, parser, required, CALL_BEGIN);
    return params;
}

}  // namespace lm
