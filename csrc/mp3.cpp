#include "mp3.h"

#include "byte_reader.h"

#include <algorithm>

namespace lm {

using namespace std::string_view_literals;

namespace {

struct frame_head {
    uint32_t rate, channels, samples;
    size_t bytes;
};

}  // namespace

static frame_head read_frame(byte_reader in) {
    static constexpr uint16_t KBITS_1[] = {0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320};
    static constexpr uint16_t KBITS_2[] = {0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160};
    static constexpr uint32_t RATES[] = {44100, 48000, 32000};
    const size_t at = in.at();
    const uint32_t head = in.u32();
    const uint32_t version = head >> 19 & 3; // 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    const uint32_t layer = head >> 17 & 3;   // 1: layer III
    const uint32_t kbits_index = head >> 12 & 15;
    const uint32_t rate_index = head >> 10 & 3;
    if (head >> 21 != 0x7FF || version == 1 || layer == 0 || kbits_index == 15 || rate_index == 3) {
        throw bad_media("this MP3 is damaged: there is no frame at byte " + std::to_string(at));
    }
    if (layer != 1) {
        throw bad_media(std::string("this is MPEG sound of layer ") + (layer == 3 ? "I" : "II") + "; layer III (MP3) is read");
    }
    if (kbits_index == 0) {
        throw bad_media("this MP3 has frames of free size, which is not read");
    }
    frame_head frame;
    frame.rate = RATES[rate_index] >> (version == 3 ? 0 : version == 2 ? 1 : 2);
    frame.channels = (head >> 6 & 3) == 3 ? 1 : 2;
    frame.samples = version == 3 ? 1152 : 576;
    frame.bytes = frame.samples / 8 * 1000 * (version == 3 ? KBITS_1 : KBITS_2)[kbits_index] / frame.rate + (head >> 9 & 1);
    return frame;
}

// Tags that programs put ahead of a sound, and what some leave between.
static void skip_tags(std::string_view bytes, byte_reader & in) {
    while (bytes.substr(in.at(), 3) == "ID3"sv) {
        in.skip(5);
        const uint8_t flags = in.u8();
        size_t size = 0;
        for (int i = 0; i < 4; i++) {
            size = size << 7 | (in.u8() & 0x7Fu);
        }
        in.skip(size + (flags & 0x10 ? 10 : 0));
    }
    while (in.left() > 0 && bytes[in.at()] == 0) {
        in.skip(1);
    }
}

static bool is_tail(std::string_view rest) {
    for (const std::string_view tag : {"TAG"sv, "APETAGEX"sv, "LYRICSBEGIN"sv, "ID3"sv, "3DI"sv}) {
        if (rest.substr(0, tag.size()) == tag) {
            return true;
        }
    }
    return std::all_of(rest.begin(), rest.end(), [](char c) { return c == 0; });
}

mp3_header read_mp3(std::string_view bytes) {
    byte_reader in(bytes, byte_order::big, "this MP3");
    skip_tags(bytes, in);
    mp3_header mp3 = {};
    const size_t begin = in.at();
    while (mp3.frames == 0 || !is_tail(bytes.substr(in.at(), 256))) {
        const frame_head frame = read_frame(in);
        if (mp3.frames > 0 && (frame.rate != mp3.rate || frame.channels != mp3.channels)) {
            throw bad_media("this MP3 changes its rate or channels at byte " + std::to_string(in.at()) + ", which is not read");
        }
        mp3.rate = frame.rate;
        mp3.channels = frame.channels;
        mp3.frames += frame.samples;
        in.skip(frame.bytes);
    }
    mp3.data = bytes.substr(begin, in.at() - begin);
    return mp3;
}

}  // namespace lm
