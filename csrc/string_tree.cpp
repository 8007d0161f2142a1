#include "string_tree.h"

#include "json_lexer.h"

#include <algorithm>
#include <map>

namespace lm {

namespace {

struct reading_of_token {
    std::u32string characters;
    string_tree::ending how;
    uint32_t what; // of the partials, or of the tails
    llama_token id;
};

}  // namespace

const std::vector<string_tree::group> & string_tree::groups() {
    static const std::vector<group> ALL = [] {
        std::vector<group> all = {{0, {'a', 'z'}}, {1, {'A', 'Z'}}, {2, {'0', '9'}}, {3, {0x7F, 0x24F}}, {4, {0x250, 0x1FFF}}, {5, {0x2000, 0x2FFF}},
                                  {6, {0x3000, 0xFFFF}}, {7, {0x10000, LAST_CODE_POINT}}, {8, {0, 0x1F}}};
        static const char * const SIGNS[] = {" ", "-", "_", ".", "/", ":", ",", "@", "\"", "\\", "'", "*", "$", "#", "%", "+", "=", "&|~^", "()[]{}<>", "?!;`"};
        uint32_t index = 9;
        for (const char * signs : SIGNS) {
            for (; *signs != '\0'; signs++) {
                all.push_back({index, {uint32_t(*signs), uint32_t(*signs)}});
            }
            index++;
        }
        return all;
    }();
    return ALL;
}

static uint32_t group_bit(uint32_t code_point) {
    for (const string_tree::group & g : string_tree::groups()) {
        if (g.range.first <= code_point && code_point <= g.range.last) {
            return 1u << g.index;
        }
    }
    return 0;
}

string_tree::string_tree(const vocabulary & vocab) : open_((size_t(vocab.size()) + 63) / 64) {
    std::vector<reading_of_token> all;
    std::map<std::vector<std::pair<uint32_t, uint32_t>>, uint32_t> known_partials;
    std::map<std::string, uint32_t> known_tails;
    for (const llama_token id : vocab.tree().ids()) {
        if (vocab.piece(id).empty()) {
            continue;
        }
        const std::string_view bytes = vocab.tree().bytes(id);
        json_lexer at;
        at.in_string = true;
        json_reading read;
        reading_of_token token = {{}, ending::whole, 0, id};
        size_t i = 0;
        for (bool fits = true; fits && i < bytes.size(); i++) {
            json_lexer next;
            fits = read_json(at, uint8_t(bytes[i]), next, read);
            if (!fits || read.what == json_reading::event::quote) {
                break;
            }
            if (read.what == json_reading::event::character) {
                token.characters += char32_t(read.character);
            }
            at = next;
        }
        if (i < bytes.size() && read.what != json_reading::event::quote) {
            continue; // none of a string's
        }
        if (i < bytes.size()) {
            token.how = ending::tail;
            const auto [found, is_new] = known_tails.try_emplace(std::string(bytes.substr(i)), uint32_t(tail_ids_.size()));
            token.what = found->second;
            if (is_new) {
                tail_ids_.emplace_back();
            }
            tail_ids_[token.what].push_back(id);
        } else if (at.at != json_lexer::part::none) {
            token.how = ending::part;
            std::vector<std::pair<uint32_t, uint32_t>> key;
            for (size_t k = 0; k < read.n_ranges; k++) {
                key.emplace_back(read.ranges[k].first, read.ranges[k].last);
            }
            const auto [found, is_new] = known_partials.try_emplace(key, uint32_t(partials_.size()));
            token.what = found->second;
            if (is_new) {
                partials_.emplace_back(read.ranges, read.ranges + read.n_ranges);
            }
        }
        by_length_.emplace_back(uint32_t(token.characters.size()), id);
        all.push_back(std::move(token));
    }
    grow_tails(known_tails);
    std::sort(by_length_.rbegin(), by_length_.rend());
    std::sort(all.begin(), all.end(), [](const reading_of_token & a, const reading_of_token & b) {
        const int order = a.characters.compare(b.characters);
        return order != 0 ? order < 0 : a.how < b.how;
    });

    nodes_.push_back({0, 0, 0, 0, 0, 0, 0});
    std::vector<uint32_t> path = {0}; // the nodes that are not closed yet
    const std::u32string * before = nullptr;
    const auto open = [&](uint32_t code_point) {
        const uint32_t n = uint32_t(ids_.size());
        path.push_back(uint32_t(nodes_.size()));
        nodes_.push_back({0, code_point, n, n, n, 0, uint16_t(path.size() - 1)});
    };
    for (const reading_of_token & token : all) {
        const std::u32string & now = token.characters;
        size_t shared = 0;
        while (before != nullptr && shared < std::min(now.size(), before->size()) && now[shared] == (*before)[shared]) {
            shared++;
        }
        while (path.size() > shared + 1) {
            nodes_[path.back()].next = uint32_t(nodes_.size());
            path.pop_back();
        }
        while (path.size() < now.size() + 1) {
            open(uint32_t(now[path.size() - 1]));
        }
        node & end = nodes_[path.back()];
        ids_.push_back(token.id);
        ends_.push_back(token.what);
        endings_.push_back(token.how);
        if (token.how != ending::tail) {
            open_[size_t(token.id) / 64] |= uint64_t(1) << (token.id % 64);
        }
        if (token.how != ending::whole) {
            (token.how == ending::tail ? closing_ : cut_).emplace_back(uint32_t(now.size()), token.id);
        }
        end.parts += token.how < ending::part ? 1 : 0;
        end.tails += token.how < ending::tail ? 1 : 0;
        before = &now;
    }
    for (const uint32_t i : path) {
        nodes_[i].next = uint32_t(nodes_.size());
    }
    const uint32_t n = uint32_t(ids_.size());
    nodes_.push_back({uint32_t(nodes_.size()) + 1, 0, n, n, n, 0, 0});
    note_groups();
}

uint32_t string_tree::first_after(uint32_t code_point) const {
    const auto found = std::upper_bound(firsts_.begin(), firsts_.end(), code_point, [](uint32_t c, const first & f) { return c < f.code_point; });
    return found == firsts_.end() ? uint32_t(nodes_.size()) - 1 : found->node;
}

void string_tree::note_groups() {
    const uint32_t end = uint32_t(nodes_.size()) - 1;
    for (uint32_t i = 1; i < end; i = nodes_[i].next) {
        firsts_.push_back({nodes_[i].code_point, i});
    }
    std::vector<uint32_t> path(depth() + 1);
    for (uint32_t i = 1; i < end; i++) {
        const uint32_t bit = group_bit(nodes_[i].code_point);
        for (uint32_t above = nodes_[i].depth; above-- > 0;) {
            nodes_[path[above]].groups |= bit;
        }
        path[nodes_[i].depth] = i;
    }
}

void string_tree::grow_tails(const std::map<std::string, uint32_t> & tails) {
    std::vector<uint32_t> path; // the nodes that are not closed yet
    std::string before;
    for (const auto & [text, index] : tails) {
        const size_t shared = size_t(std::mismatch(text.begin(), text.end(), before.begin(), before.end()).first - text.begin());
        while (path.size() > shared) {
            tail_nodes_[path.back()].next = uint32_t(tail_nodes_.size());
            path.pop_back();
        }
        while (path.size() < text.size()) {
            path.push_back(uint32_t(tail_nodes_.size()));
            tail_nodes_.push_back({0, -1, uint16_t(path.size()), uint8_t(text[path.size() - 1])});
        }
        tail_nodes_[path.back()].tail = int32_t(index);
        before = text;
    }
    for (const uint32_t i : path) {
        tail_nodes_[i].next = uint32_t(tail_nodes_.size());
    }
}

}  // namespace lm
