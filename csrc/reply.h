// One answer as it grows: its tokens in, the pieces of its channels (reasoning, content, tool calls) out. Every byte of a
// channel comes once and stays valid, whatever follows; text that turns out to be no call after all is content.
// What no tag can end is passed on at once; the parser runs only where tags are, and not at every token.
#pragma once

#include "text.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lm {

struct answer_format;
struct parsed_answer;

struct reply_piece {
    enum class channel { reasoning, content, tool_call };

    channel where;
    std::string text;      // of a tool call: arguments
    size_t call = 0;       // its index
    std::string name = {}; // its name, in the first piece of a call
};

class reply {
  public:
    using clock = std::chrono::steady_clock;

    // `format` null: all text is content. `whole`: nobody takes pieces before the end. `stops` end the content.
    explicit reply(std::shared_ptr<const answer_format> format = nullptr, std::vector<std::string> stops = {},
                   bool whole = false);
    ~reply();
    reply(reply &&) noexcept;
    reply & operator=(reply &&) noexcept;

    // From here on these end the content.
    void set_stops(std::vector<std::string> stops) { content_.set_stops(std::move(stops)); }

    // From here on a grammar rules the text and says where it ends. What else would end an answer by itself may be part of a value.
    void set_ruled() { is_ruled_ = true; }

    // Appends a token; true if the answer is over: with a stop string if `stop()` says so, else as if by itself.
    bool push(const vocabulary & vocab, llama_token id, clock::time_point now);
    // No more tokens come. `by_itself`: the model ended the answer; `last` is the token it did that with.
    void finish(const vocabulary & vocab, bool by_itself, llama_token last = -1);
    // What can be shown now.
    std::vector<reply_piece> take();

    const std::string * stop() const { return content_.stop(); } // borrowed; null if none
    // Bytes of the answer's text: how many there are, and how many of them are shown, dropped, or part of what is shown.
    size_t known() const;
    size_t taken() const;
    size_t n_reasoning_tokens() const;
    // Whether the token whose text begins and ends there says something of the content, and not only tags, reasoning or calls.
    bool is_content(size_t begin, size_t end) const;
    bool has_tool_calls() const { return !calls_.empty(); }

  private:
    enum class stretch { none, reasoning, content };
    enum class moment { growing, ended, broken }; // broken: what follows does not match the format
    struct call_shown {
        std::string name;
        std::string arguments; // those shown
    };

    bool append(std::string_view bytes);
    void stream();
    size_t plain_length(bool & at_tag) const;
    void show(stretch where, size_t end);
    bool parse_is_due(clock::time_point now) const;
    bool read(clock::time_point now);
    bool agrees(const parsed_answer & parsed) const;
    void accept(const parsed_answer & parsed, moment when);
    void accept_calls(const parsed_answer & parsed, moment when);
    bool is_call(const std::string & name, const std::string & arguments) const;
    void read_longest();
    void leave_format();
    void settle(bool by_itself);
    void give_up(stretch where);
    void add_reasoning(std::string_view text);
    void add_content(std::string_view text);
    void push_content(const std::string & text);
    void say(std::string content);
    void join_pieces();

    std::shared_ptr<const answer_format> format_;
    bool whole_ = false;
    bool is_ruled_ = false;
    answer_text content_;         // where stop strings are looked for
    size_t content_pushed_ = 0;   // bytes, those held back and cut off among them
    std::vector<reply_piece> pieces_; // of the other channels, to be taken

    // with a format only
    std::string raw_;   // the whole text, tags and all
    std::string bytes_; // of a character that is not whole yet
    size_t covered_ = 0; // up to here the text is accounted for: shown, or tags
    stretch open_ = stretch::none; // what `raw_` was in at `covered_`, if all up to there was known
    bool pending_tag_ = false;     // what is not covered needs the parser
    bool given_up_ = false;        // the rest is text of `open_`, without parsing
    bool over_ = false;
    bool parse_now_ = false;       // a stop string may be in what is not covered
    size_t nesting_ = 0;           // brackets that are open, at least
    std::string reasoning_;        // shown
    std::string content_seen_;     // all that the parser or the tags say is content
    std::string blank_;            // white space it begins with, not pushed to content_ before anything else is
    bool call_open_ = false;       // the last call is not complete
    size_t lost_at_ = std::string::npos; // how long the text was when it stopped to match its format
    std::vector<call_shown> calls_;
    std::string arguments_before_; // the last call's, when the parser ran the last time
    std::vector<uint32_t> token_begins_; // where in `raw_` each token begins
    std::vector<std::pair<size_t, size_t>> reasoning_spans_;
    std::vector<std::pair<size_t, size_t>> content_spans_;
    clock::time_point parsed_at_{};
    clock::duration parse_took_{};
};

}  // namespace lm
