#include "jpeg.h"

#include "byte_reader.h"
#include "exif.h"
#include "stb_decoder.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

namespace lm {

using namespace std::string_view_literals;

static constexpr uint64_t STB_SLACK = 128 << 10; // its tables and lines

// A progressive picture is gone over once for each of its scans, and a scan of a few bytes goes over all of it: ordinary ones
// have 10 to 14. About a second's work.
static constexpr uint64_t MOST_SCANNED_PIXELS = 1ull << 29;

static constexpr uint8_t SOF0 = 0xC0, SOF2 = 0xC2, DHT = 0xC4, JPG = 0xC8, DAC = 0xCC, RST0 = 0xD0, RST7 = 0xD7, SOI = 0xD8, EOI = 0xD9,
                         SOS = 0xDA, DNL = 0xDC, APP0 = 0xE0, APP1 = 0xE1, APP14 = 0xEE;

namespace {

struct component {
    uint32_t h, v; // how densely it is sampled
};

struct frame_facts {
    uint32_t width = 0;
    uint32_t height = 0;
    bool progressive = false;
    std::vector<component> components;
};

struct jpeg_facts {
    std::optional<frame_facts> frame;
    std::optional<int> adobe_transform;
    std::optional<int> turn;
    uint64_t scans = 0;
};

}  // namespace

static const char * unserved_process(uint8_t marker) {
    return marker == 0xC3 || marker == 0xC7           ? "lossless"
           : marker == 0xC5 || marker == 0xC6         ? "hierarchical"
           : marker == 0xCB || marker == 0xCF         ? "lossless and arithmetically coded"
                                                      : "arithmetically coded";
}

static frame_facts read_frame(uint8_t marker, byte_reader in) {
    if (marker > SOF2) {
        throw bad_media(std::string("this JPEG is ") + unserved_process(marker) + ", which is not read; send a baseline or progressive one");
    }
    frame_facts frame;
    frame.progressive = marker == SOF2;
    const uint8_t bits = in.u8();
    frame.height = in.u16();
    frame.width = in.u16();
    const uint8_t n = in.u8();
    if (bits != 8) {
        throw bad_media("this JPEG has " + std::to_string(bits) + " bits per sample; 8 are read");
    }
    if (frame.width > 0 && frame.height == 0) {
        throw bad_media("this JPEG tells its height behind its pixels, which is not read");
    }
    if (n != 1 && n != 3 && n != 4) {
        throw bad_media("this JPEG has " + std::to_string(n) + " color components; 1, 3 and 4 are read");
    }
    for (uint8_t i = 0; i < n; i++) {
        in.skip(1);
        const uint8_t sampling = in.u8();
        in.skip(1);
        frame.components.push_back({uint32_t(sampling >> 4), uint32_t(sampling & 15)});
    }
    uint32_t most_h = 1;
    uint32_t most_v = 1;
    for (const component & c : frame.components) {
        if (c.h < 1 || c.h > 4 || c.v < 1 || c.v > 4) {
            throw bad_media("this JPEG is broken: its colors are sampled at an impossible rate");
        }
        most_h = std::max(most_h, c.h);
        most_v = std::max(most_v, c.v);
    }
    for (const component & c : frame.components) {
        if (most_h % c.h != 0 || most_v % c.v != 0) {
            throw bad_media("this JPEG's colors are sampled at fractional rates, which is not read");
        }
    }
    return frame;
}

namespace {

struct memory_use {
    uint64_t touched, allocated;
};

}  // namespace

// What stb_image holds at once: planes of whole blocks, or the coefficients of a progressive file and two rows of its blocks.
static memory_use decoding_bytes(const frame_facts & frame) {
    uint32_t most_h = 1;
    uint32_t most_v = 1;
    for (const component & c : frame.components) {
        most_h = std::max(most_h, c.h);
        most_v = std::max(most_v, c.v);
    }
    const uint64_t across = (frame.width + most_h * 8 - 1) / (most_h * 8);
    const uint64_t down = (frame.height + most_v * 8 - 1) / (most_v * 8);
    memory_use use = {STB_SLACK, STB_SLACK};
    for (const component & c : frame.components) {
        const uint64_t row = across * c.h * 8;
        const uint64_t plane = row * down * c.v * 8;
        use.touched += frame.width + (frame.progressive ? 2 * plane + std::min(plane, 16 * row) : plane);
        use.allocated += frame.width + (frame.progressive ? 3 * plane : plane);
    }
    return use;
}

// Behind the marker of a segment with a length.
static std::string_view take_segment(byte_reader & in) {
    const uint16_t length = in.u16();
    if (length < 2) {
        throw bad_media("this JPEG is broken: one of its segments has " + std::to_string(length) + " bytes");
    }
    return in.take(length - 2u);
}

static void note_segment(uint8_t marker, std::string_view content, jpeg_facts & jpeg) {
    const bool is_frame = marker >= SOF0 && marker <= 0xCF && marker != DHT && marker != JPG && marker != DAC;
    if (is_frame) {
        if (jpeg.frame) {
            throw bad_media("this JPEG is broken: it has two headers");
        }
        jpeg.frame = read_frame(marker, byte_reader(content, byte_order::big, "the header of this JPEG"));
    } else if (marker == APP1 && content.substr(0, 6) == "Exif\0\0"sv && !jpeg.turn) {
        jpeg.turn = exif_turn(content.substr(6));
    } else if (marker == APP14 && content.size() >= 12 && content.substr(0, 5) == "Adobe"sv) {
        jpeg.adobe_transform = uint8_t(content[11]);
    } else if (marker == DNL) {
        throw bad_media("this JPEG tells its height behind its pixels, which is not read");
    }
}

static void note_scan(jpeg_facts & jpeg) {
    if (!jpeg.frame) {
        throw bad_media("this JPEG is broken: its pixels come before its header");
    }
    jpeg.scans++;
    const uint64_t pixels = uint64_t(jpeg.frame->width) * jpeg.frame->height;
    if (jpeg.scans > 1 && jpeg.scans * std::max<uint64_t>(pixels, 1 << 16) > MOST_SCANNED_PIXELS) {
        throw bad_media("this JPEG goes over its " + std::to_string(pixels) + " pixels more than " +
                        std::to_string(jpeg.scans - 1) + " times");
    }
}

// To the marker that ends the coded data.
static void skip_coded(std::string_view bytes, byte_reader & in) {
    for (;;) {
        const auto * begin = bytes.data() + in.at();
        const auto * found = static_cast<const char *>(in.left() == 0 ? nullptr : memchr(begin, 0xFF, in.left()));
        if (found == nullptr || size_t(found - bytes.data()) + 1 >= bytes.size()) {
            throw bad_media("this JPEG is cut off: the end of its pixels is missing");
        }
        const uint8_t next = uint8_t(found[1]);
        const bool in_data = next == 0 || (next >= RST0 && next <= RST7);
        if (next != 0xFF && !in_data) {
            in.go_to(size_t(found - bytes.data()));
            return;
        }
        in.go_to(size_t(found - bytes.data()) + (in_data ? 2 : 1));
    }
}

// Of markers any number of fill bytes may stand before.
static uint8_t take_marker(byte_reader & in) {
    if (in.u8() != 0xFF) {
        throw bad_media("this JPEG is broken: there is no marker behind byte " + std::to_string(in.at() - 1));
    }
    uint8_t marker = in.u8();
    while (marker == 0xFF) {
        marker = in.u8();
    }
    return marker;
}

static void check_colors(const jpeg_facts & jpeg) {
    const bool four = jpeg.frame->components.size() == 4;
    if (four && (!jpeg.adobe_transform || (*jpeg.adobe_transform != 0 && *jpeg.adobe_transform != 2))) {
        throw bad_media("this JPEG has four color components (CMYK) and does not say how they are meant; send it as RGB");
    }
}

jpeg_header read_jpeg(std::string_view bytes, bool whole) {
    byte_reader in(bytes, byte_order::big, "this JPEG");
    in.skip(2); // SOI
    jpeg_facts jpeg;
    for (;;) {
        const uint8_t marker = take_marker(in);
        if (marker == EOI) {
            break;
        }
        if (marker < SOF0 || marker == SOI || (marker >= RST0 && marker <= RST7)) {
            throw bad_media("this JPEG is broken: there is a misplaced marker before byte " + std::to_string(in.at()));
        }
        const std::string_view content = take_segment(in);
        if (marker != SOS) {
            note_segment(marker, content, jpeg);
            continue;
        }
        note_scan(jpeg);
        if (!whole) {
            break;
        }
        skip_coded(bytes, in);
    }
    if (!jpeg.frame || jpeg.scans == 0) {
        throw bad_media("this JPEG is broken: it has no pixels");
    }
    check_colors(jpeg);
    const memory_use use = decoding_bytes(*jpeg.frame);
    return {jpeg.frame->width, jpeg.frame->height, jpeg.turn.value_or(1), use.touched, use.allocated};
}

void decode_jpeg(std::string_view bytes, shown_rows & out) {
    const jpeg_header jpeg = read_jpeg(bytes, false);
    const stb_outcome outcome = stb_decode_jpeg(bytes, jpeg.width, jpeg.height, jpeg.allocated_bytes, [&](const uint8_t * row) { out.put(row); });
    if (!outcome.whole) {
        throw bad_media(outcome.failure[0] == 0 ? "this JPEG is broken: it holds more than its pixels, or others"
                                                : std::string("this JPEG is damaged: ") + outcome.failure);
    }
}

}  // namespace lm
