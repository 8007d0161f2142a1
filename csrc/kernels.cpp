// Chooses when the library is loaded, before anything else of it runs: what is computed later may keep what was computed
// with one set, and no set can be changed for another. Nothing here may need more than the architecture's own instructions.
#include "kernels.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(LMLITE_KERNELS) && defined(__x86_64__)
#include <cpuid.h>
#elif defined(LMLITE_KERNELS) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace lm {

#if defined(LMLITE_KERNELS)

struct kernel_set {
    const char * name;
    bool can_run;
};

#if defined(__x86_64__)

static constexpr const char * LEAST = "SSE4.2, which x86-64 CPUs have since 2008 (Intel) and 2011 (AMD)";

static bool bit(uint32_t word, int n) {
    return (word >> n & 1) != 0;
}

// What the system saves of a thread is as needed as the instructions: XCR0.
static uint32_t saved_states() {
    uint32_t low = 0;
    uint32_t high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool can_run(const char * name) {
    uint32_t a = 0;
    uint32_t b = 0;
    uint32_t c1 = 0;
    uint32_t d = 0;
    if (!__get_cpuid(1, &a, &b, &c1, &d)) {
        return false;
    }
    const bool sse42 = bit(c1, 20) && bit(c1, 9) && bit(c1, 23); // with SSSE3 and POPCNT
    if (strcmp(name, "sse42") == 0 || !sse42 || !bit(c1, 27)) {
        return sse42 && strcmp(name, "sse42") == 0;
    }
    const uint32_t saved = saved_states();
    uint32_t b7 = 0;
    uint32_t c7 = 0;
    uint32_t d7 = 0;
    uint32_t a71 = 0;
    __get_cpuid_count(7, 0, &a, &b7, &c7, &d7);
    if (a >= 1) {
        __get_cpuid_count(7, 1, &a71, &b, &a, &d);
    }
    const bool avx2 = (saved & 0x6) == 0x6 && bit(c1, 28) && bit(c1, 12) && bit(c1, 29) && bit(b7, 5) && bit(b7, 8); // FMA, F16C, BMI2
    const bool avx512 = avx2 && (saved & 0xE6) == 0xE6 && bit(b7, 16) && bit(b7, 17) && bit(b7, 28) && bit(b7, 30) && bit(b7, 31) &&
                        bit(c7, 1) && bit(c7, 11); // F, DQ, CD, BW, VL, VBMI, VNNI
    const bool bf16 = bit(a71, 5);
    const bool tiles = (saved & 0x60000) == 0x60000 && bit(d7, 24) && bit(d7, 25); // AMX-TILE, AMX-INT8
    return (strcmp(name, "haswell") == 0 && avx2) || (strcmp(name, "alderlake") == 0 && avx2 && bit(a71, 4)) ||
           (strcmp(name, "icelake") == 0 && avx512) || (strcmp(name, "zen4") == 0 && avx512 && bf16) ||
           (strcmp(name, "sapphirerapids") == 0 && avx512 && bf16 && tiles);
}

#else

static constexpr const char * LEAST = "ARMv8-A";

static bool can_run(const char * name) {
    const unsigned long words = getauxval(AT_HWCAP);
    const unsigned long more = getauxval(AT_HWCAP2);
    const bool dotprod = (words >> 20 & 1) != 0 && (words >> 10 & 1) != 0 && (words >> 9 & 1) != 0; // ASIMDDP, ASIMDHP, FPHP
    return strcmp(name, "armv8") == 0 || (strcmp(name, "dotprod") == 0 && dotprod) ||
           (strcmp(name, "i8mm") == 0 && dotprod && (more >> 13 & 1) != 0);
}

#endif

static constexpr const char * SETS[] = {LMLITE_KERNELS}; // from the least to the best
static constexpr int N_SETS = sizeof SETS / sizeof *SETS;

// LMLITE_KERNELS names one of them; one that this CPU has not, or nobody knows, is as good as none.
static int choose() {
    const char * named = getenv("LMLITE_KERNELS");
    int best = -1;
    for (int i = 0; i < N_SETS; i++) {
        if (can_run(SETS[i])) {
            best = i;
            if (named != nullptr && strcmp(named, SETS[i]) == 0) {
                return i;
            }
        }
    }
    return best;
}

#endif

}  // namespace lm

#if defined(LMLITE_KERNELS)

// Read by the entries that kernels.py writes.
extern "C" __attribute__((visibility("hidden"))) int32_t lm_kernels_level = 0;

static bool lm_kernels_lack = false;

__attribute__((constructor(101))) static void lm_choose_kernels() {
    const int level = lm::choose();
    lm_kernels_lack = level < 0;
    lm_kernels_level = level < 0 ? 0 : level;
}

const char * lm::kernels() {
    return SETS[lm_kernels_level];
}

const char * lm::missing_instructions() {
    return lm_kernels_lack ? LEAST : nullptr;
}

#else

const char * lm::kernels() {
    return "native";
}

const char * lm::missing_instructions() {
    return nullptr;
}

#endif
