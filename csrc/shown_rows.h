// A picture, taken row by row as it is decoded and kept as it is shown: turned, and averaged down where it has more pixels than
// any tower looks at. So a file of many pixels takes no more memory than one of a few.
#pragma once

#include "picture.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lm {

class shown_rows {
  public:
    // Of the picture as it is stored; `turn` as exif_turn.
    shown_rows(uint32_t width, uint32_t height, int turn);

    // The next row, from the top, three bytes a pixel. What comes behind the last is dropped.
    void put(const uint8_t * rgb);
    pixels take() { return std::move(shown_); }

  private:
    void place(const uint8_t * rgb);
    void average(const uint8_t * rgb);

    uint32_t width_, height_;   // as stored
    uint32_t across_, down_;    // of what is kept of it, not turned
    pixels shown_;
    ptrdiff_t at_, step_x_, step_y_; // the place of the next row's first pixel, and how much further its neighbours are
    uint32_t n_rows_ = 0;            // that are kept already

    // where it is averaged
    std::vector<uint32_t> line_; // sums of a row
    std::vector<float> sums_;    // of rows
    std::vector<uint8_t> row_;
    uint32_t missing_ = 0; // of the row that is summed up, in parts of a stored row
};

}  // namespace lm
