// A mutex that is had in the order in which it was asked for. A thread that takes a std::mutex again as soon as it has let go of it
// keeps all others waiting for as long as it goes on.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace lm {

class queue_lock {
  public:
    void lock() {
        std::unique_lock<std::mutex> lock(mutex_);
        const uint64_t turn = last_++;
        changed_.wait(lock, [&] { return turn == current_; });
    }

    void unlock() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            current_++;
        }
        changed_.notify_all();
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    uint64_t last_ = 0;    // who comes next has this turn
    uint64_t current_ = 0; // whose turn it is
};

} // namespace lm
