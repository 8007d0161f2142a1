// The header of a projector's file, read before mtmd is given the file: for much of what may be wrong with it that ends the
// process, and for some it answers wrongly.
#pragma once

#include <string>

struct llama_model;

namespace lm {

// Throws error("load_failed") with what is wrong: the file is cut off, lacks a tensor that is read unchecked, has numbers of
// types or sizes that cannot be computed, or is made for another kind of text model than `text`.
void check_projector_file(const std::string & path, const llama_model * text);

}  // namespace lm
