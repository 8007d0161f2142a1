#include "stb_decoder.h"

#include <climits>
#include <cstdlib>
#include <cstring>

namespace {

// Of the picture that this thread decodes. Each block begins with its size.
thread_local uint64_t bytes_left = 0;
constexpr size_t HEAD = 16;

size_t & size_of_block(void * block) {
    return *reinterpret_cast<size_t *>(static_cast<char *>(block) - HEAD);
}

// Zeros, because a broken file leaves parts of a picture unwritten: nobody must see there what the process had in memory before.
void * counted_alloc(size_t size) {
    if (size > bytes_left) {
        return nullptr;
    }
    char * whole = static_cast<char *>(calloc(1, size + HEAD));
    if (whole == nullptr) {
        return nullptr;
    }
    bytes_left -= size;
    size_of_block(whole + HEAD) = size;
    return whole + HEAD;
}

void counted_free(void * block) {
    if (block != nullptr) {
        bytes_left += size_of_block(block);
        free(static_cast<char *>(block) - HEAD);
    }
}

void * counted_realloc(void * block, size_t size) {
    if (block == nullptr) {
        return counted_alloc(size);
    }
    const size_t before = size_of_block(block);
    if (size > before && size - before > bytes_left) {
        return nullptr;
    }
    char * whole = static_cast<char *>(realloc(static_cast<char *>(block) - HEAD, size + HEAD));
    if (whole == nullptr) {
        return nullptr;
    }
    bytes_left += before;
    bytes_left -= size;
    size_of_block(whole + HEAD) = size;
    return whole + HEAD;
}

}  // namespace

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC // mtmd has a copy of its own
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_MAX_DIMENSIONS 65535
#define STBI_ASSERT(x)
#if defined(__aarch64__)
#define STBI_NEON // every such machine has it; on x86-64 the like is on by itself
#endif
#define STBI_MALLOC(size) counted_alloc(size)
#define STBI_REALLOC(block, size) counted_realloc(block, size)
#define STBI_FREE(block) counted_free(block)
#include "stb/stb_image.h"

namespace lm {

void stb_pixels::deleter::operator()(uint8_t * bytes) const {
    counted_free(bytes);
}

stb_pixels stb_decode(std::string_view file, int channels, uint64_t memory) {
    stb_pixels result;
    if (file.size() > INT_MAX) {
        return result;
    }
    bytes_left = memory;
    stbi__g_failure_reason = nullptr; // not every way of failing sets one
    int width = 0;
    int height = 0;
    const auto * bytes = reinterpret_cast<const uint8_t *>(file.data());
    result.bytes.reset(stbi_load_from_memory(bytes, int(file.size()), &width, &height, nullptr, channels));
    result.width = uint32_t(width);
    result.height = uint32_t(height);
    if (!result.bytes) {
        const char * reason = stbi_failure_reason();
        result.failure = reason == nullptr ? "its parts do not fit together" : strcmp(reason, "outofmem") == 0 ? "" : reason;
    }
    return result;
}

}  // namespace lm
