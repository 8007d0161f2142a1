// An answer that has to call a tool does, whatever a model would rather say: drawn at random, in the notations of several families.
// One that a rule is asked for has it in the place of its content, behind thoughts.
#include "chat_vocabulary.h"
#include "templates.h"

#include "answer_parser.h"
#include "chat_template.h"
#include "lazy_grammar.h"
#include "matcher.h"
#include "reasoning.h"
#include "reply.h"
#include "sampler.h"

#include "json.h"
#include "log.h"

#include <random>

using namespace lm;

static const chat_vocabulary & tokens() {
    static const chat_vocabulary loaded;
    return loaded;
}

static chat_turn turn_of(const std::string & source, bool parallel) {
    common_log_set_verbosity_thold(-1);
    chat_prompt chat;
    chat.messages = common_json::parse(R"([{"role": "user", "content": "Hi"}])");
    chat.template_kwargs = common_json::object();
    chat.tools = common_json::parse(R"([{"type": "function", "function": {"name": "weather", "description": "", "parameters": {"type": "object", "properties":
        {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "minimum": 1, "maximum": 7}}, "required": ["city"], "additionalProperties": false}}},
        {"type": "function", "function": {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}, "additionalProperties": false}}}])");
    chat.choice = tool_choice::required;
    chat.parallel_tool_calls = parallel;
    return chat_template(source, *tokens().vocab).prepare(chat, nullptr, 1 << 20);
}

struct drawn {
    std::string text; // all of it
    std::string content;
    std::string reasoning;
    std::vector<std::pair<std::string, std::string>> calls;
    bool ended = false; // by itself
};

// What comes of `room` tokens that are drawn from rows of chance, as the engine draws them.
static drawn draw(const chat_turn & turn, unsigned seed, size_t room) {
    const vocabulary & vocab = *tokens().vocab;
    std::mt19937 rng(seed);
    sampling_params params;
    params.temperature = 1.0f;
    params.top_k = 0;
    params.top_p = 1.0f;
    params.min_p = 0.0f;
    params.seed = seed;
    CHECK(turn.format && turn.format->compiled && !turn.format->grammar_lazy);
    sampler choose(params, vocab, eager_grammar(*turn.format, vocab), 4096);
    const auto most = thinking_limit(*turn.format, -1, room);
    CHECK(most && *most < room);
    const auto budget = reasoning_budget::of(*turn.format, vocab, *most);
    reply answer(turn.format, {}, true);
    answer.set_ruled();
    reply::clock::time_point now{std::chrono::hours(1)};
    drawn all;
    std::vector<float> row(size_t(vocab.size()));
    for (size_t i = 0; i < room && !all.ended; i++) {
        for (float & logit : row) {
            logit = std::normal_distribution<float>(0, 1.5f)(rng);
        }
        const auto must = budget ? budget->next() : std::nullopt;
        const bool forced = must && !choose.is_within_schema() && choose.force(*must);
        const std::optional<llama_token> id = forced ? must : choose.sample(row.data());
        CHECK(id);
        if (vocab.is_eog(*id)) {
            all.ended = true;
            answer.finish(vocab, true, *id);
            break;
        }
        if (budget) {
            budget->push(*id);
        }
        all.text += vocab.special_piece(*id);
        now += std::chrono::minutes(10); // it is read anew each time, however long the last took
        all.ended = answer.push(vocab, *id, now);
        if (all.ended) {
            answer.finish(vocab, true);
        }
    }
    if (!all.ended) {
        answer.finish(vocab, false);
    }
    for (const reply_piece & piece : answer.take()) {
        switch (piece.where) {
            case reply_piece::channel::reasoning: all.reasoning += piece.text; break;
            case reply_piece::channel::content: all.content += piece.text; break;
            case reply_piece::channel::tool_call:
                if (!piece.name.empty()) {
                    all.calls.emplace_back(piece.name, "");
                }
                all.calls.back().second += piece.text;
        }
    }
    return all;
}

// Marks that a family is known by, and how an answer begins.
static std::string family(const std::string & marks, const std::string & begin) {
    return "{# " + marks + " #}{%- if tools %}{{- tools | tojson }}{%- endif %}{%- for message in messages %}{{- message.role + ': ' + (message.content or '') }}"
           "{%- for call in message.tool_calls or [] %}{{- call.function.name + (call.function.arguments | tojson) }}{%- endfor %}{%- endfor %}"
           "{%- if add_generation_prompt %}{{- '" + begin + "' }}{%- endif %}";
}

static const std::string KIMI_K3 = family("<|open|> <|close|> <|end_of_msg|>", "<|open|>message role=\"assistant\"<|sep|><|open|>think<|sep|>");

TEST(a_call_that_has_to_come_comes_whatever_is_drawn) {
    using namespace templates;
    const std::string thinking[] = {THINKING, HARMONY, KIMI_K3, DEEPSEEK, family("<think> <|tool_calls_section_begin|> <|tool_call_begin|>", "<|im_assistant|>assistant<|im_middle|>")};
    const std::string others[] = {HERMES, LLAMA3, MISTRAL, TAGGED, STRICT, PYTHONIC, PLAIN, FUNCTIONS,
                                  family(">>>all", "<|start_header_id|>assistant<|end_header_id|>\n\n>>>")};
    const auto check = [](const std::string & source, unsigned seed, size_t room) {
        const bool parallel = seed % 2 == 0;
        const drawn all = draw(turn_of(source, parallel), seed, room);
        CHECK(!all.calls.empty());
        CHECK(all.content.empty());
        CHECK(parallel || (all.ended && all.calls.size() == 1));
        for (const auto & [name, arguments] : all.calls) {
            const bool is_last = &name == &all.calls.back().first;
            const common_json parsed = common_json::parse_no_throw(arguments);
            CHECK((is_last && !all.ended) || (!parsed.is_discarded() && parsed.is_object() && parsed.contains("city") == (name == "weather")));
        }
    };
    for (unsigned seed = 0; seed < 6; seed++) {
        for (const std::string & source : thinking) {
            check(source, seed, 1200); // a quarter of it for a call in byte after byte
        }
    }
    for (unsigned seed = 0; seed < 20; seed++) {
        for (const std::string & source : others) {
            check(source, seed, 400);
        }
    }
}

static bool may_write(const chat_turn & turn, const std::string & text, bool whole = true) {
    const matcher_ptr m = eager_grammar(*turn.format, *tokens().vocab);
    for (const char c : text) {
        if (!m->allows(tokens().byte(c)) || !m->accept(tokens().byte(c))) {
            return false;
        }
    }
    return !whole || m->allows(llama_vocab_eos(tokens().vocab->get()));
}

TEST(ahead_of_a_call_that_has_to_come_there_are_thoughts_once_and_no_words) {
    const chat_turn turn = turn_of(templates::HARMONY, true);
    const std::string call = " to=functions.clock<|channel|>commentary json<|message|>{}";
    const std::string thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant";
    CHECK(may_write(turn, call) && may_write(turn, thought + call));
    CHECK(!may_write(turn, thought + thought + call) && !may_write(turn, "<|channel|>commentary<|message|>Well.<|end|><|start|>assistant" + call));
    CHECK(!may_write(turn, "<|channel|>final", false));
    const chat_turn kimi = turn_of(KIMI_K3, true);
    const std::string tools = "<|open|>tools<|sep|><|open|>call tool=\"clock\" index=\"1\"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>";
    CHECK(may_write(kimi, "Hm.<|close|>think<|sep|>" + tools));
    CHECK(!may_write(kimi, "Hm.<|close|>think<|sep|><|open|>response<|sep|>Well.", false));
    CHECK(!may_write(turn_of(templates::TAGGED, true), "Well.", false));
}

TEST(words_of_a_notation_come_to_an_end) {
    const chat_turn turn = turn_of(KIMI_K3, true);
    const std::string begun = "<|close|>think<|sep|><|open|>tools<|sep|><|open|>call tool=\"clock\"";
    CHECK(may_write(turn, begun + std::string(64, 'x') + "<|sep|>", false) && !may_write(turn, begun + std::string(65, 'x'), false));
    const chat_turn listed = turn_of(templates::MISTRAL, true);
    const auto with_id = [](const std::string & id) { return "[TOOL_CALLS][{\"name\": \"clock\", \"arguments\": {}, \"id\": \"" + id + "\"}]"; };
    CHECK(may_write(listed, with_id("abcdefghi")) && may_write(listed, with_id("")));
    CHECK(!may_write(listed, with_id(std::string(65, 'x'))));
    CHECK(!may_write(listed, with_id("\\ "))); // which is no escape, though llama.cpp's grammar has it
}

TEST(thoughts_leave_room_for_a_call_that_has_to_come) {
    const auto required = turn_of(templates::THINKING, true).format;
    CHECK(thinking_limit(*required, -1, 1000) == 750u && thinking_limit(*required, 100, 1000) == 100u && thinking_limit(*required, 5000, 1000) == 750u);
    answer_format free = *required;
    free.must_call = false;
    CHECK(!thinking_limit(free, -1, 1000) && thinking_limit(free, 5000, 1000) == 5000u);
}

TEST(a_mark_that_ends_answers_ends_none_that_a_grammar_rules) {
    const chat_turn turn = turn_of(templates::STRICT, true);
    CHECK(turn.format->stops == std::vector<std::string>{"[/]"});
    for (const bool is_ruled : {false, true}) {
        reply r(turn.format, {}, true);
        if (is_ruled) {
            r.set_ruled();
        }
        bool ended = false;
        for (const char c : std::string(R"([CALL]{"name": "weather", "arguments": {"city": "[/]"}, "id": "abcdefghi"}[/CALL])")) {
            ended = ended || r.push(*tokens().vocab, tokens().byte(c), {});
        }
        CHECK(ended == !is_ruled);
        r.finish(*tokens().vocab, true);
        std::string arguments;
        for (const reply_piece & piece : r.take()) {
            arguments += piece.text;
        }
        CHECK((arguments == R"({"city": "[/]"})") == is_ruled);
    }
}

TEST(what_is_cut_within_a_character_of_a_mark_is_no_content) {
    std::string source = templates::HERMES;
    for (size_t at = source.find("<tool_call>"); at != std::string::npos; at = source.find("<tool_call>", at + 1)) {
        source.replace(at, 11, "<\xEF\xBD\x9C" "call>");
    }
    const chat_turn turn = turn_of(source, true);
    for (const bool whole : {false, true}) {
        reply r(turn.format, {}, whole);
        r.set_ruled();
        for (const char c : std::string("<\xEF\xBD")) {
            r.push(*tokens().vocab, tokens().byte(c), {});
        }
        r.finish(*tokens().vocab, false);
        CHECK(r.take().empty());
    }
}

TEST(what_rules_an_answer_stands_in_the_last_place_of_content) {
    const grammar_spec rules[] = {{grammar_kind::regex, "y[e]+s"}, {grammar_kind::choice, R"(["no", "yes"])"}, {grammar_kind::gbnf, "root ::= \"yes\""}};
    const std::string thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant";
    const std::string final = "<|channel|>final<|message|>";
    const std::string closed = "Hm.<|close|>think<|sep|>";
    for (const grammar_spec & rule : rules) {
        const auto ruled = [&](const std::string & source) {
            chat_prompt chat;
            chat.messages = common_json::parse(R"([{"role": "user", "content": "Hi"}])");
            chat.template_kwargs = common_json::object();
            chat.tools = common_json::array();
            chat_turn turn = chat_template(source, *tokens().vocab).prepare(chat, &rule, 1 << 20);
            CHECK(turn.format && turn.format->compiled);
            return turn;
        };
        const auto says_yes = [](const chat_turn & turn, const std::string & text) {
            parsed_answer read;
            CHECK(parse_answer(*turn.format, text, false, read));
            return may_write(turn, text) && read.content == "yes" && read.calls.empty();
        };
        const chat_turn turn = ruled(templates::HARMONY);
        CHECK(says_yes(turn, final + "yes") && says_yes(turn, thought + final + "yes"));
        CHECK(!may_write(turn, "yes") && !may_write(turn, thought + thought + final + "yes") && !may_write(turn, final + "perhaps") && !may_write(turn, final));
        CHECK(!may_write(turn, "<|channel|>commentary<|message|>Well.<|end|><|start|>assistant" + final + "yes"));
        CHECK(!may_write(turn, "<|channel|>commentary to=functions.f", false));
        const chat_turn kimi = ruled(KIMI_K3);
        CHECK(says_yes(kimi, closed + "<|open|>response<|sep|>yes<|close|>response<|sep|>") && says_yes(kimi, closed + "yes"));
        CHECK(!may_write(kimi, closed + "<|open|>response<|sep|>perhaps") && !may_write(kimi, closed));
    }
}
