// Sounds that somebody sent. Their headers are read here before any decoder sees them: what is none of the formats that are
// served, too long, broken or cut off is refused with a reason. miniaudio then decodes the samples, from a file that is written
// anew with nothing in it but those.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace lm {

// More comes in no request body; the Python API could send more.
constexpr uint64_t MOST_SOUND_BYTES = 32 << 20;
// At a tower's 16,000 samples a second it is 115 MB, which is what decoding takes beside the file and one copy of it.
constexpr double MOST_SOUND_SECONDS = 30 * 60;
// The analysis of some towers reads behind the end of what is shorter than their windows; no word is.
constexpr double LEAST_SOUND_SECONDS = 0.1;
// Of all channels together: half an hour of stereo at 48 kHz, about a second's work.
constexpr uint64_t MOST_SOUND_SAMPLES = 1800ull * 48000 * 2;
constexpr uint32_t LEAST_SOUND_RATE = 4000; // telephones have 8000
constexpr uint32_t MOST_SOUND_RATE = 192000;
constexpr uint32_t MOST_SOUND_CHANNELS = 8;

struct sound_size {
    const char * format; // static
    double seconds;
    uint32_t rate, channels;
};

// Both throw invalid_request (`media`) with a message that says what is wrong. This one reads no samples.
sound_size look_at_sound(std::string_view bytes);
// Mono at `rate`, all within -1 and 1.
std::vector<float> decode_sound(std::string_view bytes, uint32_t rate);

}  // namespace lm
