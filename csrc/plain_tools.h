// Tools as templates can show them that expect of every argument one type by its name, and of every list what is in it: many
// fail at schemas that say it otherwise, or leave it open.
#pragma once

#include "chat.h"

#include <vector>

namespace lm {

// Says one type of each node of the tools' parameters, one that the node allows; false: all do already.
bool make_plain(std::vector<common_chat_tool> & tools);

}  // namespace lm
