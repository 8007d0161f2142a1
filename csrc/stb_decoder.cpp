#include "stb_decoder.h"

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace {

// Of the picture that this thread decodes. Each block begins with its size.
thread_local uint64_t bytes_left = 0;
constexpr size_t HEAD = 16;

size_t & size_of_block(void * block) {
    return *reinterpret_cast<size_t *>(static_cast<char *>(block) - HEAD);
}

// Zeros, because a broken file leaves parts of a picture unwritten: nobody must see there what the process had in memory before.
void * counted_alloc(size_t size) {
    if (size > bytes_left) {
        return nullptr;
    }
    char * whole = static_cast<char *>(calloc(1, size + HEAD));
    if (whole == nullptr) {
        return nullptr;
    }
    bytes_left -= size;
    size_of_block(whole + HEAD) = size;
    return whole + HEAD;
}

void counted_free(void * block) {
    if (block != nullptr) {
        bytes_left += size_of_block(block);
        free(static_cast<char *>(block) - HEAD);
    }
}

void * counted_realloc(void * block, size_t size) {
    if (block == nullptr) {
        return counted_alloc(size);
    }
    const size_t before = size_of_block(block);
    if (size > before && size - before > bytes_left) {
        return nullptr;
    }
    char * whole = static_cast<char *>(realloc(static_cast<char *>(block) - HEAD, size + HEAD));
    if (whole == nullptr) {
        return nullptr;
    }
    bytes_left += before;
    bytes_left -= size;
    size_of_block(whole + HEAD) = size;
    return whole + HEAD;
}

}  // namespace

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC // mtmd has a copy of its own
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_MAX_DIMENSIONS 65535
#define STBI_ASSERT(x)
#if defined(__aarch64__)
#define STBI_NEON // every such machine has it; on x86-64 the like is on by itself
#endif
#define STBI_MALLOC(size) counted_alloc(size)
#define STBI_REALLOC(block, size) counted_realloc(block, size)
#define STBI_FREE(block) counted_free(block)
#include "stb/stb_image.h"

namespace lm {

namespace {

// Reads a file's coefficients as stb_image does, but gives its pixels row by row: stb_image would make them in one piece, beside
// the planes of colors that they are made of, and of a progressive file beside the coefficients of those.
class jpeg {
  public:
    explicit jpeg(std::string_view file) : state_(static_cast<stbi__jpeg *>(counted_alloc(sizeof(stbi__jpeg)))) {
        if (state_) {
            stbi__start_mem(&source_, reinterpret_cast<const uint8_t *>(file.data()), int(file.size()));
            state_->s = &source_;
            stbi__setup_jpeg(state_.get());
        }
    }
    ~jpeg() {
        if (state_) {
            stbi__cleanup_jpeg(state_.get());
        }
    }
    jpeg(const jpeg &) = delete;
    jpeg & operator=(const jpeg &) = delete;

    bool read() { return state_ ? read_scans() != 0 : stbi__err("outofmem", "") != 0; }
    uint32_t width() const { return source_.img_x; }
    uint32_t height() const { return source_.img_y; }

    bool show(const std::function<void(const uint8_t *)> & take) {
        std::vector<uint8_t> row(size_t(width()) * 3 + 1);
        if (!begin_rows()) {
            return stbi__err("outofmem", "") != 0;
        }
        for (uint32_t y = 0; y < height(); y++) {
            stbi_uc * values[4] = {};
            for (int k = 0; k < source_.img_n; k++) {
                values[k] = next_row(k);
            }
            color(row.data(), values);
            take(row.data());
        }
        return true;
    }

  private:
    struct freer {
        void operator()(stbi__jpeg * j) const { counted_free(j); }
    };
    // How the rows of a color become as wide and as many as the picture's.
    struct stretching {
        resample_row_func stretch;
        int wider, higher;
        int width;         // of a row as it is stored
        int step;          // of the `higher` rows that are made of one
        int at;            // the row that comes, of those stored
        stbi_uc * before;  // the two rows that are mixed
        stbi_uc * after;
        int blocks_done = 0; // rows of blocks whose coefficients have become pixels
    };

    int read_scans() {
        stbi__jpeg * j = state_.get();
        if (!stbi__decode_jpeg_header(j, STBI__SCAN_load)) {
            return 0;
        }
        for (int marker = stbi__get_marker(j); !stbi__EOI(marker); marker = stbi__get_marker(j)) {
            if (!stbi__SOS(marker)) {
                if (!stbi__process_marker(j, marker)) {
                    return 1;
                }
                continue;
            }
            if (!stbi__process_scan_header(j) || !stbi__parse_entropy_coded_data(j)) {
                return 0;
            }
            if (j->marker == STBI__MARKER_none) {
                j->marker = stbi__skip_jpeg_junk_at_end(j);
            }
            if (STBI__RESTART(j->marker)) {
                j->marker = STBI__MARKER_none;
            }
        }
        return 1;
    }

    bool begin_rows() {
        for (int k = 0; k < source_.img_n; k++) {
            auto & color = state_->img_comp[k];
            stretching & s = rows_[k];
            color.linebuf = static_cast<stbi_uc *>(counted_alloc(size_t(width()) + 3));
            if (color.linebuf == nullptr) {
                return false;
            }
            s.wider = state_->img_h_max / color.h;
            s.higher = state_->img_v_max / color.v;
            s.width = int((width() + uint32_t(s.wider) - 1) / uint32_t(s.wider));
            s.step = s.higher / 2;
            s.at = 0;
            s.before = s.after = stored_row(k, 0);
            s.stretch = s.wider == 1 && s.higher == 1   ? resample_row_1
                        : s.wider == 1 && s.higher == 2 ? stbi__resample_row_v_2
                        : s.wider == 2 && s.higher == 1 ? stbi__resample_row_h_2
                        : s.wider == 2 && s.higher == 2 ? state_->resample_row_hv_2_kernel
                                                        : stbi__resample_row_generic;
        }
        return true;
    }

    stbi_uc * next_row(int k) {
        stretching & s = rows_[k];
        const bool low = s.step >= s.higher / 2;
        stbi_uc * row = s.stretch(state_->img_comp[k].linebuf, low ? s.after : s.before, low ? s.before : s.after, s.width, s.wider);
        if (++s.step >= s.higher) {
            s.step = 0;
            s.before = s.after;
            if (++s.at < state_->img_comp[k].y) {
                s.after = stored_row(k, s.at);
            }
        }
        return row;
    }

    // Of a progressive file two rows of blocks have pixels at a time, in turns at the top of the plane.
    stbi_uc * stored_row(int k, int y) {
        auto & color = state_->img_comp[k];
        if (!state_->progressive) {
            return color.data + size_t(color.w2) * size_t(y);
        }
        const int n_across = (color.x + 7) / 8;
        for (int & row = rows_[k].blocks_done; row <= y / 8; row++) {
            for (int i = 0; i < n_across; i++) {
                short * coefficients = color.coeff + 64 * (size_t(i) + size_t(row) * size_t(color.coeff_w));
                stbi__jpeg_dequantize(coefficients, state_->dequant[color.tq]);
                state_->idct_block_kernel(color.data + size_t(color.w2) * size_t(row % 2 * 8) + size_t(i) * 8, color.w2, coefficients);
            }
        }
        return color.data + size_t(color.w2) * size_t(y % 16);
    }

    void color(stbi_uc * out, stbi_uc * const * values) {
        const stbi__jpeg & j = *state_;
        const int n = source_.img_n;
        const int width = int(source_.img_x);
        const bool is_rgb = n == 3 && (j.rgb == 3 || (j.app14_color_transform == 0 && !j.jfif));
        const bool is_cmyk = n == 4 && j.app14_color_transform == 0;
        if (n == 1 || is_rgb || is_cmyk) {
            for (int x = 0; x < width; x++) {
                for (int i = 0; i < 3; i++) {
                    out[3 * x + i] = n == 1 ? values[0][x] : is_rgb ? values[i][x] : stbi__blinn_8x8(values[i][x], values[3][x]);
                }
            }
            return;
        }
        state_->YCbCr_to_RGB_kernel(out, values[0], values[1], values[2], width, 3);
        for (int i = 0; i < 3 * width && n == 4 && j.app14_color_transform == 2; i++) {
            out[i] = stbi__blinn_8x8(255 - out[i], values[3][i / 3]);
        }
    }

    stbi__context source_ = {};
    std::unique_ptr<stbi__jpeg, freer> state_; // zeros at first
    stretching rows_[4] = {};
};

}  // namespace

stb_outcome stb_decode_jpeg(std::string_view file, uint32_t width, uint32_t height, uint64_t memory,
                            const std::function<void(const uint8_t *)> & take) {
    if (file.size() > INT_MAX) {
        return {};
    }
    bytes_left = memory;
    stbi__g_failure_reason = nullptr; // not every way of failing sets one
    jpeg picture(file);
    if (!picture.read()) {
        const char * reason = stbi_failure_reason();
        return {false, reason == nullptr ? "its parts do not fit together" : strcmp(reason, "outofmem") == 0 ? "" : reason};
    }
    if (picture.width() != width || picture.height() != height || !picture.show(take)) {
        return {};
    }
    return {true, ""};
}

}  // namespace lm
