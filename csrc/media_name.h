// What a file is, by how it begins.
#pragma once

#include <string>
#include <string_view>

namespace lm {

enum class media_format { png, jpeg, gif, bmp, wav, mp3, flac, other };

media_format format_of(std::string_view bytes);

// "a WebP picture", "a PDF document", "of an unknown format": for the message that refuses it.
std::string name_of_media(std::string_view bytes);

}  // namespace lm
