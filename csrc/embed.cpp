#include "embed.h"

#include "error.h"
#include "payload.h"

#include "common.h"

#include <algorithm>

namespace lm {

// Attention is computed over the packed total, so a bigger pack is not a faster one: measured best on CPUs.
static constexpr size_t PACK_TOKENS = 320;

void embedder::end_cancelled(frame_batch & events) {
    for (size_t i = 0; i < jobs_.size();) {
        if (jobs_[i]->request->cancelled) {
            events.add(frame_kind::FINISHED, jobs_[i]->request->id, "{\"prompt_tokens\":[]}");
            jobs_.erase(jobs_.begin() + long(i));
            pulse_.pending--;
        } else {
            i++;
        }
    }
}

std::vector<embedder::packed> embedder::pack(llama_batch_ext * batch) {
    std::vector<packed> texts;
    size_t n_tokens = 0;
    llama_batch_ext_clear(batch);
    for (const auto & job : jobs_) {
        for (size_t input = job->n_done; input < job->inputs.size(); input++) {
            const std::vector<llama_token> & tokens = job->inputs[input];
            const size_t room = std::min(size_t(model_.n_batch()), std::max(PACK_TOKENS, tokens.size()));
            if (texts.size() == size_t(model_.n_sequences()) || n_tokens + tokens.size() > room) {
                return texts;
            }
            const llama_seq_id seq = llama_seq_id(texts.size());
            for (size_t i = 0; i < tokens.size(); i++) {
                const int32_t at = llama_batch_ext_add_token(batch, seq, tokens[i]);
                const llama_pos position = llama_pos(i);
                llama_batch_ext_set_pos(batch, at, &position);
                llama_batch_ext_set_output_embd(batch, at, true);
            }
            texts.push_back({job.get(), input});
            n_tokens += tokens.size();
        }
    }
    return texts;
}

void embedder::step(llama_batch_ext * batch, frame_batch & events) {
    end_cancelled(events);
    const std::vector<packed> texts = pack(batch);
    if (texts.empty()) {
        return;
    }
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
    const int32_t n_embd = llama_model_n_embd_out(model_.get());
    std::vector<float> normalised(static_cast<size_t>(n_embd));
    for (size_t seq = 0; seq < texts.size(); seq++) {
        const float * raw = llama_get_embeddings_seq(ctx, llama_seq_id(seq));
        if (raw == nullptr) {
            throw error("internal", "the model gave no pooled embedding");
        }
        common_embd_normalize(raw, normalised.data(), n_embd, 2);
        events.add(frame_kind::EMBEDDING, texts[seq].job->request->id,
                   {reinterpret_cast<const char *>(normalised.data()), normalised.size() * sizeof(float)});
        texts[seq].job->n_done++;
        pulse_.prompt_tokens += texts[seq].job->inputs[texts[seq].input].size();
    }
    while (!jobs_.empty() && jobs_.front()->n_done == jobs_.front()->inputs.size()) {
        finish_front(events);
    }
}

void embedder::fail_all(const std::string & payload, frame_batch & events) {
    for (const auto & job : jobs_) {
        events.add(frame_kind::ERROR, job->request->id, payload);
        pulse_.pending--;
    }
    jobs_.clear();
}

void embedder::finish_front(frame_batch & events) {
    std::string counts;
    for (const auto & tokens : jobs_.front()->inputs) {
        counts += (counts.empty() ? "[" : ",") + std::to_string(tokens.size());
    }
    events.add(frame_kind::FINISHED, jobs_.front()->request->id,
               json_object().add_raw("prompt_tokens", counts + "]").text());
    jobs_.pop_front();
    pulse_.pending--;
}

}  // namespace lm
