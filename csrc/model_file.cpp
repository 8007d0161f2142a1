#include "model_file.h"

#include "error.h"

#include "hash/hash.h"
#include "llama.h"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <string_view>
#include <sys/stat.h>
#include <unistd.h>
#include <unordered_map>

// Of our patch for gguf.cpp: opens a file, or FILE@OFFSET+SIZE, a part of one, and tells where that begins and how long it is.
FILE * lm_open_part(const char * path, uint64_t * begin, uint64_t * size);

namespace lm {

static constexpr uint64_t MOST_PADDING = 16 << 20;

model_file::model_file(const std::string & path) : header_(gguf_init_from_file(path.c_str(), {true, nullptr})) {
    uint64_t begin = 0;
    if (FILE * file = lm_open_part(path.c_str(), &begin, &file_bytes_)) {
        fclose(file);
    }
    is_aligned_ = begin % uint64_t(sysconf(_SC_PAGESIZE)) == 0;
    bytes_ = file_bytes_;
    if (header_) {
        uint64_t end = 0;
        for (int64_t i = 0; i < gguf_get_n_tensors(header_.get()); i++) {
            end = std::max(end, uint64_t(gguf_get_tensor_offset(header_.get(), i) + gguf_get_tensor_size(header_.get(), i)));
        }
        bytes_ = std::min(file_bytes_, gguf_get_data_offset(header_.get()) + end);
    }
}

bool model_file::can_be_mapped() const {
    return is_aligned_ && file_bytes_ - bytes_ <= MOST_PADDING;
}

uint64_t model_file::tensor_bytes(const char * name) const {
    const int64_t id = header_ ? gguf_find_tensor(header_.get(), name) : -1;
    return id < 0 ? 0 : gguf_get_tensor_size(header_.get(), id);
}

// -1: there is no such key, or it is of another type.
int64_t model_file::find(const std::string & key, gguf_type type) const {
    const int64_t id = header_ ? gguf_find_key(header_.get(), key.c_str()) : -1;
    return id >= 0 && gguf_get_kv_type(header_.get(), id) == type ? id : -1;
}

int64_t model_file::find_array(const std::string & key, gguf_type type) const {
    const int64_t id = find(key, GGUF_TYPE_ARRAY);
    return id >= 0 && gguf_get_arr_type(header_.get(), id) == type ? id : -1;
}

std::string model_file::text(const std::string & key) const {
    const int64_t id = find(key, GGUF_TYPE_STRING);
    return id < 0 ? "" : gguf_get_val_str(header_.get(), id);
}

void model_file::check_vocabulary() const {
    const std::string tokenizer = text("tokenizer.ggml.model");
    const int64_t tokens = find_array("tokenizer.ggml.tokens", GGUF_TYPE_STRING);
    if (tokens < 0 || tokenizer == "none" || tokenizer == "no_vocab") {
        return;
    }
    const size_t n = gguf_get_arr_n(header_.get(), tokens);
    std::unordered_map<std::string_view, size_t> known;
    known.reserve(n);
    std::deque<std::string> made_up; // where the views of empty ones go
    for (size_t i = 0; i < n; i++) {
        std::string_view word = gguf_get_arr_str(header_.get(), tokens, i);
        if (word.empty()) {
            word = made_up.emplace_back("[EMPTY_" + std::to_string(i) + "]"); // llama.cpp's name for it
        }
        const auto [first, is_new] = known.emplace(word, i);
        if (!is_new) {
            throw error("load_failed", "tokens " + std::to_string(first->second) + " and " + std::to_string(i) +
                                           " of its vocabulary are the same");
        }
    }
    const int64_t types = find_array("tokenizer.ggml.token_type", GGUF_TYPE_INT32);
    if (tokenizer == "bert" && types >= 0) {
        const auto * type = static_cast<const int32_t *>(gguf_get_arr_data(header_.get(), types));
        const auto * end = type + gguf_get_arr_n(header_.get(), types);
        const auto * byte = std::find(type, end, int32_t(LLAMA_TOKEN_TYPE_BYTE));
        if (byte != end) {
            throw error("load_failed", "token " + std::to_string(byte - type) + " of its vocabulary is a byte, which its tokenizer '" +
                                           tokenizer + "' does not know");
        }
    }
}

std::string model_file::experts_key(int32_t n_experts) const {
    if (!header_) {
        return {}; // the load itself will fail
    }
    const std::string arch = text("general.architecture");
    const int64_t count_id = find(arch + ".expert_count", GGUF_TYPE_UINT32);
    const uint32_t count = count_id < 0 ? 0 : gguf_get_val_u32(header_.get(), count_id);
    if (count == 0) {
        throw invalid_request("n_experts", "this model has no experts");
    }
    if (uint32_t(n_experts) > count) {
        throw invalid_request("n_experts", "this model has " + std::to_string(count) + " experts");
    }
    const std::string key = arch + ".expert_used_count";
    if (find(key, GGUF_TYPE_ARRAY) >= 0) {
        throw invalid_request("n_experts", "this model's layers differ in their number of experts, which cannot be changed");
    }
    return key;
}

// Of a gigabyte in a few milliseconds. A header with a large vocabulary is longer than an end, but the places between are of it
// then, too.
static constexpr uint64_t FINGERPRINT_END = 1 << 20;
static constexpr uint64_t FINGERPRINT_SAMPLE = 1 << 12;
static constexpr uint64_t FINGERPRINT_SAMPLES = 62;

std::string fingerprint(const std::string & path) {
    uint64_t begin = 0;
    uint64_t size = 0;
    const std::unique_ptr<FILE, int (*)(FILE *)> file(lm_open_part(path.c_str(), &begin, &size), fclose);
    struct stat about;
    if (file == nullptr || fstat(fileno(file.get()), &about) != 0) {
        return {};
    }
    std::string seen = std::to_string(size) + ' ' + std::to_string(int64_t(about.st_mtime)) + '\n';
    const auto see = [&](uint64_t at, uint64_t n) {
        const size_t before = seen.size();
        at = std::min(at, size);
        seen.resize(before + std::min(n, size - at));
        const ssize_t got = pread(fileno(file.get()), seen.data() + before, seen.size() - before, off_t(begin + at));
        return got >= 0 && size_t(got) == seen.size() - before;
    };
    bool all = see(0, FINGERPRINT_END) && see(size - std::min(size, FINGERPRINT_END), FINGERPRINT_END);
    for (uint64_t i = 1; all && i <= FINGERPRINT_SAMPLES; i++) {
        all = see(size / (FINGERPRINT_SAMPLES + 1) * i, FINGERPRINT_SAMPLE);
    }
    return all ? hash_sha256_hex(seen.data(), seen.size()) : std::string();
}

}  // namespace lm
