// How long a step takes by the number of tokens in it: measured for the widths there were, expected for others.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace lm {

class step_costs {
  public:
    void learn(size_t width, double ms);
    // What one token more adds to a wide step, as prompts show it.
    void learn_slope(double ms_per_token);

    // 0: nothing is known. Between two measured widths it is interpolated, beyond them as steep as a prompt; before there
    // was one, half as steep as steps are that share nothing.
    double ms(size_t width) const;
    // Whether that very width was measured, or not long ago.
    bool known(size_t width) const { return width <= WIDEST && remembered(measured_[width]); }
    bool sure(size_t width) const;

  private:
    static constexpr size_t WIDEST = 256;
    struct measure {
        double ms = 0;
        uint64_t at = 0; // 0: never
    };
    bool remembered(const measure & m) const;
    double beyond(size_t below, size_t width) const;

    std::array<measure, WIDEST + 1> measured_;
    uint64_t now_ = 0; // measures so far
    double slope_ms_ = 0; // 0: not known
};

}  // namespace lm
