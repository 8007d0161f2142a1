#include "png.h"

#include "blend.h"
#include "byte_reader.h"
#include "exif.h"
#include "inflate.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>
#include <vector>

namespace lm {

static constexpr size_t SIGNATURE_BYTES = 8;
static constexpr uint32_t ANCILLARY = 0x20000000;
// Some files hold a little more than their pixels; a bomb holds gigabytes.
static constexpr size_t MOST_BYTES_BEHIND = 64 << 10;
static constexpr uint64_t UNPACKER_BYTES = 256 << 10;

static constexpr uint32_t type_of(const char (&name)[5]) {
    return uint32_t(uint8_t(name[0])) << 24 | uint32_t(uint8_t(name[1])) << 16 | uint32_t(uint8_t(name[2])) << 8 | uint8_t(name[3]);
}

static std::string name_of(uint32_t type) {
    std::string name;
    for (int shift = 24; shift >= 0; shift -= 8) {
        const char c = char(type >> shift);
        name += (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ? c : '?';
    }
    return name;
}

// Eight bytes at a time: a file of megabytes takes milliseconds.
static uint32_t crc32(std::string_view bytes) {
    static const auto tables = [] {
        std::array<std::array<uint32_t, 256>, 8> all;
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++) {
                value = value & 1 ? 0xEDB88320 ^ value >> 1 : value >> 1;
            }
            all[0][i] = value;
        }
        for (uint32_t i = 0; i < 256; i++) {
            for (size_t k = 1; k < all.size(); k++) {
                all[k][i] = all[k - 1][i] >> 8 ^ all[0][all[k - 1][i] & 0xFF];
            }
        }
        return all;
    }();
    const auto * at = reinterpret_cast<const uint8_t *>(bytes.data());
    size_t left = bytes.size();
    uint32_t crc = 0xFFFFFFFF;
    for (; left >= 8; left -= 8, at += 8) {
        crc = tables[7][(crc ^ at[0]) & 0xFF] ^ tables[6][(crc >> 8 ^ at[1]) & 0xFF] ^ tables[5][(crc >> 16 ^ at[2]) & 0xFF] ^
              tables[4][crc >> 24 ^ at[3]] ^ tables[3][at[4]] ^ tables[2][at[5]] ^ tables[1][at[6]] ^ tables[0][at[7]];
    }
    for (; left > 0; left--, at++) {
        crc = crc >> 8 ^ tables[0][(crc ^ *at) & 0xFF];
    }
    return ~crc;
}

namespace {

struct png_facts {
    uint32_t width = 0;
    uint32_t height = 0;
    uint32_t depth = 0;
    uint32_t color = 0;
    bool interlaced = false;
    std::vector<std::string_view> data; // of all IDAT chunks that hold any
    std::string_view palette;           // of three bytes each
    std::string_view transparency;      // of the palette's colors, or the one color that is clear
    int turn = 1;

    bool has_palette() const { return color == 3; }
    uint32_t channels() const { return has_palette() ? 1 : (color & 2 ? 3 : 1) + (color & 4 ? 1 : 0); }
    uint32_t pixel_bits() const { return channels() * depth; }
};

}  // namespace

static void read_head(byte_reader in, uint32_t length, png_facts & png) {
    if (length != 13) {
        throw bad_media("this PNG is broken: its header chunk has " + std::to_string(length) + " bytes instead of 13");
    }
    png.width = in.u32();
    png.height = in.u32();
    png.depth = in.u8();
    png.color = in.u8();
    const uint8_t compression = in.u8();
    const uint8_t filter = in.u8();
    const uint8_t interlacing = in.u8();
    const bool power = png.depth != 0 && png.depth <= 16 && (png.depth & (png.depth - 1)) == 0;
    const bool known = png.color == 0   ? power
                       : png.color == 3 ? power && png.depth <= 8
                                        : (png.color == 2 || png.color == 4 || png.color == 6) && (png.depth == 8 || png.depth == 16);
    if (!known) {
        throw bad_media("this PNG is broken: there is no color type " + std::to_string(png.color) + " of " + std::to_string(png.depth) +
                        " bits");
    }
    if (compression != 0 || filter != 0 || interlacing > 1) {
        throw bad_media("this PNG is broken: it names a compression, filter or interlacing method that does not exist");
    }
    png.interlaced = interlacing == 1;
}

static void note_chunk(uint32_t type, uint32_t length, byte_reader in, png_facts & png) {
    switch (type) {
        case type_of("PLTE"):
            if (length == 0 || length > 3 * 256 || length % 3 != 0) {
                throw bad_media("this PNG is broken: its palette has " + std::to_string(length) + " bytes");
            }
            png.palette = in.take(length);
            break;
        case type_of("tRNS"):
            if (!png.data.empty() ||
                (png.has_palette() ? length > png.palette.size() / 3 : (png.color & 4) != 0 || length != 2 * png.channels())) {
                throw bad_media("this PNG is broken: its transparency does not fit its colors");
            }
            png.transparency = in.take(length);
            break;
        case type_of("IDAT"):
            if (png.has_palette() && png.palette.empty()) {
                throw bad_media("this PNG is broken: its palette is missing");
            }
            if (length > 0) {
                png.data.push_back(in.take(length));
            }
            break;
        case type_of("eXIf"):
            png.turn = exif_turn(in.take(length));
            break;
        case type_of("CgBI"):
            throw bad_media("this is a PNG of Apple's own kind, as in apps; send an ordinary PNG");
        default:
            if ((type & ANCILLARY) == 0) {
                throw bad_media("this PNG is broken: it has a chunk " + name_of(type) + " that nobody knows");
            }
    }
}

static png_facts read_chunks(std::string_view bytes, bool whole) {
    byte_reader in(bytes, byte_order::big, "this PNG");
    in.skip(SIGNATURE_BYTES);
    png_facts png;
    for (bool first = true;; first = false) {
        const uint32_t length = in.u32();
        const byte_reader named = in;
        const uint32_t type = in.u32();
        const byte_reader content = in;
        in.skip(length);
        const uint32_t sum = in.u32();
        if (whole && (type & ANCILLARY) == 0 && crc32(byte_reader(named).take(4 + size_t(length))) != sum) {
            throw bad_media("this PNG is damaged: the checksum of its chunk " + name_of(type) + " does not match");
        }
        if (first != (type == type_of("IHDR")) && type != type_of("CgBI")) {
            throw bad_media(first ? "this PNG is broken: it does not begin with its header" : "this PNG is broken: it has two headers");
        }
        if (first && type == type_of("IHDR")) {
            read_head(content, length, png);
        } else if (type == type_of("IEND")) {
            break;
        } else {
            note_chunk(type, length, content, png);
        }
    }
    if (png.data.empty()) {
        throw bad_media("this PNG is broken: it has no pixels");
    }
    return png;
}

png_header read_png(std::string_view bytes, bool whole) {
    const png_facts png = read_chunks(bytes, whole);
    return {png.width, png.height, png.turn, UNPACKER_BYTES + (png.interlaced ? uint64_t(png.width) * png.height * 3 : 0)};
}

// ---- pixels -------------------------------------------------------------------------------------------------------------

namespace {

// The pixels that a pass goes over.
struct pass {
    uint32_t left, top, step_x, step_y;
};

constexpr pass WHOLE[] = {{0, 0, 1, 1}};
constexpr pass INTERLACED[] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4}, {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};

// Makes pixels of the bytes of rows, as they come.
class row_reader {
  public:
    row_reader(const png_facts & png, shown_rows & out) : png_(png), out_(out), line_(size_t(png.width) * 3) {
        pass_ = png.interlaced ? std::begin(INTERLACED) : std::begin(WHOLE);
        end_ = png.interlaced ? std::end(INTERLACED) : std::end(WHOLE);
        bytes_back_ = std::max<size_t>(1, png.pixel_bits() / 8);
        if (png.interlaced) {
            all_.resize(size_t(png.width) * png.height * 3);
        }
        const auto * clear = reinterpret_cast<const uint8_t *>(png.transparency.data());
        if (!png.has_palette() && !png.transparency.empty()) {
            has_clear_ = true;
            for (size_t i = 0; i < png.channels(); i++) {
                clear_[i] = uint32_t(clear[2 * i] << 8 | clear[2 * i + 1]) & ((1u << png.depth) - 1);
            }
        }
        make_palette();
        begin_pass();
    }

    void take(const uint8_t * bytes, size_t n) {
        while (n > 0 && pass_ != end_) {
            const size_t more = std::min(n, row_.size() - filled_);
            std::copy_n(bytes, more, row_.begin() + ptrdiff_t(filled_));
            filled_ += more;
            bytes += more;
            n -= more;
            if (filled_ == row_.size()) {
                end_row();
            }
        }
        if ((behind_ += n) > MOST_BYTES_BEHIND) {
            throw bad_media("this PNG is broken: it holds more than its pixels");
        }
    }

    void end() {
        if (pass_ != end_) {
            throw bad_media("this PNG is damaged: it holds less than its pixels");
        }
        for (uint32_t y = 0; y < png_.height && png_.interlaced; y++) {
            out_.put(&all_[size_t(y) * png_.width * 3]);
        }
    }

  private:
    // Those that are not there are black.
    void make_palette() {
        for (size_t i = 0; 3 * i < png_.palette.size(); i++) {
            const uint8_t alpha = png_.has_palette() && i < png_.transparency.size() ? uint8_t(png_.transparency[i]) : 255;
            for (size_t c = 0; c < 3; c++) {
                colors_[3 * i + c] = on_white(uint8_t(png_.palette[3 * i + c]), alpha);
            }
        }
    }

    void begin_pass() {
        for (; pass_ != end_; pass_++) {
            across_ = (png_.width + pass_->step_x - 1 - std::min(pass_->left, png_.width + pass_->step_x - 1)) / pass_->step_x;
            y_ = pass_->top;
            if (across_ > 0 && y_ < png_.height) {
                row_.assign(1 + (size_t(across_) * png_.pixel_bits() + 7) / 8, 0);
                above_.assign(row_.size(), 0);
                filled_ = 0;
                return;
            }
        }
    }

    void end_row() {
        undo_filter();
        read_pixels();
        if (png_.interlaced) {
            const uint8_t * from = line_.data();
            uint8_t * to = &all_[(size_t(y_) * png_.width + pass_->left) * 3];
            for (uint32_t x = 0; x < across_; x++, from += 3, to += size_t(pass_->step_x) * 3) {
                std::copy_n(from, 3, to);
            }
        } else {
            out_.put(line_.data());
        }
        row_.swap(above_);
        filled_ = 0;
        y_ += pass_->step_y;
        if (y_ >= png_.height) {
            pass_++;
            begin_pass();
        }
    }

    // A byte is told as its difference from what the bytes to its left, above it, or both lead one to expect.
    void undo_filter() {
        const size_t n = row_.size() - 1;
        const size_t back = bytes_back_;
        uint8_t * now = row_.data() + 1;
        const uint8_t * above = above_.data() + 1;
        switch (row_[0]) {
            case 0: break;
            case 1:
                for (size_t i = back; i < n; i++) {
                    now[i] = uint8_t(now[i] + now[i - back]);
                }
                break;
            case 2:
                for (size_t i = 0; i < n; i++) {
                    now[i] = uint8_t(now[i] + above[i]);
                }
                break;
            case 3:
                for (size_t i = 0; i < n; i++) {
                    now[i] = uint8_t(now[i] + ((i < back ? 0 : now[i - back]) + above[i]) / 2);
                }
                break;
            case 4:
                for (size_t i = 0; i < n; i++) {
                    const int left = i < back ? 0 : now[i - back];
                    const int corner = i < back ? 0 : above[i - back];
                    const int by_left = std::abs(above[i] - corner);
                    const int by_above = std::abs(left - corner);
                    const int by_corner = std::abs(left + above[i] - 2 * corner);
                    const int nearest = by_left <= by_above && by_left <= by_corner ? left : by_above <= by_corner ? above[i] : corner;
                    now[i] = uint8_t(now[i] + nearest);
                }
                break;
            default: throw bad_media("this PNG is damaged: a row of it is filtered in no way that there is");
        }
    }

    // A value as the file has it.
    uint32_t value_at(size_t i) const {
        const uint8_t * bytes = row_.data() + 1;
        switch (png_.depth) {
            case 8: return bytes[i];
            case 16: return uint32_t(bytes[2 * i] << 8 | bytes[2 * i + 1]);
            default: {
                const size_t bit = i * png_.depth;
                return uint32_t(bytes[bit / 8] >> (8 - png_.depth - bit % 8)) & ((1u << png_.depth) - 1);
            }
        }
    }
    uint8_t in_eight_bits(uint32_t value) const {
        return uint8_t(png_.depth == 16 ? value >> 8 : value * (255 / ((1u << std::min(png_.depth, 8u)) - 1)));
    }

    void read_pixels() {
        uint8_t * to = line_.data();
        if (png_.color == 2 && png_.depth == 8 && !has_clear_) {
            std::copy_n(row_.begin() + 1, size_t(across_) * 3, to);
            return;
        }
        if (png_.has_palette()) {
            for (uint32_t x = 0; x < across_; x++, to += 3) {
                std::copy_n(&colors_[3 * value_at(x)], 3, to);
            }
            return;
        }
        if (png_.color == 6 && png_.depth == 8) {
            const uint8_t * from = row_.data() + 1;
            for (uint32_t x = 0; x < across_; x++, from += 4, to += 3) {
                for (size_t i = 0; i < 3; i++) {
                    to[i] = on_white(from[i], from[3]);
                }
            }
            return;
        }
        const uint32_t channels = png_.channels();
        const uint32_t colored = png_.color & 2 ? 3 : 1;
        for (uint32_t x = 0; x < across_; x++, to += 3) {
            uint32_t values[4];
            bool clear = has_clear_;
            for (uint32_t i = 0; i < channels; i++) {
                values[i] = value_at(size_t(x) * channels + i);
                clear = clear && values[i] == clear_[i];
            }
            const uint8_t alpha = clear ? 0 : png_.color & 4 ? in_eight_bits(values[channels - 1]) : 255;
            for (uint32_t i = 0; i < 3; i++) {
                to[i] = on_white(in_eight_bits(values[std::min(i, colored - 1)]), alpha);
            }
        }
    }

    const png_facts & png_;
    shown_rows & out_;
    const pass * pass_;
    const pass * end_;
    uint32_t across_ = 0; // pixels in a row of the pass
    uint32_t y_ = 0;      // where its row is shown
    size_t bytes_back_;   // to the pixel on the left
    std::vector<uint8_t> row_, above_; // each behind the byte that names its filter
    size_t filled_ = 0;
    size_t behind_ = 0;
    std::vector<uint8_t> line_;
    std::vector<uint8_t> all_; // of an interlaced one
    std::array<uint8_t, 3 * 256> colors_ = {};
    std::array<uint32_t, 4> clear_ = {};
    bool has_clear_ = false;
};

}  // namespace

void decode_png(std::string_view bytes, shown_rows & out) {
    const png_facts png = read_chunks(bytes, false);
    row_reader rows(png, out);
    inflate(png.data, "this PNG", [&](const uint8_t * part, size_t n) { rows.take(part, n); });
    rows.end();
}

}  // namespace lm
