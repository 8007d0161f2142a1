// Schemas of tools as they are met, and what is left of those that no compiler takes: the arguments that a tool wants must be
// possible, and what it forbids in words that can be read stays forbidden.
#include "chat_vocabulary.h"
#include "check.h"
#include "grammar.h"
#include "matcher.h"
#include "tool_schemas.h"

using namespace lm;

static const chat_vocabulary & tokens() {
    static const chat_vocabulary all;
    return all;
}

static bool accepts(schema_ptr schema, const std::string & text) {
    matcher m(leaf_grammar(*tokens().vocab, schema, "tools"), *tokens().vocab);
    return m.accept(text) && m.allows(llama_vocab_eos(tokens().vocab->get()));
}

struct schema_case {
    const char * schema;
    std::vector<const char *> possible;
    std::vector<const char *> forbidden;
    bool changed = true;
};

static void check(const schema_case & c) {
    const tool_schemas read = read_tools({{"tool", "", c.schema}}, schema_detail::nodes);
    const auto holds = [&](bool condition, const std::string & what) {
        if (!condition) {
            fprintf(stderr, "%s\n %s\n", c.schema, what.c_str());
            exit(1);
        }
    };
    holds(read.loosened.empty() != c.changed, c.changed ? "was not told as changed" : "was told as changed");
    for (const char * text : c.possible) {
        holds(accepts(read.rules[0].arguments, text), std::string("does not accept ") + text);
    }
    for (const char * text : c.forbidden) {
        holds(!accepts(read.rules[0].arguments, text), std::string("accepts ") + text);
    }
}

// A property `a` of this schema beside a string `b`, which must stay one.
static void check_property(const std::string & a, std::vector<std::string> possible, std::vector<std::string> forbidden,
                           bool changed = true, const std::string & more = "") {
    const std::string schema = R"({"type":"object","properties":{"a":)" + a + R"(,"b":{"type":"string"}},"required":["a","b"])" + more + "}";
    schema_case c{schema.c_str(), {}, {R"({"a":1,"b":1})", "1"}, changed};
    for (auto * some : {&possible, &forbidden}) {
        for (std::string & value : *some) {
            value = R"({"a":)" + value + R"(,"b":"x"})";
            (some == &possible ? c.possible : c.forbidden).push_back(value.c_str());
        }
    }
    check(c);
}

TEST(a_node_that_cannot_be_compiled_is_left_open_and_the_others_are_not) {
    for (const char * node : {"null", "1", "\"string\"", "[]", R"({"type":"filepath"})", R"({"type":[]})", R"({"type":1})", R"({"type":null})",
                              R"({"type":["string","any kind"]})", R"({"$ref":"https://example.com/x.json"})", R"({"$ref":"#/$defs/none"})",
                              R"({"$ref":"other.json#/a"})", R"({"$ref":"#/properties/a"})", R"({"anyOf":[]})", R"({"oneOf":null})",
                              R"({"allOf":[]})", R"({"enum":[]})", R"({"enum":"x"})",
                              R"({"type":["a","b","c","d","e","f","g","h","i","j","k","l","m","n","o","p","q"]})"}) {
        check_property(node, {"1", "\"text\"", "{\"x\":[null,true]}"}, {"nothing"});
    }
    for (const char * node : {"true", "{}", R"({"type":"any"})"}) {
        check_property(node, {"1", "\"text\""}, {}, node[1] == '"' && node[2] == 't' && node[8] == 'a');
    }
    check({R"({"type":"object","properties":{"a":{"$ref":"#"},"b":{"type":"string"}},"required":["b"]})", {R"({"a":{"a":{"b":""},"b":""},"b":""})"},
           {R"({"a":1,"b":""})", R"({"a":{},"b":""})"}, false});
}

TEST(a_bound_that_cannot_be_counted_goes_and_its_type_stays) {
    for (const char * node : {R"({"type":"string","minLength":-1})", R"({"type":"string","minLength":5,"maxLength":2})",
                              R"({"type":"string","maxLength":"7"})", R"({"type":"string","minLength":2.5})", R"({"type":"string","pattern":7})",
                              R"x({"type":"string","pattern":"^(a$"})x", R"({"type":"string","pattern":"^a{5,2}$"})", R"({"type":"string","format":1})",
                              R"({"type":"string","enum":[]})", R"({"type":"string","allOf":[]})"}) {
        check_property(node, {"\"text\"", "\"\""}, {"1", "null"});
    }
    for (const char * node : {R"({"type":"integer","minimum":"1"})", R"({"type":"integer","minimum":5,"maximum":2})",
                              R"({"type":"integer","exclusiveMinimum":3,"exclusiveMaximum":4})", R"({"type":"integer","minimum":[]})",
                              R"({"type":"integer","multipleOf":0})"}) {
        check_property(node, {"7", "-7"}, {"\"7\"", "7.5"});
    }
    for (const char * node : {R"({"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":1})",
                              R"({"type":"array","items":{"type":"integer"},"maxItems":"1"})"}) {
        check_property(node, {"[]", "[1,2]"}, {"[\"1\"]", "1"});
    }
}

TEST(what_no_grammar_of_llama_cpp_holds_to_is_held_to) {
    check_property(R"({"type":"integer","minimum":-5,"maximum":18446744073709551616,"multipleOf":5})", {"-5", "0", "18446744073709551615"}, {"-10", "3"}, false);
    check_property(R"({"type":"number","exclusiveMinimum":0,"maximum":1})", {"1", "0.25"}, {"0", "1.5"}, false);
    check_property(R"({"type":"string","maxLength":4000,"pattern":"\\d"})", {"\"a1\""}, {"\"a\""}, false);
    check_property(R"({"type":"array","items":{"enum":[1,2]},"uniqueItems":true,"minItems":1})", {"[2,1]"}, {"[1,1]", "[]"}, false);
    check_property(R"({"not":{"type":"string"},"enum":["a",1,null]})", {"1", "null"}, {"\"a\""}, false);
    check_property(R"({"allOf":[{"minimum":3},{"maximum":4}]})", {"3", "\"text\""}, {"2", "5"}, false);
    check({R"({"type":"object","properties":{"x":{},"y":{}},"dependentRequired":{"x":["y"]},"maxProperties":2})",
           {"{}", R"({"y":1})", R"({"x":1,"y":1})"}, {R"({"x":1})", R"({"x":1,"y":1,"z":1})"}, false});
}

TEST(spellings_of_other_drafts_and_generators_are_understood) {
    check_property(R"({"type":"integer","minimum":3,"exclusiveMinimum":true,"maximum":9,"exclusiveMaximum":false})", {"4", "9"}, {"3", "10"}, false);
    check_property(R"({"type":"STRING","nullable":true})", {"\"x\"", "null"}, {"1"}, false);
    check_property(R"({"type":["String","Null"]})", {"\"x\"", "null"}, {"1"}, false);
    check_property(R"({"type":"string","minLength":2.0,"maxLength":3.0})", {"\"xx\"", "\"xxx\""}, {"\"x\"", "\"xxxx\""}, false);
    check_property(R"({"type":"array","items":true})", {"[]", "[1,\"x\"]"}, {"1"}, false);
    check_property(R"({"type":"array","prefixItems":[{"type":"integer"},true],"items":false})", {"[1,\"x\"]"}, {"[\"x\",1]", "[1,1,1]"}, false);
    check_property(R"({"type":"object","properties":{"x":{"type":"integer"}},"additionalProperties":null})", {"{\"x\":1}", "{\"y\":1}"}, {"{\"x\":\"\"}"});
    check_property(R"({"type":"object","properties":null})", {"{}", "{\"x\":1}"}, {"1"});
    check_property(R"({"type":"object","properties":{"x":{"type":"integer"}},"anyOf":[{"required":["x"]},{"required":["y"]}]})",
                   {"{\"x\":1}"}, {"{\"x\":\"\"}", "1", "{}"}, false);
    check_property(R"({"description":"one","allOf":[{"$ref":"#/definitions/word"}]})", {"\"yes\""}, {"\"maybe\"", "{}"}, false,
                   R"(,"definitions":{"word":{"type":"string","enum":["yes","no"]}})");
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
    for (const char * schema : {"[]", "\"x\"", R"({"type":"string"})", R"({"type":"array","items":{}})", R"({"enum":[1]})", R"({"$ref":"https://example.com"})",
                                R"({"type":"filepath"})", "not json", "false", R"({"type":"object","minProperties":3,"maxProperties":2})"}) {
        check({schema, {"{}", R"({"x":1})"}, {"1", "[]"}});
    }
    for (const char * schema : {"", "null", "{}", "true", R"({"description":"d"})", R"({"anyOf":[{"type":"object"},{"type":"string"}]})", R"({"oneOf":[true]})"}) {
        check({schema, {"{}", R"({"x":1})"}, {"1", "[]"}, false});
    }
    check({R"({"type":["object","null"],"properties":{"x":{"type":"integer"}}})", {R"({"x":1})"}, {"null", R"({"x":""})"}, false});
    check({R"({"properties":{"x":{"type":"integer"}},"required":["x"],"anyOf":[{"required":["x"]}]})", {R"({"x":1})"}, {"1", "{}"}, false});
    check({R"({"type":"object","properties":{"x":{"type":"integer"}},"oneOf":[{"properties":{"y":{}}}]})", {R"({"x":1})"}, {R"({"x":""})"}, false});
    check({R"({"$ref":"#/definitions/call","definitions":{"call":{"type":"object","properties":{"x":{"type":"integer"}}}}})",
           {R"({"x":1})"}, {R"({"x":""})", "1"}, false});
}

TEST(what_tools_cost_takes_detail_from_them_and_refuses_none) {
    std::string wide = R"({"type":"object","properties":{"a":{"type":"integer"})";
    for (int i = 0; i < 200; i++) {
        wide += ",\"p" + std::to_string(i) + R"(":{"type":"string","pattern":"(a|b)*a(a|b){12}x)" + std::to_string(i) + "\"}";
    }
    wide += R"(},"required":["a"]})";
    const std::string plain = R"({"type":"object","properties":{"a":{"type":"integer"}}})";
    std::vector<common_chat_tool> tools = {{"first", "", plain}};
    for (int i = 0; i < 30; i++) {
        tools.push_back({"wide" + std::to_string(i), "", wide});
    }
    const auto begin = std::chrono::steady_clock::now();
    const tool_schemas all = read_tools(tools, schema_detail::nodes);
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20)); // a hang, not a slow machine
    CHECK(std::find(all.loosened.begin(), all.loosened.end(), "first") == all.loosened.end());
    for (const tool_rules & tool : all.rules) {
        CHECK(accepts(tool.arguments, R"({"a":1})"));
    }
    const tool_schemas names = read_tools({{"one", "", R"({"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]})"}}, schema_detail::members);
    CHECK(accepts(names.rules[0].arguments, R"({"a":"x"})") && !accepts(names.rules[0].arguments, "{}") && names.loosened.size() == 1);
    CHECK(accepts(read_tools({{"one", "", plain}}, schema_detail::none).rules[0].arguments, "{}"));
}
