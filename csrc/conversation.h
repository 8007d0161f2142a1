// Conversations in the forms that strict templates take: some insist on turns that alternate, on one system message at the
// beginning, on tool-call ids of nine letters and digits, on one call per message; others drop what they do not expect.
#pragma once

#include "chat.h"

#include <string>
#include <string_view>
#include <vector>

namespace lm {

using conversation = std::vector<common_chat_msg>;

// One way to make a conversation easier to take; nothing that anybody said is lost by it.
struct mending {
    bool (*apply)(conversation & messages); // false: it changes nothing
    bool brings_back; // it can bring back what a template would silently leave out
};

// In the order to try them in.
const std::vector<mending> & mendings();

// Whether a template that was given `messages` left out of `prompt` what the system said or a tool gave.
bool is_some_lost(const conversation & messages, const std::string & prompt);

// Gives the tools' results that have none the names of the tools, which some templates write and few clients send.
void name_results(conversation & messages);

// What a message says besides its calls as a message of its own.
void part_calls_from_text(conversation & messages);

// The beginning of a text without white space around it, which tells it from others: templates trim.
std::string_view beginning_of(const std::string & text);

}  // namespace lm
