// What other people's programs may cost: a chat template is a program that came with a file. Memory, stack and time are
// bounded together, at the one place that none of them is had without for long: operator new.
#pragma once

#include <cstddef>

namespace lm {

// Thrown out of the work that takes too much. No std::exception, because those are caught on the way by who would go on.
struct over_budget {
    const char * what; // "memory", "stack" or "time"
};

struct budget_limits {
    size_t bytes; // at any one time, of what was allocated within
    size_t stack_bytes; // and never more than half of what the thread has left
    double cpu_ms;
};

// From its construction to its end it bounds what this thread does; one within another does nothing.
class budget {
  public:
    explicit budget(const budget_limits & limits);
    ~budget();
    budget(const budget &) = delete;
    budget & operator=(const budget &) = delete;

    // Throws over_budget, but never while another exception is on its way. For operator new and for what recurses without it.
    static void spend(size_t n_bytes);
    static void give_back(size_t n_bytes) noexcept;

  private:
    void charge(size_t n_bytes);

    const budget_limits limits_;
    const bool outermost_;
    ptrdiff_t bytes_ = 0; // what was allocated before and is freed now counts against it
    size_t n_spent_ = 0;
    const char * const lowest_; // of the stack
    const double began_ms_;
};

// budget::spend(0), for our patch of llama.cpp's templates (vendor/patches).
void count_step();

// What was freed goes back to the machine, and what of the calling thread's stack is not in use any more: both are kept for a
// next time that may never come. Takes milliseconds.
void give_memory_back();

}  // namespace lm
