// Embeddings and scores: texts of many requests packed into each batch, answers in the order of a request's inputs.
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
    bool as_json = false; // vectors are wanted as JSON text
    size_t n_packed = 0;  // inputs that are in the current batch or done
    size_t n_done = 0;
    bool ended = false; // answered; swept at the end of the step
};

class embedder {
  public:
    embedder(model & m, pulse & p);

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
    std::vector<packed> pack(llama_batch_ext * batch);
    void compute(llama_batch_ext * batch);
    void say(const packed & text, llama_seq_id seq, frame_batch & events);
    void end(embedding_job & job, frame_kind kind, const std::string & payload, frame_batch & events);
    void sweep();

    model & model_; // borrowed
    pulse & pulse_; // borrowed
    const size_t pack_tokens_;
    std::deque<std::unique_ptr<embedding_job>> jobs_; // in the order of their turns
    std::vector<float> row_;
    std::string text_;
};

}  // namespace lm
