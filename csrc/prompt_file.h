// One file of the prompt cache on the disk: the state of a prompt's tokens from `begin` to `end`, and what these are.
//
// Its digest stands for the model and all else that the state depends on, for the caller's scope, and for every token up to
// `end`; the file is named by it. Nothing of a file is used before its length, header, tokens and checksums were found right,
// and no more is allocated for it than it has bytes.
#pragma once

#include "llama.h"

#include <array>
#include <cstdint>
#include <string>
#include <vector>

extern "C" {
#include "hash/sha256/sha256.h"
}

namespace lm {

// A piece takes as much memory on its way. A file may say to be as large as it likes and have nothing on the disk.
static constexpr uint64_t MOST_STATE_BYTES = 256u << 20;

using prompt_digest = std::array<uint8_t, 32>;

// Digests of longer and longer beginnings of one prompt.
class prompt_digester {
  public:
    // `model` and `key`: what besides the tokens the state depends on, and who may see it.
    prompt_digester(const std::string & model, const std::string & key);

    void push(const llama_token * tokens, size_t n);
    prompt_digest digest() const; // of all that was pushed

  private:
    sha256_t state_;
};

struct prompt_beginning {
    uint32_t end;
    prompt_digest digest;
};

std::string to_hex(const uint8_t * bytes, size_t n);

struct prompt_piece {
    prompt_digest digest{};
    uint32_t begin = 0;
    uint32_t end = 0;
    std::vector<llama_token> tokens; // from `begin` to `end`
    std::vector<uint8_t> state;

    uint64_t file_bytes() const;
};

// What the file of a piece is called: 32 hexadecimal digits, "-" and its end.
std::string prompt_file_name(const prompt_digest & digest, uint32_t end);
// The end in a name of that form; 0: it is none.
uint32_t end_in_name(const std::string & name);

// Into an empty file. False, and errno says why, if it did not get there whole.
bool write_prompt_file(int fd, const prompt_piece & piece);

enum class prompt_read { good, damaged, failed }; // failed: the disk or the memory, perhaps not the file
// `piece` says what is expected of the file, all but the state, which is read if it is good. What `state` held is overwritten.
prompt_read read_prompt_file(int fd, prompt_piece & piece);

}  // namespace lm
