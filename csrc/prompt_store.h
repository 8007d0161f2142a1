// The prompt cache on the disk: a folder of prompt files for each model, within a budget for all of them. Whoever else uses
// the folder at the same time is no trouble: files come to be under another name, never change, and vanish as a whole.
//
// A thread reads and another writes, so that whoever asks waits for no disk. A file that is damaged is removed. When the disk
// is full or broken, nothing more is written, and that is said once; nobody's request fails for it.
#pragma once

#include "heartbeat.h"
#include "prompt_file.h"
#include "thread.h"

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <unordered_set>
#include <vector>

namespace lm {

// Read ahead of their use, one being read and one in use; waiting to be written.
constexpr size_t PIECES_AHEAD = 2;
constexpr size_t MOST_UNWRITTEN = 2;
constexpr size_t MOST_PIECES_MOVING = PIECES_AHEAD + 2 + MOST_UNWRITTEN;
// Where a prompt is one piece, one fetch has no more of them.
constexpr size_t MOST_PROMPTS_MOVING = 1 + MOST_UNWRITTEN;

class prompt_store {
  public:
    // `model` is of the form of a digest, and names the folder within `folder` that is used. `p` is borrowed. `news` is called by
    // either thread when there is something to take, or room to keep something. Throws error("out_of_memory").
    prompt_store(std::string folder, const std::string & model, uint64_t budget, pulse & p, std::function<void()> news);
    ~prompt_store();

    // What follows is for one thread.

    // As far as is known: another may have written or removed it meanwhile.
    bool has(const prompt_digest & digest, uint32_t end) const;
    // Where the pieces end that there are.
    std::vector<uint32_t> ends() const;
    // Looks soon for what others have written since it was last looked.
    void look_again();

    // Reads these pieces, which have no states yet, up to the first that is not there or not good. One fetch at a time.
    void fetch(std::vector<prompt_piece> wanted);
    enum class fetched { nothing, piece, end };
    // The next piece of the fetch, or its end, after which another can begin.
    fetched take(prompt_piece & into);
    bool has_news() const; // take() would give something
    double read_ms() const; // what reading took for the fetch that ended last, or is under way

    // Whether what is kept now is written soon; if not it would be dropped.
    bool has_room() const;
    // Pieces of one prompt have the same `used_ns`, when it was used last.
    void keep(prompt_piece && piece, int64_t used_ns);
    bool is_writing() const;

  private:
    struct kept {
        prompt_piece piece;
        int64_t used_ns;
    };

    void read_all();
    void write_all();
    void look();
    void tell(std::unique_lock<std::mutex> & lock);
    prompt_read read(prompt_piece & piece, int64_t used_ns);
    bool write(const kept & item);
    bool make_room(uint64_t bytes);
    void make_folders();
    void stop_writing(const char * what);
    std::string path_of(const std::string & name) const { return own_folder_ + "/" + name; }

    const std::string folder_;
    const std::string own_folder_;
    const uint64_t budget_;
    pulse & pulse_; // borrowed
    const std::function<void()> news_;

    mutable std::mutex mutex_;
    std::condition_variable asked_;   // the reader has something to do
    std::condition_variable brought_; // the writer has
    bool closing_ = false;
    std::unordered_set<std::string> names_;
    std::map<uint32_t, size_t> ends_; // how many of the names end there
    bool looks_ = false;
    steady::time_point looked_;
    std::vector<prompt_piece> wanted_;
    bool is_fetching_ = false;
    bool at_end_ = false; // nothing will be added to what came
    std::deque<prompt_piece> came_;
    double read_ms_ = 0;
    std::deque<kept> unwritten_; // the first is being written
    bool writes_ = true;

    // the writer's own
    uint64_t held_bytes_ = 0; // of the whole folder, when it was looked at last and since then of our own
    steady::time_point counted_;
    bool is_counted_ = false;

    thread reader_;
    thread writer_;
};

// Now, as files' times are told.
int64_t now_ns();

}  // namespace lm
