#include "flac.h"

#include "byte_reader.h"

#include <array>

namespace lm {

static constexpr uint8_t STREAM_INFO = 0, LAST = 0x80;
static constexpr uint32_t STREAM_INFO_BYTES = 34;
static constexpr size_t LENGTH_AT = 13; // in it: 4 bits, and 4 bytes behind them

// Of the last frame: 65,535 samples of 8 channels that could not be compressed.
static constexpr size_t MOST_FRAME_BYTES = 65536 * 8 * 4;
static constexpr size_t MOST_HEAD_BYTES = 16;
// Chance makes what looks like the head of a frame once in 16 million bytes; whoever makes more does not mean it.
static constexpr int MOST_HEADS = 16;
static constexpr size_t TAG_BYTES = 128; // ID3v1, which some programs put behind any sound

// ---- the last frame -----------------------------------------------------------------------------------------------------

static uint8_t crc8(std::string_view bytes) {
    uint32_t crc = 0;
    for (const char byte : bytes) {
        crc ^= uint8_t(byte);
        for (int bit = 0; bit < 8; bit++) {
            crc = crc << 1 ^ ((crc & 0x80) != 0 ? 0x107 : 0);
        }
    }
    return uint8_t(crc);
}

static uint16_t crc16(std::string_view bytes) {
    uint16_t table[256];
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i << 8;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc << 1 ^ ((crc & 0x8000) != 0 ? 0x18005 : 0);
        }
        table[i] = uint16_t(crc);
    }
    uint16_t crc = 0;
    for (const char byte : bytes) {
        crc = uint16_t(crc << 8 ^ table[uint8_t(crc >> 8 ^ uint8_t(byte))]);
    }
    return crc;
}

// Of a number that is written as UTF-8 writes one, of up to 36 bits.
static uint64_t read_number(byte_reader & in) {
    const uint8_t first = in.u8();
    int n = 0;
    while (n < 7 && (first & 0x80 >> n) != 0) {
        n++;
    }
    uint64_t number = n == 0 ? first : first & (0x7F >> n);
    for (int i = 1; i < n; i++) {
        number = number << 6 | (in.u8() & 0x3F);
    }
    return number;
}

// Where the frame ends that begins with `bytes`, in samples from the beginning of the sound; 0: none begins so.
static uint64_t end_of_frame(const std::array<char, MOST_HEAD_BYTES> & bytes, uint16_t block) {
    byte_reader in({bytes.data(), bytes.size()}, byte_order::big, "this FLAC");
    const uint16_t sync = in.u16();
    const uint8_t sizes = in.u8();
    if ((sync & 0xFFFE) != 0xFFF8 || sizes >> 4 == 0) {
        return 0;
    }
    in.skip(1);
    const uint64_t number = read_number(in);
    const int size = sizes >> 4;
    const uint32_t n = size == 1   ? 192
                       : size < 6  ? 576u << (size - 2)
                       : size == 6 ? in.u8() + 1u
                       : size == 7 ? in.u16() + 1u
                                   : 256u << (size - 8);
    const int rate = sizes & 15;
    in.skip(rate == 12 ? 1 : rate == 13 || rate == 14 ? 2 : 0);
    const std::string_view head(bytes.data(), in.at());
    if (in.u8() != crc8(head)) {
        return 0;
    }
    const bool by_sample = (sync & 1) != 0;
    return number * (by_sample ? 1 : block) + n;
}

// What was written to a pipe tells no length; its last frame, which ends where the file does, tells where it stands.
static uint64_t length_by_last_frame(std::string_view data, uint16_t block) {
    if (data.size() > TAG_BYTES && data.substr(data.size() - TAG_BYTES, 3) == "TAG") {
        data.remove_suffix(TAG_BYTES);
    }
    size_t at = data.size();
    for (int n_heads = 0; at > 0 && data.size() - at < MOST_FRAME_BYTES && n_heads < MOST_HEADS;) {
        at = data.rfind('\xFF', at - 1);
        if (at == std::string_view::npos) {
            break;
        }
        std::array<char, MOST_HEAD_BYTES> head = {};
        data.copy(head.data(), head.size(), at);
        if (const uint64_t end = end_of_frame(head, block)) {
            if (crc16(data.substr(at)) == 0) {
                return end;
            }
            n_heads++;
        }
    }
    throw bad_media("this FLAC does not tell its length, as when it was written to a pipe, and is damaged or cut off at its end");
}

// ---- the file -----------------------------------------------------------------------------------------------------------

flac_header read_flac(std::string_view bytes) {
    byte_reader in(bytes, byte_order::big, "this FLAC");
    in.skip(4);
    flac_header flac = {};
    for (bool last = false; !last;) {
        const uint8_t kind = in.u8();
        const uint32_t size = in.u24();
        const bool is_info = (kind & 0x7F) == STREAM_INFO;
        if (is_info == !flac.stream_info.empty() || (is_info && size != STREAM_INFO_BYTES)) {
            throw bad_media("this FLAC is broken: its header makes no sense");
        }
        const std::string_view block = in.take(size);
        flac.stream_info = is_info ? block : flac.stream_info;
        last = (kind & LAST) != 0;
    }
    byte_reader info(flac.stream_info, byte_order::big, "this FLAC");
    const uint16_t least_block = info.u16();
    const uint16_t most_block = info.u16();
    info.skip(6);
    const uint32_t high = info.u32(); // 20 bits of rate, 3 of channels, 5 of bits per sample, then 36 of the length
    const uint32_t low = info.u32();
    flac.rate = high >> 12;
    flac.channels = (high >> 9 & 7) + 1;
    flac.frames = uint64_t(high & 15) << 32 | low;
    const uint32_t bits = (high >> 4 & 31) + 1;
    if (least_block < 16 || most_block < least_block || bits < 4) {
        throw bad_media("this FLAC is broken: its header makes no sense");
    }
    flac.data = bytes.substr(in.at());
    if (flac.frames == 0) {
        flac.frames = length_by_last_frame(flac.data, most_block);
    }
    return flac;
}

std::string plain_flac(const flac_header & flac) {
    std::string out = "fLaC";
    out += char(LAST | STREAM_INFO);
    out.append({0, 0, char(STREAM_INFO_BYTES)});
    std::string info(flac.stream_info);
    for (size_t i = 0; i < 4; i++) {
        info[LENGTH_AT + 1 + i] = char(flac.frames >> (24 - 8 * i));
    }
    info[LENGTH_AT] = char((uint8_t(info[LENGTH_AT]) & 0xF0) | (flac.frames >> 32 & 15));
    out += info;
    out += flac.data;
    return out;
}

}  // namespace lm
