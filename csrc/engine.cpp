#include "engine.h"

#include "payload.h"

#include <algorithm>

namespace lm {

// A step's prompt part is cut so that the step takes about this long: running streams see no longer gap, and an
// abandoned request frees its place at the end of the step. Shorter steps would not be fairer, only slower: attention over
// a long cache costs twice as much per token in batches of less than about a hundred.
static constexpr double PREFILL_MS_BESIDE_STREAMS = 250;
static constexpr double PREFILL_MS_ALONE = 350;

// A request waits for a prefill that is under way if that spares it at least this many tokens.
static constexpr size_t WORTH_JOINING = 32;

// Sequences with different LoRA adapters take turns of about this length: a change costs a few milliseconds, so turns of
// single steps would waste much of the time, and long ones would leave gaps in the other streams.
static constexpr double LORA_TURN_MS = 100;

// Rows of pictures are computed beside streams in steps of about this length.
static constexpr double ROWS_MS_BESIDE_STREAMS = 120;

// What pictures get of the time beside streams, relative to these: both keep about half of their speed, since a request has
// work of other kinds, too.
static constexpr double MEDIA_SHARE = 1.2;

// An encoding pauses after so long, for the streams or to see whether one has come. Each change over costs milliseconds: the
// weights of one push those of the other out of the processor's caches.
static constexpr double SLICE_MS = 100;

// So long streams wait for a single operation of an encoding that does not end. Then both go on at once.
static constexpr double PATIENCE_MS = 120;

// Parts of a sequence that are encoded ahead of those whose rows are being computed.
static constexpr size_t PARTS_AHEAD = 2;

// Steps that are shorter than this share a write: nobody can tell, and each write wakes the server and its clients.
static constexpr double DELTAS_MS = 4;

engine::engine(model & m, outbox & out, pulse & p, uint64_t max_queue)
    : model_(m), outbox_(out), pulse_(p), max_queue_(max_queue),
      batch_(llama_batch_ext_init(m.context()), llama_batch_ext_free), alone_(PREFILL_MS_ALONE),
      beside_streams_(PREFILL_MS_BESIDE_STREAMS), rows_alone_(PREFILL_MS_ALONE), rows_beside_streams_(ROWS_MS_BESIDE_STREAMS),
      lent_(MEDIA_SHARE, SLICE_MS) {
    if (m.is_embedding()) {
        embedder_ = std::make_unique<embedder>(m, out, p, max_queue);
        return;
    }
    const bool keeps_prompts = !m.prompts().folder.empty();
    cache_ = std::make_unique<prefix_cache>(m.context(), m.memory_sharing(), m.window(), m.n_sequences(),
                                            cache_limits{size_t(m.kv_cells()), size_t(m.idle_cells()), size_t(m.spill_bytes())},
                                            keeps_prompts);
    if (keeps_prompts) {
        disk_ = std::make_unique<disk_tier>(m, *cache_, p, [this] { wake(); });
    }
    if (m.sight() != nullptr) {
        encoder_ = std::make_unique<encoder>(*m.sight());
    }
    if (m.memory_sharing() == sharing::any_prefix) {
        drafter_ = std::make_unique<drafter>(m, stopping_);
    }
    llama_set_abort_callback(
        m.context(), [](void * stopping) { return static_cast<std::atomic<bool> *>(stopping)->load(); }, &stopping_);
}

// ---- the other threads' side ------------------------------------------------------------------------------------------

void engine::submit(std::unique_ptr<sequence> s) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (pulse_.queued >= max_queue_) {
        throw error("queue_full", "too many requests wait", json_object().add("limit", max_queue_).text());
    }
    pulse_.queued++;
    arrivals_.push_back(std::move(s));
    arrived_.notify_one();
}

void engine::submit(std::unique_ptr<embedding_job> job) {
    embedder_->submit(std::move(job));
}

void engine::attach_draft(std::unique_ptr<draft_model> m) {
    std::lock_guard<std::mutex> lock(mutex_);
    draft_arrival_ = std::move(m);
    woken_ = true;
    arrived_.notify_one();
}

void engine::wake() {
    if (embedder_) {
        return embedder_->wake();
    }
    std::lock_guard<std::mutex> lock(mutex_);
    woken_ = true;
    arrived_.notify_one();
}

void engine::stop() {
    if (embedder_) {
        return embedder_->stop();
    }
    stopping_ = true;
    wake();
}

// ---- the decode thread --------------------------------------------------------------------------------------------------

void engine::run() {
    if (embedder_) {
        return embedder_->run();
    }
    while (wait_for_work()) {
        pulse_.steps[0].start();
        step();
        pulse_.steps[0].stop();
        if (events_.urgent() || ms_between(sent_at_, now_) >= DELTAS_MS) {
            send();
        }
    }
    if (disk_) {
        disk_->finish(running());
    }
}

void engine::send() {
    outbox_.send(events_);
    sent_at_ = now_;
}

bool engine::wait_for_work() {
    const bool only_waits = running_.empty() && (waiting_.empty() || (disk_ && disk_->awaits()));
    const bool can_work = disk_ && disk_->has_work();
    std::unique_lock<std::mutex> lock(mutex_);
    if (only_waits && !can_work) {
        arrived_.wait(lock, [&] { return woken_ || !arrivals_.empty(); });
    }
    woken_ = false;
    take_arrivals();
    return !stopping_;
}

void engine::take_arrivals() {
    for (auto & s : arrivals_) {
        waiting_.push_back(std::move(s));
    }
    arrivals_.clear();
    if (draft_arrival_ && drafter_) {
        drafter_->attach(std::move(draft_arrival_));
    }
}

void engine::step() {
    try {
        generate_step();
    } catch (const error & e) {
        fail_everything_in_work(e);
    } catch (const std::bad_alloc &) {
        fail_everything_in_work(error("out_of_memory", "an allocation failed"));
    } catch (const std::exception & e) {
        fail_everything_in_work(error("internal", e.what()));
    }
    sweep();
    report();
}

void engine::generate_step() {
    end_cancelled();
    if (disk_) {
        disk_->work(running());
    }
    admit();
    const bool decoded = decode();
    if (decoded) {
        advance_all();
    }
    if (encoder_ && !stopping_) {
        attend(decoded);
    }
}

void engine::advance_all() {
    for (const auto & s : running_) {
        if (!s->done && s->n_step > 0) {
            advance(*s);
        }
    }
}

// ---- admission ------------------------------------------------------------------------------------------------------------

std::vector<sequence *> engine::running() const {
    std::vector<sequence *> all;
    for (const auto & s : running_) {
        if (!s->done) {
            all.push_back(s.get());
        }
    }
    return all;
}

void engine::end_cancelled() {
    for (const auto & s : running_) {
        if (s->request->cancelled && !s->done) {
            finish(*s, stop_reason::cancelled);
        }
    }
    for (auto it = waiting_.begin(); it != waiting_.end();) {
        if ((*it)->request->cancelled) {
            finish(**it, stop_reason::cancelled);
            it = waiting_.erase(it);
            pulse_.queued--;
        } else {
            ++it;
        }
    }
    sweep();
}

// Whether a running prefill computes a prefix of `s` that is not in the cache yet: then waiting is faster than computing
// it a second time beside it.
bool engine::joins_a_prefill(const sequence & s) {
    if (model_.memory_sharing() == sharing::whole_only || s.is_scoring()) {
        return false;
    }
    for (const auto & other : running_) {
        if (other->is_prefilling() && !other->done && other->cache_key == s.cache_key) {
            const size_t most = std::min(s.tokens.size() - 1, other->tokens.size());
            size_t n = 0;
            while (n < most && s.tokens[n] == other->tokens[n]) {
                n++;
            }
            const size_t ready = model_.memory_sharing() == sharing::any_prefix ? other->n_cached : 0;
            if (n > other->n_cached && n - ready >= WORTH_JOINING) {
                cache_->want_mark(*other, n);
                return true;
            }
        }
    }
    return false;
}

void engine::admit() {
    for (auto it = waiting_.begin(); it != waiting_.end() && running_.size() < size_t(model_.parallel());) {
        if (joins_a_prefill(**it)) {
            ++it;
            continue;
        }
        sequence & s = **it;
        if (!cache_->has_room(s, running())) {
            return;
        }
        if (disk_ && disk_->brings(s, running())) {
            ++it;
            continue;
        }
        if (!cache_->assign(s, running())) {
            return;
        }
        if (disk_) {
            disk_->welcome(s);
        }
        if (!s.admitted) {
            s.admitted = true;
            s.admitted_at = steady::now();
            s.n_reused = s.n_cached;
            pulse_.cached_tokens += s.n_cached;
            count_media(s);
            if (drafter_) {
                drafter_->welcome(s);
            }
            if (s.tells_progress) {
                tell_progress(s);
                send(); // the step that follows may be long
            }
        }
        s.turn = turn_ - 1; // as if it had missed only this one: those that wait longer come first
        running_.push_back(std::move(*it));
        it = waiting_.erase(it);
        pulse_.queued--;
    }
}

// ---- one batch ------------------------------------------------------------------------------------------------------------

// Adds the next `n` tokens, and behind the last of all what is guessed to follow; each of those has a row.
void engine::add_to_batch(sequence & s, size_t n) {
    const std::vector<llama_token> & guesses = s.draft.guesses;
    const llama_pos shift = position_of(s.spans, s.n_cached) - llama_pos(s.n_cached); // of all: they are text
    for (size_t i = s.n_cached; i < s.n_cached + n + guesses.size(); i++) {
        const bool said = i < s.tokens.size();
        const int32_t at = llama_batch_ext_add_token(batch_.get(), s.seq, said ? s.tokens[i] : guesses[i - s.tokens.size()]);
        if (at < 0) {
            throw error("internal", "a token does not fit the batch");
        }
        const llama_pos position = llama_pos(i) + shift;
        llama_batch_ext_set_pos(batch_.get(), at, &position);
        if (i == s.n_cached) {
            s.first = at;
        }
        if (i + 1 >= s.tokens.size() || s.scores(i)) {
            llama_batch_ext_set_output_logits(batch_.get(), at, true);
        }
        if (i + 1 == s.tokens.size()) {
            s.output = at; // the guesses' rows follow
        }
    }
    s.n_step = n;
    n_batched_ += n + guesses.size();
    n_guessed_ += guesses.size();
}

// The running sequences that one batch can hold: all, unless they differ in their LoRA adapters.
std::vector<sequence *> engine::in_turn() {
    std::vector<sequence *> all = running();
    if (model_.loras().empty() || all.empty()) {
        return all;
    }
    const auto other = [this](const sequence * s) { return s->loras != loras_; };
    const bool over = ms_between(turn_began_, steady::now()) >= LORA_TURN_MS;
    if (over || std::all_of(all.begin(), all.end(), other)) {
        const auto waited_longest = std::min_element(
            all.begin(), all.end(), [](const sequence * a, const sequence * b) { return a->turn < b->turn; });
        loras_ = (*waited_longest)->loras;
        turn_began_ = steady::now();
        turn_++;
    }
    all.erase(std::remove_if(all.begin(), all.end(), other), all.end());
    for (sequence * s : all) {
        s->turn = turn_;
    }
    model_.use(loras_);
    return all;
}

// Decode tokens first; then the prompts share what the time budget leaves: the oldest is sure of a quarter, the shortest
// go first with the rest.
void engine::plan(bool guess) {
    llama_batch_ext_clear(batch_.get());
    n_batched_ = n_prefilled_ = n_guessed_ = 0;
    std::vector<sequence *> prefilling;
    std::vector<sequence *> decoding;
    for (sequence * s : running()) {
        s->n_step = 0;
        s->output = -1;
        s->draft.settle();
    }
    for (sequence * s : in_turn()) {
        if (!s->is_looking()) {
            (s->is_prefilling() ? prefilling : decoding).push_back(s);
        }
    }
    const bool scoring = std::any_of(prefilling.begin(), prefilling.end(), [](const sequence * s) { return s->is_scoring(); });
    if (drafter_ && guess) { // which leave rows for those that want many
        const size_t room = size_t(model_.n_batch()) - decoding.size();
        drafter_->propose(decoding, scoring ? std::min(room, size_t(MAX_STEP_GUESSES) / 2) : room);
    }
    for (sequence * s : decoding) {
        add_to_batch(*s, 1);
    }
    if (prefilling.empty()) {
        return;
    }
    pace_ = n_batched_ > 0 ? &beside_streams_ : &alone_;
    size_t left = std::min(pace_->grant(), size_t(model_.n_batch()) - n_batched_);
    sequence * oldest = prefilling.front();
    std::stable_sort(prefilling.begin(), prefilling.end(),
                     [](const sequence * a, const sequence * b) { return a->n_pending() < b->n_pending(); });
    const size_t reserved = prefilling.front() == oldest ? 0 : std::min(oldest->n_pending(), left / 4);
    left -= reserved;
    size_t rows = size_t(model_.n_outputs()) - n_batched_ - prefilling.size(); // besides the last one of each prompt
    for (sequence * s : prefilling) {
        size_t n = std::min(cache_->until_mark(*s), left + (s == oldest ? reserved : 0));
        n = std::min(n, text_ahead(s->spans, s->n_cached, s->tokens.size()));
        if (s->is_scoring()) {
            n = std::min(n, rows);
            rows -= n;
        }
        if (n > 0) {
            left -= std::min(left, n);
            add_to_batch(*s, n);
            n_prefilled_ += n;
        }
    }
}

bool engine::decode() {
    for (bool guess = true;; guess = false) { // where there is no room, guesses are what goes first
        plan(guess);
        if (n_batched_ == 0) {
            return false;
        }
        if (n_prefilled_ > 0) {
            send(); // this step may be a long one
        }
        const auto began = steady::now();
        const int32_t status = llama_process(model_.context(), LLAMA_PROCESS_TYPE_DECODE, batch_.get());
        if (status == 0) {
            llama_synchronize(model_.context());
            now_ = steady::now();
            step_ms_ = ms_between(began, now_);
            if (n_prefilled_ > 0) {
                pace_->learn(n_prefilled_, step_ms_);
                if (disk_) {
                    disk_->learn(n_prefilled_, step_ms_);
                }
            }
            if (drafter_) {
                drafter_->learn(n_batched_, step_ms_, n_prefilled_ > 0);
            }
            pulse_.decode_steps++;
            return true;
        }
        if (stopping_) {
            return false;
        }
        if (status != 1) {
            throw error("internal", "decoding failed with status " + std::to_string(status));
        }
        if (n_guessed_ == 0 && !make_room()) {
            throw error("out_of_memory", "the cache has no room for this request");
        }
    }
}

// ---- pictures and sounds ------------------------------------------------------------------------------------------------

// What it did not have to look at again.
void engine::count_media(const sequence & s) {
    for (const media_span & span : s.spans) {
        pulse_.media_reused += span.end() <= s.n_cached ? 1 : 0;
    }
}

// What is to be done for pictures and sounds, if it is their turn: rows that are there are computed, the next part is encoded.
void engine::attend(bool beside_streams) {
    take_encoded();
    const bool has_rows = find_rows();
    const bool has_work = has_rows || encoder_->is_busy() || next_to_encode() != nullptr;
    if (beside_streams) {
        lent_.streams_took(step_ms_, has_work);
    } else {
        lent_.settle();
    }
    if (!has_work || !lent_.is_others_turn()) {
        return;
    }
    const auto began = steady::now();
    rows_are_next_ = has_rows && (rows_are_next_ || (!encoder_->is_busy() && next_to_encode() == nullptr));
    rows_pace_ = beside_streams ? &rows_beside_streams_ : &rows_alone_;
    if (rows_are_next_) {
        if (decode_rows()) {
            advance_all();
        }
    } else {
        encode(!beside_streams);
    }
    rows_are_next_ = !rows_are_next_;
    if (beside_streams) {
        lent_.others_took(ms_between(began, steady::now()));
    }
}

// Gives the sequences the rows that are there already. True if one of them could have some computed.
bool engine::find_rows() {
    bool some = false;
    for (sequence * s : running()) {
        size_t ahead = 0;
        for (size_t i = 0; i < s->spans.size() && ahead < PARTS_AHEAD; i++) {
            if (s->spans[i].end() <= s->n_cached) {
                continue;
            }
            media_part & part = s->parts[i];
            if (!part.rows && (part.rows = model_.sight()->known_rows(part.key))) {
                pulse_.media_reused++;
            }
            some = some || (part.rows && s->is_looking() && s->spans[i].begin <= s->n_cached);
            ahead++;
        }
    }
    return some;
}

// The sequence that has waited longest for the encoding of its next part; null if none needs any.
sequence * engine::next_to_encode() const {
    sequence * next = nullptr;
    for (sequence * s : running()) {
        size_t ahead = 0;
        for (size_t i = 0; i < s->spans.size() && ahead < PARTS_AHEAD; i++) {
            const bool missing = s->spans[i].end() > s->n_cached && !s->parts[i].rows;
            if (missing && (next == nullptr || s->looked < next->looked)) {
                next = s;
            }
            ahead += s->spans[i].end() > s->n_cached ? 1 : 0;
        }
    }
    return next;
}

bool engine::is_wanted(const std::string & key) const {
    for (const sequence * s : running()) {
        for (size_t i = 0; i < s->spans.size(); i++) {
            if (s->spans[i].end() > s->n_cached && !s->parts[i].rows && s->parts[i].key == key) {
                return true;
            }
        }
    }
    return false;
}

// A slice of the encoding that is under way, or of the next one.
void engine::encode(bool waits) {
    if (!encoder_->is_busy()) {
        sequence * s = next_to_encode();
        if (s == nullptr) {
            return;
        }
        for (size_t i = 0; i < s->spans.size(); i++) {
            if (s->spans[i].end() > s->n_cached && !s->parts[i].rows) {
                s->looked = ++n_begun_;
                encoder_->begin(s->parts[i]);
                break;
            }
        }
    }
    encoder_->run_for(SLICE_MS, waits ? SLICE_MS + PATIENCE_MS : PATIENCE_MS, waits);
    take_encoded();
}

void engine::take_encoded() {
    if (encoder_->is_busy() && !is_wanted(encoder_->current()->key)) {
        encoder_->end();
    }
    const std::optional<encoder::result> came = encoder_->take();
    if (!came) {
        return;
    }
    if (came->rows) {
        pulse_.media_encoded++;
        model_.sight()->keep_rows(came->key, came->rows);
    }
    size_t n_given = 0;
    for (sequence * s : running()) {
        for (size_t i = 0; i < s->spans.size() && !s->done; i++) {
            if (s->parts[i].key == came->key && !s->parts[i].rows && s->spans[i].end() > s->n_cached) {
                s->parts[i].rows = came->rows;
                pulse_.media_reused += came->rows && n_given++ > 0 ? 1 : 0;
                if (came->failed) {
                    fail(*s, *came->failed);
                }
            }
        }
    }
}

// Rows for the next cells of those that look at something. Cells that see each other are alone in their batch; the others
// share what the time allows.
void engine::plan_rows() {
    llama_batch_ext_clear(batch_.get());
    n_batched_ = n_prefilled_ = n_guessed_ = 0;
    whole_ = nullptr;
    std::vector<std::pair<sequence *, size_t>> looking; // and at which of its parts
    for (sequence * s : running()) {
        s->n_step = 0;
        s->output = -1;
        s->draft.settle();
    }
    for (sequence * s : in_turn()) {
        const media_span * span = s->is_looking() ? span_at(s->spans, s->n_cached) : nullptr;
        const size_t i = span != nullptr ? size_t(span - s->spans.data()) : 0;
        if (span != nullptr && s->parts[i].rows) {
            looking.emplace_back(s, i);
        }
    }
    if (looking.empty()) {
        return;
    }
    // who has waited longest comes first
    std::stable_sort(looking.begin(), looking.end(), [](const auto & a, const auto & b) { return a.first->shown_at < b.first->shown_at; });
    const media_part & first = looking[0].first->parts[looking[0].second];
    whole_ = first.whole ? &first : nullptr;
    size_t left = std::min(rows_pace_->grant(), size_t(model_.n_batch()));
    size_t waiting = looking.size();
    for (const auto & [s, i] : looking) {
        const media_part & part = s->parts[i];
        const size_t missing = s->spans[i].end() - s->n_cached;
        if (whole_ != nullptr) {
            add_rows(*s, i, missing);
            return;
        }
        const size_t n = std::min(missing, (left + waiting - 1) / waiting);
        waiting--;
        if (n > 0 && !part.whole) {
            left -= n;
            add_rows(*s, i, n);
        }
    }
}

void engine::add_rows(sequence & s, size_t i, size_t n) {
    const tower & sight = *model_.sight();
    const media_span & span = s.spans[i];
    const llama_pos position = position_of(s.spans, span.begin);
    for (size_t cell = s.n_cached; cell < s.n_cached + n; cell++) {
        const float * row = s.parts[i].rows->data() + (cell - span.begin) * sight.row_size();
        const int32_t at = llama_batch_ext_add_embd(batch_.get(), s.seq, {row, 1, sight.row_size()});
        if (at < 0) {
            throw error("internal", "a row does not fit the batch");
        }
        llama_pos where[4];
        sight.set_position(s.parts[i], position, cell - span.begin, where);
        llama_batch_ext_set_pos(batch_.get(), at, where);
        if (cell + 1 == s.tokens.size()) {
            llama_batch_ext_set_output_logits(batch_.get(), at, true);
            s.output = at;
        }
    }
    s.n_step = n;
    s.shown_at = ++n_shown_;
    n_batched_ += n;
    n_prefilled_ += n;
}

// From its construction to its end, the cells of a batch see all others of it.
class all_see_all {
  public:
    all_see_all(llama_context * ctx, bool on) : ctx_(on ? ctx : nullptr) {
        if (ctx_ != nullptr) {
            llama_set_causal_attn(ctx_, false);
        }
    }
    ~all_see_all() {
        if (ctx_ != nullptr) {
            llama_set_causal_attn(ctx_, true);
        }
    }
    all_see_all(const all_see_all &) = delete;
    all_see_all & operator=(const all_see_all &) = delete;

  private:
    llama_context * ctx_;
};

bool engine::decode_rows() {
    for (;;) {
        plan_rows();
        if (n_batched_ == 0) {
            return false;
        }
        send(); // this step may be a long one
        const auto began = steady::now();
        const all_see_all seeing(model_.context(), whole_ != nullptr);
        const int32_t status = llama_process(model_.context(), LLAMA_PROCESS_TYPE_DECODE, batch_.get());
        if (status == 0) {
            llama_synchronize(model_.context());
            now_ = steady::now();
            step_ms_ = ms_between(began, now_);
            if (whole_ == nullptr) {
                rows_pace_->learn(n_prefilled_, step_ms_);
            }
            pulse_.decode_steps++;
            return true;
        }
        if (stopping_) {
            return false;
        }
        if (status != 1) {
            throw error("internal", "decoding failed with status " + std::to_string(status));
        }
        if (!make_room()) {
            throw error("out_of_memory", "the cache has no room for this request");
        }
    }
}

// No cells for the batch: idle sequences go first, then what comes from the disk, then the youngest running one steps back into
// the queue.
bool engine::make_room() {
    if (cache_->evict() || cache_->abandon_arrival()) {
        return true;
    }
    const std::vector<sequence *> all = running();
    if (all.size() < 2) {
        return false;
    }
    preempt(*all.back());
    return true;
}

void engine::preempt(sequence & s) {
    cache_->set_aside(s);
    const auto it = std::find_if(running_.begin(), running_.end(), [&](const auto & r) { return r.get() == &s; });
    waiting_.push_front(std::move(*it));
    running_.erase(it);
    pulse_.queued++;
}

// ---- after the decode -----------------------------------------------------------------------------------------------------

void engine::advance(sequence & s) {
    const bool was_prompt = s.n_generated == 0;
    if (s.is_scoring()) {
        score(s, s.n_cached);
        if (s.done) {
            return;
        }
    }
    s.n_cached += s.n_step;
    cache_->reached(s, step_ms_);
    if (disk_ && was_prompt) {
        disk_->reached(s, running_.size() > 1);
    }
    if (was_prompt) {
        pulse_.prompt_tokens += s.n_step;
        const bool ends = s.output >= 0;
        const bool is_one_chunk = s.n_step >= s.n_prompt - s.n_reused; // then the text says it
        if (s.whole ? ends : s.tells_progress || !is_one_chunk) {
            tell_progress(s);
        }
    }
    if (s.output >= 0 && s.max_tokens == 0) {
        begin_answer(s);
        finish(s, stop_reason::max_tokens);
    } else if (s.output >= 0) {
        sample(s);
        follow_draft(s);
    }
}

void engine::tell_progress(const sequence & s) {
    events_.add(frame_kind::PROMPT_PROGRESS, s.request->id,
                json_object()
                    .add("done", uint64_t(s.n_cached))
                    .add("total", uint64_t(s.n_prompt))
                    .add("cached", uint64_t(s.n_reused))
                    .add("ms", ms_between(s.admitted_at, steady::now()))
                    .text());
}

// What the rows of this step, of the tokens from `begin` on, say of the prompt's tokens that follow them.
void engine::score(sequence & s, size_t begin) {
    const int32_t n_vocab = model_.vocab().size();
    const bool is_first = s.n_scored == 0;
    std::vector<token_logprob> told;
    if (is_first) {
        told.push_back({s.tokens[0], 0, {}});
    }
    const size_t from = s.n_scored + (is_first ? 0 : 1); // the token that the payload begins with
    for (size_t i = begin; i < begin + s.n_step; i++) {
        if (!s.scores(i)) {
            continue;
        }
        const float * logits = llama_get_logits_ith(model_.context(), s.first + int32_t(i - begin));
        if (logits == nullptr) {
            return fail(s, error("internal", "the step gave no logits"));
        }
        told.push_back(read_logprob(logits, n_vocab, s.tokens[i + 1], *s.top_logprobs));
        s.n_scored = i + 1;
    }
    if (told.empty()) {
        return;
    }
    events_.add(frame_kind::LOGPROBS, s.request->id,
                prompt_logprobs_payload(told, s.shown.data() + from, is_first, model_.vocab()));
}

void engine::begin_answer(sequence & s) {
    s.first_token_at = now_;
    events_.hurry();
    s.first_step_ms = step_ms_;
    if (s.scores_prompt && s.n_prompt == 1) {
        events_.add(frame_kind::LOGPROBS, s.request->id,
                    prompt_logprobs_payload({{s.tokens[0], 0, {}}}, s.shown.data(), true, model_.vocab()));
    }
    if (!s.echo.empty()) {
        events_.add(frame_kind::TEXT, s.request->id, s.echo);
    }
}

// The rows behind right guesses give further tokens.
void engine::follow_draft(sequence & s) {
    while (!s.done && s.draft.holds()) {
        s.n_cached++;
        s.output++;
        sample(s);
    }
    retract_draft(s);
}

// What was guessed and did not come true leaves the memory, before anyone can share it.
void engine::retract_draft(sequence & s) {
    if (s.seq >= 0 && !s.draft.guesses.empty()) {
        llama_memory_seq_rm(llama_get_memory(model_.context()), s.seq, llama_pos(s.n_cached), -1);
    }
    s.draft.settle();
}

void engine::sample(sequence & s) {
    float * logits = llama_get_logits_ith(model_.context(), s.output);
    if (logits == nullptr) {
        return fail(s, error("internal", "the step gave no logits"));
    }
    const vocabulary & vocab = model_.vocab();
    std::optional<llama_token> id;
    try {
        const std::optional<llama_token> must = s.budget ? s.budget->next() : std::nullopt;
        if (must && !s.choose->is_within_schema() && s.choose->force(*must)) { // an argument may look like a thought
            id = must;
        } else if (s.top_logprobs) {
            row_.assign(logits, logits + vocab.size());
            id = s.choose->sample(row_.data());
        } else {
            id = s.choose->sample(logits);
        }
    } catch (const error & e) {
        return fail(s, e);
    } catch (const std::exception & e) {
        return fail(s, error("internal", e.what()));
    }
    if (!id && s.n_generated < s.min_tokens) { // the grammar is at its end, and that was put off
        return finish(s, stop_reason::eos);
    }
    if (!id) {
        return fail(s, invalid_request("grammar", "no token satisfies the grammar at this point"));
    }
    if (s.n_generated == 0) {
        begin_answer(s);
    }
    s.last_token_at = now_;
    s.n_generated++;
    pulse_.decoded_tokens++;
    s.tokens.push_back(*id);
    s.draft.meet(*id);
    if (vocab.is_eog(*id) || std::find(s.stop_tokens.begin(), s.stop_tokens.end(), *id) != s.stop_tokens.end()) {
        if (s.scores_prompt) { // who counts the tokens of the prompt from the end finds one for each that was made
            const uint32_t shown = 0;
            tell_logprobs(s, s.logprobs.size());
            events_.add(frame_kind::LOGPROBS, s.request->id,
                        prompt_logprobs_payload({read_logprob(logits, vocab.size(), *id, *s.top_logprobs)}, &shown, false, vocab));
        }
        return finish(s, stop_reason::eos);
    }
    if (s.budget) {
        s.budget->push(*id);
    }
    if (s.sleeping) {
        if (matcher_ptr awake = s.sleeping->push(*id)) {
            s.choose->constrain(std::move(awake));
            s.answer.set_ruled();
        }
    }
    if (s.top_logprobs) {
        s.logprobs.push_back({s.answer.known(), read_logprob(logits, vocab.size(), *id, *s.top_logprobs)});
    }
    if (s.answer.push(vocab, *id, now_)) {
        return finish(s, s.answer.stop() != nullptr ? stop_reason::stop_string : stop_reason::eos);
    }
    if (s.n_generated == s.min_tokens) {
        s.answer.set_stops(std::move(s.late_stops));
    }
    s.has_line = s.has_line || (s.line_ms > 0 && vocab.piece(*id).find('\n') != std::string_view::npos);
    if (s.has_line && s.line_ms > 0 && ms_between(s.first_token_at, now_) > s.line_ms) {
        return finish(s, stop_reason::max_tokens);
    }
    if (s.max_tokens > 0 && s.n_generated >= size_t(s.max_tokens)) {
        return finish(s, stop_reason::max_tokens);
    }
    if (s.tokens.size() >= size_t(model_.context_length())) {
        if (!s.drops_middle) {
            return finish(s, stop_reason::context_length);
        }
        forget_middle(s);
    }
    if (!s.whole) {
        say(s);
    }
}

// The sequence goes on without its middle, and its end is computed again where it stands now: shifting positions in the
// cache instead would spoil them for the sequences that share them, and is not what any model computes.
void engine::forget_middle(sequence & s) {
    retract_draft(s);
    cache_->cut(s, drop_middle(s, size_t(model_.context_length())));
}

void engine::say(sequence & s) {
    const std::vector<reply_piece> pieces = s.answer.take();
    size_t n = 0;
    while (n < s.logprobs.size() && s.logprobs[n].begin < s.answer.taken()) {
        n++;
    }
    tell_logprobs(s, n);
    for (const reply_piece & piece : pieces) {
        switch (piece.where) {
            case reply_piece::channel::reasoning: events_.add(frame_kind::REASONING, s.request->id, piece.text); break;
            case reply_piece::channel::content: events_.add(frame_kind::TEXT, s.request->id, piece.text); break;
            case reply_piece::channel::tool_call:
                events_.add(frame_kind::TOOL_CALL, s.request->id, tool_call_payload(piece));
                break;
        }
    }
}

// Of the first `n` tokens not told of yet, what belongs to the content.
void engine::tell_logprobs(sequence & s, size_t n) {
    std::vector<token_logprob> told;
    for (size_t i = 0; i < n; i++) {
        const size_t end = i + 1 < s.logprobs.size() ? s.logprobs[i + 1].begin : s.answer.known();
        if (s.answer.is_content(s.logprobs[i].begin, end)) {
            told.push_back(std::move(s.logprobs[i].logprob));
        }
    }
    s.logprobs.erase(s.logprobs.begin(), s.logprobs.begin() + long(n));
    if (!told.empty()) {
        events_.add(frame_kind::LOGPROBS, s.request->id, logprobs_payload(told, model_.vocab()));
    }
}

void engine::finish(sequence & s, stop_reason reason) {
    retract_draft(s);
    const bool by_itself = reason == stop_reason::eos;
    s.answer.finish(model_.vocab(), by_itself, by_itself && s.n_generated > 0 ? s.tokens.back() : -1);
    if (by_itself && s.answer.has_tool_calls()) {
        reason = stop_reason::tool_calls;
    }
    say(s);
    if (reason != stop_reason::stop_string) {
        tell_logprobs(s, s.logprobs.size()); // tokens without text of their own
    }
    if (drafter_) {
        drafter_->bid_farewell(s);
    }
    events_.add(frame_kind::FINISHED, s.request->id, finished_payload(s, reason));
    cache_->keep(s);
    s.done = true;
    pulse_.pending--;
}

void engine::fail(sequence & s, const error & e) {
    events_.add(frame_kind::ERROR, s.request->id, e.payload());
    cache_->drop(s);
    s.done = true;
    pulse_.pending--;
}

// After a failed decode nothing is known about the cells of those that were in it.
void engine::fail_everything_in_work(const error & e) {
    for (const auto & s : running_) {
        if (!s->done) {
            fail(*s, e);
        }
    }
}

void engine::sweep() {
    running_.erase(std::remove_if(running_.begin(), running_.end(), [](const auto & s) { return s->done; }),
                   running_.end());
}

void engine::report() {
    size_t cells = cache_->idle_tokens();
    for (const auto & s : running_) {
        cells += s->n_cached;
    }
    pulse_.running = running_.size();
    pulse_.cells_used = cells;
}

}  // namespace lm
