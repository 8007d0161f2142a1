// Where a text stands in a schema. A place is a set of threads, one for each way to read what was written so far; each is a
// plain conjunction that some rest of a text fulfils, so none of them, nor all together, leads into a dead end.
//
// Byte by byte, and cheap to copy: what a thread has behind it lies in frames that never change and are shared.
#pragma once

#include "json_lexer.h"
#include "number_set.h"
#include "schema.h"
#include "string_masks.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lm {

class schema_walk {
  public:
    enum class mode : uint8_t {
        value,        // a value is next
        string,
        number,
        word,         // null, true, false
        name,         // inside a member's name
        colon,        // after it
        object_first, // after '{'
        object_next,  // after a member
        object_name,  // after ',' there
        array_first,  // after '[': only ']' of it
        array_next,   // after an item
        done,
    };

    struct thread {
        mode at = mode::value;
        uint8_t blanks = 0;     // 0: none yet, 1: one blank, from 2 on: a line break and so many more
        uint32_t frame = 0;     // the container that this is in, 0: none
        uint32_t node = 0;      // of what is being read: a string's, a number's, a value's, a word's index
        uint32_t place = 0;     // the state of the string's automaton, the node in the tree of names, the place in the word
        uint32_t count = 0;     // code points of the string; the state of the automaton of other names
        uint32_t unlike = 0;    // the record of what the value must not become, 0: none
        number_text digits;

        // But for the frame, which may be another one of the same content.
        bool reads_like(const thread & o) const {
            return at == o.at && blanks == o.blanks && node == o.node && place == o.place && count == o.count && unlike == o.unlike &&
                   (at != mode::number || digits == o.digits);
        }
    };

    struct place {
        std::vector<thread> threads;
        json_lexer characters; // the same for all threads
        uint32_t n_text = 0; // of the text that values are compared by
        uint32_t word_begin = 0; // of the string being read, among all that the text has so far
        uint32_t n_word = 0;
    };

    explicit schema_walk(const schema_part & part);
    explicit schema_walk(schema_ptr s) : schema_walk(schema_part{std::move(s)}) {}

    place begin();
    // False if no text goes on with that byte; `to` may be anything then, and must not be `from`. Places may be left and
    // continued otherwise, as long as each step starts at a place that the last ones have led through.
    bool step(const place & from, uint8_t byte, place & to);
    bool may_end(const place & at) const;
    // The one byte that goes on from there, where that is plain to see; -1 otherwise.
    int only_byte(const place & at) const;

    // Within strings, and between two characters: what may follow of a vocabulary is told by automata then.
    bool is_in_string(const place & at) const;
    // Where a thread is after the quote that ends its string; those of `ahead` go on from there that have a tail.
    struct closing {
        place at;
        token_bits ahead;
    };
    // Of the thread with that index: sets the tokens that leave its string open in `bits`, and adds those that are to be tested one
    // by one, whatever is set. False if it is to be walked byte by byte. At a place that was stepped to last.
    bool find_tokens(const place & at, size_t thread, string_masks & masks, token_bits & bits, std::vector<llama_token> & doubtful,
                     std::vector<closing> & closings);

    // For a place that no other one leads on from: forgets the strings ahead of it.
    void settle(place & at);

    // Frames made since a mark are forgotten.
    struct mark {
        size_t frames, words, spans, records, candidates;
    };
    mark here() const { return {frames_.size(), words_.size(), spans_.size(), records_.size(), candidates_.size()}; }
    void forget(const mark & m);
    // Keeps what `at` needs, and nothing else; changes the indexes in it.
    void compact(place & at);
    size_t n_frames() const { return frames_.size() + words_.size() + spans_.size() + records_.size(); }

  private:
    struct frame {
        uint32_t parent;
        uint32_t node;   // of the object or array
        uint32_t next;   // index of the first property that may follow
        uint32_t n;      // members or items begun
        uint32_t later;  // bits of the members that come in any order, those there are
        uint32_t list;   // the other names used, or the items, the last first; 0: none
        uint32_t begin;  // where the item begins in the text
        uint32_t counts[MAX_CONTAINS];
        uint8_t is_array;
        uint8_t strict; // values are compared here: each has one form
        uint16_t depth;
        bool operator==(const frame & o) const;
    };
    struct used_name {
        uint32_t before;
        std::string text;
    };
    struct span {
        uint32_t before;
        uint32_t begin;
        uint32_t end;
    };
    // Earlier items that the text of this one is like, so far.
    struct record {
        uint32_t outer;
        uint32_t frame; // of the array
        uint32_t start; // of the item's text
        uint32_t first; // of the candidates
        uint32_t last;
    };

    uint32_t add_frame(const frame & f);
    bool same_frames(uint32_t a, uint32_t b) const;
    void put(const thread & t);
    void step_thread(const thread & t, uint8_t byte);
    void step_string(const thread & t);
    void step_structure(thread t, uint8_t byte);
    bool skip_blank(thread & t, uint8_t byte);
    void start_value(const thread & t, uint8_t byte);
    void start_name(const thread & t);
    void end_name(const thread & t);
    void finish(thread t);
    void close(thread t, uint8_t byte, char sign);
    void begin_items(const thread & t, uint32_t frame_id);
    bool may_follow(const frame & f, const schema::object_node & o, uint32_t property) const;
    uint32_t n_later(const frame & f, const schema::object_node & o) const;
    uint32_t n_used(const frame & f) const;
    uint32_t n_needed(const frame & f, const schema::object_node & o) const;
    bool others_may_follow(const frame & f, const schema::object_node & o) const;
    bool may_close(const frame & f) const;
    bool can_fill(const schema::array_node & a, uint32_t n, const uint32_t * counts) const;
    bool is_name_possible(const frame & f, const schema::object_node & o, const thread & t, const code_range * ranges, size_t n_ranges) const;
    bool has_listed(const frame & f, const schema::object_node & o, uint32_t tree) const;
    bool has_other(const frame & f, const schema::object_node & o, uint32_t tree, int32_t state, std::string_view name) const;
    void note_text(const place & from, uint8_t byte);
    std::string_view word() const { return std::string_view(word_).substr(word_begin_); }
    uint32_t narrowed(uint32_t record, uint32_t n_before);
    bool is_repeated(uint32_t frame_id, uint32_t begin, uint32_t end) const;
    int only_byte(const thread & t) const;
    int own_byte(const thread & t) const; // likewise, whatever other items are like
    bool find_name_tokens(const place & at, const thread & t, string_masks & masks, token_bits & bits, std::vector<llama_token> & doubtful,
                          std::vector<closing> & closings);
    void find_listed(const thread & t, const string_tree & tree, token_bits & bits, std::vector<llama_token> & doubtful) const;
    void find_alike(uint32_t record, const string_tree & tree, uint32_t n_text, std::vector<llama_token> & doubtful) const;
    void close_string(const place & at, const thread & t, closing & to);
    bool can_differ(const thread & t, const place & at);
    bool search_difference(const thread & t, const place & at, size_t & budget);

    schema_ptr schema_;
    uint32_t root_;
    uint8_t kinds_; // of the root
    std::vector<frame> frames_;
    std::vector<used_name> words_;
    std::vector<span> spans_;
    std::vector<record> records_;
    std::vector<span> candidates_;
    std::string text_; // of the place that was stepped to last, each value in its one form; only kept where items are compared
    std::string word_; // the strings there, one after another

    // the step under way
    std::vector<thread> * out_ = nullptr;
    const place * from_ = nullptr;
    json_lexer to_;
    uint32_t n_text_ = 0;
    uint32_t word_begin_ = 0;
    uint32_t n_word_ = 0;
    json_reading read_;
    bool searching_ = false;
};

}  // namespace lm
