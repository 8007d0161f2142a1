#include "embed.h"

#include "error.h"
#include "payload.h"

#include "common.h"

#include <algorithm>
#include <cmath>

namespace lm {

// Attention is computed over the packed total, so on a CPU a bigger pack is not a faster one: 64 to 512 tokens were within a
// few percent of each other. A GPU needs more to be busy.
static constexpr size_t PACK_TOKENS_CPU = 320;
static constexpr size_t PACK_TOKENS_GPU = 2048;

embedder::embedder(model & m, pulse & p)
    : model_(m), pulse_(p),
      pack_tokens_(std::min(m.gpu_layers() > 0 ? PACK_TOKENS_GPU : PACK_TOKENS_CPU, size_t(m.n_batch()))),
      row_(m.is_reranker() ? 1 : size_t(llama_model_n_embd_out(m.get()))) {}

// A text of each request in turn, so that one with many does not hold up those with one. A text that is longer than a pack
// goes alone.
std::vector<embedder::packed> embedder::pack(llama_batch_ext * batch) {
    std::vector<packed> texts;
    size_t n_tokens = 0;
    llama_batch_ext_clear(batch);
    for (size_t turn = 0, exhausted = 0; exhausted < jobs_.size(); turn = (turn + 1) % jobs_.size()) {
        embedding_job & job = *jobs_[turn];
        if (job.n_packed == job.inputs.size()) {
            exhausted++;
            continue;
        }
        exhausted = 0;
        const std::vector<llama_token> & tokens = job.inputs[job.n_packed];
        const bool fits = texts.size() < size_t(model_.n_sequences()) && n_tokens + tokens.size() <= pack_tokens_;
        if (!fits && !texts.empty()) {
            break;
        }
        const llama_seq_id seq = llama_seq_id(texts.size());
        for (size_t i = 0; i < tokens.size(); i++) {
            const int32_t at = llama_batch_ext_add_token(batch, seq, tokens[i]);
            const llama_pos position = llama_pos(i);
            llama_batch_ext_set_pos(batch, at, &position);
            llama_batch_ext_set_output_embd(batch, at, true);
        }
        texts.push_back({&job, job.n_packed++});
        n_tokens += tokens.size();
    }
    return texts;
}

void embedder::compute(llama_batch_ext * batch) {
    llama_context * ctx = model_.context();
    llama_memory_t memory = llama_get_memory(ctx);
    if (memory != nullptr) {
        llama_memory_clear(memory, false);
    }
    const int32_t status =
        llama_process(ctx, memory == nullptr ? LLAMA_PROCESS_TYPE_ENCODE : LLAMA_PROCESS_TYPE_DECODE, batch);
    if (status != 0) {
        throw error("internal", "computing embeddings failed with status " + std::to_string(status));
    }
}

void embedder::step(llama_batch_ext * batch, frame_batch & events) {
    for (const auto & job : jobs_) {
        if (job->request->cancelled) {
            end(*job, frame_kind::FINISHED, "{\"prompt_tokens\":[]}", events);
        }
    }
    sweep();
    const std::vector<packed> texts = pack(batch);
    if (texts.empty()) {
        return;
    }
    compute(batch);
    for (size_t seq = 0; seq < texts.size(); seq++) {
        if (!texts[seq].job->ended) {
            say(texts[seq], llama_seq_id(seq), events);
        }
    }
    sweep();
    // those that have had a turn wait behind those that have not
    std::stable_partition(jobs_.begin(), jobs_.end(), [&](const auto & job) {
        return std::none_of(texts.begin(), texts.end(), [&](const packed & text) { return text.job == job.get(); });
    });
}

void embedder::say(const packed & text, llama_seq_id seq, frame_batch & events) {
    embedding_job & job = *text.job;
    const float * raw = llama_get_embeddings_seq(model_.context(), seq);
    if (raw == nullptr) {
        throw error("internal", "the model gave no pooled embedding");
    }
    if (model_.is_reranker()) {
        row_[0] = raw[0];
    } else {
        common_embd_normalize(raw, row_.data(), int(row_.size()), 2);
    }
    if (!std::all_of(row_.begin(), row_.end(), [](float x) { return std::isfinite(x); })) {
        return end(job, frame_kind::ERROR, error("internal", "the model gave numbers that are not finite").payload(), events);
    }
    if (job.as_json) {
        text_.clear();
        append_json_numbers(text_, row_);
        events.add(frame_kind::EMBEDDING, job.request->id, text_);
    } else {
        events.add(frame_kind::EMBEDDING, job.request->id,
                   {reinterpret_cast<const char *>(row_.data()), row_.size() * sizeof(float)});
    }
    pulse_.prompt_tokens += job.inputs[text.input].size();
    if (++job.n_done == job.inputs.size()) {
        std::string counts;
        for (const auto & tokens : job.inputs) {
            counts += (counts.empty() ? "[" : ",") + std::to_string(tokens.size());
        }
        end(job, frame_kind::FINISHED, json_object().add_raw("prompt_tokens", counts + "]").text(), events);
    }
}

void embedder::end(embedding_job & job, frame_kind kind, const std::string & payload, frame_batch & events) {
    events.add(kind, job.request->id, payload);
    job.ended = true;
    pulse_.pending--;
}

void embedder::sweep() {
    jobs_.erase(std::remove_if(jobs_.begin(), jobs_.end(), [](const auto & job) { return job->ended; }), jobs_.end());
}

void embedder::fail_all(const std::string & payload, frame_batch & events) {
    for (const auto & job : jobs_) {
        if (!job->ended) {
            end(*job, frame_kind::ERROR, payload, events);
        }
    }
    sweep();
}

}  // namespace lm
