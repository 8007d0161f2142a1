// The n-gram index against a plain search of the text, and the counts of what was guessed.
#include "check.h"
#include "draft.h"
#include "drafter.h"

#include <random>

using namespace lm;

static std::vector<llama_token> continuation(const std::vector<llama_token> & tokens, size_t n) {
    ngram_index index;
    index.update(tokens);
    return index.continuation(tokens, n);
}

TEST(a_repeated_passage_goes_on_as_it_did_before) {
    CHECK((continuation({1, 2, 3, 4, 5, 9, 1, 2, 3}, 2) == std::vector<llama_token>{4, 5}));
}

TEST(new_words_have_no_continuation) {
    CHECK(continuation({1, 2, 3, 4, 5, 6}, 4).empty());
    CHECK(continuation({1, 2, 7, 1, 2}, 4).empty()); // two tokens in common say too little
    CHECK(continuation({1, 2}, 4).empty());
    CHECK(continuation({}, 4).empty());
}

TEST(the_longest_passage_wins_over_the_latest) {
    CHECK((continuation({5, 1, 2, 3, 8, 6, 1, 2, 3, 9, 5, 1, 2, 3}, 1) == std::vector<llama_token>{8}));
}

TEST(of_equal_passages_the_latest_wins) {
    CHECK((continuation({5, 1, 2, 3, 8, 6, 1, 2, 3, 9, 7, 1, 2, 3}, 1) == std::vector<llama_token>{9}));
}

TEST(a_passage_that_reaches_the_end_goes_round) {
    CHECK((continuation({1, 2, 3, 1, 2, 3}, 7) == std::vector<llama_token>{1, 2, 3, 1, 2, 3, 1}));
    CHECK((continuation({4, 4, 4, 4}, 3) == std::vector<llama_token>{4, 4, 4}));
}

TEST(an_index_that_grows_token_by_token_finds_what_one_made_at_once_finds) {
    std::mt19937 rng(3);
    std::vector<llama_token> tokens;
    ngram_index grown;
    for (int i = 0; i < 3000; i++) {
        tokens.push_back(llama_token(rng() % 4));
        grown.update(tokens);
        if (i % 50 == 0) {
            CHECK(grown.continuation(tokens, 8) == continuation(tokens, 8));
        }
    }
}

// Where a text ends as no other place does for more tokens than the search looks back, the plain search agrees.
TEST(the_longest_passage_is_found_in_a_long_text) {
    std::mt19937 rng(5);
    for (int round = 0; round < 50; round++) {
        std::vector<llama_token> tokens;
        for (int i = 0; i < 2000; i++) {
            tokens.push_back(llama_token(rng() % 5000));
        }
        const size_t from = 100 + rng() % 1000;
        const std::vector<llama_token> passage(tokens.begin() + long(from), tokens.begin() + long(from) + 20);
        tokens.insert(tokens.end(), passage.begin(), passage.end());
        const std::vector<llama_token> expected(tokens.begin() + long(from) + 20, tokens.begin() + long(from) + 36);
        CHECK(continuation(tokens, 16) == expected);
    }
}

TEST(a_text_that_was_cut_is_taken_in_anew) {
    ngram_index index;
    index.update({1, 2, 3, 4, 5, 6, 7, 8});
    const std::vector<llama_token> cut = {6, 7, 8, 9, 6, 7, 8};
    index.update(cut);
    CHECK((index.continuation(cut, 1) == std::vector<llama_token>{9}));
}

TEST(every_guess_is_accepted_rejected_or_ignored) {
    draft d;
    d.offer({1, 2, 3, 4}, false);
    d.meet(1);
    CHECK(d.holds());
    d.meet(7);
    CHECK(!d.holds());
    d.settle();
    d.offer({5, 6}, false);
    d.meet(5);
    d.settle(); // it ended there
    d.offer({8}, false);
    d.meet(8);
    CHECK(d.holds());
    d.meet(9); // behind the last guess
    CHECK(!d.holds());
    CHECK(d.accepted == 3 && d.rejected == 3 && d.ignored == 1);
    CHECK(d.total == d.accepted + d.rejected + d.ignored);
}

TEST(wrong_guesses_lower_the_chance_and_time_raises_it_again) {
    acceptance chance(0.7);
    const double first = chance.rate();
    for (int i = 0; i < 30; i++) {
        chance.meet(false);
    }
    CHECK(chance.rate() < first / 4);
    for (int i = 0; i < 1000; i++) {
        chance.age();
    }
    CHECK(chance.rate() > first * 0.95);
}

TEST(what_is_known_of_other_texts_is_where_the_chance_begins_and_is_doubted_as_the_text_grows) {
    acceptance chance(0.9, 0.1);
    CHECK(chance.rate() == 0.1 && !chance.is_told());
    for (int i = 0; i < 4; i++) {
        chance.meet(true);
    }
    CHECK(chance.rate() > 0.5 && chance.is_told());
    for (int i = 0; i < 2000; i++) {
        chance.age();
    }
    CHECK(chance.rate() > 0.85 && chance.rate() < 0.95 && !chance.is_told());
}

TEST(what_is_only_expected_counts_for_the_chance_alone) {
    draft d;
    const double first = d.chance.rate();
    for (llama_token id = 1; id < 10; id++) {
        d.offer({}, false);
        d.expect(id);
        d.meet(id);
        CHECK(!d.holds());
    }
    CHECK(d.chance.rate() > first);
    d.expect(1);
    d.meet(2);
    CHECK(d.total == 0 && d.rejected == 0);
}

TEST(costs_between_two_measures_are_interpolated) {
    step_costs costs;
    CHECK(costs.ms(3) == 0);
    costs.learn(1, 10);
    CHECK(costs.ms(1) == 10 && costs.ms(3) == 20); // half as dear as steps that share nothing
    costs.learn(3, 20);
    CHECK(costs.ms(2) == 15);
    costs.learn(3, 20);
    CHECK(costs.ms(3) == 20);
    CHECK(costs.sure(1) && !costs.sure(2));
    CHECK(costs.known(1) && !costs.known(2) && !costs.known(1000));
}

TEST(steps_wider_than_any_measured_are_expected_to_grow_as_prompts_do) {
    step_costs costs;
    costs.learn(4, 40);
    costs.learn_slope(2);
    CHECK(costs.ms(4) == 40 && costs.ms(9) == 50);
    for (int i = 0; i < 100; i++) {
        costs.learn_slope(60); // of a prompt that was slower than single tokens: the machine was busy
    }
    CHECK(costs.ms(8) == 80);
}

TEST(old_costs_are_measured_again_and_at_last_forgotten) {
    step_costs costs;
    costs.learn(8, 30);
    for (int i = 0; i < 100; i++) {
        costs.learn(1, 10);
    }
    CHECK(costs.sure(1) && !costs.sure(8));
    CHECK(costs.ms(8) == 30);
    for (int i = 0; i < 1000; i++) {
        costs.learn(1, 10);
    }
    CHECK(costs.ms(8) == 10 + 7 * 5.0);
}

TEST(a_wider_step_that_took_less_corrects_a_narrower_one) {
    step_costs costs;
    costs.learn(2, 500); // the machine was busy
    costs.learn(4, 20);
    CHECK(costs.ms(2) == 20);
}
