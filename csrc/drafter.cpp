#include "drafter.h"

#include <algorithm>
#include <cstdio>
#include <limits>

namespace lm {

// Streams that cannot be drafted for get slower by no more than this for the sake of those that can.
static constexpr double SLOWER_FOR_OTHERS = 1.25;

// Guessing must promise this much more speed than not guessing: measurements are noisy.
static constexpr double WORTH_IT = 1.05;

// Shorter steps tell little of what a token adds to one.
static constexpr size_t TELLING_PROMPT = 32;

// Where the answer's length is not known, a draft model's reading of the prompt must pay within so many tokens.
static constexpr size_t EXPECTED_ANSWER = 256;

// What is known of the chances: how much one request's guesses change it, and how it goes back to what is expected of any text,
// so that guessing is tried again after some dozens of requests.
static constexpr double REQUEST_WEIGHT = 0.25;
static constexpr double BACK_PER_REQUEST = 0.02;

drafter::drafter(model & target, std::atomic<bool> & stopping) : target_(target), stopping_(stopping) {
    const double all = double(llama_model_n_params(target.get()));
    const double rows = double(target.vocab().size()) * double(llama_model_n_embd(target.get()));
    if (rows < all) {
        row_factor_ = all / (all - rows);
    }
}

void drafter::attach(std::unique_ptr<draft_model> m) {
    m->work_for(target_, stopping_);
    draft_model_ = std::move(m);
    draft_share_ = double(draft_model_->size()) / double(llama_model_size(target_.get()));
    model_chance_ = draft::MODEL_PRIOR;
}

// ---- what is known ------------------------------------------------------------------------------------------------------

void drafter::learn(size_t width, double ms, bool with_prompt) {
    if (!with_prompt) {
        costs_.learn(width, ms);
    } else if (width >= TELLING_PROMPT) {
        costs_.learn_slope(ms / double(width) * row_factor_);
    }
}

void drafter::welcome(sequence & s) {
    const bool by_model = s.draft.asked.kind == draft_kind::model;
    double & known = by_model ? model_chance_ : ngram_chance_;
    const double any = by_model ? draft::MODEL_PRIOR : draft::NGRAM_PRIOR;
    if (s.draft.asked.kind != draft_kind::none) {
        known += BACK_PER_REQUEST * (any - known);
        s.draft.chance = acceptance(any, known);
    }
}

void drafter::bid_farewell(const sequence & s) {
    if (s.draft.asked.kind != draft_kind::none && s.draft.chance.is_told()) {
        double & known = s.draft.asked.kind == draft_kind::model ? model_chance_ : ngram_chance_;
        known += REQUEST_WEIGHT * (s.draft.chance.rate() - known);
    }
}

// A step of the draft model.
double drafter::draft_ms(size_t width) const {
    const double measured = draft_model_->costs().ms(width);
    const double expected = draft_share_ * costs_.ms(width);
    return measured == 0 || (!draft_model_->costs().known(width) && expected < measured) ? expected : measured;
}

double drafter::entry_ms(const sequence & s) const {
    constexpr size_t IN_STEP = 4; // tokens that it is behind because of the last step
    const size_t missing = draft_model_->missing(s);
    if (missing <= IN_STEP) {
        return 0;
    }
    const size_t limit = s.max_tokens > 0 ? size_t(s.max_tokens) : s.n_generated + EXPECTED_ANSWER;
    return draft_ms(missing) / double(std::max<size_t>(limit - std::min(limit, s.n_generated), 1));
}

// ---- who gets how much --------------------------------------------------------------------------------------------------

// What is guessed must leave room for the token that follows: in the context and within the limit of the answer.
size_t drafter::most_guesses(const sequence & s, size_t room) const {
    size_t most = std::min(room, size_t(s.draft.asked.max));
    const size_t context = size_t(target_.context_length());
    most = std::min(most, context - std::min(context, s.tokens.size() + 1));
    if (s.max_tokens > 0) {
        const size_t limit = size_t(s.max_tokens);
        most = std::min(most, limit - std::min(limit, s.n_generated + 1));
    }
    return most;
}

std::vector<drafter::candidate_draft> drafter::candidates(const std::vector<sequence *> & decoding, size_t room) const {
    std::vector<candidate_draft> drafts;
    for (sequence * s : decoding) {
        const draft_kind asked = s->draft.asked.kind;
        size_t most = most_guesses(*s, room);
        std::vector<llama_token> guesses = asked == draft_kind::model ? std::vector<llama_token>() : s->choose->forced(most);
        if (!guesses.empty() || asked == draft_kind::none) {
            most = guesses.size();
        } else if (asked == draft_kind::ngram && most > 0) {
            s->draft.index.update(s->tokens);
            guesses = s->draft.index.continuation(s->tokens, most);
            const auto end = std::find_if(guesses.begin(), guesses.end(),
                                          [&](llama_token id) { return target_.vocab().is_eog(id); });
            guesses.erase(end, guesses.end()); // nothing follows it
            most = guesses.size();
        }
        if (asked == draft_kind::model && (!draft_model_ || s->tokens.size() >= draft_model_->longest())) {
            most = 0;
        }
        if (most > 0 && most >= size_t(s->draft.asked.min)) {
            const bool by_model = asked == draft_kind::model;
            drafts.push_back({s, most, 0, std::move(guesses), false, by_model ? entry_ms(*s) : 0.0});
        }
    }
    return drafts;
}

// One guess after another, those that are insisted on and then the likeliest first, as many as make the tokens come
// fastest. Every sequence gets one token from a step without guesses; its k-th guess gives another one with the
// probability that k guesses in a row are right.
void drafter::grant(std::vector<candidate_draft> & drafts, size_t n_decoding, size_t room) const {
    const bool sure = costs_.sure(n_decoding);
    const double plain_ms = costs_.ms(n_decoding);
    const double most_ms = drafts.size() < n_decoding ? plain_ms * SLOWER_FOR_OTHERS : std::numeric_limits<double>::infinity();
    std::vector<size_t> taken(drafts.size(), 0);
    std::vector<double> chances; // that the next guess gives a token
    for (const candidate_draft & d : drafts) {
        chances.push_back(d.s->draft.chance.rate());
    }
    const auto insisted = [&](size_t i) { return taken[i] < size_t(drafts[i].s->draft.asked.min); };
    double tokens = double(n_decoding);
    double best_speed = tokens / plain_ms * WORTH_IT;
    std::vector<size_t> rounds; // of the draft model: how many sequences get a token in each
    double drafting_ms = 0;
    double entries_ms = 0; // the tokens of this step have their share of what draft models read before they could begin
    for (size_t n = 1; n <= room; n++) {
        size_t next = drafts.size();
        for (size_t i = 0; i < drafts.size(); i++) {
            const bool likelier = next < drafts.size() && (insisted(i) == insisted(next) ? chances[i] > chances[next] : insisted(i));
            if (taken[i] < drafts[i].most && (next == drafts.size() || likelier)) {
                next = i;
            }
        }
        if (next == drafts.size()) {
            return;
        }
        const bool must = insisted(next);
        if (drafts[next].s->draft.asked.kind == draft_kind::model) {
            rounds.resize(std::max(rounds.size(), taken[next] + 1), 0);
            size_t & n_guessing = rounds[taken[next]];
            drafting_ms += draft_ms(n_guessing + 1) - (n_guessing > 0 ? draft_ms(n_guessing) : 0);
            n_guessing++;
        }
        entries_ms += drafts[next].entry_ms * (chances[next] + (taken[next] == 0 ? 1 : 0));
        taken[next]++;
        tokens += chances[next];
        chances[next] *= drafts[next].s->draft.chance.rate();
        const double ms = costs_.ms(n_decoding + n) + drafting_ms + entries_ms;
        if (must || (sure && ms <= most_ms && tokens / ms > best_speed)) {
            best_speed = tokens / ms;
            for (size_t i = 0; i < drafts.size(); i++) {
                drafts[i].granted = taken[i];
            }
        }
    }
}

// ---- guesses ------------------------------------------------------------------------------------------------------------

void drafter::ask_model(std::vector<candidate_draft> & drafts, const std::vector<sequence *> & decoding) {
    std::vector<draft_model::wish> wishes;
    for (const candidate_draft & d : drafts) {
        if (d.granted > 0 && d.s->draft.asked.kind == draft_kind::model) {
            wishes.push_back({d.s, d.granted, {}, false});
        }
    }
    if (wishes.empty()) {
        return;
    }
    try {
        draft_model_->guess(wishes, decoding);
    } catch (const std::exception & e) { // costs speed, and no request
        fprintf(stderr, "lmlite: the draft model is given up: %s\n", e.what());
        draft_model_.reset();
        return;
    }
    for (candidate_draft & d : drafts) {
        const auto answer = std::find_if(wishes.begin(), wishes.end(), [&](const auto & w) { return w.s == d.s; });
        if (answer != wishes.end()) {
            d.guesses = std::move(answer->guesses);
            d.unsure = answer->unsure;
        }
    }
}

void drafter::propose(const std::vector<sequence *> & decoding, size_t room) {
    room = std::min(room, size_t(MAX_STEP_GUESSES));
    std::vector<candidate_draft> drafts = candidates(decoding, room);
    grant(drafts, decoding.size(), room);
    ask_model(drafts, decoding);
    for (candidate_draft & d : drafts) {
        draft & offered = d.s->draft;
        const std::optional<llama_token> first = d.guesses.empty() ? std::nullopt : std::make_optional(d.guesses[0]);
        d.guesses.resize(std::min(d.guesses.size(), d.granted));
        offered.offer(std::move(d.guesses), d.unsure);
        if (offered.guesses.size() < size_t(offered.asked.min)) {
            offered.settle();
        }
        if (d.granted > 0) {
            continue;
        }
        if (first) {
            offered.expect(*first);
        } else {
            offered.chance.age();
        }
    }
}

}  // namespace lm
