// Schemas: which texts they accept, that no walk through one ends where nothing may follow, and what hostile ones cost.
#include "check.h"
#include "error.h"
#include "fixture.h"
#include "grammar.h"
#include "matcher.h"
#include "regex.h"
#include "schema.h"
#include "schema_walk.h"

#include <ctime>
#include <random>

using namespace lm;

static bool accepts(const schema_ptr & s, const std::string & text) {
    schema_walk walk(s);
    schema_walk::place here = walk.begin();
    schema_walk::place next;
    for (size_t i = 0; i < text.size(); i++) {
        if (!walk.step(here, uint8_t(text[i]), next)) {
            return false;
        }
        std::swap(here, next);
        walk.settle(here);
        if (i % 16 == 15) {
            walk.compact(here);
        }
    }
    return walk.may_end(here);
}

static void check(const std::string & schema, const std::vector<std::string> & valid, const std::vector<std::string> & invalid) {
    const schema_ptr s = compile_schema(schema);
    CHECK(s->unenforced.empty());
    for (const std::string & text : valid) {
        if (!accepts(s, text)) {
            fprintf(stderr, "%s refuses %s\n", schema.c_str(), text.c_str());
        }
        CHECK(accepts(s, text));
    }
    for (const std::string & text : invalid) {
        if (accepts(s, text)) {
            fprintf(stderr, "%s accepts %s\n", schema.c_str(), text.c_str());
        }
        CHECK(!accepts(s, text));
    }
}

static bool is_refused(const std::string & schema) {
    try {
        compile_schema(schema);
        return false;
    } catch (const schema_error &) {
        return true;
    }
}

TEST(values_of_any_kind_are_json) {
    check("true", {"1", "-0.5e3", "\"\\u00e9\\\\\"", "[1, [], {}]", "{\"a\": null, \"b\": {\n  \"c\": [\n    1\n  ]\n}}", "\"\\ud83d\\ude00\""},
          {"", "01", "-", "1.", "\"\x01\"", "\"\\ud83d\"", "[1,]", "{\"a\":1,\"a\":2}", "nul", " 1", "1 ", "\"\xC3\"", "[1] 2", "\"\\u0041\"", "-0"});
    check("{\"type\":[\"null\",\"boolean\"]}", {"null", "true", "false"}, {"0", "\"\"", "{}"});
}

TEST(numbers_stay_within_their_bounds) {
    check("{\"type\":\"number\",\"minimum\":0,\"maximum\":1}", {"0", "1", "0.5", "0.30000000000000004", "1.0"}, {"3", "-1", "1.1", "1e0", "-0"});
    check("{\"type\":\"number\",\"exclusiveMinimum\":0,\"exclusiveMaximum\":10}", {"0.001", "9.99", "5"}, {"0", "10", "0.0", "10.0", "9.9999999999999999999"});
    check("{\"type\":\"integer\",\"minimum\":-12,\"maximum\":345}", {"-12", "0", "345", "99"}, {"-13", "346", "1.0", "1000", "007"});
    check("{\"type\":\"number\",\"multipleOf\":0.25}", {"0.25", "1", "-7.75"}, {"0.3", "0.125"});
    check("{\"type\":\"integer\",\"multipleOf\":7,\"minimum\":700,\"maximum\":710}", {"700", "707"}, {"701", "7", "70", "714"});
    check("{\"type\":\"integer\",\"maximum\":18446744073709551615,\"minimum\":9223372036854775808}", {"9223372036854775808", "18446744073709551615"},
          {"9223372036854775807", "18446744073709551616", "1"});
    CHECK(is_refused("{\"type\":\"integer\",\"multipleOf\":7,\"minimum\":701,\"maximum\":706}"));
}

TEST(texts_obey_their_patterns_lengths_and_formats) {
    check("{\"type\":\"string\",\"pattern\":\"^\\\\d{4}$\"}", {"\"2024\""}, {"\"You\"", "\"20245\"", "\"202\""});
    check("{\"type\":\"string\",\"pattern\":\"^\\\"$\"}", {"\"\\\"\""}, {"\"\"\"", "\"a\""});
    check("{\"type\":\"string\",\"pattern\":\"b\",\"maxLength\":3}", {"\"b\"", "\"aab\"", "\"\xC3\xA9" "b\""}, {"\"aaa\"", "\"\"", "\"aaab\""});
    check("{\"type\":\"string\",\"pattern\":\"^(?=.*[A-Z])(?=.*\\\\d).{3,5}$\"}", {"\"aB1\"", "\"1xxxZ\""}, {"\"aB\"", "\"ab1\"", "\"aB1xxx\""});
    check("{\"type\":\"string\",\"allOf\":[{\"pattern\":\"^a\"},{\"pattern\":\"z$\"},{\"minLength\":3}]}", {"\"abz\""}, {"\"az\"", "\"abc\""});
    check("{\"type\":\"string\",\"minLength\":5000,\"maxLength\":5001}", {"\"" + std::string(5000, 'x') + "\""}, {"\"" + std::string(4999, 'x') + "\""});
    check("{\"type\":\"string\",\"format\":\"date\"}", {"\"2024-02-29\""}, {"\"2023-02-29\"", "\"2024-13-01\"", "\"x\""});
    check("{\"type\":\"string\",\"format\":\"ipv6\"}", {"\"::1\"", "\"1:2:3:4:5:6:7:8\"", "\"::ffff:1.2.3.4\""}, {"\"1::2::3\"", "\"12345::\""});
    check("{\"enum\":[\"a\\\"b\",\"\xC3\xA9\",1.50,null,[1,{\"k\":2}]]}", {"\"a\\\"b\"", "\"\\u00e9\"", "1.5", "null", "[1, {\"k\": 2}]"}, {"\"a\"", "2", "[1]", "[1,{\"k\":3}]"});
}

TEST(members_are_the_ones_that_may_be) {
    const std::string person = R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}},"required":["name","id"]})";
    check(person, {R"({"name":"x","id":1})", R"({"name": "x", "age": 3, "z": 0, "id": null})"},
          {R"({"name":"x"})", R"({"id":1})", R"({"age":1,"name":"x","id":1})", R"({"name":"x","id":1,"id":2})", R"({"name":1,"id":1})"});
    check(R"({"type":"object","patternProperties":{"^n":{"type":"integer"}},"additionalProperties":{"type":"string"},"minProperties":1,"maxProperties":2})",
          {R"({"n":1})", R"({"x":"y","nn":2})"}, {"{}", R"({"n":"1"})", R"({"x":1})", R"({"a":"","b":"","c":""})"});
    check(R"({"type":"object","propertyNames":{"enum":["a","b"]},"additionalProperties":{"type":"null"},"minProperties":2})",
          {R"({"b":null,"a":null})"}, {R"({"a":null})", R"({"a":null,"a":null})", R"({"a":null,"c":null})"});
    check(R"({"type":"object","properties":{"ab":{"type":"array","minItems":1,"items":false}},"propertyNames":{"pattern":"^.{2}$"}})",
          {R"({"ac":1})", "{}"}, {R"({"ab":1})", R"({"ab":[]})"});
    check(R"({"type":"object","dependentRequired":{"card":["address"]}})", {"{}", R"({"address":1})", R"({"address":1,"card":2})", R"({"card":2,"address":1})"},
          {R"({"card":1})"});
    check(R"({"properties":{"a":{}},"allOf":[{"properties":{"b":{}}}],"unevaluatedProperties":false})", {R"({"a":1,"b":2})", "{}", "3"}, {R"({"c":1})"});
    // A constant says what is there, and evaluates none of it.
    check(R"({"anyOf":[{"const":{"b":1}},{"const":[2]},{"type":"null"}],"unevaluatedProperties":false,"unevaluatedItems":false})", {"null"}, {R"({"b":1})", "[2]"});
}

TEST(items_are_counted_told_apart_and_looked_for) {
    check(R"({"type":"array","items":{"enum":[1,2,3]},"uniqueItems":true,"minItems":2})", {"[1,2]", "[3, 1, 2]"}, {"[1]", "[1,1]", "[1,2,3,1]"});
    // What they have in common may be long.
    check(R"({"type":"array","items":{"type":"array","items":{"type":"object","properties":{"c":{"const":{"b":"a constant that is written out"}}},"required":["c","d"]}},
        "minItems":3,"uniqueItems":true})",
          {R"([[],[{"c":{"b":"a constant that is written out"},"k":0,"d":0}],[{"c":{"b":"a constant that is written out"},"k":1,"d":0}]])"}, {"[[],[]]"});
    check(R"({"type":"array","items":{"type":"object"},"uniqueItems":true})", {R"([{"a":1},{"a":2}])"}, {R"([{"a":1,"b":2},{"b":2,"a":1}])", R"([{},{ }])"});
    check(R"({"type":"array","items":{"type":"object","patternProperties":{"^[ab]$":{"type":"array","items":{}}}},"uniqueItems":true})",
          {R"([{"a":[1],"b":[]},{"b":[1],"a":[]}])"}, {R"([{"a":[1],"b":[]},{"b":[],"a":[1]}])", R"([{"a":[{"x":1,"y":"\""}]},{"a":[{"y":"\u0022","x":1}]}])"});
    check(R"({"type":"array","items":{"type":"object","properties":{"p":{}},"required":["b","a"],"additionalProperties":{"type":["integer","object"]}},"uniqueItems":true})",
          {R"([{"p":1,"a":1,"b":2},{"p":1,"b":1,"a":2}])"}, {R"([{"p":1,"a":1,"b":2},{"p":1,"b":2,"a":1}])", R"([{"a":{"x":1,"y":2},"b":3},{"b":3,"a":{"y":2,"x":1}}])"});
    check(R"({"type":"array","contains":{"type":"integer","minimum":5},"minContains":2,"maxContains":2,"maxItems":4})",
          {"[5,6]", "[1,\"a\",9,7]"}, {"[]", "[5]", "[5,6,7]", "[1,2,3,5]"});
    check(R"({"type":"array","prefixItems":[{"type":"string"},{"type":"integer"}],"items":false,"minItems":2.0})", {"[\"a\",1]"}, {"[\"a\"]", "[\"a\",1,2]", "[1,1]"});
    check(R"({"type":"array","contains":true,"maxContains":2,"prefixItems":[true,true],"items":false,"minItems":2})", {"[8,\"x\"]"}, {"[8]", "[]"});
    check(R"({"type":["array","boolean"],"contains":{"type":"integer"},"maxContains":0})", {"true"}, {"[]", "[1]", "[null]"});
    check(R"({"$schema":"http://json-schema.org/draft-07/schema#","items":[{"type":"null"}],"additionalItems":{"type":"boolean"}})", {"[null,true]", "[]"}, {"[true]", "[null,null]"});
}

TEST(nothing_begins_that_cannot_end) {
    const auto refuses = [](const std::string & schema, const std::string & begun, const std::string & next) {
        matcher m(leaf_grammar(made_up_vocab(700), read_schema(schema), "response_format"), made_up_vocab(700));
        CHECK(begun.empty() || m.accept(begun));
        return !m.accept(next);
    };
    CHECK(refuses(R"({"type":"object","properties":{"ab":{"type":"array","minItems":1,"items":false}},"propertyNames":{"pattern":"^.{2}$"}})", "{\"a", "b"));
    CHECK(refuses(R"({"type":["array","boolean"],"contains":{"type":"integer"},"maxContains":0})", "", "["));
    // Three booleans that differ are not to be had, nor is a name for them.
    const std::string three = R"({"type":"array","items":{"type":"boolean"},"minItems":3,"uniqueItems":true})";
    CHECK(refuses(R"({"type":"object","properties":{"a":{}},"propertyNames":{"enum":["a","d"]},"additionalProperties":)" + three + "}", "{", "\"d"));
    CHECK(refuses(R"({"type":"object","properties":{"a":)" + three + R"(,"b":{"type":"null"},"c":{"type":"null"}},"minProperties":2,"additionalProperties":false})", "{", "\"c"));
}

TEST(there_are_as_many_members_as_must_be_whichever_come_first) {
    const std::string any_order = R"({"type":"object","required":["a","ab"],"propertyNames":{"enum":["a","c","ab"]},"minProperties":3})";
    check(any_order, {R"({"a":1,"ab":2,"c":3})", R"({"c":3,"ab":2,"a":1})", R"({"ab":1,"c":2,"a":3})"}, {R"({"a":1,"ab":2})", R"({"a":1,"c":2})"});
    check(R"({"type":"object","properties":{"b":{}},"required":["a"],"propertyNames":{"enum":["a","b","c"]},"minProperties":2})",
          {R"({"a":1,"c":2})", R"({"c":1,"a":2})", R"({"b":1,"a":2})", R"({"b":1,"a":2,"c":3})"}, {R"({"a":1})", R"({"b":1,"c":2})"});
}

TEST(schemas_are_combined) {
    check(R"({"oneOf":[{"type":"integer"},{"type":"number","minimum":5}]})", {"1", "5.5"}, {"6", "4.5"});
    check(R"({"oneOf":[{"required":["a"]},{"required":["b"]}],"type":"object"})", {R"({"a":1})", R"({"b":1})"}, {R"({"a":1,"b":1})", "{}"});
    check(R"({"type":"string","oneOf":[{"oneOf":[{"format":"date"},true]},true]})", {"\"2020-01-02\""}, {"\"0}-.\"", "\"\""});
    check(R"({"not":{"type":["string","object","array"]}})", {"1", "null"}, {"\"\"", "{}"});
    check(R"({"type":"string","not":{"enum":["a","b"]}})", {"\"c\"", "\"\"", "\"ab\""}, {"\"a\"", "\"b\""});
    check(R"({"type":"object","properties":{"kind":{"enum":["a","b"]}},"required":["kind"],"if":{"properties":{"kind":{"const":"a"}}},"then":{"required":["x"]},"else":{"required":["y"]}})",
          {R"({"kind":"a","x":1})", R"({"kind":"b","y":1})"}, {R"({"kind":"a"})", R"({"kind":"b","x":1})"});
    check(R"({"$ref":"#/$defs/tree","$defs":{"tree":{"type":"object","properties":{"v":{"type":"integer"},"kids":{"type":"array","items":{"$ref":"#/$defs/tree"}}},"required":["v"],"additionalProperties":false}}})",
          {R"({"v":1,"kids":[{"v":2},{"v":3,"kids":[]}]})"}, {R"({"v":1,"kids":[{}]})", R"({"v":1,"kids":{}})"});
    check(R"({"$ref":"#/x~1y/1","x/y":[0,{"type":"null"}]})", {"null"}, {"1"});
    check(R"({"$defs":{"a":{"$anchor":"here","type":"integer"}},"$ref":"#here","maximum":3})", {"3"}, {"4", "\"\""});
}

TEST(what_cannot_be_enforced_is_named) {
    const schema_ptr s = compile_schema(R"({"type":"string","pattern":"^(a)\\1$","format":"no-such"})");
    CHECK(s->unenforced.size() == 2);
    CHECK(s->unenforced[0].find("pattern") != std::string::npos);
    CHECK(s->unenforced[1].find("no-such") != std::string::npos);
}

// Not that there are none: that is what a client would look for in vain.
TEST(a_denial_that_is_not_followed_is_told_where_nothing_else_is_left) {
    const auto why = [](const char * schema) {
        try {
            compile_schema(schema);
            return std::string();
        } catch (const schema_error & e) {
            return std::string(e.what());
        }
    };
    CHECK(why(R"({"type":"object","not":{"propertyNames":{"pattern":"^a"}}})").find("not followed") != std::string::npos);
    CHECK(why(R"({"type":"object","not":{"additionalProperties":{"type":"number"}}})").find("not followed") != std::string::npos);
    CHECK(why(R"({"type":"object","not":{"type":"object"}})") == "no value satisfies the schema");
    check(R"({"type":"object","not":{"properties":{"a":{"type":"string"}},"additionalProperties":false}})", {"{\"a\":1}"}, {"{}", "{\"a\":\"\"}"});
}

TEST(schemas_that_are_none_or_that_nothing_satisfies_are_refused) {
    for (const char * schema : {"", "[]", "3", "{\"type\":\"text\"}", "false", "{\"enum\":[]}", "{\"minLength\":3,\"maxLength\":2,\"type\":\"string\"}",
                                "{\"$ref\":\"#/none\"}", "{\"$ref\":\"#\"}", "{\"type\":\"array\",\"minItems\":2,\"uniqueItems\":true,\"items\":{\"const\":1}}",
                                "{\"type\":\"object\",\"required\":[\"a\"],\"properties\":{\"a\":{\"$ref\":\"#\"}}}", "{\"maximum\":\"3\"}", "{\"minItems\":-1}"}) {
        if (!is_refused(schema)) {
            fprintf(stderr, "%s\n", schema);
        }
        CHECK(is_refused(schema));
    }
}

// ---- tokens -------------------------------------------------------------------------------------------------------------

static const char * const SCHEMAS[] = {
    R"({"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer","minimum":3,"maximum":120},"tags":{"type":"array","items":{"enum":["a","b","\"c\"",null]},"minItems":1,"maxItems":4,"uniqueItems":true},"id":{"type":"string","pattern":"^[a-f]{2,3}(-[0-9]+)?$"}},"required":["name","tags"],"additionalProperties":false})",
    R"({"type":"array","items":{"anyOf":[{"type":"object","properties":{"k":{"const":"yes"},"x":{"type":"number","multipleOf":0.5,"minimum":0,"maximum":20}},"required":["k","x"]},{"type":"object","properties":{"k":{"const":"no"}},"required":["k"],"additionalProperties":{"type":"null"},"maxProperties":3}]},"minItems":1,"maxItems":3})",
    R"({"type":"object","patternProperties":{"^(ab|abc)+$":{"type":"boolean"}},"additionalProperties":false,"minProperties":1,"maxProperties":3})",
    R"({"type":"string","format":"date-time"})",
    R"({"type":"array","items":{"type":"string","maxLength":2,"pattern":"^[ab]*$"},"uniqueItems":true,"minItems":3,"maxItems":7})",
    R"({"$defs":{"t":{"type":"object","properties":{"l":{"anyOf":[{"type":"null"},{"$ref":"#/$defs/t"}]},"v":{"type":"integer","minimum":0,"maximum":9}},"required":["l","v"],"additionalProperties":false}},"$ref":"#/$defs/t"})",
    R"({"type":"object","properties":{"ab":{"type":"string","pattern":"^[a-z' ]*$","minLength":2,"maxLength":9},"abc":true,"\u00e9t\u00e9":{"type":"null"}},"maxProperties":4})",
    R"({"type":"object","properties":{"yes":{"const":1}},"patternProperties":{"^a":{"type":"string","maxLength":3},"b$":{"type":["string","null"]}},"additionalProperties":{"type":"string","pattern":"no|yes"}})",
    R"({"anyOf":[{"type":"string","pattern":"^a+b?$"},{"type":"string","pattern":"^[a-z]{2,6}$","minLength":4},{"type":"array","items":{"type":"string","minLength":5,"pattern":"^(ab)*(cd)*$","maxLength":9}}]})",
    R"({"type":"array","uniqueItems":true,"items":{"type":"object","additionalProperties":{"type":"string","maxLength":4},"minProperties":1},"minItems":3})",
    R"({"type":"array","items":{"type":["string","boolean"],"maxLength":70},"minItems":1,"maxItems":4})",
};

static void check_masks_of(const grammar_ptr & g, const vocabulary & vocab, uint32_t seed, int n_steps) {
    std::mt19937 rng(seed);
    matcher m(g, vocab);
    for (int i = 0; i < n_steps; i++) {
        const std::vector<uint64_t> mask = m.allowed();
        std::vector<llama_token> allowed;
        std::vector<llama_token> closing;
        for (llama_token id = 0; id < vocab.size(); id++) {
            const bool may = m.allows(id);
            CHECK(may == bool(mask[size_t(id) / 64] >> (id % 64) & 1));
            if (may) {
                allowed.push_back(id);
                const std::string_view text = vocab.tree().bytes(id);
                if (vocab.is_eog(id) || text.find_first_of("\"]}") != std::string_view::npos) {
                    closing.push_back(id);
                }
            }
        }
        CHECK(!allowed.empty());
        const std::vector<llama_token> & from = closing.empty() || rng() % 3 == 0 ? allowed : closing;
        const llama_token id = from[rng() % from.size()];
        if (vocab.is_eog(id)) {
            return;
        }
        CHECK(m.accept(id));
    }
}

static void check_masks(const vocabulary & vocab, const std::string & schema, uint32_t seed, int n_steps) {
    check_masks_of(leaf_grammar(vocab, read_schema(schema), "response_format"), vocab, seed, n_steps);
}

TEST(a_mask_says_of_each_token_whether_a_schema_allows_it) {
    for (const char * schema : SCHEMAS) {
        for (uint32_t seed = 1; seed <= 4; seed++) {
            check_masks(made_up_vocab(700), schema, seed, 60);
        }
        check_masks(bundled_vocab(), schema, 9, 20);
    }
}

TEST(what_must_follow_is_known_as_far_as_there_is_no_choice) {
    const vocabulary & vocab = made_up_vocab(700);
    const grammar_ptr g = leaf_grammar(vocab, read_schema(
        R"({"type":"object","properties":{"abc":{"enum":["no","yes\"x"]},"abd":{"const":true}},"required":["abc","abd"],"additionalProperties":false})"), "response_format");
    matcher m(g, vocab);
    CHECK(m.forced(64).empty());
    CHECK(m.accept("{\""));
    CHECK(m.forced(64) == "abc\":" && m.forced(2) == "ab");
    std::string spelled;
    for (const llama_token id : m.forced_tokens(8)) {
        spelled += vocab.tree().bytes(id);
    }
    CHECK(spelled == "abc\":" && m.forced_tokens(8).size() == 2 && m.forced_tokens(1).size() == 1);
    CHECK(!m.only()); // a byte of it would do, too
    CHECK(m.accept("abc"));
    CHECK(!m.only());
    CHECK(m.accept("\""));
    CHECK(m.forced(64) == ":" && m.only() && vocab.tree().bytes(*m.only()) == ":");
    CHECK(m.accept(": \"y"));
    CHECK(m.forced(64) == "es"); // what follows has an escape
    CHECK(m.accept("es\\\""));
    CHECK(m.forced(64) == "x\"");
    CHECK(m.accept("x\", \"abd\": t"));
    CHECK(m.forced(64) == "rue");
    CHECK(m.accept("rue") && m.forced(64).empty() && m.accept("}") && m.forced(64).empty() && m.allows(2));
}

TEST(a_schema_is_an_element_of_a_grammar) {
    const vocabulary & vocab = made_up_vocab(700);
    const schema_ptr number = read_schema("{\"type\":\"integer\",\"maximum\":50,\"minimum\":1}");
    const schema_ptr object = read_schema(R"({"type":"object","properties":{"a":{"type":"string"}},"required":["a"],"additionalProperties":false})");
    const std::string first = "\"\\\"" + leaf_mark(0) + "\\\"\"";
    const std::string second = "\"\\\"" + leaf_mark(1) + "\\\"\"";
    const grammar_ptr g = compile_grammar(vocab, "root ::= \"n:\" " + first + " (\",\" " + first + ")* \";\" | \"o:\" " + second + "{2} \"!\"? | \"n:\" [a-z]+ \";\"",
                                          "grammar", {number, object});
    const auto whole = [&](const std::string & text) {
        matcher m(g, vocab);
        return m.accept(text) && m.allows(2);
    };
    for (const char * text : {"n:1;", "n:50,7;", "n:abc;", "o:{\"a\":\"x;\"}{\"a\":\"\"}", "o:{\"a\":\"\"}{\"a\":\"\"}!"}) {
        CHECK(whole(text));
    }
    for (const char * text : {"n:51;", "n:0;", "n:1", "o:{\"a\":\"\"}", "o:{}{}", "n:1a;"}) {
        CHECK(!whole(text));
    }
    const grammar_ptr with_words = compile_grammar(vocab, "root ::= " + first + " \"=\" " + second + "+", "grammar", {number, automaton::words({"ab", "c"})});
    const auto is_text = [&](const std::string & text) {
        matcher m(with_words, vocab);
        return m.accept(text) && m.allows(2);
    };
    CHECK(is_text("7=ab") && is_text("50=cabc") && !is_text("7=b") && !is_text("51=c") && !is_text("7="));
    CHECK(either(*g, *leaf_grammar(vocab, number, "response_format"))->schemas.size() == 3);
    matcher m(either(*g, *leaf_grammar(vocab, number, "response_format")), vocab);
    CHECK(m.accept("49") && m.allows(2));
}

TEST(a_part_of_a_schema_is_a_leaf_and_so_are_texts_without_quotes) {
    const vocabulary & vocab = made_up_vocab(700);
    const schema_ptr s = read_schema(R"({"type":["string","number","null"],"maximum":9})");
    const auto whole = [&](const grammar_leaf & leaf, const std::string & text) {
        const grammar_ptr g = leaf_grammar(vocab, leaf, "tools");
        matcher at_once(g, vocab);
        matcher m(g, vocab);
        bool fits = true;
        for (size_t i = 0; i < text.size() && fits; i++) {
            fits = m.accept(text.substr(i, 1));
        }
        CHECK(fits == (text.empty() || at_once.accept(text)));
        return fits && m.allows(2);
    };
    CHECK(whole(s, "\"a\"") && whole(s, "9") && whole(s, "null"));
    CHECK(!whole({s, 0, KIND_NUMBER | KIND_NULL}, "\"a\"") && whole({s, 0, KIND_NUMBER | KIND_NULL}, "9") && !whole({s, 0, KIND_STRING}, "9"));
    schema raw;
    raw.raw = true;
    raw.strings.push_back({automaton::either(*automaton::words({"a\"b"}), *compile_regex("^[\\n\\\\x\xC3\xA9]*$")), 2, 3});
    raw.values.emplace_back();
    raw.values[0].strings.push_back(0);
    raw.values[0].nesting = 0;
    const grammar_leaf texts = std::make_shared<const schema>(raw);
    CHECK(whole(texts, "a\"b") && whole(texts, "\n\\") && whole(texts, "x\xC3\xA9x"));
    CHECK(!whole(texts, "x") && !whole(texts, "xxxx") && !whole(texts, "a\"") && !whole(texts, "\"x\"") && !whole(texts, "xy"));
    for (uint32_t seed = 1; seed < 5; seed++) {
        check_masks_of(leaf_grammar(vocab, texts, "tools"), vocab, seed, 4);
    }
}

// ---- costs --------------------------------------------------------------------------------------------------------------

static std::string repeated(const std::string & text, int n, const std::string & between = "") {
    std::string all;
    for (int i = 0; i < n; i++) {
        all += (i > 0 ? between : "") + text;
    }
    return all;
}

TEST(hostile_schemas_are_compiled_or_refused_soon) {
    std::string many;
    for (int i = 0; i < 3000; i++) {
        many += (i > 0 ? ",\"p" : "\"p") + std::to_string(i) + "\":{}";
    }
    const std::string pair = R"({"anyOf":[{"required":["a"]},{"required":["b"]},{"minProperties":3}]})";
    const std::vector<std::string> schemas = {
        repeated("{\"type\":\"array\",\"items\":", 240) + "{}" + std::string(240, '}'),
        repeated("{\"not\":", 240) + "{\"type\":\"null\"}" + std::string(240, '}'),
        "{\"type\":\"object\",\"properties\":{" + many + "}}",
        "{\"allOf\":[" + repeated(pair, 60, ",") + "]}",
        "{\"oneOf\":[" + repeated(R"({"type":"object","properties":{"a":{},"b":{"type":"string"},"c":{"type":"integer"}}})", 40, ",") + "]}",
        R"({"type":"string","pattern":"(a|b)*a(a|b){30}"})",
        R"({"type":"string","pattern":"^((a{1,100}){1,100}){1,100}$"})",
        R"({"type":"string","pattern":"^)" + std::string(5000, '(') + "a" + std::string(5000, ')') + "$\"}",
        R"({"type":"object","patternProperties":{)" + [] {
            std::string all;
            for (int i = 0; i < 18; i++) {
                all += (i > 0 ? ",\"" : "\"") + std::string(1, char('a' + i)) + ".*" + std::string(1, char('b' + i)) + "\":{\"type\":\"null\"}";
            }
            return all;
        }() + "}}",
        "{\"type\":\"array\",\"minItems\":4000000000,\"uniqueItems\":true,\"contains\":{\"type\":\"integer\"},\"minContains\":4000000000}",
        R"({"$defs":{"a":{"anyOf":[{"$ref":"#/$defs/b"},{"$ref":"#/$defs/b"}]},"b":{"anyOf":[{"$ref":"#/$defs/c"},{"$ref":"#/$defs/c"}]},"c":{"anyOf":[{"type":"array","items":{"$ref":"#/$defs/a"}},{"type":"null"}]}},"$ref":"#/$defs/a"})",
        "{\"enum\":[" + repeated("\"abcdefgh\"", 20000, ",") + "]}",
        "{\"multipleOf\":1e-300,\"maximum\":1e300}",
    };
    for (const std::string & schema : schemas) {
        const std::clock_t begin = std::clock(); // of the processor's time: the machine may be doing something else
        is_refused(schema);
        const double s = double(std::clock() - begin) / CLOCKS_PER_SEC;
        if (s > 2) {
            fprintf(stderr, "%.1f s for %.100s\n", s, schema.c_str());
        }
        CHECK(s < 2); // a hang, not a slow machine
    }
}
