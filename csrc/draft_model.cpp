#include "draft_model.h"

#include "error.h"

#include <algorithm>
#include <cmath>

namespace lm {

// Catching up with a long prompt delays running streams by this much per step.
static constexpr double CATCH_UP_MS = 100;

// Vocabularies of one family differ in padding, as llama.cpp's own limit has it.
static constexpr int32_t MAX_SIZE_DIFFERENCE = 128;

// ---- what can draft -----------------------------------------------------------------------------------------------------

// Control tokens may have other names: a wrong guess of one costs nothing but its verification.
static bool same_vocabulary(const vocabulary & a, const vocabulary & b) {
    if (llama_vocab_type(a.get()) != llama_vocab_type(b.get()) || std::abs(a.size() - b.size()) > MAX_SIZE_DIFFERENCE) {
        return false;
    }
    for (llama_token id = 0; id < std::min(a.size(), b.size()); id++) {
        if (a.piece(id) != b.piece(id)) {
            return false;
        }
    }
    return true;
}

draft_model::draft_model(std::unique_ptr<model> m, const model & target)
    : model_(std::move(m)), target_vocab_(target.vocab()), batch_(nullptr, llama_batch_ext_free), pace_(CATCH_UP_MS) {
    if (target.is_embedding() || target.memory_sharing() != sharing::any_prefix) {
        throw invalid_request("draft_model", "this model cannot take back wrong guesses, so nothing can draft for it");
    }
    if (model_->is_embedding() || model_->memory_sharing() != sharing::any_prefix) {
        throw invalid_request("draft_model", "a model of this kind cannot draft");
    }
    if (!same_vocabulary(model_->vocab(), target_vocab_)) {
        throw invalid_request("draft_model", "the draft model has another vocabulary than the model it should draft for");
    }
    batch_.reset(llama_batch_ext_init(model_->context()));
    slots_.resize(size_t(model_->parallel()));
}

void draft_model::work_for(model & target, std::atomic<bool> & stopping) {
    model_->share_threads(target);
    llama_set_abort_callback(
        model_->context(), [](void * flag) { return static_cast<std::atomic<bool> *>(flag)->load(); }, &stopping);
}

// ---- slots --------------------------------------------------------------------------------------------------------------

static size_t common_prefix(const std::vector<llama_token> & a, const std::vector<llama_token> & b, size_t from) {
    const size_t n = std::min(a.size(), b.size());
    while (from < n && a[from] == b[from]) {
        from++;
    }
    return from;
}

void draft_model::clear(llama_seq_id seq) {
    llama_memory_seq_rm(llama_get_memory(model_->context()), seq, -1, -1);
    slots_[size_t(seq)] = {};
}

size_t draft_model::missing(const sequence & s) const {
    const auto own = std::find_if(slots_.begin(), slots_.end(), [&](const slot & known) { return known.user == s.request; });
    const size_t agreed = own == slots_.end() ? 0 : std::min(own->n_agreed, own->tokens.size());
    return s.tokens.size() - std::min(agreed, s.tokens.size());
}

// The slot that `s` has, or the one that nobody needs and that knows most of it, of those the one unused for longest.
llama_seq_id draft_model::slot_of(const sequence & s, const std::vector<sequence *> & running) {
    const auto own = std::find_if(slots_.begin(), slots_.end(), [&](const slot & known) { return known.user == s.request; });
    if (own != slots_.end()) {
        return llama_seq_id(own - slots_.begin());
    }
    llama_seq_id best = -1;
    size_t longest = 0;
    for (llama_seq_id seq = 0; seq < llama_seq_id(slots_.size()); seq++) {
        const slot & candidate = slots_[size_t(seq)];
        const bool needed = std::any_of(running.begin(), running.end(),
                                        [&](const sequence * other) { return other->request == candidate.user; });
        if (needed) {
            continue;
        }
        const size_t known = common_prefix(candidate.tokens, s.tokens, 0);
        const bool older = best >= 0 && known == longest && candidate.used_at < slots_[size_t(best)].used_at;
        if (best < 0 || known > longest || older) {
            best = seq;
            longest = known;
        }
    }
    if (best >= 0) {
        slots_[size_t(best)].user = s.request;
        slots_[size_t(best)].n_agreed = 0;
    }
    return best;
}

// Takes back what the sequence has not said, and always its last token: its row is wanted.
void draft_model::align(llama_seq_id seq, const sequence & s) {
    slot & known = slots_[size_t(seq)];
    const bool cut = s.tokens.size() < known.n_agreed; // then another text may stand there
    const size_t from = cut ? 0 : std::min(known.n_agreed, known.tokens.size());
    const size_t agreed = std::min(common_prefix(known.tokens, s.tokens, from), s.tokens.size() - 1);
    if (agreed < known.tokens.size()) {
        llama_memory_seq_rm(llama_get_memory(model_->context()), seq, llama_pos(agreed), -1);
        known.tokens.resize(agreed);
    }
    known.n_agreed = agreed;
}

// ---- batches ------------------------------------------------------------------------------------------------------------

// Adds the token that follows the slot's; returns its place in the batch.
int32_t draft_model::add(llama_seq_id seq, llama_token id, bool output) {
    slot & known = slots_[size_t(seq)];
    const int32_t at = llama_batch_ext_add_token(batch_.get(), seq, id);
    if (at < 0) {
        throw error("internal", "a token does not fit the draft model's batch");
    }
    const llama_pos position = llama_pos(known.tokens.size());
    llama_batch_ext_set_pos(batch_.get(), at, &position);
    llama_batch_ext_set_output_logits(batch_.get(), at, output);
    known.tokens.push_back(id);
    n_batched_++;
    return at;
}

// Forgets a sequence that is not in the round; false if there is none.
bool draft_model::make_room() {
    llama_seq_id oldest = -1;
    for (llama_seq_id seq = 0; seq < llama_seq_id(slots_.size()); seq++) {
        const slot & candidate = slots_[size_t(seq)];
        const bool spare = candidate.used_at < now_ && !candidate.tokens.empty();
        if (spare && (oldest < 0 || candidate.used_at < slots_[size_t(oldest)].used_at)) {
            oldest = seq;
        }
    }
    if (oldest >= 0) {
        clear(oldest);
    }
    return oldest >= 0;
}

// False if there is no room. The batch stays as it is.
bool draft_model::decode() {
    for (;;) {
        const int32_t status = llama_process(model_->context(), LLAMA_PROCESS_TYPE_DECODE, batch_.get());
        if (status == 0) {
            llama_synchronize(model_->context());
            return true;
        }
        if (status != 1) {
            throw error("internal", "the draft model failed with status " + std::to_string(status));
        }
        if (!make_room()) {
            return false;
        }
    }
}

// The larger of two vocabularies has tokens that the other one has not.
bool draft_model::knows(const std::vector<llama_token> & tokens, size_t from, size_t to) const {
    return std::all_of(tokens.begin() + long(from), tokens.begin() + long(to),
                       [&](llama_token id) { return model_->vocab().contains(id); });
}

// One batch of what the sequences have said since the last call: who is through with that can guess.
std::vector<draft_model::active> draft_model::catch_up(std::vector<wish> & wishes,
                                                       const std::vector<sequence *> & running) {
    std::vector<active> ready;
    std::vector<llama_seq_id> touched;
    const size_t batch_size = size_t(model_->n_batch());
    size_t left = std::min(std::max(pace_.grant(), wishes.size() * 2), batch_size);
    for (wish & w : wishes) {
        const llama_seq_id seq = left > 0 ? slot_of(*w.s, running) : -1;
        if (seq < 0) {
            continue;
        }
        slot & known = slots_[size_t(seq)];
        known.used_at = now_;
        align(seq, *w.s);
        const size_t n = std::min(w.s->tokens.size() - known.tokens.size(), left);
        const size_t end = known.tokens.size() + n;
        const bool all = end == w.s->tokens.size();
        if (!knows(w.s->tokens, known.tokens.size(), end)) {
            continue;
        }
        int32_t at = -1;
        for (size_t i = known.tokens.size(); i < end; i++) {
            at = add(seq, w.s->tokens[i], all && i + 1 == end);
        }
        known.n_agreed = end;
        left -= n;
        touched.push_back(seq);
        if (all) {
            ready.push_back({&w, seq, at});
        }
    }
    if (n_batched_ == 0) {
        return {};
    }
    const auto began = steady::now();
    if (!decode()) {
        for (const llama_seq_id seq : touched) {
            clear(seq); // nothing of the batch has cells: start again when there is room
        }
        return {};
    }
    const double ms = ms_between(began, steady::now());
    pace_.learn(n_batched_, ms);
    costs_.learn(n_batched_, ms);
    return ready;
}

// The likeliest token of each row becomes a guess if the model is sure enough of it; returns who goes on, with the
// guess in the next batch.
std::vector<draft_model::active> draft_model::extend(const std::vector<active> & guessing) {
    llama_batch_ext_clear(batch_.get());
    n_batched_ = 0;
    std::vector<active> on;
    const int32_t n_vocab = model_->vocab().size();
    for (const active & a : guessing) {
        const float * row = llama_get_logits_ith(model_->context(), a.output);
        if (row == nullptr) {
            throw error("internal", "the draft model gave no logits");
        }
        const candidate best = read_logprob(row, n_vocab, 0, 1).top.at(0);
        const bool sure = std::exp(best.logit) >= a.w->s->draft.asked.min_p;
        // nothing follows an end, so guessing it spares no step
        if (!sure || !target_vocab_.contains(best.id) || target_vocab_.is_eog(best.id)) {
            a.w->unsure = true;
            continue;
        }
        a.w->guesses.push_back(best.id);
        if (a.w->guesses.size() < a.w->n && slots_[size_t(a.seq)].tokens.size() + 1 < longest()) {
            on.push_back({a.w, a.seq, add(a.seq, best.id, true)});
        }
    }
    return on;
}

void draft_model::guess(std::vector<wish> & wishes, const std::vector<sequence *> & running) {
    now_++;
    llama_batch_ext_clear(batch_.get());
    n_batched_ = 0;
    std::vector<active> guessing = catch_up(wishes, running);
    while (!guessing.empty()) {
        guessing = extend(guessing);
        if (guessing.empty()) {
            return;
        }
        const auto began = steady::now();
        if (!decode()) {
            for (const active & a : guessing) { // the guesses stand, but the last has no cell
                slots_[size_t(a.seq)].tokens.pop_back();
            }
            return;
        }
        costs_.learn(n_batched_, ms_between(began, steady::now()));
    }
}

}  // namespace lm
