#include "sound.h"

#include "byte_reader.h"
#include "flac.h"
#include "media_name.h"
#include "miniaudio_decoder.h"
#include "mp3.h"
#include "wav.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace lm {

// Of an MP3 at most so many are silence that its encoder put around the sound.
static constexpr uint64_t MOST_MP3_PADDING = 2 * 4096;

namespace {

struct sound_facts {
    const char * format;
    uint32_t rate, channels;
    uint64_t frames;
    sound_coding coding;
    wav_header wav = {};
    mp3_header mp3 = {};
    flac_header flac = {};

    double seconds() const { return double(frames) / double(std::max(rate, 1u)); }
};

}  // namespace

static sound_facts read_format(std::string_view bytes) {
    switch (format_of(bytes)) {
        case media_format::wav: {
            const wav_header wav = read_wav(bytes);
            return {"WAV", wav.rate, wav.channels, wav.frames, sound_coding::wav, wav, {}, {}};
        }
        case media_format::mp3: {
            const mp3_header mp3 = read_mp3(bytes);
            return {"MP3", mp3.rate, mp3.channels, mp3.frames, sound_coding::mp3, {}, mp3, {}};
        }
        case media_format::flac: {
            const flac_header flac = read_flac(bytes);
            return {"FLAC", flac.rate, flac.channels, flac.frames, sound_coding::flac, {}, {}, flac};
        }
        default: throw bad_media("this file is " + name_of_media(bytes) + ", and WAV, MP3 and FLAC sounds are read");
    }
}

static sound_facts check(std::string_view bytes) {
    if (bytes.size() > MOST_SOUND_BYTES) {
        throw bad_media("a sound may have " + std::to_string(MOST_SOUND_BYTES) + " bytes; this one has " + std::to_string(bytes.size()));
    }
    const sound_facts facts = read_format(bytes);
    const std::string subject = std::string("this ") + facts.format;
    if (facts.rate < LEAST_SOUND_RATE || facts.rate > MOST_SOUND_RATE) {
        throw bad_media(subject + " has " + std::to_string(facts.rate) + " samples a second; " + std::to_string(LEAST_SOUND_RATE) + " to " +
                        std::to_string(MOST_SOUND_RATE) + " are read");
    }
    if (facts.channels < 1 || facts.channels > MOST_SOUND_CHANNELS) {
        throw bad_media(subject + " has " + std::to_string(facts.channels) + " channels; 1 to " + std::to_string(MOST_SOUND_CHANNELS) +
                        " are read");
    }
    if (facts.seconds() > MOST_SOUND_SECONDS || facts.frames > MOST_SOUND_SAMPLES / facts.channels) {
        throw bad_media(subject + " is " + std::to_string(uint64_t(facts.seconds())) + " s long, with " +
                        std::to_string(facts.channels) + " channels of " + std::to_string(facts.rate) + " samples a second; a sound may be " +
                        std::to_string(uint64_t(MOST_SOUND_SECONDS)) + " s of stereo at 48000");
    }
    if (facts.seconds() < LEAST_SOUND_SECONDS) {
        throw bad_media(subject + " is too short: it has " + std::to_string(facts.frames) + " samples, and 0.1 s are needed");
    }
    return facts;
}

sound_size look_at_sound(std::string_view bytes) {
    const sound_facts facts = check(bytes);
    return {facts.format, facts.seconds(), facts.rate, facts.channels};
}

static std::string plain_file(const sound_facts & facts) {
    switch (facts.coding) {
        case sound_coding::wav: return plain_wav(facts.wav);
        case sound_coding::mp3: return std::string(facts.mp3.data);
        case sound_coding::flac: return plain_flac(facts.flac);
    }
    return {};
}

std::vector<float> decode_sound(std::string_view bytes, uint32_t rate) {
    const sound_facts facts = check(bytes);
    decoded_sound sound = miniaudio_decode(facts.coding, plain_file(facts), facts.frames, rate);
    const uint64_t least = facts.coding == sound_coding::mp3 ? facts.frames - std::min(facts.frames, MOST_MP3_PADDING) : facts.frames;
    if (sound.frames < least || sound.samples.size() < 2) {
        throw bad_media(std::string("this ") + facts.format + " is damaged or cut off: of its " + std::to_string(facts.frames) +
                        " samples, " + std::to_string(sound.frames) + " could be read");
    }
    for (float & sample : sound.samples) {
        if (!std::isfinite(sample)) {
            throw bad_media(std::string("this ") + facts.format + " holds samples that are no numbers");
        }
        sample = std::clamp(sample, -1.0f, 1.0f);
    }
    return std::move(sound.samples);
}

}  // namespace lm
