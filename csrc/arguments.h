// A tool call's arguments as templates can take them. Many templates walk the arguments as an object, and an answer that
// was cut off leaves half of one: a conversation must not die of it.
#pragma once

#include <string>

namespace lm {

// The text of a JSON object: `text` itself if it is one, what there is of it and closed if it was cut off, else an object
// that holds the text. Never throws for what it reads.
std::string mend_arguments(const std::string & text);

}  // namespace lm
