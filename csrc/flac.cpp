#include "flac.h"

#include "byte_reader.h"

namespace lm {

static constexpr uint8_t STREAM_INFO = 0, LAST = 0x80;
static constexpr uint32_t STREAM_INFO_BYTES = 34;

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
    if (flac.frames == 0) {
        throw bad_media("this FLAC does not tell its length, as when it was written to a pipe; send it written to a file, or as WAV");
    }
    flac.data = bytes.substr(in.at());
    return flac;
}

std::string plain_flac(const flac_header & flac) {
    std::string out = "fLaC";
    out += char(LAST | STREAM_INFO);
    out.append({0, 0, char(STREAM_INFO_BYTES)});
    out += flac.stream_info;
    out += flac.data;
    return out;
}

}  // namespace lm
