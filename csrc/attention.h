// Attention on the CPU over a cache that many sequences share. llama.cpp's own kernels walk all cells for each head of each
// query and ask the mask at each; most belong to other sequences there. This one looks at the mask once per query, computes
// with the cells that are seen, and reads each of them once for all heads that share it.
#pragma once

namespace lm {

// From now on llama.cpp's CPU backend computes flash attention here. Once per process, before a model is loaded; contexts
// without flash attention and other backends are not concerned.
//
// One sequence alone gets llama.cpp's own numbers: a single query that sees most of the cells is left to it, short runs of
// queries that see few are computed in its very steps, and in long ones sums of 32-bit floats differ in their order only. Short
// runs that see many are computed in 32-bit floats, where llama.cpp adds 16-bit ones.
void install_attention();

}  // namespace lm
