#include "call_rules.h"

#include "automaton.h"

#include <map>

namespace lm {

static constexpr uint32_t INFINITE = automaton::INFINITE;
static constexpr size_t MAX_RULES = 100000;
static constexpr uint32_t MAX_COUNTED = 100; // members that are counted in rules

std::string call_rules::text() const {
    std::string text;
    for (size_t i = 0; i < rules_.size(); i++) {
        text += name_of(i) + " ::= " + rules_[i] + "\n";
    }
    return text;
}

size_t call_rules::begin() {
    if (rules_.size() >= MAX_RULES) {
        throw unknown_notation();
    }
    rules_.emplace_back();
    return rules_.size() - 1;
}

std::string call_rules::add(std::string text) {
    const size_t rule = begin();
    rules_[rule] = std::move(text);
    return name_of(rule);
}

call_rules::text_t call_rules::any_of(const std::vector<std::string> & ways) {
    std::string any;
    for (const std::string & way : ways) {
        any += (any.empty() ? "" : " | ") + (way.empty() ? "\"\"" : way);
    }
    return ways.empty() ? std::nullopt : text_t(ways.size() == 1 ? ways[0] : group(any));
}

call_rules::text_t call_rules::in_any_order(const std::vector<way> & ways, uint32_t least, uint32_t most) {
    uint32_t required = 0;
    for (size_t i = 0; i < ways.size(); i++) {
        required |= ways[i].required ? 1u << i : 0;
    }
    const uint32_t n_sets = 1u << ways.size();
    const auto n_in = [](uint32_t set) {
        uint32_t n = 0;
        for (; set != 0; set &= set - 1) {
            n++;
        }
        return n;
    };
    // From which sets, of those written, an end is in reach: what is missing still fits.
    const auto is_good = [&](uint32_t set) { return n_in(set | required) <= most; };
    if (!is_good(0)) {
        return std::nullopt;
    }
    std::vector<size_t> rule_of(n_sets);
    for (uint32_t set = 0; set < n_sets; set++) {
        rule_of[set] = is_good(set) ? begin() : 0;
    }
    for (uint32_t set = 0; set < n_sets; set++) {
        if (!is_good(set)) {
            continue;
        }
        std::string any;
        for (size_t i = 0; i < ways.size(); i++) {
            const uint32_t with = set | 1u << i;
            if (with != set && is_good(with)) {
                any += (any.empty() ? "" : " | ") + *(set == 0 ? ways[i].first : ways[i].next) + " " + name_of(rule_of[with]);
            }
        }
        if ((set & required) == required && n_in(set) >= least) {
            any += any.empty() ? "\"\"" : " | \"\"";
        }
        rules_[rule_of[set]] = any;
    }
    return name_of(rule_of[0]);
}

// Any number of these.
static std::string tail(const std::vector<call_rules::way> & others, bool behind_some) {
    if (others.empty()) {
        return "";
    }
    std::string first;
    std::string next;
    for (const call_rules::way & w : others) {
        first += (first.empty() ? "" : " | ") + *w.first;
        next += (next.empty() ? "" : " | ") + *w.next;
    }
    return behind_some ? call_rules::group(next) + "*" : "(" + call_rules::group(first) + " " + call_rules::group(next) + "*)?";
}

call_rules::text_t call_rules::in_order(const std::vector<way> & ways, uint32_t least, uint32_t most, const std::vector<way> & others, bool & lost) {
    uint32_t n_required = 0;
    std::vector<uint32_t> required_from(ways.size() + 1);
    for (size_t i = ways.size(); i-- > 0;) {
        required_from[i] = required_from[i + 1] + ways[i].required;
    }
    n_required = required_from[0];
    if (n_required > most) {
        return std::nullopt;
    }
    const bool counts = least > n_required || most != INFINITE;
    if (counts && ways.size() > MAX_COUNTED) {
        lost = true;
    }
    const bool counted = counts && ways.size() <= MAX_COUNTED;
    // What may follow once those ahead of `at` are through and `n` members are written; without counting n is 0 or 1.
    std::map<std::pair<size_t, uint32_t>, std::string> known;
    const auto can_end = [&](size_t at, uint32_t n) {
        return !counted || (n + required_from[at] <= most && n + (ways.size() - at) >= least);
    };
    for (size_t at = ways.size() + 1; at-- > 0;) {
        for (uint32_t n = 0; n <= (counted ? uint32_t(at) : 1u); n++) {
            if (!can_end(at, n)) {
                continue;
            }
            std::string any;
            if (at == ways.size()) {
                any = tail(others, n > 0);
            } else {
                const uint32_t with = counted ? n + 1 : 1;
                if (can_end(at + 1, with)) {
                    any = *(n == 0 ? ways[at].first : ways[at].next) + " " + known.at({at + 1, with});
                }
                if (!ways[at].required && can_end(at + 1, n)) {
                    any += (any.empty() ? "" : " | ") + known.at({at + 1, n});
                }
            }
            known[{at, n}] = add(any.empty() ? "\"\"" : any);
        }
    }
    const auto found = known.find({0, 0});
    return found == known.end() ? std::nullopt : text_t(found->second);
}

}  // namespace lm
