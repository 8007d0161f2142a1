// What miniaudio decodes for us.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lm {

enum class sound_coding { wav, mp3, flac };

struct decoded_sound {
    std::vector<float> samples; // mono at the rate asked for
    uint64_t frames = 0;        // of the file, that they were made of
};

// At most `most_frames` of the file are read. Its end is padded in place: miniaudio looks a little behind it.
decoded_sound miniaudio_decode(sound_coding coding, std::string file, uint64_t most_frames, uint32_t rate);

}  // namespace lm
