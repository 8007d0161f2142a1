#include "miniaudio_decoder.h"

#include <algorithm>
#include <new>

#define MINIAUDIO_IMPLEMENTATION
#define MA_API static // mtmd has a copy of its own
#define MA_NO_DEVICE_IO
#define MA_NO_THREADING
#define MA_NO_ENCODING
#define MA_NO_RESOURCE_MANAGER
#define MA_NO_NODE_GRAPH
#define MA_NO_ENGINE
#define MA_NO_GENERATION
#define MA_NO_VORBIS
#define MA_NO_STDIO
#define MA_ASSERT(condition)
#define MA_DR_WAV_ASSERT(condition)
#define MA_DR_FLAC_ASSERT(condition)
#define MA_DR_MP3_ASSERT(condition)
#include "miniaudio/miniaudio.h"

namespace lm {

static constexpr size_t PADDING = 4096;
static constexpr ma_uint64 FRAMES_AT_ONCE = 16384;

namespace {

struct owned_decoder {
    ma_decoder decoder;
    bool made = false;
    ~owned_decoder() { made ? void(ma_decoder_uninit(&decoder)) : void(); }
};

struct owned_resampler {
    ma_resampler resampler;
    bool made = false;
    ~owned_resampler() { made ? ma_resampler_uninit(&resampler, nullptr) : void(); }
};

}  // namespace

static ma_encoding_format format_of(sound_coding coding) {
    return coding == sound_coding::wav   ? ma_encoding_format_wav
           : coding == sound_coding::mp3 ? ma_encoding_format_mp3
                                         : ma_encoding_format_flac;
}

decoded_sound miniaudio_decode(sound_coding coding, std::string file, uint64_t most_frames, uint32_t rate) {
    const size_t size = file.size();
    file.append(PADDING, '\0');
    decoded_sound sound;
    ma_decoder_config config = ma_decoder_config_init(ma_format_f32, 1, 0); // mono, at the file's own rate
    config.encodingFormat = format_of(coding);
    owned_decoder in;
    in.made = ma_decoder_init_memory(file.data(), size, &config, &in.decoder) == MA_SUCCESS;
    if (!in.made) {
        return sound;
    }
    const ma_uint32 own_rate = in.decoder.outputSampleRate;
    const ma_resampler_config turning = ma_resampler_config_init(ma_format_f32, 1, own_rate, rate, ma_resample_algorithm_linear);
    owned_resampler to_rate;
    to_rate.made = ma_resampler_init(&turning, nullptr, &to_rate.resampler) == MA_SUCCESS;
    if (!to_rate.made) {
        throw std::bad_alloc();
    }
    sound.samples.reserve(size_t(double(most_frames) * rate / own_rate) + 16);
    std::vector<float> piece(FRAMES_AT_ONCE);
    std::vector<float> turned(size_t(double(FRAMES_AT_ONCE) * rate / own_rate) + 64);
    while (sound.frames < most_frames) {
        ma_uint64 n = 0;
        const ma_uint64 wanted = std::min<ma_uint64>(FRAMES_AT_ONCE, most_frames - sound.frames);
        ma_decoder_read_pcm_frames(&in.decoder, piece.data(), wanted, &n);
        if (n == 0) {
            break;
        }
        sound.frames += n;
        for (ma_uint64 done = 0; done < n;) {
            ma_uint64 used = n - done;
            ma_uint64 made = turned.size();
            if (ma_resampler_process_pcm_frames(&to_rate.resampler, piece.data() + done, &used, turned.data(), &made) != MA_SUCCESS ||
                (used == 0 && made == 0)) {
                break;
            }
            sound.samples.insert(sound.samples.end(), turned.begin(), turned.begin() + ptrdiff_t(made));
            done += used;
        }
    }
    return sound;
}

}  // namespace lm
