#include "arguments.h"
#include "check.h"

#include "json.h"

using namespace lm;

TEST(whole_arguments_stay_as_they_are) {
    for (const char * text : {"{}", "{\"a\": 1}", " { \"a\" : [\"}\", {\"b\": null}] } "}) {
        CHECK(mend_arguments(text) == text);
    }
    CHECK(mend_arguments("") == "{}");
    CHECK(mend_arguments(" \n") == "{}");
}

TEST(arguments_that_were_cut_off_keep_what_is_whole) {
    const std::string cases[][2] = {
        {"{", "{}"},
        {"{\"ci", "{}"},
        {"{\"city\"", "{}"},
        {"{\"city\":", "{}"},
        {"{\"city\": \"Tu", "{\"city\": \"Tu\"}"},
        {"{\"city\": \"Tu\\", "{\"city\": \"Tu\"}"},
        {"{\"city\": \"Tu\\u00", "{\"city\": \"Tu\"}"},
        {"{\"city\": \"Turin\"", "{\"city\": \"Turin\"}"},
        {"{\"city\": \"Turin\",", "{\"city\": \"Turin\"}"},
        {"{\"city\": \"Turin\", \"da", "{\"city\": \"Turin\"}"},
        {"{\"city\": \"Turin\", \"days\": 1", "{\"city\": \"Turin\", \"days\": 1}"},
        {"{\"city\": \"Turin\", \"now\": tr", "{\"city\": \"Turin\"}"},
        {"{\"list\": [1, {\"a\": \"b", "{\"list\": [1, {\"a\": \"b\"}]}"},
        {"{\"list\": [1, 2", "{\"list\": [1, 2]}"},
    };
    for (const auto & [text, expected] : cases) {
        CHECK(mend_arguments(text) == expected);
    }
}

TEST(arguments_cut_anywhere_are_an_object) {
    const std::string whole = "{\"a\": {\"b\\\"]\": [true, null, -1.5e3, \"\\u00e9x\"]}, \"c\": \"}\", \"d\": {\"e\": []}}";
    for (size_t length = 0; length <= whole.size(); length++) {
        const common_json mended = common_json::parse_no_throw(mend_arguments(whole.substr(0, length)));
        CHECK(!mended.is_discarded() && mended.is_object() && !mended.contains("arguments"));
    }
}

TEST(what_is_no_object_becomes_a_member_of_one) {
    for (const std::string text : {"[]", "1", "\"{}\"", "nonsense", "]"}) {
        const common_json mended = common_json::parse_no_throw(mend_arguments(text));
        CHECK(mended.is_object() && mended.at("arguments").get<std::string>() == text);
    }
    const common_json deep = common_json::parse_no_throw(mend_arguments(std::string(100000, '[')));
    CHECK(deep.is_object() && deep.contains("arguments"));
}
