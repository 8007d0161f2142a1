#include "bmp.h"

#include "blend.h"
#include "byte_reader.h"

#include <algorithm>

namespace lm {

static constexpr uint32_t FILE_HEADER = 14, CORE_HEADER = 12, INFO_HEADER = 40, MASKS_IN_HEADER = 52;
static constexpr uint32_t RLE8 = 1, RLE4 = 2, BITFIELDS = 3, JPEG = 4, PNG = 5, ALPHA_BITFIELDS = 6;

static void check_kind(uint32_t compression, uint32_t bits) {
    if (compression == RLE8 || compression == RLE4) {
        throw bad_media("this BMP is run-length coded, which is not read; send it uncompressed, or as PNG");
    }
    if (compression == JPEG || compression == PNG) {
        throw bad_media("this BMP holds a JPEG or PNG, which is not read; send that itself");
    }
    const bool masks = compression == BITFIELDS || compression == ALPHA_BITFIELDS;
    if (compression != 0 && !masks) {
        throw bad_media("this BMP is broken: there is no compression " + std::to_string(compression));
    }
    const bool deep = bits == 16 || bits == 32;
    if (!(deep || (!masks && (bits == 1 || bits == 2 || bits == 4 || bits == 8 || bits == 24)))) {
        throw bad_media("this BMP has " + std::to_string(bits) + " bits per pixel, which is not read");
    }
}

static bool is_one_run(uint32_t mask) {
    const uint32_t lowest = mask & (~mask + 1);
    return mask != 0 && (mask & (mask + lowest)) == 0;
}

static void check_masks(const std::array<uint32_t, 4> & masks, uint32_t bits) {
    uint32_t all = 0;
    for (size_t i = 0; i < masks.size(); i++) {
        const bool missing = i == 3 && masks[i] == 0;
        if ((!missing && !is_one_run(masks[i])) || (all & masks[i]) != 0 || (bits == 16 && masks[i] > 0xFFFF)) {
            throw bad_media("this BMP is broken: its color masks make no sense");
        }
        all |= masks[i];
    }
}

bmp_header read_bmp(std::string_view bytes) {
    byte_reader in(bytes, byte_order::little, "this BMP");
    in.skip(10);
    bmp_header bmp = {};
    bmp.data_at = in.u32();
    const uint32_t size = in.u32();
    const bool core = size == CORE_HEADER;
    if (!core && (size < INFO_HEADER || size > 124)) {
        throw bad_media("this BMP has a header of " + std::to_string(size) + " bytes, which is not read");
    }
    const int64_t width = core ? in.u16() : int32_t(in.u32());
    const int64_t height = core ? in.u16() : int32_t(in.u32());
    in.skip(2);
    bmp.bits = in.u16();
    const uint32_t compression = core ? 0 : in.u32();
    if (width < 0) {
        throw bad_media("this BMP is broken: its width is " + std::to_string(width));
    }
    check_kind(compression, bmp.bits);
    bmp.width = uint32_t(width);
    bmp.height = uint32_t(height < 0 ? -height : height);
    bmp.top_down = height < 0;
    uint32_t n_colors = 0;
    if (!core) {
        in.skip(12);
        n_colors = in.u32();
        in.skip(4);
    }
    uint64_t header_end = FILE_HEADER + uint64_t(size);
    if (compression == BITFIELDS || compression == ALPHA_BITFIELDS) { // in a larger header, or behind a small one
        const bool with_alpha = compression == ALPHA_BITFIELDS || size > MASKS_IN_HEADER;
        for (size_t i = 0; i < (with_alpha ? 4u : 3u); i++) {
            bmp.masks[i] = in.u32();
        }
        header_end += size == INFO_HEADER ? (with_alpha ? 16 : 12) : 0;
        check_masks(bmp.masks, bmp.bits);
    } else if (bmp.bits == 16) {
        bmp.masks = {31u << 10, 31u << 5, 31u, 0};
    } else if (bmp.bits == 32) {
        bmp.masks = {0xFFu << 16, 0xFFu << 8, 0xFFu, 0xFFu << 24};
    }
    if (bmp.bits <= 8) {
        const uint32_t most = 1u << bmp.bits;
        bmp.entry_bytes = core ? 3 : 4;
        in.go_to(header_end);
        const uint32_t n = n_colors == 0 || n_colors > most ? most : n_colors;
        bmp.palette = in.take(size_t(n) * bmp.entry_bytes);
        header_end = in.at();
    }
    if (bmp.data_at < header_end) {
        throw bad_media("this BMP is broken: its pixels begin within its header");
    }
    bmp.row_bytes = (uint64_t(bmp.width) * bmp.bits + 31) / 32 * 4;
    const uint64_t last_row = (uint64_t(bmp.width) * bmp.bits + 7) / 8;
    if (bmp.height > 0 && bmp.data_at + bmp.row_bytes * (bmp.height - 1) + last_row > bytes.size()) {
        throw bad_media("this BMP is cut off: it has " + std::to_string(bytes.size()) + " bytes, and its " + std::to_string(bmp.width) +
                        " x " + std::to_string(bmp.height) + " pixels need more");
    }
    return bmp;
}

namespace {

// One of the four values in a pixel, as eight bits.
class field {
  public:
    explicit field(uint32_t mask) : mask_(mask) {
        while (mask_ != 0 && (mask_ >> shift_ & 1) == 0) {
            shift_++;
        }
    }
    bool exists() const { return mask_ != 0; }
    uint8_t of(uint32_t pixel) const {
        const uint64_t most = mask_ >> shift_;
        return most == 0 ? 255 : uint8_t((uint64_t(pixel & mask_) >> shift_) * 255 / most);
    }

  private:
    uint32_t mask_;
    uint32_t shift_ = 0;
};

}  // namespace

static uint32_t pixel_at(const uint8_t * row, uint32_t x, uint32_t bits) {
    if (bits < 8) {
        const uint32_t at = x * bits;
        return row[at / 8] >> (8 - bits - at % 8) & ((1u << bits) - 1);
    }
    uint32_t value = 0;
    for (uint32_t i = 0; i < bits / 8; i++) {
        value |= uint32_t(row[size_t(x) * (bits / 8) + i]) << 8 * i;
    }
    return value;
}

void decode_bmp(std::string_view bytes, const bmp_header & bmp, shown_rows & shown) {
    std::vector<uint8_t> rgb(size_t(bmp.width) * 3); // of a row
    const std::array<field, 4> fields = {field(bmp.masks[0]), field(bmp.masks[1]), field(bmp.masks[2]), field(bmp.masks[3])};
    const auto row_at = [&](uint32_t y) {
        const uint64_t stored = bmp.top_down ? y : bmp.height - 1 - y;
        return reinterpret_cast<const uint8_t *>(bytes.data()) + bmp.data_at + stored * bmp.row_bytes;
    };
    bool opaque = true; // many write zeros where alpha would be
    if (bmp.masks[3] != 0) {
        for (uint32_t y = 0; y < bmp.height && opaque; y++) {
            for (uint32_t x = 0; x < bmp.width && opaque; x++) {
                opaque = (pixel_at(row_at(y), x, bmp.bits) & bmp.masks[3]) == 0;
            }
        }
    }
    for (uint32_t y = 0; y < bmp.height; y++) {
        const uint8_t * row = row_at(y);
        uint8_t * out = rgb.data();
        for (uint32_t x = 0; x < bmp.width; x++, out += 3) {
            const uint32_t pixel = pixel_at(row, x, bmp.bits);
            if (bmp.bits <= 8) {
                const size_t at = size_t(pixel) * bmp.entry_bytes;
                for (size_t i = 0; i < 3; i++) {
                    out[i] = at + 2 < bmp.palette.size() ? uint8_t(bmp.palette[at + 2 - i]) : 0;
                }
            } else if (bmp.bits == 24) {
                out[0] = uint8_t(pixel >> 16);
                out[1] = uint8_t(pixel >> 8);
                out[2] = uint8_t(pixel);
            } else {
                const uint8_t alpha = opaque ? 255 : fields[3].of(pixel);
                for (size_t i = 0; i < 3; i++) {
                    out[i] = on_white(fields[i].of(pixel), alpha);
                }
            }
        }
        shown.put(rgb.data());
    }
}

}  // namespace lm
