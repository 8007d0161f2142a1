#include "tool_schemas.h"

#include "call_outline.h"

#include "json.h"

#include <algorithm>
#include <chrono>
#include <set>

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

// What llama.cpp makes of a name in the name of a rule.
static std::string rule_name(const std::string & name) {
    std::string made;
    for (const char c : name) {
        const bool is_kept = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-';
        if (is_kept || made.empty() || made.back() != '\xFF') {
            made += is_kept ? c : '\xFF';
        }
    }
    std::replace(made.begin(), made.end(), '\xFF', '-');
    return made;
}

namespace {

// Gives out other names where two would become one.
class renamer {
  public:
    explicit renamer(tool_outlines & to) : to_(to) {}

    // `taken`: the rules of all names so far that share its place.
    std::string rename(const std::string & name, std::set<std::string> & taken) {
        if (taken.insert(rule_name(name)).second) {
            return name;
        }
        to_.aliases.emplace_back("lmlite_alias_" + std::to_string(to_.aliases.size()) + "_", name);
        taken.insert(rule_name(to_.aliases.back().first));
        return to_.aliases.back().first;
    }

  private:
    tool_outlines & to_;
};

}  // namespace

tool_outlines outline_tools(const std::vector<common_chat_tool> & tools, const tool_schemas & schemas, call_notation notation) {
    tool_outlines outlined;
    renamer names(outlined);
    std::set<std::string> taken;
    for (size_t i = 0; i < tools.size(); i++) {
        common_json outline = common_json::parse(outline_of(*schemas.rules[i].arguments, notation));
        if (outline.contains("properties")) {
            std::set<std::string> taken_here;
            common_json properties = common_json::object();
            for (const auto & [name, child] : outline.at("properties").items()) {
                properties[names.rename(name, taken_here)] = child;
            }
            outline["properties"] = properties;
        }
        outlined.tools.push_back({names.rename(tools[i].name, taken), "", outline.dump()});
    }
    return outlined;
}

static void replace_all(std::string & text, const std::string & what, const std::string & with) {
    for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + with.size())) {
        text.replace(at, what.size(), with);
    }
}

void tool_outlines::restore_names(common_chat_params & made) const {
    for (const auto & [alias, name] : aliases) {
        const std::string quoted = common_json::make(name).dump();
        replace_all(made.parser, alias, quoted.substr(1, quoted.size() - 2)); // which is JSON
        for (common_grammar_trigger & trigger : made.grammar_triggers) {
            replace_all(trigger.value, alias, name);
        }
    }
}

}  // namespace lm
