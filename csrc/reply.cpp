#include "reply.h"

#include "answer_format.h"

#include "json.h"

#include <algorithm>
#include <utility>

namespace lm {

// A parse reads the whole answer again, so its cost grows with the answer; at most this often, and for at most a
// sixteenth of the time.
static constexpr std::chrono::milliseconds PARSE_EVERY{25};
static constexpr int PARSE_SHARE = 16;

// The parser recurses with the nesting of the text that it reads, which is the model's. More than this, or a longer text
// than this, is not parsed any more. (A level takes less than 2 KB of stack: see DECODER_STACK.)
static constexpr size_t MAX_NESTING = 4096;
static constexpr size_t MAX_PARSED_BYTES = 4u << 20;

// A text that does not match its format now may do so with a few bytes more; with these it will not any more.
static constexpr size_t LOST_BYTES = 128;

static constexpr char BLANKS[] = " \t\r\n";

// Where `stretch` and parsed_answer::stretch meet.
template <typename To, typename From> static To same(From from) {
    return static_cast<To>(static_cast<int>(from));
}

reply::reply(std::shared_ptr<const answer_format> format, std::vector<std::string> stops, bool whole)
    : format_(std::move(format)), whole_(whole), content_(std::move(stops)) {}

reply::~reply() = default;
reply::reply(reply &&) noexcept = default;
reply & reply::operator=(reply &&) noexcept = default;

size_t reply::known() const {
    return format_ ? raw_.size() : content_.known();
}

size_t reply::taken() const {
    if (!format_) {
        return content_.taken();
    }
    const size_t held = content_pushed_ - content_.taken();
    return covered_ - std::min(covered_, held);
}

size_t reply::n_reasoning_tokens() const {
    size_t n = 0;
    for (const auto & [begin, end] : reasoning_spans_) {
        const auto first = std::lower_bound(token_begins_.begin(), token_begins_.end(), begin);
        const auto last = std::lower_bound(first, token_begins_.end(), end);
        n += size_t(last - first);
    }
    return n;
}

bool reply::is_content(size_t begin, size_t end) const {
    if (!format_) {
        return true;
    }
    const size_t past = std::max(end, begin + 1); // the first tokens of a character have no text yet
    return std::any_of(content_spans_.begin(), content_spans_.end(),
                       [&](const auto & span) { return span.first < past && begin < span.second; });
}

// ---- growing --------------------------------------------------------------------------------------------------------

bool reply::push(const vocabulary & vocab, llama_token id, clock::time_point now) {
    if (!format_) {
        const std::string_view piece = vocab.piece(id);
        return content_.push(piece);
    }
    token_begins_.push_back(uint32_t(raw_.size()));
    const std::string_view piece = vocab.piece(id);
    const bool tag = piece.empty() && std::binary_search(format_->visible.begin(), format_->visible.end(), id);
    if (append(tag ? std::string_view(vocab.special_piece(id)) : piece)) {
        over_ = true;
        return true;
    }
    stream();
    if (pending_tag_ && parse_is_due(now) && read(now)) {
        stream();
    }
    over_ = format_->one_call && !calls_.empty() && !call_open_;
    return over_ || stop() != nullptr;
}

// True if one of the format's own stops is there; the text ends ahead of it then.
bool reply::append(std::string_view bytes) {
    const size_t before = raw_.size();
    bytes_ += bytes;
    decode_utf8(bytes_, raw_);
    for (size_t i = before; i < raw_.size(); i++) {
        const char c = raw_[i];
        if (c == '[' || c == '{') {
            nesting_++;
        } else if ((c == ']' || c == '}') && nesting_ > 0) {
            nesting_--;
        }
    }
    for (const std::string & stop : format_->stops) {
        const size_t at = is_ruled_ ? std::string::npos : raw_.find(stop, before >= stop.size() ? before - stop.size() + 1 : 0);
        if (at != std::string::npos) {
            raw_.resize(std::max(at, covered_));
            bytes_.clear();
            return true;
        }
    }
    for (const std::string & stop : content_.stops()) {
        parse_now_ |= raw_.find(stop, before >= stop.size() ? before - stop.size() + 1 : 0) != std::string::npos;
    }
    if (!given_up_ && (nesting_ > MAX_NESTING || raw_.size() > MAX_PARSED_BYTES)) {
        give_up(open_);
    }
    return false;
}

// How much of what is not covered belongs to the open stretch for sure: all up to something that is, or may become, a tag.
size_t reply::plain_length(bool & at_tag) const {
    at_tag = false;
    for (size_t at = covered_; at < raw_.size(); at++) {
        const size_t left = raw_.size() - at;
        for (const std::string & tag : format_->tags) {
            if (!tag.empty() && tag[0] == raw_[at] && raw_.compare(at, std::min(left, tag.size()), tag, 0, left) == 0) {
                at_tag = left >= tag.size();
                return at - covered_;
            }
        }
    }
    return raw_.size() - covered_;
}

// Passes on what needs no parser, and finds out whether anything needs it.
void reply::stream() {
    if (given_up_) {
        show(open_, raw_.size());
        return;
    }
    const bool plain = open_ == stretch::reasoning || (open_ == stretch::content && !format_->content_is_json);
    if (!plain) {
        pending_tag_ = covered_ < raw_.size();
        return;
    }
    const size_t n = plain_length(pending_tag_);
    show(open_, covered_ + n);
}

void reply::show(stretch where, size_t end) {
    const std::string_view text = std::string_view(raw_).substr(covered_, end - covered_);
    if (where == stretch::reasoning) {
        add_reasoning(text);
    } else {
        add_content(text);
    }
    auto & spans = where == stretch::reasoning ? reasoning_spans_ : content_spans_;
    if (!spans.empty() && spans.back().second == covered_) {
        spans.back().second = end;
    } else if (end > covered_) {
        spans.push_back({covered_, end});
    }
    covered_ = end;
}

void reply::add_reasoning(std::string_view text) {
    if (text.empty()) {
        return;
    }
    reasoning_ += text;
    if (pieces_.empty() || pieces_.back().where != reply_piece::channel::reasoning) {
        pieces_.push_back({reply_piece::channel::reasoning, {}});
    }
    pieces_.back().text += text;
}

void reply::add_content(std::string_view text) {
    if (text.empty() || stop() != nullptr) {
        return;
    }
    content_seen_ += text;
    if (content_pushed_ == 0 && text.find_first_not_of(BLANKS) == std::string_view::npos) {
        blank_ += text; // between tags it means nothing
        return;
    }
    push_content(std::exchange(blank_, {}) + std::string(text));
}

void reply::push_content(const std::string & text) {
    content_pushed_ += text.size();
    content_.push(text);
    say(content_.take());
}

void reply::say(std::string content) {
    if (content.empty()) {
        return;
    }
    if (pieces_.empty() || pieces_.back().where != reply_piece::channel::content) {
        pieces_.push_back({reply_piece::channel::content, {}});
    }
    pieces_.back().text += content;
}

// From here on the text is not parsed; what is not shown of it is content, or more of the reasoning it stands in.
void reply::give_up(stretch where) {
    given_up_ = true;
    pending_tag_ = false;
    open_ = where == stretch::reasoning ? where : stretch::content;
}

// ---- parsing --------------------------------------------------------------------------------------------------------

bool reply::parse_is_due(clock::time_point now) const {
    if (parse_now_ || (whole_ && !format_->one_call)) { // nobody sees the pieces of a whole answer before its end
        return parse_now_;
    }
    return now - parsed_at_ >= std::max<clock::duration>(PARSE_EVERY, PARSE_SHARE * parse_took_);
}

bool reply::read(clock::time_point now) {
    const clock::time_point began = clock::now();
    parsed_answer parsed;
    bool matches = false;
    try {
        matches = parse_answer(*format_, raw_, false, parsed);
    } catch (const std::exception &) { // a value that the tree's reader cannot take: as if it did not match
    }
    parse_took_ = clock::now() - began;
    parsed_at_ = now;
    parse_now_ = false;
    if (!matches || !agrees(parsed)) {
        lost_at_ = std::min(lost_at_, raw_.size());
        if (raw_.size() < lost_at_ + LOST_BYTES || call_open_) {
            return false;
        }
        leave_format();
        return given_up_;
    }
    lost_at_ = std::string::npos;
    accept(parsed, moment::growing);
    return true;
}

static bool begins_with(const std::string & text, const std::string & start) {
    return text.compare(0, start.size(), start) == 0;
}

// Whether it only adds to what has been shown.
bool reply::agrees(const parsed_answer & parsed) const {
    if (!begins_with(parsed.reasoning, reasoning_) || !begins_with(parsed.content, content_seen_) ||
        parsed.calls.size() < calls_.size()) {
        return false;
    }
    for (size_t i = 0; i < calls_.size(); i++) {
        if (parsed.calls[i].name != calls_[i].name || !begins_with(parsed.calls[i].arguments, calls_[i].arguments)) {
            return false;
        }
    }
    return true;
}

void reply::accept(const parsed_answer & parsed, moment when) {
    add_reasoning(std::string_view(parsed.reasoning).substr(reasoning_.size()));
    add_content(std::string_view(parsed.content).substr(content_seen_.size()));
    reasoning_spans_ = parsed.reasoning_spans;
    content_spans_ = parsed.content_spans;
    covered_ = std::max(covered_, std::min(parsed.text_end, raw_.size()));
    open_ = parsed.calls_follow || parsed.text_end != raw_.size() ? stretch::none : same<stretch>(parsed.last);
    pending_tag_ = covered_ < raw_.size();
    if (stop() == nullptr) {
        accept_calls(parsed, when);
    }
}

// Closing marks at the end may be the parser's own, put there to make the part well-formed.
static size_t without_closers(std::string_view arguments) {
    const size_t last = arguments.find_last_not_of("\"}] \t\r\n");
    return last == std::string_view::npos ? 0 : last + 1;
}

static size_t common_prefix(std::string_view a, std::string_view b) {
    return size_t(std::mismatch(a.begin(), a.begin() + long(std::min(a.size(), b.size())), b.begin()).first - a.begin());
}

// Whole characters only.
static size_t on_a_boundary(std::string_view text, size_t n) {
    while (n > 0 && n < text.size() && (static_cast<unsigned char>(text[n]) & 0xC0) == 0x80) {
        n--;
    }
    return n;
}

bool reply::is_call(const std::string & name, const std::string & arguments) const {
    const bool known = std::find(format_->tools.begin(), format_->tools.end(), name) != format_->tools.end();
    const common_json parsed = known ? common_json::parse_no_throw(arguments) : common_json();
    return known && !parsed.is_discarded() && parsed.is_object();
}

// Shows the calls' names and of their arguments what is sure to stay. Without a grammar that promises well-formed arguments
// a call is shown when it is complete.
void reply::accept_calls(const parsed_answer & parsed, moment when) {
    const bool last = when != moment::growing;
    for (size_t i = calls_.empty() ? 0 : calls_.size() - 1; i < parsed.calls.size(); i++) {
        if (i > 0 && format_->one_call) {
            return;
        }
        const parsed_answer::tool_call & call = parsed.calls[i];
        const bool is_new = i == calls_.size();
        const bool valid = (is_new || call.complete || last) && is_call(call.name, call.arguments);
        const bool complete = call.complete || (last && valid);
        if (complete && is_new && !valid) {
            return give_up(stretch::content);
        }
        const bool begun = call.arguments.size() > 1 && format_->compiled &&
                           std::find(format_->tools.begin(), format_->tools.end(), call.name) != format_->tools.end();
        if (is_new && !complete && (!begun || when == moment::broken)) {
            return;
        }
        if (is_new) {
            say(content_.take_all()); // a stop string does not reach across a call
            blank_.clear();
            calls_.push_back({call.name, {}});
            arguments_before_.clear();
        }
        const std::string_view arguments = call.arguments;
        std::string & shown = calls_[i].arguments;
        size_t sure = arguments.size();
        if (!complete) {
            sure = last ? arguments.size() : on_a_boundary(arguments, common_prefix(arguments, arguments_before_));
            sure = without_closers(arguments.substr(0, sure));
        }
        arguments_before_ = call.arguments;
        const std::string_view more = arguments.substr(0, std::max(sure, shown.size())).substr(shown.size());
        if (is_new || !more.empty()) {
            pieces_.push_back({reply_piece::channel::tool_call, std::string(more), i, is_new ? call.name : ""});
            shown += more;
        }
        call_open_ = !complete;
        if (call_open_) {
            return;
        }
        covered_ = std::max(covered_, std::min(call.end, raw_.size()));
    }
}

// ---- the end --------------------------------------------------------------------------------------------------------

static bool try_parse(const answer_format & format, const std::string & text, bool whole, parsed_answer & into) {
    try {
        return parse_answer(format, text, whole, into);
    } catch (const std::exception &) {
        return false;
    }
}

void reply::finish(const vocabulary & vocab, bool by_itself, llama_token last) {
    if (format_ && stop() == nullptr) {
        if (last >= 0 && std::binary_search(format_->visible.begin(), format_->visible.end(), last)) {
            append(vocab.special_piece(last));
        }
        if (!bytes_.empty()) {
            parsed_answer parsed;
            const size_t n_whole = raw_.size();
            raw_ += "\xEF\xBF\xBD";
            bytes_.clear();
            if (!given_up_ && !try_parse(*format_, raw_, false, parsed)) { // cut within a tag
                raw_.resize(n_whole);
            }
        }
        settle(by_itself || over_);
    }
    if (!blank_.empty() && calls_.empty() && stop() == nullptr) {
        push_content(std::exchange(blank_, {}));
    }
    content_.finish();
    say(content_.take());
    if (stop() == nullptr) {
        covered_ = raw_.size();
    }
    if (whole_) {
        join_pieces();
    }
}

// The answer does not match its format: the longest part of it that does is read, the rest is content.
void reply::read_longest() {
    size_t low = covered_;
    size_t high = raw_.size();
    parsed_answer parsed;
    while (low < high) {
        const size_t middle = low + (high - low + 1) / 2;
        if (try_parse(*format_, raw_.substr(0, middle), false, parsed)) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    if (try_parse(*format_, raw_.substr(0, low), false, parsed) && agrees(parsed)) {
        accept(parsed, moment::broken);
    }
}

void reply::leave_format() {
    read_longest();
    if (!call_open_) { // else its beginning has been shown as a call
        give_up(stretch::content);
    }
}

static std::string_view without_blanks(std::string_view text) {
    return text.substr(0, text.find_last_not_of(BLANKS) + 1); // npos + 1 is 0
}

static bool is_only_a_tag(const answer_format & format, std::string_view text) {
    return without_blanks(text).empty() || std::any_of(format.tags.begin(), format.tags.end(), [&](const std::string & tag) {
        return without_blanks(tag) == without_blanks(text);
    });
}

void reply::settle(bool by_itself) {
    parsed_answer parsed;
    if (given_up_) {
        return show(open_, raw_.size());
    }
    if (!try_parse(*format_, raw_, false, parsed) || !agrees(parsed)) {
        leave_format();
        return given_up_ ? show(open_, raw_.size()) : void();
    }
    accept(parsed, moment::ended);
    if (given_up_) {
        return show(open_, raw_.size());
    }
    parsed_answer strict;
    if (covered_ == raw_.size() || stop() != nullptr || try_parse(*format_, raw_, true, strict)) {
        return; // what is not covered are tags
    }
    const std::string rest = raw_.substr(covered_);
    if (is_only_a_tag(*format_, rest) || (is_ruled_ && format_->must_call)) { // what a call begins with
        return;
    }
    const bool only_began_like_a_tag =
        !parsed.calls_follow && std::any_of(format_->tags.begin(), format_->tags.end(), [&](const std::string & tag) {
            return tag.size() > rest.size() && begins_with(tag, rest);
        });
    if (only_began_like_a_tag) {
        show(same<stretch>(parsed.last), raw_.size());
    } else if (by_itself && calls_.empty()) {
        give_up(stretch::content); // a form that was begun and left: its text is all there is of it
        show(open_, raw_.size());
    }
}

// One piece per channel and call.
void reply::join_pieces() {
    std::vector<reply_piece> joined;
    for (reply_piece & piece : pieces_) {
        const auto same_kind = std::find_if(joined.begin(), joined.end(), [&](const reply_piece & other) {
            return other.where == piece.where && other.call == piece.call;
        });
        if (same_kind == joined.end()) {
            joined.push_back(std::move(piece));
        } else {
            same_kind->text += piece.text;
        }
    }
    pieces_ = std::move(joined);
}

std::vector<reply_piece> reply::take() {
    if (!format_) {
        std::string text = content_.take();
        std::vector<reply_piece> pieces;
        if (!text.empty()) {
            pieces.push_back({reply_piece::channel::content, std::move(text)});
        }
        if (!pieces_.empty()) {
            pieces.insert(pieces.end(), std::make_move_iterator(pieces_.begin()), std::make_move_iterator(pieces_.end()));
            pieces_.clear();
        }
        return pieces;
    }
    return std::exchange(pieces_, {});
}

}  // namespace lm
