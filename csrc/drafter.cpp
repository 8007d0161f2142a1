#include "drafter.h"

#include <algorithm>
#include <cstdio>
#include <limits>

namespace lm {

static constexpr double STEP_WEIGHT = 0.2; // of a new measurement

// In steps. What a step without guesses takes is measured as often as the one, at the price of one such step; a width
// that was given up as too dear is tried again after the other, for the machine may have been busy.
static constexpr uint64_t SURE = 64;
static constexpr uint64_t REMEMBERED = 1024;

// Streams that cannot be drafted for get slower by no more than this for the sake of those that can.
static constexpr double SLOWER_FOR_OTHERS = 1.25;

// Guessing must promise this much more speed than not guessing: measurements are noisy.
static constexpr double WORTH_IT = 1.05;

// ---- what steps cost ----------------------------------------------------------------------------------------------------

void step_costs::learn(size_t width, double ms) {
    if (width > WIDEST) {
        return;
    }
    measure & m = measured_[width];
    now_++;
    m.ms = remembered(m) ? m.ms + STEP_WEIGHT * (ms - m.ms) : ms;
    m.at = now_;
}

bool step_costs::remembered(const measure & m) const {
    return m.at > 0 && now_ - m.at < REMEMBERED;
}

bool step_costs::sure(size_t width) const {
    return width <= WIDEST && measured_[width].at > 0 && now_ - measured_[width].at < SURE;
}

double step_costs::ms(size_t width) const {
    size_t below = 0; // the nearest narrower width that is known; 0: none
    double interpolated = 0;
    double least = std::numeric_limits<double>::infinity(); // of wider steps: a moment in which the machine was busy is not believed
    for (size_t w = 1; w <= WIDEST; w++) {
        const measure & m = measured_[w];
        if (!remembered(m)) {
            continue;
        }
        if (w < width) {
            below = w;
        } else {
            if (interpolated == 0) {
                const double from = below == 0 ? m.ms : measured_[below].ms;
                interpolated = w == width ? m.ms : from + (m.ms - from) * double(width - below) / double(w - below);
            }
            least = std::min(least, m.ms);
        }
    }
    return interpolated > 0 ? std::min(interpolated, least) : below > 0 ? measured_[below].ms : 0;
}

// ---- who gets how much --------------------------------------------------------------------------------------------------

void drafter::attach(std::unique_ptr<draft_model> m) {
    m->work_for(target_, stopping_);
    draft_model_ = std::move(m);
}

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
        size_t most = s->draft.asked.kind == draft_kind::none ? 0 : most_guesses(*s, room);
        std::vector<llama_token> guesses;
        if (s->draft.asked.kind == draft_kind::ngram && most > 0) {
            s->draft.index.update(s->tokens);
            guesses = s->draft.index.continuation(s->tokens, most);
            const auto end = std::find_if(guesses.begin(), guesses.end(),
                                          [&](llama_token id) { return target_.vocab().is_eog(id); });
            guesses.erase(end, guesses.end()); // nothing follows it
            most = guesses.size();
        }
        if (s->draft.asked.kind == draft_kind::model && (!draft_model_ || s->tokens.size() >= draft_model_->longest())) {
            most = 0;
        }
        if (most > 0 && most >= size_t(s->draft.asked.min)) {
            drafts.push_back({s, most, 0, std::move(guesses), false});
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
    const double round_ms = draft_model_ ? draft_model_->round_ms() : 0;
    std::vector<size_t> taken(drafts.size(), 0);
    std::vector<double> chances; // that the next guess gives a token
    for (const candidate_draft & d : drafts) {
        chances.push_back(d.s->draft.chance.rate());
    }
    const auto insisted = [&](size_t i) { return taken[i] < size_t(drafts[i].s->draft.asked.min); };
    double tokens = double(n_decoding);
    double best_speed = tokens / plain_ms * WORTH_IT;
    size_t n_rounds = 0;
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
        taken[next]++;
        tokens += chances[next];
        chances[next] *= drafts[next].s->draft.chance.rate();
        if (drafts[next].s->draft.asked.kind == draft_kind::model) {
            n_rounds = std::max(n_rounds, taken[next]);
        }
        const double ms = costs_.ms(n_decoding + n) + double(n_rounds) * round_ms;
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
