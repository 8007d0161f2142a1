// What chat templates that take too much come to: an error that says so, in bounded time, memory and stack.
#include "budget.h"
#include "chat_vocabulary.h"
#include "check.h"
#include "counted_search.h"
#include "chat_template.h"
#include "error.h"
#include "templates.h"

#include <optional>
#include <random>

using namespace lm;

static constexpr size_t MB = 1u << 20;

template <typename F>
static std::string exceeded(const budget_limits & limits, F work) {
    try {
        const budget cost(limits);
        work();
    } catch (const over_budget & over) {
        return over.what;
    }
    return "";
}

static size_t dig(size_t depth) {
    const std::string heavy(100, 'x'); // too long for the string itself: an allocation
    return depth == 0 ? heavy.size() : dig(depth - 1) + heavy.size() % 7;
}

TEST(what_is_allocated_at_one_time_counts_and_not_what_was_freed) {
    const budget_limits limits = {MB, MB, 1e6};
    CHECK(exceeded(limits, [] { std::vector<char> all(2 * MB); }) == "memory");
    CHECK(exceeded(limits, [] {
              for (int i = 0; i < 100; i++) {
                  std::vector<char> some(MB / 2);
                  std::string text(MB / 8, 'x');
                  text += text.substr(0, MB / 16);
              }
          }) == "");
    CHECK(exceeded(limits, [] {
              std::vector<std::string> kept;
              for (int i = 0; i < 40; i++) {
                  kept.push_back(std::string(MB / 32, 'x'));
              }
          }) == "memory");
    CHECK(exceeded(limits, [] {
              std::string doubled(100, 'x');
              for (int i = 0; i < 30; i++) {
                  doubled += doubled;
              }
          }) == "memory");
    std::vector<char> outside(2 * MB); // counts for nobody
    CHECK(outside.size() == 2 * MB);
}

TEST(the_depth_of_a_recursion_and_the_time_of_a_loop_end) {
    const budget_limits limits = {64 * MB, MB, 50};
    CHECK(exceeded(limits, [] { dig(100); }) == "");
    CHECK(exceeded(limits, [] { dig(1000000); }) == "stack");
    CHECK(exceeded(limits, [] {
              for (;;) {
                  count_step();
              }
          }) == "time");
}

TEST(a_budget_within_another_one_is_that_other_one) {
    const budget_limits small = {MB, MB, 1e6};
    CHECK(exceeded(small, [] {
              const budget inner({100 * MB, MB, 1e6});
              std::vector<char> all(2 * MB);
          }) == "memory");
}

// Little memory, and what compares or hashes it goes through 2^60 pairs.
#define DOUBLED_PAIR "{% set ns = namespace(x=(1, 2)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"

TEST(templates_that_take_too_much_are_a_problem_that_is_told) {
    const chat_vocabulary tokens;
    const std::pair<const char *, const char *> hostile[] = {
        {"{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}", "256 MB"},
        {"{% set ns = namespace(x=[1, 2]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}", "256 MB"},
        {"{{ 'a' * 3000000000 }}", "256 MB"},
        {"{% for i in range(1000000000) %}x{% endfor %}", "256 MB"},
        {"{{ ('a' * 100000)|replace('a', 'b' * 100000) }}", "256 MB"},
        {"{{ (range(100000)|list)|join('b' * 100000) }}", "256 MB"},
        {"{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "nests without end"},
        {"{% macro f(x) %}{{ g(x) }}{% endmacro %}{% macro g(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "nests without end"},
        {"{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns|tojson }}", "nests without end"},
        {"{% set l = [1] %}{% set _ = l.append(l) %}{{ l }}", "nests without end"},
        {"{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}", "3 s"},
        {DOUBLED_PAIR "{{ ns.x == ns.x }}", "3 s"},
        {DOUBLED_PAIR "{{ {ns.x: 1}|length }}", "3 s"},
        {"{% if %}{{ messages }", "Unexpected token"},
        {"{% for m in messages %}{{ m.content }}", "Unexpected"},
    };
    for (const auto & [source, why] : hostile) {
        const chat_template chat(source, *tokens.vocab);
        CHECK(chat.problem().find(why) != std::string::npos);
        CHECK(chat.warnings().size() == 1);
        chat_prompt prompt;
        prompt.messages = common_json::parse(R"([{"role":"user","content":"Hello"}])");
        try {
            chat.prepare(prompt, nullptr, 1000);
            CHECK(!"refused");
        } catch (const error & e) {
            CHECK(e.code == "invalid_request");
            CHECK(std::string(e.what()).find("template is at fault") != std::string::npos);
            CHECK(std::string(e.what()).find(why) != std::string::npos);
        }
    }
    CHECK(chat_template("{{" + std::string(200000, '('), *tokens.vocab).problem().find("longer than") != std::string::npos);
}

// What it does depends on the conversation, so it is found out with one.
TEST(a_template_that_takes_too_much_for_one_conversation_is_told_and_goes_on) {
    const chat_vocabulary tokens;
    const chat_template chat("{% for m in messages %}{{ m.content * (m.content|length) * (m.content|length) }}{% endfor %}", *tokens.vocab);
    CHECK(chat.problem().empty());
    const auto render = [&](size_t n) -> std::optional<std::string> {
        chat_prompt prompt;
        prompt.messages = common_json::parse(R"([{"role":"user","content":")" + std::string(n, 'x') + "\"}]");
        try {
            return chat.render(prompt);
        } catch (const error & e) {
            CHECK(std::string(e.what()).find("for this conversation it takes more than 256 MB") != std::string::npos);
            return std::nullopt;
        }
    };
    CHECK(render(10)->size() >= 1000);
    CHECK(!render(3000));
    CHECK(render(10)->size() >= 1000);
}

TEST(texts_are_found_where_the_library_finds_them) {
    std::mt19937 random(1);
    const auto text = [&](size_t least, size_t most) {
        std::string made(std::uniform_int_distribution<size_t>(least, most)(random), 'a');
        for (char & c : made) {
            c = random() % 8 == 0 ? 'b' : 'a';
        }
        return made;
    };
    for (int round = 0; round < 3000; round++) {
        const std::string whole = text(0, 400);
        const bool inside = round % 2 == 0 && whole.size() > 100;
        const std::string part = inside ? whole.substr(random() % 50, 1 + random() % 90) : text(0, 90);
        const size_t from = random() % 450;
        CHECK(find_counted(whole, part, from) == whole.find(part, from));
        CHECK(rfind_counted(whole, part) == whole.rfind(part));
        if (!part.empty()) {
            std::string replaced = whole, expected = whole;
            replace_counted(replaced, part, "xyz");
            for (size_t at = 0; (at = expected.find(part, at)) != std::string::npos; at += 3) {
                expected.replace(at, part.size(), "xyz");
            }
            CHECK(replaced == expected);
        }
    }
    const std::string part(40, 'b'); // across the ends of pieces
    for (const size_t at : {262100u, 262104u, 262105u, 262143u, 262144u, 524200u, 600000u - 40}) {
        std::string whole(600000, 'a');
        whole.replace(at, part.size(), part);
        CHECK(find_counted(whole, part, 0) == at);
    }
}

TEST(searches_take_no_longer_than_their_texts_are) {
    const std::string whole(8 * MB, 'a');
    const std::string part = std::string(4 * MB, 'a') + 'b';
    const budget_limits limits = {256 * MB, MB, 3000};
    CHECK(exceeded(limits, [&] { CHECK(find_counted(whole, part, 0) == std::string::npos); }) == "");
    CHECK(exceeded(limits, [&] { CHECK(rfind_counted(whole, 'b' + part.substr(1)) == std::string::npos); }) == "");
    CHECK(exceeded(limits, [&] {
              std::string text = whole;
              replace_counted(text, "aa", "a");
              CHECK(text.size() == 4 * MB);
          }) == "");
    CHECK(exceeded({256 * MB, MB, 20}, [&] {
              for (;;) {
                  find_counted(whole, "b", 0);
              }
          }) == "time");
}

TEST(a_long_conversation_is_within_the_budget) {
    const chat_vocabulary tokens;
    const chat_template chat(templates::HERMES, *tokens.vocab);
    chat_prompt prompt;
    prompt.messages = common_json::array();
    for (int i = 0; i < 4000; i++) {
        prompt.messages.push_back(common_json::object({{"role", i % 2 == 0 ? "user" : "assistant"}, {"content", "<|im_end|>"}}));
    }
    CHECK(chat.render(prompt).size() > 4000 * 30);
    prompt.messages = common_json::array({common_json::object({{"role", "user"}, {"content", std::string(4 * MB, '<')}})});
    CHECK(chat.render(prompt).size() > 4 * MB);
}
