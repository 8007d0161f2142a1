// Schemas of tools as they are met, and what is left of those that llama.cpp's compiler refuses: the arguments that a tool
// wants must be possible, and what it forbids in words that can be read stays forbidden.
#include "chat_vocabulary.h"
#include "check.h"
#include "error.h"
#include "grammar.h"
#include "matcher.h"
#include "tool_schemas.h"

#include "json-schema-to-grammar.h"

using namespace lm;

static const chat_vocabulary & tokens() {
    static const chat_vocabulary all;
    return all;
}

static bool accepts(const common_json & schema, const std::string & text) {
    matcher m(compile_grammar(*tokens().vocab, json_schema_to_grammar(schema), "tools"), *tokens().vocab);
    for (const char c : text) {
        if (!m.allows(tokens().byte(c))) {
            return false;
        }
        m.accept(tokens().byte(c));
    }
    const llama_token end = llama_vocab_eos(tokens().vocab->get());
    return m.allows(end);
}

struct schema_case {
    const char * schema;
    std::vector<const char *> possible;
    std::vector<const char *> forbidden;
    bool changed = true;
};

static void check(const schema_case & c) {
    bool changed = false;
    const common_json loose = loosen(common_json::parse(c.schema), *tokens().vocab, changed);
    schema_budget("tools").add(loose);
    const auto holds = [&](bool condition, const std::string & what) {
        if (!condition) {
            fprintf(stderr, "%s\n became %s\n %s\n", c.schema, loose.dump().c_str(), what.c_str());
            exit(1);
        }
    };
    holds(changed == c.changed, changed ? "and was told as changed" : "and was not told as changed");
    for (const char * text : c.possible) {
        holds(accepts(loose, text), std::string("and does not accept ") + text);
    }
    for (const char * text : c.forbidden) {
        holds(!accepts(loose, text), std::string("and accepts ") + text);
    }
}

// A property `a` of this schema beside a string `b`, which must stay one.
static void check_property(const std::string & a, std::vector<std::string> possible, std::vector<std::string> forbidden,
                           bool changed = true, const std::string & more = "") {
    const std::string schema = R"({"type":"object","properties":{"a":)" + a + R"(,"b":{"type":"string"}},"required":["a","b"])" + more + "}";
    schema_case c{schema.c_str(), {}, {R"({"a":1,"b":1})", "1"}, changed};
    std::vector<std::string> texts;
    for (auto * some : {&possible, &forbidden}) {
        for (std::string & value : *some) {
            value = R"({"a":)" + value + R"(,"b":"x"})";
            (some == &possible ? c.possible : c.forbidden).push_back(value.c_str());
        }
    }
    check(c);
}

TEST(a_node_that_no_grammar_can_be_made_of_is_left_open_and_the_others_are_not) {
    for (const char * node : {"null", "1", "\"string\"", "[]", "false", R"({"type":"any"})", R"({"type":[]})", R"({"type":1})",
                              R"({"type":["string","any"]})", R"({"$ref":1})", R"({"$ref":"https://example.com/x.json"})",
                              R"({"$ref":"#/$defs/none"})", R"({"$ref":"other.json#/a"})", R"({"$ref":"#/properties"})",
                              R"({"$ref":"#/properties/a"})", R"({"anyOf":[]})", R"({"oneOf":null})", R"({"allOf":[]})",
                              R"({"enum":[]})", R"({"enum":"x"})", R"({"allOf":[{"minimum":3},{"maximum":4}]})",
                              R"({"type":["a","b","c","d","e","f","g","h","i","j","k","l","m","n","o","p","q"]})"}) {
        check_property(node, {"1", "\"text\"", "{\"x\":[null,true]}"}, {"nothing"});
    }
    check_property("true", {"1", "\"text\""}, {}, false);
    check_property("{}", {"1", "\"text\""}, {}, false);
    check_property(R"({"$ref":"#"})", {"{}", R"({"c":1})"}, {"1"});
}

TEST(a_bound_that_cannot_be_counted_goes_and_its_type_stays) {
    for (const char * node : {R"({"type":"string","minLength":-1})", R"({"type":"string","maxLength":99999})", R"({"type":"string","minLength":5,"maxLength":2})",
                              R"({"type":"string","maxLength":"7"})", R"({"type":"string","minLength":2.5})",
                              R"({"type":"string","maxLength":18446744073709551615})", R"({"type":"string","pattern":7})",
                              R"x({"type":"string","pattern":"^(a$"})x", R"({"type":"string","pattern":"^a{5,2}$"})",
                              R"({"type":"string","pattern":"^a{0,99999}$"})", R"({"type":"string","format":1})",
                              R"({"type":"string","enum":[]})", R"({"type":"string","allOf":[]})"}) {
        check_property(node, {"\"text\"", "\"\""}, {"1", "null"});
    }
    for (const char * node : {R"({"type":"integer","minimum":"1"})", R"({"type":"integer","maximum":1e300})", R"({"type":"integer","minimum":5,"maximum":2})",
                              R"({"type":"integer","exclusiveMinimum":3,"exclusiveMaximum":4})",
                              R"({"type":"integer","maximum":18446744073709551615})", R"({"type":"integer","minimum":-9223372036854775808})",
                              R"({"type":"integer","minimum":[]})"}) {
        check_property(node, {"7", "-7"}, {"\"7\"", "7.5"});
    }
    for (const char * node : {R"({"type":"array","items":{"type":"integer"},"minItems":99999})", R"({"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":1})",
                              R"({"type":"array","items":{"type":"integer"},"maxItems":"1"})"}) {
        check_property(node, {"[]", "[1,2]"}, {"[\"1\"]", "1"});
    }
}

TEST(spellings_of_other_drafts_and_generators_are_understood) {
    check_property(R"({"type":"integer","minimum":3,"exclusiveMinimum":true,"maximum":9,"exclusiveMaximum":false})", {"4", "9"}, {"3", "10"}, false);
    check_property(R"({"type":"STRING","nullable":true})", {"\"x\"", "null"}, {"1"}, false);
    check_property(R"({"type":["String","Null"]})", {"\"x\"", "null"}, {"1"}, false);
    check_property(R"({"type":"string","minLength":2.0,"maxLength":3.0})", {"\"xx\"", "\"xxx\""}, {"\"x\"", "\"xxxx\""}, false);
    check_property(R"({"type":"array","items":true})", {"[]", "[1,\"x\"]"}, {"1"}, false);
    check_property(R"({"type":"array","prefixItems":[{"type":"integer"},true],"items":false})", {"[1,\"x\"]"}, {"[\"x\",1]"}, false);
    check_property(R"({"type":"object","properties":{"x":{"type":"integer"}},"additionalProperties":null})", {"{\"x\":1}"}, {"{\"x\":\"\"}"});
    check_property(R"({"type":"object","properties":null})", {"{}", "{\"x\":1}"}, {"1"});
    check_property(R"({"type":"object","properties":{"x":{"type":"integer"}},"patternProperties":{"^y":{}}})",
                   {"{\"x\":1,\"yes\":2}"}, {"{\"x\":\"\"}"}, false);
    check_property(R"({"type":"object","properties":{"x":{"type":"integer"}},"anyOf":[{"required":["x"]},{"required":["y"]}]})",
                   {"{\"x\":1}"}, {"{\"x\":\"\"}", "1"}, false);
    check_property(R"({"description":"one","allOf":[{"$ref":"#/definitions/word"}]})", {"\"yes\""}, {"\"maybe\"", "{}"}, false,
                   R"(,"definitions":{"word":{"type":"string","enum":["yes","no"]}})");
    check_property(R"({"type":"string","not":{"const":"x"},"if":{},"then":false,"contentEncoding":"base64"})", {"\"y\""}, {"1"}, false);
    check_property(R"({"const":{"x":[1]}})", {R"({"x":[1]})"}, {"{}", "1"}, false);
}

TEST(references_that_go_round_are_followed_where_something_lies_between) {
    const std::string tree = R"(,"$defs":{"tree":{"type":"object","properties":{"left":{"$ref":"#/$defs/tree"},"n":{"type":"integer"}}}})";
    check_property(R"({"$ref":"#/$defs/tree"})", {"{}", R"({"left":{"left":{"n":1}}})"}, {R"({"left":{"n":"1"}})"}, false, tree);
    check_property(R"({"$ref":"#/$defs/p"})", {"1", "{}"}, {}, true, R"(,"$defs":{"p":{"$ref":"#/$defs/q"},"q":{"$ref":"#/$defs/p"}})");
    check_property(R"({"$ref":"#/$defs/p"})", {"1", "{}"}, {}, true, R"(,"$defs":{"p":{"anyOf":[{"type":"integer"},{"$ref":"#/$defs/p"}]}})");
    check_property(R"({"allOf":[{"$ref":"#/$defs/p"}]})", {"1", "{}"}, {}, true, R"(,"$defs":{"p":{"allOf":[{"$ref":"#/$defs/p"}]}})");
}

TEST(arguments_are_an_object_whatever_else_the_schema_says) {
    for (const char * schema : {"true", "[]", "\"x\"", R"({"type":"string"})", R"({"type":"array","items":{}})", R"({"enum":[1]})",
                                R"({"anyOf":[{"type":"object"},{"type":"string"}]})", R"({"$ref":"https://example.com"})", R"({"type":"any"})",
                                R"({"anyOf":[{"$ref":"#"}]})", R"({"oneOf":[true]})"}) {
        bool changed = false;
        const common_json loose = loosen(common_json::parse(schema), *tokens().vocab, changed);
        CHECK(changed);
        CHECK(accepts(loose, "{}") && !accepts(loose, "1") && !accepts(loose, "[]"));
    }
    check({"{}", {"{}", R"({"x":1})"}, {"1"}, false});
    check({R"({"description":"d"})", {"{}", R"({"x":1})"}, {"1"}, false});
    check({R"({"type":["object","null"],"properties":{"x":{"type":"integer"}}})", {R"({"x":1})"}, {"null", R"({"x":""})"}, false});
    check({R"({"properties":{"x":{"type":"integer"}},"required":["x"],"anyOf":[{"required":["x"]}]})", {R"({"x":1})"}, {"1", "{}"}, false});
    check({R"({"type":"object","properties":{"x":{"type":"integer"}},"oneOf":[{"properties":{"y":{}}}]})", {R"({"x":1})"}, {R"({"x":""})"}});
    check({R"({"$ref":"#/definitions/call","definitions":{"call":{"type":"object","properties":{"x":{"type":"integer"}}}}})",
           {R"({"x":1})"}, {R"({"x":""})", "1"}, false});
}

TEST(what_tools_together_cost_takes_detail_from_the_last_and_refuses_none) {
    std::string wide = R"({"type":"object","properties":{)";
    for (int i = 0; i < 450; i++) {
        wide += (i == 0 ? "" : ",") + std::string("\"p") + std::to_string(i) + R"(":{"type":"integer"})";
    }
    wide += "}}";
    std::string many = R"({"type":"object","properties":{"a":{"enum":[0)";
    for (int i = 1; i < 5000; i++) {
        many += "," + std::to_string(i);
    }
    many += "]}}}";
    const std::string plain = R"({"type":"object","properties":{"a":{"type":"integer"}}})";
    const tool_schemas all = loosen_tools({{"one", "", wide}, {"two", "", wide}, {"three", "", plain}, {"four", "", many}, {"five", "", "true"}},
                                          *tokens().vocab, schema_detail::nodes);
    CHECK(all.loosened == std::vector<std::string>({"two", "four", "five"}));
    CHECK(all.tools[0].parameters == wide && all.tools[2].parameters == plain);
    for (const common_chat_tool & tool : all.tools) {
        CHECK(accepts(common_json::parse(tool.parameters), "{}"));
    }
    const tool_schemas names = loosen_tools({{"one", "", plain}}, *tokens().vocab, schema_detail::members);
    CHECK(accepts(common_json::parse(names.tools[0].parameters), R"({"a":"x"})"));
    CHECK(!accepts(common_json::parse(names.tools[0].parameters), R"({"b":1})"));
}
