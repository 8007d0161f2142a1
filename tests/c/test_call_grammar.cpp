// What a model that must call a tool may write, in the notations of several families: arguments that validate, each once, in any order
// where they are written one by one.
#include "chat_vocabulary.h"
#include "templates.h"

#include "chat_template.h"
#include "lazy_grammar.h"
#include "matcher.h"

#include "log.h"

using namespace lm;

static const chat_vocabulary & tokens() {
    static const chat_vocabulary loaded;
    return loaded;
}

static chat_turn turn_of(const std::string & source, const std::string & parameters) {
    common_log_set_verbosity_thold(-1);
    chat_prompt chat;
    chat.messages = common_json::parse(R"([{"role": "user", "content": "Hi"}])");
    chat.template_kwargs = common_json::object();
    chat.tools = common_json::parse(R"([{"type": "function", "function": {"name": "f", "description": "", "parameters": )" + parameters + "}}]");
    chat.choice = tool_choice::required;
    chat.parallel_tool_calls = false;
    return chat_template(source, *tokens().vocab).prepare(chat, nullptr, 1 << 20);
}

static bool may_write(const chat_turn & turn, const std::string & text) {
    const matcher_ptr m = eager_grammar(*turn.format, *tokens().vocab);
    for (const char c : text) { // as a sampler asks, and not as a whole alone
        if (!m->allows(tokens().byte(c)) || !m->accept(tokens().byte(c))) {
            return false;
        }
    }
    return m->allows(llama_vocab_eos(tokens().vocab->get()));
}

using arguments = std::vector<std::pair<std::string, std::string>>;

static std::string tagged(const arguments & all) {
    std::string text = "<tool_call>\n<function=f>\n";
    for (const auto & [name, value] : all) {
        text += "<parameter=" + name + ">\n" + value + "\n</parameter>\n";
    }
    return text + "</function>\n</tool_call>";
}

static std::string python(const arguments & all) {
    std::string text = "<|tool_call_start|>[f(";
    for (const auto & [name, value] : all) {
        text += (text.back() == '(' ? "" : ", ") + name + "=" + value;
    }
    return text + ")]<|tool_call_end|>";
}

static const char SOME[] = R"({"type":"object","properties":{"unit":{"enum":["C","F"]},"n":{"type":"integer","minimum":1,"maximum":5},
    "word":{"type":"string","maxLength":3}},"required":["unit"]})";

TEST(tagged_arguments_come_in_any_order_each_once_and_none_is_missing) {
    const chat_turn turn = turn_of(templates::TAGGED, SOME);
    CHECK(turn.loosened.empty());
    for (const arguments & all : std::vector<arguments>{{{"unit", "C"}}, {{"n", "3"}, {"unit", "F"}}, {{"word", ""}, {"unit", "F"}, {"n", "5"}},
                                                        {{"unit", "C"}, {"word", "\"\n\\"}}, {{"unit", "C"}, {"word", "\xC3\xA9t\xC3\xA9"}}}) {
        CHECK(may_write(turn, tagged(all)));
    }
    for (const arguments & all : std::vector<arguments>{{}, {{"n", "3"}}, {{"unit", "K"}}, {{"unit", "CF"}}, {{"unit", ""}}, {{"unit", "\"C\""}},
                                                        {{"unit", "C"}, {"unit", "C"}}, {{"unit", "C"}, {"n", "6"}}, {{"unit", "C"}, {"n", "\"1\""}},
                                                        {{"unit", "C"}, {"word", "four"}}, {{"unit", "C"}, {"other", "1"}}}) {
        CHECK(!may_write(turn, tagged(all)));
    }
}

TEST(arguments_of_python_calls_are_held_to_likewise) {
    const chat_turn turn = turn_of(templates::PYTHONIC, SOME);
    CHECK(turn.loosened.empty());
    CHECK(may_write(turn, python({{"unit", "\"C\""}})) && may_write(turn, python({{"n", "5"}, {"unit", "\"F\""}, {"word", "\"a\""}})));
    for (const arguments & all : std::vector<arguments>{{}, {{"n", "5"}}, {{"unit", "\"K\""}}, {{"unit", "\"C\""}, {"unit", "\"C\""}}, {{"unit", "\"C\""}, {"word", "\"four\""}}}) {
        CHECK(!may_write(turn, python(all)));
    }
}

TEST(arguments_in_json_are_held_to_the_whole_schema) {
    const chat_turn turn = turn_of(templates::HERMES, R"({"type":"object","properties":{"a":{"type":"array","items":{"enum":[1,2]},"uniqueItems":true},
        "b":{"type":"number","multipleOf":0.5}},"dependentRequired":{"a":["b"]},"additionalProperties":false})");
    CHECK(turn.loosened.empty());
    const auto call = [](const std::string & all) { return "<tool_call>\n{\"name\": \"f\", \"arguments\": " + all + "}\n</tool_call>"; };
    for (const char * all : {"{}", R"({"b": 1.5})", R"({"a": [2, 1], "b": 0})"}) {
        CHECK(may_write(turn, call(all)));
    }
    for (const char * all : {R"({"a": [1, 1], "b": 0})", R"({"b": 0.2})", R"({"a": []})", R"({"c": 1})", "[]", "1"}) {
        CHECK(!may_write(turn, call(all)));
    }
}

TEST(a_text_that_could_be_json_is_what_it_will_be_read_as) {
    const chat_turn turn = turn_of(templates::TAGGED, R"({"type":"object","properties":{"v":{"anyOf":[{"type":"integer","maximum":9},{"enum":["12","ab","null"]}]},
        "w":{"type":["string","null"]}},"required":["v","w"],"additionalProperties":false})");
    const auto both = [&](const char * v, const char * w) { return may_write(turn, tagged({{"v", v}, {"w", w}})); };
    CHECK(both("7", "text") && both("ab", "12") && both("ab", "null") && both("ab", "{\"a\": 1}") && both("null", "true"));
    CHECK(!both("12", "text") && !both("10", "text") && !both("abc", "text"));
}

TEST(ways_to_fill_an_object_and_numbers_of_members_hold_for_tags) {
    const chat_turn turn = turn_of(templates::TAGGED, R"({"type":"object","properties":{"a":{"enum":[1]},"b":{"enum":[2]},"c":{"enum":[3]}},
        "oneOf":[{"required":["a"]},{"required":["b"]}],"dependentRequired":{"c":["b"]},"maxProperties":2})");
    CHECK(turn.loosened.empty());
    CHECK(may_write(turn, tagged({{"a", "1"}})) && may_write(turn, tagged({{"c", "3"}, {"b", "2"}})));
    CHECK(!may_write(turn, tagged({})) && !may_write(turn, tagged({{"a", "1"}, {"b", "2"}})) && !may_write(turn, tagged({{"a", "1"}, {"c", "3"}})) &&
          !may_write(turn, tagged({{"c", "3"}})));
    const chat_turn few = turn_of(templates::TAGGED, R"({"type":"object","properties":{"a":{},"b":{},"c":{}},"minProperties":2,"maxProperties":2})");
    CHECK(may_write(few, tagged({{"c", "x"}, {"a", "y"}})) && !may_write(few, tagged({{"c", "x"}})) && !may_write(few, tagged({{"c", "x"}, {"a", "y"}, {"b", "z"}})));
}

TEST(many_arguments_come_in_their_order) {
    std::string schema = R"({"type":"object","properties":{)";
    for (int i = 0; i < 30; i++) {
        schema += (i > 0 ? ",\"p" : "\"p") + std::to_string(i) + R"(":{"type":"boolean"})";
    }
    const chat_turn turn = turn_of(templates::TAGGED, schema + R"(},"required":["p3","p20"],"minProperties":4})");
    CHECK(may_write(turn, tagged({{"p0", "true"}, {"p3", "true"}, {"p20", "true"}, {"p29", "true"}})));
    CHECK(!may_write(turn, tagged({{"p0", "true"}, {"p3", "true"}, {"p20", "true"}})));
    CHECK(!may_write(turn, tagged({{"p0", "true"}, {"p3", "true"}, {"p19", "true"}, {"p29", "true"}})));
}

TEST(what_tags_cannot_say_is_told) {
    for (const char * schema : {R"({"type":"object","properties":{"a":{"const":"x\n</parameter>\ny"}},"required":["a"]})",
                                R"({"type":"object","minProperties":2})"}) {
        const chat_turn turn = turn_of(templates::TAGGED, schema);
        CHECK(turn.loosened == std::vector<std::string>{"f"});
        CHECK(turn.format->compiled != nullptr);
    }
    CHECK(turn_of(templates::TAGGED, R"({"type":"object","properties":{"a":{"enum":["x\n</parameter>\ny","z"]}},"required":["a"]})").loosened.empty());
}

// Marks that a family is known by, and how an answer begins.
static std::string family(const std::string & marks, const std::string & begin) {
    return "{# " + marks + " #}{%- if tools %}{{- tools | tojson }}{%- endif %}{%- for message in messages %}{{- message.role + ': ' + (message.content or '') }}"
           "{%- for call in message.tool_calls or [] %}{{- call.function.name + (call.function.arguments | tojson) }}{%- endfor %}{%- endfor %}"
           "{%- if add_generation_prompt %}{{- '" + begin + "' }}{%- endif %}";
}

TEST(objects_of_gemma_hold_to_schemas_in_their_depth) {
    const chat_turn turn = turn_of(family("'<|tool_call>call:' {#- OpenAI Chat Completions:", "<|turn>model\\n<|channel>thought\\n<channel|>"),
        R"({"type":"object","properties":{"unit":{"enum":["C","F"]},"at":{"type":"object","properties":{"x":{"type":"integer","maximum":9},"y":{}},"required":["x"],
            "additionalProperties":false},"list":{"type":"array","items":{"type":"boolean"},"minItems":1,"maxItems":2},"more":{"type":"object","additionalProperties":{"type":"null"}}},
            "required":["unit"],"additionalProperties":false})");
    CHECK(turn.loosened.empty());
    const auto call = [](const std::string & all) { return "<|tool_call>call:f" + all + "<tool_call|>"; };
    for (const char * all : {R"({unit:<|"|>C<|"|>})", R"({at:{x:9,y:[<|"|>a"b<|"|>,{z:1.5}]},unit:<|"|>F<|"|>})", R"({unit:<|"|>C<|"|>,list:[true,false],more:{}})",
                             R"({more:{k:null,l m:null},unit:<|"|>C<|"|>})"}) {
        CHECK(may_write(turn, call(all)));
    }
    for (const char * all : {"{}", R"({unit:<|"|>K<|"|>})", R"({unit:C})", R"({unit:<|"|>C<|"|>,at:{}})", R"({unit:<|"|>C<|"|>,at:{x:10}})", R"({unit:<|"|>C<|"|>,list:[]})",
                             R"({unit:<|"|>C<|"|>,list:[true,true,true]})", R"({unit:<|"|>C<|"|>,more:{k:1}})", R"({unit:<|"|>C<|"|>,z:1})"}) {
        CHECK(!may_write(turn, call(all)));
    }
    CHECK(turn_of(family("'<|tool_call>call:' {#- OpenAI Chat Completions:", "<|turn>model\\n<|channel>thought\\n<channel|>"),
                  R"({"type":"object","properties":{"a":{"type":"array","items":{"type":"integer"},"uniqueItems":true}}})").loosened.size() == 1);
}

TEST(arguments_of_kimi_are_held_to_whatever_their_attributes_say) {
    const std::string source = family("<|open|> <|close|> <|end_of_msg|>", "<|open|>message role=\"assistant\"<|sep|><|open|>think<|sep|><|close|>think<|sep|>");
    const chat_turn turn = turn_of(source, SOME);
    CHECK(turn.loosened.empty());
    const auto call = [](const arguments & all) {
        std::string text = "<|open|>tools<|sep|><|open|>call tool=\"f\" index=\"1\"<|sep|>";
        for (const auto & [name, value] : all) {
            text += "<|open|>argument key=\"" + name + "\" type=\"string\"<|sep|>" + value + "<|close|>argument<|sep|>";
        }
        return text + "<|close|>call<|sep|><|close|>tools<|sep|>";
    };
    CHECK(may_write(turn, call({{"unit", "C"}})) && may_write(turn, call({{"n", "5"}, {"unit", "F"}, {"word", "a<b"}})));
    CHECK(!may_write(turn, call({})) && !may_write(turn, call({{"unit", "K"}})) && !may_write(turn, call({{"unit", "C"}, {"n", "6"}})) &&
          !may_write(turn, call({{"unit", "C"}, {"word", "a<bc"}})) && !may_write(turn, call({{"unit", "C"}, {"unit", "C"}})));
}

TEST(white_space_stands_only_where_calls_are_read_with_it) {
    const std::string source = "{%- if tools %}{{- tools | tojson }}{%- endif %}{%- for message in messages %}{{- '<|' + message.role + '|>' + (message.content or '') }}"
        "{%- for call in message.tool_calls or [] %}{{- '\\n<tool_call>' + call.function.name + '\\n' }}{%- for name, value in call.function.arguments | items %}"
        "{{- '<arg_key>' + name + '</arg_key>\\n<arg_value>' }}{{- value if value is string else value | tojson }}{{- '</arg_value>\\n' }}{%- endfor %}{{- '</tool_call>' }}"
        "{%- endfor %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}";
    const chat_turn turn = turn_of(source, SOME);
    CHECK(turn.loosened.empty());
    for (const char * blank : {"", " ", "\n", "\n\n"}) {
        for (const std::string between : {"", "\n"}) {
            const std::string text = std::string("\n<tool_call>f\n<arg_key>unit</arg_key>\n<arg_value>C</arg_value>") + between + blank + "</tool_call>";
            parsed_answer read;
            if (may_write(turn, text)) {
                CHECK(parse_answer(*turn.format, text, true, read) && read.calls.size() == 1 && read.calls[0].arguments == R"({"unit":"C"})");
            }
        }
    }
}

// What the template cannot write of a schema is not written; the calls are held to it all the same.
TEST(a_schema_that_a_template_refuses_is_told_in_names_and_held_to_whole) {
    const std::string source = std::string("{%- for tool in tools or [] %}{%- for name, p in tool.function.parameters.properties | items %}"
                                           "{%- if p.type is defined and p.type == 'array' %}{{- raise_exception('no lists') }}{%- endif %}{%- endfor %}{%- endfor %}") + templates::HERMES;
    const chat_turn turn = turn_of(source, R"({"type":"object","properties":{"a":{"type":"array","items":{"enum":[1,2]}}},"required":["a"]})");
    CHECK(turn.loosened.empty());
    CHECK(may_write(turn, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1]}}\n</tool_call>"));
    CHECK(!may_write(turn, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [3]}}\n</tool_call>"));
}

TEST(names_that_differ_in_signs_alone_are_told_apart) {
    chat_prompt chat;
    chat.messages = common_json::parse(R"([{"role": "user", "content": "Hi"}])");
    chat.template_kwargs = common_json::object();
    chat.tools = common_json::parse(R"([{"type": "function", "function": {"name": "a_b", "parameters": {"type": "object", "properties": {"x": {"enum": ["1"]}}, "required": ["x"]}}},
        {"type": "function", "function": {"name": "a-b", "parameters": {"type": "object", "properties": {"y_z": {"enum": ["2"]}, "y-z": {"enum": ["3"]}}, "required": ["y_z", "y-z"]}}},
        {"type": "function", "function": {"name": "a.b", "parameters": {"type": "object", "properties": {}, "additionalProperties": false}}}])");
    chat.choice = tool_choice::required;
    const auto prepared = [&](const char * source) { return chat_template(source, *tokens().vocab).prepare(chat, nullptr, 1 << 20); };
    const auto check = [](const chat_turn & turn, const std::string & text, const std::string & name, const std::string & arguments) {
        CHECK(may_write(turn, text));
        parsed_answer read;
        CHECK(parse_answer(*turn.format, text, true, read) && read.calls.size() == 1 && read.calls[0].name == name);
        CHECK(common_json::parse(read.calls[0].arguments) == common_json::parse(arguments));
    };
    const auto as_json = [](const std::string & name, const std::string & all) { return "<tool_call>\n{\"name\": \"" + name + "\", \"arguments\": " + all + "}\n</tool_call>"; };
    const chat_turn json = prepared(templates::HERMES);
    check(json, as_json("a_b", R"({"x": "1"})"), "a_b", R"({"x": "1"})");
    check(json, as_json("a-b", R"({"y_z": "2", "y-z": "3"})"), "a-b", R"({"y_z": "2", "y-z": "3"})");
    check(json, as_json("a.b", "{}"), "a.b", "{}");
    CHECK(!may_write(json, as_json("a_b", R"({"y_z": "2", "y-z": "3"})")) && !may_write(json, as_json("a-b", R"({"x": "1"})")));
    const auto as_tags = [](const std::string & name, const arguments & all) {
        std::string text = tagged(all);
        return text.replace(text.find("=f>"), 3, "=" + name + ">");
    };
    const chat_turn tags = prepared(templates::TAGGED);
    check(tags, as_tags("a_b", {{"x", "1"}}), "a_b", R"({"x": "1"})");
    check(tags, as_tags("a-b", {{"y-z", "3"}, {"y_z", "2"}}), "a-b", R"({"y-z": "3", "y_z": "2"})");
    CHECK(!may_write(tags, as_tags("a-b", {{"y-z", "2"}, {"y_z", "2"}})) && !may_write(tags, as_tags("a_b", {{"y_z", "2"}, {"y-z", "3"}})));
    check(prepared(templates::PYTHONIC), "<|tool_call_start|>[a_b(x=\"1\")]<|tool_call_end|>", "a_b", R"({"x": "1"})");
    check(prepared(templates::PLAIN), R"([TOOL_REQUEST]{"name": "a_b", "arguments": {"x": "1"}}[END_TOOL_REQUEST])", "a_b", R"({"x": "1"})");
}
