#include "answer_format.h"

#include "chat-peg-parser.h"
#include "json-schema-to-grammar.h"
#include "json.h"

#include <algorithm>
#include <cctype>

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
    for (const common_peg_arena & parser : format.parsers) {
        common_peg_parse_context context(format.opening + text,
                                         whole ? COMMON_PEG_PARSE_FLAG_NONE : COMMON_PEG_PARSE_FLAG_LENIENT);
        const common_peg_parse_result result = parser.parse(context);
        if (result.fail()) {
            continue;
        }
        common_chat_msg message;
        make_mapper(format.syntax, message)->from_ast(context.ast, result);
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

void forbid_content(common_peg_arena & parser, std::string & grammar) {
    for (common_peg_parser_id id = 0; id < parser.size(); id++) {
        const auto * tag = std::get_if<common_peg_tag_parser>(&parser.get(id));
        if (tag == nullptr || tag->tag != common_chat_peg_builder::CONTENT ||
            !std::holds_alternative<common_peg_until_parser>(parser.get(tag->child))) {
            continue;
        }
        const common_peg_parser_id text = tag->child;
        parser.get(text) = common_peg_epsilon_parser();
        const std::string rule = "until-" + std::to_string(text) + " ::= "; // as llama.cpp names it
        const size_t at = grammar.compare(0, rule.size(), rule) == 0 ? 0 : grammar.find("\n" + rule);
        if (at != std::string::npos) {
            const size_t begin = grammar.find(" ::= ", at) + 5;
            grammar.replace(begin, std::min(grammar.find('\n', begin), grammar.size()) - begin, "\"\"");
        }
    }
}

// The texts that the argument may be; none: it may be something else.
static std::vector<std::string> choices_of(const common_json & schema) {
    std::vector<std::string> texts;
    if (!schema.is_object()) {
        return texts;
    }
    const common_json one = schema.contains("const") ? common_json::array({schema.at("const")}) : common_json::array();
    for (const common_json & value : schema.contains("enum") && schema.at("enum").is_array() ? schema.at("enum") : one) {
        if (!value.is_string()) {
            return {};
        }
        texts.push_back(value.get<std::string>());
    }
    return texts;
}

// What ends the raw text below `id`, if there is one such text.
static void find_closers(const common_peg_arena & parser, common_peg_parser_id id, std::vector<std::string> & closers) {
    const common_peg_parser_variant & rule = parser.get(id);
    if (const auto * raw = std::get_if<common_peg_ac_parser>(&rule)) {
        closers.insert(closers.end(), raw->delimiters.begin(), raw->delimiters.end());
    } else if (const auto * sequence = std::get_if<common_peg_sequence_parser>(&rule)) {
        for (const common_peg_parser_id child : sequence->children) {
            find_closers(parser, child, closers);
        }
    } else if (const auto * tag = std::get_if<common_peg_tag_parser>(&rule)) {
        find_closers(parser, tag->child, closers);
    } else if (const auto * atomic = std::get_if<common_peg_atomic_parser>(&rule)) {
        find_closers(parser, atomic->child, closers);
    } else if (const auto * named = std::get_if<common_peg_rule_parser>(&rule)) {
        find_closers(parser, named->child, closers);
    } else if (const auto * ref = std::get_if<common_peg_ref_parser>(&rule); ref != nullptr && parser.has_rule(ref->name)) {
        find_closers(parser, parser.get_rule(ref->name), closers);
    }
}

static std::string gbnf_literal(const std::string & text) {
    std::string literal = "\"";
    for (const char c : text) {
        literal += c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '"' ? "\\\"" : c == '\\' ? "\\\\" : std::string(1, c);
    }
    return literal + '"';
}

void hold_to_choices(const common_peg_arena & parser, const std::vector<common_chat_tool> & tools, std::string & grammar) {
    for (const common_chat_tool & tool : tools) {
        const common_json parameters = common_json::parse_no_throw(tool.parameters);
        if (parameters.is_discarded() || !parameters.is_object() || !parameters.contains("properties")) {
            continue;
        }
        for (const auto & [name, schema] : parameters.at("properties").items()) {
            const std::vector<std::string> texts = choices_of(schema);
            std::string rule = "tool-" + tool.name + "-arg-" + name; // as llama.cpp names it
            std::replace_if(rule.begin(), rule.end(), [](unsigned char c) { return !isalnum(c); }, '-');
            std::vector<std::string> closers;
            if (!texts.empty() && parser.has_rule(rule)) {
                find_closers(parser, parser.get_rule(rule), closers);
            }
            if (closers.size() != 1 || std::any_of(texts.begin(), texts.end(), [&](const auto & text) {
                    return text.find(closers[0]) != std::string::npos;
                })) {
                continue;
            }
            const size_t at = grammar.find("\n" + rule + " ::= ");
            const size_t end = at == std::string::npos ? at : std::min(grammar.find('\n', at + 1), grammar.size());
            const size_t raw = at == std::string::npos ? at : grammar.rfind(' ', end - 1) + 1; // the raw text stands last
            if (at == std::string::npos || grammar[raw] == '(' || grammar[raw] == '"') {
                continue;
            }
            std::string any = "(";
            for (const std::string & text : texts) {
                any += (any.size() > 1 ? " | " : "") + gbnf_literal(text);
            }
            grammar.replace(raw, end - raw, any + ") " + gbnf_literal(closers[0]));
        }
    }
}

void derive(answer_format & format, const vocabulary & vocab) {
    std::string mentioned; // every text that the parsers look for
    const auto mention = [&](const std::string & text) { (mentioned += text) += '\n'; };
    for (const common_peg_arena & parser : format.parsers) {
        for (common_peg_parser_id id = 0; id < parser.size(); id++) {
            const common_peg_parser_variant & rule = parser.get(id);
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
