#include "call_tree.h"

namespace lm {

using builder = common_chat_peg_builder;

std::vector<parser_id> children_of(const common_peg_parser_variant & parser) {
    if (const auto * sequence = as<common_peg_sequence_parser>(parser)) {
        return sequence->children;
    }
    if (const auto * choice = as<common_peg_choice_parser>(parser)) {
        return choice->children;
    }
    const auto child = [&](const auto * p) { return p == nullptr ? std::vector<parser_id>() : std::vector<parser_id>{p->child}; };
    for (const auto & one : {child(as<common_peg_repetition_parser>(parser)), child(as<common_peg_tag_parser>(parser)), child(as<common_peg_atomic_parser>(parser)),
                             child(as<common_peg_rule_parser>(parser)), child(as<common_peg_gbnf_parser>(parser)), child(as<common_peg_ac_parser>(parser)),
                             child(as<common_peg_schema_parser>(parser))}) {
        if (!one.empty()) {
            return one;
        }
    }
    return {};
}

std::string call_tree::text_in(parser_id id) const {
    std::string text;
    walk(id, [&](parser_id at) {
        if (const auto * literal = as<common_peg_literal_parser>(get(at))) {
            text += literal->literal;
        }
        return true;
    });
    return text;
}

std::map<std::string, parser_id> call_tree::arguments_in(parser_id id) const {
    std::map<std::string, parser_id> all;
    walk(id, [&](parser_id at) {
        if (!is_tag(at, builder::TOOL_ARG)) {
            return true;
        }
        walk(std::get<common_peg_tag_parser>(get(at)).child, [&](parser_id below) {
            if (is_tag(below, builder::TOOL_ARG_NAME)) {
                all.emplace(text_in(below), follow(at));
            }
            return !is_tag(below, builder::TOOL_ARG) && !is_tag(below, builder::TOOL_ARG_NAME);
        });
        return false;
    });
    return all;
}

bool call_tree::holds(parser_id id, const char * name, std::unordered_map<parser_id, bool> & known) const {
    const auto [found, is_new] = known.try_emplace(id, false);
    if (!is_new) {
        return found->second;
    }
    bool held = is_tag(id, name);
    for (const parser_id child : children_of(arena_.get(id))) {
        held = held || holds(follow(child), name, known);
    }
    known[id] = held;
    return held;
}

}  // namespace lm
