// A thread that is joined before its object is gone, and the one owner of a descriptor.
#pragma once

#include <functional>
#include <memory>
#include <pthread.h>

namespace lm {

class thread {
  public:
    using body = std::function<void()>;

    thread() = default; // none
    // Runs `what` on a stack of that many bytes; 0: as large as usual. Throws error("out_of_memory") if no thread can be had.
    explicit thread(body what, size_t stack = 0);
    ~thread() { join(); }
    thread(thread && other) noexcept { *this = std::move(other); }
    thread & operator=(thread && other) noexcept;

    bool joinable() const { return body_ != nullptr; }
    void join(); // at once if there is none

  private:
    std::unique_ptr<body> body_; // lies still while the thread runs it; null: none
    pthread_t handle_{};
};

class descriptor {
  public:
    explicit descriptor(int fd) : fd_(fd) {}
    ~descriptor();
    descriptor(const descriptor &) = delete;
    descriptor & operator=(const descriptor &) = delete;

    int get() const { return fd_; }

  private:
    int fd_;
};

}  // namespace lm
