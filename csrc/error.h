// The one exception type of ours: a code of csrc/protocol.md's ERROR table, a message, and details as JSON text.
#pragma once

#include <stdexcept>
#include <string>

namespace lm {

struct error : std::runtime_error {
    error(std::string code, const std::string & message, std::string details = "{}")
        : std::runtime_error(message), code(std::move(code)), details(std::move(details)) {}

    // The ERROR event.
    std::string payload() const;

    std::string code;
    std::string details; // a JSON object
};

// A value of a request that is outside its range; `param` names it.
struct invalid_request : error {
    invalid_request(const std::string & param, const std::string & message);
};

// A picture or a sound that cannot be taken: the `index`th of the request.
struct media_error : error {
    media_error(size_t index, const std::string & message);
};

struct context_overflow : error {
    context_overflow(size_t needed, size_t limit);
    context_overflow(size_t needed, size_t limit, size_t index);

    size_t needed;
    size_t limit;
};

}  // namespace lm
