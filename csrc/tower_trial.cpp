#include "tower_trial.h"

#include "error.h"
#include "projector_file.h"

#include <ctime>
#include <string>

namespace lm {

// A large tower takes minutes for a picture on a CPU; what ends the process does so in its first operations.
static constexpr double TRIAL_S = 1.5; // of this thread's time
static constexpr uint32_t TRIAL_SIDE = 64;
static constexpr uint32_t TRIAL_SAMPLES = 8000; // half a second

// No tower looks at more: it scales down what is larger.
static constexpr uint32_t LARGEST_SIDE = 4096;

static void put(std::string & out, uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8) {
        out += char(value >> shift);
    }
}

// A bitmap whose colors change from pixel to pixel.
static std::string picture_of(uint32_t side) {
    const uint32_t row = (side * 3 + 3) / 4 * 4;
    std::string file = "BM";
    for (const uint32_t value : {54 + row * side, 0u, 54u, 40u, side, side, 1u | 24u << 16, 0u, 0u, 0u, 0u, 0u, 0u}) {
        put(file, value);
    }
    for (uint32_t y = 0; y < side; y++) {
        for (uint32_t x = 0; x < row; x++) {
            file += char(x * 5 + y * 3);
        }
    }
    return file;
}

static std::string sound_of(uint32_t samples) {
    std::string file = "RIFF";
    put(file, 36 + 2 * samples);
    file += "WAVEfmt ";
    for (const uint32_t value : {16u, 1u | 1u << 16, 16000u, 32000u, 2u | 16u << 16}) {
        put(file, value);
    }
    file += "data";
    put(file, 2 * samples);
    for (uint32_t i = 0; i < samples; i++) {
        file += char(i * 7);
        file += char(i * 3 % 64);
    }
    return file;
}

static media_prompt prompt_of(const tower & t, media_kind kind, std::string bytes) {
    std::string digest = digest_of(bytes);
    counted_bytes data(std::move(bytes), std::make_shared<std::atomic<size_t>>(0));
    return t.tokenize({{"", true, size_t(0)}}, {std::make_shared<const media_file>(media_file{kind, std::move(data), std::move(digest)})});
}

// A busy machine makes no tower slower.
static double thread_time_s() {
    timespec time = {};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return double(time.tv_sec) + double(time.tv_nsec) / 1e9;
}

static bool encode_for(tower & t, media_kind kind, std::string bytes, double time_s) {
    const media_prompt prompt = prompt_of(t, kind, std::move(bytes));
    const double end_s = thread_time_s() + time_s;
    return prompt.parts.empty() || t.encode(prompt.parts[0], [end_s] { return thread_time_s() < end_s; }) != nullptr;
}

// What mtmd says of a file names its path, which is nobody's business.
static std::unique_ptr<tower> make_tower(const tower::settings & wanted, const llama_model * text, const tower::progress_fn & progress) {
    try {
        return std::make_unique<tower>(wanted, text, progress);
    } catch (const invalid_request &) {
        throw;
    } catch (const error & e) {
        std::string why = e.what();
        for (size_t at = why.find(wanted.path); at != std::string::npos; at = why.find(wanted.path)) {
            why.replace(at, wanted.path.size(), "its file");
        }
        throw error(e.code, why, e.details);
    }
}

std::unique_ptr<tower> load_tower(const tower::settings & wanted, const llama_model * text, const tower::progress_fn & progress) {
    check_projector_file(wanted.path, text);
    std::unique_ptr<tower> t = make_tower(wanted, text, progress);
    try {
        if (t->sees()) {
            encode_for(*t, media_kind::picture, picture_of(TRIAL_SIDE), TRIAL_S);
        }
        if (t->hears()) {
            encode_for(*t, media_kind::sound, sound_of(TRIAL_SAMPLES), TRIAL_S);
        }
    } catch (const error & e) {
        throw error("load_failed", std::string("the projector does not work: ") + e.what());
    }
    return t;
}

// A PNG that has nothing but its size: enough to be counted.
static std::string outline_of(uint32_t side) {
    std::string size;
    put(size, side);
    const std::string number(size.rbegin(), size.rend());
    const std::string sum(4, '\0');
    return "\x89PNG\r\n\x1A\n" + std::string("\0\0\0\x0DIHDR", 8) + number + number + std::string("\x08\x02\0\0\0", 5) + sum +
           std::string("\0\0\0\1IDAT\0", 9) + sum + std::string("\0\0\0\0IEND", 8) + sum;
}

static size_t cells_of(const tower & t, uint32_t side) {
    return prompt_of(t, media_kind::picture, outline_of(side)).tokens.size();
}

// The smallest square that takes as many cells as any.
static uint32_t largest_side(const tower & t) {
    const size_t most = cells_of(t, LARGEST_SIDE);
    uint32_t low = 1;
    uint32_t high = LARGEST_SIDE;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (cells_of(t, middle) >= most) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return high;
}

bool encode_largest_picture(tower & t, double time_s) {
    return !t.sees() || encode_for(t, media_kind::picture, picture_of(largest_side(t)), time_s);
}

}  // namespace lm
