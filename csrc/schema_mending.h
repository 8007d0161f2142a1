// Schemas that are rarely their sender's own to change, as those of tools are: what a compiler would refuse in one is left out of
// it, node by node and keyword by keyword, so that all the rest is held to.
#pragma once

#include "json_value.h"

#include <string>
#include <vector>

namespace lm {

// What was left out, in words. Nothing is said of other spellings of the same (types in capitals, `true` for any value).
std::vector<std::string> mend_schema(json_value & root);

}  // namespace lm
