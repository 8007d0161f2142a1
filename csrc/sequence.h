// One GENERATE request on its way: what was asked, the tokens so far, and what has been told to the client.
#pragma once

#include "draft.h"
#include "lora.h"
#include "media.h"
#include "prompt_file.h"
#include "reasoning.h"
#include "reply.h"
#include "sampler.h"
#include "state.h"
#include "lazy_grammar.h"
#include "tower.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lm {

using steady = std::chrono::steady_clock;

inline double ms_between(steady::time_point from, steady::time_point to) {
    return std::chrono::duration<double, std::milli>(to - from).count();
}

// The part of a request that outlives its frame: shared by the reader (which cancels) and whoever works on it.
struct ticket {
    explicit ticket(uint32_t id) : id(id) {}

    const uint32_t id;
    const steady::time_point arrived = steady::now();
    std::atomic<bool> cancelled{false};
};
using ticket_ptr = std::shared_ptr<ticket>;

// Why a request ended, in LM Studio's vocabulary.
enum class stop_reason { eos, stop_string, max_tokens, context_length, cancelled, tool_calls };
const char * to_string(stop_reason reason);

struct sequence {
    // what was asked
    ticket_ptr request;
    size_t n_prompt = 0;
    int32_t max_tokens = -1;
    bool drops_middle = false; // at the end of the context it goes on without the middle of what was said
    bool ignore_eos = false;
    std::string echo; // text shown ahead of the answer
    bool scores_prompt = false;   // log probabilities of the prompt's tokens are wanted
    std::vector<uint32_t> shown;  // then: how many bytes at the end of each token's text stand in the echo
    bool tells_progress = false; // from admission on, and of a prompt that takes one step, too
    bool whole = false; // nobody listens before the end: a frame per token would only wake the server
    std::optional<int32_t> top_logprobs;
    std::unique_ptr<sampler> choose;
    std::unique_ptr<lazy_grammar> sleeping; // null: no grammar waits for a trigger
    std::unique_ptr<reasoning_budget> budget; // null: reasoning has no limit
    std::vector<llama_token> stop_tokens;
    std::vector<std::string> late_stops; // strings that end the answer from the token `min_tokens` on
    size_t min_tokens = 0;
    double line_ms = 0; // 0: no limit
    bool has_line = false;
    reply answer;
    struct draft draft;
    lora_scales loras;
    std::vector<std::string> loosened; // tools to be told of at the end

    // only sequences of one key may share cells: the LoRA adapters that computed them, and the caller's scope
    std::string cache_key;
    size_t n_repeated = 0;    // prompt tokens that a later turn will repeat; 0: not known
    size_t n_preamble = 0;    // prompt tokens that another conversation may begin with; 0: not known
    std::vector<mark> marks;  // where its memory can be taken over, if it cannot be everywhere
    std::vector<size_t> cuts; // where marks are wanted
    double unmarked_ms = 0;   // what it took to compute what lies behind the last mark
    size_t n_common = 0;      // tokens that another prompt began with, too, before it went on otherwise
    // of the disk: beginnings of the prompt and their digests, and those of them that are worth keeping there
    std::vector<prompt_beginning> beginnings;
    std::vector<size_t> worth_keeping;
    int n_fetches = 0; // on behalf of it

    // the prompt, then every sampled token; the first `n_cached` have cells under `seq`
    std::vector<llama_token> tokens;
    media_spans spans;              // which of them are pictures and sounds
    std::vector<media_part> parts;  // what these show
    uint64_t looked = 0;   // when an encoding was last begun for it
    uint64_t shown_at = 0; // when rows of it were last computed
    size_t n_cached = 0;
    llama_seq_id seq = -1; // -1: waiting
    int32_t output = -1;   // this step's index of the row to sample from
    int32_t first = -1;    // this step's index of its first token
    size_t n_scored = 0;   // prompt tokens whose rows have been read
    size_t n_step = 0;     // tokens of this sequence in this step's batch
    uint64_t turn = 0;     // the last one in which it could be in a batch
    bool done = false;     // answered; swept at the end of the step

    // logprobs of tokens whose text has not been shown yet, each with where its text begins
    struct unsaid {
        size_t begin;
        token_logprob logprob;
    };
    std::vector<unsaid> logprobs;

    // stats
    size_t n_reused = 0; // prompt tokens that were taken from the cache at first admission
    size_t n_generated = 0;
    bool admitted = false;
    steady::time_point admitted_at;
    steady::time_point first_token_at;
    steady::time_point last_token_at;
    double first_step_ms = 0;

    size_t n_pending() const { return tokens.size() - n_cached; }
    bool is_prefilling() const { return n_pending() > 1 || is_looking(); }
    // Whether the next cell is one of a picture or a sound.
    bool is_looking() const { return n_pending() > 0 && is_media(tokens[n_cached]); }
    // Whether rows of the prompt are still to be read: all from `n_scored` on, but for the last, which the answer begins with.
    bool is_scoring() const { return scores_prompt && n_scored + 1 < n_prompt; }
    bool scores(size_t token) const { return scores_prompt && token >= n_scored && token + 1 < n_prompt; }
};

// Cuts the middle out of what does not fit a context of `limit` tokens, so that about a quarter of it is free again.
// Returns how many tokens of the beginning are left.
size_t drop_middle(std::vector<llama_token> & tokens, size_t limit);
// The same of a sequence, whose pictures and sounds stay whole or go.
size_t drop_middle(sequence & s, size_t limit);

// Payloads of the events that a sequence causes.
std::string notice_payload(const std::vector<std::string> & unenforced);
std::string finished_payload(const sequence & s, stop_reason reason);
std::string tool_call_payload(const reply_piece & piece);
std::string logprobs_payload(const std::vector<token_logprob> & tokens, const vocabulary & vocab);
// Of prompt tokens; `shown` is as in `sequence`, for the first of them on. `is_first`: nothing was ahead of the first.
std::string prompt_logprobs_payload(const std::vector<token_logprob> & tokens, const uint32_t * shown, bool is_first,
                                    const vocabulary & vocab);
// Where the tokens' texts stand in `text`: how many bytes of each. Control tokens, and the space that some vocabularies put
// ahead of every text, are not in it.
std::vector<uint32_t> align(const std::vector<llama_token> & tokens, const std::string & text, const vocabulary & vocab);

}  // namespace lm
