#include "tool_schemas.h"

#include "error.h"
#include "grammar.h"

#include "json-schema-to-grammar.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <optional>
#include <set>

namespace lm {

static constexpr int MAX_DEPTH = 128; // of nodes; the compiler recurses
static constexpr int64_t MAX_COUNT = 2000; // the compiler's own limit on repetitions
static constexpr double MAX_BOUND = 9e18;  // of integers: the compiler counts in 64 bits, and past the bound by one
static constexpr size_t MAX_ENUM = 4096;   // values of one schema: every token is tried against each
static constexpr size_t MAX_PATTERN_BYTES = 4096;
static constexpr size_t MAX_KEY_BYTES = 1024;
static constexpr size_t MAX_TYPES = 16;
static constexpr size_t MAX_MEMBERS = 256;
static constexpr int MAX_PASSES = 4;
static constexpr int MAX_HOPS = 16; // of references that lead to references

static const char * const TYPES[] = {"object", "array", "string", "integer", "number", "boolean", "null"};
static const char * const COUNTS[] = {"minLength", "maxLength", "minItems", "maxItems"};
static const char * const BOUNDS[] = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"};
static const char * const ALTERNATIVES[] = {"oneOf", "anyOf"};

static bool is_string(const common_json & node, const char * key, const char * value) {
    return node.contains(key) && node.at(key).is_string() && node.at(key).get<std::string>() == value;
}

static bool has_object(const common_json & node, const char * key) {
    return node.contains(key) && node.at(key).is_object();
}

static bool is_type(const std::string & name) {
    return std::find(std::begin(TYPES), std::end(TYPES), name) != std::end(TYPES);
}

// Any JSON value, with what is said of it in words.
static common_json open_node(const common_json & node) {
    common_json open = common_json::object();
    for (const char * key : {"title", "description"}) {
        if (node.is_object() && node.contains(key) && node.at(key).is_string()) {
            open[key] = node.at(key).get<std::string>();
        }
    }
    return open;
}

static common_json any_object(const common_json & node) {
    common_json open = open_node(node);
    open["type"] = "object";
    return open;
}

// Alternatives that only say what else has to be there: the compiler would take them for any value at all.
static bool say_nothing_of_shape(const common_json & alternatives) {
    static const char * const shape[] = {"type",  "properties", "$ref",  "enum",  "const",  "items", "anyOf",
                                         "oneOf", "allOf",      "pattern", "format", "prefixItems", "additionalProperties"};
    if (!alternatives.is_array()) {
        return false;
    }
    for (const common_json & child : alternatives) {
        if (!child.is_object() ||
            std::any_of(std::begin(shape), std::end(shape), [&](const char * key) { return child.contains(key); })) {
            return false;
        }
    }
    return true;
}

// ---- one schema -----------------------------------------------------------------------------------------------------

class loosener {
  public:
    loosener(common_json & root, const vocabulary & vocab) : root_(root), vocab_(vocab) {}

    bool run();

  private:
    void visit(common_json & node, int depth);
    void visit_references();
    void open(common_json & node);
    void drop(common_json & node, const char * key);
    bool visit_reference(common_json & node);
    bool visit_alternatives(common_json & node, int depth);
    void visit_all_of(common_json & node, int depth);
    void check_type(common_json & node);
    void check_enum(common_json & node);
    void check_counts(common_json & node);
    void check_bounds(common_json & node);
    void check_pattern(common_json & node);
    void visit_object(common_json & node, int depth);
    void visit_array(common_json & node, int depth);
    void inline_root();
    void make_object();
    bool is_object(const common_json & node, int hops = 0) const;
    common_json * resolve(const std::string & ref) const;
    const common_json * follow(const common_json & node) const;
    bool leads_to(const common_json & node, const std::string & ref, std::set<std::string> & seen) const;
    bool merges(const common_json & node) const;

    common_json & root_;
    const vocabulary & vocab_;
    std::set<std::string> refs_;       // all that are in use
    std::vector<std::string> pending_; // those whose targets have not been looked at
    size_t n_enum_ = 0;
    bool changed_ = false;
};

void loosener::open(common_json & node) {
    node = open_node(node);
    changed_ = true;
}

void loosener::drop(common_json & node, const char * key) {
    if (node.contains(key)) {
        node.erase(key);
        changed_ = true;
    }
}

bool loosener::run() {
    if (!root_.is_object()) {
        root_ = common_json::object({{"type", "object"}});
        return true;
    }
    inline_root();
    for (int i = 0; i < MAX_PASSES; i++) {
        refs_.clear();
        n_enum_ = 0;
        visit(root_, 0);
        visit_references();
        if (std::all_of(refs_.begin(), refs_.end(), [&](const std::string & ref) { return resolve(ref) != nullptr; })) {
            break; // else what some of them name went with a node around it
        }
    }
    make_object();
    return changed_;
}

// Readers of arguments look for them in the root itself.
void loosener::inline_root() {
    for (int i = 0; i < MAX_HOPS && root_.contains("$ref") && root_.at("$ref").is_string(); i++) {
        const common_json * target = resolve(root_.at("$ref").get<std::string>());
        if (target == nullptr || !target->is_object()) {
            break;
        }
        const common_json copy = *target;
        root_.erase("$ref");
        for (const auto & [key, value] : copy.items()) {
            root_[key] = value;
        }
    }
    for (const char * key : ALTERNATIVES) { // they would take the place of the properties
        if (has_object(root_, "properties") && root_.contains(key)) {
            changed_ |= !say_nothing_of_shape(root_.at(key));
            root_.erase(key);
        }
    }
}

// Not while anything else is being visited: a reference may name what lies around it.
void loosener::visit_references() {
    while (!pending_.empty()) {
        const std::string ref = std::move(pending_.back());
        pending_.pop_back();
        if (common_json * target = resolve(ref)) {
            visit(*target, 1);
        }
    }
}

// The arguments of a call are an object, whatever else the schema says.
void loosener::make_object() {
    if (root_.contains("type") && root_.at("type").is_array()) {
        for (const common_json & type : root_.at("type")) {
            if (type.is_string() && type.get<std::string>() == "object") {
                root_["type"] = "object";
                break;
            }
        }
    }
    if (root_.contains("enum") || root_.contains("const") || !is_object(root_)) {
        const bool says_something = root_.contains("type") || root_.contains("enum") || root_.contains("const") ||
                                    root_.contains("anyOf") || root_.contains("oneOf") || root_.contains("allOf");
        changed_ |= says_something;
        root_ = any_object(root_);
    }
}

bool loosener::is_object(const common_json & node, int hops) const {
    if (!node.is_object() || hops > MAX_HOPS) {
        return false;
    }
    if (node.contains("$ref")) {
        const common_json * target = follow(node);
        return target != nullptr && !target->contains("$ref") && is_object(*target, hops + 1);
    }
    for (const char * key : ALTERNATIVES) {
        if (node.contains(key)) {
            const common_json & all = node.at(key);
            for (const common_json & child : all) {
                if (!is_object(child, hops + 1)) {
                    return false;
                }
            }
            return true;
        }
    }
    if (node.contains("type")) {
        return is_string(node, "type", "object");
    }
    return has_object(node, "properties") || has_object(node, "additionalProperties") || node.contains("allOf");
}

void loosener::visit(common_json & node, int depth) {
    if (node.is_boolean() && node.get<bool>()) {
        node = common_json::object(); // the same in other words
        return;
    }
    if (!node.is_object() || depth > MAX_DEPTH) {
        return open(node);
    }
    if (visit_reference(node) || visit_alternatives(node, depth)) {
        return;
    }
    check_type(node);
    check_enum(node);
    check_counts(node);
    check_bounds(node);
    check_pattern(node);
    visit_all_of(node, depth);
    visit_object(node, depth);
    visit_array(node, depth);
}

// ---- references -----------------------------------------------------------------------------------------------------

// Not a list or a map of some.
static bool names_a_schema(const std::string & ref) {
    static const std::set<std::string> maps = {"properties", "patternProperties", "$defs", "definitions", "dependencies"};
    static const std::set<std::string> lists = {"allOf", "anyOf", "oneOf", "prefixItems", "required", "enum", "type"};
    const size_t last = ref.rfind('/');
    const size_t before = last == 0 ? std::string::npos : ref.rfind('/', last - 1);
    const std::string name = ref.substr(last + 1);
    const std::string parent = before == std::string::npos ? "" : ref.substr(before + 1, last - before - 1);
    return maps.count(parent) > 0 || (maps.count(name) == 0 && lists.count(name) == 0);
}

// Null where the compiler finds nothing, or nothing that it should take.
common_json * loosener::resolve(const std::string & ref) const {
    if (ref.compare(0, 2, "#/") != 0 || !names_a_schema(ref)) {
        return nullptr;
    }
    common_json * node = &root_;
    for (size_t at = 2; at <= ref.size();) {
        const size_t next = std::min(ref.find('/', at), ref.size());
        const std::string name = ref.substr(at, next - at);
        if (node->is_object() && node->contains(name)) {
            node = &node->at(name);
        } else if (node->is_array() && !name.empty() && name.size() < 7 &&
                   std::all_of(name.begin(), name.end(), [](unsigned char c) { return isdigit(c); }) &&
                   std::stoul(name) < node->size()) {
            node = &node->at(size_t(std::stoul(name)));
        } else {
            return nullptr;
        }
        at = next + 1;
    }
    return node;
}

// What a chain of references ends with; null if it does not end.
const common_json * loosener::follow(const common_json & node) const {
    const common_json * at = &node;
    for (int i = 0; i < MAX_HOPS && at != nullptr; i++) {
        if (!at->is_object() || !at->contains("$ref")) {
            return at;
        }
        at = at->at("$ref").is_string() ? resolve(at->at("$ref").get<std::string>()) : nullptr;
    }
    return nullptr;
}

// Whether `ref` is where the compiler gets from here before any character.
bool loosener::leads_to(const common_json & node, const std::string & ref, std::set<std::string> & seen) const {
    if (!node.is_object()) {
        return false;
    }
    if (node.contains("$ref")) {
        const std::string next = node.at("$ref").is_string() ? node.at("$ref").get<std::string>() : "";
        const common_json * target = resolve(next);
        return next == ref || (target != nullptr && seen.insert(next).second && leads_to(*target, ref, seen));
    }
    for (const char * key : {"oneOf", "anyOf", "allOf"}) {
        if (node.contains(key) && node.at(key).is_array()) {
            for (const common_json & child : node.at(key)) {
                if (leads_to(child, ref, seen)) {
                    return true;
                }
            }
        }
    }
    return false;
}

// Whether the node is a reference: nothing beside it counts.
bool loosener::visit_reference(common_json & node) {
    if (!node.contains("$ref")) {
        return false;
    }
    const std::string ref = node.at("$ref").is_string() ? node.at("$ref").get<std::string>() : "";
    const common_json * target = resolve(ref);
    std::set<std::string> seen;
    if (target != nullptr && !leads_to(*target, ref, seen)) {
        if (refs_.insert(ref).second) {
            pending_.push_back(ref);
        }
    } else if (ref == "#") { // the whole schema again: an object at least
        node = any_object(node);
        changed_ = true;
    } else {
        open(node);
    }
    return true;
}

// ---- combinations ---------------------------------------------------------------------------------------------------

bool loosener::visit_alternatives(common_json & node, int depth) {
    for (const char * key : ALTERNATIVES) {
        if (!node.contains(key)) {
            continue;
        }
        common_json & all = node.at(key);
        if (!all.is_array() || all.empty()) {
            drop(node, key);
            continue;
        }
        if ((node.contains("properties") || node.contains("type")) && say_nothing_of_shape(all)) {
            node.erase(key);
            continue;
        }
        for (size_t i = 0; i < all.size(); i++) {
            visit(all.at(i), depth + 1);
        }
        return true;
    }
    return false;
}

// Whether the compiler can merge this into one object with others.
bool loosener::merges(const common_json & node) const {
    const common_json * child = follow(node);
    if (child == nullptr || !child->is_object()) {
        return false;
    }
    for (const char * key : ALTERNATIVES) {
        if (child->contains(key)) {
            const common_json & all = child->at(key);
            return all.is_array() && !all.empty() && std::all_of(all.begin(), all.end(), [&](const common_json & alternative) {
                return has_object(alternative, "properties") && !alternative.contains("$ref");
            });
        }
    }
    return has_object(*child, "properties") && !child->contains("enum") && !child->contains("const");
}

void loosener::visit_all_of(common_json & node, int depth) {
    if (!node.contains("allOf")) {
        return;
    }
    if (!node.at("allOf").is_array() || node.at("allOf").empty()) {
        return drop(node, "allOf");
    }
    for (size_t i = 0; i < node.at("allOf").size(); i++) {
        visit(node.at("allOf").at(i), depth + 1);
    }
    const common_json & all = node.at("allOf");
    if (all.size() == 1 && !has_object(node, "properties")) { // a way to write words beside a reference
        const common_json only = all.at(size_t(0));
        node.erase("allOf");
        for (const auto & [key, value] : only.items()) {
            node[key] = value;
        }
    } else if (!std::all_of(all.begin(), all.end(), [&](const common_json & child) { return merges(child); })) {
        drop(node, "allOf");
    }
}

// ---- what a node says of itself -------------------------------------------------------------------------------------

static std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return char(tolower(c)); });
    return text;
}

void loosener::check_type(common_json & node) {
    if (!node.contains("type") || node.at("type").is_null()) {
        return;
    }
    common_json types = node.at("type").is_array() ? node.at("type") : common_json::array({node.at("type")});
    bool known = !types.empty() && types.size() <= MAX_TYPES;
    common_json lowered = common_json::array();
    for (size_t i = 0; known && i < types.size(); i++) {
        const std::string name = types.at(i).is_string() ? lower(types.at(i).get<std::string>()) : "";
        known = is_type(name); // written large, some people's code generators do
        lowered.push_back(name);
    }
    if (!known) {
        return drop(node, "type");
    }
    const bool nullable = node.contains("nullable") && node.at("nullable").is_boolean() && node.at("nullable").get<bool>();
    if (nullable && !node.contains("enum") && !node.contains("const")) {
        lowered.push_back("null");
    }
    if (lowered.size() == 1) {
        node["type"] = lowered.at(size_t(0)).get<std::string>();
    } else {
        node["type"] = lowered;
    }
}

void loosener::check_enum(common_json & node) {
    if (!node.contains("enum")) {
        return;
    }
    const common_json & values = node.at("enum");
    const size_t n = values.is_array() ? values.size() : 0;
    if (n == 0 || n_enum_ + n > MAX_ENUM) {
        return drop(node, "enum");
    }
    n_enum_ += n;
}

void loosener::check_counts(common_json & node) {
    for (const char * key : COUNTS) {
        if (!node.contains(key)) {
            continue;
        }
        const common_json & value = node.at(key);
        const double count = value.is_number() ? value.get<double>() : -1;
        if (!(count >= 0 && count <= double(MAX_COUNT)) || count != std::floor(count)) {
            drop(node, key);
        } else {
            node[key] = int64_t(count); // 5.0 is as good as 5
        }
    }
    for (size_t i = 0; i < std::size(COUNTS); i += 2) {
        if (node.contains(COUNTS[i]) && node.contains(COUNTS[i + 1]) &&
            node.at(COUNTS[i]).get<int64_t>() > node.at(COUNTS[i + 1]).get<int64_t>()) {
            drop(node, COUNTS[i]);
            drop(node, COUNTS[i + 1]);
        }
    }
}

void loosener::check_bounds(common_json & node) {
    for (const auto & [flag, bound] : {std::pair("exclusiveMinimum", "minimum"), std::pair("exclusiveMaximum", "maximum")}) {
        if (node.contains(flag) && node.at(flag).is_boolean()) { // as the fourth draft wrote it
            if (node.at(flag).get<bool>() && node.contains(bound)) {
                const common_json value = node.at(bound);
                node.erase(bound);
                node[flag] = value;
            } else {
                node.erase(flag);
            }
        }
    }
    for (const char * key : BOUNDS) {
        if (node.contains(key) &&
            !(node.at(key).is_number() && std::fabs(node.at(key).get<double>()) < MAX_BOUND)) {
            drop(node, key);
        }
    }
    const auto bound = [&](const char * key, double otherwise) {
        return node.contains(key) ? node.at(key).get<double>() : otherwise;
    };
    const double inf = std::numeric_limits<double>::infinity();
    const double least = node.contains("minimum") ? std::ceil(bound("minimum", -inf)) : std::floor(bound("exclusiveMinimum", -inf)) + 1;
    const double most = node.contains("maximum") ? std::floor(bound("maximum", inf)) : std::ceil(bound("exclusiveMaximum", inf)) - 1;
    if (least > most) { // as integers, and only those have bounds in a grammar
        for (const char * key : BOUNDS) {
            drop(node, key);
        }
    }
}

// Whether a pattern repeats nothing more often than the compiler can count, nor the wrong way round.
static bool can_count(const std::string & pattern) {
    for (size_t i = 0; i < pattern.size(); i++) {
        if (pattern[i] == '\\') {
            i++;
        } else if (pattern[i] == '{') {
            const size_t end = std::min(pattern.find('}', i), pattern.size());
            int64_t counts[2] = {0, 0};
            size_t n = 0;
            for (size_t at = i + 1; at < end; at++) {
                if (pattern[at] == ',') {
                    n++;
                } else if (isdigit(static_cast<unsigned char>(pattern[at])) && n < 2) {
                    counts[n] = std::min<int64_t>(counts[n] * 10 + (pattern[at] - '0'), MAX_COUNT + 1);
                }
            }
            const bool has_upper = n == 1 && end > i + 1 && pattern[end - 1] != ',';
            if (counts[0] > MAX_COUNT || counts[1] > MAX_COUNT || (has_upper && counts[0] > counts[1])) {
                return false;
            }
        }
    }
    return true;
}

void loosener::check_pattern(common_json & node) {
    if (node.contains("format") && !node.at("format").is_string()) {
        drop(node, "format");
    }
    if (!node.contains("pattern")) {
        return;
    }
    const common_json & pattern = node.at("pattern");
    if (!pattern.is_string() || pattern.get<std::string>().size() > MAX_PATTERN_BYTES || !can_count(pattern.get<std::string>())) {
        return drop(node, "pattern");
    }
    try {
        compile_grammar(vocab_, json_schema_to_grammar(common_json::object({{"type", "string"}, {"pattern", pattern}})));
    } catch (const std::exception &) {
        drop(node, "pattern");
    }
}

void loosener::visit_object(common_json & node, int depth) {
    bool leaves_some_out = has_object(node, "patternProperties") && !node.at("patternProperties").empty();
    if (node.contains("properties")) {
        if (!node.at("properties").is_object()) {
            drop(node, "properties");
        } else {
            std::vector<std::string> overlong;
            for (const auto & [key, child] : node.at("properties").items()) {
                if (key.size() > MAX_KEY_BYTES) {
                    overlong.push_back(key);
                } else {
                    visit(child, depth + 1);
                }
            }
            for (const std::string & key : overlong) {
                node.at("properties").erase(key);
                leaves_some_out = changed_ = true;
            }
        }
    }
    if (leaves_some_out) { // what the compiler knows nothing of must be possible all the same
        node["additionalProperties"] = true;
    }
    if (!node.contains("additionalProperties")) {
        return;
    }
    if (has_object(node, "additionalProperties")) {
        visit(node.at("additionalProperties"), depth + 1);
    } else if (!node.at("additionalProperties").is_boolean()) {
        drop(node, "additionalProperties");
    }
}

void loosener::visit_array(common_json & node, int depth) {
    if (node.contains("prefixItems") && node.contains("items") && !node.at("items").is_object()) {
        node.erase("items"); // says what follows the tuple, which the compiler ends with it
    }
    for (const char * key : {"items", "prefixItems"}) {
        if (!node.contains(key)) {
            continue;
        }
        common_json & items = node.at(key);
        if (!items.is_array()) {
            visit(items, depth + 1);
            continue;
        }
        for (size_t i = 0; i < items.size(); i++) {
            visit(items.at(i), depth + 1);
        }
    }
}

common_json loosen(const common_json & schema, const vocabulary & vocab, bool & changed) {
    common_json loose = schema;
    changed = loosener(loose, vocab).run();
    return loose;
}

// ---- all tools ------------------------------------------------------------------------------------------------------

static common_json names_only(const common_json & schema) {
    common_json bare = any_object(schema);
    if (!schema.is_object() || !has_object(schema, "properties") || schema.at("properties").size() > MAX_MEMBERS) {
        return bare;
    }
    common_json properties = common_json::object();
    for (const auto & [key, child] : schema.at("properties").items()) {
        if (key.size() > MAX_KEY_BYTES) {
            return bare;
        }
        properties[key] = open_node(child);
    }
    bare["properties"] = properties;
    if (schema.contains("required") && schema.at("required").is_array()) {
        bare["required"] = schema.at("required");
    }
    return bare;
}

static bool is_affordable(const common_json & schema, schema_budget & budget) {
    schema_budget with_it = budget;
    try {
        with_it.add(schema);
    } catch (const invalid_request &) {
        return false;
    }
    budget = with_it;
    return true;
}

tool_schemas loosen_tools(const std::vector<common_chat_tool> & tools, const vocabulary & vocab, schema_detail detail) {
    tool_schemas all;
    schema_budget budget("tools");
    for (const common_chat_tool & tool : tools) {
        const common_json given = common_json::parse_no_throw(tool.parameters);
        const common_json schema = given.is_discarded() ? common_json::object() : given;
        bool changed = detail != schema_detail::nodes;
        common_json loose = detail == schema_detail::nodes     ? loosen(schema, vocab, changed)
                            : detail == schema_detail::members ? names_only(schema)
                                                               : any_object(common_json::object());
        if (!is_affordable(loose, budget)) {
            changed = true;
            loose = names_only(schema);
            if (!is_affordable(loose, budget)) {
                loose = any_object(common_json::object());
            }
        }
        if (changed) {
            all.loosened.push_back(tool.name);
        }
        all.tools.push_back({tool.name, tool.description, loose == schema ? tool.parameters : loose.dump()});
    }
    return all;
}

}  // namespace lm
