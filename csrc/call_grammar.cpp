#include "call_grammar.h"

#include "call_rules.h"
#include "call_tree.h"
#include "json_value.h"
#include "regex.h"

#include "chat-peg-parser.h"
#include "json-schema-to-grammar.h"
#include "json.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>

namespace lm {

using builder = common_chat_peg_builder;

static constexpr uint32_t INFINITE = automaton::INFINITE;
static constexpr size_t MAX_PERMUTED = 6;    // arguments that may come in any order: each set of them is a rule
static constexpr uint32_t MAX_COUNTED = 100; // items that are counted in rules
static constexpr int MAX_DEPTH = 200;        // of the tree below an argument
static constexpr int MAX_WORD = 64;          // code points of what a notation leaves open around arguments: ids, kinds of content

static constexpr char GEMMA_QUOTE[] = "<|\"|>";

// Below these stands what is no word of a notation.
static constexpr const char * NO_WORDS[] = {builder::REASONING, builder::CONTENT, builder::TOOL_ARGS, builder::TOOL_ARG};

namespace {

std::string literal(const std::string & text) {
    return gbnf_format_literal(text);
}

// ---- texts without quotes ---------------------------------------------------------------------------------------------

// Texts ahead of the first place where `end` stands: it is not in them, nor together with them before it is due.
automaton_ptr texts_before(const std::string & end) {
    const std::vector<uint32_t> mark = code_points(end);
    const size_t n = mark.size();
    const auto next = [&](size_t matched, uint32_t c) {
        for (size_t k = std::min(matched + 1, n);; k--) { // the longest beginning of the mark that ends what is there
            if (k == 0 || (mark[k - 1] == c && std::equal(mark.begin(), mark.begin() + ptrdiff_t(k - 1), mark.begin() + ptrdiff_t(matched - (k - 1))))) {
                return k;
            }
        }
    };
    std::vector<uint32_t> begins = {0};
    for (const uint32_t c : mark) {
        begins.push_back(c);
        begins.push_back(c + 1);
    }
    std::sort(begins.begin(), begins.end());
    begins.erase(std::unique(begins.begin(), begins.end()), begins.end());
    std::vector<int32_t> table;
    std::vector<bool> accepts;
    for (size_t state = 0; state < n; state++) {
        for (const uint32_t c : begins) {
            const size_t to = next(state, c);
            table.push_back(to == n ? automaton::DEAD : int32_t(to));
        }
        size_t at = state;
        bool early = false;
        for (size_t i = 0; i + 1 < n && !early; i++) {
            at = next(at, mark[i]);
            early = at == n;
        }
        accepts.push_back(!early);
    }
    return std::make_shared<automaton>(std::move(begins), std::move(table), std::move(accepts));
}

class writer {
  public:
    writer(common_peg_arena & arena, const std::vector<tool_rules> & tools) : arena_(arena), tree_(arena), tools_(tools) {}

    // Puts rules in the place of arguments.
    void run() {
        std::vector<parser_id> path;
        std::set<parser_id> seen;
        find_places(arena_.root(), path, seen);
        bound_words();
        for (const tool_rules & tool : tools_) { // one without a place is called without arguments
            const schema & s = *tool.arguments;
            const auto may_be_empty = [&](uint32_t id) {
                const schema::object_node & o = s.objects[id];
                return o.nesting != NEVER_MET && o.least == 0 && o.n_required[0] == 0 && o.required_later == 0;
            };
            if (placed_.count(tool.name) == 0 && std::none_of(s.values[0].objects.begin(), s.values[0].objects.end(), may_be_empty)) {
                loosen(tool);
            }
        }
    }
    call_rules rules;
    std::vector<grammar_leaf> leaves;
    std::vector<std::string> loosened;

  private:
    using text_t = call_rules::text_t;
    using way = call_rules::way;

    // What a node is spelled for.
    struct place {
        uint32_t value = 0;
        std::string only = {};        // of several arguments this one
        const automaton * without = nullptr; // texts that would be read as something else
        bool has_texts = false;       // beside JSON
        bool has_objects = false;
        bool has_arrays = false;
        int depth = 0;
    };

    // ---- where the arguments are

    void find_places(parser_id id, std::vector<parser_id> & path, std::set<parser_id> & seen) {
        id = tree_.follow(id);
        if (!seen.insert(id).second) {
            return;
        }
        path.push_back(id);
        const tool_rules * tool = is_place(id) ? tool_at(path) : nullptr;
        if (tool != nullptr) {
            put(id, *tool);
        } else {
            for (const parser_id child : children_of(arena_.get(id))) {
                find_places(child, path, seen);
            }
        }
        path.pop_back();
    }

    bool is_place(parser_id id) const {
        const common_peg_parser_variant & parser = arena_.get(id);
        if (as<common_peg_schema_parser>(parser) != nullptr) {
            return true;
        }
        if (tree_.is_tag(id, builder::TOOL_ARGS) && is_gemma(id)) {
            return true;
        }
        return as<common_peg_repetition_parser>(parser) != nullptr && tree_.holds(id, builder::TOOL_ARG) && !tree_.holds(id, builder::TOOL_NAME);
    }

    bool is_gemma(parser_id id) const {
        const auto * rule = as<common_peg_rule_parser>(tree_.get(std::get<common_peg_tag_parser>(arena_.get(id)).child));
        return rule != nullptr && rule->name == "gemma4-dict";
    }

    // The tool that is called where the path leads.
    const tool_rules * tool_at(const std::vector<parser_id> & path) const {
        for (size_t i = path.size(); i-- > 0;) {
            if (!tree_.holds(path[i], builder::TOOL_NAME)) {
                continue;
            }
            std::set<std::string> names;
            tree_.walk(path[i], [&](parser_id at) {
                if (tree_.is_tag(at, builder::TOOL_NAME)) {
                    names.insert(tree_.text_in(at));
                }
                return true;
            });
            const auto found = std::find_if(tools_.begin(), tools_.end(), [&](const tool_rules & t) { return names.size() == 1 && t.name == *names.begin(); });
            return found == tools_.end() ? nullptr : &*found;
        }
        return nullptr;
    }

    void put(parser_id id, const tool_rules & tool) {
        schema_ = tool.arguments;
        lost_ = false;
        place at;
        text_t text;
        try {
            if (as<common_peg_schema_parser>(arena_.get(id)) != nullptr) {
                text = json_leaf(at.value, ALL_KINDS);
            } else if (as<common_peg_repetition_parser>(arena_.get(id)) != nullptr) {
                text = members(id, at);
            } else {
                text = gemma_value(at.value);
            }
        } catch (const unknown_notation &) {
        } catch (const automaton_error &) {
        }
        if (text) {
            parser_id end = id; // something without children, below: what is there is of no use any more
            for (std::vector<parser_id> below = children_of(arena_.get(end)); !below.empty(); below = children_of(arena_.get(end))) {
                end = tree_.follow(below.front());
            }
            arena_.get(id) = common_peg_gbnf_parser{end, rules.add(*text)};
        }
        placed_.insert(tool.name);
        if (!text || lost_) {
            loosen(tool);
        }
    }

    void loosen(const tool_rules & tool) {
        if (std::find(loosened.begin(), loosened.end(), tool.name) == loosened.end()) {
            loosened.push_back(tool.name);
        }
    }

    // Words of the notation's own end, whatever is drawn: what is no thought, content or argument and llama.cpp has go on.
    void bound_words() {
        std::vector<parser_id> words;
        std::set<parser_id> others;
        std::optional<parser_id> leaf; // something without children
        tree_.walk(arena_.root(), [&](parser_id at) {
            const common_peg_parser_variant & node = arena_.get(at);
            if (std::any_of(std::begin(NO_WORDS), std::end(NO_WORDS), [&](const char * tag) { return tree_.is_tag(at, tag); })) {
                tree_.walk(at, [&](parser_id below) { return others.insert(below).second; });
                return false;
            }
            words.push_back(at);
            leaf = as<common_peg_literal_parser>(node) != nullptr ? at : leaf;
            return as<common_peg_ac_parser>(node) == nullptr && as<common_peg_gbnf_parser>(node) == nullptr && as<common_peg_schema_parser>(node) == nullptr;
        });
        for (const parser_id at : words) {
            if (leaf && others.count(at) == 0) {
                bound(at, *leaf);
            }
        }
    }

    void bound(parser_id id, parser_id leaf) {
        common_peg_parser_variant & node = arena_.get(id);
        if (auto * characters = std::get_if<common_peg_chars_parser>(&node)) {
            characters->max_count = characters->max_count < 0 ? std::max(characters->min_count, MAX_WORD) : characters->max_count;
            return;
        }
        const auto * until = as<common_peg_until_parser>(node);
        const auto * string = as<common_peg_string_parser>(node);
        const text_t text = until != nullptr && !until->delimiters.empty() ? word_before(until->delimiters)
                            : string != nullptr                            ? quoted_word(string->delimiter)
                                                                           : std::nullopt;
        if (text) {
            node = common_peg_gbnf_parser{leaf, rules.add(*text)};
        }
    }

    // Without escapes, of which llama.cpp's grammars allow one that nobody reads.
    text_t quoted_word(char quote) {
        const automaton_ptr plain = compile_regex(quote == '\'' ? "^[^'\\\\\\x00-\\x1F]*$" : "^[^\"\\\\\\x00-\\x1F]*$");
        return add_text({plain, 0, MAX_WORD}, *automaton::anything(), nullptr);
    }

    text_t word_before(const std::vector<std::string> & ends) {
        automaton_ptr before = automaton::anything();
        for (const std::string & end : ends) {
            before = automaton::both(*before, *texts_before(end));
        }
        return add_text({automaton::anything(), 0, MAX_WORD}, *before, nullptr);
    }

    // ---- rules and leaves

    std::string add_leaf(grammar_leaf leaf) {
        if (leaves.size() >= MAX_LEAVES) {
            throw unknown_notation();
        }
        leaves.push_back(std::move(leaf));
        return "\"\\\"" + leaf_mark(leaves.size() - 1) + "\\\"\"";
    }

    const schema::value_node & node(uint32_t value) const { return schema_->values[value]; }

    static uint8_t kinds_of(const schema::value_node & v) {
        return uint8_t((v.null ? KIND_NULL : 0) | (v.truth || v.falsehood ? KIND_BOOLEAN : 0) | (v.numbers.empty() ? 0 : KIND_NUMBER) |
                       (v.strings.empty() ? 0 : KIND_STRING) | (v.arrays.empty() ? 0 : KIND_ARRAY) | (v.objects.empty() ? 0 : KIND_OBJECT));
    }

    text_t json_leaf(uint32_t value, uint8_t kinds) {
        kinds &= kinds_of(node(value));
        if (kinds == 0 || node(value).nesting == NEVER_MET) {
            return std::nullopt;
        }
        const auto [known, is_new] = known_json_.try_emplace({schema_.get(), value, kinds});
        if (is_new) {
            known->second = add_leaf(grammar_leaf(schema_, value, kinds));
        }
        return known->second;
    }

    // The strings that a value may be, as they stand ahead of `end`, but for those of `without`.
    text_t text_leaf(uint32_t value, const std::string & end, const automaton * without) {
        const auto [known, is_new] = known_texts_.try_emplace({schema_.get(), value, end, without});
        if (is_new) {
            known->second = make_text_leaf(value, end, without);
        }
        return known->second;
    }

    text_t make_text_leaf(uint32_t value, const std::string & end, const automaton * without) {
        automaton_ptr & before = before_[end];
        if (!before) {
            before = texts_before(end);
        }
        text_t text;
        for (const uint32_t id : node(value).strings) {
            const schema::string_node & s = schema_->strings[id];
            const text_t one = add_text(s, *before, without);
            text = !one ? text : !text ? one : rules.add(*text + " | " + *one);
        }
        return text;
    }

    text_t add_text(const schema::string_node & s, const automaton & before, const automaton * without) {
        automaton_ptr words = automaton::both(*s.words, before);
        if (without != nullptr) {
            words = automaton::both(*words, *without->complement());
        }
        if (words->start() == automaton::DEAD || !words->fits(words->start(), s.least, s.most)) {
            return std::nullopt;
        }
        if (s.least == 0 && s.most == INFINITE) {
            return add_leaf(words);
        }
        const bool may_be_empty = s.least == 0 && words->accepts(words->start());
        if (!words->fits(words->start(), std::max(s.least, 1u), s.most)) {
            return may_be_empty ? text_t("\"\"") : std::nullopt;
        }
        auto texts = std::make_shared<schema>(); // which count
        texts->raw = true;
        texts->strings.push_back({words, s.least, s.most});
        texts->values.emplace_back();
        texts->values[0].strings.push_back(0);
        texts->values[0].nesting = 0;
        const std::string leaf = add_leaf(schema_ptr(texts));
        return may_be_empty ? call_rules::group(leaf + " | \"\"") : leaf;
    }

    // ---- the tree of an argument

    text_t spell(parser_id id, place at) {
        if (++at.depth > MAX_DEPTH) {
            throw unknown_notation();
        }
        const common_peg_parser_variant & parser = tree_.get(id);
        if (const auto * text = as<common_peg_literal_parser>(parser)) {
            return literal(text->literal);
        }
        if (as<common_peg_space_parser>(parser) != nullptr) {
            return "space";
        }
        if (as<common_peg_epsilon_parser>(parser) != nullptr || as<common_peg_and_parser>(parser) != nullptr || as<common_peg_not_parser>(parser) != nullptr) {
            return "";
        }
        if (const auto * sequence = as<common_peg_sequence_parser>(parser)) {
            return spell_sequence(sequence->children, at);
        }
        if (const auto * choice = as<common_peg_choice_parser>(parser)) {
            return spell_choice(choice->children, at);
        }
        if (const auto * repetition = as<common_peg_repetition_parser>(parser)) {
            return spell_repetition(id, *repetition, at);
        }
        if (const auto * tag = as<common_peg_tag_parser>(parser)) {
            return spell_tag(*tag, at);
        }
        if (const auto * until = as<common_peg_until_parser>(parser); until != nullptr && !until->delimiters.empty()) {
            return word_before(until->delimiters);
        }
        for (const bool passes : {as<common_peg_atomic_parser>(parser) != nullptr, as<common_peg_rule_parser>(parser) != nullptr,
                                  as<common_peg_gbnf_parser>(parser) != nullptr, as<common_peg_ac_parser>(parser) != nullptr}) {
            if (passes) {
                return spell(children_of(parser)[0], at);
            }
        }
        throw unknown_notation();
    }

    text_t spell_sequence(const std::vector<parser_id> & children, place at) {
        std::string all;
        for (const parser_id child : children) {
            if (const auto * no = as<common_peg_not_parser>(tree_.get(child))) { // a text that begins so is another's
                at.without = beginning_with(tree_.text_in(no->child), at.without);
            }
            const text_t text = spell(child, at);
            if (!text) {
                return std::nullopt;
            }
            all += (all.empty() || text->empty() ? "" : " ") + *text;
        }
        return all;
    }

    text_t spell_choice(const std::vector<parser_id> & children, place at) {
        std::vector<parser_id> all;
        bool has_arguments = false;
        for (const parser_id child : children) {
            const auto arguments = tree_.arguments_in(child);
            has_arguments = has_arguments || !arguments.empty();
            if (at.only.empty() || arguments.empty() || arguments.count(at.only) > 0) {
                all.push_back(child);
            }
        }
        if (has_arguments && at.only.empty() && !holds_nested(children)) {
            throw unknown_notation(); // arguments where none are looked for
        }
        const automaton * const without = at.without;
        std::vector<std::string> ways;
        for (const parser_id child : all) {
            place there = at;
            there.without = without;
            for (const parser_id other : all) {
                if (other != child) {
                    there.has_texts = there.has_texts || tree_.holds(other, builder::TOOL_ARG_STRING_VALUE);
                    there.has_objects = there.has_objects || tree_.holds(other, common_chat_peg_minimax_m3_mapper::TOOL_ARG_OBJECT);
                    there.has_arrays = there.has_arrays || tree_.holds(other, common_chat_peg_minimax_m3_mapper::TOOL_ARG_ARRAY);
                    if (tree_.holds(other, builder::TOOL_ARG_VALUE)) {
                        there.without = like_json(other, there.without);
                    }
                }
            }
            const text_t text = spell(child, there);
            if (text && std::find(ways.begin(), ways.end(), *text) == ways.end()) {
                ways.push_back(*text);
            }
        }
        return call_rules::any_of(ways);
    }

    bool holds_nested(const std::vector<parser_id> & children) const {
        return std::any_of(children.begin(), children.end(), [&](parser_id child) {
            return tree_.holds(child, common_chat_peg_minimax_m3_mapper::TOOL_ARG_OBJECT) || tree_.holds(child, common_chat_peg_minimax_m3_mapper::TOOL_ARG_ARRAY);
        });
    }

    text_t spell_repetition(parser_id id, const common_peg_repetition_parser & repetition, const place & at) {
        if (at.only.empty() && tree_.holds(id, builder::TOOL_ARG) && !tree_.holds(id, common_chat_peg_minimax_m3_mapper::TOOL_ARG_ITEM)) {
            return members(id, at);
        }
        const text_t text = spell(repetition.child, at);
        if (!text || text->empty()) {
            return repetition.min_count == 0 || text ? text_t("") : std::nullopt;
        }
        const std::string most = repetition.max_count < 0 ? "" : std::to_string(repetition.max_count);
        return call_rules::group(*text) + "{" + std::to_string(repetition.min_count) + "," + most + "}";
    }

    text_t spell_tag(const common_peg_tag_parser & tag, place at) {
        using nested = common_chat_peg_minimax_m3_mapper;
        if (tag.tag == builder::TOOL_ARG) {
            at.only.clear();
        } else if (tag.tag == builder::TOOL_ARG_STRING_VALUE) {
            return text_leaf(at.value, end_of_text(tag.child), at.without);
        } else if (tag.tag == builder::TOOL_ARG_VALUE) {
            const uint8_t others = uint8_t((at.has_texts ? KIND_STRING : 0) | (at.has_objects ? KIND_OBJECT : 0) | (at.has_arrays ? KIND_ARRAY : 0));
            return json_leaf(at.value, uint8_t(ALL_KINDS & ~others));
        } else if (tag.tag == nested::TOOL_ARG_OBJECT) {
            return spell(tag.child, at);
        } else if (tag.tag == nested::TOOL_ARG_ARRAY) {
            return nested_items(tag.child, at);
        }
        return spell(tag.child, at);
    }

    std::string end_of_text(parser_id id) const {
        std::string end;
        tree_.walk(id, [&](parser_id below) {
            if (const auto * until = as<common_peg_until_parser>(tree_.get(below)); until != nullptr && until->delimiters.size() == 1) {
                end = until->delimiters[0];
            }
            return true;
        });
        if (end.empty()) {
            throw unknown_notation();
        }
        return end;
    }

    // ---- texts that are read as something else

    const automaton * beginning_with(const std::string & text, const automaton * before) {
        std::string expression = "^";
        for (const char c : text) {
            expression += (static_cast<unsigned char>(c) < 0x80 && !isalnum(static_cast<unsigned char>(c)) ? "\\" : "") + std::string(1, c);
        }
        return also(expression, before);
    }

    // Those that one of the alternatives takes for JSON.
    const automaton * like_json(parser_id id, const automaton * before) {
        std::set<std::string> kinds;
        tree_.walk(id, [&](parser_id below) {
            const auto * rule = as<common_peg_rule_parser>(tree_.get(below));
            if (rule != nullptr && rule->name.compare(0, 5, "json-") == 0) {
                kinds.insert(rule->name);
                return false;
            }
            return true;
        });
        static const std::pair<const char *, const char *> spelled[] = {{"json-number", "^-?[0-9][0-9.eE+-]*$"}, {"json-bool", "^(true|false)$"}, {"json-null", "^null$"},
                                                                        {"json-object", "^\\{"}, {"json-array", "^\\["}, {"json-string", "^\""}};
        for (const auto & [kind, expression] : spelled) {
            if (kinds.count(kind) > 0 || kinds.count("json-value") > 0) {
                before = also(expression, before);
            }
        }
        return before;
    }

    const automaton * also(const std::string & expression, const automaton * before) {
        automaton_ptr & known = excluded_[{expression, before}];
        if (!known) {
            known = compile_regex(expression);
            known = before == nullptr ? known : automaton::either(*known, *before);
        }
        return known.get();
    }

    // ---- members

    // `id` repeats arguments, or may hold one and repeat others behind it.
    text_t members(parser_id id, const place & at) {
        parser_id first = std::get<common_peg_repetition_parser>(tree_.get(id)).child;
        parser_id next = first;
        if (std::get<common_peg_repetition_parser>(tree_.get(id)).max_count == 1) {
            const auto * sequence = as<common_peg_sequence_parser>(tree_.get(first));
            const auto * rest = sequence == nullptr || sequence->children.size() != 2 ? nullptr : as<common_peg_repetition_parser>(tree_.get(sequence->children[1]));
            if (rest == nullptr) {
                throw unknown_notation();
            }
            first = sequence->children[0];
            next = rest->child;
        }
        const auto arguments = tree_.arguments_in(first);
        return any_object(at.value, [&](const schema::object_node & o) {
            return all_members(o, [&](const std::string & name, uint32_t value, way & w) {
                if (arguments.count(name) == 0) {
                    return;
                }
                w.first = member_rule(first, name, value, at);
                w.next = next == first ? w.first : member_rule(next, name, value, at);
            }, {});
        });
    }

    text_t member_rule(parser_id id, const std::string & name, uint32_t value, const place & at) {
        const auto [known, is_new] = known_members_.try_emplace({schema_.get(), id, name, value});
        if (is_new) {
            place there;
            there.depth = at.depth;
            there.value = value;
            there.only = name;
            const text_t text = spell(id, there);
            const text_t rule = text ? text_t(rules.add(*text)) : std::nullopt;
            known_members_[{schema_.get(), id, name, value}] = rule;
            return rule;
        }
        return known->second;
    }

    // One of the objects that a value may be.
    template <typename F>
    text_t any_object(uint32_t value, F spell_one) {
        std::vector<std::string> ways;
        for (const uint32_t id : node(value).objects) {
            if (const text_t one = schema_->objects[id].nesting == NEVER_MET ? std::nullopt : spell_one(schema_->objects[id])) {
                ways.push_back(*one);
            }
        }
        return call_rules::any_of(ways);
    }

    // `others`: members that are not listed, if they can be written, to be repeated at the end.
    template <typename F>
    text_t all_members(const schema::object_node & o, F spell_member, const std::vector<way> & others) {
        std::vector<way> ways;
        for (size_t i = 0; i < o.listed.size(); i++) {
            const schema::property & p = o.listed[i];
            way w = {{}, {}, p.required || (i >= o.n_ordered && (o.required_later >> (i - o.n_ordered) & 1) != 0)};
            if (node(p.value).nesting != NEVER_MET) {
                spell_member(p.name, p.value, w);
            }
            if (w.first && w.next) {
                ways.push_back(std::move(w));
            } else if (w.required) {
                return std::nullopt;
            }
        }
        const uint32_t most = std::min<uint32_t>(o.most, INFINITE);
        if (!others.empty()) {
            lost_ = lost_ || o.least > 0 || o.n_others != INFINITE || most != INFINITE; // as many as there may be
            return rules.in_order(ways, 0, INFINITE, others, lost_);
        }
        if (o.least > ways.size()) {
            return std::nullopt;
        }
        const uint32_t upper = most < ways.size() ? most : INFINITE;
        return ways.size() <= MAX_PERMUTED ? rules.in_any_order(ways, o.least, upper) : rules.in_order(ways, o.least, upper, {}, lost_);
    }

    // ---- items

    template <typename F>
    text_t any_array(uint32_t value, const std::string & separator, F spell_item) {
        std::vector<std::string> ways;
        for (const uint32_t id : node(value).arrays) {
            const schema::array_node & a = schema_->arrays[id];
            lost_ = lost_ || a.unique || !a.contains.empty();
            if (const text_t one = a.nesting == NEVER_MET ? std::nullopt : items(a, separator, spell_item)) {
                ways.push_back(*one);
            }
        }
        return call_rules::any_of(ways);
    }

    template <typename F>
    text_t items(const schema::array_node & a, const std::string & separator, F spell_item) {
        const uint32_t last = uint32_t(a.places.size() - 1);
        const bool too_many = a.least > MAX_COUNTED || (a.most != INFINITE && a.most > MAX_COUNTED) || last > MAX_COUNTED;
        if (last > MAX_COUNTED) {
            throw unknown_notation();
        }
        lost_ = lost_ || too_many;
        const uint32_t least = std::min(a.least, MAX_COUNTED);
        const uint32_t most = a.most > MAX_COUNTED ? INFINITE : a.most;
        std::vector<text_t> ways;
        for (uint32_t i = 0; i <= last; i++) {
            std::string any;
            for (const schema::item_choice & choice : a.places[i]) {
                const text_t one = node(choice.value).nesting == NEVER_MET ? std::nullopt : spell_item(choice.value);
                any += !one ? "" : (any.empty() ? "" : " | ") + *one;
            }
            ways.push_back(any.empty() ? std::nullopt : text_t(rules.add(any)));
        }
        // from the end: what follows when n items are written
        uint32_t n = most != INFINITE ? most : std::max(least, last);
        std::string rest;
        bool possible = true;
        const auto way_of = [&](uint32_t i) { return ways[std::min(i, last)]; };
        const auto with = [&](uint32_t i) { return (i > 0 && !separator.empty() ? separator + " " : "") + *way_of(i); };
        if (most == INFINITE && way_of(n)) { // all that follow are alike
            const size_t more = rules.begin();
            rules.set(more, (separator.empty() ? "" : separator + " ") + *way_of(n) + " " + call_rules::name_of(more) + " | \"\"");
            rest = n == 0 ? rules.add(*way_of(0) + " " + call_rules::name_of(more) + " | \"\"") : call_rules::name_of(more);
        } else {
            rest = "\"\"";
        }
        while (n-- > 0) {
            if (!way_of(n)) {
                if (n < least) {
                    possible = false;
                }
                rest = "\"\"";
                continue;
            }
            rest = rules.add(with(n) + " " + rest + (n >= least ? " | \"\"" : ""));
        }
        return possible ? text_t(rest) : std::nullopt;
    }

    // MiniMax's, each in tags of its own.
    text_t nested_items(parser_id id, const place & at) {
        const auto * repetition = as<common_peg_repetition_parser>(tree_.get(id));
        if (repetition == nullptr) {
            throw unknown_notation();
        }
        return any_array(at.value, "", [&](uint32_t value) -> text_t {
            const auto [known, is_new] = known_items_.try_emplace({schema_.get(), repetition->child, value});
            if (is_new) {
                place there;
                there.value = value;
                there.depth = at.depth;
                const text_t text = spell(repetition->child, there);
                const text_t rule = text ? text_t(rules.add(*text)) : std::nullopt;
                known_items_[{schema_.get(), repetition->child, value}] = rule;
                return rule;
            }
            return known->second;
        });
    }

    // ---- Gemma's objects: names without quotes, strings between marks

    text_t gemma_value(uint32_t value) {
        const bool only_objects = value == 0; // the arguments
        const auto [known, is_new] = known_gemma_.try_emplace({schema_.get(), value}, 0);
        if (!is_new) {
            return call_rules::name_of(known->second);
        }
        const size_t rule = known_gemma_[{schema_.get(), value}] = rules.begin();
        const schema::value_node & v = node(value);
        std::string any;
        const auto add = [&](const text_t & text) { any += !text ? "" : (any.empty() ? "" : " | ") + *text; };
        if (!only_objects) {
            add(json_leaf(value, KIND_NULL | KIND_BOOLEAN | KIND_NUMBER));
            if (!v.strings.empty()) {
                if (const text_t text = text_leaf(value, GEMMA_QUOTE, nullptr)) {
                    add(literal(GEMMA_QUOTE) + " " + *text + " " + literal(GEMMA_QUOTE));
                }
            }
            const text_t list = any_array(value, "\",\"", [&](uint32_t item) { return gemma_value(item); });
            add(list ? text_t("\"[\" " + *list + " \"]\"") : std::nullopt);
        }
        add(any_object(value, [&](const schema::object_node & o) { return gemma_object(o); }));
        if (any.empty()) {
            throw unknown_notation();
        }
        rules.set(rule, any);
        return call_rules::name_of(rule);
    }

    text_t gemma_object(const schema::object_node & o) {
        const auto written = [](const std::string & key, const std::string & value) {
            way w = {key + " \":\" " + value, "\",\" " + key + " \":\" " + value, false};
            return w;
        };
        std::vector<way> others;
        if (o.others && o.n_others > 0) {
            static const automaton_ptr keys = compile_regex("^[^:}{,\\[\\]\"'\\\\\\x00-\\x20\\x7F][^:}{,\\[\\]\"'\\\\\\x00-\\x1F\\x7F]*$");
            std::vector<std::string> names;
            for (const schema::property & p : o.listed) {
                names.push_back(p.name);
            }
            automaton_ptr free = automaton::both(*o.others, *keys);
            if (!names.empty()) {
                free = automaton::both(*free, *automaton::words(names)->complement());
            }
            for (const uint32_t value : marks_of(*o.others)) {
                const automaton_ptr those = automaton::both(*free, *marked(*o.others, value));
                if (those->start() != automaton::DEAD && node(value).nesting != NEVER_MET) {
                    others.push_back(written(add_leaf(those), *gemma_value(value)));
                }
            }
        }
        const text_t all = all_members(o, [&](const std::string & name, uint32_t value, way & w) {
            const bool can_be = !name.empty() && name.find_first_of(":}") == std::string::npos;
            if (can_be) {
                const way both = written(literal(name), *gemma_value(value));
                w.first = both.first;
                w.next = both.next;
            }
        }, others);
        return all ? text_t("\"{\" " + *all + " \"}\"") : std::nullopt;
    }

    static std::set<uint32_t> marks_of(const automaton & names) {
        std::set<uint32_t> marks;
        for (size_t s = 0; s < names.n_states(); s++) {
            if (names.accepts(int32_t(s))) {
                marks.insert(names.mark(int32_t(s)));
            }
        }
        return marks;
    }

    // The words that end in states of that mark.
    static automaton_ptr marked(const automaton & names, uint32_t mark) {
        std::vector<bool> ends(names.n_states());
        for (size_t s = 0; s < ends.size(); s++) {
            ends[s] = names.accepts(int32_t(s)) && names.mark(int32_t(s)) == mark;
        }
        return names.ending_in(ends);
    }

    common_peg_arena & arena_; // borrowed
    call_tree tree_;
    const std::vector<tool_rules> & tools_; // borrowed
    schema_ptr schema_; // of the tool whose arguments are written
    std::set<std::string> placed_; // tools whose arguments have been
    bool lost_ = false; // something that it says is not held to
    std::map<std::tuple<const schema *, uint32_t, uint8_t>, text_t> known_json_;
    std::map<std::tuple<const schema *, uint32_t, std::string, const automaton *>, text_t> known_texts_;
    std::map<std::tuple<const schema *, parser_id, std::string, uint32_t>, text_t> known_members_;
    std::map<std::tuple<const schema *, parser_id, uint32_t>, text_t> known_items_;
    std::map<std::pair<const schema *, uint32_t>, size_t> known_gemma_;
    std::map<std::string, automaton_ptr> before_;
    std::map<std::pair<std::string, const automaton *>, automaton_ptr> excluded_;
};

}  // namespace

// The text that has to follow, as what ends there looks ahead for it; empty: none.
static std::string expected_behind(const call_tree & tree, parser_id id, int depth = 0) {
    const common_peg_parser_variant & parser = tree.get(id);
    if (depth > MAX_DEPTH) {
        return {};
    }
    if (const auto * ahead = as<common_peg_and_parser>(parser)) {
        const auto * text = as<common_peg_literal_parser>(tree.get(ahead->child));
        return text == nullptr ? "" : text->literal;
    }
    const std::vector<parser_id> children = children_of(parser);
    if (children.empty() || as<common_peg_repetition_parser>(parser) != nullptr) {
        return {};
    }
    if (as<common_peg_choice_parser>(parser) == nullptr) {
        return expected_behind(tree, children.back(), depth + 1);
    }
    const std::string first = expected_behind(tree, children.front(), depth + 1);
    const bool all = std::all_of(children.begin(), children.end(), [&](parser_id child) { return expected_behind(tree, child, depth + 1) == first; });
    return all ? first : "";
}

// Grammars know nothing of looking ahead: white space is taken out where a text is expected at once.
static void respect_looks_ahead(common_peg_arena & parser) {
    const call_tree tree(parser);
    for (parser_id id = 0; id < parser.size(); id++) {
        auto * sequence = std::get_if<common_peg_sequence_parser>(&parser.get(id));
        for (size_t i = 1; sequence != nullptr && i + 1 < sequence->children.size(); i++) {
            const auto * next = as<common_peg_literal_parser>(tree.get(sequence->children[i + 1]));
            if (next != nullptr && as<common_peg_space_parser>(tree.get(sequence->children[i])) != nullptr &&
                expected_behind(tree, sequence->children[i - 1]) == next->literal) {
                sequence->children.erase(sequence->children.begin() + ptrdiff_t(i));
            }
        }
    }
}

call_grammar make_call_grammar(common_peg_arena parser, bool lazy, const std::vector<tool_rules> & tools) {
    respect_looks_ahead(parser);
    writer calls(parser, tools);
    calls.run();
    call_grammar made;
    made.gbnf = build_grammar([&](const common_grammar_builder & to) { parser.build_grammar(to, lazy); }) + calls.rules.text();
    made.leaves = std::move(calls.leaves);
    made.loosened = std::move(calls.loosened);
    return made;
}

call_notation notation_of(const common_peg_arena & parser) {
    const call_tree tree(parser);
    return tree.holds(parser.root(), common_chat_peg_minimax_m3_mapper::TOOL_ARG_OBJECT) ? call_notation::nested
           : tree.holds(parser.root(), builder::TOOL_ARG)                                ? call_notation::tagged
                                                                                          : call_notation::json;
}

}  // namespace lm
