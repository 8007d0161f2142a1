// What is compiled into ggml's kernels for Intel's matrix tiles (AMX) in place of the compiler's own `_tile_loadconfig`.
//
// GCC's header tells its optimizer that `ldtilecfg` reads 8 of the 64 bytes that it reads (GCC 12 at least): where the
// call is inlined, the rest is never written, no tile has a shape, and the first use of one is an illegal instruction.
#pragma once

#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

static inline void lm_load_tile_config(const void * config) {
    __asm__ volatile("ldtilecfg (%0)" : : "r"(config) : "memory");
}

#undef _tile_loadconfig // a macro where nothing is optimized
#define _tile_loadconfig lm_load_tile_config
#endif
