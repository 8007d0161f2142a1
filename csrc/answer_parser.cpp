#include "answer_parser.h"

#include "answer_pruning.h"

#include "chat-peg-parser.h"
#include "json-schema-to-grammar.h"
#include "json.h"

namespace lm {

common_peg_parser reasoning_ahead(common_chat_peg_builder & p, const common_chat_params & plain) {
    if (!plain.supports_thinking || plain.thinking_start_tag.empty() || plain.thinking_end_tags.empty()) {
        return p.prefix(plain.generation_prompt) + p.space();
    }
    const std::string & start = plain.thinking_start_tag;
    const std::string & end = plain.thinking_end_tags.front();
    return p.prefix(plain.generation_prompt, start) + p.space() +
           p.optional(p.literal(start) + p.space() + p.reasoning(p.until(end)) + p.literal(end) + p.space());
}

void set_calls(common_chat_params & params, const common_peg_arena & parser, bool required, const std::string & begin) {
    params.parser = parser.save();
    params.grammar_lazy = !required;
    params.grammar = build_grammar([&](const common_grammar_builder & builder) {
        parser.build_grammar(builder, params.grammar_lazy);
    });
    params.grammar_triggers.clear();
    if (params.grammar_lazy) {
        params.grammar_triggers.push_back({COMMON_GRAMMAR_TRIGGER_TYPE_WORD, begin});
    }
}

std::optional<std::string> grammar_around_content(common_peg_arena parser) {
    const std::optional<parser_id> place = leave_one_content(parser);
    if (!place) {
        return std::nullopt;
    }
    const parser_id child = std::get<common_peg_tag_parser>(parser.get(*place)).child;
    parser.get(*place) = common_peg_gbnf_parser{child, "\"\\\"" + leaf_mark(0) + "\\\"\""};
    return build_grammar([&](const common_grammar_builder & builder) { parser.build_grammar(builder); });
}

common_chat_params json_format(const common_chat_params & plain, const std::string & schema) {
    common_chat_params params = plain;
    const common_peg_arena parser = build_chat_peg_parser([&](common_chat_peg_builder & p) {
        const common_peg_parser json = p.schema(p.json(), "response-format", common_json::parse(schema));
        return reasoning_ahead(p, plain) + p.content(json) + p.space() + p.end();
    });
    params.parser = parser.save();
    params.grammar = build_grammar([&](const common_grammar_builder & builder) { parser.build_grammar(builder); });
    params.grammar_lazy = false;
    params.grammar_triggers.clear();
    return params;
}

}  // namespace lm
