#include "schema_walk.h"

#include "json_value.h"

#include <algorithm>
#include <cstring>

namespace lm {

static constexpr uint32_t INFINITE = automaton::INFINITE;
static constexpr size_t MAX_THREADS = 128;         // more ways to read a text are left out: less is accepted
static constexpr size_t MAX_SEARCH = 4000;         // steps to find how an item may still differ from the others
static constexpr uint32_t INDENTATION = 8;         // blanks for each level, and a few more
static constexpr uint32_t MAX_INDENTATION = 200;
static const char * const WORDS[] = {"null", "true", "false"};

schema_walk::schema_walk(const schema_part & part) : schema_(part.schema), root_(part.value), kinds_(part.kinds) {
    frames_.push_back({});
    words_.push_back({});
    spans_.push_back({});
    records_.push_back({});
}

schema_walk::place schema_walk::begin() {
    place p;
    if (!schema_->raw) {
        p.threads.emplace_back();
        p.threads.back().node = root_;
        return p;
    }
    p.characters.in_string = p.characters.raw = true;
    for (const uint32_t id : schema_->values[root_].strings) {
        p.threads.emplace_back();
        p.threads.back().at = mode::string;
        p.threads.back().node = id;
        p.threads.back().place = uint32_t(schema_->strings[id].words->start());
    }
    return p;
}

void schema_walk::forget(const mark & m) {
    frames_.resize(m.frames);
    words_.resize(m.words);
    spans_.resize(m.spans);
    records_.resize(m.records);
    candidates_.resize(m.candidates);
}

void schema_walk::compact(place & at) {
    const std::vector<frame> frames = std::move(frames_);
    const std::vector<used_name> words = std::move(words_);
    const std::vector<span> spans = std::move(spans_);
    const std::vector<record> records = std::move(records_);
    const std::vector<span> candidates = std::move(candidates_);
    frames_ = {{}};
    words_ = {{}};
    spans_ = {{}};
    records_ = {{}};
    candidates_.clear();
    std::vector<uint32_t> moved_frames(frames.size());
    std::vector<uint32_t> moved_words(words.size());
    std::vector<uint32_t> moved_spans(spans.size());
    std::vector<uint32_t> moved_records(records.size());
    const auto keep_chain = [](const auto & old, auto & kept, std::vector<uint32_t> & moved, uint32_t id, auto before) {
        std::vector<uint32_t> chain;
        for (; id != 0 && moved[id] == 0; id = before(old[id])) {
            chain.push_back(id);
        }
        for (size_t i = chain.size(); i-- > 0;) {
            moved[chain[i]] = uint32_t(kept.size());
            kept.push_back(old[chain[i]]);
        }
    };
    const auto keep_frame = [&](uint32_t id) {
        const size_t first = frames_.size();
        keep_chain(frames, frames_, moved_frames, id, [](const frame & f) { return f.parent; });
        for (size_t i = first; i < frames_.size(); i++) {
            frame & f = frames_[i];
            f.parent = moved_frames[f.parent];
            if (f.is_array) {
                const size_t first_span = spans_.size();
                keep_chain(spans, spans_, moved_spans, f.list, [](const span & s) { return s.before; });
                for (size_t k = first_span; k < spans_.size(); k++) {
                    spans_[k].before = moved_spans[spans_[k].before];
                }
                f.list = moved_spans[f.list];
            } else {
                const size_t first_word = words_.size();
                keep_chain(words, words_, moved_words, f.list, [](const used_name & w) { return w.before; });
                for (size_t k = first_word; k < words_.size(); k++) {
                    words_[k].before = moved_words[words_[k].before];
                }
                f.list = moved_words[f.list];
            }
        }
        return moved_frames[id];
    };
    for (thread & t : at.threads) {
        t.frame = keep_frame(t.frame);
        const size_t first = records_.size();
        keep_chain(records, records_, moved_records, t.unlike, [](const record & r) { return r.outer; });
        for (size_t i = first; i < records_.size(); i++) {
            record & r = records_[i];
            r.outer = moved_records[r.outer];
            r.frame = keep_frame(r.frame);
            const uint32_t begin = uint32_t(candidates_.size());
            candidates_.insert(candidates_.end(), candidates.begin() + r.first, candidates.begin() + r.last);
            r.first = begin;
            r.last = uint32_t(candidates_.size());
        }
        t.unlike = moved_records[t.unlike];
    }
}

// ---- threads ----------------------------------------------------------------------------------------------------------

bool schema_walk::frame::operator==(const frame & o) const {
    return node == o.node && next == o.next && n == o.n && later == o.later && list == o.list && begin == o.begin && is_array == o.is_array && strict == o.strict &&
           depth == o.depth && memcmp(counts, o.counts, sizeof counts) == 0;
}

bool schema_walk::same_frames(uint32_t a, uint32_t b) const {
    while (a != b) {
        if (!(frames_[a] == frames_[b])) {
            return false;
        }
        a = frames_[a].parent;
        b = frames_[b].parent;
    }
    return true;
}

uint32_t schema_walk::add_frame(const frame & f) {
    frames_.push_back(f);
    return uint32_t(frames_.size() - 1);
}

void schema_walk::put(const thread & t) {
    const auto is_there = [&](const thread & other) { return other.reads_like(t) && same_frames(other.frame, t.frame); };
    if (out_->size() < MAX_THREADS && std::none_of(out_->begin(), out_->end(), is_there)) {
        out_->push_back(t);
    }
}

bool schema_walk::step(const place & from, uint8_t byte, place & to) {
    to.threads.clear();
    if (!read_json(from.characters, byte, to.characters, read_)) {
        return false;
    }
    from_ = &from;
    to_ = to.characters;
    note_text(from, byte);
    to.n_text = n_text_;
    to.word_begin = word_begin_;
    to.n_word = n_word_;
    out_ = &to.threads;
    for (const thread & t : from.threads) {
        step_thread(t, byte);
    }
    if (schema_->has_unique && !searching_) {
        std::vector<thread> kept;
        const bool any = std::any_of(to.threads.begin(), to.threads.end(), [](const thread & t) { return t.unlike != 0; });
        if (any) {
            for (const thread & t : to.threads) {
                if (t.unlike == 0 || can_differ(t, to)) {
                    kept.push_back(t);
                }
            }
            to.threads = std::move(kept);
        }
    }
    return !to.threads.empty();
}

bool schema_walk::may_end(const place & at) const {
    for (const thread & t : at.threads) {
        if (t.at == mode::done || (t.at == mode::number && t.frame == 0 && schema_->numbers[t.node].may_end(t.digits, false))) {
            return true;
        }
        if (schema_->raw && at.characters.at == json_lexer::part::none && t.count >= schema_->strings[t.node].least &&
            schema_->strings[t.node].words->accepts(int32_t(t.place))) {
            return true;
        }
    }
    return false;
}

int schema_walk::only_byte(const place & at) const {
    if (at.threads.empty() || at.characters.at != json_lexer::part::none) {
        return -1;
    }
    const int byte = only_byte(at.threads[0]);
    const bool agreed = std::all_of(at.threads.begin() + 1, at.threads.end(), [&](const thread & t) { return only_byte(t) == byte; });
    return agreed ? byte : -1;
}

// Of a character that has one spelling.
static int spelled(uint32_t code_point) {
    return code_point >= 0x20 && code_point < 0x7F && code_point != '"' && code_point != '\\' ? int(code_point) : -1;
}

int schema_walk::only_byte(const thread & t) const {
    return t.unlike != 0 ? -1 : own_byte(t);
}

int schema_walk::own_byte(const thread & t) const {
    switch (t.at) {
        case mode::colon: return ':';
        case mode::word: return uint8_t(WORDS[t.node][t.place]);
        case mode::string: {
            const schema::string_node & s = schema_->strings[t.node];
            const int32_t state = int32_t(t.place);
            if (s.words->is_last(state) || t.count >= s.most) {
                return '"';
            }
            const bool may_end = s.words->accepts(state) && t.count >= s.least;
            return may_end ? -1 : spelled(s.words->only_next(state));
        }
        case mode::name: {
            if (t.count != NEVER_MET || t.place == NEVER_MET) {
                return -1;
            }
            const frame & f = frames_[t.frame];
            const schema::object_node & o = schema_->objects[f.node];
            const int32_t listed = o.names[t.place].property;
            const bool may_end = listed >= 0 && may_follow(f, o, uint32_t(listed));
            uint32_t only = automaton::NONE;
            for (uint32_t child = o.names[t.place].child; child != 0; child = o.names[child].sibling) {
                if (has_listed(f, o, child)) {
                    if (may_end || only != automaton::NONE) {
                        return -1;
                    }
                    only = o.names[child].code_point;
                }
            }
            return may_end ? '"' : spelled(only);
        }
        default: return -1;
    }
}

// ---- characters -------------------------------------------------------------------------------------------------------

// The text without white space and escapes: a quote or a backslash within a string gets a byte ahead that no text has.
void schema_walk::note_text(const place & from, uint8_t byte) {
    word_begin_ = from.word_begin;
    n_text_ = from.n_text;
    word_.resize(from.n_word);
    if (read_.what == json_reading::event::structure && byte == '"') {
        word_begin_ = from.n_word;
    } else if (read_.what == json_reading::event::character) {
        append_utf8(word_, read_.character);
    }
    n_word_ = uint32_t(word_.size());
    if (!schema_->has_unique) {
        return;
    }
    text_.resize(from.n_text);
    switch (read_.what) {
        case json_reading::event::partial: break;
        case json_reading::event::quote: text_ += '"'; break;
        case json_reading::event::character:
            if (read_.character == '"' || read_.character == '\\') {
                text_ += '\xFF';
            }
            append_utf8(text_, read_.character);
            break;
        case json_reading::event::structure:
            if (byte != ' ' && byte != '\n' && byte != '\t' && byte != '\r') {
                text_ += char(byte);
            }
    }
    n_text_ = uint32_t(text_.size());
}

void schema_walk::settle(place & at) {
    if (!at.characters.in_string) {
        at.word_begin = at.n_word = 0;
    }
}

// ---- one byte for one thread ------------------------------------------------------------------------------------------

void schema_walk::step_thread(const thread & t, uint8_t byte) {
    if (from_->characters.in_string) {
        if (t.at == mode::string || t.at == mode::name) {
            thread next = t;
            next.unlike = t.unlike == 0 ? 0 : narrowed(t.unlike, from_->n_text);
            step_string(next);
        }
        return;
    }
    if (t.at == mode::number) {
        const number_set & set = schema_->numbers[t.node];
        const bool strict = frames_[t.frame].strict;
        const bool part = (byte >= '0' && byte <= '9') || byte == '.' || byte == 'e' || byte == 'E' || byte == '+' || byte == '-';
        if (part) {
            thread next = t;
            if (set.push(next.digits, char(byte), strict)) {
                next.unlike = t.unlike == 0 ? 0 : narrowed(t.unlike, from_->n_text);
                put(next);
            }
            return;
        }
        if (t.frame == 0 || !set.may_end(t.digits, strict)) {
            return;
        }
        // It ends with what follows it: the container takes the byte.
        std::vector<thread> ended;
        std::vector<thread> * const out = out_;
        const uint32_t n_text = n_text_;
        out_ = &ended;
        n_text_ = from_->n_text;
        finish(t);
        n_text_ = n_text;
        out_ = out;
        for (thread & e : ended) {
            step_thread(e, byte);
        }
        return;
    }
    thread next = t;
    next.unlike = t.unlike == 0 ? 0 : narrowed(t.unlike, from_->n_text);
    step_structure(next, byte);
}

void schema_walk::step_string(const thread & t) {
    if (t.at == mode::name) {
        const frame & f = frames_[t.frame];
        const schema::object_node & o = schema_->objects[f.node];
        if (read_.what == json_reading::event::quote) {
            end_name(t);
            return;
        }
        if (read_.what == json_reading::event::partial) {
            if (is_name_possible(f, o, t, read_.ranges, read_.n_ranges)) {
                put(t);
            }
            return;
        }
        thread next = t;
        if (t.place != NEVER_MET) {
            uint32_t child = o.names[t.place].child;
            while (child != 0 && o.names[child].code_point != read_.character) {
                child = o.names[child].sibling;
            }
            next.place = child == 0 ? NEVER_MET : child;
        }
        if (t.count != NEVER_MET) {
            next.count = uint32_t(o.others->next(int32_t(t.count), read_.character));
        }
        // The node in the tree is kept in any case: names that are listed are not for others to take.
        const bool listed = next.place != NEVER_MET && has_listed(f, o, next.place);
        if (next.count != NEVER_MET && !has_other(f, o, next.place, int32_t(next.count), word())) {
            next.count = NEVER_MET;
        }
        if (listed || next.count != NEVER_MET) {
            put(next);
        }
        return;
    }
    const schema::string_node & s = schema_->strings[t.node];
    const automaton & words = *s.words;
    const int32_t state = int32_t(t.place);
    if (read_.what == json_reading::event::quote) {
        if (words.accepts(state) && t.count >= s.least) {
            finish(t);
        }
        return;
    }
    if (t.count >= s.most) {
        return;
    }
    const uint32_t least = t.count + 1 >= s.least ? 0 : s.least - t.count - 1;
    const uint32_t most = s.most == INFINITE ? INFINITE : s.most - t.count - 1;
    if (read_.what == json_reading::event::partial) {
        for (size_t i = 0; i < read_.n_ranges; i++) {
            if (words.is_open(state) || words.continues(state, read_.ranges[i].first, read_.ranges[i].last, least, most)) {
                put(t);
                return;
            }
        }
        return;
    }
    thread next = t;
    next.count++;
    if (!words.is_open(state)) {
        const int32_t to = words.next(state, read_.character);
        if (to == automaton::DEAD || !words.fits(to, least, most)) {
            return;
        }
        next.place = uint32_t(to);
    }
    put(next);
}

bool schema_walk::skip_blank(thread & t, uint8_t byte) {
    if (t.blanks == 0 && byte == ' ') {
        t.blanks = 1;
        return true;
    }
    if (t.blanks == 0 && byte == '\n') {
        t.blanks = 2;
        return true;
    }
    const uint32_t depth = frames_[t.frame].depth;
    if (t.blanks >= 2 && (byte == ' ' || byte == '\t') && t.blanks < 2 + std::min(MAX_INDENTATION, INDENTATION * depth)) {
        t.blanks++;
        return true;
    }
    return false;
}

void schema_walk::step_structure(thread t, uint8_t byte) {
    switch (t.at) {
        case mode::value:
            if (t.frame != 0 && skip_blank(t, byte)) {
                put(t);
            } else {
                t.blanks = 0;
                start_value(t, byte);
            }
            break;
        case mode::word:
            if (WORDS[t.node][t.place] == char(byte)) {
                t.place++;
                if (WORDS[t.node][t.place] == '\0') {
                    finish(t);
                } else {
                    put(t);
                }
            }
            break;
        case mode::colon:
            if (byte == ':') {
                t.at = mode::value;
                put(t);
            }
            break;
        case mode::object_first:
        case mode::object_name:
            if (skip_blank(t, byte)) {
                put(t);
            } else if (byte == '"') {
                start_name(t);
            } else if (byte == '}' && t.at == mode::object_first && may_close(frames_[t.frame])) {
                t.frame = frames_[t.frame].parent;
                finish(t);
            }
            break;
        case mode::object_next:
            if (byte == ',' && t.blanks == 0) {
                const frame & f = frames_[t.frame];
                const schema::object_node & o = schema_->objects[f.node];
                if (has_listed(f, o, 0) || others_may_follow(f, o)) {
                    t.at = mode::object_name;
                    put(t);
                }
            } else if (may_close(frames_[t.frame])) {
                close(t, byte, '}');
            }
            break;
        case mode::array_first:
            close(t, byte, ']');
            break;
        case mode::array_next:
            if (byte == ',' && t.blanks == 0) {
                begin_items(t, t.frame);
            } else if (may_close(frames_[t.frame])) {
                close(t, byte, ']');
            }
            break;
        default: break;
    }
}

// Of a group that may end here: white space goes on, its sign ends it.
void schema_walk::close(thread t, uint8_t byte, char sign) {
    if (skip_blank(t, byte)) {
        put(t);
    } else if (byte == sign) {
        t.frame = frames_[t.frame].parent;
        t.blanks = 0;
        finish(t);
    }
}

static uint8_t kind_begun_by(uint8_t byte) {
    switch (byte) {
        case '"': return KIND_STRING;
        case 'n': return KIND_NULL;
        case 't':
        case 'f': return KIND_BOOLEAN;
        case '{': return KIND_OBJECT;
        case '[': return KIND_ARRAY;
        default: return KIND_NUMBER;
    }
}

void schema_walk::start_value(const thread & t, uint8_t byte) {
    if (t.frame == 0 && (kinds_ & kind_begun_by(byte)) == 0) {
        return;
    }
    const schema::value_node & v = schema_->values[t.node];
    thread next = t;
    const auto word = [&](uint32_t which) {
        next.at = mode::word;
        next.node = which;
        next.place = 1;
        put(next);
    };
    switch (byte) {
        case '"':
            next.at = mode::string;
            next.count = 0;
            for (const uint32_t id : v.strings) {
                next.node = id;
                next.place = uint32_t(schema_->strings[id].words->start());
                put(next);
            }
            break;
        case 'n': if (v.null) { word(0); } break;
        case 't': if (v.truth) { word(1); } break;
        case 'f': if (v.falsehood) { word(2); } break;
        case '{':
        case '[': {
            const frame & outer = frames_[t.frame];
            frame f = {};
            f.parent = t.frame;
            f.depth = uint16_t(outer.depth + 1);
            f.strict = outer.strict;
            const auto fits = [&](uint32_t nesting) { return nesting != NEVER_MET && outer.depth + nesting <= MAX_JSON_NESTING; };
            if (byte == '{') {
                for (const uint32_t id : v.objects) {
                    if (fits(schema_->objects[id].nesting)) {
                        f.node = id;
                        next.at = mode::object_first;
                        next.frame = add_frame(f);
                        put(next);
                    }
                }
                break;
            }
            f.is_array = 1;
            for (const uint32_t id : v.arrays) {
                const schema::array_node & a = schema_->arrays[id];
                if (!fits(a.nesting)) {
                    continue;
                }
                f.node = id;
                f.strict = outer.strict || a.unique;
                next.frame = add_frame(f);
                if (may_close(f)) {
                    next.at = mode::array_first;
                    put(next);
                }
                begin_items(next, next.frame);
            }
            break;
        }
        default:
            if (byte == '-' || (byte >= '0' && byte <= '9')) {
                const bool strict = frames_[t.frame].strict;
                next.at = mode::number;
                for (const uint32_t id : v.numbers) {
                    next.node = id;
                    next.digits = {};
                    if (schema_->numbers[id].push(next.digits, char(byte), strict)) {
                        put(next);
                    }
                }
            }
    }
}

// A value is whole: on to what its container says. `t.frame` is that container.
void schema_walk::finish(thread t) {
    if (t.frame == 0) {
        thread end;
        end.at = mode::done;
        put(end);
        return;
    }
    const frame & f = frames_[t.frame];
    t.blanks = 0;
    t.node = t.place = t.count = 0;
    t.digits = {};
    t.at = f.is_array ? mode::array_next : mode::object_next;
    if (f.is_array && schema_->arrays[f.node].unique) {
        if (t.unlike != 0 && records_[t.unlike].frame == t.frame) {
            const record & r = records_[t.unlike];
            for (uint32_t i = r.first; i < r.last; i++) {
                if (candidates_[i].end - candidates_[i].begin == n_text_ - r.start) {
                    return; // there is such an item already
                }
            }
            t.unlike = r.outer;
        }
        if (is_repeated(t.frame, f.begin, n_text_)) {
            return;
        }
        spans_.push_back({f.list, f.begin, n_text_});
        frame next = f;
        next.list = uint32_t(spans_.size() - 1);
        t.frame = add_frame(next);
    }
    put(t);
}

// ---- objects ----------------------------------------------------------------------------------------------------------

bool schema_walk::may_close(const frame & f) const {
    if (f.is_array) {
        const schema::array_node & a = schema_->arrays[f.node];
        if (f.n < a.least) {
            return false;
        }
        for (size_t i = 0; i < a.contains.size(); i++) {
            if (f.counts[i] < a.contains[i].least) {
                return false;
            }
        }
        return true;
    }
    const schema::object_node & o = schema_->objects[f.node];
    return f.n >= o.least && n_needed(f, o) == 0;
}

// Of the members that come in any order, those that are still to come.
uint32_t schema_walk::n_later(const frame & f, const schema::object_node & o) const {
    uint32_t n = 0;
    for (uint32_t left = o.required_later & ~f.later; left != 0; left &= left - 1) {
        n++;
    }
    return n;
}

// Members that must still come.
uint32_t schema_walk::n_needed(const frame & f, const schema::object_node & o) const {
    return o.n_required[f.next] + n_later(f, o);
}

// Names so far that are not listed.
uint32_t schema_walk::n_used(const frame & f) const {
    uint32_t n = 0;
    for (uint32_t w = f.list; w != 0; w = words_[w].before) {
        n++;
    }
    return n;
}

// Whether that property may be the next member, and the object come to an end after it.
bool schema_walk::may_follow(const frame & f, const schema::object_node & o, uint32_t i) const {
    const bool in_order = i < o.n_ordered;
    if (in_order ? i < f.next || o.n_required[f.next] != o.n_required[i] : o.n_required[f.next] != 0 || (f.later >> (i - o.n_ordered) & 1)) {
        return false;
    }
    const uint32_t nesting = schema_->values[o.listed[i].value].nesting;
    if (nesting == NEVER_MET || f.depth + nesting > MAX_JSON_NESTING) {
        return false;
    }
    if (o.most != INFINITE && f.n + 1 + n_needed(f, o) - o.listed[i].required > o.most) {
        return false;
    }
    if (o.n_others == INFINITE || f.n >= o.least) {
        return true;
    }
    const uint32_t n_others = in_order ? o.n_others : o.n_others - n_used(f); // which come behind those in order
    return uint64_t(f.n) + (in_order ? 1 + o.n_possible[i + 1] : 0) + n_later(f, o) + n_others >= o.least;
}

bool schema_walk::others_may_follow(const frame & f, const schema::object_node & o) const {
    if (!o.others || o.n_required[f.next] != 0 || (o.most != INFINITE && f.n + 1 + n_needed(f, o) > o.most)) {
        return false;
    }
    if (o.n_others != INFINITE) {
        // Past those in order there must be enough of the rest.
        const uint32_t n_left = o.n_others - n_used(f);
        if (n_left == 0 || uint64_t(f.n) + n_later(f, o) + n_left < o.least) {
            return false;
        }
    }
    return f.depth + o.others_nesting <= MAX_JSON_NESTING;
}

bool schema_walk::has_listed(const frame & f, const schema::object_node & o, uint32_t tree) const {
    const std::vector<uint32_t> & below = o.names[tree].below;
    for (auto i = std::lower_bound(below.begin(), below.end(), f.next); i != below.end(); ++i) {
        if (may_follow(f, o, *i)) {
            return true;
        }
        if (o.n_required[f.next] != o.n_required[std::min(*i, o.n_ordered)]) {
            return false;
        }
    }
    return false;
}

// Whether the name may become one that is neither listed nor used, from the automaton's state on.
bool schema_walk::has_other(const frame & f, const schema::object_node & o, uint32_t tree, int32_t state, std::string_view name) const {
    if (state == automaton::DEAD) {
        return false;
    }
    const uint32_t count = o.others->count(state);
    if (count == INFINITE) {
        return true;
    }
    uint32_t n_taken = tree == NEVER_MET ? 0 : o.names[tree].n_also_others;
    for (uint32_t w = f.list; w != 0; w = words_[w].before) {
        n_taken += words_[w].text.compare(0, name.size(), name) == 0;
    }
    return count > n_taken;
}

bool schema_walk::is_name_possible(const frame & f, const schema::object_node & o, const thread & t, const code_range * ranges, size_t n_ranges) const {
    for (size_t i = 0; i < n_ranges; i++) {
        if (t.place != NEVER_MET) {
            for (uint32_t child = o.names[t.place].child; child != 0; child = o.names[child].sibling) {
                const uint32_t c = o.names[child].code_point;
                if (c >= ranges[i].first && c <= ranges[i].last && has_listed(f, o, child)) {
                    return true;
                }
            }
        }
        if (t.count != NEVER_MET) {
            if (o.others->count(int32_t(t.count)) == INFINITE) {
                // one that leads on without an end, or any at all of a set that is large
                if (o.others->is_open(int32_t(t.count)) || o.others->continues(int32_t(t.count), ranges[i].first, ranges[i].last)) {
                    return true;
                }
            } else {
                for (uint32_t c = ranges[i].first; c <= ranges[i].last && c - ranges[i].first < 4096; c++) {
                    const int32_t to = o.others->next(int32_t(t.count), c);
                    if (to == automaton::DEAD) {
                        continue;
                    }
                    uint32_t child = t.place == NEVER_MET ? 0 : o.names[t.place].child;
                    while (child != 0 && o.names[child].code_point != c) {
                        child = o.names[child].sibling;
                    }
                    std::string text(word());
                    append_utf8(text, c);
                    uint32_t n_taken = child == 0 ? 0 : o.names[child].n_also_others;
                    for (uint32_t w = f.list; w != 0; w = words_[w].before) {
                        n_taken += words_[w].text.compare(0, text.size(), text) == 0;
                    }
                    if (o.others->count(to) > n_taken) {
                        return true;
                    }
                }
            }
        }
    }
    return false;
}

void schema_walk::start_name(const thread & t) {
    const frame & f = frames_[t.frame];
    const schema::object_node & o = schema_->objects[f.node];
    thread next = t;
    next.at = mode::name;
    next.blanks = 0;
    next.place = 0;
    next.count = others_may_follow(f, o) && has_other(f, o, 0, o.others->start(), "") ? uint32_t(o.others->start()) : NEVER_MET;
    if (next.count != NEVER_MET || has_listed(f, o, 0)) {
        put(next);
    }
}

void schema_walk::end_name(const thread & t) {
    const frame f = frames_[t.frame];
    const schema::object_node & o = schema_->objects[f.node];
    thread next;
    next.at = mode::colon;
    next.unlike = t.unlike;
    frame after = f;
    after.n++;
    const int32_t listed = t.place == NEVER_MET ? -1 : o.names[t.place].property;
    if (listed >= 0) {
        if (may_follow(f, o, uint32_t(listed))) {
            if (uint32_t(listed) < o.n_ordered) {
                after.next = uint32_t(listed) + 1;
            } else {
                after.next = o.n_ordered;
                after.later |= 1u << (uint32_t(listed) - o.n_ordered);
            }
            next.node = o.listed[size_t(listed)].value;
            next.frame = add_frame(after);
            put(next);
        }
        return;
    }
    if (t.count == NEVER_MET || !o.others->accepts(int32_t(t.count))) {
        return;
    }
    const uint32_t value = o.others->mark(int32_t(t.count));
    if (schema_->values[value].nesting == NEVER_MET || f.depth + schema_->values[value].nesting > MAX_JSON_NESTING) {
        return;
    }
    for (uint32_t w = f.list; w != 0; w = words_[w].before) {
        if (words_[w].text == word()) {
            return;
        }
    }
    words_.push_back({f.list, std::string(word())});
    after.list = uint32_t(words_.size() - 1);
    after.next = o.n_ordered;
    next.node = value;
    next.frame = add_frame(after);
    put(next);
}

// ---- arrays -----------------------------------------------------------------------------------------------------------

// Whether an array with n items, of which so many count, can come to an end.
bool schema_walk::can_fill(const schema::array_node & a, uint32_t n, const uint32_t * counts) const {
    if (n > a.most) {
        return false;
    }
    if (a.contains.empty()) {
        return true; // `most` ends where nothing can stand
    }
    uint32_t needs[MAX_CONTAINS];
    uint32_t rooms[MAX_CONTAINS]; // for further ones that count
    uint64_t n_needed = 0;
    for (size_t k = 0; k < a.contains.size(); k++) {
        if (counts[k] > a.contains[k].most) {
            return false;
        }
        needs[k] = counts[k] < a.contains[k].least ? a.contains[k].least - counts[k] : 0;
        n_needed += needs[k];
        rooms[k] = a.contains[k].most == INFINITE ? INFINITE : a.contains[k].most - counts[k];
    }
    const uint32_t last = uint32_t(a.places.size() - 1);
    const auto is_met = [&](const schema::item_choice & c, uint32_t at, uint32_t counted) {
        const schema::value_node & v = schema_->values[c.value];
        return v.nesting != NEVER_MET && (!a.unique || v.count > (c.contains >= 0 ? counted : at));
    };
    for (;; n++) {
        if (n_needed == 0 && n >= a.least) {
            return true;
        }
        if (n >= a.most) {
            return false;
        }
        const auto & place = a.places[std::min(n, last)];
        int32_t taken = -2;
        int32_t filler = -2;
        for (const schema::item_choice & c : place) {
            const bool needed = c.contains >= 0 && needs[c.contains] > 0;
            if (needed && is_met(c, n, a.contains[size_t(c.contains)].least - needs[c.contains])) {
                taken = c.contains;
                break;
            }
            const bool fills = c.contains < 0 || rooms[c.contains] > 0;
            const bool is_better = filler == -2 || (filler >= 0 && (c.contains < 0 || rooms[c.contains] > rooms[filler]));
            if (fills && is_better && is_met(c, n, n)) {
                filler = c.contains;
                taken = -1;
            }
        }
        if (taken == -2 || (taken == -1 && n >= last && n_needed > 0)) {
            return false; // nothing that is needed can come any more
        }
        if (n >= last && !a.unique) { // all that follow are alike
            for (size_t k = 0; k < a.contains.size(); k++) {
                const bool there = needs[k] == 0 || std::any_of(place.begin(), place.end(), [&](const schema::item_choice & c) {
                    return c.contains == int32_t(k) && is_met(c, n, 0);
                });
                if (!there) {
                    return false;
                }
            }
            uint64_t room = 0;
            bool seen[MAX_CONTAINS] = {};
            for (const schema::item_choice & c : place) {
                if (!is_met(c, n, n) || (c.contains >= 0 && seen[c.contains])) {
                    continue;
                }
                if (c.contains < 0 || rooms[c.contains] == INFINITE) {
                    room = a.least;
                    break;
                }
                seen[c.contains] = true;
                room += rooms[c.contains] - needs[c.contains];
            }
            return n + n_needed <= a.most && n + n_needed + room >= a.least;
        }
        const int32_t counted = taken >= 0 ? taken : filler;
        if (taken >= 0) {
            needs[taken]--;
            n_needed--;
        }
        if (counted >= 0 && rooms[counted] != INFINITE) {
            rooms[counted]--;
        }
    }
}

// One more item may begin, in each way that it may count.
void schema_walk::begin_items(const thread & t, uint32_t frame_id) {
    const frame f = frames_[frame_id];
    const schema::array_node & a = schema_->arrays[f.node];
    if (f.n >= a.most) {
        return;
    }
    thread next = t;
    next.at = mode::value;
    next.blanks = 0;
    if (a.unique && f.list != 0) {
        const uint32_t first = uint32_t(candidates_.size());
        for (uint32_t s = f.list; s != 0; s = spans_[s].before) {
            candidates_.push_back(spans_[s]);
        }
        records_.push_back({t.unlike, 0, n_text_, first, uint32_t(candidates_.size())});
        next.unlike = uint32_t(records_.size() - 1);
    }
    for (const schema::item_choice & choice : a.places[std::min<size_t>(f.n, a.places.size() - 1)]) {
        const uint32_t nesting = schema_->values[choice.value].nesting;
        if (nesting == NEVER_MET || f.depth + nesting > MAX_JSON_NESTING) {
            continue;
        }
        frame after = f;
        after.n++;
        after.begin = n_text_;
        if (choice.contains >= 0) {
            after.counts[choice.contains]++;
        }
        if (!can_fill(a, after.n, after.counts)) {
            continue;
        }
        next.node = choice.value;
        next.frame = add_frame(after);
        if (next.unlike != t.unlike) {
            if (records_[next.unlike].frame != 0) { // each its own: the frame is part of it
                record r = records_[next.unlike];
                r.frame = next.frame;
                records_.push_back(r);
                next.unlike = uint32_t(records_.size() - 1);
            } else {
                records_[next.unlike].frame = next.frame;
            }
        }
        put(next);
    }
}

// ---- items that must differ --------------------------------------------------------------------------------------------

// The record of those that are still alike after what was appended to the text; 0 or an outer one if none is.
uint32_t schema_walk::narrowed(uint32_t id, uint32_t n_before) {
    const record r = records_[id];
    const uint32_t outer = r.outer == 0 ? 0 : narrowed(r.outer, n_before);
    if (n_before == n_text_) {
        return id;
    }
    const uint32_t first = uint32_t(candidates_.size());
    const size_t offset = n_before - r.start;
    const size_t length = n_text_ - n_before;
    for (uint32_t i = r.first; i < r.last; i++) {
        const span c = candidates_[i];
        if (c.begin + offset + length <= c.end && text_.compare(c.begin + offset, length, text_, n_before, length) == 0) {
            candidates_.push_back(c);
        }
    }
    if (candidates_.size() == first) {
        return outer;
    }
    records_.push_back({outer, r.frame, r.start, first, uint32_t(candidates_.size())});
    return uint32_t(records_.size() - 1);
}

// The value at `at` with the members of its objects in order.
static std::string in_order(const std::string & text, size_t & at) {
    const auto read_string = [&] {
        const size_t begin = at++;
        while (text[at] != '"') {
            at += text[at] == '\xFF' ? 2 : 1;
        }
        at++;
        return text.substr(begin, at - begin);
    };
    if (text[at] == '"') {
        return read_string();
    }
    if (text[at] == '{' || text[at] == '[') {
        const char close = text[at] == '{' ? '}' : ']';
        std::vector<std::string> parts;
        at++;
        while (text[at] != close) {
            std::string part;
            if (close == '}') {
                part = read_string() + ":";
                at++;
            }
            part += in_order(text, at);
            parts.push_back(std::move(part));
            at += text[at] == ',';
        }
        at++;
        if (close == '}') {
            std::sort(parts.begin(), parts.end());
        }
        std::string all(1, close);
        for (const std::string & part : parts) {
            all += part + ",";
        }
        return all;
    }
    const size_t begin = at;
    while (at < text.size() && text[at] != ',' && text[at] != '}' && text[at] != ']') {
        at++;
    }
    return text.substr(begin, at - begin);
}

// Whether an earlier item is the same but for the order of its members.
bool schema_walk::is_repeated(uint32_t frame_id, uint32_t begin, uint32_t end) const {
    const std::string item = text_.substr(begin, end - begin);
    if (item.find('{') == std::string::npos) {
        return false;
    }
    size_t at = 0;
    const std::string own = in_order(item, at);
    for (uint32_t s = frames_[frame_id].list; s != 0; s = spans_[s].before) {
        if (spans_[s].end - spans_[s].begin == end - begin) {
            at = 0;
            if (in_order(text_.substr(spans_[s].begin, end - begin), at) == own) {
                return true;
            }
        }
    }
    return false;
}

bool schema_walk::can_differ(const thread & t, const place & at) {
    const json_lexer to = to_;
    const uint32_t n_text = n_text_;
    const uint32_t n_word = n_word_;
    const uint32_t word_begin = word_begin_;
    std::vector<thread> * const out = out_;
    const place * const from = from_;
    const mark m = here();
    size_t budget = MAX_SEARCH;
    searching_ = true;
    const bool can = search_difference(t, at, budget);
    searching_ = false;
    forget(m);
    to_ = to;
    n_text_ = n_text;
    n_word_ = n_word;
    word_begin_ = word_begin;
    out_ = out;
    from_ = from;
    return can;
}

// Depth first along what is still alike; bytes that tell items apart first, as far as one can guess.
bool schema_walk::search_difference(const thread & t, const place & at, size_t & budget) {
    static const std::string WITHIN = [] {
        std::string order = "aZ0q1.:,]}\"{[- ntf";
        for (int c = 32; c < 256; c++) {
            if (order.find(char(c)) == std::string::npos) {
                order += char(c);
            }
        }
        return order;
    }();
    static const std::string BETWEEN = "\",]}{[:0123456789-.tfnruealsE+"; // white space says nothing
    place one = at;
    one.threads = {t};
    place to;
    const bool is_plain = at.characters.at == json_lexer::part::none;
    const int own = is_plain ? own_byte(t) : -1; // what is written out for a long while is not searched
    const std::string order = own >= 0 ? std::string(1, char(own)) : is_plain && !at.characters.in_string ? BETWEEN : WITHIN;
    std::string alike;
    for (const char c : order) {
        if (budget == 0) {
            return false;
        }
        budget--;
        if (!step(one, uint8_t(c), to)) {
            continue;
        }
        if (std::any_of(to.threads.begin(), to.threads.end(), [](const thread & u) { return u.unlike == 0; })) {
            return true;
        }
        alike += c;
    }
    for (const char c : alike) {
        step(one, uint8_t(c), to);
        const place next = to;
        for (size_t i = 0; i < next.threads.size(); i++) {
            if (i > 0) {
                step(one, uint8_t(c), to); // the text as it is there
            }
            if (search_difference(next.threads[i], next, budget)) {
                return true;
            }
        }
    }
    return false;
}

}  // namespace lm
