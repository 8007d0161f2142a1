#include "check.h"
#include "text.h"

using namespace lm;

// Pushes `bytes` split at every place in turn; whatever the split, the text must be the same.
static std::string decode_split(const std::string & bytes, size_t at) {
    answer_text text({});
    std::string out;
    text.push(std::string_view(bytes).substr(0, at));
    out += text.take();
    text.push(std::string_view(bytes).substr(at));
    text.finish();
    return out + text.take();
}

TEST(utf8_is_the_same_wherever_it_is_split) {
    const std::string cases[][2] = {
        {"plain", "plain"},
        {"\xE2\x82\xAC\xF0\x9F\x98\x80x", "\xE2\x82\xAC\xF0\x9F\x98\x80x"},
        {"a\xFF""b", "a\xEF\xBF\xBD""b"},
        {"\xC0\xAF", "\xEF\xBF\xBD\xEF\xBF\xBD"},             // overlong
        {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"}, // a surrogate
        {"\xF4\x90\x80\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"}, // above U+10FFFF
        {"\xE2\x82z", "\xEF\xBF\xBDz"},                       // cut short by a letter: one replacement
        {"end\xE2\x82", "end\xEF\xBF\xBD"},                   // cut short by the end
    };
    for (const auto & [bytes, expected] : cases) {
        for (size_t at = 0; at <= bytes.size(); at++) {
            CHECK(decode_split(bytes, at) == expected);
        }
    }
}

TEST(a_part_of_a_character_is_never_shown) {
    answer_text text({});
    text.push("x\xE2\x82");
    CHECK(text.take() == "x");
    text.push("\xAC");
    CHECK(text.take() == "\xE2\x82\xAC");
}

TEST(stop_string_split_across_tokens_is_cut) {
    answer_text text({"STOP"});
    CHECK(!text.push("one S"));
    CHECK(text.take() == "one ");
    CHECK(!text.push("TO"));
    CHECK(text.take().empty());
    CHECK(text.push("P two"));
    CHECK(text.take().empty());
    CHECK(*text.stop() == "STOP");
    text.finish();
    CHECK(text.take().empty());
}

TEST(text_that_only_began_like_a_stop_string_is_shown) {
    answer_text text({"</end>"});
    text.push("a</e");
    CHECK(text.take() == "a");
    text.push("m>");
    CHECK(text.take() == "</em>");
}

TEST(the_earliest_stop_string_wins) {
    answer_text text({"world", "lo w"});
    CHECK(text.push("hello world"));
    CHECK(text.take() == "hel");
    CHECK(*text.stop() == "lo w");
}

TEST(a_stop_string_of_repeated_letters_is_found_after_a_false_start) {
    answer_text text({"aab"});
    text.push("a");
    text.push("a");
    CHECK(text.take().empty());
    text.push("a");
    CHECK(text.take() == "a");
    CHECK(text.push("b"));
    CHECK(text.take().empty());
}

TEST(what_was_held_back_is_shown_at_the_end) {
    answer_text text({"stop"});
    text.push("sto");
    CHECK(text.take().empty());
    text.finish();
    CHECK(text.take() == "sto");
    CHECK(text.taken() == 3);
}
