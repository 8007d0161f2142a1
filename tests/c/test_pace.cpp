// Who gets the decode thread's time, in a time of the tests' own.
#include "check.h"
#include "pace.h"

using namespace lm;

static constexpr double SHARE = 1.0;
static constexpr double SLICE_MS = 100;
static constexpr double STEP_MS = 15;

// How many steps of streams come before the other work's turn.
static size_t steps_until_turn(lent_time & lent) {
    size_t n = 0;
    do {
        lent.streams_took(STEP_MS, true);
        n++;
    } while (!lent.is_others_turn());
    return n;
}

TEST(other_work_begins_behind_the_first_step_and_streams_are_paid_back) {
    lent_time lent(SHARE, SLICE_MS);
    CHECK(steps_until_turn(lent) == 1);
    lent.others_took(SLICE_MS);
    CHECK(steps_until_turn(lent) == 6); // 90 ms, and 15 ms of before
    lent.others_took(SLICE_MS);
    CHECK(steps_until_turn(lent) >= 6);
}

TEST(in_the_long_run_each_has_its_share) {
    for (const double share : {0.5, 1.0, 1.5}) {
        lent_time lent(share, SLICE_MS);
        double streams_ms = 0;
        double others_ms = 0;
        while (streams_ms < 100'000) {
            lent.streams_took(STEP_MS, true);
            streams_ms += STEP_MS;
            if (lent.is_others_turn()) {
                const double took_ms = SLICE_MS + double(size_t(streams_ms) % 40); // its pauses do not come when they are wanted
                lent.others_took(took_ms);
                others_ms += took_ms;
            }
        }
        CHECK(others_ms > 0.99 * share * streams_ms && others_ms < 1.01 * share * streams_ms);
    }
}

TEST(nothing_is_saved_up_while_there_is_no_other_work) {
    lent_time lent(SHARE, SLICE_MS);
    for (int i = 0; i < 1000; i++) {
        lent.streams_took(STEP_MS, false);
    }
    CHECK(steps_until_turn(lent) == 1);
    lent.others_took(SLICE_MS);
    CHECK(steps_until_turn(lent) == 6);
}

TEST(what_was_lent_is_owed_when_the_work_is_done) {
    lent_time lent(SHARE, SLICE_MS);
    for (int request = 0; request < 3; request++) { // each of which leaves after its first slice
        const size_t n = steps_until_turn(lent);
        CHECK(request == 0 ? n == 1 : n >= 5);
        lent.others_took(SLICE_MS);
        lent.streams_took(STEP_MS, false);
    }
}

TEST(time_that_overlapped_with_the_streams_is_not_saved_up_without_end) {
    lent_time lent(SHARE, SLICE_MS);
    for (int i = 0; i < 1000; i++) {
        lent.streams_took(STEP_MS, true);
    }
    lent.others_took(2 * SLICE_MS);
    CHECK(steps_until_turn(lent) == 7);
}

TEST(who_is_alone_owes_nothing) {
    lent_time lent(SHARE, SLICE_MS);
    lent.others_took(10 * SLICE_MS);
    CHECK(!lent.is_others_turn());
    lent.settle();
    CHECK(lent.is_others_turn());
}
