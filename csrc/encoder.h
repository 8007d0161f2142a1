// The thread on which pictures and sounds are encoded. It computes only while the decode thread lets it, from one operation of
// the projector's to the next, so that one of the two computes at a time and the streams go on in between. Where a single
// operation takes longer than anybody should wait, the two overlap.
#pragma once

#include "error.h"
#include "thread.h"
#include "tower.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>

namespace lm {

class encoder {
  public:
    explicit encoder(tower & t); // borrowed
    ~encoder(); // ends what is computed
    encoder(const encoder &) = delete;
    encoder & operator=(const encoder &) = delete;

    struct result {
        std::string key;
        media_rows rows;            // null: failed, or was ended
        std::optional<error> failed;
    };

    // All of these are the decode thread's.
    bool is_busy() const { return current_ != nullptr; }
    // What is encoded, or was ended and has not stopped yet; null if nothing is.
    const media_part * current() const { return current_.get(); }
    // Takes the part on. Not while it is busy.
    void begin(const media_part & part);
    // Lets it compute for so long, and waits until it pauses or is done, but no longer than `patience_ms`. An operation that is
    // under way since an earlier call is waited for only if `waits`.
    void run_for(double ms, double patience_ms, bool waits);
    // What was encoded ends at its next pause.
    void end();
    // What came of the last part, once.
    std::optional<result> take();

  private:
    using clock = std::chrono::steady_clock;
    enum class state { idle, paused, computing, done };

    void work();
    bool pause();

    tower & tower_; // borrowed
    std::shared_ptr<const media_part> current_; // the decode thread's
    std::mutex mutex_;
    std::condition_variable changed_;
    state state_ = state::idle;
    std::shared_ptr<const media_part> given_;
    uint64_t n_grants_ = 0;
    clock::time_point until_; // of the last grant
    bool ended_ = false;
    bool closing_ = false;
    result result_;
    thread thread_;
};

}  // namespace lm
