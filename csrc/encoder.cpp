#include "encoder.h"

#include <new>

namespace lm {

// Decoders of files and llama.cpp's graph builders are content with little; this is what threads have elsewhere.
static constexpr size_t STACK = 8u << 20;

static std::chrono::steady_clock::duration as_duration(double ms) {
    return std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double, std::milli>(ms));
}

encoder::encoder(tower & t) : tower_(t), thread_([this] { work(); }, STACK) {}

encoder::~encoder() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        closing_ = ended_ = true;
        changed_.notify_all();
    }
    thread_.join();
}

void encoder::begin(const media_part & part) {
    current_ = std::make_shared<const media_part>(part);
    std::lock_guard<std::mutex> lock(mutex_);
    given_ = current_;
    ended_ = false;
    until_ = clock::now();
    state_ = state::paused;
    changed_.notify_all();
}

void encoder::run_for(double ms, double patience_ms, bool waits) {
    std::unique_lock<std::mutex> lock(mutex_);
    const bool under_way = state_ == state::computing;
    if (!current_ || (under_way && !waits)) {
        return;
    }
    until_ = clock::now() + as_duration(ms);
    n_grants_++;
    if (state_ == state::paused) {
        state_ = state::computing;
    }
    changed_.notify_all();
    changed_.wait_for(lock, as_duration(patience_ms), [&] { return state_ != state::computing; });
}

void encoder::end() {
    std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
    changed_.notify_all();
}

std::optional<encoder::result> encoder::take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (state_ != state::done) {
        return std::nullopt;
    }
    state_ = state::idle;
    current_.reset();
    return std::move(result_);
}

// ---- its thread ---------------------------------------------------------------------------------------------------------

bool encoder::pause() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!ended_ && clock::now() >= until_) {
        state_ = state::paused;
        changed_.notify_all();
        changed_.wait(lock, [&, before = n_grants_] { return ended_ || n_grants_ != before; });
        state_ = state::computing;
    }
    return !ended_;
}

void encoder::work() {
    for (;;) {
        std::shared_ptr<const media_part> part;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            changed_.wait(lock, [&] { return closing_ || given_; });
            if (closing_) {
                return;
            }
            part = std::move(given_);
        }
        result came{part->key, nullptr, std::nullopt};
        try {
            if (pause()) {
                came.rows = tower_.encode(*part, [this] { return pause(); });
            }
        } catch (const error & e) {
            came.failed = e;
        } catch (const std::bad_alloc &) {
            came.failed = error("out_of_memory", "there is no memory to encode a picture or a sound");
        } catch (const std::exception & e) {
            came.failed = error("internal", e.what());
        }
        std::lock_guard<std::mutex> lock(mutex_);
        result_ = std::move(came);
        state_ = state::done;
        changed_.notify_all();
    }
}

}  // namespace lm
