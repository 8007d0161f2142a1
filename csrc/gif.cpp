#include "gif.h"

#include "byte_reader.h"

#include <algorithm>
#include <array>

namespace lm {

static constexpr uint8_t EXTENSION = 0x21, PICTURE = 0x2C, TRAILER = 0x3B, GRAPHIC_CONTROL = 0xF9;
static constexpr uint32_t MOST_CODES = 4096; // of twelve bits

static std::string_view take_palette(byte_reader & in, uint8_t flags) {
    return flags & 0x80 ? in.take(size_t(3) * (2u << (flags & 7))) : std::string_view();
}

static void skip_blocks(byte_reader & in) {
    while (const uint8_t size = in.u8()) {
        in.skip(size);
    }
}

gif_header read_gif(std::string_view bytes) {
    byte_reader in(bytes, byte_order::little, "this GIF");
    in.skip(6);
    gif_header gif = {};
    gif.width = in.u16();
    gif.height = in.u16();
    const uint8_t flags = in.u8();
    in.skip(2);
    gif.palette = take_palette(in, flags);
    gif.transparent = -1;
    for (;;) {
        const uint8_t kind = in.u8();
        if (kind == TRAILER) {
            throw bad_media("this GIF is broken: it has no picture");
        }
        if (kind == EXTENSION) {
            if (in.u8() == GRAPHIC_CONTROL) {
                byte_reader control = in;
                if (control.u8() == 4) {
                    const uint8_t how = control.u8();
                    control.skip(2);
                    gif.transparent = how & 1 ? control.u8() : -1;
                }
            }
            skip_blocks(in);
        } else if (kind == PICTURE) {
            break;
        } else {
            throw bad_media("this GIF is broken: there is nothing known at byte " + std::to_string(in.at() - 1));
        }
    }
    gif.left = in.u16();
    gif.top = in.u16();
    gif.frame_width = in.u16();
    gif.frame_height = in.u16();
    const uint8_t local = in.u8();
    gif.interlaced = (local & 0x40) != 0;
    const std::string_view own = take_palette(in, local);
    gif.palette = own.empty() ? gif.palette : own;
    gif.data_at = in.at();
    if (gif.palette.empty()) {
        throw bad_media("this GIF is broken: it has no colors");
    }
    if (gif.frame_width == 0 || gif.frame_height == 0) {
        throw bad_media("this GIF is broken: its first picture has no pixels");
    }
    gif.width = std::max(gif.width, gif.left + gif.frame_width);
    gif.height = std::max(gif.height, gif.top + gif.frame_height);
    return gif;
}

namespace {

// Codes of up to twelve bits out of blocks of up to 255 bytes.
class code_reader {
  public:
    explicit code_reader(byte_reader in) : in_(in) {}

    // -1: there are no more.
    int take(uint32_t n_bits) {
        while (held_ < n_bits) {
            if (in_block_ == 0) {
                in_block_ = in_.u8();
                if (in_block_ == 0) {
                    return -1;
                }
            }
            bits_ |= uint32_t(in_.u8()) << held_;
            in_block_--;
            held_ += 8;
        }
        const uint32_t code = bits_ & ((1u << n_bits) - 1);
        bits_ >>= n_bits;
        held_ -= n_bits;
        return int(code);
    }

  private:
    byte_reader in_;
    uint32_t in_block_ = 0;
    uint32_t bits_ = 0;
    uint32_t held_ = 0;
};

// Colors in the order of the file, laid where they belong.
class canvas {
  public:
    explicit canvas(const gif_header & gif) : gif_(gif), colors_(size_t(gif.frame_width) * gif.frame_height) {}

    bool full() const { return y_ >= gif_.frame_height; }

    void put(uint8_t color) {
        colors_[size_t(y_) * gif_.frame_width + x_] = color;
        if (++x_ == gif_.frame_width) {
            x_ = 0;
            next_row();
        }
    }
    void show(shown_rows & out) const {
        std::vector<uint8_t> row(size_t(gif_.width) * 3);
        for (uint32_t y = 0; y < gif_.height; y++) {
            std::fill(row.begin(), row.end(), uint8_t(0xFF));
            if (y >= gif_.top && y - gif_.top < gif_.frame_height) {
                draw(&colors_[size_t(y - gif_.top) * gif_.frame_width], &row[size_t(gif_.left) * 3]);
            }
            out.put(row.data());
        }
    }

  private:
    void next_row() {
        static constexpr uint32_t FIRST[] = {0, 4, 2, 1};
        static constexpr uint32_t STEP[] = {8, 8, 4, 2};
        if (!gif_.interlaced) {
            y_++;
            return;
        }
        y_ += STEP[pass_];
        while (y_ >= gif_.frame_height && pass_ < 3) {
            y_ = FIRST[++pass_];
        }
    }

    void draw(const uint8_t * colors, uint8_t * pixel) const {
        for (uint32_t x = 0; x < gif_.frame_width; x++, pixel += 3) {
            const size_t at = size_t(colors[x]) * 3;
            for (size_t i = 0; i < 3 && int(colors[x]) != gif_.transparent; i++) {
                pixel[i] = at + i < gif_.palette.size() ? uint8_t(gif_.palette[at + i]) : 0;
            }
        }
    }

    const gif_header & gif_;
    std::vector<uint8_t> colors_;
    uint32_t x_ = 0;
    uint32_t y_ = 0;
    size_t pass_ = 0;
};

}  // namespace

void decode_gif(std::string_view bytes, const gif_header & gif, shown_rows & out) {
    byte_reader in(bytes, byte_order::little, "this GIF");
    in.go_to(gif.data_at);
    const uint32_t color_bits = in.u8();
    if (color_bits < 1 || color_bits > 8) {
        throw bad_media("this GIF is broken: its colors have " + std::to_string(color_bits) + " bits");
    }
    const uint32_t clear = 1u << color_bits;
    struct entry {
        uint16_t before;
        uint8_t color, first;
    };
    std::array<entry, MOST_CODES> codes = {};
    for (uint32_t i = 0; i < clear; i++) {
        codes[i] = {0, uint8_t(i), uint8_t(i)};
    }
    code_reader coded(in);
    canvas picture(gif);
    std::array<uint8_t, MOST_CODES> run; // of one code, from its end
    uint32_t n_bits = color_bits + 1;
    uint32_t n_codes = clear + 2;
    int previous = -1;
    while (!picture.full()) {
        const int code = coded.take(n_bits);
        if (code < 0 || code == int(clear + 1)) {
            throw bad_media("this GIF is cut off: its first picture ends before its last pixel");
        }
        if (code == int(clear)) {
            n_bits = color_bits + 1;
            n_codes = clear + 2;
            previous = -1;
            continue;
        }
        if (code > int(n_codes) || (previous < 0 && code >= int(clear)) || (code == int(n_codes) && n_codes == MOST_CODES)) {
            throw bad_media("this GIF is damaged: its pixels are not coded as they should be");
        }
        if (previous >= 0 && n_codes < MOST_CODES) { // what is added is the previous run and the first color of this one
            const uint8_t first = code == int(n_codes) ? codes[size_t(previous)].first : codes[size_t(code)].first;
            codes[n_codes++] = {uint16_t(previous), first, codes[size_t(previous)].first};
            if (n_codes == 1u << n_bits && n_bits < 12) {
                n_bits++;
            }
        }
        size_t length = 0;
        for (size_t at = size_t(code);; at = codes[at].before) {
            run[length++] = codes[at].color;
            if (at < clear || length == run.size()) {
                break;
            }
        }
        while (length > 0 && !picture.full()) {
            picture.put(run[--length]);
        }
        previous = code;
    }
    picture.show(out);
}

}  // namespace lm
