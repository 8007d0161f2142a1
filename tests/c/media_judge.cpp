// Decodes each file of a folder as what its name ends in says that it is, and tells what came of it.
#include "check.h"
#include "error.h"
#include "picture.h"
#include "sound.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <dirent.h>
#include <fstream>
#include <iterator>
#include <unistd.h>

// The most that this process had in memory since the last call, in kB; 0 where the system does not tell.
static long peak_since_last() {
    long peak = 0;
    if (FILE * status = fopen("/proc/self/status", "r")) {
        char line[256];
        while (fgets(line, sizeof line, status) != nullptr && sscanf(line, "VmHWM: %ld", &peak) != 1) {
        }
        fclose(status);
    }
    if (FILE * reset = fopen("/proc/self/clear_refs", "w")) {
        fputs("5", reset);
        fclose(reset);
    }
    return peak;
}

static long resident() {
    long pages = 0;
    if (FILE * file = fopen("/proc/self/statm", "r")) {
        if (fscanf(file, "%*d %ld", &pages) != 1) {
            pages = 0;
        }
        fclose(file);
    }
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static std::string judge_picture(const std::string & bytes) {
    const lm::picture_size size = lm::look_at_picture(bytes);
    const lm::pixels picture = lm::decode_picture(bytes);
    CHECK(picture.width == size.width && picture.height == size.height);
    CHECK(picture.rgb.size() == size_t(size.width) * size.height * 3);
    std::string text = std::string("picture ") + size.format + " " + std::to_string(size.width) + " " + std::to_string(size.height);
    for (int part = 0; part < 4; part++) { // the middles of its quarters
        const size_t x = size.width * (part % 2 * 2 + 1) / 4;
        const size_t y = size.height * (part / 2 * 2 + 1) / 4;
        char color[16];
        const uint8_t * pixel = &picture.rgb[(y * size.width + x) * 3];
        snprintf(color, sizeof color, " %02x%02x%02x", pixel[0], pixel[1], pixel[2]);
        text += color;
    }
    return text;
}

static std::string judge_sound(const std::string & bytes) {
    const lm::sound_size size = lm::look_at_sound(bytes);
    const std::vector<float> samples = lm::decode_sound(bytes, 16000);
    float loudest = 0;
    for (float sample : samples) {
        CHECK(std::isfinite(sample));
        loudest = std::max(loudest, std::fabs(sample));
    }
    char text[128];
    snprintf(text, sizeof text, "sound %s %.3f %u %u %zu %.3f", size.format, size.seconds, size.rate, size.channels, samples.size(),
             double(loudest));
    return text;
}

PROGRAM(judge_media) {
    std::vector<std::string> names;
    DIR * folder = opendir(model_path.c_str());
    CHECK(folder != nullptr);
    while (const dirent * entry = readdir(folder)) {
        if (entry->d_name[0] != '.') {
            names.push_back(entry->d_name);
        }
    }
    closedir(folder);
    std::sort(names.begin(), names.end());
    for (const std::string & name : names) {
        std::ifstream file(model_path + "/" + name, std::ios::binary);
        const std::string bytes((std::istreambuf_iterator<char>(file)), {});
        const bool is_sound = name.size() > 6 && name.compare(name.size() - 6, 6, ".audio") == 0;
        peak_since_last();
        const long before = resident();
        std::string verdict;
        try {
            verdict = is_sound ? judge_sound(bytes) : judge_picture(bytes);
        } catch (const lm::error & e) {
            verdict = "refused " + e.code + " " + e.details + " " + e.what();
        }
        printf("%s\t%ld\t%s\n", name.c_str(), std::max(0l, peak_since_last() - before), verdict.c_str());
        fflush(stdout);
    }
}

// All pixels of a picture, as they are shown.
PROGRAM(show_picture) {
    std::ifstream file(model_path, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    const lm::pixels picture = lm::decode_picture(bytes);
    fwrite(picture.rgb.data(), 1, picture.rgb.size(), stdout);
}
