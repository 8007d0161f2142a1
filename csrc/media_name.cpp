#include "media_name.h"

#include <algorithm>
#include <cctype>
#include <cstdint>

namespace lm {

using namespace std::string_view_literals;

static bool has(std::string_view bytes, size_t at, std::string_view magic) {
    return bytes.size() >= at + magic.size() && bytes.compare(at, magic.size(), magic) == 0;
}

// A frame of MPEG audio, or a tag ahead of them.
static bool begins_mp3(std::string_view bytes) {
    if (has(bytes, 0, "ID3"sv)) {
        return true;
    }
    if (bytes.size() < 4) {
        return false;
    }
    const uint8_t second = uint8_t(bytes[1]);
    const uint8_t third = uint8_t(bytes[2]);
    return uint8_t(bytes[0]) == 0xFF && (second & 0xE0) == 0xE0 && (second & 0x18) != 0x08 && (second & 0x06) != 0 &&
           third >> 4 != 15 && (third & 0x0C) != 0x0C;
}

media_format format_of(std::string_view bytes) {
    return has(bytes, 0, "\x89PNG\r\n\x1A\n"sv)                         ? media_format::png
           : has(bytes, 0, "\xFF\xD8\xFF"sv)                            ? media_format::jpeg
           : has(bytes, 0, "GIF87a"sv) || has(bytes, 0, "GIF89a"sv)     ? media_format::gif
           : has(bytes, 0, "RIFF"sv) && has(bytes, 8, "WAVE"sv)         ? media_format::wav
           : has(bytes, 0, "fLaC"sv)                                    ? media_format::flac
           : begins_mp3(bytes)                                          ? media_format::mp3
           : has(bytes, 0, "BM"sv) && has(bytes, 6, "\0\0\0\0"sv)       ? media_format::bmp
                                                                        : media_format::other;
}

struct magic_name {
    size_t at;
    std::string_view magic;
    const char * name;
};

static constexpr magic_name NAMES[] = {
    {8, "WEBP"sv, "a WebP picture"},
    {0, "II*\0"sv, "a TIFF picture"},
    {0, "MM\0*"sv, "a TIFF picture"},
    {0, "II+\0"sv, "a TIFF picture"},
    {0, "MM\0+"sv, "a TIFF picture"},
    {0, "8BPS"sv, "a Photoshop picture"},
    {0, "%PDF"sv, "a PDF document"},
    {0, "%!PS"sv, "a PostScript document"},
    {0, "\xFF\x0A"sv, "a JPEG XL picture"},
    {0, "\0\0\0\x0CJXL "sv, "a JPEG XL picture"},
    {0, "\0\0\0\x0CjP  "sv, "a JPEG 2000 picture"},
    {0, "\xFF\x4F\xFF\x51"sv, "a JPEG 2000 picture"},
    {0, "\0\0\1\0"sv, "an icon"},
    {0, "\0\0\2\0"sv, "a TGA picture, or a cursor"},
    {0, "icns"sv, "an icon"},
    {0, "#?RADIANCE"sv, "an HDR picture"},
    {0, "#?RGBE"sv, "an HDR picture"},
    {0, "v/1\1"sv, "an OpenEXR picture"},
    {0, "\x53\x80\xF6\x34"sv, "a Softimage PIC picture"},
    {0, "DDS "sv, "a DDS picture"},
    {0, "qoif"sv, "a QOI picture"},
    {0, "gimp xcf"sv, "a GIMP picture"},
    {0, "\xD7\xCD\xC6\x9A"sv, "a Windows metafile"},
    {0, "OggS"sv, "an Ogg file"},
    {0, "\x1A\x45\xDF\xA3"sv, "a Matroska or WebM film"},
    {0, "\xFF\xF1"sv, "AAC sound"},
    {0, "\xFF\xF9"sv, "AAC sound"},
    {0, "#!AMR"sv, "AMR sound"},
    {0, "MThd"sv, "a MIDI file"},
    {0, ".snd"sv, "an AU sound"},
    {8, "AIFF"sv, "an AIFF sound"},
    {8, "AIFC"sv, "an AIFF sound"},
    {8, "AVI "sv, "an AVI film"},
    {0, "RF64"sv, "an RF64 sound"},
    {0, "riff"sv, "a W64 sound"},
    {0, "PK\3\4"sv, "a ZIP archive, or an Office document"},
    {0, "\x1F\x8B"sv, "gzip"},
    {0, "GGUF"sv, "a GGUF file"},
    {0, "\x7F" "ELF"sv, "a program"},
    {0, "iVBORw0KGgo"sv, "base64 (encoded twice?)"},
    {0, "/9j/"sv, "base64 (encoded twice?)"},
    {0, "R0lGOD"sv, "base64 (encoded twice?)"},
    {0, "UklGR"sv, "base64 (encoded twice?)"},
    {0, "data:"sv, "a data URL, not what is in it"},
};

// Files of ISO's base format tell what they are in their first box.
static const char * name_of_brand(std::string_view brand) {
    for (const std::string_view avif : {"avif"sv, "avis"sv}) {
        if (brand == avif) {
            return "an AVIF picture";
        }
    }
    for (const std::string_view heic : {"heic"sv, "heix"sv, "heim"sv, "heis"sv, "hevc"sv, "hevx"sv, "mif1"sv, "msf1"sv}) {
        if (brand == heic) {
            return "a HEIC picture";
        }
    }
    return brand == "M4A "sv || brand == "M4B "sv ? "AAC sound" : "an MP4 film";
}

static const char * name_of_text(std::string_view bytes) {
    std::string begin(bytes.substr(0, 4096));
    std::transform(begin.begin(), begin.end(), begin.begin(), [](unsigned char c) { return char(tolower(c)); });
    if (begin.find("<svg") != std::string::npos) {
        return "an SVG drawing";
    }
    const size_t first = begin.find_first_not_of(" \t\r\n\xEF\xBB\xBF");
    if (first == std::string::npos) {
        return nullptr;
    }
    const std::string_view rest = std::string_view(begin).substr(first);
    return has(rest, 0, "<!doctype html"sv) || has(rest, 0, "<html"sv) ? "an HTML page"
           : has(rest, 0, "<?xml"sv)                                   ? "an XML document"
           : has(rest, 0, "{"sv)                                       ? "JSON"
                                                                       : nullptr;
}

std::string name_of_media(std::string_view bytes) {
    switch (format_of(bytes)) {
        case media_format::png: return "a PNG picture";
        case media_format::jpeg: return "a JPEG picture";
        case media_format::gif: return "a GIF picture";
        case media_format::bmp: return "a BMP picture";
        case media_format::wav: return "a WAV sound";
        case media_format::mp3: return "an MP3 sound";
        case media_format::flac: return "a FLAC sound";
        case media_format::other: break;
    }
    if (bytes.empty()) {
        return "empty";
    }
    if (has(bytes, 4, "ftyp"sv) && bytes.size() >= 12) {
        return name_of_brand(bytes.substr(8, 4));
    }
    for (const magic_name & known : NAMES) {
        if (has(bytes, known.at, known.magic)) {
            return known.name;
        }
    }
    if (bytes.size() > 2 && bytes[0] == 'P' && bytes[1] >= '1' && bytes[1] <= '7' && isspace(uint8_t(bytes[2]))) {
        return "a PNM picture";
    }
    const char * text = name_of_text(bytes);
    return text == nullptr ? "of an unknown format" : text;
}

}  // namespace lm
