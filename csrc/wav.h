// WAV files of uncompressed samples.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lm {

struct wav_header {
    uint32_t rate, channels;
    uint64_t frames; // a sample of each channel
    uint16_t coding; // 1: integers, 3: floats, 6: A-law, 7: mu-law
    uint16_t sample_bytes;
    std::string_view samples;
};

// Throws invalid_request for what is no whole WAV file of such samples.
wav_header read_wav(std::string_view bytes);

// The same sound in the plainest of WAV files.
std::string plain_wav(const wav_header & header);

}  // namespace lm
