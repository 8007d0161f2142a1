#include "budget.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <dlfcn.h>
#include <exception>
#include <new>
#include <pthread.h>
#include <sstream>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

// Else what they do lies in the C++ library, where the operators below do not reach.
#ifdef __GLIBCXX__
template class std::basic_string<char>;
template class std::basic_stringbuf<char>;
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;
#endif

namespace lm {

// To look at the clock costs as much as some allocations.
static constexpr size_t SPENT_BETWEEN_LOOKS = 1024;

// Of a stack of our own making, what lies further down than this from where it is now was used once and is not any more.
static constexpr size_t LARGE_STACK = 64u << 20;
static constexpr size_t STACK_KEPT = 256u << 10;

static thread_local budget * current = nullptr;

static double thread_ms() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return double(now.tv_sec) * 1e3 + double(now.tv_nsec) / 1e6;
}

// Where the calling thread's stack ends, and where it is now.
static char * end_of_stack() {
#ifdef __APPLE__
    return static_cast<char *>(pthread_get_stackaddr_np(pthread_self())) - pthread_get_stacksize_np(pthread_self());
#else
    pthread_attr_t attributes;
    void * low = nullptr;
    size_t size = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &low, &size);
        pthread_attr_destroy(&attributes);
    }
    return static_cast<char *>(low);
#endif
}

static char * stack_now() {
    return static_cast<char *>(__builtin_frame_address(0));
}

static const char * lowest(size_t stack_bytes) {
    return stack_now() - std::min(stack_bytes, size_t(stack_now() - end_of_stack()) / 2);
}

budget::budget(const budget_limits & limits) : limits_(limits), outermost_(current == nullptr), lowest_(lowest(limits.stack_bytes)), began_ms_(thread_ms()) {
    if (outermost_) {
        current = this;
    }
}

budget::~budget() {
    if (outermost_) {
        current = nullptr;
    }
}

void give_memory_back() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
#ifdef __linux__
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (uintptr_t(end_of_stack()) + page - 1) / page * page;
    const uintptr_t end = (uintptr_t(stack_now()) - STACK_KEPT) / page * page;
    if (end > begin + LARGE_STACK) {
        madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED);
    }
#endif
}

void budget::charge(size_t n_bytes) {
    const char * over = nullptr;
    if (n_bytes > limits_.bytes || bytes_ + ptrdiff_t(n_bytes) > ptrdiff_t(limits_.bytes)) {
        over = "memory";
    } else if (stack_now() < lowest_) {
        over = "stack";
    } else if (++n_spent_ % SPENT_BETWEEN_LOOKS == 0 && thread_ms() - began_ms_ > limits_.cpu_ms) {
        n_spent_--; // who goes on is told again
        over = "time";
    }
    if (over != nullptr && std::uncaught_exceptions() == 0) {
        throw over_budget{over};
    }
    bytes_ += ptrdiff_t(n_bytes);
}

void budget::spend(size_t n_bytes) {
    if (current != nullptr) {
        current->charge(n_bytes);
    }
}

void count_step() {
    budget::spend(0);
}

void budget::give_back(size_t n_bytes) noexcept {
    if (current != nullptr) {
        current->bytes_ -= ptrdiff_t(n_bytes);
    }
}

// ---- the operators --------------------------------------------------------------------------------------------------
// They only count, in this library (which exports none of them): the memory comes from where it comes from in all the rest
// of the process, since what one part allocates another one frees.

template <typename F>
static F other_definition(const char * name, F own) {
    for (void * where : {RTLD_DEFAULT, RTLD_NEXT}) {
        const F found = reinterpret_cast<F>(dlsym(where, name));
        if (found != nullptr && found != own) {
            return found;
        }
    }
    return nullptr;
}

using allocate_fn = void * (*)(size_t);
using free_fn = void (*)(void *);

static void * plain_new(size_t n) {
    static const allocate_fn other =
        other_definition<allocate_fn>(sizeof(size_t) == 8 ? "_Znwm" : "_Znwj", static_cast<allocate_fn>(::operator new));
    if (other != nullptr) {
        return other(n);
    }
    for (;;) {
        if (void * p = std::malloc(n == 0 ? 1 : n)) {
            return p;
        }
        const std::new_handler handler = std::get_new_handler();
        if (handler == nullptr) {
            throw std::bad_alloc();
        }
        handler();
    }
}

static void plain_delete(void * p) noexcept {
    static const free_fn other = other_definition<free_fn>("_ZdlPv", static_cast<free_fn>(::operator delete));
    if (other != nullptr) {
        other(p);
    } else {
        std::free(p);
    }
}

}  // namespace lm

void * operator new(size_t n) {
    lm::budget::spend(n);
    return lm::plain_new(n);
}

void operator delete(void * p) noexcept {
    lm::plain_delete(p);
}

void operator delete(void * p, size_t n) noexcept {
    if (p != nullptr) {
        lm::budget::give_back(n);
    }
    lm::plain_delete(p);
}
