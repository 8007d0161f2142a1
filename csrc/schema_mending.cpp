#include "schema_mending.h"

#include "number_set.h"
#include "regex.h"
#include "schema_document.h"

#include <algorithm>
#include <cctype>
#include <initializer_list>
#include <optional>
#include <unordered_map>

namespace lm {

static constexpr int MAX_DEPTH = 128; // of nodes
static constexpr int MAX_HOPS = 400;  // in place, from one schema to others; the compiler follows fewer
static constexpr size_t MAX_TYPES = 16;
static constexpr size_t MAX_TOLD = 20;

static const char * const SCHEMAS[] = {"additionalItems", "contains", "additionalProperties", "propertyNames", "not", "if", "then",
                                       "else", "unevaluatedItems", "unevaluatedProperties"};
static const char * const LISTS[] = {"allOf", "anyOf", "oneOf"};
static const char * const MAPS[] = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"};
static const char * const COUNTS[][2] = {{"minLength", "maxLength"}, {"minItems", "maxItems"}, {"minProperties", "maxProperties"}, {"minContains", "maxContains"}};
static const char * const BOUNDS[] = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"};

static json_value * find(json_value & node, const char * keyword) {
    return const_cast<json_value *>(node.find(keyword));
}

namespace {

class mender {
  public:
    explicit mender(json_value & root) : root_(root) {}

    std::vector<std::string> run() {
        visit(root_, 0);
        mend_references();
        return std::move(told_);
    }

  private:
    void tell(const std::string & what) {
        if (told_.size() < MAX_TOLD) {
            told_.push_back(what);
        }
    }

    void drop(json_value & node, const char * keyword) {
        auto & members = node.members;
        const size_t before = members.size();
        members.erase(std::remove_if(members.begin(), members.end(), [&](const auto & m) { return m.first == keyword; }), members.end());
        if (members.size() < before) {
            tell(std::string("'") + keyword + "' as it is written");
        }
    }

    void open(json_value & node) {
        node = {};
        node.what = json_value::kind::object;
        tell("something that is no schema");
    }

    void visit(json_value & node, int depth) {
        if (node.is_boolean()) {
            return;
        }
        if (!node.is_object() || depth > MAX_DEPTH) {
            return open(node);
        }
        mend_type(node);
        mend_numbers(node);
        mend_counts(node);
        mend_texts(node);
        mend_values(node);
        mend_names(node);
        visit_children(node, depth);
    }

    void visit_children(json_value & node, int depth) {
        for (const char * keyword : SCHEMAS) {
            if (json_value * child = find(node, keyword)) {
                visit(*child, depth + 1);
            }
        }
        if (json_value * items = find(node, "items")) {
            if (items->is_array()) {
                visit_all(items->items, depth);
            } else {
                visit(*items, depth + 1);
            }
        }
        for (const char * keyword : LISTS) {
            json_value * list = find(node, keyword);
            if (list != nullptr && (!list->is_array() || list->items.empty())) {
                drop(node, keyword);
            } else if (list != nullptr) {
                visit_all(list->items, depth);
            }
        }
        if (json_value * places = find(node, "prefixItems")) {
            if (places->is_array()) {
                visit_all(places->items, depth);
            } else {
                drop(node, "prefixItems");
            }
        }
        for (const char * keyword : MAPS) {
            json_value * map = find(node, keyword);
            if (map != nullptr && !map->is_object()) {
                drop(node, keyword);
            } else if (map != nullptr) {
                for (auto & [name, child] : map->members) {
                    visit(child, depth + 1);
                }
            }
        }
    }

    void visit_all(std::vector<json_value> & nodes, int depth) {
        for (json_value & node : nodes) {
            visit(node, depth + 1);
        }
    }

    // Some people's generators write them in capitals.
    void mend_type(json_value & node) {
        static const char * const known[] = {"object", "array", "string", "integer", "number", "boolean", "null", "any"};
        json_value * type = find(node, "type");
        if (type == nullptr) {
            return;
        }
        const auto is_known = [&](json_value & name) {
            std::string lowered = name.text;
            std::transform(lowered.begin(), lowered.end(), lowered.begin(), [](unsigned char c) { return char(tolower(c)); });
            const bool is_one = name.is_string() && std::find(std::begin(known), std::end(known), lowered) != std::end(known);
            name.text = is_one ? lowered : name.text;
            return is_one;
        };
        const bool good = type->is_array() ? !type->items.empty() && type->items.size() <= MAX_TYPES &&
                                                 std::all_of(type->items.begin(), type->items.end(), is_known)
                                           : is_known(*type);
        if (!good) {
            drop(node, "type");
        }
    }

    static std::optional<decimal> number_in(json_value & node, const char * keyword) {
        const json_value * value = find(node, keyword);
        return value != nullptr && value->is_number() ? decimal::parse(value->text) : std::nullopt;
    }

    void mend_numbers(json_value & node) {
        for (const char * keyword : BOUNDS) {
            const json_value * value = find(node, keyword);
            const bool is_flag = value != nullptr && value->is_boolean() && keyword[0] == 'e'; // as the fourth draft wrote it
            if (value != nullptr && !is_flag && !number_in(node, keyword)) {
                drop(node, keyword);
            }
        }
        if (find(node, "multipleOf") != nullptr) {
            const auto d = number_in(node, "multipleOf");
            if (!d || d->mantissa <= 0) {
                drop(node, "multipleOf");
            }
        }
        number_terms terms;
        const auto is_set = [&](const char * flag) {
            const json_value * value = find(node, flag);
            return value != nullptr && value->is_boolean() && value->truth;
        };
        if (const auto d = number_in(node, "minimum")) {
            terms.add_low({*d, is_set("exclusiveMinimum")});
        }
        if (const auto d = number_in(node, "maximum")) {
            terms.add_high({*d, is_set("exclusiveMaximum")});
        }
        if (const auto d = number_in(node, "exclusiveMinimum")) {
            terms.add_low({*d, true});
        }
        if (const auto d = number_in(node, "exclusiveMaximum")) {
            terms.add_high({*d, true});
        }
        const json_value * type = find(node, "type");
        if (type != nullptr && type->is_string() && type->text == "integer") {
            terms.multiples.push_back({1, 0});
        }
        if ((terms.low || terms.high) && number_set(terms).is_empty()) {
            for (const char * keyword : BOUNDS) {
                drop(node, keyword);
            }
        }
    }

    void mend_counts(json_value & node) {
        for (const auto & pair : COUNTS) {
            for (const char * keyword : pair) {
                if (find(node, keyword) != nullptr) {
                    const auto d = number_in(node, keyword);
                    if (!d || !d->is_whole() || d->mantissa < 0) {
                        drop(node, keyword);
                    }
                }
            }
            const auto least = number_in(node, pair[0]);
            const auto most = number_in(node, pair[1]);
            if (least && most && compare(*least, *most) > 0) {
                drop(node, pair[0]);
                drop(node, pair[1]);
            }
        }
    }

    void mend_texts(json_value & node) {
        const json_value * format = find(node, "format");
        if (format != nullptr && !format->is_string()) {
            drop(node, "format");
        }
        const json_value * pattern = find(node, "pattern");
        if (pattern != nullptr && !(pattern->is_string() && is_regex(pattern->text))) {
            drop(node, "pattern");
        }
        json_value * patterns = find(node, "patternProperties");
        if (patterns == nullptr || !patterns->is_object()) {
            return;
        }
        auto & all = patterns->members;
        const size_t before = all.size();
        all.erase(std::remove_if(all.begin(), all.end(), [](const auto & m) { return !is_regex(m.first); }), all.end());
        if (all.size() < before) {
            tell("a name in 'patternProperties'");
        }
    }

    void mend_values(json_value & node) {
        const json_value * values = find(node, "enum");
        if (values != nullptr && (!values->is_array() || values->items.empty())) {
            drop(node, "enum");
        }
    }

    void mend_names(json_value & node) {
        json_value * required = find(node, "required");
        if (required == nullptr || !required->is_array()) {
            return; // a boolean is the third draft's
        }
        auto & names = required->items;
        const size_t before = names.size();
        names.erase(std::remove_if(names.begin(), names.end(), [](const json_value & name) { return !name.is_string(); }), names.end());
        if (names.size() < before) {
            tell("something in 'required'");
        }
    }

    // ---- references: those that lead nowhere, or back to themselves with nothing in between

    void mend_references() {
        const schema_document document(root_); // of a copy: the references are looked for there
        std::vector<std::vector<size_t>> faults;
        colors_.clear();
        std::vector<size_t> path;
        find_faults(document, document.root(), path, faults);
        for (const std::vector<size_t> & fault : faults) {
            json_value * node = &root_;
            for (const size_t step : fault) {
                node = node->is_array() ? &node->items[step] : &node->members[step].second;
            }
            drop(*node, "$ref");
        }
    }

    void find_faults(const schema_document & document, const json_value & node, std::vector<size_t> & path, std::vector<std::vector<size_t>> & faults) {
        const json_value * ref = node.is_object() ? node.find("$ref") : nullptr;
        if (ref != nullptr && ref->is_string()) {
            const json_value * to = document.resolve(node, ref->text);
            const bool is_dialect = ref->text.find("json-schema.org/draft") != std::string::npos;
            const bool leads = to == nullptr ? is_dialect : (to->is_object() || to->is_boolean()) && !goes_round(document, node, 0);
            if (!leads) {
                faults.push_back(path);
            }
        }
        const size_t n = node.is_array() ? node.items.size() : node.members.size();
        for (size_t i = 0; i < n; i++) {
            const json_value & child = node.is_array() ? node.items[i] : node.members[i].second;
            if (!child.is_array() && !child.is_object()) {
                continue;
            }
            const std::string * name = node.is_array() ? nullptr : &node.members[i].first;
            if (name != nullptr && (*name == "enum" || *name == "const" || *name == "default" || *name == "examples")) {
                continue; // values
            }
            path.push_back(i);
            find_faults(document, child, path, faults);
            path.pop_back();
        }
    }

    enum class color { under_way, free };

    // Whether what holds in the place of this node holds it again. Each node is looked at once.
    bool goes_round(const schema_document & document, const json_value & node, int depth) {
        if (!node.is_object()) {
            return false;
        }
        const auto [known, is_new] = colors_.try_emplace(&node, color::under_way);
        if (!is_new) {
            return known->second == color::under_way;
        }
        bool round = depth > MAX_HOPS;
        const auto look = [&](const json_value * other) { round = round || (other != nullptr && goes_round(document, *other, depth + 1)); };
        const json_value * ref = node.find("$ref");
        if (ref != nullptr && ref->is_string() && !round) {
            look(document.resolve(node, ref->text));
        }
        for (const char * keyword : {"not", "if", "then", "else"}) {
            look(node.find(keyword));
        }
        for (const char * keyword : LISTS) {
            const json_value * list = node.find(keyword);
            for (size_t i = 0; list != nullptr && i < list->items.size(); i++) {
                look(&list->items[i]);
            }
        }
        const json_value * dependent = node.find("dependentSchemas");
        for (size_t i = 0; dependent != nullptr && i < dependent->members.size(); i++) {
            look(&dependent->members[i].second);
        }
        if (round) {
            colors_.erase(&node); // who asks next is told again
        } else {
            colors_[&node] = color::free;
        }
        return round;
    }

    json_value & root_;
    std::vector<std::string> told_;
    std::unordered_map<const json_value *, color> colors_;
};

}  // namespace

std::vector<std::string> mend_schema(json_value & root) {
    return mender(root).run();
}

}  // namespace lm
