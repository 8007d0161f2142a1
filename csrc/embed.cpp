#include "embed.h"

#include "payload.h"
#include "thread.h"

#include "common.h"

#include <algorithm>
#include <cmath>

namespace lm {

// Attention is computed over the packed total, so on a CPU a bigger pack is not a faster one: 64 to 512 tokens were within a
// few percent of each other. A GPU needs more to be busy. In lanes small packs end together, and answers come early.
static constexpr size_t PACK_TOKENS_CPU = 320;
static constexpr size_t PACK_TOKENS_GPU = 2048;
static constexpr size_t PACK_TOKENS_LANE = 128;

embedder::embedder(model & m, outbox & out, pulse & p, uint64_t max_queue)
    : model_(m), outbox_(out), pulse_(p), max_queue_(max_queue) {
    for (size_t lane = 0; lane < m.n_lanes(); lane++) {
        llama_context * context = m.lane_context(lane);
        batches_.emplace_back(llama_batch_ext_init(context), llama_batch_ext_free);
        llama_set_abort_callback(
            context, [](void * stopping) { return static_cast<std::atomic<bool> *>(stopping)->load(); }, &stopping_);
    }
}

// ---- the other threads' side ------------------------------------------------------------------------------------------

void embedder::submit(std::unique_ptr<embedding_job> job) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (jobs_.size() >= max_queue_) {
        throw error("queue_full", "too many requests wait", json_object().add("limit", max_queue_).text());
    }
    job->rows.resize(job->inputs.size());
    n_texts_ += job->inputs.size();
    for (const auto & tokens : job->inputs) {
        n_tokens_ += tokens.size();
    }
    jobs_.push_back(std::move(job));
    waiting_.push_back(jobs_.back());
    pulse_.running = jobs_.size();
    changed_.notify_one();
}

void embedder::wake() {
    std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_one();
}

void embedder::stop() {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
}

// ---- lanes --------------------------------------------------------------------------------------------------------------

void embedder::run() {
    std::vector<thread> others;
    try {
        for (size_t lane = 1; lane < model_.n_lanes(); lane++) {
            others.emplace_back([this, lane] { work_safely(lane); });
        }
    } catch (const error &) { // those that there are do it all
    }
    work_safely(0);
    others.clear();
    if (failed_) {
        std::rethrow_exception(failed_);
    }
}

// What one lane cannot go on after is the end of all of them.
void embedder::work_safely(size_t lane) {
    try {
        work(lane);
    } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        failed_ = std::current_exception();
        stopping_ = true;
        changed_.notify_all();
    }
}

void embedder::work(size_t lane) {
    for (pack p; next(lane, p);) {
        pulse_.steps[lane].start();
        try {
            compute(p);
            read_rows(p);
            answer(p);
        } catch (const error & e) {
            fail_all(e);
        } catch (const std::bad_alloc &) {
            fail_all(error("out_of_memory", "an allocation failed"));
        } catch (const std::exception & e) {
            fail_all(error("internal", e.what()));
        }
        pulse_.steps[lane].stop();
    }
}

// Gives back `p` and waits for another; false once stopped. Whoever begins a pack wakes the next if there is more to begin,
// and looks for more at its end: so texts wait only for lanes that work.
bool embedder::next(size_t lane, pack & p) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!p.texts.empty()) {
        n_busy_--;
        wide_ = false;
        p.texts.clear();
    }
    while (!stopping_) {
        end_cancelled();
        if (take(lane, p)) {
            n_busy_++;
            wide_ = p.wide;
            if (n_texts_ > 0 && !wide_) {
                changed_.notify_one();
            }
            return true;
        }
        changed_.wait(lock);
    }
    return false;
}

bool embedder::take(size_t lane, pack & p) {
    if (waiting_.empty() || wide_) {
        return false;
    }
    p.wide = is_wide();
    if (p.wide && n_busy_ > 0) {
        return false;
    }
    p.lane = p.wide ? 0 : lane;
    fill(p, budget(p.wide));
    return true;
}

// A text that no lane has room for, or so few that some lanes would have none, are the sooner done by all threads together.
bool embedder::is_wide() const {
    const embedding_job & job = *waiting_.front();
    return model_.n_lanes() == 1 || job.inputs[job.n_packed].size() > size_t(model_.lane_tokens()) ||
           (n_busy_ == 0 && n_texts_ < model_.n_lanes());
}

// Lanes that begin at different times end together if each takes its share of what is left.
size_t embedder::budget(bool wide) const {
    if (!wide) {
        return std::min({PACK_TOKENS_LANE, size_t(model_.lane_tokens()), n_tokens_ / model_.n_lanes()});
    }
    return std::min(model_.gpu_layers() > 0 ? PACK_TOKENS_GPU : PACK_TOKENS_CPU, size_t(model_.n_batch()));
}

// A text of each request in turn, so that one with many does not hold up those with one. A text that is longer than a pack
// goes alone.
void embedder::fill(pack & p, size_t n_tokens) {
    for (size_t n = 0; !waiting_.empty() && p.texts.size() < size_t(model_.n_sequences());) {
        const job_ptr job = waiting_.front();
        const size_t n_more = job->inputs[job->n_packed].size();
        if (n + n_more > n_tokens && !p.texts.empty()) {
            break;
        }
        waiting_.pop_front();
        p.texts.push_back({job, job->n_packed++, {}});
        n += n_more;
        n_texts_--;
        n_tokens_ -= n_more;
        if (job->n_packed < job->inputs.size()) {
            waiting_.push_back(job);
        }
    }
}

void embedder::compute(pack & p) {
    llama_context * context = model_.lane_context(p.lane);
    llama_batch_ext * batch = batches_[p.lane].get();
    llama_batch_ext_clear(batch);
    for (size_t seq = 0; seq < p.texts.size(); seq++) {
        const std::vector<llama_token> & tokens = p.texts[seq].job->inputs[p.texts[seq].input];
        for (size_t i = 0; i < tokens.size(); i++) {
            const int32_t at = llama_batch_ext_add_token(batch, llama_seq_id(seq), tokens[i]);
            const llama_pos position = llama_pos(i);
            llama_batch_ext_set_pos(batch, at, &position);
            llama_batch_ext_set_output_embd(batch, at, true);
        }
    }
    llama_memory_t memory = llama_get_memory(context);
    if (memory != nullptr) {
        llama_memory_clear(memory, false);
    }
    model_.use_threads(p.lane, p.wide);
    const auto type = memory == nullptr ? LLAMA_PROCESS_TYPE_ENCODE : LLAMA_PROCESS_TYPE_DECODE;
    const int32_t status = llama_process(context, type, batch);
    if (status != 0) {
        throw error("internal", "computing embeddings failed with status " + std::to_string(status));
    }
}

void embedder::read_rows(pack & p) {
    const size_t n_all = model_.is_reranker() ? 1 : size_t(llama_model_n_embd_out(model_.get()));
    std::vector<float> row;
    for (size_t seq = 0; seq < p.texts.size(); seq++) {
        packed & text = p.texts[seq];
        row.resize(text.job->dimensions > 0 ? text.job->dimensions : n_all);
        const float * raw = llama_get_embeddings_seq(model_.lane_context(p.lane), llama_seq_id(seq));
        if (raw == nullptr) {
            throw error("internal", "the model gave no pooled embedding");
        }
        if (model_.is_reranker()) {
            row[0] = raw[0];
        } else {
            common_embd_normalize(raw, row.data(), int(row.size()), 2);
        }
        if (!std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); })) {
            continue;
        }
        if (text.job->as_json) {
            append_json_numbers(text.row, row);
        } else {
            text.row.assign(reinterpret_cast<const char *>(row.data()), row.size() * sizeof(float));
        }
    }
}

// ---- answers ------------------------------------------------------------------------------------------------------------

void embedder::answer(pack & p) {
    std::lock_guard<std::mutex> lock(mutex_);
    frame_batch events;
    for (packed & text : p.texts) {
        embedding_job & job = *text.job;
        if (job.ended) {
            continue;
        }
        if (text.row.empty()) {
            end(job, frame_kind::ERROR, error("internal", "the model gave numbers that are not finite").payload(), events);
            continue;
        }
        pulse_.prompt_tokens += job.inputs[text.input].size();
        job.rows[text.input] = std::move(text.row);
        say_rows(job, events);
    }
    sweep();
    outbox_.send(events);
}

// Those that all before have been said of: lanes do not end in the order in which they began.
void embedder::say_rows(embedding_job & job, frame_batch & events) {
    for (; job.n_said < job.rows.size() && !job.rows[job.n_said].empty(); job.n_said++) {
        events.add(frame_kind::EMBEDDING, job.request->id, job.rows[job.n_said]);
        job.rows[job.n_said] = {};
    }
    if (job.n_said < job.rows.size()) {
        return;
    }
    std::string counts;
    for (const auto & tokens : job.inputs) {
        counts += (counts.empty() ? "[" : ",") + std::to_string(tokens.size());
    }
    end(job, frame_kind::FINISHED, json_object().add_raw("prompt_tokens", counts + "]").text(), events);
}

void embedder::end(embedding_job & job, frame_kind kind, const std::string & payload, frame_batch & events) {
    events.add(kind, job.request->id, payload);
    job.ended = true;
    pulse_.pending--;
}

void embedder::end_cancelled() {
    frame_batch events;
    for (const job_ptr & job : jobs_) {
        if (job->request->cancelled) {
            end(*job, frame_kind::FINISHED, "{\"prompt_tokens\":[]}", events);
        }
    }
    sweep();
    outbox_.send(events);
}

void embedder::fail_all(const error & e) {
    std::lock_guard<std::mutex> lock(mutex_);
    frame_batch events;
    for (const job_ptr & job : jobs_) {
        if (!job->ended) {
            end(*job, frame_kind::ERROR, e.payload(), events);
        }
    }
    sweep();
    outbox_.send(events);
}

void embedder::sweep() {
    const auto has_ended = [](const job_ptr & job) { return job->ended; };
    for (const job_ptr & job : waiting_) {
        for (size_t i = job->n_packed; i < job->inputs.size() && job->ended; i++) {
            n_texts_--;
            n_tokens_ -= job->inputs[i].size();
        }
    }
    waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), has_ended), waiting_.end());
    jobs_.erase(std::remove_if(jobs_.begin(), jobs_.end(), has_ended), jobs_.end());
    pulse_.running = jobs_.size();
}

}  // namespace lm
