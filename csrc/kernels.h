// Which of a portable build's sets of kernels this process computes with. They are listed in kernels.cmake.
#pragma once

namespace lm {

// "haswell", for example; "native" where there is but one, compiled for the machine of the build. Static.
const char * kernels();

// Null where this CPU can run the library; else what it lacks. Static.
const char * missing_instructions();

}  // namespace lm
