// The tree by which llama.cpp reads answers, and where in it the parts of calls stand.
#pragma once

#include "chat-peg-parser.h"

#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace lm {

using parser_id = common_peg_parser_id;

template <typename T>
const T * as(const common_peg_parser_variant & parser) {
    return std::get_if<T>(&parser);
}

std::vector<parser_id> children_of(const common_peg_parser_variant & parser);

// Rules are gone into; they may hold themselves.
class call_tree {
  public:
    explicit call_tree(const common_peg_arena & arena) : arena_(arena) {}

    const common_peg_parser_variant & get(parser_id id) const { return arena_.get(follow(id)); }
    parser_id follow(parser_id id) const {
        const auto * ref = as<common_peg_ref_parser>(arena_.get(id));
        return ref == nullptr ? id : arena_.get_rule(ref->name);
    }
    const std::string * tag(parser_id id) const {
        const auto * tag = as<common_peg_tag_parser>(get(id));
        return tag == nullptr ? nullptr : &tag->tag;
    }
    bool is_tag(parser_id id, const char * name) const {
        const std::string * own = tag(id);
        return own != nullptr && *own == name;
    }

    // Calls `visit` with each node below that one, itself included, until it says to go no deeper there.
    template <typename F>
    void walk(parser_id id, F visit) const {
        std::set<parser_id> seen;
        walk(id, visit, seen);
    }
    // Whether a tag stands there or below. What holds itself holds no tags.
    bool holds(parser_id id, const char * name) const { return holds(follow(id), name, held_[name]); }
    // The text of a literal below, which is all that a name is.
    std::string text_in(parser_id id) const;
    // The arguments below, by name; not those within them.
    std::map<std::string, parser_id> arguments_in(parser_id id) const;

  private:
    bool holds(parser_id id, const char * name, std::unordered_map<parser_id, bool> & known) const;

    template <typename F>
    void walk(parser_id id, F & visit, std::set<parser_id> & seen) const {
        id = follow(id);
        if (!seen.insert(id).second || !visit(id)) {
            return;
        }
        for (const parser_id child : children_of(arena_.get(id))) {
            walk(child, visit, seen);
        }
    }

    const common_peg_arena & arena_; // borrowed
    mutable std::map<std::string, std::unordered_map<parser_id, bool>> held_; // by the tag
};

}  // namespace lm
