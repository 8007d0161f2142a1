#include "picture.h"

#include "bmp.h"
#include "byte_reader.h"
#include "gif.h"
#include "jpeg.h"
#include "media_name.h"
#include "png.h"
#include "shown_rows.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace lm {

namespace {

struct picture_facts {
    const char * format;
    uint32_t width, height; // as stored
    int turn = 1;
    uint64_t decoding_bytes = 0; // beside the result
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
    switch (format_of(bytes)) {
        case media_format::png: {
            const png_header png = read_png(bytes, whole);
            facts.format = "PNG";
            facts.width = png.width;
            facts.height = png.height;
            facts.turn = png.turn;
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
            facts.decoding_bytes = uint64_t(facts.gif.frame_width) * facts.gif.frame_height;
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

picture_sides sides_looked_at(uint32_t width, uint32_t height) {
    const uint64_t pixels = uint64_t(width) * height;
    if (pixels <= MOST_PIXELS_LOOKED_AT) {
        return {width, height};
    }
    const double scale = std::sqrt(double(MOST_PIXELS_LOOKED_AT) / double(pixels));
    return {std::max(1u, uint32_t(width * scale)), std::max(1u, uint32_t(height * scale))};
}

static picture_facts check(std::string_view bytes, bool whole, uint64_t most_memory) {
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
    const uint64_t memory = facts.decoding_bytes + std::min(pixels, MOST_PIXELS_LOOKED_AT) * 3;
    if (memory > most_memory) {
        throw bad_media(subject + " of a kind whose decoding takes " + in_megabytes(memory) + "; here it may take " +
                        in_megabytes(most_memory) + ": send it smaller, or neither progressive nor interlaced");
    }
    return facts;
}

picture_size look_at_picture(std::string_view bytes, uint64_t most_memory) {
    const picture_facts facts = check(bytes, false, most_memory);
    const picture_sides kept = sides_looked_at(facts.width, facts.height);
    const bool on_its_side = facts.turn > 4;
    return {facts.format, on_its_side ? kept.height : kept.width, on_its_side ? kept.width : kept.height};
}

pixels decode_picture(std::string_view bytes, uint64_t most_memory) {
    const picture_facts facts = check(bytes, true, most_memory);
    shown_rows rows(facts.width, facts.height, facts.turn);
    switch (format_of(bytes)) {
        case media_format::png: decode_png(bytes, rows); break;
        case media_format::jpeg: decode_jpeg(bytes, rows); break;
        case media_format::gif: decode_gif(bytes, facts.gif, rows); break;
        default: decode_bmp(bytes, facts.bmp, rows);
    }
    return rows.take();
}

}  // namespace lm
