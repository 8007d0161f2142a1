// Cells, positions and cuts of sequences that hold pictures, and the rows that are kept of them.
#include "check.h"
#include "media.h"
#include "sequence.h"
#include "tower.h"

#include <set>

using namespace lm;

// Text, twelve cells in three rows and four columns, text, eight cells in their order, text.
static const media_spans SPANS = {{3, 12, 4, true}, {17, 8, 8, false}};

TEST(cells_behind_a_picture_of_rows_and_columns_have_earlier_positions) {
    CHECK(position_of(SPANS, 0) == 0);
    CHECK(position_of(SPANS, 3) == 3); // where it begins
    CHECK(position_of(SPANS, 15) == 7);
    CHECK(position_of(SPANS, 17) == 9);
    CHECK(position_of(SPANS, 25) == 17);
    CHECK(position_of({}, 25) == 25);
}

TEST(all_cells_of_such_a_picture_are_held_at_its_first_position) {
    CHECK(last_position(SPANS, 3) == 2);
    CHECK(last_position(SPANS, 15) == 3);
    CHECK(last_position(SPANS, 16) == 7);
    CHECK(last_position(SPANS, 20) == 11);
    CHECK(last_position(SPANS, 25) == 16);
    CHECK(last_position({{2, 5, 5, true}}, 7) == 2); // one row of five: as many positions as cells
}

TEST(no_cut_goes_through_a_picture) {
    CHECK(without_part(SPANS, 0) == 0);
    CHECK(without_part(SPANS, 3) == 3);
    CHECK(without_part(SPANS, 4) == 3);
    CHECK(without_part(SPANS, 14) == 3);
    CHECK(without_part(SPANS, 15) == 15);
    CHECK(without_part(SPANS, 24) == 17);
    CHECK(without_part(SPANS, 30) == 30);
}

TEST(text_ends_where_the_next_picture_begins) {
    CHECK(text_ahead(SPANS, 0, 30) == 3);
    CHECK(text_ahead(SPANS, 15, 30) == 2);
    CHECK(text_ahead(SPANS, 25, 30) == 5);
    CHECK(text_ahead(SPANS, 0, 2) == 2);
}

TEST(cells_of_a_picture_are_no_tokens_and_tell_pictures_apart) {
    const std::string a = digest_of("one"), b = digest_of("another");
    const std::vector<llama_token> of_a = media_cells(a, 300);
    CHECK(of_a.size() == 300 && of_a == media_cells(a, 300));
    for (const llama_token cell : of_a) {
        CHECK(is_media(cell));
    }
    CHECK(std::set<llama_token>(of_a.begin(), of_a.end()).size() > 295);
    const std::vector<llama_token> of_b = media_cells(b, 300);
    for (size_t i = 0; i < 8; i++) { // all that tells keys apart is in these
        CHECK(of_a[i] != of_b[i]);
    }
}

static sequence with_pictures() {
    sequence s;
    for (int i = 0; i < 40; i++) {
        const bool shown = (i >= 3 && i < 15) || (i >= 17 && i < 25);
        s.tokens.push_back(shown ? -1 - i : i);
    }
    s.spans = SPANS;
    s.parts.resize(2);
    s.parts[0].key = "first";
    s.parts[1].key = "second";
    return s;
}

TEST(what_goes_out_of_the_middle_takes_whole_pictures_along) {
    sequence s = with_pictures();
    CHECK(drop_middle(s, 32) == 3); // eight would cut the first picture; the last sixteen cut the second one
    CHECK(s.tokens.size() == 3 + 15 && s.tokens[2] == 2 && s.tokens[3] == 25);
    CHECK(s.spans.empty() && s.parts.empty());
}

TEST(pictures_behind_the_gap_stay_at_their_new_places) {
    sequence s = with_pictures();
    CHECK(drop_middle(s, 48) == 3); // the last 24 begin ahead of the second picture
    CHECK(s.spans.size() == 1 && s.parts.size() == 1 && s.parts[0].key == "second");
    CHECK(s.tokens[s.spans[0].begin] == -1 - 17 && s.tokens[s.spans[0].end()] == 25 && !is_media(s.tokens[s.spans[0].begin - 1]));
}

TEST(what_is_kept_stays_within_its_size_and_the_least_used_goes_first) {
    const auto value = std::make_shared<const int>(1);
    recent<int> kept(100);
    kept.put("a", value, 40);
    kept.put("b", value, 40);
    CHECK(kept.get("a") == value);
    kept.put("c", value, 40);
    CHECK(kept.get("b") == nullptr && kept.get("a") != nullptr && kept.get("c") != nullptr);
    kept.put("d", value, 101); // more than all of it
    CHECK(kept.get("d") == nullptr && kept.get("a") != nullptr);
}

TEST(bytes_are_counted_for_as_long_as_they_are_held) {
    const auto total = std::make_shared<std::atomic<size_t>>(0);
    {
        media_frames frames;
        frames.emplace_back(std::string(10, 'x'), total);
        frames.emplace_back(std::string(5, 'x'), total);
        CHECK(*total == 15);
        const counted_bytes moved = std::move(frames[0]);
        frames.clear();
        CHECK(*total == 10 && moved.bytes().size() == 10);
    }
    CHECK(*total == 0);
}
