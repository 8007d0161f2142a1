#include "text.h"

#include "error.h"
#include "string_tree.h"

#include <algorithm>
#include <utility>

namespace lm {

// No real text has tokens this long on average; one that is longer than so many per token of the context is hostile or a
// mistake, and tokenizing all of it would keep others waiting for seconds.
static constexpr size_t BYTES_PER_TOKEN = 16;

static constexpr char REPLACEMENT[] = "\xEF\xBF\xBD";

static std::string token_bytes(const llama_vocab * vocab, llama_token id, bool special) {
    std::string bytes(32, '\0');
    int32_t n = llama_token_to_piece(vocab, id, bytes.data(), int32_t(bytes.size()), 0, special);
    if (n < 0) {
        bytes.resize(size_t(-n));
        n = llama_token_to_piece(vocab, id, bytes.data(), int32_t(bytes.size()), 0, special);
    }
    bytes.resize(size_t(std::max(n, 0)));
    return bytes;
}

vocabulary::vocabulary(const llama_vocab * vocab) : vocab_(vocab) {
    const int32_t n = llama_vocab_n_tokens(vocab);
    ends_.reserve(size_t(n));
    eog_.reserve(size_t(n));
    for (llama_token id = 0; id < n; id++) {
        pieces_ += token_bytes(vocab, id, false);
        longest_piece_ = std::max(longest_piece_, pieces_.size() - (id == 0 ? 0 : ends_.back()));
        ends_.push_back(uint32_t(pieces_.size()));
        eog_.push_back(llama_vocab_is_eog(vocab, id));
        if (llama_vocab_is_control(vocab, id)) {
            std::string text = token_bytes(vocab, id, true);
            if (!text.empty()) {
                control_texts_.push_back(std::move(text));
            }
        }
    }
    pieces_.shrink_to_fit();
    std::sort(control_texts_.begin(), control_texts_.end(),
              [](const std::string & a, const std::string & b) { return a.size() > b.size(); });
}

std::string_view vocabulary::piece(llama_token id) const {
    const uint32_t begin = id == 0 ? 0 : ends_[size_t(id) - 1];
    return std::string_view(pieces_).substr(begin, ends_[size_t(id)] - begin);
}

std::string vocabulary::special_piece(llama_token id) const {
    return token_bytes(vocab_, id, true);
}

bool vocabulary::begins_twice(std::string_view text, const std::vector<llama_token> & tokens) const {
    const llama_token bos = llama_vocab_bos(vocab_);
    if (tokens.size() < 2 || tokens[0] != bos || tokens[1] != bos) {
        return false;
    }
    const std::string written = special_piece(bos);
    size_t n_written = 0;
    while (!written.empty() && text.substr(n_written * written.size(), written.size()) == written) {
        n_written++;
    }
    const auto end = std::find_if(tokens.begin(), tokens.end(), [&](llama_token id) { return id != bos; });
    return n_written > 0 && size_t(end - tokens.begin()) > n_written;
}

std::vector<llama_token> vocabulary::tokenize(std::string_view text, bool add_special, bool parse_special) const {
    std::vector<llama_token> tokens(text.size() / 3 + 8);
    for (;;) {
        const int32_t n = llama_tokenize(vocab_, text.data(), int32_t(text.size()), tokens.data(),
                                         int32_t(tokens.size()), add_special, parse_special);
        if (n == INT32_MIN) {
            throw error("invalid_request", "the text is too long to tokenize");
        }
        if (n >= 0) {
            tokens.resize(size_t(n));
            if (add_special && parse_special && begins_twice(text, tokens)) {
                tokens.erase(tokens.begin());
            }
            return tokens;
        }
        tokens.resize(size_t(-n));
    }
}

void vocabulary::refuse_overlong(std::string_view text, size_t limit, size_t spare) const {
    const size_t sample = limit * BYTES_PER_TOKEN;
    if (text.size() > 2 * sample) {
        const size_t counted = tokenize(text.substr(0, sample), false, true).size();
        if (counted + spare > limit) {
            throw context_overflow(counted + (text.size() - sample) / longest_piece_, limit);
        }
    }
}

std::vector<llama_token> vocabulary::tokenize_within(std::string_view text, size_t limit, size_t spare, bool add_special,
                                                     bool parse_special) const {
    refuse_overlong(text, limit, spare);
    std::vector<llama_token> tokens = tokenize(text, add_special, parse_special);
    if (tokens.size() + spare > limit) {
        throw context_overflow(tokens.size() + spare, limit);
    }
    return tokens;
}

std::vector<llama_token> vocabulary::tokenize_ends(std::string_view text, size_t limit, bool add_special, bool parse_special) const {
    const size_t most = limit * BYTES_PER_TOKEN;
    if (text.size() <= 2 * most) {
        return tokenize(text, add_special, parse_special);
    }
    const auto inside_a_character = [&](size_t at) { return (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80; };
    size_t head = most;
    size_t tail = text.size() - most;
    while (head > 0 && inside_a_character(head)) {
        head--;
    }
    while (tail < text.size() && inside_a_character(tail)) {
        tail++;
    }
    std::vector<llama_token> tokens = tokenize(text.substr(0, head), add_special, parse_special);
    const std::vector<llama_token> end = tokenize(text.substr(tail), false, parse_special);
    tokens.insert(tokens.end(), end.begin(), end.end());
    return tokens;
}

std::string vocabulary::detokenize(const std::vector<llama_token> & tokens) const {
    std::string text(tokens.size() * 8 + 16, '\0');
    for (;;) {
        const int32_t n = llama_detokenize(vocab_, tokens.data(), int32_t(tokens.size()), text.data(),
                                           int32_t(text.size()), false, true);
        if (n >= 0) {
            text.resize(size_t(n));
            return text;
        }
        text.resize(size_t(-n));
    }
}

const token_tree & vocabulary::tree() const {
    std::call_once(tree_once_, [this] { tree_ = std::make_unique<const token_tree>(*this); });
    return *tree_;
}

vocabulary::~vocabulary() = default;

const string_tree & vocabulary::strings() const {
    std::call_once(strings_once_, [this] { strings_ = std::make_unique<const string_tree>(*this); });
    return *strings_;
}

// ---- the tree of tokens ---------------------------------------------------------------------------------------------

token_tree::token_tree(const vocabulary & vocab) {
    ends_.reserve(size_t(vocab.size()));
    for (llama_token id = 0; id < vocab.size(); id++) {
        const std::string bytes = vocab.special_piece(id);
        if (vocab.is_eog(id)) {
            end_ids_.push_back(id);
        } else if (!bytes.empty() && bytes.size() < UINT16_MAX && bytes.find('\0') == std::string::npos) {
            ids_.push_back(id);
            bytes_ += bytes;
        }
        ends_.push_back(uint32_t(bytes_.size()));
    }
    std::sort(ids_.begin(), ids_.end(), [this](llama_token a, llama_token b) { return bytes(a) < bytes(b); });
    grow();
    std::copy_if(ids_.begin(), ids_.end(), std::back_inserter(control_ids_), [&](llama_token id) { return vocab.piece(id).empty(); });
}

void token_tree::grow() {
    std::vector<uint32_t> path; // the nodes that are not closed yet
    std::string_view before;
    for (uint32_t i = 0; i < ids_.size(); i++) {
        const std::string_view now = bytes(ids_[i]);
        const size_t shared = size_t(std::mismatch(now.begin(), now.end(), before.begin(), before.end()).first - now.begin());
        while (path.size() > shared) {
            nodes_[path.back()].next = uint32_t(nodes_.size());
            path.pop_back();
        }
        while (path.size() < now.size()) {
            path.push_back(uint32_t(nodes_.size()));
            nodes_.push_back({0, i, i, uint16_t(path.size()), uint8_t(now[path.size() - 1])});
        }
        nodes_[path.back()].ids_end = i + 1;
        depth_ = std::max(depth_, now.size());
        before = now;
    }
    for (const uint32_t open : path) {
        nodes_[open].next = uint32_t(nodes_.size());
    }
}

std::string_view token_tree::bytes(llama_token id) const {
    const uint32_t begin = id == 0 ? 0 : ends_[size_t(id) - 1];
    return std::string_view(bytes_).substr(begin, ends_[size_t(id)] - begin);
}

// ---- UTF-8 ----------------------------------------------------------------------------------------------------------

// The length of the sequence that `lead` begins, 0 if it begins none.
static size_t utf8_length(unsigned char lead) {
    if (lead < 0x80) {
        return 1;
    }
    if (lead >= 0xC2 && lead <= 0xDF) {
        return 2;
    }
    if (lead >= 0xE0 && lead <= 0xEF) {
        return 3;
    }
    return lead >= 0xF0 && lead <= 0xF4 ? 4 : 0;
}

// Whether `byte` may follow at `index` in a sequence that begins with `lead` (Unicode 15, table 3-7).
static bool utf8_continues(unsigned char lead, size_t index, unsigned char byte) {
    if (index == 1) {
        switch (lead) {
            case 0xE0: return byte >= 0xA0 && byte <= 0xBF;
            case 0xED: return byte >= 0x80 && byte <= 0x9F;
            case 0xF0: return byte >= 0x90 && byte <= 0xBF;
            case 0xF4: return byte >= 0x80 && byte <= 0x8F;
            default: break;
        }
    }
    return byte >= 0x80 && byte <= 0xBF;
}

void decode_utf8(std::string & bytes, std::string & out) {
    size_t at = 0;
    while (at < bytes.size()) {
        const unsigned char lead = static_cast<unsigned char>(bytes[at]);
        const size_t length = utf8_length(lead);
        size_t have = 1;
        while (have < length && at + have < bytes.size() &&
               utf8_continues(lead, have, static_cast<unsigned char>(bytes[at + have]))) {
            have++;
        }
        if (have == length) {
            out.append(bytes, at, length);
        } else if (length > 0 && at + have == bytes.size()) {
            break; // the rest may still come
        } else {
            out += REPLACEMENT;
        }
        at += have;
    }
    bytes.erase(0, at);
}

bool is_utf8(std::string_view bytes) {
    std::string rest(bytes);
    std::string whole;
    decode_utf8(rest, whole);
    return rest.empty() && whole == bytes;
}

bool answer_text::push(std::string_view bytes) {
    const size_t before = held_.size();
    tail_ += bytes;
    decode_utf8(tail_, held_);
    size_t cut = std::string::npos;
    for (const std::string & stop : stops_) {
        const size_t from = before >= stop.size() ? before - stop.size() + 1 : 0;
        const size_t found = held_.find(stop, from);
        if (found < cut) {
            cut = found;
            stop_ = &stop;
        }
    }
    if (stop_ != nullptr) {
        held_.resize(cut);
        tail_.clear();
        finished_ = true;
    }
    return stop_ != nullptr;
}

size_t answer_text::held_for_stop() const {
    size_t longest = 0;
    for (const std::string & stop : stops_) {
        for (size_t n = std::min(stop.size() - 1, held_.size()); n > longest; n--) {
            if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) {
                longest = n;
                break;
            }
        }
    }
    return longest;
}

std::string answer_text::take() {
    const size_t keep = finished_ ? 0 : held_for_stop();
    std::string text = held_.substr(0, held_.size() - keep);
    held_.erase(0, text.size());
    taken_ += text.size();
    return text;
}

std::string answer_text::take_all() {
    taken_ += held_.size();
    return std::exchange(held_, {});
}

void answer_text::finish() {
    if (!tail_.empty() && !finished_) {
        held_ += REPLACEMENT;
        tail_.clear();
    }
    finished_ = true;
}

}  // namespace lm
