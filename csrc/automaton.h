// Deterministic automata over code points: the languages of patterns, formats and names. Complete and closed under
// intersection, union and complement, with what a matcher needs to know of a place to never lead into a dead end: the shortest
// and longest rest, and how many rests there are.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace lm {

// What cannot be made an automaton, or only too large a one; says why.
struct automaton_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A text that is no expression at all.
struct malformed_error : automaton_error {
    using automaton_error::automaton_error;
};

constexpr uint32_t LAST_CODE_POINT = 0x10FFFF;

struct code_range {
    uint32_t first;
    uint32_t last;
};
// Ascending and disjoint.
using code_set = std::vector<code_range>;

void add_range(code_set & set, uint32_t first, uint32_t last); // in any order; normalize() after
void normalize(code_set & set);
code_set complement_of(const code_set & set);

class automaton;
using automaton_ptr = std::shared_ptr<const automaton>;

class automaton {
  public:
    static constexpr int32_t DEAD = -1;
    static constexpr uint32_t INFINITE = UINT32_MAX;

    // `table`: for each state the next state per class, DEAD or an index; class i begins at begins[i], the first at 0.
    // Each state may carry a mark of the maker's.
    automaton(std::vector<uint32_t> begins, std::vector<int32_t> table, std::vector<bool> accepts, std::vector<uint32_t> marks = {});

    static automaton_ptr anything();
    // The words themselves, UTF-8.
    static automaton_ptr words(const std::vector<std::string> & all);
    // Texts of so many code points. Throws automaton_error if that is too much.
    static automaton_ptr lengths(uint32_t least, uint32_t most);

    int32_t start() const { return start_; } // DEAD: there is no word
    int32_t next(int32_t state, uint32_t code_point) const {
        return table_[size_t(state) * n_classes_ + (code_point < 128 ? ascii_[code_point] : find_class(code_point))];
    }
    bool accepts(int32_t state) const { return accepts_[size_t(state)]; }
    bool accepts(const std::string & text) const;
    // Whether some code point of the range leads on, to where a rest has from `least` to `most` code points.
    bool continues(int32_t state, uint32_t first, uint32_t last, uint32_t least = 0, uint32_t most = INFINITE) const;
    // Where each state leads with which code points; surrogates, which are no text, aside.
    struct move {
        code_set with;
        int32_t to;
    };
    std::vector<move> moves(int32_t state) const;
    // Whether every code point of the range stays in the state.
    bool stays(int32_t state, code_range with) const;
    // The last code point from that one on with which the state leads to the same place.
    uint32_t last_alike(int32_t state, uint32_t code_point) const;
    bool is_open(int32_t state) const { return open_[size_t(state)]; } // accepting, and every code point stays in the state
    uint32_t mark(int32_t state) const { return marks_[size_t(state)]; }

    uint32_t shortest(int32_t state) const { return shortest_[size_t(state)]; } // code points
    uint32_t longest(int32_t state) const { return longest_[size_t(state)]; }   // INFINITE if there is no end
    uint32_t count(int32_t state) const { return count_[size_t(state)]; }       // of rests, INFINITE if not to be counted
    // At least so many words have from `least` to `most` code points; capped, and low where to count would be costly.
    uint32_t count_between(uint32_t least, uint32_t most) const;
    // Whether a rest has from `least` to `most` code points; may deny it where to know would be costly.
    bool fits(int32_t state, uint32_t least, uint32_t most) const;

    // Whether every length from the shortest rest on has one.
    bool is_dense(int32_t state) const { return dense_[size_t(state)]; }
    // If from every state every length from the shortest on has a rest: the longest of those shortest. Else INFINITE.
    uint32_t slack() const { return slack_; }
    bool is_endless() const { return endless_; } // from no state there are only so many rests

    // The one code point that leads on, NONE if there are none or several.
    static constexpr uint32_t NONE = UINT32_MAX;
    uint32_t only_next(int32_t state) const;
    bool is_last(int32_t state) const { return longest_[size_t(state)] == 0; } // no code point leads on

    size_t n_states() const { return accepts_.size(); }
    size_t n_bytes() const { return table_.size() * 4 + accepts_.size() * 24 + begins_.size() * 4 + sizeof(*this); }

    template <typename Combine>
    static automaton_ptr combine(const automaton & a, const automaton & b, Combine keep, size_t max_states);
    static automaton_ptr both(const automaton & a, const automaton & b);
    static automaton_ptr either(const automaton & a, const automaton & b);
    automaton_ptr complement() const;
    // The words that end in those states, with their marks.
    automaton_ptr ending_in(const std::vector<bool> & accepts) const { return std::make_shared<automaton>(begins_, table_, accepts, marks_); }

    // All automata at once: a state's accepted ones as bits. For at most 32; throws automaton_error if there are too many states.
    struct joint {
        std::vector<uint32_t> begins;
        std::vector<int32_t> table;
        std::vector<uint32_t> accepted;
    };
    static joint run_together(const std::vector<automaton_ptr> & all, size_t max_states);

    // The words when they are at most so many; false otherwise.
    bool list(size_t most, std::vector<std::string> & words) const;

  private:
    uint32_t find_class(uint32_t code_point) const;
    void trim();
    void measure();

    std::vector<uint32_t> begins_;
    size_t n_classes_;
    std::vector<int32_t> table_;
    std::vector<bool> accepts_;
    std::vector<uint32_t> marks_;
    int32_t start_ = 0;
    std::array<uint16_t, 128> ascii_;
    std::vector<bool> open_;
    std::vector<bool> dense_; // rests of every length from the shortest on
    std::vector<uint32_t> shortest_;
    std::vector<uint32_t> longest_;
    std::vector<uint32_t> count_;
    uint32_t slack_ = 0;
    bool endless_ = true;
};

constexpr size_t MAX_AUTOMATON_STATES = 6000;
constexpr size_t MAX_AUTOMATON_CELLS = 600000; // states by classes: 2.4 MB

}  // namespace lm
