// What tools may be called with. Their schemas are rarely their sender's own to change, so what cannot be held to is left open
// instead of refused: one node where that is enough, the whole schema where it is not.
#pragma once

#include "call_grammar.h"

#include "chat.h"

#include <string>
#include <utility>
#include <vector>

namespace lm {

// How much of a schema is kept.
enum class schema_detail {
    nodes,   // all but what cannot be compiled
    members, // the names of the arguments, and which are required
    none,    // any object
};

struct tool_schemas {
    std::vector<tool_rules> rules;
    std::vector<std::string> loosened; // the tools that may be called in ways that their schemas forbid, by name
};

// Throws nothing for what the schemas say: what together would take too long to compile loses its detail, last tools first.
tool_schemas read_tools(const std::vector<common_chat_tool> & tools, schema_detail detail);

// The same tools with so much of their schemas.
std::vector<common_chat_tool> simplify_tools(const std::vector<common_chat_tool> & tools, schema_detail detail);

// The same tools as llama.cpp is told of them, where only the reading of calls comes of it. It names rules after tools and their
// arguments, by letters, digits and dashes alone, and would know one of `a_b` and `a-b`: such names are others to it.
struct tool_outlines {
    std::vector<common_chat_tool> tools;
    std::vector<std::pair<std::string, std::string>> aliases; // each with the name that it stands for

    // In what llama.cpp has made of these.
    void restore_names(common_chat_params & made) const;
};
tool_outlines outline_tools(const std::vector<common_chat_tool> & tools, const tool_schemas & schemas, call_notation notation);

}  // namespace lm
