// The socket's two ends inside the engine: whole frames in, batches of frames out.
// Refuses frames over MAX_PAYLOAD; never blocks the decode thread on a slow peer.
#pragma once

#include "frames.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <string_view>

namespace lm {

struct frame {
    frame_kind kind;
    uint32_t request_id;
    std::string payload;
    bool lost = false; // there was no memory for the payload, which was read and forgotten
};

// Reads whole frames. Returns false when the peer closed the socket; `malformed()` then tells a protocol error apart.
class frame_reader {
  public:
    explicit frame_reader(int fd) : fd_(fd) {}

    bool read(frame & out);
    bool malformed() const { return malformed_; }

  private:
    bool read_exactly(char * into, size_t n);
    bool skip(size_t n);

    int fd_; // borrowed
    bool malformed_ = false;
};

// Frames collected during one decode step or one preparation, sent together.
class frame_batch {
  public:
    void add(frame_kind kind, uint32_t request_id, std::string_view payload);
    // Whether anything in it should not wait: all but the deltas of an answer under way, unless they `hurry`.
    bool urgent() const { return urgent_; }
    void hurry() { urgent_ = true; }

  private:
    friend class outbox;
    std::string bytes_;
    bool urgent_ = false;
};

// Thread safe. `send` writes straight to the socket while that does not block; what is left is the writer thread's.
class outbox {
  public:
    explicit outbox(int fd) : fd_(fd) {}

    // Moves the batch's bytes out; the batch can be filled again.
    void send(frame_batch & batch);
    void send(frame_kind kind, uint32_t request_id, std::string_view payload);

    // The writer thread's body: writes what `send` left, calls `beat` about once a second, returns after `close`.
    template <typename Beat>
    void run(Beat beat) {
        while (step()) {
            beat();
        }
    }

    void close();
    bool broken() const { return broken_; }

  private:
    bool step(); // waits up to a second for bytes and writes them; false once closed and drained
    size_t write_now(const char * bytes, size_t n);

    int fd_; // borrowed
    std::mutex mutex_;
    std::condition_variable filled_;
    std::string pending_;
    bool writing_ = false;
    bool closed_ = false;
    std::atomic<bool> broken_{false};
};

}  // namespace lm
