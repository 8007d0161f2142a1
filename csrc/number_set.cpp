#include "number_set.h"

#include <algorithm>

namespace lm {

using wide = __int128;

static constexpr int MAX_DIGITS = 37;       // 10^37 fits into 127 bits, and a sum of two such
static constexpr int MAX_FREE_WHOLE = 64;   // digits of numbers of which nothing is asked
static constexpr int MAX_FREE_FRACTION = 24;
static constexpr int MAX_SCALE = 18;        // decimal places of numbers of which something is: a double has 17 digits
static constexpr int MAX_WHOLE = 19;        // digits ahead of the point where no bound asks for more: 64 bits
static constexpr int MAX_DOUBLE_DIGITS = 15; // that survive being read as a double
static constexpr int MAX_TRIED = 64;        // numbers that are looked at for one that is no exception

static wide power(int n) {
    static const std::vector<wide> POWERS = [] {
        std::vector<wide> all = {1};
        while (all.size() <= MAX_DIGITS) {
            all.push_back(all.back() * 10);
        }
        return all;
    }();
    return POWERS[size_t(n)];
}

static int n_digits(wide value) {
    value = value < 0 ? -value : value;
    int n = 0;
    for (; value > 0; value /= 10) {
        n++;
    }
    return n;
}

std::optional<decimal> decimal::parse(const std::string & text) {
    decimal d;
    bool negative = false;
    bool fraction = false;
    int n = 0;
    size_t i = 0;
    int64_t exponent = 0;
    int n_zeros = 0; // not taken up yet
    for (; i < text.size() && text[i] != 'e' && text[i] != 'E'; i++) {
        const char c = text[i];
        if (c == '-') {
            negative = true;
        } else if (c == '.') {
            fraction = true;
        } else {
            exponent -= fraction;
            if (c == '0') {
                n_zeros += d.mantissa != 0;
                exponent += d.mantissa != 0;
                if (d.mantissa == 0) {
                    continue;
                }
                continue;
            }
            n += n_zeros + 1;
            if (n > MAX_DIGITS) {
                return std::nullopt;
            }
            exponent -= n_zeros;
            d.mantissa = d.mantissa * power(n_zeros + 1) + (c - '0');
            n_zeros = 0;
        }
    }
    if (i < text.size()) {
        const std::string rest = text.substr(i + 1);
        if (rest.size() > 6) {
            return std::nullopt;
        }
        exponent += std::stoll(rest);
    }
    if (d.mantissa == 0) {
        return decimal{};
    }
    if (exponent > 10000 || exponent < -10000) {
        return std::nullopt;
    }
    d.exponent = int(exponent);
    d.mantissa = negative ? -d.mantissa : d.mantissa;
    return d;
}

std::optional<wide> decimal::at_scale(int scale) const {
    const int shift = exponent + scale;
    if (mantissa == 0) {
        return 0;
    }
    if (shift < 0 || n_digits(mantissa) + shift > MAX_DIGITS) {
        return std::nullopt;
    }
    return mantissa * power(shift);
}

std::string decimal::spell() const {
    wide value = mantissa < 0 ? -mantissa : mantissa;
    std::string digits;
    for (; value > 0; value /= 10) {
        digits.insert(digits.begin(), char('0' + int(value % 10)));
    }
    if (digits.empty()) {
        return "0";
    }
    if (exponent >= 0) {
        digits.append(size_t(exponent), '0');
    } else {
        const size_t places = size_t(-exponent);
        if (digits.size() <= places) {
            digits.insert(0, places + 1 - digits.size(), '0');
        }
        digits.insert(digits.size() - places, 1, '.');
    }
    return (mantissa < 0 ? "-" : "") + digits;
}

int compare(const decimal & a, const decimal & b) {
    const auto sign = [](wide v) { return v > 0 ? 1 : v < 0 ? -1 : 0; };
    if (sign(a.mantissa) != sign(b.mantissa) || a.mantissa == 0) {
        return sign(a.mantissa) - sign(b.mantissa);
    }
    const int s = sign(a.mantissa);
    const int size_a = n_digits(a.mantissa) + a.exponent;
    const int size_b = n_digits(b.mantissa) + b.exponent;
    if (size_a != size_b) {
        return size_a > size_b ? s : -s;
    }
    const int low = std::min(a.exponent, b.exponent); // the digits are at most 37 then
    const wide x = a.mantissa * power(a.exponent - low);
    const wide y = b.mantissa * power(b.exponent - low);
    return x > y ? 1 : x < y ? -1 : 0;
}

// Whether `value` is a multiple of `of`, which is not zero.
static bool divides(const decimal & of, const decimal & value) {
    const int shift = value.exponent - of.exponent;
    if (value.mantissa == 0) {
        return true;
    }
    if (shift < 0) {
        return n_digits(of.mantissa) - shift <= MAX_DIGITS && value.mantissa % (of.mantissa * power(-shift)) == 0;
    }
    wide rest = value.mantissa % of.mantissa;
    for (int i = 0; i < shift && rest != 0; i++) {
        rest = rest * 10 % of.mantissa;
    }
    return rest == 0;
}

void number_terms::add_low(const number_bound & b) {
    const int order = low ? compare(b.value, low->value) : 1;
    if (order > 0 || (order == 0 && b.exclusive)) {
        low = b;
    }
}

void number_terms::add_high(const number_bound & b) {
    const int order = high ? compare(b.value, high->value) : -1;
    if (order < 0 || (order == 0 && b.exclusive)) {
        high = b;
    }
}

bool number_terms::contains(const decimal & v) const {
    if (low && (compare(v, low->value) < 0 || (low->exclusive && v == low->value))) {
        return false;
    }
    if (high && (compare(v, high->value) > 0 || (high->exclusive && v == high->value))) {
        return false;
    }
    const auto is_v = [&](const decimal & d) { return d == v; };
    return std::all_of(multiples.begin(), multiples.end(), [&](const decimal & m) { return divides(m, v); }) &&
           std::none_of(not_multiples.begin(), not_multiples.end(), [&](const decimal & m) { return divides(m, v); }) &&
           std::none_of(exceptions.begin(), exceptions.end(), is_v) &&
           (values.empty() || std::any_of(values.begin(), values.end(), is_v));
}

bool number_terms::is_free() const {
    const decimal one = {1, 0};
    const bool trivial = std::all_of(multiples.begin(), multiples.end(), [&](const decimal & m) { return m == one; });
    return !low && !high && trivial && not_multiples.empty() && exceptions.empty() && values.empty();
}

static wide gcd(wide a, wide b) {
    while (b != 0) {
        const wide rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static wide floor_div(wide a, wide b) {
    return a / b - (a % b != 0 && a < 0);
}

number_set::number_set(const number_terms & t) {
    whole_ = std::any_of(t.multiples.begin(), t.multiples.end(), [](const decimal & m) { return m.is_whole(); });
    free_ = t.is_free();
    if (free_) {
        return;
    }
    // How many places a value may have: as many as leave room for the bounds.
    int n_whole = MAX_WHOLE;
    const auto size = [](const decimal & d) { return std::max(1, n_digits(d.mantissa) + d.exponent); };
    if (t.low) {
        n_whole = std::max(n_whole, size(t.low->value));
    }
    if (t.high) {
        n_whole = std::max(n_whole, size(t.high->value));
    }
    if (t.low && t.high) {
        n_whole = std::max(size(t.low->value), size(t.high->value));
    }
    if (!t.values.empty()) {
        n_whole = 1;
        for (const decimal & d : t.values) {
            n_whole = std::max(n_whole, size(d));
        }
    }
    n_whole = std::min(n_whole, MAX_DIGITS - 1);
    int needed = 0; // places that the terms have
    const auto need = [&](const decimal & d) { needed = std::max(needed, -d.exponent); };
    for (const auto * all : {&t.multiples, &t.not_multiples, &t.exceptions, &t.values}) {
        std::for_each(all->begin(), all->end(), need);
    }
    if (!whole_) {
        scale_ = std::min(std::max(needed, MAX_SCALE), MAX_DIGITS - 1 - n_whole);
        if (!t.multiples.empty() || !t.not_multiples.empty() || !t.exceptions.empty()) {
            // Whoever reads the number reads a double: with more digits it would be another one.
            if (!t.low || !t.high) {
                n_whole = std::min(n_whole, std::max(MAX_DOUBLE_DIGITS - std::max(needed, MAX_DOUBLE_DIGITS / 2), 1));
            }
            scale_ = std::max(0, MAX_DOUBLE_DIGITS - n_whole);
            scale_ = t.multiples.empty() ? scale_ : std::min(scale_, needed);
        }
        whole_ = scale_ < 1;
        scale_ = std::max(scale_, 0);
    }
    wide factor = 1;
    for (const decimal & m : t.multiples) {
        // 2.5 and whole numbers: the least common multiple, in units of the scale
        const int fine = std::max(scale_, -m.exponent);
        if (fine - scale_ >= MAX_DIGITS && m.mantissa == 1) {
            continue; // all that can be written are
        }
        const auto unit = m.at_scale(fine);
        if (fine - scale_ >= MAX_DIGITS || !unit) {
            empty_ = true;
            return;
        }
        wide step = *unit;
        const wide grain = power(fine - scale_); // a value at our scale is a multiple of this one
        const wide g = gcd(step, grain);
        step = step / g; // step | value * grain  <=>  step/g | value
        const wide common = gcd(step, factor);
        if (n_digits(step / common) + n_digits(factor) > MAX_DIGITS) {
            empty_ = true;
            return;
        }
        factor = factor / common * step;
    }
    multiple_ = factor;
    for (const decimal & m : t.not_multiples) {
        const int fine = std::max(scale_, -m.exponent);
        const auto unit = m.at_scale(fine);
        if (fine - scale_ >= MAX_DIGITS) {
            empty_ = true;
            return;
        }
        if (!unit) {
            continue; // larger than every number that is written
        }
        not_multiples_.push_back(*unit / gcd(*unit, power(fine - scale_)));
    }
    max_whole_ = n_whole;
    const wide most = power(n_whole + scale_) - 1;
    low_ = -most;
    high_ = most;
    // Towards the inside where a bound is finer than the scale.
    const auto scaled = [&](const decimal & d, bool up) {
        const int shift = d.exponent + scale_;
        if (d.mantissa != 0 && n_digits(d.mantissa) + shift > MAX_DIGITS) {
            return d.mantissa < 0 ? -power(MAX_DIGITS) : power(MAX_DIGITS);
        }
        if (shift >= 0) {
            return d.mantissa * power(shift);
        }
        if (-shift > MAX_DIGITS) {
            return wide(up ? d.mantissa > 0 : -(d.mantissa < 0));
        }
        const wide down = floor_div(d.mantissa, power(-shift));
        return down + (up && d.mantissa % power(-shift) != 0);
    };
    // Next to a bound that is excluded, a double would be the bound.
    const auto margin = [&](const decimal & d) {
        return whole_ || d.mantissa == 0 ? wide(1) : power(std::max(0, std::min(scale_ + size(d) - MAX_DOUBLE_DIGITS, MAX_DIGITS - 1)));
    };
    if (t.low) {
        wide low = scaled(t.low->value, true);
        const auto exact = t.low->value.at_scale(scale_);
        low += t.low->exclusive && (!whole_ || (exact && *exact == low)) ? margin(t.low->value) : 0;
        low_ = std::max(low_, low);
    }
    if (t.high) {
        wide high = scaled(t.high->value, false);
        const auto exact = t.high->value.at_scale(scale_);
        high -= t.high->exclusive && (!whole_ || (exact && *exact == high)) ? margin(t.high->value) : 0;
        high_ = std::min(high_, high);
    }
    for (const decimal & d : t.exceptions) {
        if (const auto v = d.at_scale(scale_)) {
            exceptions_.push_back(*v);
        }
    }
    if (!t.values.empty()) {
        for (const decimal & d : t.values) {
            const auto v = d.at_scale(scale_);
            if (v && t.contains(d) && *v >= low_ && *v <= high_) {
                values_.push_back(*v);
            }
        }
        std::sort(values_.begin(), values_.end());
        values_.erase(std::unique(values_.begin(), values_.end()), values_.end());
        if (values_.empty()) {
            empty_ = true;
            return;
        }
    }
    empty_ = !exists(low_, high_);
    if (!values_.empty()) {
        count_ = uint32_t(values_.size());
    } else if (!empty_) {
        const wide n = floor_div(high_, multiple_) - floor_div(low_ - 1, multiple_);
        wide left = n;
        for (const wide other : not_multiples_) {
            left -= n / std::max<wide>(1, other / gcd(other, multiple_)) + 1;
        }
        left -= wide(exceptions_.size());
        count_ = uint32_t(std::min<wide>(UINT32_MAX, std::max<wide>(left, 1)));
    }
}

bool number_set::is_good(wide v) const {
    return v % multiple_ == 0 &&
           std::none_of(not_multiples_.begin(), not_multiples_.end(), [&](wide m) { return v % m == 0; }) &&
           std::find(exceptions_.begin(), exceptions_.end(), v) == exceptions_.end();
}

bool number_set::exists(wide low, wide high) const {
    low = std::max(low, low_);
    high = std::min(high, high_);
    if (low > high) {
        return false;
    }
    if (!values_.empty()) {
        const auto at = std::lower_bound(values_.begin(), values_.end(), low);
        return at != values_.end() && *at <= high;
    }
    wide v = floor_div(low, multiple_) * multiple_;
    v += v < low ? multiple_ : 0;
    for (int i = 0; v <= high && i < MAX_TRIED; i++, v += multiple_) {
        if (is_good(v)) {
            return true;
        }
    }
    return false;
}

// ---- writing ----------------------------------------------------------------------------------------------------------

bool number_set::may_end(const number_text & t, bool canonical) const {
    using part = number_text::part;
    switch (t.at) {
        case part::whole: break;
        case part::fraction:
            if (canonical && t.ends_in_zero) {
                return false;
            }
            break;
        case part::exponent: return free_;
        default: return false;
    }
    if (t.negative && t.digits == 0 && (free_ ? t.n_whole + t.n_fraction <= 36 : true)) {
        return false; // a zero with a sign
    }
    if (free_) {
        return true;
    }
    const wide value = t.digits * power(scale_ - t.n_fraction) * (t.negative ? -1 : 1);
    return values_.empty() ? value >= low_ && value <= high_ && is_good(value) : std::binary_search(values_.begin(), values_.end(), value);
}

bool number_set::reachable(const number_text & t, bool canonical) const {
    using part = number_text::part;
    const auto between = [&](wide least, wide most) { // magnitudes
        if (t.negative) {
            least = std::max<wide>(least, 1);
        }
        return least <= most && (t.negative ? exists(-most, -least) : exists(least, most));
    };
    if (t.at == part::sign) {
        return between(1, power(max_whole_ + scale_) - 1);
    }
    if (t.at == part::whole) {
        const int more = t.digits == 0 ? 0 : max_whole_ - t.n_whole;
        wide unit = power(scale_);
        for (int k = 0; k <= more; k++) {
            if (between(t.digits * unit, (t.digits + 1) * unit - 1)) {
                return true;
            }
            unit *= 10;
        }
        return false;
    }
    const int left = scale_ - t.n_fraction;
    const wide unit = power(left);
    if (left == 0) {
        return may_end(t, canonical);
    }
    const bool one_must_come = canonical && (t.at == part::point || t.ends_in_zero);
    return between(t.digits * unit + one_must_come, (t.digits + 1) * unit - 1);
}

bool number_set::push(number_text & t, char c, bool canonical) const {
    using part = number_text::part;
    number_text next = t;
    if (c == '-') {
        if (t.at == part::nothing) {
            next.negative = true;
            next.at = part::sign;
        } else if (t.at == part::e) {
            next.at = part::e_sign;
        } else {
            return false;
        }
    } else if (c == '+') {
        if (t.at != part::e) {
            return false;
        }
        next.at = part::e_sign;
    } else if (c == '.') {
        if (t.at != part::whole || whole_ || (!free_ && scale_ == 0)) {
            return false;
        }
        next.at = part::point;
    } else if (c == 'e' || c == 'E') {
        if (!free_ || whole_ || canonical || t.n_whole != 1 || (t.at != part::whole && t.at != part::fraction) || t.digits == 0) {
            return false;
        }
        next.at = part::e;
    } else {
        switch (t.at) {
            case part::nothing:
            case part::sign: next.at = part::whole; [[fallthrough]];
            case part::whole:
                if (t.at == part::whole && (t.digits == 0 || t.n_whole >= (free_ ? MAX_FREE_WHOLE : max_whole_))) {
                    return false;
                }
                next.n_whole++;
                break;
            case part::point: next.at = part::fraction; [[fallthrough]];
            case part::fraction:
                if (t.n_fraction >= (free_ ? MAX_FREE_FRACTION : scale_)) {
                    return false;
                }
                next.n_fraction++;
                next.ends_in_zero = c == '0';
                break;
            case part::e:
            case part::e_sign: next.at = part::exponent; [[fallthrough]];
            case part::exponent:
                if (t.at == part::exponent && t.n_exponent >= (t.big_exponent ? 2 : 3)) {
                    return false;
                }
                if (next.n_exponent == 0) {
                    next.big_exponent = c > '2';
                }
                next.n_exponent++;
                break;
        }
        if (next.at == part::whole || next.at == part::fraction) {
            const bool room = t.n_whole + t.n_fraction < MAX_DIGITS - 1;
            next.digits = room ? t.digits * 10 + (c - '0') : t.digits; // only free numbers are longer
        }
    }
    if (free_) {
        if (whole_ && next.negative && next.at == part::whole && next.digits == 0) {
            return false;
        }
        const bool full = next.n_fraction == MAX_FREE_FRACTION;
        if (full && ((canonical && next.ends_in_zero) || (next.negative && next.digits == 0))) {
            return false;
        }
        t = next;
        return true;
    }
    if (!reachable(next, canonical)) {
        return false;
    }
    t = next;
    return true;
}

}  // namespace lm
