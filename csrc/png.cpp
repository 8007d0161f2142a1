#include "png.h"

#include "byte_reader.h"
#include "exif.h"

#include <algorithm>
#include <array>
#include <string>

namespace lm {

static constexpr size_t SIGNATURE_BYTES = 8;
static constexpr uint32_t ANCILLARY = 0x20000000;
static constexpr uint64_t STB_SLACK = 64 << 10; // its small blocks

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
    uint64_t data_bytes = 0; // of all IDAT chunks
    uint32_t colors = 0;     // of the palette
    bool transparency = false;
    int turn = 1;

    bool has_palette() const { return color == 3; }
    uint64_t channels() const { return has_palette() ? 1 : (color & 2 ? 3 : 1) + (color & 4 ? 1 : 0); }
    bool alpha() const { return (color & 4) != 0 || transparency; }
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
            png.colors = length / 3;
            break;
        case type_of("tRNS"):
            if (png.data_bytes > 0 || (png.has_palette() ? length > png.colors : (png.color & 4) != 0 || length != 2 * png.channels())) {
                throw bad_media("this PNG is broken: its transparency does not fit its colors");
            }
            png.transparency = true;
            break;
        case type_of("IDAT"):
            if (png.has_palette() && png.colors == 0) {
                throw bad_media("this PNG is broken: its palette is missing");
            }
            png.data_bytes += length;
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

// What stb_image holds at once, in the order of its work: the compressed data, in a buffer that doubles; the bytes of the rows;
// the pixels of the file (of interlaced ones a pass, too); those in the form asked for.
static uint64_t decoding_bytes(const png_facts & png) {
    if (png.width == 0 || png.height == 0) {
        return 0;
    }
    const uint64_t pixels = uint64_t(png.width) * png.height;
    const uint64_t sample = png.depth == 16 ? 2 : 1;
    const uint64_t wanted = png.alpha() ? 4 : 3;
    const uint64_t guess = (uint64_t(png.width) * png.depth + 7) / 8 * png.height * png.channels() + png.height;
    const uint64_t rows = png.interlaced ? 2 * guess + 64 : guess;
    const uint64_t out = pixels * sample * (png.has_palette() ? 1 : wanted == 4 ? std::max<uint64_t>(png.channels() + png.transparency, 1)
                                                                               : png.channels());
    const uint64_t final_form = pixels * sample * wanted;
    const uint64_t compressed = std::max<uint64_t>(2 * png.data_bytes, 4096);
    return std::max({compressed + rows, rows + out + (png.interlaced ? out : 0), rows + out + (png.has_palette() ? final_form : 0),
                     out + final_form, final_form + (sample == 2 ? pixels * wanted : 0)}) +
           2 * (uint64_t(png.width) * sample * png.channels()) + STB_SLACK;
}

png_header read_png(std::string_view bytes, bool whole) {
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
    if (png.data_bytes == 0) {
        throw bad_media("this PNG is broken: it has no pixels");
    }
    return {png.width, png.height, png.alpha(), png.turn, decoding_bytes(png)};
}

}  // namespace lm
