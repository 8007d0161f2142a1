// A small KV cache takes memory only as far as it is used: llama.cpp fills it with zeros when it is made, and what reads as
// zeros need not be there. It has been there, so that a load which memory does not suffice for still fails as a load.
//
// A large one keeps what it has: it was promised to this model, and whoever loads another one looks at what is free.
#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

// Less than what an estimate of a load may be wrong by, for any model but the smallest.
static constexpr size_t SMALL_BYTES = 16 << 20;

// Called by the patched llama-kv-cache.cpp with what it has just filled. It stays filled with zeros, whatever memory it is.
void lm_forget_zeros(void * begin, size_t n_bytes) {
#if defined(__linux__)
    if (begin == nullptr || n_bytes > SMALL_BYTES) {
        return;
    }
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t first = (uintptr_t(begin) + page - 1) / page * page;
    const uintptr_t end = (uintptr_t(begin) + n_bytes) / page * page;
    if (end > first) {
        madvise(reinterpret_cast<void *>(first), end - first, MADV_DONTNEED); // fails on memory that is locked, which stays
    }
#else
    (void) begin;
    (void) n_bytes;
#endif
}
