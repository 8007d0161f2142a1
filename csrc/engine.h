// The decode thread of one engine: admit, plan a batch, decode it, sample, emit. Nothing else touches the context.
#pragma once

#include "disk_tier.h"
#include "drafter.h"
#include "embed.h"
#include "encoder.h"
#include "error.h"
#include "model.h"
#include "pace.h"
#include "prefix.h"
#include "heartbeat.h"
#include "sequence.h"
#include "wire.h"

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

namespace lm {

class engine {
  public:
    // `m`, `out` and `p` are borrowed and outlive the engine. More than `max_queue` waiting requests are refused.
    engine(model & m, outbox & out, pulse & p, uint64_t max_queue);

    // Thread safe. Ownership moves to the decode thread. Throws error("queue_full").
    void submit(std::unique_ptr<sequence> s);
    void submit(std::unique_ptr<embedding_job> job);
    // From the next step on `m` drafts for the requests that ask for a draft model, instead of any before.
    void attach_draft(std::unique_ptr<draft_model> m);
    // Wakes the decode thread, because a ticket was cancelled.
    void wake();
    void stop();

    // The decode thread's body; returns after stop().
    void run();

  private:
    bool wait_for_work();
    void take_arrivals();
    void step();
    void generate_step();
    void send();

    void admit();
    bool joins_a_prefill(const sequence & s);
    void end_cancelled();
    bool decode();
    std::vector<sequence *> in_turn();
    void plan(bool guess);
    void add_to_batch(sequence & s, size_t n);
    bool make_room();
    void attend(bool beside_streams);
    bool find_rows();
    void encode(bool waits);
    void take_encoded();
    sequence * next_to_encode() const;
    bool is_wanted(const std::string & key) const;
    void plan_rows();
    bool decode_rows();
    void add_rows(sequence & s, size_t part, size_t n);
    void count_media(const sequence & s);
    void preempt(sequence & s);
    void advance_all();
    void advance(sequence & s);
    void tell_progress(const sequence & s);
    void follow_draft(sequence & s);
    void retract_draft(sequence & s);
    void score(sequence & s, size_t begin);
    void sample(sequence & s);
    void begin_answer(sequence & s);
    void forget_middle(sequence & s);
    void say(sequence & s);
    void tell_logprobs(sequence & s, size_t n);
    void finish(sequence & s, stop_reason reason);
    void fail(sequence & s, const error & e);
    void fail_everything_in_work(const error & e);
    void sweep();
    void report();
    std::vector<sequence *> running() const;

    model & model_;   // borrowed
    outbox & outbox_; // borrowed
    pulse & pulse_;   // borrowed
    const uint64_t max_queue_;
    std::unique_ptr<embedder> embedder_; // does all the work of an embedding model; else null
    std::unique_ptr<prefix_cache> cache_;
    std::unique_ptr<disk_tier> disk_; // null: prompts do not outlive the engine
    std::unique_ptr<drafter> drafter_; // null where guesses could not be taken back
    std::unique_ptr<llama_batch_ext, void (*)(llama_batch_ext *)> batch_;

    // shared with the other threads
    std::mutex mutex_;
    std::condition_variable arrived_;
    std::deque<std::unique_ptr<sequence>> arrivals_;
    std::unique_ptr<draft_model> draft_arrival_;
    bool woken_ = false;
    std::atomic<bool> stopping_{false};

    // the decode thread's own
    std::deque<std::unique_ptr<sequence>> waiting_; // first come, first served
    std::vector<std::unique_ptr<sequence>> running_; // in the order of their admission
    frame_batch events_; // of this step, sent at its end, or with those of the next if both are short
    steady::time_point sent_at_;
    std::vector<float> row_; // a copy of the logits row where the original is still needed
    lora_scales loras_; // those of this turn
    uint64_t turn_ = 1;
    steady::time_point turn_began_;
    size_t n_batched_ = 0;
    size_t n_prefilled_ = 0; // prompt tokens among them
    size_t n_guessed_ = 0;   // tokens among them that nobody has said yet
    steady::time_point now_; // the end of this step's computation
    double step_ms_ = 0;
    prefill_pace alone_;
    prefill_pace beside_streams_;
    prefill_pace * pace_ = &alone_; // this step's

    // pictures and sounds
    std::unique_ptr<encoder> encoder_; // null: the model neither sees nor hears
    prefill_pace rows_alone_;
    prefill_pace rows_beside_streams_;
    prefill_pace * rows_pace_ = &rows_alone_;
    uint64_t n_begun_ = 0;    // encodings
    uint64_t n_shown_ = 0;    // shares of batches of rows
    lent_time lent_;          // by the streams, to what is not theirs
    bool rows_are_next_ = false;
    const media_part * whole_ = nullptr; // all of this batch, if its cells see each other
};

}  // namespace lm
