#include "sequence.h"

#include "payload.h"

#include <algorithm>
#include <cstdio>
#include <optional>

namespace lm {

const char * to_string(stop_reason reason) {
    switch (reason) {
        case stop_reason::eos: return "eosFound";
        case stop_reason::stop_string: return "stopStringFound";
        case stop_reason::max_tokens: return "maxPredictedTokensReached";
        case stop_reason::context_length: return "contextLengthReached";
        case stop_reason::cancelled: return "userStopped";
        case stop_reason::tool_calls: return "toolCalls";
    }
    return "failed";
}

size_t drop_middle(std::vector<llama_token> & tokens, size_t limit) {
    const size_t head = limit / 4;
    const size_t tail = std::max<size_t>(limit / 2, 1); // something must be left to go on from
    if (tokens.size() > head + tail) {
        tokens.erase(tokens.begin() + long(head), tokens.end() - long(tail));
    }
    return head;
}

size_t drop_middle(sequence & s, size_t limit) {
    size_t head = limit / 4;
    size_t tail = s.tokens.size() - std::min(s.tokens.size(), std::max<size_t>(limit / 2, 1)); // where it begins
    head = without_part(s.spans, head);
    if (const media_span * cut = span_at(s.spans, tail)) {
        tail = cut->begin == tail ? tail : cut->end();
    }
    if (tail <= head) {
        return head;
    }
    media_spans spans;
    std::vector<media_part> parts;
    for (size_t i = 0; i < s.spans.size(); i++) {
        if (s.spans[i].end() <= head || s.spans[i].begin >= tail) {
            spans.push_back(s.spans[i]);
            spans.back().begin -= s.spans[i].begin >= tail ? tail - head : 0;
            parts.push_back(std::move(s.parts[i]));
        }
    }
    s.spans = std::move(spans);
    s.parts = std::move(parts);
    s.tokens.erase(s.tokens.begin() + long(head), s.tokens.begin() + long(tail));
    return head;
}

// From before the first token to the last: the gaps between tokens are one fewer than the tokens, so the mean gap (or,
// for a single token, its own step) stands for the first.
static double generation_ms(const sequence & s) {
    if (s.n_generated < 2) {
        return s.n_generated == 0 ? 0.0 : s.first_step_ms;
    }
    const double between = ms_between(s.first_token_at, s.last_token_at);
    return between * double(s.n_generated) / double(s.n_generated - 1);
}

static std::string to_json(const std::vector<std::string> & names) {
    std::string out = "[";
    for (size_t i = 0; i < names.size(); i++) {
        out += i == 0 ? "" : ",";
        append_json_string(out, names[i]);
    }
    return out + "]";
}

std::string notice_payload(const std::vector<std::string> & unenforced) {
    return json_object().add_raw("unenforced", to_json(unenforced)).text();
}

std::string finished_payload(const sequence & s, stop_reason reason) {
    json_object payload;
    payload.add("reason", to_string(reason));
    if (s.answer.stop() != nullptr && reason == stop_reason::stop_string) {
        payload.add("stop_string", *s.answer.stop());
    } else {
        payload.add_raw("stop_string", "null");
    }
    if (s.draft.asked.kind != draft_kind::none) {
        payload.add_raw("draft", json_object()
                                     .add("total", uint64_t(s.draft.total))
                                     .add("accepted", uint64_t(s.draft.accepted))
                                     .add("rejected", uint64_t(s.draft.rejected))
                                     .add("ignored", uint64_t(s.draft.ignored))
                                     .text());
    }
    if (!s.loosened.empty()) {
        payload.add_raw("loosened", to_json(s.loosened));
    }
    return payload.add("prompt_tokens", uint64_t(s.n_prompt))
        .add("cached_tokens", uint64_t(s.n_reused))
        .add("generated_tokens", uint64_t(s.n_generated))
        .add("queue_ms", s.admitted ? ms_between(s.request->arrived, s.admitted_at) : 0.0)
        .add("first_token_ms", s.n_generated > 0 ? ms_between(s.request->arrived, s.first_token_at) : 0.0)
        .add("generation_ms", generation_ms(s))
        .add("reasoning_tokens", uint64_t(s.answer.n_reasoning_tokens()))
        .text();
}

std::string tool_call_payload(const reply_piece & piece) {
    json_object payload;
    payload.add("index", uint64_t(piece.call));
    if (!piece.name.empty()) {
        payload.add("name", piece.name);
    }
    return payload.add("arguments", piece.text).text();
}

static void append_bytes(std::string & out, std::string_view bytes) {
    out += '[';
    for (size_t i = 0; i < bytes.size(); i++) {
        out += (i == 0 ? "" : ",") + std::to_string(static_cast<unsigned char>(bytes[i]));
    }
    out += ']';
}

static void append_number(std::string & out, float value) {
    char digits[32];
    snprintf(digits, sizeof digits, "%.7g", double(std::max(value, -9999.0f))); // JSON has no -inf
    out += digits;
}

static void append_token(std::string & out, const token_logprob & token, bool has_logprob, const vocabulary & vocab,
                         std::optional<uint32_t> shown = std::nullopt) {
    const std::string piece = vocab.special_piece(token.id);
    out += out.back() == '[' ? "{\"b\":" : ",{\"b\":";
    append_bytes(out, piece);
    if (shown && *shown != piece.size()) {
        out += ",\"shown\":" + std::to_string(*shown);
    }
    out += ",\"p\":";
    if (has_logprob) {
        append_number(out, token.logprob);
    } else {
        out += "null";
    }
    out += ",\"top\":[";
    for (size_t j = 0; j < token.top.size(); j++) {
        out += j == 0 ? "[" : ",[";
        append_bytes(out, vocab.special_piece(token.top[j].id));
        out += ',';
        append_number(out, token.top[j].logit);
        out += ']';
    }
    out += "]}";
}

std::string logprobs_payload(const std::vector<token_logprob> & tokens, const vocabulary & vocab) {
    std::string out = "{\"tokens\":[";
    for (const token_logprob & token : tokens) {
        append_token(out, token, true, vocab);
    }
    return out + "]}";
}

std::string prompt_logprobs_payload(const std::vector<token_logprob> & tokens, const uint32_t * shown, bool is_first,
                                    const vocabulary & vocab) {
    std::string out = "{\"tokens\":[";
    for (size_t i = 0; i < tokens.size(); i++) {
        append_token(out, tokens[i], i > 0 || !is_first, vocab, shown[i]);
    }
    return out + "]}";
}

std::vector<uint32_t> align(const std::vector<llama_token> & tokens, const std::string & text, const vocabulary & vocab) {
    std::vector<uint32_t> shown;
    shown.reserve(tokens.size());
    size_t at = 0;
    for (const llama_token id : tokens) {
        const std::string piece = vocab.special_piece(id);
        size_t n = piece.size();
        if (text.compare(at, n, piece) != 0) {
            n = n > 0 && piece[0] == ' ' && text.compare(at, n - 1, piece, 1, n - 1) == 0 ? n - 1 : 0;
        }
        shown.push_back(uint32_t(n));
        at += n;
    }
    return shown;
}

}  // namespace lm
