// Searches of texts within a budget (budget.h), for our patches of llama.cpp's templates (vendor/patches): what the C++ library
// offers takes the product of both lengths at worst, and goes to its end whatever that is.
#pragma once

#include <string>

namespace lm {

// As std::string's find and rfind, in time that grows with the sum of the lengths.
size_t find_counted(const std::string & text, const std::string & part, size_t from);
size_t rfind_counted(const std::string & text, const std::string & part);

// Every `part`, which is not empty, by another text.
void replace_counted(std::string & text, const std::string & part, const std::string & by);

}  // namespace lm
