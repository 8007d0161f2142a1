// What a load would take of the memory, per device, before anything of it is taken.
#pragma once

#include "protocol.h"

#include <string>

namespace lm {

// The ESTIMATED event for a load with `spec`. Throws as model's constructor does, but not for want of memory. Counts this
// process itself too, so it is only right in one that holds no model.
std::string estimate_payload(load_spec spec);

}  // namespace lm
