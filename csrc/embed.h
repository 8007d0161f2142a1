// Embeddings: many texts packed into each batch, answers in the order of the inputs.
#pragma once

#include "model.h"
#include "pulse.h"
#include "sequence.h"
#include "wire.h"

#include <deque>
#include <memory>
#include <vector>

namespace lm {

struct embedding_job {
    ticket_ptr request;
    std::vector<std::vector<llama_token>> inputs;
    size_t n_done = 0;
};

class embedder {
  public:
    embedder(model & m, pulse & p) : model_(m), pulse_(p) {}

    void add(std::unique_ptr<embedding_job> job) { jobs_.push_back(std::move(job)); }
    bool idle() const { return jobs_.empty(); }
    size_t n_jobs() const { return jobs_.size(); }
    // Computes one pack of texts, from as many requests as fit, and writes their events.
    void step(llama_batch_ext * batch, frame_batch & events);
    // Answers every request with `payload`, an ERROR event's.
    void fail_all(const std::string & payload, frame_batch & events);

  private:
    struct packed {
        embedding_job * job; // borrowed from jobs_
        size_t input;
    };
    void end_cancelled(frame_batch & events);
    std::vector<packed> pack(llama_batch_ext * batch);
    void finish_front(frame_batch & events);

    model & model_; // borrowed
    pulse & pulse_; // borrowed
    std::deque<std::unique_ptr<embedding_job>> jobs_;
};

}  // namespace lm
