// What the watchdog on the other side of the socket needs to know, written by the working threads and read by the
// writer once a second.
#pragma once

#include "sequence.h"

#include <algorithm>
#include <array>
#include <atomic>

namespace lm {

// How long the current piece of work has run; 0 while there is none.
class stopwatch {
  public:
    void start() { started_us_ = now_us(); }
    void stop() { started_us_ = 0; }
    int64_t running_ms() const {
        const int64_t started = started_us_;
        return started == 0 ? 0 : (now_us() - started) / 1000;
    }

  private:
    static int64_t now_us() {
        return std::chrono::duration_cast<std::chrono::microseconds>(steady::now().time_since_epoch()).count();
    }
    std::atomic<int64_t> started_us_{0};
};

constexpr size_t MOST_STEPS = 4; // that run at once, one in each lane of an embedding model

struct pulse {
    std::array<stopwatch, MOST_STEPS> steps; // the first is the decode thread's
    stopwatch preparation;     // the preparer's current template, text or grammar
    std::atomic<int> pending{0}; // requests that have not been answered

    std::atomic<uint64_t> decode_steps{0};
    std::atomic<uint64_t> decoded_tokens{0};
    std::atomic<uint64_t> prompt_tokens{0};
    std::atomic<uint64_t> cached_tokens{0};
    std::atomic<uint64_t> media_encoded{0};
    std::atomic<uint64_t> media_reused{0};
    std::atomic<uint64_t> disk_hits{0};          // prompts that found something on the disk, ...
    std::atomic<uint64_t> disk_tokens{0};        // how much of them, ...
    std::atomic<uint64_t> disk_read_bytes{0};    // and what was read for that
    std::atomic<uint64_t> disk_written_bytes{0};
    std::atomic<uint64_t> disk_bytes{0};         // in the whole folder, when it was last looked at
    std::atomic<uint64_t> disk_damaged{0};       // files
    std::atomic<uint64_t> running{0};
    std::atomic<uint64_t> queued{0};
    std::atomic<uint64_t> cells_used{0};

    // How long the longest of the current steps has run.
    int64_t step_ms() const {
        int64_t longest = 0;
        for (const stopwatch & step : steps) {
            longest = std::max(longest, step.running_ms());
        }
        return longest;
    }
};

}  // namespace lm
