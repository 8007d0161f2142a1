// The schemas of tools in the form that llama.cpp's grammar compiler takes. Tools are rarely their sender's own to change, so
// what it cannot read is left open instead of refused: one node where that is enough, the whole schema where it is not.
#pragma once

#include "text.h"

#include "chat.h"

#include <string>
#include <vector>

namespace lm {

// How much of a schema is kept.
enum class schema_detail {
    nodes,   // all but the nodes and bounds that cannot be compiled
    members, // the names of the arguments, and which are required
    none,    // any object
};

struct tool_schemas {
    std::vector<common_chat_tool> tools;
    std::vector<std::string> loosened; // the tools that may be called in ways that their schemas forbid, by name
};

// `schema` is what a client sent as a tool's parameters, whatever it is; what comes out describes an object. `changed` is set
// if something that it says is left out.
common_json loosen(const common_json & schema, const vocabulary & vocab, bool & changed);

// Throws nothing for what the schemas say: what together would take too long to compile loses its detail, last tools first.
tool_schemas loosen_tools(const std::vector<common_chat_tool> & tools, const vocabulary & vocab, schema_detail detail);

}  // namespace lm
