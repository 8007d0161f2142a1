#include "picture.h"

#include "blend.h"
#include "bmp.h"
#include "byte_reader.h"
#include "gif.h"
#include "jpeg.h"
#include "media_name.h"
#include "png.h"
#include "stb_decoder.h"

#include <algorithm>
#include <string>
#include <utility>

namespace lm {

namespace {

struct picture_facts {
    const char * format;
    uint32_t width, height; // as stored
    int turn = 1;
    int channels = 3;            // that are decoded
    uint64_t decoding_bytes = 0; // by stb_image
    bmp_header bmp = {};
    gif_header gif = {};
};

}  // namespace

[[noreturn]] static void refuse_format(std::string_view bytes) {
    const std::string name = name_of_media(bytes);
    const bool webp = name == "a WebP picture";
    throw bad_media("this file is " + name + ", and PNG, JPEG, GIF and BMP pictures are read" +
                    (webp ? "; WebP where lmlite[webp] is installed" : ""));
}

static picture_facts read_format(std::string_view bytes, bool whole) {
    picture_facts facts = {};
    facts.turn = 1;
    facts.channels = 3;
    switch (format_of(bytes)) {
        case media_format::png: {
            const png_header png = read_png(bytes, whole);
            facts.format = "PNG";
            facts.width = png.width;
            facts.height = png.height;
            facts.turn = png.turn;
            facts.channels = png.alpha ? 4 : 3;
            facts.decoding_bytes = png.decoding_bytes;
            return facts;
        }
        case media_format::jpeg: {
            const jpeg_header jpeg = read_jpeg(bytes, whole);
            facts.format = "JPEG";
            facts.width = jpeg.width;
            facts.height = jpeg.height;
            facts.turn = jpeg.turn;
            facts.decoding_bytes = jpeg.decoding_bytes;
            return facts;
        }
        case media_format::gif:
            facts.format = "GIF";
            facts.gif = read_gif(bytes);
            facts.width = facts.gif.width;
            facts.height = facts.gif.height;
            return facts;
        case media_format::bmp:
            facts.format = "BMP";
            facts.bmp = read_bmp(bytes);
            facts.width = facts.bmp.width;
            facts.height = facts.bmp.height;
            return facts;
        default: refuse_format(bytes);
    }
}

static std::string in_megabytes(uint64_t bytes) {
    return std::to_string((bytes + 999999) / 1000000) + " MB";
}

static picture_facts check(std::string_view bytes, bool whole) {
    if (bytes.size() > MOST_PICTURE_BYTES) {
        throw bad_media("a picture may have " + in_megabytes(MOST_PICTURE_BYTES) + "; this one has " + in_megabytes(bytes.size()));
    }
    const picture_facts facts = read_format(bytes, whole);
    const std::string size = std::to_string(facts.width) + " x " + std::to_string(facts.height);
    const std::string subject = std::string("this ") + facts.format + " has " + size + " pixels";
    const uint64_t pixels = uint64_t(facts.width) * facts.height;
    if (pixels == 0) {
        throw bad_media(subject);
    }
    if (std::max(facts.width, facts.height) > MOST_PICTURE_SIDE) {
        throw bad_media(subject + "; a side may have " + std::to_string(MOST_PICTURE_SIDE));
    }
    if (pixels > MOST_PICTURE_PIXELS) {
        throw bad_media(subject + "; a picture may have " + std::to_string(MOST_PICTURE_PIXELS));
    }
    const uint64_t memory = std::max(facts.decoding_bytes, pixels * (3 + (facts.decoding_bytes > 0 ? uint64_t(facts.channels) : 0)));
    if (memory > MOST_PICTURE_MEMORY) {
        throw bad_media(subject + " of a kind whose decoding takes " + in_megabytes(memory) + "; it may take " +
                        in_megabytes(MOST_PICTURE_MEMORY) + ": send it smaller, or with 8 bits a color");
    }
    return facts;
}

picture_size look_at_picture(std::string_view bytes) {
    const picture_facts facts = check(bytes, false);
    const bool on_its_side = facts.turn > 4;
    return {facts.format, on_its_side ? facts.height : facts.width, on_its_side ? facts.width : facts.height};
}

// Where the pixel that is stored at (x, y) is shown, and how many pixels further its right and its lower neighbour are.
struct turned_place {
    size_t first;
    ptrdiff_t step_x, step_y;
};

static turned_place place(int turn, size_t width, size_t height) {
    const auto w = ptrdiff_t(width);
    const auto h = ptrdiff_t(height);
    switch (turn) {
        case 2: return {width - 1, -1, w};                       // mirrored
        case 3: return {width * height - 1, -1, -w};             // upside down
        case 4: return {width * (height - 1), 1, -w};            // both
        case 5: return {0, h, 1};                                // mirrored at the diagonal
        case 6: return {height - 1, h, -1};                      // to be turned right
        case 7: return {width * height - 1, -h, -1};             // mirrored at the other diagonal
        case 8: return {height * (width - 1), -h, 1};            // to be turned left
        default: return {0, 1, w};
    }
}

static pixels lay_out(const picture_facts & facts, const uint8_t * stored) {
    const size_t width = facts.width;
    const size_t height = facts.height;
    const bool on_its_side = facts.turn > 4;
    pixels shown = {on_its_side ? facts.height : facts.width, on_its_side ? facts.width : facts.height, {}};
    shown.rgb.resize(width * height * 3);
    const turned_place where = place(facts.turn, width, height);
    for (size_t y = 0; y < height; y++) {
        ptrdiff_t at = ptrdiff_t(where.first) + ptrdiff_t(y) * where.step_y;
        for (size_t x = 0; x < width; x++, at += where.step_x, stored += facts.channels) {
            uint8_t * pixel = &shown.rgb[size_t(at) * 3];
            for (size_t i = 0; i < 3; i++) {
                pixel[i] = facts.channels == 4 ? on_white(stored[i], stored[3]) : stored[i];
            }
        }
    }
    return shown;
}

pixels decode_picture(std::string_view bytes) {
    const picture_facts facts = check(bytes, true);
    switch (format_of(bytes)) {
        case media_format::gif: return {facts.width, facts.height, decode_gif(bytes, facts.gif)};
        case media_format::bmp: return {facts.width, facts.height, decode_bmp(bytes, facts.bmp)};
        default: break;
    }
    const stb_pixels decoded = stb_decode(bytes, facts.channels, facts.decoding_bytes);
    const std::string subject = std::string("this ") + facts.format;
    if (!decoded.bytes) {
        throw bad_media(decoded.failure[0] == 0 ? subject + " is broken: it holds more than its pixels"
                                                : subject + " is damaged: " + decoded.failure);
    }
    if (decoded.width != facts.width || decoded.height != facts.height) {
        throw bad_media(subject + " is broken: it says two things of its size");
    }
    return lay_out(facts, decoded.bytes.get());
}

}  // namespace lm
