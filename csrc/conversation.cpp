#include "conversation.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <set>
#include <utility>

namespace lm {

static constexpr size_t ID_LENGTH = 9; // Mistral's

static constexpr char BETWEEN[] = "\n\n"; // what was several messages or parts of one

static common_chat_msg say(const char * role, std::string text = {}) {
    common_chat_msg message;
    message.role = role;
    message.content = std::move(text);
    return message;
}

static bool is_text(const common_chat_msg_content_part & part) {
    return part.type == "text";
}

static bool join_texts(common_chat_msg & message) {
    const bool only_texts = std::all_of(message.content_parts.begin(), message.content_parts.end(), is_text);
    if (message.content_parts.empty() || !only_texts) {
        return false;
    }
    message.content = message.render_content("\n");
    message.content_parts.clear();
    return true;
}

static void append(std::string & text, const std::string & more) {
    text += (text.empty() || more.empty() ? "" : BETWEEN) + more;
}

static void append_content(common_chat_msg & message, common_chat_msg more) {
    if (message.content_parts.empty() && more.content_parts.empty()) {
        return append(message.content, more.content);
    }
    for (common_chat_msg * one : {&message, &more}) {
        if (!one->content.empty()) {
            one->content_parts.insert(one->content_parts.begin(), {"text", std::exchange(one->content, {})});
        }
    }
    message.content_parts.insert(message.content_parts.end(), more.content_parts.begin(), more.content_parts.end());
}

static bool is_system(const common_chat_msg & message) {
    return message.role == "system" || message.role == "developer";
}

// The calls of the last message that has some, and which of them are answered. A result without the id of a call is that of
// the first one that has none yet.
class open_calls {
  public:
    struct call {
        std::string given; // its id
        std::string name;
        std::string id = {};
        bool answered = false;
    };

    void begin(const common_chat_msg & message) {
        if (!message.tool_calls.empty()) {
            calls_.clear();
        }
        for (const common_chat_tool_call & one : message.tool_calls) {
            calls_.push_back({one.id, one.name});
        }
    }
    // Borrowed; null if there is none that `result` could be of.
    const call * answer(const common_chat_msg & result) {
        auto found = std::find_if(calls_.begin(), calls_.end(), [&](const call & c) {
            return !c.given.empty() && c.given == result.tool_call_id;
        });
        if (found == calls_.end()) {
            found = std::find_if(calls_.begin(), calls_.end(), [](const call & c) { return !c.answered; });
        }
        if (found == calls_.end()) {
            return nullptr;
        }
        found->answered = true;
        return &*found;
    }
    call & operator[](size_t i) { return calls_[i]; }

  private:
    std::vector<call> calls_;
};

void name_results(conversation & messages) {
    open_calls open;
    for (common_chat_msg & message : messages) {
        if (message.role != "tool") {
            open.begin(message);
        } else if (const open_calls::call * call = open.answer(message); call != nullptr && message.tool_name.empty()) {
            message.tool_name = call->name;
        }
    }
}

void part_calls_from_text(conversation & messages) {
    conversation parted;
    for (common_chat_msg & message : messages) {
        const bool says = !message.content.empty() || !message.content_parts.empty();
        if (says && !message.tool_calls.empty()) {
            common_chat_msg calls = say("assistant");
            calls.tool_calls = std::exchange(message.tool_calls, {});
            parted.push_back(std::move(message));
            parted.push_back(std::move(calls));
        } else {
            parted.push_back(std::move(message));
        }
    }
    messages = std::move(parted);
}

// ---- the mendings ----------------------------------------------------------------------------------------------------

static bool join_all_texts(conversation & messages) {
    bool changed = false;
    for (common_chat_msg & message : messages) {
        changed |= join_texts(message);
    }
    return changed;
}

static bool is_strict_id(const std::string & id) {
    return id.size() == ID_LENGTH && std::all_of(id.begin(), id.end(), [](unsigned char c) { return c < 0x80 && std::isalnum(c); });
}

// Ids that are right already stay as they are, the others are counted: a conversation that goes on keeps what it had.
static bool number_calls(conversation & messages) {
    std::set<std::string> taken;
    for (const common_chat_msg & message : messages) {
        for (const common_chat_tool_call & call : message.tool_calls) {
            taken.insert(call.id);
        }
    }
    size_t n = 0;
    const auto next_id = [&] {
        for (;;) {
            const std::string digits = std::to_string(n++);
            const std::string id = "call" + std::string(5 - std::min<size_t>(digits.size(), 5), '0') + digits;
            if (taken.count(id) == 0) {
                return id;
            }
        }
    };
    bool changed = false;
    open_calls open;
    for (common_chat_msg & message : messages) {
        if (message.role == "tool") {
            const open_calls::call * call = open.answer(message);
            const std::string id = call != nullptr                       ? call->id
                                   : is_strict_id(message.tool_call_id) ? message.tool_call_id
                                                                        : next_id();
            changed |= id != message.tool_call_id;
            message.tool_call_id = id;
            continue;
        }
        open.begin(message);
        for (size_t i = 0; i < message.tool_calls.size(); i++) {
            std::string & id = message.tool_calls[i].id;
            if (!is_strict_id(id)) {
                id = next_id();
                changed = true;
            }
            open[i].id = id;
        }
    }
    return changed;
}

// Several calls of one message as several messages, each with its result behind it.
static bool split_calls(conversation & messages) {
    conversation split;
    bool changed = false;
    for (size_t i = 0; i < messages.size(); i++) {
        common_chat_msg & message = messages[i];
        if (message.tool_calls.size() < 2) {
            split.push_back(std::move(message));
            continue;
        }
        changed = true;
        std::vector<common_chat_tool_call> calls = std::exchange(message.tool_calls, {});
        conversation results;
        while (i + 1 < messages.size() && messages[i + 1].role == "tool") {
            results.push_back(std::move(messages[++i]));
        }
        for (size_t n = 0; n < calls.size(); n++) {
            common_chat_msg one = n == 0 ? std::move(message) : say("assistant");
            one.tool_calls = {calls[n]};
            split.push_back(std::move(one));
            auto result = std::find_if(results.begin(), results.end(),
                                       [&](const auto & r) { return !calls[n].id.empty() && r.tool_call_id == calls[n].id; });
            if (result == results.end() && calls.size() == n + results.size()) {
                result = results.begin(); // nobody says which: in their order
            }
            if (result != results.end()) {
                split.push_back(std::move(*result));
                results.erase(result);
            }
        }
        std::move(results.begin(), results.end(), std::back_inserter(split));
    }
    messages = std::move(split);
    return changed;
}

// All that the system says as one message at the beginning.
static bool gather_system(conversation & messages) {
    const size_t n = size_t(std::count_if(messages.begin(), messages.end(), is_system));
    if (n == 0 || (n == 1 && is_system(messages.front()))) {
        return false;
    }
    common_chat_msg system = say("system");
    conversation others;
    for (common_chat_msg & message : messages) {
        if (!is_system(message)) {
            others.push_back(std::move(message));
            continue;
        }
        join_texts(message);
        append_content(system, std::move(message));
    }
    others.insert(others.begin(), std::move(system));
    messages = std::move(others);
    return true;
}

// A result that follows no call gets one: clients leave out the beginning of long conversations.
static bool call_for_orphans(conversation & messages) {
    conversation whole;
    bool follows_call = false;
    bool changed = false;
    for (common_chat_msg & message : messages) {
        const bool is_result = message.role == "tool";
        if (is_result && !follows_call) {
            common_chat_msg calling = say("assistant");
            if (message.tool_name.empty()) {
                message.tool_name = "tool";
            }
            calling.tool_calls = {{message.tool_name, "{}", message.tool_call_id}};
            whole.push_back(std::move(calling));
            changed = true;
        }
        follows_call = is_result || !message.tool_calls.empty();
        whole.push_back(std::move(message));
    }
    messages = std::move(whole);
    return changed;
}

static bool merge_neighbours(conversation & messages) {
    conversation merged;
    for (common_chat_msg & message : messages) {
        const bool same = !merged.empty() && merged.back().role == message.role && merged.back().tool_calls.empty() &&
                          (message.role == "user" || message.role == "assistant");
        if (!same) {
            merged.push_back(std::move(message));
            continue;
        }
        common_chat_msg & before = merged.back();
        append(before.reasoning_content, message.reasoning_content);
        before.tool_calls = std::move(message.tool_calls);
        append_content(before, std::move(message));
    }
    const bool changed = merged.size() < messages.size();
    messages = std::move(merged);
    return changed;
}

// Where turns must alternate, who had nothing to say said nothing.
static bool alternate(conversation & messages) {
    const bool merged = merge_neighbours(messages);
    conversation filled;
    bool is_users_turn = true;
    for (common_chat_msg & message : messages) {
        const bool is_user = message.role == "user";
        if (is_user || message.role == "assistant") {
            if (is_user != is_users_turn) {
                filled.push_back(say(is_user ? "assistant" : "user"));
            }
            is_users_turn = !is_user && message.tool_calls.empty(); // a call is no answer yet
        }
        filled.push_back(std::move(message));
    }
    const bool changed = merged || filled.size() > messages.size();
    messages = std::move(filled);
    return changed;
}

// A conversation without a user's word: what it begins with is said by one.
static bool speak_as_user(conversation & messages) {
    if (messages.size() != 1 || !is_system(messages.front())) {
        return false;
    }
    messages.front().role = "user";
    return true;
}

const std::vector<mending> & mendings() {
    static const std::vector<mending> all = {
        {join_all_texts, true}, {gather_system, true}, {call_for_orphans, true}, {merge_neighbours, false},
        {alternate, false},     {number_calls, false}, {split_calls, false},     {speak_as_user, true},
    };
    return all;
}

// ---- what is left out ------------------------------------------------------------------------------------------------

std::string_view beginning_of(const std::string & text) {
    constexpr size_t TELLING = 64;
    const size_t begin = std::min(text.find_first_not_of(" \t\r\n"), text.size());
    const size_t end = text.find_last_not_of(" \t\r\n") + 1;
    return std::string_view(text).substr(begin, std::min(end - std::min(begin, end), TELLING));
}

bool is_some_lost(const conversation & messages, const std::string & prompt) {
    return std::any_of(messages.begin(), messages.end(), [&](const common_chat_msg & message) {
        if (!is_system(message) && message.role != "tool") {
            return false;
        }
        const auto is_lost = [&](const std::string & text) { return prompt.find(beginning_of(text)) == std::string::npos; };
        return is_lost(message.content) || std::any_of(message.content_parts.begin(), message.content_parts.end(),
                                                        [&](const auto & part) { return is_text(part) && is_lost(part.text); });
    });
}

}  // namespace lm
