// The third place where prompts are found again, below cells and host memory: on the disk, where they outlive the engine.
//
// What is worth keeping are beginnings that others will have, too: what comes ahead of the first user's words, what two prompts
// were seen to share, and long prompts, of which much was computed at once; of the turns of a chat only those that bring much. A request
// whose prompt begins so waits until it was brought, and nobody else does: pieces are copied between the decode thread's steps,
// a few milliseconds' worth at a time where others stream. Pictures and sounds, and what follows them, stay out.
#pragma once

#include "model.h"
#include "prefix.h"
#include "prompt_store.h"

#include <deque>
#include <functional>

namespace lm {

class disk_tier {
  public:
    // All is borrowed. `news` wakes the decode thread, whose this is.
    disk_tier(const model & m, prefix_cache & cache, pulse & p, std::function<void()> news);

    // Whether `s` had better wait for what is on its way for its prompt, or be brought next. Begins to bring it.
    bool brings(sequence & s, const std::vector<sequence *> & running);
    // `s` was given its place.
    void welcome(sequence & s);
    // `s` has computed up to s.n_cached.
    void reached(sequence & s, bool beside_streams);
    // A step took so many tokens of prompts.
    void learn(size_t n_prefilled, double step_ms);

    // Copies pieces to and fro: one, or where there are no streams some more.
    void work(const std::vector<sequence *> & running);
    bool has_work() const; // that can be done now
    bool awaits() const;   // pieces for some request
    // The engine ends: what was to be written is, if that takes no longer than a moment.
    void finish(const std::vector<sequence *> & running);

  private:
    // A beginning of a prompt that is being written, piece by piece.
    struct leaving {
        text_prompt_ptr text;
        std::vector<prompt_beginning> ends;
        size_t next = 0; // of these
        int64_t used_ns;
    };

    size_t most_of(const sequence & s) const;
    void find_beginnings(sequence & s) const;
    std::vector<prompt_piece> wanted_by(const sequence & s, size_t from) const;
    bool is_left_alone() const;
    void take(bool beside_streams);
    void end_fetch();
    bool copy_next(const std::vector<sequence *> & running);
    void keep_prompt(const sequence & s);
    void let_go();
    void keep_whole(const sequence & s, size_t end, bool beside_streams);
    prompt_piece piece_of(const std::vector<llama_token> & tokens, const prompt_beginning & to, size_t begin) const;

    const model & model_;   // borrowed
    prefix_cache & cache_;  // borrowed
    pulse & pulse_;         // borrowed
    const size_t piece_tokens_; // 0: a piece is a whole prompt
    prompt_store store_;

    bool is_fetching_ = false;
    bool goes_on_ = false; // what comes can be used
    size_t known_ = 0;     // tokens that were in the cells before
    bool is_large_ = false; // one took longer to be put there than streams may wait
    double copy_ms_ = 0;   // that what has come took to be put there
    double token_ms_ = 0;  // that computing one of a prompt takes
    int n_slow_ = 0;       // fetches in a row that took longer than computing
    steady::time_point slow_at_; // when the last of too many of them ended
    std::deque<leaving> leaving_;
    steady::time_point copied_;
};

}  // namespace lm
