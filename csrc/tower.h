// What lets a text model see or hear: a projector (llama.cpp's mtmd) that turns pictures and sounds into rows that are computed
// like tokens. It cuts them into parts, each of which is encoded at a time and whole.
#pragma once

#include "media.h"
#include "picture.h"
#include "queue_lock.h"

#include "mtmd.h"

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace lm {

enum class media_kind { picture, sound };

// Counts bytes in a total for as long as it holds them.
class counted_bytes {
  public:
    counted_bytes(std::string bytes, std::shared_ptr<std::atomic<size_t>> total) : bytes_(std::move(bytes)), total_(std::move(total)) {
        *total_ += bytes_.size();
    }
    ~counted_bytes() {
        if (total_) {
            *total_ -= bytes_.size();
        }
    }
    counted_bytes(counted_bytes && other) noexcept : bytes_(std::move(other.bytes_)), total_(std::move(other.total_)) {}
    counted_bytes(const counted_bytes &) = delete;
    counted_bytes & operator=(const counted_bytes &) = delete;

    const std::string & bytes() const { return bytes_; }

  private:
    std::string bytes_;
    std::shared_ptr<std::atomic<size_t>> total_; // null: they have moved on
};
using media_frames = std::vector<counted_bytes>;

// Windows of a sound or parts of a picture, decoded: what is encoded.
using cut_media = std::shared_ptr<const mtmd_input_chunks>;

// A file of a request, as it came.
struct media_file {
    media_kind kind;
    counted_bytes data;
    std::string digest; // of its bytes and the scope of who shows it
    mutable std::shared_ptr<const pixels> decoded = nullptr; // by whoever tried it out, for who encodes it
    mutable cut_media cut = nullptr; // by whoever listened to it, or encoded its first part; until its last one is encoded

    const std::string & bytes() const { return data.bytes(); }
};
using media_file_ptr = std::shared_ptr<const media_file>;
using media_files = std::vector<media_file_ptr>;

// A part of a prompt: a text, or the file of that index.
struct prompt_fragment {
    std::string text;
    bool parse_special = true;
    std::optional<size_t> file = std::nullopt;
};

// The rows of a part, one for each of its cells.
using media_rows = std::shared_ptr<const std::vector<float>>;

using media_chunk = std::shared_ptr<const mtmd_input_chunk>;

// What is encoded at a time.
struct media_part {
    std::string key; // of what is shown, and which part of it: equal ones have equal rows
    media_file_ptr file;
    size_t index = 0;   // of the part, in its file
    bool whole = false; // each cell sees all others: they are computed in one batch
    media_chunk chunk;  // its shape alone
    media_rows rows = nullptr; // null: not encoded yet
};

// A prompt whose media are cells among its tokens; `spans` and `parts` belong together.
struct media_prompt {
    std::vector<llama_token> tokens;
    media_spans spans;
    std::vector<media_part> parts;
};

// What may be asked for again, the last used first, as long as the sizes that it was put in with allow it. Thread safe.
template <typename Value> class recent {
  public:
    explicit recent(size_t most) : most_(most) {}

    // Null: it is not there.
    std::shared_ptr<const Value> get(const std::string & key) {
        std::lock_guard<std::mutex> lock(mutex_);
        const auto found = by_key_.find(key);
        if (found == by_key_.end()) {
            return nullptr;
        }
        entries_.splice(entries_.begin(), entries_, found->second);
        return found->second->value;
    }
    void put(const std::string & key, std::shared_ptr<const Value> value, size_t size) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (size > most_ || by_key_.count(key) > 0) {
            return;
        }
        while (size_ + size > most_) {
            size_ -= entries_.back().size;
            by_key_.erase(entries_.back().key);
            entries_.pop_back();
        }
        entries_.push_front({key, std::move(value), size});
        by_key_[key] = entries_.begin();
        size_ += size;
    }

  private:
    struct entry {
        std::string key;
        std::shared_ptr<const Value> value;
        size_t size;
    };
    const size_t most_;
    std::mutex mutex_;
    size_t size_ = 0; // of all
    std::list<entry> entries_;
    std::unordered_map<std::string, typename std::list<entry>::iterator> by_key_;
};

class tower {
  public:
    struct settings {
        std::string path;
        int32_t n_threads = 1;
        bool use_gpu = true;
        int32_t n_batch = 512; // rows that one batch of the text model can have
        uint64_t picture_memory = MOST_PICTURE_MEMORY; // that decoding a picture may take
    };
    using progress_fn = std::function<bool(float)>; // false cancels
    // Called where an encoding can pause; false ends it.
    using pause_fn = std::function<bool()>;

    // `text` is borrowed and outlives it. Throws error("load_failed") and invalid_request.
    tower(const settings & wanted, const llama_model * text, const progress_fn & progress);
    ~tower();
    tower(const tower &) = delete;
    tower & operator=(const tower &) = delete;

    bool sees() const;
    bool hears() const;
    // What decoding pictures takes at most, at any one time.
    uint64_t picture_memory() const { return picture_memory_; }

    // The prompt with all its media, of which their sizes alone say how many cells they take. Throws media_error for what no
    // projector takes, error("model_type") for what this one does not. Thread safe.
    media_prompt tokenize(const std::vector<prompt_fragment> & fragments, const media_files & files) const;

    // Whether `tokenize` need not analyse it, as it does sounds that it has not met: that takes seconds for minutes of sound, and
    // minutes of a busy machine's time for half an hour.
    bool knows_length(const media_file & file) const { return file.kind != media_kind::sound || sounds_.get(file.digest); }
    // Whether neither `tokenize` nor `encode` has to.
    bool has_heard(const media_file & file) const;
    // So that they have not, if there is room to keep what is decoded. Throws media_error and error("model_type"). Thread safe
    // for a file that nobody else has yet.
    void listen_to(size_t index, const media_files & files) const;

    // Decodes a file ahead of its encoding, before anybody else has it. Throws invalid_request for a broken one.
    void try_out(const media_file_ptr & file) const;

    // The rows of a part, of which its file is decoded; null where `pause` ended it. Throws invalid_request for a broken file,
    // error("internal"). For one thread at a time.
    media_rows encode(const media_part & part, const pause_fn & pause);

    // Position of the row `i` of a part that begins at `first`, in the order that a batch takes them.
    void set_position(const media_part & part, llama_pos first, size_t i, llama_pos position[4]) const;
    // Floats of a row.
    size_t row_size() const { return row_size_; }

    media_rows known_rows(const std::string & key) const { return rows_.get(key); }
    void keep_rows(const std::string & key, const media_rows & rows) const { rows_.put(key, rows, rows->size() * sizeof(float)); }

  private:
    struct deleter {
        void operator()(mtmd_context * ctx) const { mtmd_free(ctx); }
    };
    struct bitmap_deleter {
        void operator()(mtmd_bitmap * bitmap) const { mtmd_bitmap_free(bitmap); }
    };
    using bitmap_ptr = std::unique_ptr<mtmd_bitmap, bitmap_deleter>;

    // Of a prompt: text, or what is encoded at a time.
    struct piece {
        std::vector<llama_token> tokens;
        media_chunk shape = nullptr; // without its data; null: text
        size_t file = 0;             // that `shape` is of
    };
    using pieces = std::vector<piece>;

    static pieces pieces_of(const mtmd_input_chunks * chunks);
    pieces cut_run(const std::vector<prompt_fragment> & fragments, size_t begin, size_t end, const media_files & files) const;
    pieces cut_sound(size_t index, const media_files & files) const;
    std::shared_ptr<const pieces> listen(size_t index, const media_files & files) const;
    bitmap_ptr read_for(size_t index, const media_files & files) const;
    std::shared_ptr<const pixels> decode(const media_file_ptr & file) const;
    bitmap_ptr read(const media_file_ptr & file, bool with_pixels) const;
    cut_media cut(const mtmd_input_part * const * parts, size_t n_parts) const;
    cut_media data_of(const media_file_ptr & file);
    void keep_cut(const media_file & file, const cut_media & chunks, size_t size) const;
    void check_smallest_picture() const;
    static bool on_node(ggml_tensor * node, bool ask, void * self);

    // of the thread that encodes
    const pause_fn * pause_ = nullptr;
    bool ended_ = false;
    media_file_ptr read_; // the file of `chunks_`, because the next part may be of it, too
    cut_media chunks_;    // of which there was no room to keep it with the file

    const llama_model * text_; // borrowed
    int32_t n_batch_;
    uint64_t picture_memory_;
    mutable queue_lock decoding_; // of pictures, one at a time: each may take as much memory as is allowed
    size_t row_size_;
    std::unique_ptr<mtmd_context, deleter> ctx_;
    mutable recent<std::vector<float>> rows_;  // by the key of their part
    mutable recent<std::vector<piece>> sounds_; // by the digest of their file: to know how many cells one takes is to analyse it
    std::shared_ptr<std::atomic<size_t>> decoded_bytes_ = std::make_shared<std::atomic<size_t>>(0); // that wait
    std::shared_ptr<std::atomic<size_t>> cut_bytes_ = std::make_shared<std::atomic<size_t>>(0);
};

std::string digest_of(const std::string & bytes);

}  // namespace lm
