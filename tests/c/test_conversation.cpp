#include "chat_vocabulary.h"
#include "templates.h"

#include "answer_format.h"
#include "conversation.h"
#include "chat_template.h"
#include "error.h"
#include "fixture.h"
#include "matcher.h"

#include "log.h"

#include <algorithm>

using namespace lm;

static const chat_vocabulary & tokens() {
    static const chat_vocabulary loaded;
    return loaded;
}

static const char TOOLS[] = R"([{"type": "function", "function": {"name": "weather", "description": "", "parameters":
    {"type": "object", "properties": {"city": {"type": "string"}}}}}])";

static chat_prompt prompt_of(const char * messages, const char * tools = "[]") {
    chat_prompt chat;
    chat.messages = common_json::parse(messages);
    chat.template_kwargs = common_json::object();
    chat.tools = common_json::parse(tools);
    return chat;
}

static std::string render(const char * source, const char * messages) {
    common_log_set_verbosity_thold(-1);
    return chat_template(source, *tokens().vocab).render(prompt_of(messages));
}

static void check_rendered(const char * source, const char * messages, const std::string & expected) {
    const std::string prompt = render(source, messages);
    if (prompt != expected) {
        fprintf(stderr, "%s\n became %s\n instead of %s\n", messages, prompt.c_str(), expected.c_str());
    }
    CHECK(prompt == expected);
}

TEST(what_a_strict_template_takes_stays_as_it_is) {
    check_rendered(templates::STRICT, R"([{"role": "system", "content": "S"}, {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}])",
        "[SYSTEM]S[/SYSTEM][user]A[/][assistant]B[/][user]C[/][assistant]");
    check_rendered(templates::HERMES, R"([{"role": "user", "content": "A"}, {"role": "system", "content": "S"}, {"role": "user", "content": "B"}])",
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nB<|im_end|>\n<|im_start|>assistant\n");
}

TEST(neighbours_are_merged_where_turns_must_alternate) {
    check_rendered(templates::STRICT, R"([{"role": "user", "content": "A"}, {"role": "user", "content": "B"},
        {"role": "assistant", "content": "C"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "D"}])",
        "[user]A\n\nB[/][assistant]C[/][user]D[/][assistant]");
    check_rendered(templates::STRICT, R"([{"role": "assistant", "content": "A"}, {"role": "user", "content": "B"}])",
        "[user][/][assistant]A[/][user]B[/][assistant]");
}

TEST(what_the_system_says_twice_or_later_goes_to_the_front) {
    check_rendered(templates::STRICT, R"([{"role": "system", "content": "S"}, {"role": "developer", "content": "T"}, {"role": "user", "content": "A"},
        {"role": "system", "content": [{"type": "text", "text": "U"}, {"type": "text", "text": "V"}]}])",
        "[SYSTEM]S\n\nT\n\nU\nV[/SYSTEM][user]A[/][assistant]");
    check_rendered(templates::FORGETFUL, R"([{"role": "system", "content": "S"}, {"role": "user", "content": "A"}, {"role": "system", "content": "T"}])",
        "[system]S\n\nT[/][user]A[/][assistant]");
    check_rendered(templates::FORGETFUL, R"([{"role": "system", "content": [{"type": "text", "text": "S"}, {"type": "text", "text": "T"}]},
        {"role": "user", "content": "A"}])", "[system]S\nT[/][user]A[/][assistant]");
}

static const char ASKED[] = R"([{"role": "user", "content": "A"}, {"role": "assistant", "content": "", "tool_calls": [
    {"id": "%1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Bonn\"}"}},
    {"id": "%2", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "%3", "content": "noon"}, {"role": "tool", "tool_call_id": "%4", "content": "rain"}%5])";

static std::string asked(const std::vector<const char *> & words) {
    std::string text = ASKED;
    for (size_t i = 0; i < words.size(); i++) {
        const std::string mark = "%" + std::to_string(i + 1);
        text.replace(text.find(mark), mark.size(), words[i]);
    }
    return text;
}

TEST(ids_of_calls_are_written_anew_where_they_must_be_of_one_form) {
    const auto written = [](const std::string & first, const std::string & second, const std::string & results) {
        return "[user]A[/][CALL]{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}, \"id\": \"" + first +
               "\"}[/CALL][CALL]{\"name\": \"clock\", \"arguments\": {}, \"id\": \"" + second + "\"}[/CALL]" + results + "[assistant]";
    };
    check_rendered(templates::STRICT, asked({"long-id-12", "abcdefgh2", "abcdefgh2", "long-id-12", ""}).c_str(),
                   written("call00000", "abcdefgh2", "[RESULT abcdefgh2 clock]noon[/RESULT][RESULT call00000 weather]rain[/RESULT]"));
    check_rendered(templates::STRICT, asked({"", "", "", "nobody", ""}).c_str(),
                   written("call00000", "call00001", "[RESULT call00000 weather]noon[/RESULT][RESULT call00001 clock]rain[/RESULT]"));
    check_rendered(templates::STRICT, asked({"call00000", "x", "x", "call00000", ""}).c_str(),
                   written("call00000", "call00001", "[RESULT call00001 clock]noon[/RESULT][RESULT call00000 weather]rain[/RESULT]"));
    check_rendered(templates::STRICT, asked({"call00000", "call00001", "call00001", "call00000", R"(, {"role": "user", "content": "B"})"}).c_str(),
                   written("call00000", "call00001", "[RESULT call00001 clock]noon[/RESULT][RESULT call00000 weather]rain[/RESULT][assistant][/][user]B[/]"));
}

TEST(calls_come_one_by_one_where_a_message_may_have_one) {
    const std::string one = std::string("{%- for message in messages %}{%- if message.tool_calls and message.tool_calls | length > 1 %}"
                                        "{{- raise_exception('one at a time') }}{%- endif %}{%- endfor %}") + templates::STRICT;
    check_rendered(one.c_str(), asked({"call00001", "call00002", "call00002", "call00001", ""}).c_str(),
                   "[user]A[/][CALL]{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}, \"id\": \"call00001\"}[/CALL]"
                   "[RESULT call00001 weather]rain[/RESULT][CALL]{\"name\": \"clock\", \"arguments\": {}, \"id\": \"call00002\"}[/CALL]"
                   "[RESULT call00002 clock]noon[/RESULT][assistant]");
}

TEST(a_result_without_its_call_is_told_all_the_same) {
    const std::string picky = std::string("{%- for message in messages %}{%- if message.role == 'tool' and (loop.first or not loop.previtem.tool_calls) %}"
                                          "{{- raise_exception('no call') }}{%- endif %}{%- endfor %}") + templates::STRICT;
    check_rendered(picky.c_str(), R"([{"role": "user", "content": "A"}, {"role": "tool", "content": "rain"}])",
                   "[user]A[/][CALL]{\"name\": \"tool\", \"arguments\": {}, \"id\": \"call00000\"}[/CALL][RESULT call00000 tool]rain[/RESULT][assistant]");
}

TEST(a_template_that_refuses_all_the_same_is_quoted_and_not_dumped) {
    for (const char * tools : {"[]", TOOLS}) {
        try {
            chat_template("{{ raise_exception('No talk\n today.') }}", *tokens().vocab)
                .prepare(prompt_of(R"([{"role": "user", "content": "talk"}])", tools), nullptr, 1 << 20);
            CHECK(false);
        } catch (const invalid_request & e) {
            CHECK(std::string(e.what()) == "No talk today. (the model's chat template refuses this conversation)");
        }
    }
}

// ---- what single families want ---------------------------------------------------------------------------------------

static const char CALLED[] = R"([{"role": "user", "content": "A"}, {"role": "assistant", "content": "So", "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Bonn\", \"days\": [1, true]}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "rain"}])";

TEST(calls_are_written_down_for_a_template_that_shows_none) {
    const std::string prompt = chat_template(templates::PYTHONIC, *tokens().vocab).render(prompt_of(CALLED, TOOLS));
    CHECK(prompt.find("List of tools: <|tool_list_start|>[{") != std::string::npos && prompt.find("TOOL_REQUEST") == std::string::npos);
    CHECK(prompt.find("assistant\nSo<|tool_call_start|>[weather(city=\"Bonn\", days=[1,true])]<|tool_call_end|><|im_end|>") != std::string::npos);
}

static parsed_answer parsed(const char * source, const chat_prompt & prompt, const std::string & text) {
    const auto format = chat_template(source, *tokens().vocab).prepare(prompt, nullptr, 1 << 20).format;
    parsed_answer answer;
    CHECK(parse_answer(*format, text, true, answer));
    return answer;
}

TEST(calls_in_the_manner_of_python_are_read) {
    const parsed_answer answer = parsed(templates::PYTHONIC, prompt_of(CALLED, TOOLS), "Well. <|tool_call_start|>[weather(city=\"B\\\"onn\"), weather()]<|tool_call_end|>");
    CHECK(answer.content == "Well. " && answer.calls.size() == 2);
    CHECK(answer.calls[0].name == "weather" && answer.calls[0].arguments == R"({"city":"B\"onn"})" && answer.calls[1].arguments == "{}");
}

TEST(a_template_that_reads_tools_from_another_variable_gets_them_there) {
    const chat_template chat(templates::FUNCTIONS, *tokens().vocab);
    CHECK(chat.knows_tools());
    const std::string prompt = chat.render(prompt_of(CALLED, TOOLS));
    CHECK(prompt.find("Functions: [\n    {\n        \"name\": \"weather\",") != std::string::npos);
    CHECK(prompt.find(" functools[{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\", \"days\": [1, true]}}]") != std::string::npos);
    const parsed_answer answer = parsed(templates::FUNCTIONS, prompt_of(CALLED, TOOLS), " functools[{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}]");
    CHECK(answer.calls.size() == 1 && answer.calls[0].name == "weather" && answer.content.empty());
}

TEST(nobody_is_asked_to_think_unasked_where_thoughts_could_not_be_told_apart) {
    const char hello[] = R"([{"role": "user", "content": "A"}])";
    CHECK(render(templates::DELIBERATE, hello).find("Deliberation: disabled") == 0);
    chat_prompt asked = prompt_of(hello);
    asked.template_kwargs["enable_thinking"] = true;
    CHECK(chat_template(templates::DELIBERATE, *tokens().vocab).render(asked).find("Deliberation: enabled") == 0);
}

TEST(thoughts_are_shown_in_whatever_field_and_of_all_turns_where_a_template_can) {
    chat_prompt chat = prompt_of(R"([{"role": "user", "content": "A"}, {"role": "assistant", "content": "B", "reasoning_content": "Hm."},
        {"role": "user", "content": "C"}])");
    const chat_template pensive(templates::PENSIVE, *tokens().vocab);
    CHECK(pensive.render(chat).find("assistant\n<think>\nHm.\n</think>\n\nB<|im_end|>") != std::string::npos);
    chat.template_kwargs["preserve_thinking"] = false;
    CHECK(pensive.render(chat).find("Hm.") == std::string::npos);
    const parsed_answer answer = parsed(templates::PENSIVE, prompt_of(CALLED), "Oh.\n</think>\n\nYes.");
    CHECK(answer.reasoning == "Oh.\n" && answer.content == "Yes.");
}

TEST(calls_that_words_would_hide_are_messages_of_their_own) {
    const std::string either = std::string("{%- for message in messages %}{%- if message.content and message.tool_calls %}{{- '[' + message.content + ']' }}{%- else %}"
                                           "{%- for call in message.tool_calls %}{{- '<tool_call>\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' }}{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}"
                                           "{{- '[' + message.content + ']' }}{%- endif %}{%- endfor %}{%- if tools %}{{- tools | tojson }}{%- endif %}{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}");
    const chat_template chat(either, *tokens().vocab);
    CHECK(chat.knows_tools());
    const std::string prompt = chat.render(prompt_of(CALLED, TOOLS));
    CHECK(prompt.find("[So]<tool_call>\n{\"name\": \"weather\"") != std::string::npos);
}

TEST(a_template_that_wants_plain_types_gets_them) {
    const std::string picky = std::string("{%- for tool in tools %}{%- for name, spec in tool.function.parameters.properties | items %}{{- name + ':' + spec.type + ' ' }}"
                                          "{%- if spec.type == 'array' %}{{- spec['items'].type + ' ' }}{%- endif %}{%- endfor %}{%- endfor %}") + templates::HERMES;
    const char tools[] = R"([{"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {
        "a": {"type": ["null", "integer"]}, "b": {"enum": ["x"]}, "c": {"anyOf": [{"type": "null"}, {"type": "number"}]}, "d": {"type": "array"},
        "e": {"description": "any"}, "f": true, "g": {"const": false}}}}}])";
    const chat_prompt chat = prompt_of(R"([{"role": "user", "content": "A"}])", tools);
    const chat_template plain(picky, *tokens().vocab);
    CHECK(plain.render(chat).find("a:integer b:string c:number d:array string e:string f:string g:boolean ") == 0);
    CHECK(plain.prepare(chat, nullptr, 1 << 20).loosened.empty());
}

TEST(arguments_without_quotes_are_held_to_the_texts_that_they_may_be) {
    const char tools[] = R"([{"type": "function", "function": {"name": "get_it", "description": "", "parameters": {"type": "object", "properties": {
        "a_unit": {"enum": ["m", "k\"m"]}, "kind": {"const": "x"}, "word": {"type": "string"}}, "required": ["a_unit", "kind"]}}}])";
    chat_prompt chat = prompt_of(R"([{"role": "user", "content": "A"}])", tools);
    chat.choice = tool_choice::required;
    const auto format = chat_template(templates::TAGGED, *tokens().vocab).prepare(chat, nullptr, 1 << 20).format;
    const auto call = [](const char * unit, const char * kind) {
        return std::string("<tool_call>\n<function=get_it>\n<parameter=a_unit>\n") + unit + "\n</parameter>\n<parameter=kind>\n" + kind + "\n</parameter>\n";
    };
    const auto takes = [&](const std::string & text) {
        return matcher(format->compiled, *tokens().vocab).accept(format->opening + text);
    };
    CHECK(takes(call("m", "x")) && takes(call("k\"m", "x") + "<parameter=word>\nany <x>\n</parameter>\n"));
    CHECK(!takes(call("cm", "x")) && !takes(call("m", "xy")));
}

static std::vector<llama_token> tokenized(const vocabulary & vocab, const std::string & text) {
    return vocab.tokenize(text, true, true);
}

TEST(a_text_that_begins_with_the_bos_text_gets_no_second_one) {
    const vocabulary & vocab = made_up_vocab(400); // whose model asks for one
    const std::vector<llama_token> once = tokenized(vocab, "abc");
    CHECK(once.front() == llama_vocab_bos(vocab.get()) && llama_vocab_get_add_bos(vocab.get()));
    CHECK(tokenized(vocab, "<s>")  == std::vector<llama_token>{once.front()});
    CHECK(tokenized(vocab, "<s><s>").size() == 2);
    CHECK(vocab.tokenize("<s><s>", false, true).size() == 2);
    const std::vector<llama_token> written = tokenized(vocab, "<s>abc");
    CHECK(written.front() == once.front() && written[1] != once.front());
    const char chat[] = R"([{"role": "user", "content": "ab </s>"}])"; // a control token's text, which stays text
    for (const char * source : {"<s>{{ messages[0].content }}", "{{ messages[0].content }}"}) {
        common_log_set_verbosity_thold(-1);
        const std::vector<llama_token> prompt = chat_template(source, vocab).prepare(prompt_of(chat), nullptr, 1 << 20).tokens;
        CHECK(std::count(prompt.begin(), prompt.end(), once.front()) == 1 && prompt.front() == once.front());
    }
}
