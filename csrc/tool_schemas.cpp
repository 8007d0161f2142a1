#include "tool_schemas.h"

#include "json.h"

#include <algorithm>
#include <chrono>

namespace lm {

// For all tools of a request: a thousand ordinary ones.
static constexpr std::chrono::milliseconds COMPILE_TIME(1000);

static constexpr size_t MAX_MEMBERS = 256; // of a schema that is known by its names alone
static constexpr size_t MAX_NAME_BYTES = 1024;

static const char ANY_OBJECT[] = R"({"type":"object"})";

static std::string names_only(const std::string & parameters) {
    const common_json given = common_json::parse_no_throw(parameters);
    if (given.is_discarded() || !given.is_object() || !given.contains("properties") || !given.at("properties").is_object() ||
        given.at("properties").size() > MAX_MEMBERS) {
        return ANY_OBJECT;
    }
    common_json properties = common_json::object();
    for (const auto & [name, child] : given.at("properties").items()) {
        if (name.size() > MAX_NAME_BYTES) {
            return ANY_OBJECT;
        }
        properties[name] = common_json::object();
    }
    common_json bare = common_json::object({{"type", "object"}, {"properties", properties}});
    if (given.contains("required") && given.at("required").is_array()) {
        bare["required"] = given.at("required");
    }
    return bare.dump();
}

// Of the detail that is asked for, or the next one that compiles; `kept` if nothing was left out.
static schema_ptr compile(const std::string & parameters, schema_detail detail, bool & kept) {
    kept = false;
    if (detail == schema_detail::nodes) {
        try {
            schema_ptr made = compile_arguments(parameters);
            kept = std::all_of(made->unenforced.begin(), made->unenforced.end(), [](const std::string & what) {
                return what.compare(0, 7, "format ") == 0; // an unknown format is a note, no rule
            });
            return made;
        } catch (const schema_error &) {
        }
    }
    if (detail != schema_detail::none) {
        try {
            return compile_arguments(names_only(parameters));
        } catch (const schema_error &) {
        }
    }
    return compile_arguments(ANY_OBJECT);
}

tool_schemas read_tools(const std::vector<common_chat_tool> & tools, schema_detail detail) {
    tool_schemas all;
    const auto begin = std::chrono::steady_clock::now();
    for (const common_chat_tool & tool : tools) {
        const bool is_late = std::chrono::steady_clock::now() - begin > COMPILE_TIME;
        const bool is_empty = tool.parameters.empty() || common_json::parse_no_throw(tool.parameters).is_null();
        bool kept = true;
        schema_ptr made = compile(is_empty ? "{}" : tool.parameters, is_late ? std::max(detail, schema_detail::members) : detail, kept);
        if (!kept) {
            all.loosened.push_back(tool.name);
        }
        all.rules.push_back({tool.name, std::move(made)});
    }
    return all;
}

std::vector<common_chat_tool> simplify_tools(const std::vector<common_chat_tool> & tools, schema_detail detail) {
    std::vector<common_chat_tool> simple = tools;
    for (common_chat_tool & tool : simple) {
        tool.parameters = detail == schema_detail::nodes ? tool.parameters : detail == schema_detail::members ? names_only(tool.parameters) : ANY_OBJECT;
    }
    return simple;
}

std::vector<common_chat_tool> outline_tools(const std::vector<common_chat_tool> & tools, const tool_schemas & schemas, call_notation notation) {
    std::vector<common_chat_tool> outlined;
    for (size_t i = 0; i < tools.size(); i++) {
        outlined.push_back({tools[i].name, "", outline_of(*schemas.rules[i].arguments, notation)});
    }
    return outlined;
}

}  // namespace lm
