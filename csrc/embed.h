// Embeddings and scores: texts of many requests packed into each computation, answers in the order of a request's inputs.
// Short texts are computed in lanes side by side (see model.h), one that is alone or long with all threads.
#pragma once

#include "error.h"
#include "model.h"
#include "heartbeat.h"
#include "sequence.h"
#include "wire.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace lm {

struct embedding_job {
    ticket_ptr request;
    std::vector<std::vector<llama_token>> inputs;
    bool as_json = false; // vectors are wanted as JSON text
    size_t dimensions = 0; // of a vector, its first ones; 0: all

    // the embedder's
    size_t n_packed = 0;           // inputs that are being computed or done
    size_t n_said = 0;             // inputs whose rows are in the outbox
    std::vector<std::string> rows; // one per input; empty before it is computed, and once it is said
    bool ended = false;            // answered, whatever is still computed for it
};

class embedder {
  public:
    embedder(model & m, outbox & out, pulse & p, uint64_t max_queue);

    // Thread safe. Throws error("queue_full").
    void submit(std::unique_ptr<embedding_job> job);
    // Looks for cancelled requests.
    void wake();
    void stop();

    // The decode thread's body, which is the first lane; returns after stop(), when all lanes are at rest.
    void run();

  private:
    using job_ptr = std::shared_ptr<embedding_job>;
    using batch_ptr = std::unique_ptr<llama_batch_ext, void (*)(llama_batch_ext *)>;

    struct packed {
        job_ptr job;
        size_t input;
        std::string row; // once it is computed; empty if the model gave numbers that are not finite
    };
    // What is computed at once. While nothing is, it has no texts.
    struct pack {
        size_t lane = 0;   // whose context computes it
        bool wide = false; // with all threads, while nothing else is computed
        std::vector<packed> texts;
    };

    void work(size_t lane);
    void work_safely(size_t lane);
    bool next(size_t lane, pack & p);
    bool take(size_t lane, pack & p);
    bool is_wide() const;
    size_t budget(bool wide) const;
    void fill(pack & p, size_t n_tokens);
    void compute(pack & p);
    void read_rows(pack & p);
    void answer(pack & p);
    void say_rows(embedding_job & job, frame_batch & events);
    void end(embedding_job & job, frame_kind kind, const std::string & payload, frame_batch & events);
    void end_cancelled();
    void fail_all(const error & e);
    void sweep();

    model & model_;   // borrowed
    outbox & outbox_; // borrowed
    pulse & pulse_;   // borrowed
    const uint64_t max_queue_;
    std::vector<batch_ptr> batches_; // of each lane

    std::mutex mutex_; // guards what follows, and the order of a request's rows in the outbox
    std::condition_variable changed_;
    std::vector<job_ptr> jobs_;   // that are not answered
    std::deque<job_ptr> waiting_; // of those, the ones with texts that are in no pack yet, in the order of their turns
    size_t n_texts_ = 0;          // that are in no pack yet
    size_t n_tokens_ = 0;         // theirs
    size_t n_busy_ = 0;           // packs that are being computed
    bool wide_ = false;           // the one that is, is wide
    std::atomic<bool> stopping_{false};
    std::exception_ptr failed_; // what a lane did not survive
};

}  // namespace lm
