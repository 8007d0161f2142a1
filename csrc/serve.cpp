// lm_engine_serve: the threads of one engine and what each of them does with a frame.
//   reader    (the caller's thread) parses frames, cancels
//   attacher  loads draft models; started by the first, so that nobody waits for one but who asked for it
//   listener  analyses sounds, which takes seconds; started by the first, so that nobody waits for one but who sent it
//   preparer  loads, renders, tokenizes, compiles grammars; on a large stack, because llama.cpp's parsers recurse
//   decoder   engine::run
//   writer    outbox::run, and the heartbeat
#include "chat_template.h"
#include "draft_model.h"
#include "engine.h"
#include "error.h"
#include "estimate.h"
#include "infill.h"
#include "kernels.h"
#include "lmlite.h"
#include "model.h"
#include "payload.h"
#include "protocol.h"
#include "heartbeat.h"
#include "rerank.h"
#include "thread.h"
#include "wire.h"

#include <condition_variable>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <functional>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unordered_map>

namespace lm {

// Reserved, not used: pages are committed as a parser recurses. Regular expressions of some tokenizers need 64 MB for a
// long unbroken run of letters.
static constexpr size_t PREPARER_STACK = 512u << 20;

// The parser of answers recurses with the nesting of what the model writes (reply.cpp has the limit).
static constexpr size_t DECODER_STACK = 64u << 20;

// TOKENIZE has no context to bound it; this much takes about a second, in which others wait to be prepared.
static constexpr size_t MAX_TOKENIZED_TEXT = 1u << 20;

static constexpr size_t MAX_UNPREPARED = 4096;

// To listen to a sound is work of seconds on several threads, for one request: streams come first.
static constexpr int LISTENER_NICENESS = 10;

// Of one request, and of all that have not been answered: pictures are kept as they came until they have been encoded.
static constexpr size_t MAX_MEDIA = 256;
static constexpr size_t MAX_MEDIA_BYTES = 128u << 20;
static constexpr size_t MAX_ALL_MEDIA_BYTES = 512u << 20;

class server {
  public:
    explicit server(int fd) : fd_(fd), outbox_(fd) {}
    ~server() { end(); }

    int serve();

  private:
    struct work {
        frame command;
        ticket_ptr request;
        media_frames media = {};

        // of one that is prepared but for its pictures, which are tried out one at a time
        std::unique_ptr<sequence> prepared = nullptr;
        media_files files = {};
        size_t n_tried = 0;

        // of one whose sounds had to be listened to first
        std::function<void(work &)> rest = nullptr;
    };
    // What came ahead of a request.
    struct arriving {
        uint32_t id;
        media_frames media;
        size_t bytes = 0;
        std::optional<error> refused = std::nullopt; // the request will be, for this
    };

    // reader
    bool dispatch(frame & command);
    bool is_command(frame_kind kind) const;
    ticket_ptr open_ticket(uint32_t id);
    void collect(frame & medium);
    std::optional<arriving> collected_for(uint32_t id);
    void cancel(uint32_t id);

    // preparer
    void prepare_all();
    bool next(std::deque<work> & from, work & into);
    template <typename Body> void answering(work & item, Body body);
    void prepare(work & item);
    void load(const work & item);
    void estimate(const work & item);
    void render(work & item);
    void generate(work & item);
    void generate_as(work & item, generate_spec & spec);
    void embed(const work & item);
    void rerank(const work & item);
    void tokenize(const work & item);
    void answer(const ticket_ptr & request, frame_kind kind, std::string_view payload);
    void answer_error(const ticket_ptr & request, const error & e);
    const model & loaded() const;
    void check_media(const media_files & files) const;
    bool is_known(const media_file_ptr & file, const std::vector<media_part> & parts) const;
    void try_next(work & item);
    void when_heard(work & item, const media_files & files, bool counted, std::function<void(work &)> rest);
    void check_tokens(const std::vector<llama_token> & tokens, const char * param) const;
    chat_turn whole_prompt(const generate_spec & spec) const;
    chat_turn fitting_prompt(const generate_spec & spec) const;
    chat_turn recent_turns(generate_spec spec) const;
    void make_answerable(std::vector<llama_token> & tokens, const char * param) const;

    // listener
    void listen_all();
    void listen_to_next(work & item);

    // attacher
    void attach_all();
    void attach(const work & item);

    void beat();
    std::string report() const;
    template <typename Body> thread start(size_t stack, Body body);
    void stop_working();
    void end();

    int fd_; // borrowed
    outbox outbox_;
    pulse pulse_;

    std::mutex mutex_;
    std::condition_variable filled_; // one of those that follow
    std::deque<work> unprepared_;
    std::deque<work> unattached_;
    std::deque<work> unheard_;
    std::unordered_map<uint32_t, std::weak_ptr<ticket>> tickets_;
    std::optional<arriving> arriving_; // the reader's
    std::shared_ptr<std::atomic<size_t>> media_bytes_ = std::make_shared<std::atomic<size_t>>(0);
    std::atomic<bool> closing_{false};
    std::shared_ptr<engine> engine_; // set once by the preparer, under mutex_

    std::unique_ptr<model> model_; // the preparer's; outlives engine_
    load_spec spec_; // of model_; set before engine_
    std::unique_ptr<grammar_cache> grammars_; // the preparer's

    std::atomic<bool> failed_{false}; // a thread ended as no thread of ours ends
    thread writer_;
    thread preparer_;
    thread attacher_;
    thread listener_; // started by the preparer
    thread decoder_;
};

// What a thread does not catch would end the whole process, which may be somebody else's: it ends this engine.
template <typename Body> thread server::start(size_t stack, Body body) {
    return thread(
        [this, body] {
            try {
                body();
            } catch (...) {
                failed_ = true;
                ::shutdown(fd_, SHUT_RDWR); // the reader sees the end
            }
        },
        stack);
}

// ---- reader -------------------------------------------------------------------------------------------------------------

bool server::is_command(frame_kind kind) const {
    switch (kind) {
        case frame_kind::LOAD:
        case frame_kind::ESTIMATE:
        case frame_kind::ATTACH_DRAFT:
        case frame_kind::GENERATE:
        case frame_kind::EMBED:
        case frame_kind::RERANK:
        case frame_kind::TOKENIZE:
        case frame_kind::DETOKENIZE:
        case frame_kind::RENDER:
        case frame_kind::STATS: return true;
        default: return false;
    }
}

ticket_ptr server::open_ticket(uint32_t id) {
    ticket_ptr request = std::make_shared<ticket>(id);
    if (tickets_.size() > 2 * size_t(pulse_.pending.load()) + 64) {
        for (auto it = tickets_.begin(); it != tickets_.end();) {
            it = it->second.expired() ? tickets_.erase(it) : std::next(it);
        }
    }
    tickets_[id] = request;
    pulse_.pending++;
    return request;
}

void server::cancel(uint32_t id) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = tickets_.find(id);
    if (found == tickets_.end()) {
        return;
    }
    if (const ticket_ptr request = found->second.lock()) {
        request->cancelled = true;
        if (engine_) {
            engine_->wake();
        }
    }
}

// Pictures and sounds come directly ahead of the request that they belong to.
void server::collect(frame & medium) {
    if (!arriving_ || arriving_->id != medium.request_id) {
        arriving_.emplace();
        arriving_->id = medium.request_id;
    }
    arriving & all = *arriving_;
    all.bytes += medium.payload.size();
    const json_object limit = json_object().add("param", "media").add("index", uint64_t(all.media.size()));
    if (all.refused) {
        return;
    }
    if (medium.lost) {
        all.refused = error("out_of_memory", "there is no memory for so large a picture or sound");
    } else if (all.media.size() == MAX_MEDIA) {
        all.refused = error("invalid_request", "a request has at most " + std::to_string(MAX_MEDIA) + " pictures and sounds", limit.text());
    } else if (all.bytes > MAX_MEDIA_BYTES) {
        all.refused = error("invalid_request", "the pictures and sounds of a request have at most " +
                                                   std::to_string(MAX_MEDIA_BYTES >> 20) + " MiB together", limit.text());
    } else if (*media_bytes_ + medium.payload.size() > MAX_ALL_MEDIA_BYTES) {
        all.refused = error("queue_full", "too many pictures and sounds wait to be looked at",
                            json_object().add("limit", uint64_t(MAX_ALL_MEDIA_BYTES)).text());
    } else {
        all.media.emplace_back(std::move(medium.payload), media_bytes_);
        return;
    }
    all.media.clear();
}

std::optional<server::arriving> server::collected_for(uint32_t id) {
    std::optional<arriving> mine;
    if (arriving_ && arriving_->id == id) {
        mine = std::move(arriving_);
    }
    arriving_.reset();
    return mine;
}

bool server::dispatch(frame & command) {
    if (command.kind == frame_kind::MEDIA) {
        collect(command);
        return true;
    }
    if (command.kind == frame_kind::CANCEL) {
        cancel(command.request_id);
        return true;
    }
    if (!is_command(command.kind)) {
        return false;
    }
    std::optional<arriving> came = collected_for(command.request_id);
    std::lock_guard<std::mutex> lock(mutex_);
    const ticket_ptr request = open_ticket(command.request_id);
    if (came && came->refused) {
        answer_error(request, *came->refused);
        return true;
    }
    if (command.lost) {
        answer_error(request, error("out_of_memory", "there is no memory for so large a request"));
        return true;
    }
    if (std::max({unprepared_.size(), unattached_.size(), unheard_.size()}) >= MAX_UNPREPARED) {
        answer_error(request, error("queue_full", "too many requests wait",
                                    json_object().add("limit", uint64_t(MAX_UNPREPARED)).text()));
        return true;
    }
    const bool attaches = command.kind == frame_kind::ATTACH_DRAFT;
    if (attaches && !attacher_.joinable()) {
        try {
            attacher_ = start(0, [this] { attach_all(); });
        } catch (const error & e) {
            answer_error(request, e);
            return true;
        }
    }
    (attaches ? unattached_ : unprepared_).push_back({std::move(command), request, came ? std::move(came->media) : media_frames()});
    filled_.notify_all();
    return true;
}

// ---- preparer -----------------------------------------------------------------------------------------------------------

bool server::next(std::deque<work> & from, work & into) {
    std::unique_lock<std::mutex> lock(mutex_);
    filled_.wait(lock, [&] { return closing_ || !from.empty(); });
    if (closing_) {
        return false;
    }
    into = std::move(from.front());
    from.pop_front();
    return true;
}

template <typename Body> void server::answering(work & item, Body body) {
    try {
        body();
    } catch (const error & e) {
        answer_error(item.request, e);
    } catch (const std::bad_alloc &) {
        answer_error(item.request, error("out_of_memory", "an allocation failed"));
    } catch (const std::exception & e) {
        answer_error(item.request, error("internal", e.what()));
    }
}

void server::prepare_all() {
    for (work item; next(unprepared_, item);) {
        if (item.command.kind != frame_kind::LOAD && item.command.kind != frame_kind::ESTIMATE) {
            pulse_.preparation.start(); // a load has a progress of its own
        }
        answering(item, [&] { prepare(item); });
        pulse_.preparation.stop();
        item = {};
    }
}

void server::prepare(work & item) {
    const std::string & payload = item.command.payload;
    if (item.prepared) {
        return try_next(item);
    }
    if (item.request->cancelled && item.command.kind == frame_kind::GENERATE) {
        sequence never_started;
        never_started.request = item.request;
        return answer(item.request, frame_kind::FINISHED, finished_payload(never_started, stop_reason::cancelled));
    }
    if (item.rest) {
        const auto rest = std::move(item.rest);
        return rest(item);
    }
    switch (item.command.kind) {
        case frame_kind::LOAD: return load(item);
        case frame_kind::ESTIMATE: return estimate(item);
        case frame_kind::GENERATE: return generate(item);
        case frame_kind::EMBED: return embed(item);
        case frame_kind::RERANK: return rerank(item);
        case frame_kind::TOKENIZE: return tokenize(item);
        case frame_kind::DETOKENIZE: {
            const std::vector<llama_token> tokens = parse_detokenize(payload);
            check_tokens(tokens, "tokens");
            std::string bytes = loaded().vocab().detokenize(tokens);
            std::string text;
            decode_utf8(bytes, text);
            return answer(item.request, frame_kind::RESULT, text);
        }
        case frame_kind::RENDER: return render(item);
        default: return answer(item.request, frame_kind::REPORT, report());
    }
}

void server::answer(const ticket_ptr & request, frame_kind kind, std::string_view payload) {
    outbox_.send(kind, request->id, payload);
    pulse_.pending--;
}

void server::answer_error(const ticket_ptr & request, const error & e) {
    answer(request, frame_kind::ERROR, e.payload());
}

const model & server::loaded() const {
    if (!model_) {
        throw error("load_failed", "no model is loaded");
    }
    return *model_;
}

void server::load(const work & item) {
    if (model_) {
        throw error("invalid_request", "this engine has a model already");
    }
    const load_spec spec = parse_load(item.command.payload);
    spec_ = spec;
    const auto began = steady::now();
    auto last_told = began;
    const auto progress = [&](float fraction) {
        if (ms_between(last_told, steady::now()) > 100) {
            last_told = steady::now();
            outbox_.send(frame_kind::LOAD_PROGRESS, item.request->id, json_object().add("progress", double(fraction)).text());
        }
        return !closing_ && !item.request->cancelled;
    };
    model_ = std::make_unique<model>(spec, progress, [&] { pulse_.preparation.start(); });
    grammars_ = std::make_unique<grammar_cache>(model_->vocab());
    if (!model_->is_vocab_only()) {
        auto started = std::make_shared<engine>(*model_, outbox_, pulse_, uint64_t(spec.max_queue));
        decoder_ = start(DECODER_STACK, [e = started.get()] { e->run(); });
        std::lock_guard<std::mutex> lock(mutex_);
        engine_ = std::move(started);
    }
    answer(item.request, frame_kind::LOADED, model_->describe(ms_between(began, steady::now())));
}

void server::estimate(const work & item) {
    if (model_) {
        throw error("invalid_request", "this engine has a model already");
    }
    answer(item.request, frame_kind::ESTIMATED, estimate_payload(parse_load(item.command.payload)));
}

void server::check_tokens(const std::vector<llama_token> & tokens, const char * param) const {
    for (const llama_token id : tokens) {
        if (!loaded().vocab().contains(id)) {
            throw invalid_request(param, "token " + std::to_string(id) + " is not in the vocabulary");
        }
    }
}

void server::check_media(const media_files & files) const {
    for (const media_file_ptr & file : files) {
        const tower * sight = loaded().sight();
        const bool sees = sight != nullptr && sight->sees();
        const bool hears = sight != nullptr && sight->hears();
        if (file->kind == media_kind::picture ? !sees : !hears) {
            const bool is_picture = file->kind == media_kind::picture;
            throw error("model_type", is_picture ? "this model does not see" : "this model does not hear",
                        json_object().add("needs", is_picture ? "vision" : "audio").text());
        }
    }
}

// Not shown, or looked at before.
bool server::is_known(const media_file_ptr & file, const std::vector<media_part> & parts) const {
    const auto first = std::find_if(parts.begin(), parts.end(), [&](const media_part & part) { return part.file == file; });
    return first == parts.end() || loaded().sight()->known_rows(first->key);
}

// What cannot be decoded is told before anybody waits for it. After each picture it is the others' turn: a request may have
// hundreds, each of which takes as long as a hundred texts.
void server::try_next(work & item) {
    const std::vector<media_part> & parts = item.prepared->parts;
    const auto is_done = [&] { return item.n_tried == item.files.size() || item.request->cancelled; };
    while (!is_done() && is_known(item.files[item.n_tried], parts)) {
        item.n_tried++;
    }
    if (!is_done()) {
        try {
            loaded().sight()->try_out(item.files[item.n_tried]);
        } catch (const invalid_request & e) {
            throw media_error(item.n_tried, e.what());
        }
        item.n_tried++;
    }
    if (is_done()) {
        return engine_->submit(std::move(item.prepared));
    }
    std::lock_guard<std::mutex> lock(mutex_);
    unprepared_.push_back(std::move(item));
}

chat_turn server::whole_prompt(const generate_spec & spec) const {
    const model & m = loaded();
    const size_t limit = size_t(m.context_length());
    if (const auto * chat = std::get_if<chat_prompt>(&spec.prompt)) {
        return m.chat().prepare(*chat, spec.grammar ? &*spec.grammar : nullptr, limit);
    }
    if (const auto * text = std::get_if<std::string>(&spec.prompt)) {
        return {m.vocab().tokenize_within(*text, limit, 1)};
    }
    if (const auto * infill = std::get_if<infill_prompt>(&spec.prompt)) {
        return {write_infill(*infill, m.vocab(), limit, spec.max_tokens)};
    }
    const auto & tokens = std::get<std::vector<llama_token>>(spec.prompt);
    check_tokens(tokens, "prompt");
    if (tokens.size() >= limit && spec.overflow != overflow_policy::drop_middle) {
        throw context_overflow(tokens.size() + 1, limit);
    }
    return {tokens};
}

// The prompt cut to the context, if that is what the request wants.
chat_turn server::fitting_prompt(const generate_spec & spec) const {
    if (spec.overflow != overflow_policy::drop_middle) {
        return whole_prompt(spec);
    }
    if (std::holds_alternative<chat_prompt>(spec.prompt)) {
        return recent_turns(spec);
    }
    if (const auto * infill = std::get_if<infill_prompt>(&spec.prompt)) { // which knows better what to drop
        infill_prompt cut = *infill;
        cut.fits = true;
        return {write_infill(cut, loaded().vocab(), size_t(loaded().context_length()), spec.max_tokens)};
    }
    const size_t limit = size_t(loaded().context_length());
    const auto * text = std::get_if<std::string>(&spec.prompt);
    std::vector<llama_token> tokens = text != nullptr ? loaded().vocab().tokenize_ends(*text, limit) : whole_prompt(spec).tokens;
    if (tokens.size() >= limit) {
        drop_middle(tokens, limit);
    }
    return {std::move(tokens)};
}

// A conversation without as many of its oldest turns as do not fit; what comes before the first of them stays.
chat_turn server::recent_turns(generate_spec spec) const {
    chat_prompt & chat = std::get<chat_prompt>(spec.prompt);
    const common_json all = chat.messages;
    std::vector<size_t> turns; // where they begin
    for (size_t i = 0; i < all.size(); i++) {
        if (all.at(i).is_object() && all.at(i).contains("role") && all.at(i).at("role") == "user") {
            turns.push_back(i);
        }
    }
    chat_turn fitting;
    const auto fits_from = [&](size_t turn) {
        chat.messages = common_json::array();
        for (size_t i = 0; i < all.size(); i++) {
            if (i < turns.front() || i >= turns[turn]) {
                chat.messages.push_back(all.at(i));
            }
        }
        try {
            fitting = whole_prompt(spec);
            return true;
        } catch (const context_overflow &) {
            return false;
        }
    };
    if (turns.size() < 2) {
        return whole_prompt(spec);
    }
    size_t first = 0;
    size_t last = turns.size() - 1;
    while (first < last) { // the earliest turn from which on the rest fits
        const size_t middle = first + (last - first) / 2;
        if (fits_from(middle)) {
            last = middle;
        } else {
            first = middle + 1;
        }
    }
    return fits_from(first) ? fitting : whole_prompt(spec);
}

// Whatever became of it on the way, a prompt has a token to compute and leaves room for one to answer with.
void server::make_answerable(std::vector<llama_token> & tokens, const char * param) const {
    const vocabulary & vocab = loaded().vocab();
    const size_t limit = size_t(loaded().context_length());
    if (tokens.empty()) {
        const llama_token bos = llama_vocab_bos(vocab.get());
        if (!vocab.contains(bos)) {
            throw invalid_request(param, "the prompt is empty");
        }
        tokens.push_back(bos);
    }
    if (tokens.size() >= limit) {
        throw context_overflow(tokens.size() + 1, limit);
    }
}

void server::render(work & item) {
    const auto spec = std::make_shared<const render_spec>(parse_render(item.command.payload, std::move(item.media)));
    const chat_template & chat = loaded().chat();
    check_media(spec->chat.media);
    if (!spec->count) {
        return answer(item.request, frame_kind::RESULT, chat.render(spec->chat, spec->ruled_by()));
    }
    when_heard(item, spec->chat.media, true, [this, &chat, spec](const work & heard) {
        const counted_prompt counted = chat.count(spec->chat, spec->ruled_by(), size_t(loaded().context_length()));
        answer(heard.request, frame_kind::RESULT, std::to_string(counted.n_tokens) + "\n" + counted.text);
    });
}

// `rest` of what is to be done, at once or when those of the `files` that are sounds have been listened to: to be `counted` it
// is enough that their lengths are known.
void server::when_heard(work & item, const media_files & files, bool counted, std::function<void(work &)> rest) {
    const auto is_unheard = [&](const media_file_ptr & file) {
        return counted ? !loaded().sight()->knows_length(*file) : !loaded().sight()->has_heard(*file);
    };
    if (std::none_of(files.begin(), files.end(), is_unheard)) {
        return rest(item);
    }
    if (!listener_.joinable()) {
        listener_ = start(0, [this] { listen_all(); });
    }
    item.rest = std::move(rest);
    item.files = files;
    std::lock_guard<std::mutex> lock(mutex_);
    unheard_.push_back(std::move(item));
    filled_.notify_all();
}

void server::generate(work & item) {
    const auto spec = std::make_shared<generate_spec>(parse_generate(item.command.payload, std::move(item.media)));
    media_files files;
    if (const auto * chat = std::get_if<chat_prompt>(&spec->prompt)) {
        loaded();
        check_media(chat->media);
        files = chat->media;
    }
    when_heard(item, files, false, [this, spec](work & heard) { generate_as(heard, *spec); });
}

void server::generate_as(work & item, generate_spec & spec) {
    const model & m = loaded();
    if (!engine_ || m.is_embedding()) {
        throw error("model_type", "an embedding model does not generate", json_object().add("needs", "text generation").text());
    }
    const vocabulary & vocab = m.vocab();
    auto s = std::make_unique<sequence>();
    s->request = item.request;
    s->drops_middle = spec.overflow == overflow_policy::drop_middle;
    std::shared_ptr<const answer_format> format;
    const auto * chat = std::get_if<chat_prompt>(&spec.prompt);
    try {
        chat_turn turn = fitting_prompt(spec);
        s->tokens = std::move(turn.tokens);
        s->spans = std::move(turn.spans);
        s->parts = std::move(turn.parts);
        s->n_repeated = turn.n_repeated;
        s->n_preamble = turn.n_preamble;
        s->loosened = std::move(turn.loosened);
        format = std::move(turn.format);
        make_answerable(s->tokens, std::holds_alternative<chat_prompt>(spec.prompt) ? "messages" : "prompt");
    } catch (const context_overflow & e) {
        if (spec.overflow != overflow_policy::stop) {
            throw;
        }
        s->n_prompt = e.needed - 1;
        return answer(item.request, frame_kind::FINISHED, finished_payload(*s, stop_reason::context_length));
    }
    s->n_prompt = s->tokens.size();
    if (!s->spans.empty()) {
        if (spec.echo) {
            throw invalid_request("echo", "a prompt with pictures or sounds cannot be echoed");
        }
        item.files = chat->media;
        item.n_tried = 0;
        spec.draft = {}; // guesses are made of text alone
    }
    for (const auto & [id, bias] : spec.sampling.logit_bias) {
        check_tokens({id}, "logit_bias");
    }
    if (spec.ignore_eos) {
        for (llama_token id = 0; id < vocab.size(); id++) {
            if (vocab.is_eog(id)) {
                spec.sampling.logit_bias.push_back({id, -std::numeric_limits<float>::infinity()});
            }
        }
    }
    check_tokens(spec.stop_tokens, "stop_token_ids");
    if (spec.min_tokens > 0) {
        spec.sampling.min_tokens = size_t(spec.min_tokens);
        spec.sampling.ends = spec.stop_tokens;
        for (llama_token id = 0; id < vocab.size(); id++) {
            if (vocab.is_eog(id)) {
                spec.sampling.ends.push_back(id);
            }
        }
        s->late_stops = std::move(spec.stops);
        spec.stops.clear();
    }
    s->stop_tokens = std::move(spec.stop_tokens);
    s->min_tokens = size_t(spec.min_tokens);
    s->line_ms = spec.line_ms;
    s->max_tokens = spec.max_tokens;
    if (format) {
        const size_t room = size_t(m.context_length()) - s->n_prompt;
        const size_t n_asked = spec.max_tokens < 0 ? room : std::min(room, size_t(spec.max_tokens));
        if (const auto most = thinking_limit(*format, spec.reasoning_budget, n_asked)) {
            s->budget = reasoning_budget::of(*format, vocab, *most);
        }
    }
    s->whole = spec.whole;
    s->tells_progress = spec.progress;
    s->loras = m.loras().scales_for(spec.loras);
    s->cache_key = to_key(s->loras) + '\n' + spec.scope;
    s->draft = draft(spec.draft);
    s->top_logprobs = spec.top_logprobs;
    if (spec.echo) {
        const auto * text = std::get_if<std::string>(&spec.prompt);
        const bool may_be_cut = spec.overflow == overflow_policy::drop_middle && spec.top_logprobs;
        const auto * infill = std::get_if<infill_prompt>(&spec.prompt);
        std::string bytes = text != nullptr && !may_be_cut          ? *text
                            : infill != nullptr && !spec.top_logprobs ? infill->prefix + infill->begun
                                                                      : vocab.detokenize(s->tokens);
        decode_utf8(bytes, s->echo);
    }
    if (spec.echo && spec.top_logprobs) {
        s->scores_prompt = true;
        s->shown = align(s->tokens, s->echo, vocab);
    }
    matcher_ptr grammar;
    if (format && format->compiled) {
        if (format->grammar_lazy) {
            s->sleeping = std::make_unique<lazy_grammar>(*format, vocab);
        } else {
            grammar = eager_grammar(*format, vocab);
        }
    } else if (spec.grammar) {
        grammar = std::make_unique<matcher>(grammars_->get(*spec.grammar), vocab);
    }
    if (spec.grammar && spec.grammar->is_schema()) {
        const schema_ptr schema = read_schema(spec.grammar->text, spec.grammar->strict);
        outbox_.send(frame_kind::NOTICE, item.request->id, notice_payload(schema->unenforced));
    }
    const bool is_ruled = format && format->compiled && !format->grammar_lazy;
    s->answer = reply(std::move(format), std::move(spec.stops), spec.whole);
    if (is_ruled) {
        s->answer.set_ruled();
    }
    s->choose = std::make_unique<sampler>(spec.sampling, vocab, std::move(grammar), m.context_length());
    for (const llama_token id : s->tokens) {
        if (!is_media(id)) {
            s->choose->observe(id);
        }
    }
    item.command.payload = {};
    item.prepared = std::move(s);
    try_next(item);
}

void server::embed(const work & item) {
    const auto [inputs, as_json, dimensions] = parse_embed(item.command.payload);
    const model & m = loaded();
    if (!engine_ || !m.is_embedding() || m.is_reranker()) {
        throw error("model_type", "this model gives no embeddings", json_object().add("needs", "embeddings").text());
    }
    if (const int32_t n_embd = llama_model_n_embd_out(m.get()); dimensions > n_embd) {
        throw invalid_request("dimensions", "'dimensions' must be at most " + std::to_string(n_embd) + ", as the model's vectors have");
    }
    auto job = std::make_unique<embedding_job>();
    job->request = item.request;
    job->as_json = as_json;
    job->dimensions = size_t(dimensions);
    for (size_t i = 0; i < inputs.size(); i++) {
        std::vector<llama_token> tokens;
        if (const auto * text = std::get_if<std::string>(&inputs[i])) {
            try {
                tokens = m.vocab().tokenize_within(*text, size_t(m.context_length()), 0);
            } catch (const context_overflow & e) {
                throw context_overflow(e.needed, e.limit, i);
            }
        } else {
            tokens = std::get<std::vector<llama_token>>(inputs[i]);
            check_tokens(tokens, "input");
        }
        if (tokens.empty()) {
            throw invalid_request("input", "input " + std::to_string(i) + " has no tokens");
        }
        if (tokens.size() > size_t(m.context_length())) {
            throw context_overflow(tokens.size(), size_t(m.context_length()), i);
        }
        job->inputs.push_back(std::move(tokens));
    }
    engine_->submit(std::move(job));
}

void server::rerank(const work & item) {
    rerank_spec spec = parse_rerank(item.command.payload);
    const model & m = loaded();
    if (!engine_ || !m.is_reranker()) {
        throw error("model_type", "this model scores no documents", json_object().add("needs", "reranking").text());
    }
    const rerank_prompt prompt(m.get(), m.vocab(), std::move(spec.query), size_t(m.context_length()));
    auto job = std::make_unique<embedding_job>();
    job->request = item.request;
    for (size_t i = 0; i < spec.documents.size(); i++) {
        try {
            job->inputs.push_back(prompt.tokenize(spec.documents[i]));
        } catch (const context_overflow & e) {
            throw context_overflow(e.needed, e.limit, i);
        }
        if (job->inputs.back().empty()) {
            throw invalid_request("documents", "document " + std::to_string(i) + " has no tokens");
        }
    }
    engine_->submit(std::move(job));
}

void server::tokenize(const work & item) {
    const tokenize_spec spec = parse_tokenize(item.command.payload);
    if (spec.text.size() > MAX_TOKENIZED_TEXT) {
        throw invalid_request("text", "the text is longer than " + std::to_string(MAX_TOKENIZED_TEXT) + " bytes");
    }
    const vocabulary & vocab = loaded().vocab();
    const std::vector<llama_token> tokens = vocab.tokenize(spec.text, spec.add_special, spec.parse_special);
    std::string ids;
    std::string pieces;
    for (const llama_token id : tokens) {
        ids += (ids.empty() ? "" : ",") + std::to_string(id);
        pieces += pieces.empty() ? "[" : ",[";
        const std::string piece = vocab.special_piece(id);
        for (size_t i = 0; i < piece.size(); i++) {
            pieces += (i == 0 ? "" : ",") + std::to_string(static_cast<unsigned char>(piece[i]));
        }
        pieces += ']';
    }
    answer(item.request, frame_kind::TOKENS,
           json_object().add_raw("tokens", "[" + ids + "]").add_raw("pieces", "[" + pieces + "]").text());
}

// ---- listener -----------------------------------------------------------------------------------------------------------

void server::listen_all() {
#ifdef __linux__ // elsewhere it is the whole process's
    setpriority(PRIO_PROCESS, 0, LISTENER_NICENESS);
#endif
    for (work item; next(unheard_, item);) {
        answering(item, [&] { listen_to_next(item); });
        item = {};
    }
}

// One sound of a request at a time, in turns with others'.
void server::listen_to_next(work & item) {
    const tower & sight = *loaded().sight();
    const auto is_done = [&] { return item.n_tried == item.files.size() || item.request->cancelled; };
    while (!is_done() && sight.has_heard(*item.files[item.n_tried])) {
        item.n_tried++;
    }
    if (!is_done()) {
        sight.listen_to(item.n_tried++, item.files);
    }
    std::lock_guard<std::mutex> lock(mutex_);
    (is_done() ? unprepared_ : unheard_).push_back(std::move(item));
    filled_.notify_all();
}

// ---- attacher -----------------------------------------------------------------------------------------------------------

void server::attach_all() {
    for (work item; next(unattached_, item);) {
        answering(item, [&] { attach(item); });
        item = {};
    }
}

void server::attach(const work & item) {
    std::shared_ptr<engine> target;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        target = engine_;
    }
    if (!target) {
        throw error("load_failed", "no model is loaded that it could draft for");
    }
    const auto progress = [&](float) { return !closing_ && !item.request->cancelled; };
    auto small = std::make_unique<model>(parse_attach_draft(item.command.payload, spec_), progress, [] {});
    target->attach_draft(std::make_unique<draft_model>(std::move(small), *model_));
    answer(item.request, frame_kind::RESULT, "");
}

// ---- writer -------------------------------------------------------------------------------------------------------------

void server::beat() {
    if (pulse_.pending > 0) {
        outbox_.send(frame_kind::HEARTBEAT, 0,
                     json_object()
                         .add("step_ms", pulse_.step_ms())
                         .add("prepare_ms", pulse_.preparation.running_ms())
                         .text());
    }
}

std::string server::report() const {
    return json_object()
        .add("running", pulse_.running.load())
        .add("queued", pulse_.queued.load())
        .add("cells", model_ ? model_->kv_cells() : 0)
        .add("cells_used", pulse_.cells_used.load())
        .add("decode_steps", pulse_.decode_steps.load())
        .add("decoded_tokens", pulse_.decoded_tokens.load())
        .add("prompt_tokens", pulse_.prompt_tokens.load())
        .add("cached_tokens", pulse_.cached_tokens.load())
        .add("media_encoded", pulse_.media_encoded.load())
        .add("media_reused", pulse_.media_reused.load())
        .add("disk_hits", pulse_.disk_hits.load())
        .add("disk_tokens", pulse_.disk_tokens.load())
        .add("disk_read_bytes", pulse_.disk_read_bytes.load())
        .add("disk_written_bytes", pulse_.disk_written_bytes.load())
        .add("disk_bytes", pulse_.disk_bytes.load())
        .add("disk_damaged", pulse_.disk_damaged.load())
        .text();
}

// ---- the whole ----------------------------------------------------------------------------------------------------------

void server::stop_working() {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
    filled_.notify_all();
    if (engine_) {
        engine_->stop();
    }
}

// However it came: nothing of ours runs when this returns.
void server::end() {
    stop_working();
    outbox_.close();
    ::shutdown(fd_, SHUT_RDWR);
    writer_.join();
    preparer_.join();
    listener_.join();
    stop_working(); // a load that was just ending may have started the engine after the first call
    attacher_.join();
    decoder_.join();
    engine_.reset();
    grammars_.reset();
    model_.reset();
}

int server::serve() {
#ifdef SO_NOSIGPIPE
    const int on = 1;
    setsockopt(fd_, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
    preparer_ = start(PREPARER_STACK, [this] { prepare_all(); });
    writer_ = start(0, [this] { outbox_.run([this] { beat(); }); });

    frame_reader reader(fd_);
    frame command;
    bool understood = true;
    while (understood && !outbox_.broken() && reader.read(command)) {
        understood = dispatch(command);
    }
    end();
    return failed_ ? LM_ERR_RESOURCES : understood && !reader.malformed() ? LM_OK : LM_ERR_PROTOCOL;
}

}  // namespace lm

extern "C" int32_t lm_abi_version(void) {
    return LM_ABI_VERSION;
}

extern "C" const char * lm_build_info(void) {
    return lm::build_info();
}

extern "C" int32_t lm_engine_serve(int32_t fd) {
    const lm::descriptor own(fd);
    if (const char * missing = lm::missing_instructions()) {
        fprintf(stderr, "lmlite: this CPU lacks %s\n", missing);
        return LM_ERR_RESOURCES;
    }
    try {
        return lm::server(fd).serve();
    } catch (...) {
        return LM_ERR_RESOURCES;
    }
}
