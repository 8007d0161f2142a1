// The frame table: every kind once, as lmlite/core/frames.py spells it too (a test holds the two against each other).
// Header, little-endian: payload length in bytes (u32), kind (u32), request id (u32; 0 where no request is meant).
#pragma once

#include <cstddef>
#include <cstdint>

namespace lm {

#define LM_FRAME_KINDS(X) \
    X(LOAD, 1)            \
    X(GENERATE, 2)        \
    X(EMBED, 3)           \
    X(TOKENIZE, 4)        \
    X(DETOKENIZE, 5)      \
    X(RENDER, 6)          \
    X(CANCEL, 7)          \
    X(STATS, 8)           \
    X(RERANK, 9)          \
    X(ATTACH_DRAFT, 10)   \
    X(ESTIMATE, 11)       \
    X(MEDIA, 12)          \
    X(LOAD_PROGRESS, 64)  \
    X(LOADED, 65)         \
    X(PROMPT_PROGRESS, 66) \
    X(TEXT, 67)           \
    X(LOGPROBS, 68)       \
    X(FINISHED, 69)       \
    X(EMBEDDING, 70)      \
    X(TOKENS, 71)         \
    X(RESULT, 72)         \
    X(REPORT, 73)         \
    X(HEARTBEAT, 74)      \
    X(ERROR, 75)          \
    X(REASONING, 76)      \
    X(TOOL_CALL, 77)      \
    X(ESTIMATED, 78)      \
    X(NOTICE, 79)

enum class frame_kind : uint32_t {
#define X(name, value) name = value,
    LM_FRAME_KINDS(X)
#undef X
};

constexpr size_t FRAME_HEADER_SIZE = 12;
constexpr uint32_t MAX_PAYLOAD = 64u << 20; // above any real frame, below what would hurt to buffer

}  // namespace lm
