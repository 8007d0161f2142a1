#include "schema_terms.h"

#include "regex.h"
#include "schema.h"
#include "schema_formats.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <unordered_map>

namespace lm {

static constexpr uint32_t INFINITE = automaton::INFINITE;
static constexpr size_t MAX_TERMS = 256;       // of one form; what is more is left out
static constexpr size_t MAX_GOALS = 60000;     // of one schema
static constexpr size_t MAX_MERGES = 60000;    // of one schema: 100 ms or so
static constexpr size_t MAX_EXCLUSIONS = 30000; // merges after which what two branches of a oneOf share is left out
static constexpr size_t MAX_BRANCH_TERMS = 32; // of one branch of a oneOf, the others excluded
static constexpr int MAX_REFERENCE_DEPTH = 200; // in place, one inside another
static constexpr size_t MAX_SUBSETS = 4;       // branches of an anyOf of which all subsets are looked at
static constexpr size_t MAX_UNENFORCED = 20;   // that are told of

static const json_value & no_value() {
    static const json_value value = [] {
        json_value v;
        v.what = json_value::kind::boolean;
        return v;
    }();
    return value;
}

schema_algebra::schema_algebra(const schema_document & document) : document_(document) {
    intern({});
    intern({{&no_value(), false}});
}

// ---- goals ------------------------------------------------------------------------------------------------------------

goal_id schema_algebra::intern(std::vector<literal> literals) {
    std::sort(literals.begin(), literals.end());
    literals.erase(std::unique(literals.begin(), literals.end()), literals.end());
    const auto [found, is_new] = known_goals_.try_emplace(literals, goal_id(goals_.size()));
    if (is_new) {
        if (goals_.size() == MAX_GOALS) {
            throw schema_error("the schema is too large");
        }
        goals_.push_back(std::move(literals));
    }
    return found->second;
}

goal_id schema_algebra::goal_of(const json_value & schema, bool negated) {
    const bool anything = schema.is_boolean() ? schema.truth : schema.is_object() && schema.members.empty();
    if (anything) {
        return negated ? NOTHING : ANYTHING;
    }
    if (schema.is_boolean()) {
        return negated ? ANYTHING : NOTHING;
    }
    if (!schema.is_object()) {
        throw schema_error("a subschema is neither an object nor a boolean");
    }
    return intern({{&schema, negated}});
}

goal_id schema_algebra::both(goal_id a, goal_id b) {
    if (a == ANYTHING || a == b) {
        return b;
    }
    if (b == ANYTHING) {
        return a;
    }
    if (a == NOTHING || b == NOTHING) {
        return NOTHING;
    }
    const auto [found, is_new] = known_both_.try_emplace({std::min(a, b), std::max(a, b)}, NOTHING);
    if (is_new) {
        std::vector<literal> all = goals_[a];
        all.insert(all.end(), goals_[b].begin(), goals_[b].end());
        for (const literal & l : all) {
            if (std::find(all.begin(), all.end(), literal{l.schema, !l.negated}) != all.end()) {
                return NOTHING;
            }
        }
        const goal_id id = intern(std::move(all));
        known_both_[{std::min(a, b), std::max(a, b)}] = id;
        return id;
    }
    return found->second;
}

goal_id schema_algebra::inverse(goal_id goal) {
    if (goal == ANYTHING) {
        return NOTHING;
    }
    if (goal == NOTHING) {
        return ANYTHING;
    }
    if (goals_[goal].size() != 1) {
        return NOTHING;
    }
    const literal l = goals_[goal][0];
    return intern({{l.schema, !l.negated}});
}

schema_algebra::terms_t schema_algebra::terms(goal_id goal) {
    const std::vector<literal> literals = goals_[goal];
    terms_t all(1);
    // Positive ones first: they say most.
    for (const bool negated : {false, true}) {
        for (const literal & l : literals) {
            if (l.negated == negated) {
                all = product(all, form(*l.schema, negated));
            }
        }
    }
    return all;
}

const schema_algebra::terms_t & schema_algebra::form(const json_value & schema, bool negated) {
    const auto [found, is_new] = forms_.try_emplace(literal{&schema, negated});
    if (!is_new) {
        if (!found->second) {
            throw schema_error("a $ref leads back to itself");
        }
        n_doubts_ += doubtful_forms_.count(found->first);
        return *found->second;
    }
    if (++depth_ > MAX_REFERENCE_DEPTH) {
        throw schema_error("its references and combinations nest too deep");
    }
    const size_t n_doubts = n_doubts_;
    terms_t made = negated ? negative(schema) : positive(schema);
    depth_--;
    if (negated || n_doubts_ != n_doubts) {
        n_doubts_++;
        doubtful_forms_.insert({&schema, negated});
    }
    std::unique_ptr<terms_t> & kept = forms_[literal{&schema, negated}];
    kept = std::make_unique<terms_t>(std::move(made));
    return *kept;
}

void schema_algebra::spend(size_t n) {
    spent_ += n;
    if (spent_ > MAX_MERGES) {
        throw schema_error("the schema combines too many others");
    }
}

void schema_algebra::leave_out(const std::string & what) {
    if (unenforced_.size() < MAX_UNENFORCED && std::find(unenforced_.begin(), unenforced_.end(), what) == unenforced_.end()) {
        unenforced_.push_back(what);
    }
}

// ---- products ---------------------------------------------------------------------------------------------------------

void schema_algebra::append(terms_t & to, const terms_t & more) {
    for (const schema_term & t : more) {
        if (to.size() < MAX_TERMS) {
            to.push_back(t);
        }
    }
}

schema_algebra::terms_t schema_algebra::product(const terms_t & a, const terms_t & b) {
    if (b.size() == 1 && a.size() == 1 && &a != &b) {
        schema_term t = a[0];
        return merge(t, b[0]) ? terms_t{std::move(t)} : terms_t{};
    }
    terms_t all;
    for (const schema_term & x : a) {
        for (const schema_term & y : b) {
            if (all.size() == MAX_TERMS) {
                return all;
            }
            schema_term t = x;
            if (merge(t, y)) {
                all.push_back(std::move(t));
            }
        }
    }
    return all;
}

// False if nothing can satisfy both, as far as one sees at once.
bool schema_algebra::merge(schema_term & t, const schema_term & o) {
    spend(1 + (t.required.size() + o.required.size() + t.places.size() + o.places.size()) / 16);
    t.types &= o.types;
    if (t.types & schema_term::number) {
        if (o.numbers.low) {
            t.numbers.add_low(*o.numbers.low);
        }
        if (o.numbers.high) {
            t.numbers.add_high(*o.numbers.high);
        }
        const auto add = [](std::vector<decimal> & to, const std::vector<decimal> & more) {
            for (const decimal & d : more) {
                if (std::find(to.begin(), to.end(), d) == to.end()) {
                    to.push_back(d);
                }
            }
        };
        add(t.numbers.multiples, o.numbers.multiples);
        add(t.numbers.not_multiples, o.numbers.not_multiples);
        add(t.numbers.exceptions, o.numbers.exceptions);
        std::vector<decimal> values = t.numbers.values.empty() ? o.numbers.values : t.numbers.values;
        if (!values.empty()) {
            t.numbers.values.clear();
            const auto out = [&](const decimal & d) { return !t.numbers.contains(d) || !o.numbers.contains(d); };
            values.erase(std::remove_if(values.begin(), values.end(), out), values.end());
            if (values.empty()) {
                t.types &= uint8_t(~schema_term::number);
            }
            t.numbers.values = std::move(values);
        } else if (t.numbers.low && t.numbers.high && compare(t.numbers.low->value, t.numbers.high->value) > 0) {
            t.types &= uint8_t(~schema_term::number);
        }
    }
    if (t.types & schema_term::string) {
        for (const automaton_ptr & a : o.words) {
            if (std::find(t.words.begin(), t.words.end(), a) == t.words.end()) {
                t.words.push_back(a);
            }
        }
        t.least_length = std::max(t.least_length, o.least_length);
        t.most_length = std::min(t.most_length, o.most_length);
        if (t.least_length > t.most_length) {
            t.types &= uint8_t(~schema_term::string);
        }
    }
    if (t.types & schema_term::array) {
        const size_t n = std::max(t.places.size(), o.places.size());
        for (size_t i = 0; i < n; i++) {
            const goal_id theirs = i < o.places.size() ? o.places[i] : o.items;
            if (i < t.places.size()) {
                t.places[i] = both(t.places[i], theirs);
            } else {
                t.places.push_back(both(t.items, theirs));
            }
        }
        t.items = both(t.items, o.items);
        t.n_evaluated = std::max(t.n_evaluated, o.n_evaluated);
        t.least_items = std::max(t.least_items, o.least_items);
        t.most_items = std::min(t.most_items, o.most_items);
        t.unique = t.unique || o.unique;
        t.contains.insert(t.contains.end(), o.contains.begin(), o.contains.end());
        if (t.least_items > t.most_items) {
            t.types &= uint8_t(~schema_term::array);
        }
    }
    if (t.types & schema_term::object) {
        for (const auto & s : o.shapes) {
            if (std::find(t.shapes.begin(), t.shapes.end(), s) == t.shapes.end()) {
                t.shapes.push_back(s);
            }
        }
        for (const std::string & name : o.required) {
            if (std::find(t.required.begin(), t.required.end(), name) == t.required.end()) {
                t.required.push_back(name);
            }
        }
        t.names.insert(t.names.end(), o.names.begin(), o.names.end());
        t.least_members = std::max(t.least_members, o.least_members);
        t.most_members = std::min(t.most_members, o.most_members);
        if (t.least_members > t.most_members || t.required.size() > t.most_members || (!o.required.empty() || !o.shapes.empty() ? is_hopeless(t) : false)) {
            t.types &= uint8_t(~schema_term::object);
        }
    }
    return t.types != 0;
}

// Whether a member is required that cannot be.
bool schema_algebra::is_hopeless(const schema_term & t) {
    std::unordered_map<std::string_view, std::pair<goal_id, size_t>> required; // with the last shape that speaks of it
    for (const std::string & name : t.required) {
        required[name] = {ANYTHING, SIZE_MAX};
    }
    for (size_t i = 0; i < t.shapes.size() && !required.empty(); i++) {
        const schema_term::shape & s = *t.shapes[i];
        spend((s.properties.size() + required.size()) / 64);
        for (const auto & [property, goal] : s.properties) {
            const auto found = required.find(property);
            if (found != required.end()) {
                found->second = {both(found->second.first, goal), i};
            }
        }
        for (auto & [name, known] : required) {
            if (known.second != i && s.patterns.empty() && s.has_rest) {
                known.first = both(known.first, s.rest);
            }
        }
    }
    return std::any_of(required.begin(), required.end(), [&](const auto & r) { return is_hopeless(r.second.first); });
}

static std::string spelled(const json_value & v) {
    switch (v.what) {
        case json_value::kind::null: return "n";
        case json_value::kind::boolean: return v.truth ? "t" : "f";
        case json_value::kind::string: return "s" + v.text;
        case json_value::kind::number: {
            const auto d = decimal::parse(v.text);
            return "d" + (d ? d->spell() : v.text);
        }
        default: return "";
    }
}

// Whether plain values that the schemas name exclude each other: the discriminators of unions.
bool schema_algebra::is_hopeless(goal_id goal) {
    if (goal == NOTHING || goal == ANYTHING) {
        return goal == NOTHING;
    }
    const auto [known, is_new] = hopeless_.try_emplace(goal, false);
    if (!is_new) {
        return known->second;
    }
    bool have = false;
    std::set<std::string> left;
    const std::vector<literal> & literals = goals_[goal];
    for (const bool negated : {false, true}) {
        for (const literal & l : literals) {
            if (l.negated != negated || (negated && !have)) {
                continue;
            }
            bool any = false;
            const std::vector<const json_value *> values = values_of(*l.schema, any);
            const bool plain = !any && std::all_of(values.begin(), values.end(), [](const json_value * v) { return !v->is_array() && !v->is_object(); });
            if (!plain || (negated && l.schema->members.size() > 2)) {
                continue;
            }
            if (negated && l.schema->members.size() == 2 && l.schema->find("type") == nullptr) {
                continue;
            }
            std::set<std::string> named;
            for (const json_value * v : values) {
                named.insert(spelled(*v));
            }
            std::set<std::string> kept;
            for (const std::string & v : have ? left : named) {
                if ((named.count(v) != 0) != negated) {
                    kept.insert(v);
                }
            }
            left = std::move(kept);
            have = true;
        }
    }
    return hopeless_[goal] = have && left.empty();
}

// ---- what a schema says ------------------------------------------------------------------------------------------------

// What the schema of schemas says of most that anyone writes; more than it is ever a schema to us.
static const schema_document & schemas() {
    static const schema_document document(R"({"$ref":"#/$defs/schema","$defs":{
        "schema":{"type":["object","boolean"],"properties":{
            "$id":{"type":"string","pattern":"^[^#\\s]*$"},"$schema":{"type":"string","format":"uri"},"$ref":{"type":"string","format":"uri-reference"},
            "$comment":{"type":"string"},"title":{"type":"string"},"description":{"type":"string"},"default":true,
            "readOnly":{"type":"boolean"},"examples":{"type":"array"},"type":{"anyOf":[{"$ref":"#/$defs/type"},
                {"type":"array","items":{"$ref":"#/$defs/type"},"minItems":1,"uniqueItems":true}]},
            "const":true,"enum":{"type":"array","minItems":1,"items":{"type":["string","number","boolean","null"]},"uniqueItems":true},
            "multipleOf":{"type":"number","exclusiveMinimum":0},"maximum":{"type":"number"},"exclusiveMaximum":{"type":"number"},
            "minimum":{"type":"number"},"exclusiveMinimum":{"type":"number"},"maxLength":{"$ref":"#/$defs/count"},
            "minLength":{"$ref":"#/$defs/count"},"pattern":{"type":"string","format":"regex"},"format":{"type":"string"},
            "items":{"$ref":"#/$defs/schema"},"maxItems":{"$ref":"#/$defs/count"},"minItems":{"$ref":"#/$defs/count"},
            "uniqueItems":{"type":"boolean"},"contains":{"$ref":"#/$defs/schema"},"maxProperties":{"$ref":"#/$defs/count"},
            "minProperties":{"$ref":"#/$defs/count"},"required":{"type":"array","items":{"type":"string"},"uniqueItems":true},
            "additionalProperties":{"$ref":"#/$defs/schema"},"$defs":{"$ref":"#/$defs/some"},"definitions":{"$ref":"#/$defs/some"},
            "properties":{"$ref":"#/$defs/some"},"propertyNames":{"$ref":"#/$defs/schema"},"if":{"$ref":"#/$defs/schema"},
            "then":{"$ref":"#/$defs/schema"},"else":{"$ref":"#/$defs/schema"},"allOf":{"$ref":"#/$defs/list"},
            "anyOf":{"$ref":"#/$defs/list"},"oneOf":{"$ref":"#/$defs/list"},"not":{"$ref":"#/$defs/schema"}},
            "additionalProperties":false},
        "some":{"type":"object","additionalProperties":{"$ref":"#/$defs/schema"}},
        "list":{"type":"array","minItems":1,"items":{"$ref":"#/$defs/schema"}},
        "count":{"type":"integer","minimum":0},
        "type":{"enum":["array","boolean","integer","null","number","object","string"]}}})");
    return document;
}

const json_value * schema_algebra::target(const json_value & schema) {
    const json_value * ref = schema.find("$ref");
    if (ref == nullptr) {
        for (const char * keyword : {"$dynamicRef", "$recursiveRef"}) {
            const json_value * dynamic = schema.find(keyword);
            if (dynamic != nullptr && dynamic->is_string()) {
                const json_value * to = document_.resolve(schema, dynamic->text);
                if (to == nullptr) {
                    throw schema_error(std::string(keyword) + " leads nowhere: " + dynamic->text);
                }
                return to; // as a plain one; whether there is another anchor is not looked for
            }
        }
        return nullptr;
    }
    if (!ref->is_string()) {
        return nullptr; // a property of that name, in draft 3's fashion
    }
    const json_value * to = (schemas().knows(schema) ? schemas() : document_).resolve(schema, ref->text);
    if (to == nullptr) {
        for (const char * uri : {"http://json-schema.org/draft", "https://json-schema.org/draft"}) {
            if (ref->text.compare(0, std::string(uri).size(), uri) == 0) {
                return schemas().resolve(schemas().root(), "#/$defs/schema");
            }
        }
        throw schema_error("$ref leads nowhere: " + ref->text.substr(0, 200));
    }
    if (!to->is_object() && !to->is_boolean()) {
        throw schema_error("$ref leads to no schema: " + ref->text.substr(0, 200));
    }
    return to;
}

static uint8_t type_bits(const std::string & name, bool & whole) {
    whole = name == "integer";
    if (name == "null") {
        return schema_term::null;
    }
    if (name == "boolean") {
        return schema_term::truth | schema_term::falsehood;
    }
    if (name == "number" || name == "integer") {
        return schema_term::number;
    }
    if (name == "string") {
        return schema_term::string;
    }
    if (name == "array") {
        return schema_term::array;
    }
    if (name == "object") {
        return schema_term::object;
    }
    if (name == "any") { // draft 3
        return schema_term::all;
    }
    throw schema_error("there is no type '" + name.substr(0, 100) + "'");
}

// The types that a schema names; `whole` if numbers must be integers.
static uint8_t types_of(const json_value & type, bool & whole) {
    whole = false;
    if (type.is_string()) {
        return type_bits(type.text, whole);
    }
    if (!type.is_array()) {
        throw schema_error("'type' is neither a name nor a list of names");
    }
    uint8_t bits = 0;
    bool any_integer = false;
    bool any_number = false;
    for (const json_value & item : type.items) {
        if (!item.is_string()) {
            throw schema_error("'type' is neither a name nor a list of names");
        }
        bool integer = false;
        bits |= type_bits(item.text, integer);
        any_integer = any_integer || integer;
        any_number = any_number || item.text == "number" || item.text == "any";
    }
    whole = any_integer && !any_number;
    return bits;
}

static decimal decimal_of(const json_value & value, const char * keyword) {
    if (!value.is_number()) {
        throw schema_error(std::string("'") + keyword + "' is no number");
    }
    const auto d = decimal::parse(value.text);
    if (!d) {
        throw schema_error(std::string("'") + keyword + "' has more digits than can be computed with");
    }
    return *d;
}

// Counts as 2.0 are counts. Beyond 32 bits there is no end.
uint32_t schema_algebra::count(const json_value & schema, const char * keyword, uint32_t otherwise) {
    const json_value * value = schema.find(keyword);
    if (value == nullptr) {
        return otherwise;
    }
    const decimal d = decimal_of(*value, keyword);
    if (!d.is_whole() || d.mantissa < 0) {
        throw schema_error(std::string("'") + keyword + "' is no count");
    }
    const auto n = d.at_scale(0);
    return n && *n < INFINITE ? uint32_t(*n) : INFINITE;
}

std::vector<const json_value *> schema_algebra::values_of(const json_value & schema, bool & any) {
    std::vector<const json_value *> values;
    any = true;
    if (const json_value * constant = schema.find("const")) {
        values.push_back(constant);
        any = false;
    }
    const json_value * list = schema.find("enum");
    if (list == nullptr) {
        return values;
    }
    if (!list->is_array()) {
        throw schema_error("'enum' is no list");
    }
    if (any) {
        for (const json_value & item : list->items) {
            values.push_back(&item);
        }
    }
    any = false;
    return values; // `const` beside `enum`: its value alone, checked by the caller
}

automaton_ptr schema_algebra::pattern(const std::string & expression) {
    const auto [found, is_new] = patterns_.try_emplace(expression);
    if (is_new) {
        try {
            found->second = compile_regex(expression);
        } catch (const malformed_error & e) {
            throw schema_error("'pattern' is no regular expression: " + expression.substr(0, 100) + " (" + e.what() + ")");
        } catch (const automaton_error & e) {
            leave_out("pattern " + expression.substr(0, 100) + " (" + e.what() + ")");
        }
    }
    return found->second;
}

static bool has_any(const json_value & schema, std::initializer_list<const char *> keywords) {
    return std::any_of(keywords.begin(), keywords.end(), [&](const char * k) { return schema.find(k) != nullptr; });
}

void schema_algebra::add_numbers(const json_value & schema, schema_term & t) {
    const json_value * low = schema.find("minimum");
    const json_value * high = schema.find("maximum");
    const json_value * above = schema.find("exclusiveMinimum");
    const json_value * below = schema.find("exclusiveMaximum");
    if (low != nullptr) {
        t.numbers.add_low({decimal_of(*low, "minimum"), above != nullptr && above->is_boolean() && above->truth});
    }
    if (high != nullptr) {
        t.numbers.add_high({decimal_of(*high, "maximum"), below != nullptr && below->is_boolean() && below->truth});
    }
    if (above != nullptr && !above->is_boolean()) {
        t.numbers.add_low({decimal_of(*above, "exclusiveMinimum"), true});
    }
    if (below != nullptr && !below->is_boolean()) {
        t.numbers.add_high({decimal_of(*below, "exclusiveMaximum"), true});
    }
    if (const json_value * multiple = schema.find("multipleOf")) {
        const decimal d = decimal_of(*multiple, "multipleOf");
        if (d.mantissa <= 0) {
            throw schema_error("'multipleOf' is not above zero");
        }
        t.numbers.multiples.push_back(d);
    }
}

void schema_algebra::add_strings(const json_value & schema, schema_term & t) {
    t.least_length = count(schema, "minLength", 0);
    t.most_length = count(schema, "maxLength", INFINITE);
    if (const json_value * expression = schema.find("pattern")) {
        if (!expression->is_string()) {
            throw schema_error("'pattern' is no text");
        }
        if (automaton_ptr words = pattern(expression->text)) {
            t.words.push_back(std::move(words));
        }
    }
    const json_value * format = schema.find("format");
    if (format != nullptr && format->is_string()) {
        const text_format known = find_format(format->text);
        if (known.words) {
            t.words.push_back(known.words);
            t.most_length = std::min(t.most_length, known.most);
        } else {
            leave_out("format " + format->text.substr(0, 100));
        }
    }
    if (t.least_length > t.most_length) {
        t.types &= uint8_t(~schema_term::string);
    }
}

void schema_algebra::add_items(const json_value & schema, schema_term & t) {
    const json_value * places = schema.find("prefixItems");
    const json_value * items = schema.find("items");
    const json_value * rest = items;
    if (items != nullptr && items->is_array()) {
        places = items;
        rest = schema.find("additionalItems");
    }
    if (places != nullptr) {
        if (!places->is_array()) {
            throw schema_error("'prefixItems' is no list");
        }
        for (const json_value & item : places->items) {
            t.places.push_back(goal_of(item, false));
        }
        t.n_evaluated = uint32_t(places->items.size());
    }
    if (rest != nullptr) {
        t.items = goal_of(*rest, false);
        t.n_evaluated = INFINITE;
    }
    t.least_items = count(schema, "minItems", 0);
    t.most_items = count(schema, "maxItems", INFINITE);
    const json_value * unique = schema.find("uniqueItems");
    t.unique = unique != nullptr && unique->is_boolean() && unique->truth;
    if (const json_value * contains = schema.find("contains")) {
        const uint32_t least = count(schema, "minContains", 1);
        const uint32_t most = count(schema, "maxContains", INFINITE);
        if (most == 0 && least == 0) {
            const goal_id none = goal_of(*contains, true);
            for (goal_id & place : t.places) {
                place = both(place, none);
            }
            t.items = both(t.items, none);
        } else if (least > 0 || most != INFINITE) {
            t.contains.push_back({goal_of(*contains, false), 0, least, most});
        }
    }
    if (t.least_items > t.most_items) {
        t.types &= uint8_t(~schema_term::array);
    }
}

void schema_algebra::add_members(const json_value & schema, schema_term & t) {
    if (has_any(schema, {"properties", "patternProperties", "additionalProperties"})) {
        auto shape = std::make_shared<schema_term::shape>();
        shape->evaluates = true;
        if (const json_value * properties = schema.find("properties")) {
            if (!properties->is_object()) {
                throw schema_error("'properties' is no object");
            }
            for (const auto & [name, child] : properties->members) {
                shape->properties.emplace_back(name, goal_of(child, false));
            }
        }
        const json_value * patterns = schema.find("patternProperties");
        if (patterns != nullptr && patterns->is_object()) {
            for (const auto & [expression, child] : patterns->members) {
                if (automaton_ptr words = pattern(expression)) {
                    shape->patterns.emplace_back(std::move(words), goal_of(child, false));
                }
            }
        }
        if (const json_value * rest = schema.find("additionalProperties")) {
            shape->rest = goal_of(*rest, false);
            shape->has_rest = true;
        }
        t.shapes.push_back(std::move(shape));
    }
    const json_value * required = schema.find("required");
    if (required != nullptr && required->is_array()) { // a boolean is draft 3's, and says it of the member
        for (const json_value & name : required->items) {
            if (!name.is_string()) {
                throw schema_error("'required' has something that is no name");
            }
            if (std::find(t.required.begin(), t.required.end(), name.text) == t.required.end()) {
                t.required.push_back(name.text);
            }
        }
    }
    if (const json_value * names = schema.find("propertyNames")) {
        const goal_id goal = goal_of(*names, false);
        if (goal != ANYTHING) {
            t.names.push_back(goal);
        }
    }
    t.least_members = count(schema, "minProperties", 0);
    t.most_members = count(schema, "maxProperties", INFINITE);
    if (t.least_members > t.most_members || t.required.size() > t.most_members || is_hopeless(t)) {
        t.types &= uint8_t(~schema_term::object);
    }
}

void schema_algebra::add_plain(const json_value & schema, schema_term & t) {
    if (const json_value * type = schema.find("type")) {
        bool whole = false;
        t.types = types_of(*type, whole);
        const json_value * nullable = schema.find("nullable"); // OpenAPI 3.0
        if (nullable != nullptr && nullable->is_boolean() && nullable->truth) {
            t.types |= schema_term::null;
        }
        if (whole) {
            t.numbers.multiples.push_back({1, 0});
        }
    }
    add_numbers(schema, t);
    add_strings(schema, t);
    add_items(schema, t);
    add_members(schema, t);
}

// A schema of the value alone: for arrays and objects.
const json_value * schema_algebra::as_schema(const json_value & value) {
    const auto [found, is_new] = schema_of_.try_emplace(&value, nullptr);
    if (!is_new) {
        return found->second;
    }
    made_.emplace_back();
    json_value & schema = made_.back();
    found->second = &schema;
    const auto text = [](const char * s) {
        json_value v;
        v.what = json_value::kind::string;
        v.text = s;
        return v;
    };
    const auto constant = [](const json_value & of) {
        json_value v;
        v.what = json_value::kind::object;
        v.members.emplace_back("const", of);
        return v;
    };
    schema.what = json_value::kind::object;
    if (value.is_array()) {
        json_value places;
        places.what = json_value::kind::array;
        for (const json_value & item : value.items) {
            places.items.push_back(constant(item));
        }
        json_value n;
        n.what = json_value::kind::number;
        n.text = std::to_string(value.items.size());
        schema.members.emplace_back("type", text("array"));
        schema.members.emplace_back("prefixItems", std::move(places));
        schema.members.emplace_back("minItems", n);
        schema.members.emplace_back("maxItems", n);
    } else {
        json_value properties;
        properties.what = json_value::kind::object;
        json_value required;
        required.what = json_value::kind::array;
        for (const auto & [name, child] : value.members) {
            properties.members.emplace_back(name, constant(child));
            required.items.push_back(text(name.c_str()));
            required.items.back().text = name;
        }
        json_value no;
        no.what = json_value::kind::boolean;
        schema.members.emplace_back("type", text("object"));
        schema.members.emplace_back("properties", std::move(properties));
        schema.members.emplace_back("required", std::move(required));
        schema.members.emplace_back("additionalProperties", std::move(no));
    }
    return &schema;
}

// Of what is no part of the schema that says it: nothing of that counts for unevaluatedProperties and unevaluatedItems.
static void forget_evaluated(std::vector<schema_term> & terms) {
    for (schema_term & t : terms) {
        t.n_evaluated = 0;
        for (auto & s : t.shapes) {
            if (s->evaluates) {
                auto other = std::make_shared<schema_term::shape>(*s);
                other->evaluates = false;
                s = std::move(other);
            }
        }
    }
}

// One of the values.
schema_algebra::terms_t schema_algebra::listed(const std::vector<const json_value *> & values) {
    schema_term plain;
    plain.types = 0;
    std::vector<std::string> words;
    terms_t all;
    for (const json_value * v : values) {
        switch (v->what) {
            case json_value::kind::null: plain.types |= schema_term::null; break;
            case json_value::kind::boolean: plain.types |= v->truth ? schema_term::truth : schema_term::falsehood; break;
            case json_value::kind::number:
                plain.types |= schema_term::number;
                plain.numbers.values.push_back(decimal_of(*v, "enum"));
                break;
            case json_value::kind::string:
                plain.types |= schema_term::string;
                words.push_back(v->text);
                break;
            default: append(all, form(*as_schema(*v), false));
        }
    }
    if (!words.empty()) {
        try {
            plain.words.push_back(automaton::words(words));
        } catch (const automaton_error &) {
            throw schema_error("'enum' has too many values");
        }
    }
    if (plain.types != 0) {
        all.insert(all.begin(), std::move(plain));
    }
    forget_evaluated(all);
    return all;
}

static const json_value & list_of(const json_value & list, const char * keyword) {
    if (!list.is_array()) {
        throw schema_error(std::string("'") + keyword + "' is no list");
    }
    return list;
}

schema_algebra::terms_t schema_algebra::any_of(const json_value & list, bool all_subsets) {
    terms_t all;
    const size_t n = list.items.size();
    if (all_subsets && n <= MAX_SUBSETS) {
        for (size_t subset = (size_t(1) << n) - 1; subset > 0; subset--) {
            terms_t some(1);
            for (size_t i = 0; i < n; i++) {
                if (subset >> i & 1) {
                    goal_of(list.items[i], false);
                    some = product(some, form(list.items[i], false));
                }
            }
            append(all, some);
        }
        return all;
    }
    for (const json_value & item : list.items) {
        goal_of(item, false);
        append(all, form(item, false));
    }
    return all;
}

schema_algebra::terms_t schema_algebra::exactly_one(const json_value & list) {
    terms_t all;
    for (const json_value & item : list.items) {
        goal_of(item, false);
        terms_t one = form(item, false);
        for (const json_value & other : list.items) {
            if (&other == &item || one.empty()) {
                continue;
            }
            // What cannot be of the other one needs no proof of it.
            const size_t n_doubts = n_doubts_;
            const terms_t & theirs = form(other, false);
            const bool is_doubtful = n_doubts_ != n_doubts;
            terms_t apart;
            terms_t shared;
            for (schema_term & t : one) {
                bool meets = is_doubtful;
                for (const schema_term & o : theirs) {
                    const size_t n_before = n_doubts_;
                    schema_term together = t;
                    meets = meets || merge(together, o) || n_doubts_ != n_before;
                }
                (meets ? shared : apart).push_back(std::move(t));
            }
            if (!shared.empty() && spent_ < MAX_EXCLUSIONS) {
                append(apart, product(shared, form(other, true)));
            }
            if (apart.size() > MAX_BRANCH_TERMS) {
                apart.resize(MAX_BRANCH_TERMS);
            }
            one = std::move(apart);
        }
        append(all, one);
    }
    return all;
}

// The terms of `name` being absent, or of its being there and `then`.
schema_algebra::terms_t schema_algebra::dependent(const json_value & schema) {
    terms_t all(1);
    const auto absent = [](const std::string & name) {
        auto shape = std::make_shared<schema_term::shape>();
        shape->properties.emplace_back(name, NOTHING);
        schema_term t;
        t.shapes.push_back(std::move(shape));
        return t;
    };
    for (const char * keyword : {"dependentRequired", "dependentSchemas", "dependencies"}) {
        const json_value * dependencies = schema.find(keyword);
        if (dependencies == nullptr || !dependencies->is_object()) {
            continue;
        }
        for (const auto & [name, what] : dependencies->members) {
            schema_term present;
            present.types = schema_term::object;
            present.required.push_back(name);
            terms_t then(1);
            if (what.is_array() || what.is_string()) {
                std::vector<json_value> one = {what};
                for (const json_value & other : what.is_array() ? what.items : one) {
                    if (other.text != name) {
                        present.required.push_back(other.text);
                    }
                }
            } else {
                goal_of(what, false);
                then = form(what, false);
            }
            terms_t choice = product({present}, then);
            choice.push_back(absent(name));
            all = product(all, choice);
        }
    }
    return all;
}

schema_algebra::terms_t schema_algebra::positive(const json_value & schema) {
    if (schema.is_boolean()) {
        return schema.truth ? terms_t(1) : terms_t();
    }
    const json_value * to = target(schema);
    if (to != nullptr && document_.draft() == schema_draft::before_2019) {
        return form(*to, false);
    }
    terms_t all(1);
    add_plain(schema, all[0]);
    if (all[0].types == 0) {
        return {};
    }
    if (to != nullptr) {
        all = product(all, form(*to, false));
    }
    bool any = true;
    std::vector<const json_value *> values = values_of(schema, any);
    if (!any) {
        all = product(all, listed(values));
        const json_value * list = schema.find("enum");
        if (list != nullptr && schema.find("const") != nullptr) {
            values.clear();
            for (const json_value & item : list->items) {
                values.push_back(&item);
            }
            all = product(all, listed(values));
        }
    }
    const bool unevaluated = has_any(schema, {"unevaluatedProperties", "unevaluatedItems"});
    if (const json_value * list = schema.find("allOf")) {
        for (const json_value & item : list_of(*list, "allOf").items) {
            goal_of(item, false);
            all = product(all, form(item, false));
        }
    }
    if (const json_value * list = schema.find("anyOf")) {
        all = product(all, any_of(list_of(*list, "anyOf"), unevaluated));
    }
    if (const json_value * list = schema.find("oneOf")) {
        all = product(all, exactly_one(list_of(*list, "oneOf")));
    }
    if (const json_value * condition = schema.find("if")) {
        const json_value * then = schema.find("then");
        const json_value * otherwise = schema.find("else");
        if (then != nullptr || otherwise != nullptr || unevaluated) {
            goal_of(*condition, false);
            terms_t met = form(*condition, false);
            if (then != nullptr) {
                goal_of(*then, false);
                met = product(met, form(*then, false));
            }
            terms_t unmet = form(*condition, true);
            if (otherwise != nullptr) {
                goal_of(*otherwise, false);
                unmet = product(unmet, form(*otherwise, false));
            }
            append(met, unmet);
            all = product(all, met);
        }
    }
    if (const json_value * negated = schema.find("not")) {
        goal_of(*negated, false);
        all = product(all, form(*negated, true));
    }
    if (has_any(schema, {"dependentRequired", "dependentSchemas", "dependencies"})) {
        all = product(all, dependent(schema));
    }
    if (unevaluated) {
        add_unevaluated(schema, all);
    }
    return all;
}

// Each term knows which of the branches it took, and so what was evaluated at least.
void schema_algebra::add_unevaluated(const json_value & schema, terms_t & all) {
    const json_value * members = schema.find("unevaluatedProperties");
    const json_value * items = schema.find("unevaluatedItems");
    const goal_id of_members = members == nullptr ? ANYTHING : goal_of(*members, false);
    const goal_id of_items = items == nullptr ? ANYTHING : goal_of(*items, false);
    for (schema_term & t : all) {
        if (members != nullptr) {
            auto shape = std::make_shared<schema_term::shape>();
            shape->rest = of_members;
            shape->has_rest = true;
            shape->evaluates = true;
            bool everything = false;
            for (const auto & s : t.shapes) {
                if (!s->evaluates) {
                    continue;
                }
                everything = everything || s->has_rest;
                for (const auto & property : s->properties) {
                    shape->properties.emplace_back(property.first, ANYTHING);
                }
                for (const auto & pattern : s->patterns) {
                    shape->patterns.emplace_back(pattern.first, ANYTHING);
                }
            }
            if (!everything) {
                t.shapes.push_back(std::move(shape));
                if ((t.types & schema_term::object) && is_hopeless(t)) {
                    t.types &= uint8_t(~schema_term::object);
                }
            }
        }
        if (items != nullptr && t.n_evaluated != INFINITE) {
            schema_term more;
            more.places.assign(t.n_evaluated, ANYTHING);
            more.items = of_items;
            more.n_evaluated = INFINITE;
            merge(t, more);
        }
    }
    all.erase(std::remove_if(all.begin(), all.end(), [](const schema_term & t) { return t.types == 0; }), all.end());
}

// ---- what it does not say ----------------------------------------------------------------------------------------------

static schema_term only(uint8_t types) {
    schema_term t;
    t.types = types;
    return t;
}

void schema_algebra::negate_values(const std::vector<const json_value *> & values, terms_t & out) {
    terms_t all(1);
    std::vector<std::string> words;
    for (const json_value * v : values) {
        switch (v->what) {
            case json_value::kind::null: all[0].types &= uint8_t(~schema_term::null); break;
            case json_value::kind::boolean: all[0].types &= uint8_t(~(v->truth ? schema_term::truth : schema_term::falsehood)); break;
            case json_value::kind::number: all[0].numbers.exceptions.push_back(decimal_of(*v, "enum")); break;
            case json_value::kind::string: words.push_back(v->text); break;
            default: break;
        }
    }
    if (!words.empty()) {
        try {
            all[0].words.push_back(automaton::words(words)->complement());
        } catch (const automaton_error &) {
            all[0].types &= uint8_t(~schema_term::string);
        }
    }
    for (const json_value * v : values) {
        if (v->is_array() || v->is_object()) {
            all = product(all, form(*as_schema(*v), true));
        }
    }
    append(out, all);
}

void schema_algebra::negate_numbers(const json_value & schema, terms_t & out) {
    schema_term said;
    add_numbers(schema, said);
    if (said.numbers.low) {
        schema_term t = only(schema_term::number);
        t.numbers.add_high({said.numbers.low->value, !said.numbers.low->exclusive});
        out.push_back(t);
    }
    if (said.numbers.high) {
        schema_term t = only(schema_term::number);
        t.numbers.add_low({said.numbers.high->value, !said.numbers.high->exclusive});
        out.push_back(t);
    }
    for (const decimal & d : said.numbers.multiples) {
        schema_term t = only(schema_term::number);
        t.numbers.not_multiples.push_back(d);
        out.push_back(t);
    }
}

void schema_algebra::negate_strings(const json_value & schema, terms_t & out) {
    const uint32_t least = count(schema, "minLength", 0);
    const uint32_t most = count(schema, "maxLength", INFINITE);
    if (least > 0) {
        schema_term t = only(schema_term::string);
        t.most_length = least - 1;
        out.push_back(t);
    }
    if (most != INFINITE) {
        schema_term t = only(schema_term::string);
        t.least_length = most + 1;
        out.push_back(t);
    }
    const json_value * expression = schema.find("pattern");
    const json_value * format = schema.find("format");
    std::vector<automaton_ptr> words;
    if (expression != nullptr && expression->is_string()) {
        words.push_back(pattern(expression->text));
    }
    if (format != nullptr && format->is_string()) {
        const text_format known = find_format(format->text);
        if (known.words && known.exact) {
            words.push_back(known.words);
        } else if (!known.words) {
            leave_out("format " + format->text.substr(0, 100));
        }
    }
    for (const automaton_ptr & a : words) {
        if (a) {
            schema_term t = only(schema_term::string);
            try {
                t.words.push_back(a->complement());
                out.push_back(t);
            } catch (const automaton_error &) {
            }
        }
    }
}

void schema_algebra::negate_items(const json_value & schema, terms_t & out) {
    schema_term said;
    add_items(schema, said);
    if (said.least_items > 0) {
        schema_term t = only(schema_term::array);
        t.most_items = said.least_items - 1;
        out.push_back(t);
    }
    if (said.most_items != INFINITE) {
        schema_term t = only(schema_term::array);
        t.least_items = said.most_items + 1;
        out.push_back(t);
    }
    const json_value * contains = schema.find("contains");
    for (size_t i = 0; i < said.places.size(); i++) {
        const goal_id other = inverse(said.places[i]);
        if (other != NOTHING) {
            schema_term t = only(schema_term::array);
            t.places.assign(i, ANYTHING);
            t.places.push_back(other);
            t.least_items = uint32_t(i + 1);
            out.push_back(t);
        }
    }
    const goal_id other = inverse(said.items);
    if (other != NOTHING) {
        schema_term t = only(schema_term::array);
        t.least_items = uint32_t(said.places.size() + 1);
        t.contains.push_back({other, uint32_t(said.places.size()), 1, INFINITE});
        out.push_back(t);
    }
    if (contains == nullptr) {
        return;
    }
    const uint32_t least = count(schema, "minContains", 1);
    const uint32_t most = count(schema, "maxContains", INFINITE);
    if (least > 0) {
        schema_term t = only(schema_term::array);
        if (least == 1) {
            t.items = goal_of(*contains, true);
        } else {
            t.contains.push_back({goal_of(*contains, false), 0, 0, least - 1});
        }
        out.push_back(t);
    }
    if (most != INFINITE) {
        schema_term t = only(schema_term::array);
        t.contains.push_back({goal_of(*contains, false), 0, most + 1, INFINITE});
        out.push_back(t);
    }
}

void schema_algebra::negate_members(const json_value & schema, terms_t & out) {
    schema_term said;
    said.types = schema_term::object;
    add_members(schema, said);
    const auto with = [&](const std::string & name, goal_id goal, bool required) {
        schema_term t = only(schema_term::object);
        auto shape = std::make_shared<schema_term::shape>();
        shape->properties.emplace_back(name, goal);
        t.shapes.push_back(std::move(shape));
        if (required) {
            t.required.push_back(name);
        }
        return t;
    };
    for (const std::string & name : said.required) {
        out.push_back(with(name, NOTHING, false));
    }
    for (const auto & shape : said.shapes) {
        for (const auto & [name, goal] : shape->properties) {
            const goal_id other = inverse(goal);
            if (other != NOTHING && !is_hopeless(other)) {
                out.push_back(with(name, other, true));
            }
        }
    }
    if (said.least_members > 0) {
        schema_term t = only(schema_term::object);
        t.most_members = said.least_members - 1;
        out.push_back(t);
    }
    if (said.most_members != INFINITE) {
        schema_term t = only(schema_term::object);
        t.least_members = said.most_members + 1;
        out.push_back(t);
    }
    // That some member of many is not as it should be cannot be said in a term: left out.
    const bool has_open = !said.names.empty() || std::any_of(said.shapes.begin(), said.shapes.end(), [](const auto & shape) {
        return !shape->patterns.empty() || shape->rest != ANYTHING;
    });
    denies_open_names_ = denies_open_names_ || has_open;
    for (const char * keyword : {"dependentRequired", "dependentSchemas", "dependencies"}) {
        const json_value * dependencies = schema.find(keyword);
        if (dependencies == nullptr || !dependencies->is_object()) {
            continue;
        }
        for (const auto & [name, what] : dependencies->members) {
            schema_term present = only(schema_term::object);
            present.required.push_back(name);
            if (!what.is_array()) {
                goal_of(what, false);
                append(out, product({present}, form(what, true)));
                continue;
            }
            for (const json_value & other : what.items) {
                if (other.text != name) {
                    append(out, product({present}, {with(other.text, NOTHING, false)}));
                }
            }
        }
    }
}

schema_algebra::terms_t schema_algebra::negative(const json_value & schema) {
    if (schema.is_boolean()) {
        return schema.truth ? terms_t() : terms_t(1);
    }
    terms_t out;
    const json_value * to = target(schema);
    if (to != nullptr) {
        append(out, form(*to, true));
        if (document_.draft() == schema_draft::before_2019) {
            return out;
        }
    }
    if (const json_value * type = schema.find("type")) {
        bool whole = false;
        uint8_t bits = types_of(*type, whole);
        const json_value * nullable = schema.find("nullable");
        if (nullable != nullptr && nullable->is_boolean() && nullable->truth) {
            bits |= schema_term::null;
        }
        if (bits != schema_term::all) {
            out.push_back(only(uint8_t(~bits & schema_term::all)));
        }
        if (whole) {
            schema_term t = only(schema_term::number);
            t.numbers.not_multiples.push_back({1, 0});
            out.push_back(t);
        }
    }
    bool any = true;
    const std::vector<const json_value *> values = values_of(schema, any);
    if (!any) {
        negate_values(values, out);
    }
    negate_numbers(schema, out);
    negate_strings(schema, out);
    negate_items(schema, out);
    negate_members(schema, out);
    if (const json_value * list = schema.find("allOf")) {
        for (const json_value & item : list_of(*list, "allOf").items) {
            goal_of(item, false);
            append(out, form(item, true));
        }
    }
    const auto none_of = [&](const json_value & list) {
        terms_t all(1);
        for (const json_value & item : list.items) {
            goal_of(item, false);
            all = product(all, form(item, true));
        }
        return all;
    };
    if (const json_value * list = schema.find("anyOf")) {
        append(out, none_of(list_of(*list, "anyOf")));
    }
    if (const json_value * list = schema.find("oneOf")) {
        append(out, none_of(list_of(*list, "oneOf")));
        for (size_t i = 0; i < list->items.size(); i++) {
            for (size_t k = i + 1; k < list->items.size(); k++) {
                append(out, product(form(list->items[i], false), form(list->items[k], false)));
            }
        }
    }
    if (const json_value * negated = schema.find("not")) {
        goal_of(*negated, false);
        append(out, form(*negated, false));
    }
    if (const json_value * condition = schema.find("if")) {
        const json_value * then = schema.find("then");
        const json_value * otherwise = schema.find("else");
        goal_of(*condition, false);
        if (then != nullptr) {
            goal_of(*then, false);
            append(out, product(form(*condition, false), form(*then, true)));
        }
        if (otherwise != nullptr) {
            goal_of(*otherwise, false);
            append(out, product(form(*condition, true), form(*otherwise, true)));
        }
    }
    forget_evaluated(out);
    return out;
}

}  // namespace lm
