#include "wav.h"

#include "byte_reader.h"

#include <optional>

namespace lm {

using namespace std::string_view_literals;

static constexpr uint16_t INTEGERS = 1, FLOATS = 3, A_LAW = 6, MU_LAW = 7, EXTENSIBLE = 0xFFFE;
// Who writes while it records, or into a pipe, does not know the size and writes the largest one.
static constexpr uint32_t UNKNOWN_SIZE = 0x7FFFF000;

static const char * name_of_coding(uint16_t coding) {
    return coding == 2 || coding == 0x11 ? "ADPCM"
           : coding == 0x31              ? "GSM"
           : coding == 0x50              ? "MPEG"
           : coding == 0x55              ? "MP3"
           : coding == 0xFF              ? "AAC"
                                         : nullptr;
}

static void read_format(byte_reader in, uint32_t size, wav_header & wav) {
    wav.coding = in.u16();
    wav.channels = in.u16();
    wav.rate = in.u32();
    in.skip(4);
    const uint16_t block = in.u16();
    const uint16_t bits = in.u16();
    if (wav.coding == EXTENSIBLE) {
        if (size < 26) {
            throw bad_media("this WAV is broken: its header does not say how its samples are coded");
        }
        in.skip(8);
        wav.coding = in.u16();
    }
    wav.sample_bytes = uint16_t(wav.channels == 0 ? 0 : block / wav.channels);
    const bool known = wav.coding == INTEGERS ? wav.sample_bytes >= 1 && wav.sample_bytes <= 4
                       : wav.coding == FLOATS ? wav.sample_bytes == 4 || wav.sample_bytes == 8
                                              : (wav.coding == A_LAW || wav.coding == MU_LAW) && wav.sample_bytes == 1;
    if (const char * name = name_of_coding(wav.coding)) {
        throw bad_media(std::string("this WAV is coded as ") + name + ", which is not read; send plain samples");
    }
    if (!known || wav.sample_bytes * wav.channels != block || (bits + 7) / 8 != wav.sample_bytes) {
        throw bad_media("this WAV has " + std::to_string(wav.channels) + " channels in blocks of " + std::to_string(block) +
                        " bytes, " + std::to_string(bits) + " bits each, coded as " + std::to_string(wav.coding) + ", which is not read");
    }
}

wav_header read_wav(std::string_view bytes) {
    byte_reader in(bytes, byte_order::little, "this WAV");
    in.skip(4);
    const uint32_t whole = in.u32();
    in.skip(4);
    wav_header wav = {};
    for (bool has_format = false;;) {
        const std::string_view name = in.take(4);
        const uint32_t size = in.u32();
        if (name == "data"sv) {
            if (!has_format) {
                throw bad_media("this WAV is broken: its samples come before its header");
            }
            const bool unknown = size >= UNKNOWN_SIZE || (size == 0 && (whole == 0 || whole >= UNKNOWN_SIZE));
            wav.samples = in.take(unknown ? in.left() : size);
            wav.frames = wav.samples.size() / (uint64_t(wav.sample_bytes) * wav.channels);
            return wav;
        }
        if (name == "fmt "sv) {
            if (has_format || size < 16) {
                throw bad_media("this WAV is broken: its header makes no sense");
            }
            read_format(in, size, wav);
            has_format = true;
        }
        in.skip(size);
        in.skip(size % 2 != 0 && in.left() > 0 ? 1 : 0);
    }
}

static void put(std::string & out, uint32_t value, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out += char(value >> 8 * i);
    }
}

std::string plain_wav(const wav_header & wav) {
    const uint32_t block = wav.sample_bytes * wav.channels;
    const auto size = uint32_t(wav.frames * block);
    std::string out;
    out.reserve(44 + size);
    out += "RIFF";
    put(out, 36 + size, 4);
    out += "WAVEfmt ";
    put(out, 16, 4);
    put(out, wav.coding, 2);
    put(out, wav.channels, 2);
    put(out, wav.rate, 4);
    put(out, wav.rate * block, 4);
    put(out, block, 2);
    put(out, wav.sample_bytes * 8u, 2);
    out += "data";
    put(out, size, 4);
    out += wav.samples.substr(0, size);
    return out;
}

}  // namespace lm
