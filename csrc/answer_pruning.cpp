#include "answer_pruning.h"

#include <algorithm>

namespace lm {

using builder = common_chat_peg_builder;

namespace {

class pruner {
  public:
    pruner(common_peg_arena & arena, std::optional<parser_id> kept) : arena_(arena), before_(arena), tree_(before_), kept_(kept) {}

    // Whether nothing is left of the node, which has no text in a grammar then: a '?' behind it would mean what stands ahead of it.
    bool prune(parser_id id) {
        id = tree_.follow(id);
        const auto [known, is_new] = known_.try_emplace(id, false); // what holds itself is something
        if (!is_new) {
            return known->second;
        }
        bool is_nothing = false;
        common_peg_parser_variant & node = arena_.get(id);
        if (tree_.is_tag(id, builder::CONTENT)) {
            is_nothing = id != kept_;
        } else if (auto * choice = std::get_if<common_peg_choice_parser>(&node)) {
            is_nothing = prune_choice(choice->children);
        } else if (auto * repetition = std::get_if<common_peg_repetition_parser>(&node)) {
            is_nothing = prune(repetition->child) || is_only_content(repetition->child);
            if (holds_kept(id)) {
                repetition->min_count = repetition->max_count = 1;
            } else if (tree_.holds(repetition->child, builder::REASONING) && !tree_.holds(repetition->child, builder::TOOL)) {
                repetition->max_count = 1;
            }
        } else if (std::holds_alternative<common_peg_epsilon_parser>(node)) {
            is_nothing = true;
        } else if (!tree_.is_tag(id, builder::REASONING)) {
            const std::vector<parser_id> children = children_of(node);
            is_nothing = !children.empty() && prune_all(children);
        }
        if (is_nothing && std::get_if<common_peg_rule_parser>(&node) == nullptr) { // a rule is known by its name
            node = common_peg_epsilon_parser();
        }
        known_[id] = is_nothing;
        return is_nothing;
    }

  private:
    bool holds_kept(parser_id id) const {
        if (!kept_) {
            return false;
        }
        bool held = false;
        tree_.walk(id, [&](parser_id at) {
            held = held || at == kept_;
            return !held;
        });
        return held;
    }

    bool is_only_content(parser_id id) const {
        return !holds_kept(id) && tree_.holds(id, builder::CONTENT) && !tree_.holds(id, builder::TOOL) && !tree_.holds(id, builder::REASONING);
    }

    // Whether words of the notation's own say that content follows.
    bool announces_content(parser_id id) const {
        const auto * sequence = as<common_peg_sequence_parser>(tree_.get(id));
        for (size_t i = 1; sequence != nullptr && i < sequence->children.size(); i++) {
            if (tree_.is_tag(sequence->children[i], builder::CONTENT) && as<common_peg_literal_parser>(tree_.get(sequence->children[i - 1])) != nullptr) {
                return true;
            }
        }
        return false;
    }

    // Those that lead to what is kept; else without those that are content, and with what announces it only if a call comes no
    // other way.
    bool prune_choice(std::vector<parser_id> & children) {
        if (std::any_of(children.begin(), children.end(), [&](parser_id child) { return holds_kept(child); })) {
            children.erase(std::remove_if(children.begin(), children.end(), [&](parser_id child) { return !holds_kept(child); }), children.end());
        }
        const bool calls_alone = std::any_of(children.begin(), children.end(), [&](parser_id child) {
            return tree_.holds(child, builder::TOOL) && !tree_.holds(child, builder::CONTENT);
        });
        children.erase(std::remove_if(children.begin(), children.end(), [&](parser_id child) {
            return is_only_content(child) || (calls_alone && announces_content(child));
        }), children.end());
        return prune_all(children);
    }

    bool prune_all(const std::vector<parser_id> & children) {
        bool is_nothing = true;
        for (const parser_id child : children) {
            const bool child_is_nothing = prune(child);
            is_nothing = is_nothing && child_is_nothing;
        }
        return is_nothing;
    }

    common_peg_arena & arena_;      // borrowed
    const common_peg_arena before_; // as it was
    const call_tree tree_;          // of that
    const std::optional<parser_id> kept_; // a place for content
    std::map<parser_id, bool> known_;
};

}  // namespace

void leave_calls_alone(common_peg_arena & parser) {
    pruner(parser, std::nullopt).prune(parser.root());
}

std::optional<parser_id> leave_one_content(common_peg_arena & parser) {
    const call_tree tree(parser);
    std::optional<parser_id> last;
    tree.walk(parser.root(), [&](parser_id at) {
        last = tree.is_tag(at, builder::CONTENT) ? at : last;
        return !tree.is_tag(at, builder::CONTENT);
    });
    if (last) {
        pruner(parser, last).prune(parser.root());
    }
    return last;
}

}  // namespace lm
