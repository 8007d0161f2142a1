#include "chat_vocabulary.h"
#include "templates.h"

#include "chat_template.h"
#include "error.h"
#include "fixture.h"
#include "reply.h"
#include "lazy_grammar.h"

#include "log.h"

#include <algorithm>
#include <map>

using namespace lm;

static const chat_vocabulary & tokens() {
    static const chat_vocabulary loaded;
    return loaded;
}

static chat_prompt conversation(const char * tools, tool_choice choice = tool_choice::automatic) {
    chat_prompt chat;
    chat.messages = common_json::parse(R"([{"role": "user", "content": "Hi"}])");
    chat.template_kwargs = common_json::object();
    chat.tools = common_json::parse(tools);
    chat.choice = choice;
    chat.parallel_tool_calls = true;
    return chat;
}

static const char NO_TOOLS[] = "[]";
static const char WEATHER[] = R"([{"type": "function", "function": {"name": "weather", "description": "Weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                   "required": ["city"]}}},
   {"type": "function", "function": {"name": "weather_map", "description": "", "parameters": {"type": "object",
    "properties": {"city": {"type": "string"}}}}}])";

static std::shared_ptr<const answer_format> format_of(const char * source, const chat_prompt & chat) {
    common_log_set_verbosity_thold(-1);
    return chat_template(source, *tokens().vocab).prepare(chat, nullptr, 1 << 20).format;
}

struct heard {
    std::string reasoning;
    std::string content;
    std::map<size_t, std::pair<std::string, std::string>> calls; // name, arguments
    size_t n_pieces = 0;

    void hear(reply & r) {
        for (const reply_piece & piece : r.take()) {
            n_pieces++;
            switch (piece.where) {
                case reply_piece::channel::reasoning: reasoning += piece.text; break;
                case reply_piece::channel::content: content += piece.text; break;
                case reply_piece::channel::tool_call:
                    CHECK(piece.call == calls.size() || piece.call + 1 == calls.size()); // one after another
                    CHECK((calls.count(piece.call) == 0) == !piece.name.empty());        // the name comes first, and once
                    calls[piece.call].first += piece.name;
                    calls[piece.call].second += piece.text;
            }
        }
    }
    bool operator==(const heard & other) const {
        return reasoning == other.reasoning && content == other.content && calls == other.calls;
    }
};

using milliseconds = std::chrono::milliseconds;

// After it the text is read anew: that takes as much longer than 25 ms as the last reading took, on a machine that had other
// things to do.
static constexpr milliseconds LONG = std::chrono::minutes(10);

// Pushes `text` byte by byte, with `step` between the bytes.
static heard listen(std::shared_ptr<const answer_format> format, const std::string & text, milliseconds step, bool by_itself,
                    bool whole = false) {
    reply r(std::move(format), {}, whole);
    heard all;
    reply::clock::time_point now{std::chrono::hours(1)};
    for (const char c : text) {
        CHECK(!r.push(*tokens().vocab, tokens().byte(c), now));
        if (!whole) {
            all.hear(r);
        }
        now += step;
    }
    r.finish(*tokens().vocab, by_itself);
    all.hear(r);
    return all;
}

struct answer {
    const char * source;
    const char * tools;
    std::string text;
    heard expected;
};

static std::vector<answer> answers() {
    using namespace templates;
    const std::string ask = R"({"city": "Z\u00fcrich <x>", "days": 3})";
    const std::string map = R"({"city": "[{"})";
    return {
        {HERMES, WEATHER, "Just <b>text</b>.", {"", "Just <b>text</b>.", {}, 0}},
        {HERMES, WEATHER, "\n<tool_call>\n{\"name\": \"weather\", \"arguments\": " + ask + "}\n</tool_call>", {"", "", {{0, {"weather", ask}}}, 0}},
        {HERMES, WEATHER, "Look: \xE2\x82\xAC <tool_call>\n{\"name\": \"weather\", \"arguments\": " + ask + "}\n</tool_call>\n<tool_call>\n{\"name\": \"weather_map\", \"arguments\": " + map + "}\n</tool_call>",
         {"", "Look: \xE2\x82\xAC ", {{0, {"weather", ask}}, {1, {"weather_map", map}}}, 0}},
        {THINKING, WEATHER, "Hm. <i>\n</think>\n\nIt is 1 < 2.", {"Hm. <i>\n", "It is 1 < 2.", {}, 0}},
        {THINKING, NO_TOOLS, "Hm. <i>\n</think>\n\nIt is 1 < 2.", {"Hm. <i>\n", "It is 1 < 2.", {}, 0}},
        {THINKING, WEATHER, "Hm.\n</think>\n\n<tool_call>\n{\"name\": \"weather\", \"arguments\": " + ask + "}\n</tool_call>", {"Hm.\n", "", {{0, {"weather", ask}}}, 0}},
        {LLAMA3, WEATHER, "{\"name\": \"weather\", \"parameters\": " + ask + "}", {"", "", {{0, {"weather", ask}}}, 0}},
        {LLAMA3, WEATHER, "No call.", {"", "No call.", {}, 0}},
        {MISTRAL, WEATHER, "[TOOL_CALLS][{\"name\": \"weather\", \"arguments\": " + ask + ", \"id\": \"abcdefghi\"}]", {"", "", {{0, {"weather", ask}}}, 0}},
        {TAGGED, WEATHER, "Well.\n<tool_call>\n<function=weather>\n<parameter=city>\nBonn \"x\"\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
         {"", "Well.\n", {{0, {"weather", R"({"city":"Bonn \"x\"","days":3})"}}}, 0}},
        {HARMONY, WEATHER, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.", {"Hm.", "Yes.", {}, 0}},
        {HARMONY, NO_TOOLS, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.", {"Hm.", "Yes.", {}, 0}},
        {HARMONY, WEATHER, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>" + ask, {"Hm.", "", {{0, {"weather", ask}}}, 0}},
        {DEEPSEEK, NO_TOOLS, "Hm.\n</think>\n\nYes.", {"Hm.\n", "Yes.", {}, 0}},
        {DEEPSEEK, WEATHER, "Hm.\n</think>\n\nSo: [TOOL_REQUEST]{\"name\": \"weather\", \"arguments\": " + ask + "}[END_TOOL_REQUEST]", {"Hm.\n", "So: ", {{0, {"weather", ask}}}, 0}},
        {PLAIN, WEATHER, "[TOOL_REQUEST]{\"name\": \"weather\", \"arguments\": " + ask + "}[END_TOOL_REQUEST]\n[TOOL_REQUEST]{\"name\": \"weather_map\", \"arguments\": " + map + "}[END_TOOL_REQUEST]",
         {"", "", {{0, {"weather", ask}}, {1, {"weather_map", map}}}, 0}},
        {PLAIN, WEATHER, "[TOOL_REQUEST]is not one", {"", "[TOOL_REQUEST]is not one", {}, 0}},
        {HERMES, WEATHER, "<tool_call>\n{\"name\": \"nobody\", \"arguments\": {}}\n</tool_call>", {"", "<tool_call>\n{\"name\": \"nobody\", \"arguments\": {}}\n</tool_call>", {}, 0}},
        {LLAMA3, WEATHER, "{\"name\": \"nobody\", \"parameters\": {}}", {"", "{\"name\": \"nobody\", \"parameters\": {}}", {}, 0}},
        {HERMES, WEATHER, "It ends in a <", {"", "It ends in a <", {}, 0}},
        {THINKING, WEATHER, "It never stops to think", {"It never stops to think", "", {}, 0}},
    };
}

static void check_equal(const answer & a, const heard & got, const char * how) {
    if (!(got == a.expected)) {
        fprintf(stderr, "%s: %s\n reasoning: %s\n content: %s\n", how, a.text.c_str(), got.reasoning.c_str(), got.content.c_str());
        for (const auto & [index, call] : got.calls) {
            fprintf(stderr, " call %zu: %s %s\n", index, call.first.c_str(), call.second.c_str());
        }
    }
    CHECK(got == a.expected);
}

TEST(channels_are_the_same_streamed_and_whole) {
    for (const answer & a : answers()) {
        const auto format = format_of(a.source, conversation(a.tools));
        check_equal(a, listen(format, a.text, milliseconds(0), true, true), "whole");
        check_equal(a, listen(format, a.text, LONG, true), "parsed at every byte");
        check_equal(a, listen(format, a.text, milliseconds(7), true), "parsed now and then");
        check_equal(a, listen(format, a.text, milliseconds(0), true), "parsed at the start and the end");
    }
}

static bool begins_with(const std::string & text, const std::string & start) {
    return text.compare(0, start.size(), start) == 0;
}

// What was shown of an answer that was cut off must be a beginning of what the whole answer shows.
TEST(an_answer_cut_anywhere_shows_a_beginning_of_its_channels) {
    for (const answer & a : answers()) {
        const auto format = format_of(a.source, conversation(a.tools));
        for (size_t n = 0; n < a.text.size(); n++) {
            const std::string cut = a.text.substr(0, n);
            for (const bool whole : {false, true}) {
                const heard got = listen(format, cut, LONG, false, whole);
                CHECK(got.calls.size() <= a.expected.calls.size());
                for (const auto & [index, call] : got.calls) {
                    CHECK(call.first == a.expected.calls.at(index).first);
                    CHECK(begins_with(a.expected.calls.at(index).second, call.second));
                }
            }
        }
    }
}

TEST(an_answer_that_stops_anywhere_loses_no_text_and_repeats_none) {
    const std::string text = "One [two] <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": 3}}";
    const auto format = format_of(templates::HERMES, conversation(WEATHER));
    for (size_t n = 0; n < text.size(); n++) {
        const heard got = listen(format, text.substr(0, n), LONG, true);
        const std::string shown = got.content + (got.calls.empty() ? "" : "call");
        CHECK(!got.calls.empty() || got.content == text.substr(0, n) || got.content + "<tool_call>" == text.substr(0, n) ||
              got.content + "<tool_call>\n" == text.substr(0, n));
    }
}

TEST(text_without_tags_is_shown_at_once) {
    const auto format = format_of(templates::THINKING, conversation(WEATHER));
    reply r(format);
    heard all;
    reply::clock::time_point now{std::chrono::hours(1)};
    const auto say = [&](const std::string & text) {
        for (const char c : text) {
            r.push(*tokens().vocab, tokens().byte(c), now);
            all.hear(r);
        }
    };
    say("I"); // parsed, the first time
    say(" think [so] < that.");
    CHECK(all.reasoning == "I think [so] < that.");
    say("</think>\n\n");
    now += LONG;
    say("Y");
    say("es, {all} < of it.");
    CHECK(all.content == "Yes, {all} < of it.");
    say(" <tool_c");
    CHECK(all.content == "Yes, {all} < of it. ");
    say("ar>");
    CHECK(all.content == "Yes, {all} < of it. <tool_car>");
}

TEST(text_that_left_its_format_is_shown_while_it_comes) {
    const auto format = format_of(templates::LLAMA3, conversation(WEATHER));
    const std::string text = "A set: {1, 2}. " + std::string(1000, '.');
    reply r(format);
    heard all;
    reply::clock::time_point now{std::chrono::hours(1)};
    for (const char c : text) {
        r.push(*tokens().vocab, tokens().byte(c), now += LONG);
        all.hear(r);
    }
    CHECK(all.content == text);
    r.finish(*tokens().vocab, true);
    all.hear(r);
    CHECK(all.content == text);
}

TEST(arguments_are_streamed_and_every_part_stays) {
    const auto format = format_of(templates::HERMES, conversation(WEATHER));
    const std::string text = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"A city with a very long name\"}}\n</tool_call>";
    const heard got = listen(format, text, LONG, true);
    CHECK(got.calls.at(0).second == "{\"city\": \"A city with a very long name\"}");
    CHECK(got.n_pieces > 10);
}

TEST(a_call_cut_short_keeps_its_beginning) {
    const auto format = format_of(templates::HERMES, conversation(WEATHER));
    for (const bool whole : {false, true}) {
        const heard got = listen(format, "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bo", LONG, false, whole);
        CHECK(got.calls.at(0).first == "weather");
        CHECK(begins_with("{\"city\": \"Bo", got.calls.at(0).second));
        CHECK(got.content.empty());
    }
}

TEST(brackets_without_end_do_not_exhaust_the_stack) {
    const auto format = format_of(templates::LLAMA3, conversation(WEATHER));
    const std::string text = "{\"name\": \"weather\", \"parameters\": {\"city\": " + std::string(50000, '[');
    const heard got = listen(format, text, milliseconds(0), true);
    CHECK(got.content == text);
}

TEST(a_stop_string_counts_in_the_content_only) {
    const auto format = format_of(templates::THINKING, conversation(WEATHER));
    const std::string text = "STOP\n</think>\n\nOne STOP two";
    for (const milliseconds step : {milliseconds(0), LONG}) {
        for (const bool whole : {false, true}) {
            reply r(format, {"STOP"}, whole);
            heard all;
            reply::clock::time_point now{std::chrono::hours(1)};
            size_t n = 0;
            while (n < text.size() && !r.push(*tokens().vocab, tokens().byte(text[n]), now)) {
                n++;
                now += step;
            }
            CHECK(n + 1 == text.size() - 4); // where it is complete
            CHECK(r.stop() != nullptr && *r.stop() == "STOP");
            r.finish(*tokens().vocab, false);
            all.hear(r);
            CHECK(all.reasoning == "STOP\n");
            CHECK(all.content == "One ");
        }
    }
}

TEST(an_answer_that_may_call_once_is_over_with_its_first_call) {
    chat_prompt chat = conversation(WEATHER);
    chat.parallel_tool_calls = false;
    const std::string call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>";
    const heard one{"", "", {{0, {"weather", R"({"city": "Bonn"})"}}}, 0};
    for (const char * source : {templates::HERMES, templates::THINKING}) {
        const std::string text = (source == templates::THINKING ? "</think>\n\n" : "") + call + "\n" + call;
        for (const milliseconds step : {milliseconds(0), LONG}) {
            for (const bool whole : {false, true}) {
                reply r(format_of(source, chat), {}, whole);
                reply::clock::time_point now{std::chrono::hours(1)};
                size_t n = 0;
                while (n < text.size() && !r.push(*tokens().vocab, tokens().byte(text[n]), now)) {
                    n++;
                    now += step;
                }
                CHECK(step == milliseconds(0) || n < text.size() - call.size()); // without time there is no parse before the end
                r.finish(*tokens().vocab, true);
                heard all;
                all.hear(r);
                CHECK(all == one);
            }
        }
    }
}

static std::string raised_by(const char * source, const chat_prompt & chat) {
    try {
        format_of(source, chat);
    } catch (const error & e) {
        return e.details;
    }
    return "";
}

// ---- answers that are gone on with ----------------------------------------------------------------------------------

static chat_prompt begun(const char * answer, const char * tools) {
    chat_prompt chat = conversation(tools);
    chat.messages.push_back(common_json::parse(answer));
    return chat;
}

static bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

TEST(an_answer_at_the_end_is_gone_on_with_and_only_what_is_new_is_told) {
    const char * answer = R"({"role": "assistant", "content": "The answer"})";
    const std::string call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>";
    for (const char * source : {templates::HERMES, templates::THINKING, templates::LLAMA3, templates::TAGGED, templates::PLAIN, templates::MISTRAL}) {
        for (const char * tools : {NO_TOOLS, WEATHER}) {
            const chat_prompt chat = begun(answer, tools);
            const std::string prompt = chat_template(source, *tokens().vocab).render(chat);
            CHECK(ends_with(prompt, source == templates::THINKING ? "<think>\n</think>\n\nThe answer" : "The answer"));
            chat_prompt anew = chat;
            anew.continues = false;
            CHECK(!ends_with(chat_template(source, *tokens().vocab).render(anew), "The answer"));
            const auto format = format_of(source, chat);
            for (const std::string text : {" is 42.", "", "s: [1, 2]", "\n\nis <b>4</b>"}) {
                for (const milliseconds step : {milliseconds(0), LONG}) {
                    for (const bool whole : {false, true}) {
                        const heard got = listen(format, text, step, true, whole);
                        CHECK(got.content == text && got.reasoning.empty() && got.calls.empty());
                    }
                }
            }
        }
    }
    for (const char * source : {templates::HERMES, templates::THINKING}) {
        const heard got = listen(format_of(source, begun(answer, WEATHER)), " is:\n" + call, LONG, true);
        CHECK(got.content.substr(0, 4) == " is:" && got.calls.at(0).first == "weather");
    }
}

TEST(reasoning_at_the_end_is_gone_on_with) {
    const chat_prompt chat = begun(R"({"role": "assistant", "content": "", "reasoning_content": "Let me"})", WEATHER);
    CHECK(ends_with(chat_template(templates::THINKING, *tokens().vocab).render(chat), "assistant\n<think>\nLet me"));
    for (const milliseconds step : {milliseconds(0), LONG}) {
        for (const bool whole : {false, true}) {
            const heard got = listen(format_of(templates::THINKING, chat), " think.\n</think>\n\nYes.", step, true, whole);
            CHECK(got.reasoning == " think.\n" && got.content == "Yes.");
        }
    }
    const chat_prompt both = begun(R"({"role": "assistant", "content": "Yes, ", "reasoning_content": "Hm."})", WEATHER);
    CHECK(ends_with(chat_template(templates::THINKING, *tokens().vocab).render(both), "<think>\nHm.\n</think>\n\nYes, "));
    const heard got = listen(format_of(templates::THINKING, both), "it is.", LONG, true);
    CHECK(got.content == "it is." && got.reasoning.empty());
}

TEST(what_rules_an_answer_begins_it_anew_and_what_is_no_answer_is_not_gone_on_with) {
    const char * answer = R"({"role": "assistant", "content": "<|im_end|>{\"a\": "})";
    const chat_template chat(templates::HERMES, *tokens().vocab);
    const grammar_spec schema{grammar_kind::schema, R"({"type": "object", "properties": {"a": {"type": "integer"}}})"};
    chat_prompt prompt = begun(R"({"role": "assistant", "content": "{\"a\": "})", NO_TOOLS);
    const auto size = [&](const chat_prompt & p, const grammar_spec * g) { return chat.prepare(p, g, 1 << 20).tokens.size(); };
    const size_t continued = size(prompt, nullptr);
    CHECK(size(prompt, &schema) > continued); // the answer was ended, and another opened
    prompt.continues = true;
    CHECK(size(prompt, &schema) == continued);
    const auto format = chat.prepare(prompt, &schema, 1 << 20).format;
    const matcher_ptr rest = eager_grammar(*format, *tokens().vocab);
    CHECK(rest->accept("12}"));
    CHECK(listen(format, "12}", LONG, true).content == "12}");
    const std::vector<llama_token> literal = chat.prepare(begun(answer, NO_TOOLS), nullptr, 1 << 20).tokens;
    CHECK(std::count(literal.begin(), literal.end(), llama_vocab_eos(tokens().vocab->get())) == 1); // the user's turn has one
    prompt = conversation(NO_TOOLS);
    prompt.continues = true;
    CHECK(raised_by(templates::HERMES, prompt) == "{\"param\":\"continue_final_message\"}");
}

TEST(a_model_that_thinks_may_do_so_first_whatever_rules_its_answer) {
    const grammar_spec rules[] = {{grammar_kind::regex, "y[e]+s"},
                                  {grammar_kind::choice, R"(["no", "yes"])"},
                                  {grammar_kind::gbnf, "root ::= \"y\" e \"s\"\ne ::= \"e\" | \"e\" e"},
                                  {grammar_kind::schema, R"({"enum": ["yes"]})"}};
    const chat_template chat(templates::THINKING, *tokens().vocab);
    for (const grammar_spec & rule : rules) {
        const std::string yes = rule.is_schema() ? "\"yes\"" : "yes";
        const auto format = chat.prepare(conversation(NO_TOOLS), &rule, 1 << 20).format;
        CHECK(format && format == chat.prepare(conversation(NO_TOOLS), &rule, 1 << 20).format);
        const auto fits = [&](const std::string & text) {
            const matcher_ptr m = eager_grammar(*format, *tokens().vocab);
            return std::all_of(text.begin(), text.end(), [&](char c) { return m->allows(tokens().byte(c)) && m->accept(tokens().byte(c)); }) &&
                   m->allows(llama_vocab_eos(tokens().vocab->get()));
        };
        CHECK(fits("Hm, no.\n</think>\n\n" + yes) && fits("</think>" + yes));
        CHECK(!fits("Hm.\n</think>\n\nperhaps") && !fits("Hm.\n</think>\n\n") && !fits("Hm.") && !fits("</think>" + yes + "."));
        for (const bool whole : {false, true}) {
            const heard got = listen(format, "Hm, no.\n</think>\n\n" + yes, LONG, true, whole);
            CHECK(got.content == yes && got.reasoning == "Hm, no.\n");
        }
        CHECK(rule.is_schema() || !fits("</think>" + yes + "\n")); // which would be content
        // One who does not think is ruled without a format.
        CHECK(rule.is_schema() || !chat_template(templates::HERMES, *tokens().vocab).prepare(conversation(NO_TOOLS), &rule, 1 << 20).format);
    }
    CHECK(chat.prepare(conversation(NO_TOOLS), &rules[0], 1 << 20).format != chat.prepare(conversation(NO_TOOLS), &rules[1], 1 << 20).format);
}

TEST(reasoning_tokens_are_those_between_the_tags) {
    const auto format = format_of(templates::THINKING, conversation(NO_TOOLS));
    reply r(format);
    const std::string text = "Hm. So.\n</think>\n\nYes.";
    for (const char c : text) {
        r.push(*tokens().vocab, tokens().byte(c), {});
    }
    r.finish(*tokens().vocab, true);
    CHECK(r.n_reasoning_tokens() == std::string("Hm. So.\n").size());
}

TEST(a_plain_template_needs_no_format) {
    CHECK(!format_of(templates::PLAIN, conversation(NO_TOOLS)));
    CHECK(!format_of(templates::HERMES, conversation(NO_TOOLS)));
    CHECK(format_of(templates::THINKING, conversation(NO_TOOLS)));
}

TEST(a_mark_that_is_no_token_ends_the_answer_as_text) {
    common_log_set_verbosity_thold(-1);
    const vocabulary & other = made_up_vocab(700); // which has no ChatML
    const auto stops = [](const chat_template & chat) {
        const auto format = chat.prepare(conversation(NO_TOOLS), nullptr, 1 << 20).format;
        return format ? format->stops : std::vector<std::string>();
    };
    for (const char * source : {"chatml", templates::HERMES, templates::THINKING}) {
        CHECK(stops(chat_template(source, other)) == std::vector<std::string>{"<|im_end|>"});
        CHECK(stops(chat_template(source, *tokens().vocab)).empty());
    }
    CHECK(stops(chat_template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}", other)).empty());
    CHECK(stops(chat_template("llama3", other)) == std::vector<std::string>{"<|eot_id|>"});
    const chat_template chat("chatml", other);
    reply r(chat.prepare(conversation(NO_TOOLS), nullptr, 1 << 20).format);
    const reply::clock::time_point now{std::chrono::hours(1)};
    std::string text = "Well <|im_ no.<|im_end|>";
    heard all;
    bool ended = false;
    for (const char c : text) {
        CHECK(!ended);
        ended = r.push(other, 4 + static_cast<unsigned char>(c), now); // as llama.cpp's tokens of a byte are numbered there
        all.hear(r);
    }
    CHECK(ended);
    r.finish(other, true);
    all.hear(r);
    CHECK(all.content == "Well <|im_ no.");
}

TEST(templates_of_llama_cpp_are_chosen_by_name) {
    common_log_set_verbosity_thold(-1);
    const auto render = [](const char * name) { return chat_template(name, *tokens().vocab).render(conversation(NO_TOOLS)); };
    CHECK(render("chatml") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    CHECK(render("zephyr") == "<|user|>\nHi<|endoftext|>\n<|assistant|>\n");
    CHECK(render("vicuna") == "USER: Hi\nASSISTANT:");
    CHECK(render("phi3") == "<|user|>\nHi<|end|>\n<|assistant|>\n");
    const chat_template chat("llama2", *tokens().vocab);
    CHECK(!chat.knows_tools() && chat.warnings().empty());
    CHECK(chat.render(conversation(NO_TOOLS)).find("[INST] Hi [/INST]") != std::string::npos);
    CHECK(chat.render(conversation(WEATHER)).find("weather_map") != std::string::npos); // which are told as text
    const chat_turn turn = chat.prepare(conversation(WEATHER, tool_choice::required), nullptr, 1 << 20);
    CHECK(turn.format && turn.format->compiled);
    const grammar_spec schema = {grammar_kind::schema, R"({"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]})"};
    const chat_turn structured = chat.prepare(conversation(NO_TOOLS), &schema, 1 << 20);
    CHECK(structured.format && structured.format->compiled && structured.format->content_is_json);
    try {
        chat_template("no such name", *tokens().vocab);
        CHECK(!"refused");
    } catch (const error & e) {
        CHECK(e.code == "invalid_request" && e.details.find("chat_template") != std::string::npos);
        CHECK(std::string(e.what()).find("zephyr") != std::string::npos);
    }
}

TEST(templates_know_tools_or_do_not) {
    common_log_set_verbosity_thold(-1);
    for (const char * source : {templates::HERMES, templates::THINKING, templates::LLAMA3, templates::MISTRAL,
                                templates::TAGGED, templates::HARMONY}) {
        CHECK(chat_template(source, *tokens().vocab).knows_tools());
    }
    for (const char * source : {templates::PLAIN, templates::DEEPSEEK}) {
        CHECK(!chat_template(source, *tokens().vocab).knows_tools());
    }
}

TEST(requests_that_agree_share_a_format) {
    common_log_set_verbosity_thold(-1);
    for (const char * source : {templates::HERMES, templates::HARMONY, templates::PLAIN}) {
        const chat_template chat(source, *tokens().vocab);
        chat_prompt other = conversation(WEATHER);
        other.messages = common_json::parse(R"([{"role": "user", "content": "Something else"}])");
        const auto first = chat.prepare(conversation(WEATHER), nullptr, 1 << 20).format;
        CHECK(first == chat.prepare(other, nullptr, 1 << 20).format);
        CHECK(first != chat.prepare(conversation(WEATHER, tool_choice::required), nullptr, 1 << 20).format);
    }
}

TEST(a_tool_whose_schema_does_not_compile_is_told_once_and_called) {
    const char * bounds = R"([{"type": "function", "function": {"name": "weather", "description": "", "parameters":
        {"type": "object", "properties": {"city": {"type": "string", "minLength": 9, "maxLength": 2}}}}},
        {"type": "function", "function": {"name": "weather_map", "description": "", "parameters": {"type": "object"}}}])";
    for (const char * source : {templates::HERMES, templates::HARMONY, templates::PLAIN}) {
        for (const tool_choice choice : {tool_choice::automatic, tool_choice::required}) {
            const chat_template chat(source, *tokens().vocab);
            const chat_turn first = chat.prepare(conversation(bounds, choice), nullptr, 1 << 20);
            const chat_turn second = chat.prepare(conversation(bounds, choice), nullptr, 1 << 20);
            CHECK(first.loosened == std::vector<std::string>{"weather"} && second.loosened.empty());
            CHECK(first.format->compiled && first.format == second.format && first.tokens == second.tokens);
        }
    }
}

TEST(several_calls_at_once_where_the_template_can_write_them_down_unless_the_request_says) {
    for (const auto & [source, several] : {std::pair(templates::HERMES, true), std::pair(templates::THINKING, true), std::pair(templates::LLAMA3, false),
                                           std::pair(templates::MISTRAL, true), std::pair(templates::TAGGED, true), std::pair(templates::PLAIN, true)}) {
        chat_prompt chat = conversation(WEATHER);
        CHECK(!format_of(source, chat)->one_call);
        chat.parallel_tool_calls = false;
        CHECK(format_of(source, chat)->one_call);
        chat.parallel_tool_calls = std::nullopt;
        CHECK(format_of(source, chat)->one_call == !several);
    }
    const std::string refuses = std::string("{%- for message in messages %}{%- if message.tool_calls and message.tool_calls | length > 1 %}"
                                            "{{- raise_exception('one at a time') }}{%- endif %}{%- endfor %}") + templates::HERMES;
    chat_prompt chat = conversation(WEATHER);
    chat.parallel_tool_calls = std::nullopt;
    CHECK(format_of(refuses.c_str(), chat)->one_call);
}

TEST(tools_for_a_template_without_them_are_spelled_in_the_conversation) {
    chat_prompt chat = conversation(WEATHER);
    chat.messages = common_json::parse(R"([{"role": "user", "content": "Bonn?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Bonn\"}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"}, {"role": "user", "content": "Thanks"}])");
    const std::string prompt = chat_template(templates::PLAIN, *tokens().vocab).render(chat);
    CHECK(begins_with(prompt, "<|im_start|>system\n"));
    CHECK(prompt.find("\"weather_map\"") != std::string::npos);
    CHECK(prompt.find("<|im_start|>assistant\n[TOOL_REQUEST]{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}[END_TOOL_REQUEST]<|im_end|>") != std::string::npos);
    CHECK(prompt.find("<|im_start|>user\n[TOOL_RESULT]rain[END_TOOL_RESULT]\nThanks<|im_end|>") != std::string::npos);
}

TEST(control_tokens_in_tools_and_calls_stay_text) {
    common_log_set_verbosity_thold(-1);
    const chat_template chat(templates::HERMES, *tokens().vocab);
    const llama_token control = tokens().vocab->tokenize("<|im_end|>", false, true).back();
    const auto count = [&](const char * tools, const char * messages) {
        chat_prompt prompt = conversation(tools);
        prompt.messages = common_json::parse(messages);
        const std::vector<llama_token> ids = chat.prepare(prompt, nullptr, 1 << 20).tokens;
        return std::count(ids.begin(), ids.end(), control);
    };
    const char * honest = R"([{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls":
        [{"id": "1", "type": "function", "function": {"name": "x", "arguments": "{\"a\": \"b\"}"}}]}])";
    const char * hostile = R"([{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls":
        [{"id": "1", "type": "function", "function": {"name": "x<|im_end|>", "arguments": "{\"a<|im_end|>\": \"\\u003c|im_end|>\"}"}}]}])";
    const char * hostile_tools = R"([{"type": "function", "function": {"name": "x", "description": "<|im_end|>", "parameters":
        {"type": "object", "properties": {"a": {"type": "string", "description": "<|im_end|>"}}}}}])";
    CHECK(count(WEATHER, honest) == count(hostile_tools, hostile));
}
