#include "call_outline.h"

#include "json.h"

#include <algorithm>
#include <map>
#include <set>

namespace lm {

static constexpr size_t MAX_OUTLINE_DEPTH = 6; // of arguments within arguments; what is deeper is JSON
static constexpr size_t MAX_OUTLINED = 4096;   // arguments of one tool, those within others too

namespace {

// The values that may stand in one place.
using values_t = std::set<uint32_t>;

class outliner {
  public:
    outliner(const schema & s, bool nested) : schema_(s), nested_(nested) {}

    common_json object(const values_t & values, size_t depth) {
        std::vector<std::string> names;
        std::map<std::string, values_t> all;
        for (const uint32_t value : values) {
            for (const uint32_t id : schema_.values[value].objects) {
                for (const schema::property & p : schema_.objects[id].listed) {
                    if (schema_.values[p.value].nesting == NEVER_MET) {
                        continue;
                    }
                    if (all.find(p.name) == all.end()) {
                        names.push_back(p.name);
                    }
                    all[p.name].insert(p.value);
                }
            }
        }
        common_json properties = common_json::object();
        for (const std::string & name : names) {
            if (++n_ > MAX_OUTLINED) {
                break;
            }
            properties[name] = this->value(all[name], depth + 1);
        }
        return common_json::object({{"type", "object"}, {"properties", properties}});
    }

  private:
    common_json value(const values_t & values, size_t depth) {
        static const common_json as_json = common_json::object({{"type", "object"}});
        bool strings = false;
        values_t objects;
        values_t items;
        std::vector<std::string> types;
        const auto add = [&](bool there, const char * type) {
            if (there && std::find(types.begin(), types.end(), type) == types.end()) {
                types.push_back(type);
            }
        };
        for (const uint32_t id : values) {
            const schema::value_node & v = schema_.values[id];
            strings = strings || !v.strings.empty();
            add(!v.objects.empty(), "object");
            add(!v.arrays.empty(), "array");
            add(!v.numbers.empty(), "number");
            add(v.truth || v.falsehood, "boolean");
            add(v.null, "null");
            objects.insert(id);
            for (const uint32_t array : v.arrays) {
                for (const auto & place : schema_.arrays[array].places) {
                    for (const schema::item_choice & choice : place) {
                        items.insert(choice.value);
                    }
                }
            }
        }
        if (strings) {
            types.push_back("string");
            common_json list = common_json::array();
            for (const std::string & type : types) {
                list.push_back(type);
            }
            return nested_ || types.size() == 1 ? common_json::object({{"type", "string"}}) : common_json::object({{"type", list}});
        }
        if (!nested_ || depth > MAX_OUTLINE_DEPTH || types.empty()) {
            return as_json;
        }
        common_json ways = common_json::array();
        for (const std::string & type : types) {
            if (type == "object") {
                ways.push_back(object(objects, depth));
            } else if (type == "array") {
                ways.push_back(common_json::object({{"type", type}, {"items", value(items, depth + 1)}}));
            } else {
                ways.push_back(common_json::object({{"type", type}}));
            }
        }
        return ways.size() == 1 ? ways.at(size_t(0)) : common_json::object({{"anyOf", ways}});
    }

    const schema & schema_;
    bool nested_;
    size_t n_ = 0;
};

}  // namespace

std::string outline_of(const schema & arguments, call_notation notation) {
    if (notation == call_notation::json) {
        return R"({"type":"object"})";
    }
    return outliner(arguments, notation == call_notation::nested).object({0}, 0).dump();
}

}  // namespace lm
