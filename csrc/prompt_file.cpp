#include "prompt_file.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <sys/stat.h>
#include <unistd.h>

#include "hash/xxhash/xxhash.h"

namespace lm {

// The number is that of this layout. What else the state's own form depends on is part of the digest.
static constexpr char MAGIC[16] = {'l', 'm', 'l', 'i', 't', 'e', ' ', 'p', 'r', 'o', 'm', 'p', 't', ' ', '1', '\n'};

// One read or write takes so much at most, so that a disk that answers slowly is not asked for more than can be waited for.
static constexpr size_t PORTION = 4u << 20;

using checksum = std::array<uint8_t, 16>;

// As it lies in the file: in the machine's own order of bytes, as the state itself does.
struct file_header {
    char magic[16];
    prompt_digest digest;
    uint32_t begin;
    uint32_t end;
    uint64_t state_bytes;
    checksum tokens_sum;
    checksum state_sum;
    checksum header_sum; // of all before
};
static_assert(sizeof(file_header) == 112, "nothing of it is padding");

static checksum sum_of(const void * bytes, size_t n) {
    const XXH128_hash_t hash = XXH3_128bits(bytes, n);
    XXH128_canonical_t spelled;
    XXH128_canonicalFromHash(&spelled, hash);
    checksum sum;
    static_assert(sizeof spelled.digest == sizeof(checksum), "both are 128 bits");
    std::copy(std::begin(spelled.digest), std::end(spelled.digest), sum.begin());
    return sum;
}

static file_header header_of(const prompt_piece & piece) {
    file_header header{};
    std::copy(std::begin(MAGIC), std::end(MAGIC), header.magic);
    header.digest = piece.digest;
    header.begin = piece.begin;
    header.end = piece.end;
    header.state_bytes = piece.state.size();
    header.tokens_sum = sum_of(piece.tokens.data(), piece.tokens.size() * sizeof(llama_token));
    header.state_sum = sum_of(piece.state.data(), piece.state.size());
    header.header_sum = sum_of(&header, offsetof(file_header, header_sum));
    return header;
}

// ---- names --------------------------------------------------------------------------------------------------------------

prompt_digester::prompt_digester(const std::string & model, const std::string & key) {
    sha256_init(&state_);
    for (const std::string & text : {model, key}) { // with their lengths: no other pair reads the same
        const uint64_t n = text.size();
        sha256_update(&state_, reinterpret_cast<const unsigned char *>(&n), sizeof n);
        sha256_update(&state_, reinterpret_cast<const unsigned char *>(text.data()), text.size());
    }
}

void prompt_digester::push(const llama_token * tokens, size_t n) {
    sha256_update(&state_, reinterpret_cast<const unsigned char *>(tokens), n * sizeof(llama_token));
}

prompt_digest prompt_digester::digest() const {
    sha256_t copy = state_;
    prompt_digest digest;
    sha256_final(&copy, digest.data());
    return digest;
}

std::string to_hex(const uint8_t * bytes, size_t n) {
    static constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (size_t i = 0; i < n; i++) {
        text += digits[bytes[i] >> 4];
        text += digits[bytes[i] & 15];
    }
    return text;
}

static constexpr size_t NAME_DIGITS = 32;
static constexpr size_t MOST_END_DIGITS = 9;

std::string prompt_file_name(const prompt_digest & digest, uint32_t end) {
    return to_hex(digest.data(), NAME_DIGITS / 2) + "-" + std::to_string(end);
}

uint32_t end_in_name(const std::string & name) {
    const auto is_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    if (name.size() < NAME_DIGITS + 2 || name.size() > NAME_DIGITS + 1 + MOST_END_DIGITS || name[NAME_DIGITS] != '-' ||
        !std::all_of(name.begin(), name.begin() + NAME_DIGITS, is_hex) ||
        !std::all_of(name.begin() + NAME_DIGITS + 1, name.end(), is_digit)) {
        return 0;
    }
    return uint32_t(strtoul(name.c_str() + NAME_DIGITS + 1, nullptr, 10));
}

// ---- writing and reading --------------------------------------------------------------------------------------------------

uint64_t prompt_piece::file_bytes() const {
    return sizeof(file_header) + tokens.size() * sizeof(llama_token) + state.size();
}

static bool write_all(int fd, const void * bytes, size_t n) {
    const auto * from = static_cast<const uint8_t *>(bytes);
    while (n > 0) {
        const ssize_t written = ::write(fd, from, std::min(n, PORTION));
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written <= 0) {
            errno = written == 0 ? ENOSPC : errno;
            return false;
        }
        from += written;
        n -= size_t(written);
    }
    return true;
}

// False with errno 0: the file ended.
static bool read_all(int fd, void * bytes, size_t n) {
    auto * into = static_cast<uint8_t *>(bytes);
    while (n > 0) {
        const ssize_t got = ::read(fd, into, std::min(n, PORTION));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            errno = got == 0 ? 0 : errno;
            return false;
        }
        into += got;
        n -= size_t(got);
    }
    return true;
}

bool write_prompt_file(int fd, const prompt_piece & piece) {
    const file_header header = header_of(piece);
    return write_all(fd, &header, sizeof header) && write_all(fd, piece.tokens.data(), piece.tokens.size() * sizeof(llama_token)) &&
           write_all(fd, piece.state.data(), piece.state.size());
}

static prompt_read why_not() {
    return errno == 0 ? prompt_read::damaged : prompt_read::failed;
}

prompt_read read_prompt_file(int fd, prompt_piece & piece) {
    struct stat about;
    if (::fstat(fd, &about) != 0) {
        return prompt_read::failed;
    }
    if (!S_ISREG(about.st_mode)) {
        return prompt_read::damaged;
    }
    file_header header;
    if (!read_all(fd, &header, sizeof header)) {
        return why_not();
    }
    const size_t n_token_bytes = piece.tokens.size() * sizeof(llama_token);
    const uint64_t n_before = sizeof header + n_token_bytes;
    if (!std::equal(std::begin(MAGIC), std::end(MAGIC), header.magic) ||
        header.header_sum != sum_of(&header, offsetof(file_header, header_sum)) || header.digest != piece.digest ||
        header.begin != piece.begin || header.end != piece.end || about.st_size < off_t(n_before) ||
        header.state_bytes != uint64_t(about.st_size) - n_before || header.state_bytes == 0 ||
        header.state_bytes > MOST_STATE_BYTES) {
        return prompt_read::damaged;
    }
    try {
        std::vector<llama_token> tokens(piece.tokens.size());
        if (!read_all(fd, tokens.data(), n_token_bytes)) {
            return why_not();
        }
        if (tokens != piece.tokens) {
            return prompt_read::damaged;
        }
        piece.state.resize(header.state_bytes);
    } catch (const std::bad_alloc &) {
        return prompt_read::failed;
    }
    if (!read_all(fd, piece.state.data(), piece.state.size())) {
        return why_not();
    }
    const bool good = header.state_sum == sum_of(piece.state.data(), piece.state.size()) &&
                      header.tokens_sum == sum_of(piece.tokens.data(), n_token_bytes);
    return good ? prompt_read::good : prompt_read::damaged;
}

}  // namespace lm
