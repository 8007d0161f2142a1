#include "wire.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <new>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace lm {

#ifdef MSG_NOSIGNAL
static constexpr int SEND_FLAGS = MSG_NOSIGNAL | MSG_DONTWAIT;
#else
static constexpr int SEND_FLAGS = MSG_DONTWAIT; // SO_NOSIGPIPE is set on the socket instead
#endif

// A peer that has not read this much is gone in all but name; what follows would only fill memory.
static constexpr size_t MAX_PENDING = 256u << 20;

static uint32_t load_u32(const unsigned char * p) {
    return uint32_t(p[0]) | uint32_t(p[1]) << 8 | uint32_t(p[2]) << 16 | uint32_t(p[3]) << 24;
}

static void store_u32(std::string & out, uint32_t v) {
    const char bytes[4] = {char(v), char(v >> 8), char(v >> 16), char(v >> 24)};
    out.append(bytes, 4);
}

bool frame_reader::read_exactly(char * into, size_t n) {
    while (n > 0) {
        const ssize_t got = ::read(fd_, into, n);
        if (got > 0) {
            into += got;
            n -= size_t(got);
        } else if (got == 0 || errno != EINTR) {
            return false;
        }
    }
    return true;
}

bool frame_reader::read(frame & out) {
    unsigned char header[FRAME_HEADER_SIZE];
    if (!read_exactly(reinterpret_cast<char *>(header), sizeof header)) {
        return false;
    }
    const uint32_t length = load_u32(header);
    if (length > MAX_PAYLOAD) {
        malformed_ = true;
        return false;
    }
    out.kind = frame_kind(load_u32(header + 4));
    out.request_id = load_u32(header + 8);
    out.lost = false;
    try {
        out.payload.resize(length);
    } catch (const std::bad_alloc &) { // costs that request, not the others
        out.lost = true;
        out.payload.clear();
        return skip(length);
    }
    return read_exactly(out.payload.data(), length);
}

bool frame_reader::skip(size_t n) {
    char part[4096];
    for (size_t left = n; left > 0; left -= std::min(left, sizeof part)) {
        if (!read_exactly(part, std::min(left, sizeof part))) {
            return false;
        }
    }
    return true;
}

void frame_batch::add(frame_kind kind, uint32_t request_id, std::string_view payload) {
    store_u32(bytes_, uint32_t(payload.size()));
    store_u32(bytes_, uint32_t(kind));
    store_u32(bytes_, request_id);
    bytes_.append(payload);
    switch (kind) {
        case frame_kind::TEXT:
        case frame_kind::REASONING:
        case frame_kind::TOOL_CALL:
        case frame_kind::LOGPROBS: break;
        default: urgent_ = true;
    }
}

size_t outbox::write_now(const char * bytes, size_t n) {
    size_t written = 0;
    while (written < n) {
        const ssize_t sent = ::send(fd_, bytes + written, n - written, SEND_FLAGS);
        if (sent > 0) {
            written += size_t(sent);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            break;
        } else if (errno != EINTR) {
            broken_ = true;
            break;
        }
    }
    return written;
}

void outbox::send(frame_batch & batch) {
    if (batch.bytes_.empty()) {
        return;
    }
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!broken_ && !closed_) {
            size_t written = 0;
            if (pending_.empty() && !writing_) {
                written = write_now(batch.bytes_.data(), batch.bytes_.size());
            }
            if (written < batch.bytes_.size() && !broken_) {
                pending_.append(batch.bytes_, written, std::string::npos);
                broken_ = pending_.size() > MAX_PENDING;
                filled_.notify_one();
            }
        }
    }
    batch.bytes_.clear();
    batch.urgent_ = false;
}

void outbox::send(frame_kind kind, uint32_t request_id, std::string_view payload) {
    frame_batch batch;
    batch.add(kind, request_id, payload);
    send(batch);
}

bool outbox::step() {
    std::string chunk;
    {
        std::unique_lock<std::mutex> lock(mutex_);
        filled_.wait_for(lock, std::chrono::seconds(1), [&] { return closed_ || broken_ || !pending_.empty(); });
        if (broken_ || (closed_ && pending_.empty())) {
            return false;
        }
        chunk.swap(pending_);
        writing_ = !chunk.empty();
    }
    for (size_t written = 0; written < chunk.size() && !broken_;) {
        written += write_now(chunk.data() + written, chunk.size() - written);
        if (written < chunk.size() && !broken_) {
            pollfd writable = {fd_, POLLOUT, 0};
            ::poll(&writable, 1, 1000);
            std::lock_guard<std::mutex> lock(mutex_);
            if (closed_) {
                return false; // the peer left without reading the rest
            }
        }
    }
    std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    return true;
}

void outbox::close() {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    filled_.notify_one();
}

}  // namespace lm
