// Our reading of GBNF and our matcher against llama.cpp's: the same texts accepted, the same tokens allowed at every place of
// a random walk. Then what would crash, hang or flood llama.cpp.
#include "check.h"
#include "error.h"
#include "fixture.h"
#include "gbnf.h"
#include "grammar.h"
#include "matcher.h"

#include "src/llama-grammar.h"

#include "json-schema-to-grammar.h"
#include "json.h"

#include <fcntl.h>
#include <random>
#include <unistd.h>

using namespace lm;

static const char JSON_SCHEMA[] =
    R"({"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer","minimum":3,"maximum":120},
    "tags":{"type":"array","items":{"enum":["a","b","\"c\"",null]},"minItems":1,"maxItems":4},"when":{"type":"string","format":"date"},
    "more":{"type":"object","additionalProperties":{"type":"number"}},"id":{"type":"string","pattern":"^[a-f]{2,3}(-[0-9]+)?$"}},
    "required":["name","tags"],"additionalProperties":false})";

static std::string schema_gbnf(const char * schema) {
    return json_schema_to_grammar(common_json::parse(schema));
}

// Grammars that llama.cpp's stacks can follow.
static const std::vector<std::string> & grammars() {
    static const std::vector<std::string> all = {
        schema_gbnf("{\"type\":\"object\"}"),
        schema_gbnf(JSON_SCHEMA),
        "root ::= (expr \"=\" term \"\\n\")+\nexpr ::= term ([-+*/] term)*\nterm ::= [0-9]+ | \"(\" expr \")\" | [a-z]",
        "root ::= [^a\"é]* \"é\" [а-я中-鿿]{2,5} .? \"\\u0000\"?",
        "root ::= ((\"a\"*)*)* | \"b\"? \"c\"? \"d\"? root2\nroot2 ::= (\"x\" | \"y\" | \"ab\" | \"abc\")* \"z\"",
        "root ::= <|mark|> [a-z]+ | !<|mark|> <[5]> \"ab\" # a comment\n",
        "root ::= \"yes\" | \"no\" | \"\"",
        "root ::= \"a\" root \"b\" | \"a\" root \"c\" | \"a\"?",
    };
    return all;
}

struct llama_grammar_walk {
    explicit llama_grammar_walk(const vocabulary & v, const std::string & gbnf)
        : vocab(v), sampler(llama_sampler_init_grammar(v.get(), gbnf.c_str(), "root"), llama_sampler_free) {
        CHECK(sampler != nullptr);
    }

    std::vector<bool> mask() const {
        std::vector<llama_token_data> data;
        for (llama_token id = 0; id < vocab.size(); id++) {
            data.push_back({id, 0.0f, 0.0f});
        }
        llama_token_data_array array = {data.data(), data.size(), -1, false};
        llama_sampler_apply(sampler.get(), &array);
        std::vector<bool> allowed;
        for (const llama_token_data & d : data) {
            allowed.push_back(d.logit == 0.0f);
        }
        return allowed;
    }

    const vocabulary & vocab;
    std::unique_ptr<llama_sampler, void (*)(llama_sampler *)> sampler;
};

// Whether the bytes are UTF-8, or the beginning of some.
static bool may_become_utf8(std::string bytes) {
    std::string whole;
    decode_utf8(bytes, whole);
    return whole.find("\xEF\xBF\xBD") == std::string::npos;
}

// llama.cpp also allows surrogates, bytes beyond U+10FFFF and whatever follows a lead byte inside one token.
static void check_same_mask(matcher & ours, const llama_grammar_walk & theirs, const std::string & text) {
    const std::vector<bool> expected = theirs.mask();
    const std::vector<uint64_t> all = ours.allowed();
    for (llama_token id = 0; id < theirs.vocab.size(); id++) {
        const bool allowed = ours.allows(id);
        const bool valid = may_become_utf8(text + std::string(theirs.vocab.tree().bytes(id)));
        CHECK(allowed == bool(all[size_t(id) / 64] >> (id % 64) & 1));
        if (allowed != (expected[size_t(id)] && valid)) { fprintf(stderr, "DBG id %d text <%s> bytes <%s> ours %d theirs %d valid %d\n", id, text.c_str(), std::string(theirs.vocab.tree().bytes(id)).c_str(), allowed, int(expected[size_t(id)]), valid); }
        CHECK(allowed == (expected[size_t(id)] && valid));
    }
}

static void walk_both(const vocabulary & vocab, const std::string & gbnf, uint32_t seed, int n_steps) {
    std::mt19937 rng(seed);
    matcher ours(compile_grammar(vocab, gbnf), vocab);
    llama_grammar_walk theirs(vocab, gbnf);
    std::string text;
    for (int step = 0; step < n_steps; step++) {
        check_same_mask(ours, theirs, text);
        std::vector<llama_token> ids;
        for (llama_token id = 0; id < vocab.size(); id++) {
            if (!vocab.is_eog(id) && ours.allows(id)) {
                ids.push_back(id);
            }
        }
        if (ids.empty()) {
            return;
        }
        const llama_token id = ids[rng() % ids.size()];
        ours.accept(id);
        llama_sampler_accept(theirs.sampler.get(), id);
        text += vocab.tree().bytes(id);
    }
}

TEST(the_matcher_allows_what_llama_cpp_allows) {
    for (const std::string & gbnf : grammars()) {
        for (uint32_t seed = 1; seed <= 6; seed++) {
            walk_both(made_up_vocab(700), gbnf, seed, 14);
        }
    }
}

TEST(the_matcher_allows_what_llama_cpp_allows_of_a_real_vocabulary) {
    for (const std::string & gbnf : grammars()) {
        if (gbnf.find("mark") == std::string::npos) {
            walk_both(bundled_vocab(), gbnf, 1, 10);
        }
    }
}

// ---- two readings of one notation -----------------------------------------------------------------------------------

// llama.cpp's parser prints each text that it refuses.
struct silence {
    silence() : saved(dup(2)), nowhere(open("/dev/null", O_WRONLY)) { dup2(nowhere, 2); }
    ~silence() {
        fflush(stderr);
        dup2(saved, 2);
        close(saved);
        close(nowhere);
    }
    int saved;
    int nowhere;
};

static const char * const FRAGMENTS[] = {
    "\"a\"", "\"ab\"", "\"\"", "\"\\n\\x41\\u00e9\"", "\"\\\"\"", "\"é\"", "\"#\"", "\"{3,1}\"", "\"\\q\"", "\"\\x4\"",
    "\"\\U0010FFFF\"", "\"\r\"", "[a-c]", "[^a\\]]", "[\\-a]", "[a-]", "[-a]", "[z-a]", "[]", "[^]", "[а-я]", "[#\"(]",
    "[a", "[a-", ".", "<[5]>", "<[99999]>", "<|mark|>", "!<|mark|>", "!<[7]>", "<no such token>", "<[5>", "!", "<", "(", ")", "(", ")",
    "|", "|", "*", "+", "?", "{0}", "{2}", "{,2}", "{2,}", "{0,3}", "{ 1 , 2 }", "{1\r,2}", "{1#\n,2}", "{a}", "{2", "{0,0}", "x", "x", "y-1",
    "x_y", "root", "\nx ::= ", "\ry-1 ::=", "\r\nx ::= \n", "\nx::=", "::=", "\n", "\r", "\r\n", " ", "\t", "\n\n", "# c\n", "# c\r", "#\"(\r\n",
    "#", "\\", "\"", "]", "}", "é",
};

static std::string random_gbnf(std::mt19937 & rng) {
    std::string text = rng() % 8 != 0 ? "root ::= " : "";
    for (size_t n = rng() % 9; n > 0; n--) {
        text += FRAGMENTS[rng() % std::size(FRAGMENTS)];
        text += rng() % 3 == 0 ? " " : "";
    }
    if (rng() % 2 == 0) {
        text += "\nx ::= \"c\" [de]?\ny-1 ::= x | .";
    }
    return text;
}

// Null if we refuse the text; `why` then says so.
static std::unique_ptr<grammar> our_reading(const std::string & gbnf, std::string & why) {
    try {
        return std::make_unique<grammar>(parse_gbnf(made_up_vocab(700), gbnf));
    } catch (const gbnf_error & e) {
        why = e.what();
        return nullptr;
    }
}

static bool llama_cpp_reads(const vocabulary & vocab, const std::string & gbnf) {
    const silence quiet;
    llama_grammar_parser parser(vocab.get());
    return parser.parse(gbnf.c_str()) && parser.symbol_ids.count("root") != 0;
}

static bool llama_cpp_follows(const vocabulary & vocab, const std::string & gbnf) {
    const silence quiet;
    llama_sampler * sampler = llama_sampler_init_grammar(vocab.get(), gbnf.c_str(), "root");
    llama_sampler_free(sampler);
    return sampler != nullptr;
}

TEST(random_gbnf_means_to_us_what_it_means_to_llama_cpp) {
    const vocabulary & vocab = made_up_vocab(700);
    std::mt19937 rng(11);
    int n_accepted = 0;
    for (int i = 0; i < 30000; i++) {
        const std::string gbnf = random_gbnf(rng);
        std::string why;
        const std::unique_ptr<grammar> ours = our_reading(gbnf, why);
        if (why.find("lower bound") != std::string::npos) {
            continue; // llama.cpp would write it out without end
        }
        if (why.find("does not define") != std::string::npos) {
            continue; // llama.cpp forgets a rule that is named zero times, or where another definition follows
        }
        const bool accepted = llama_cpp_reads(vocab, gbnf);
        if (accepted != (ours != nullptr)) {
            fprintf(stderr, "%s\n---\n%s\n", gbnf.c_str(), why.c_str());
        }
        CHECK(accepted == (ours != nullptr));
        if (!accepted) {
            continue;
        }
        try {
            compile_grammar(vocab, gbnf);
        } catch (const error &) {
            continue; // left-recursive; llama.cpp does not always see it
        }
        const bool has_token = gbnf.find('<') != std::string::npos; // llama.cpp also matches one in the middle of another
        if (!has_token && llama_cpp_follows(vocab, gbnf)) {
            walk_both(vocab, gbnf, uint32_t(i), 3);
            n_accepted++;
        }
    }
    CHECK(n_accepted > 1000);
}

TEST(a_comment_ends_where_the_parser_that_is_used_ends_it) {
    for (const char * gbnf : {"root ::= #\r\"a\"{5,2}", "root ::= (#\r\"a\"{5,2})", "root ::= \"a\" #\r\nroot ::= [\"]{5,2} #\""}) {
        std::string why;
        CHECK(our_reading(gbnf, why) == nullptr);
        CHECK(why.find("lower bound") != std::string::npos);
    }
}

TEST(what_is_repeated_is_not_copied) {
    const std::string large = "root ::= \"" + std::string(100000, 'a') + "\"{2000} ((\"b\" x){900}){900}\nx ::= [c]";
    CHECK(compile_grammar(made_up_vocab(700), large)->n_bytes() < 2u << 20); // 1.6 GB of llama.cpp's elements
}

// llama.cpp takes an upper bound above 2000 for none.
TEST(an_upper_bound_stays_a_bound_however_large) {
    const vocabulary & vocab = made_up_vocab(700);
    matcher m(compile_grammar(vocab, "root ::= \"a\"{2,2500}"), vocab);
    for (int i = 0; i < 2500; i++) {
        CHECK(m.allows(2) == (i >= 2));
        CHECK(m.accept("a"));
    }
    CHECK(!m.accept("a"));
    CHECK(m.allows(2));
}

TEST(either_of_two_grammars_is_one) {
    const vocabulary & vocab = made_up_vocab(700);
    const grammar_ptr both = either(*compile_grammar(vocab, "root ::= x{2} [0-9]\nx ::= \"a\" | \"é\""),
                                    *compile_grammar(vocab, "root ::= \"a\" x* \"!\" | <[5]>\nx ::= [b-d] | \"éé\""));
    for (const char * text : {"aé7", "éa0", "a!", "abcéé!"}) {
        matcher m(both, vocab);
        CHECK(m.accept(text));
        CHECK(m.allows(2));
    }
    for (const char * text : {"a7", "aa!", "abé!", "ab7", "b"}) {
        matcher m(both, vocab);
        CHECK(!m.accept(text));
    }
    matcher m(both, vocab);
    CHECK(m.allows(5));
}

TEST(bytes_that_are_not_utf8_are_never_allowed) {
    const vocabulary & vocab = made_up_vocab(700);
    for (const char * gbnf : {"root ::= [^a]*", "root ::= .*", "root ::= [b-\U0010FFFF]* | [^x]*"}) {
        const grammar_ptr compiled = compile_grammar(vocab, gbnf);
        for (const char * wrong : {"\x80", "\xC0", "\xC1", "\xE0\x80", "\xE0\x9F", "\xED\xA0", "\xF0\x80", "\xF0\x8F", "\xF4\x90", "\xF5",
                                   "\xFF", "\xE2 ", "\xE2\x82 ", "\xC3\xC3"}) {
            matcher m(compiled, vocab);
            CHECK(!m.accept(wrong));
        }
        for (const std::string right : {"\xC2\x80", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
            matcher m(compiled, vocab);
            for (const char byte : right) {
                CHECK(m.accept(std::string_view(&byte, 1)));
            }
            CHECK(m.allows(2));
        }
    }
}

TEST(a_text_is_followed_to_its_end_and_no_further) {
    const vocabulary & vocab = made_up_vocab(700);
    matcher m(compile_grammar(vocab, schema_gbnf(JSON_SCHEMA)), vocab);
    CHECK(m.accept(R"({"name":"\u00e9 中","tags":["a", null],"more":{"x":1.5e3},"id":"abc-12")"));
    CHECK(!m.accept("]"));
    CHECK(!m.allows(2)); // not the end yet
    CHECK(m.accept("}"));
    CHECK(m.allows(2));
    matcher other(compile_grammar(vocab, schema_gbnf(JSON_SCHEMA)), vocab);
    CHECK(!other.accept(R"({"tags")"));
}

// Every "a" doubles the stacks of llama.cpp.
TEST(ambiguity_does_not_multiply_the_work) {
    const vocabulary & vocab = made_up_vocab(700);
    matcher m(compile_grammar(vocab, "root ::= \"a\" root \"b\" | \"a\" root \"c\" | \"\""), vocab);
    for (int i = 0; i < 3000; i++) {
        CHECK(m.accept("a"));
    }
    for (int i = 0; i < 3000; i++) {
        CHECK(!m.allows(2));
        CHECK(m.accept(i % 3 == 0 ? "b" : "c"));
    }
    CHECK(m.allows(2));
    CHECK(!m.accept("b"));
}

TEST(a_long_text_does_not_fill_the_tables) {
    const vocabulary & vocab = made_up_vocab(700);
    matcher m(compile_grammar(vocab, schema_gbnf("{\"type\":\"array\"}")), vocab);
    CHECK(m.accept("["));
    for (int i = 0; i < 5000; i++) {
        CHECK(m.accept("[\"t\xC3\xA9xt\", {\"k\": [1, 2.5]}, "));
    }
    CHECK(m.n_states() < 3000);
}

// Empty words in the way of a left recursion: llama.cpp's check does not see through them, and its stacks grow for ever.
TEST(left_recursion_is_refused_even_when_it_hides) {
    for (const char * gbnf : {"root ::= root \"a\" | \"b\"", "root ::= n root \"b\" | \"c\"\nn ::= m\nm ::= \"x\" | \"\"",
                              "root ::= (\"a\"? root)? \"b\"", "root ::= a\na ::= b\nb ::= c? a \"x\"\nc ::= \"y\""}) {
        try {
            compile_grammar(made_up_vocab(700), gbnf);
            CHECK(!"refused");
        } catch (const error & e) {
            CHECK(e.code == "invalid_request");
        }
    }
    compile_grammar(made_up_vocab(700), "root ::= ((\"a\"*)*)* (\"b\"? root)?");
}

TEST(a_grammar_that_costs_too_much_to_follow_is_an_error) {
    const vocabulary & vocab = made_up_vocab(700);
    std::string gbnf = "root ::= x{200}\nx ::= \"a\"";
    for (int i = 0; i < 60000; i++) {
        gbnf += " | \"a\"";
    }
    matcher m(compile_grammar(vocab, gbnf), vocab);
    CHECK(m.accept("aaa"));
    try {
        m.accept(std::string(100, 'a'));
        CHECK(!"refused");
    } catch (const error & e) {
        CHECK(e.code == "invalid_request");
    }
}

static bool refused(const grammar_spec & spec) {
    try {
        grammar_cache(made_up_vocab(700)).get(spec);
        return false;
    } catch (const error & e) {
        return e.code == "invalid_request";
    }
}

static std::string repeated(const std::string & text, int n, const std::string & between = "") {
    std::string all;
    for (int i = 0; i < n; i++) {
        all += (i > 0 ? between : "") + text;
    }
    return all;
}

TEST(grammars_that_would_crash_or_hang_llama_cpp_are_refused) {
    CHECK(refused({grammar_kind::gbnf, "root ::= " + std::string(20000, '(') + "\"a\"" + std::string(20000, ')')}));
    CHECK(refused({grammar_kind::gbnf, "root ::= \"a\"{5,2}"}));
    CHECK(refused({grammar_kind::gbnf, "root ::= \"a\"{5 , 2}"}));
    CHECK(refused({grammar_kind::gbnf, "root ::= " + repeated("\"a\"{2000}", 90000, " ")}));
    CHECK(refused({grammar_kind::gbnf, "root ::= \"a\"{99999999999999999999999}"}));
    CHECK(refused({grammar_kind::gbnf, "root ::= ((((\"a\"{900}){900}){900}){900}){0,18446744073709551615}"}));
    CHECK(refused({grammar_kind::gbnf, "root ::= \"\xC3\""}));
    CHECK(refused({grammar_kind::gbnf, "root ::= <" + std::string(900000, '|')}));
    CHECK(refused({grammar_kind::gbnf, "root ::= " + repeated("a", 1 << 18, " ") + "\n"}));
    CHECK(refused({grammar_kind::gbnf, "root ::= other"}));
    CHECK(refused({grammar_kind::gbnf, "other ::= \"a\""}));
    CHECK(refused({grammar_kind::gbnf, "root ::= \"unclosed"}));
    CHECK(refused({grammar_kind::gbnf, "root ::= [a-"}));
    CHECK(refused({grammar_kind::gbnf, "root ::= <[1"}));
    CHECK(refused({grammar_kind::gbnf, ""}));
    CHECK(refused({grammar_kind::gbnf, std::string("root ::= \"a\"\0", 13)}));
    CHECK(!refused({grammar_kind::gbnf, "root ::= \"(((({5,2}\" [({] \"a\"{2,5} \"b\"{3} \"c\"{2,}"}));
    CHECK(!refused({grammar_kind::gbnf, "# {5,2}\nroot ::= (\"a\" # ((((\n  | \"b\")"}));
}

TEST(grammars_that_no_text_satisfies_are_refused) {
    CHECK(refused({grammar_kind::gbnf, "root ::= root"}));
    CHECK(refused({grammar_kind::gbnf, "root ::= x\nx ::= x"}));
    CHECK(refused({grammar_kind::gbnf, "root ::= \"a\" root"}));
    CHECK(refused({grammar_kind::gbnf, "root ::= \"a\" (x | y)\nx ::= \"b\" y\ny ::= \"c\" x"}));
    CHECK(!refused({grammar_kind::gbnf, "root ::= \"a\" root | \"b\""}));
    CHECK(!refused({grammar_kind::gbnf, "root ::= x | \"a\"\nx ::= x"}));
    CHECK(!refused({grammar_kind::gbnf, "root ::= \"a\"* x\nx ::= \"\""}));
}

TEST(schemas_that_are_none_or_nest_without_end_are_refused) {
    CHECK(refused({grammar_kind::schema, "{\"type\":\"string\",\"minLength\":5,\"maxLength\":2}"}));
    CHECK(refused({grammar_kind::schema, repeated("{\"type\":\"array\",\"items\":", 20000) + "{}" + std::string(20000, '}')}));
    CHECK(refused({grammar_kind::schema, "not json"}));
    CHECK(refused({grammar_kind::schema, "{\"enum\":[" + repeated("1", 700000, ",") + "]}"}));
    CHECK(refused({grammar_kind::schema, "{\"$ref\":\"#/$defs/none\"}"}));
    // A circle of references under an allOf is followed without end.
    CHECK(refused({grammar_kind::schema, R"({"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}})"}));
    CHECK(!refused({grammar_kind::schema, "{\"type\":\"object\"}"}));
    CHECK(!refused({grammar_kind::schema, R"({"$ref":"#/$defs/n","$defs":{"n":{"anyOf":[{"type":"null"},{"type":"array","items":{"$ref":"#/$defs/n"}}]}}})"}));
    CHECK(!refused({grammar_kind::schema, R"({"allOf":[{"$ref":"#/$defs/n"}],"$defs":{"n":{"type":"object","properties":{"n":{"$ref":"#/$defs/n"}}}}})"}));
}

TEST(a_regular_expression_is_matched_from_end_to_end_and_a_choice_is_one_of_its_texts) {
    const vocabulary & vocab = made_up_vocab(700);
    grammar_cache cache(vocab);
    const auto whole = [&](const grammar_spec & spec, const std::string & text) {
        matcher m(cache.get(spec), vocab);
        return (text.empty() || m.accept(text)) && m.allows(2);
    };
    const grammar_spec version = {grammar_kind::regex, R"x(v\d{1,3}(\.\d+)?|[^\x00-\x7F]{2}|none|)x"};
    for (const char * text : {"v1", "v123.4567", "\xC3\xA9\xE4\xB8\xAD", "none", ""}) {
        CHECK(whole(version, text));
    }
    for (const char * text : {"v", "v1234", " v1", "v1 ", "\xC3\xA9", "v1."}) {
        CHECK(!whole(version, text));
    }
    const grammar_spec choice = {grammar_kind::choice, R"(["yes", "yes, please", "no \"thanks\"", "caf\u00e9\n"])"};
    for (const char * text : {"yes", "yes, please", "no \"thanks\"", "caf\xC3\xA9\n"}) {
        CHECK(whole(choice, text));
    }
    for (const char * text : {"", "ye", "yes,", "YES", "cafe\n"}) {
        CHECK(!whole(choice, text));
    }
    for (const char * bad : {"a(", "(?<=b)a", R"(a\1)", R"([^\s\S])", "(a{1,100}){1,100}b{1,999}", "a{5,2}"}) {
        CHECK(refused({grammar_kind::regex, bad}));
    }
    for (const char * bad : {"", "[]", "[1]", "\"a\"", "[\"a\"", "{}"}) {
        CHECK(refused({grammar_kind::choice, bad}));
    }
    CHECK(refused({grammar_kind::regex, std::string(100000, '(')}));
    std::string many = "[";
    for (int i = 0; i < 4000; i++) {
        many += (i > 0 ? ",\"" : "\"") + std::to_string(i * 7919) + " words of a choice\"";
    }
    CHECK(whole({grammar_kind::choice, many + "]"}, "7919 words of a choice") && !whole({grammar_kind::choice, many + "]"}, "7918 words of a choice"));
}

// One state of the matcher stands for one of the automaton: what is sampled there is looked up.
TEST(a_regular_expression_is_walked_as_the_automaton_that_it_is) {
    const vocabulary & vocab = made_up_vocab(700);
    matcher m(grammar_cache(vocab).get({grammar_kind::regex, "([a-z]+ )*[a-z]+"}), vocab);
    for (int i = 0; i < 50; i++) {
        CHECK(m.accept("some words "));
    }
    CHECK(m.n_states() < 8);
}

TEST(the_message_of_a_bad_grammar_quotes_little_of_it) {
    try {
        compile_grammar(made_up_vocab(700), "root ::= \"a\" ? ? ?) " + std::string(100000, 'x'));
        CHECK(!"refused");
    } catch (const error & e) {
        CHECK(std::string(e.what()).size() < 400);
    }
}

TEST(a_grammar_is_compiled_once_while_it_is_cached) {
    grammar_cache cache(made_up_vocab(700));
    const grammar_ptr first = cache.get({grammar_kind::schema, "{\"type\":\"object\"}"});
    CHECK(cache.get({grammar_kind::schema, "{\"type\":\"object\"}"}) == first);
    CHECK(cache.get({grammar_kind::gbnf, "root ::= \"a\""}) != first);
    const std::string large = "root ::= " + repeated("\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"", 4000, " | ");
    for (int i = 0; i < 12; i++) {
        cache.get({grammar_kind::gbnf, large + "\n# " + std::to_string(i)});
        CHECK(cache.n_bytes() <= 8u << 20);
    }
    CHECK(cache.get({grammar_kind::schema, "{\"type\":\"object\"}"}) != first); // it had to make room
}

TEST(a_grammar_larger_than_the_cache_is_compiled_once_while_no_other_comes) {
    grammar_cache cache(made_up_vocab(700));
    const grammar_spec huge = {grammar_kind::gbnf, "root ::= \"a\"{1000000} # " + std::string(900000, 'x')};
    const grammar_ptr first = cache.get(huge);
    CHECK(cache.n_bytes() > 8u << 20);
    CHECK(cache.get(huge) == first);
    cache.get({grammar_kind::gbnf, "root ::= \"a\""});
    CHECK(cache.n_bytes() < 10000);
}
