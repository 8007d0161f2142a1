#include "plain_tools.h"

#include "json.h"

#include <string>

namespace lm {

static constexpr int MAX_DEPTH = 64; // what is deeper stays as it is

static std::string type_of(const common_json & value) {
    return value.is_string()                ? "string"
           : value.is_boolean()             ? "boolean"
           : value.is_number_integer()      ? "integer"
           : value.is_number()              ? "number"
           : value.is_array()               ? "array"
           : value.is_object()              ? "object"
                                            : "null";
}

static std::string find_type(const common_json & node, int depth);

// The first type of `nodes` that is one, and not null.
static std::string first_type(const common_json & nodes, int depth) {
    for (const common_json & node : nodes) {
        const std::string type = node.is_string() ? node.get<std::string>() : node.is_object() ? find_type(node, depth) : "";
        if (!type.empty() && type != "null") {
            return type;
        }
    }
    return {};
}

// Empty: it says none.
static std::string find_type(const common_json & node, int depth) {
    if (depth > MAX_DEPTH) {
        return {};
    }
    if (node.contains("type")) {
        const common_json & type = node.at("type");
        return type.is_string() ? type.get<std::string>() : type.is_array() ? first_type(type, depth + 1) : std::string();
    }
    if (node.contains("const")) {
        return type_of(node.at("const"));
    }
    if (node.contains("enum") && node.at("enum").is_array() && !node.at("enum").empty()) {
        return type_of(node.at("enum").at(0));
    }
    for (const char * among : {"anyOf", "oneOf", "allOf"}) {
        if (node.contains(among) && node.at(among).is_array()) {
            if (const std::string type = first_type(node.at(among), depth + 1); !type.empty()) {
                return type;
            }
        }
    }
    return node.contains("properties") ? "object" : node.contains("items") ? "array" : "";
}

static bool make_plain(common_json & node, int depth) {
    if (node.is_boolean()) {
        node = common_json::object(); // anything may stand there
    }
    if (!node.is_object() || depth > MAX_DEPTH) {
        return false;
    }
    bool changed = false;
    if (!node.contains("type") || !node.at("type").is_string()) {
        const std::string type = find_type(node, depth);
        node["type"] = common_json(type.empty() ? std::string("string") : type);
        changed = true;
    }
    if (node.at("type").get<std::string>() == "array" && !node.contains("items")) {
        node["items"] = common_json::object();
        changed = true;
    }
    if (node.contains("items")) {
        changed |= make_plain(node["items"], depth + 1);
    }
    if (node.contains("properties") && node.at("properties").is_object()) {
        common_json properties = common_json::object();
        for (const auto & [name, member] : node.at("properties").items()) {
            properties[name] = member;
            changed |= make_plain(properties[name], depth + 1);
        }
        node["properties"] = properties;
    }
    return changed;
}

bool make_plain(std::vector<common_chat_tool> & tools) {
    bool changed = false;
    for (common_chat_tool & tool : tools) {
        common_json parameters = common_json::parse_no_throw(tool.parameters);
        if (!parameters.is_discarded() && make_plain(parameters, 0)) {
            tool.parameters = parameters.dump();
            changed = true;
        }
    }
    return changed;
}

}  // namespace lm
