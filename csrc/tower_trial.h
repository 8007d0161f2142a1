// A tower is tried before anybody uses it: much that can be wrong with one only shows in what it computes.
#pragma once

#include "tower.h"

#include <memory>

namespace lm {

// The tower of `wanted`, whose file was read before mtmd was given it, and which has encoded a small picture and a sound, or
// as much of them as a moment allows. Throws as tower's constructor does, and error("load_failed") for what would answer
// wrongly. One that cannot be computed at all may end the process here, and not at somebody's request.
std::unique_ptr<tower> load_tower(const tower::settings & wanted, const llama_model * text, const tower::progress_fn & progress);

// Encodes the largest picture that the tower takes, for `time_s` of this thread's time: with none, all is allocated and nothing
// computed. Whether it came to its end; there is none where the tower only hears.
bool encode_largest_picture(tower & t, double time_s);

}  // namespace lm
