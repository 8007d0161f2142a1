#include "shown_rows.h"

#include <algorithm>

namespace lm {

shown_rows::shown_rows(uint32_t width, uint32_t height, int turn) : width_(width), height_(height) {
    const picture_sides kept = sides_looked_at(width, height);
    across_ = kept.width;
    down_ = kept.height;
    const bool on_its_side = turn > 4;
    shown_ = {on_its_side ? down_ : across_, on_its_side ? across_ : down_, {}};
    shown_.rgb.resize(size_t(across_) * down_ * 3);
    const auto w = ptrdiff_t(across_);
    const auto h = ptrdiff_t(down_);
    const auto set = [&](ptrdiff_t first, ptrdiff_t step_x, ptrdiff_t step_y) {
        at_ = first;
        step_x_ = step_x;
        step_y_ = step_y;
    };
    switch (turn) {
        case 2: set(w - 1, -1, w); break;                   // mirrored
        case 3: set(w * h - 1, -1, -w); break;              // upside down
        case 4: set(w * (h - 1), 1, -w); break;             // both
        case 5: set(0, h, 1); break;                        // mirrored at the diagonal
        case 6: set(h - 1, h, -1); break;                   // to be turned right
        case 7: set(w * h - 1, -h, -1); break;              // mirrored at the other diagonal
        case 8: set(h * (w - 1), -h, 1); break;             // to be turned left
        default: set(0, 1, w);
    }
    if (across_ != width_ || down_ != height_) {
        line_.resize(size_t(across_) * 3);
        sums_.resize(line_.size());
        row_.resize(line_.size());
        missing_ = height_;
    }
}

void shown_rows::put(const uint8_t * rgb) {
    if (line_.empty()) {
        place(rgb);
    } else {
        average(rgb);
    }
}

void shown_rows::place(const uint8_t * rgb) {
    if (n_rows_ == down_) {
        return;
    }
    ptrdiff_t at = at_;
    for (uint32_t x = 0; x < across_; x++, at += step_x_, rgb += 3) {
        uint8_t * pixel = &shown_.rgb[size_t(at) * 3];
        pixel[0] = rgb[0];
        pixel[1] = rgb[1];
        pixel[2] = rgb[2];
    }
    at_ += step_y_;
    n_rows_++;
}

// A stored pixel has `across_` parts, of which one that is kept gets `width_`; so it is with rows.
void shown_rows::average(const uint8_t * rgb) {
    std::fill(line_.begin(), line_.end(), 0);
    uint32_t * sum = line_.data();
    uint32_t room = width_;
    for (uint32_t x = 0; x < width_; x++, rgb += 3) {
        for (uint32_t left = across_; left > 0;) {
            const uint32_t n = std::min(left, room);
            for (size_t i = 0; i < 3; i++) {
                sum[i] += rgb[i] * n;
            }
            left -= n;
            room -= n;
            if (room == 0) {
                room = width_;
                sum += 3;
            }
        }
    }
    const float whole = 1.0f / (float(width_) * float(height_));
    for (uint32_t left = down_; left > 0;) {
        const uint32_t n = std::min(left, missing_);
        for (size_t i = 0; i < line_.size(); i++) {
            sums_[i] += float(line_[i]) * (float(n) * whole);
        }
        left -= n;
        missing_ -= n;
        if (missing_ == 0) {
            missing_ = height_;
            for (size_t i = 0; i < row_.size(); i++) {
                row_[i] = uint8_t(std::min(sums_[i] + 0.5f, 255.0f));
                sums_[i] = 0;
            }
            place(row_.data());
        }
    }
}

}  // namespace lm
