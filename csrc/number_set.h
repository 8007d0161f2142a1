// Sets of numbers as schemas describe them, in exact decimals: bounds, multiples, exceptions. And the way a number is
// written: which digits can still lead to one of the set.
//
// Plain forms: no exponent where anything is asked of the value, and no zero with a sign. Digits are bounded.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lm {

// mantissa * 10^exponent, the mantissa without trailing zeros.
struct decimal {
    __int128 mantissa = 0;
    int exponent = 0;

    // Nothing for what has more digits than fit (37).
    static std::optional<decimal> parse(const std::string & text);
    bool is_whole() const { return exponent >= 0; }
    // mantissa of the value at that many decimal places; nothing if it does not fit or is no multiple.
    std::optional<__int128> at_scale(int scale) const;
    std::string spell() const;
    bool operator==(const decimal & o) const { return mantissa == o.mantissa && exponent == o.exponent; }
};
int compare(const decimal & a, const decimal & b);

struct number_bound {
    decimal value;
    bool exclusive = false;
};

// What is asked of a number, all of it.
struct number_terms {
    std::optional<number_bound> low;
    std::optional<number_bound> high;
    std::vector<decimal> multiples;
    std::vector<decimal> not_multiples;
    std::vector<decimal> exceptions;
    std::vector<decimal> values; // the only ones, if there are any

    void add_low(const number_bound & b);
    void add_high(const number_bound & b);
    bool contains(const decimal & value) const;
    bool is_free() const; // at most that it be an integer
};

// A number as it is being written.
struct number_text {
    __int128 digits = 0; // without sign and point
    int16_t n_whole = 0;
    int16_t n_fraction = 0;
    int16_t n_exponent = 0;
    bool negative = false;
    enum class part : uint8_t { nothing, sign, whole, point, fraction, e, e_sign, exponent } at = part::nothing;
    bool ends_in_zero = false;
    bool big_exponent = false;

    bool operator==(const number_text & o) const {
        return digits == o.digits && n_whole == o.n_whole && n_fraction == o.n_fraction && n_exponent == o.n_exponent &&
               negative == o.negative && at == o.at && ends_in_zero == o.ends_in_zero && big_exponent == o.big_exponent;
    }
};

class number_set {
  public:
    number_set() = default;
    // Without a number if the terms are beyond what can be computed with.
    explicit number_set(const number_terms & terms);

    bool is_empty() const { return empty_; }
    // At least so many different numbers; capped.
    uint32_t count() const { return count_; }

    // Moves past one more character if some number of the set still begins that way. With `canonical` each number has one
    // way to be written.
    bool push(number_text & text, char c, bool canonical) const;
    bool may_end(const number_text & text, bool canonical) const;

  private:
    bool exists(__int128 low, __int128 high) const;
    bool is_good(__int128 value) const;
    bool reachable(const number_text & text, bool canonical) const;

    bool free_ = true;   // nothing is asked of the value
    bool whole_ = false; // no fraction
    bool empty_ = false;
    int scale_ = 0;
    int max_whole_ = 0;
    __int128 low_ = 0;
    __int128 high_ = 0;
    __int128 multiple_ = 1;
    std::vector<__int128> not_multiples_;
    std::vector<__int128> exceptions_;
    std::vector<__int128> values_;
    uint32_t count_ = UINT32_MAX;
};

}  // namespace lm
