#include "prompt_store.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace lm {

// What others write is found after so long.
static constexpr double LOOK_AGAIN_MS = 5000;
// Another process may write, too: the folder is counted again after so long.
static constexpr double COUNT_AGAIN_MS = 60000;
// When the budget is used up, this part of it is freed at once: counting a folder is not for every piece.
static constexpr uint64_t FREED_SHARE = 16;

static constexpr mode_t PRIVATE_FOLDER = 0700;
static constexpr char NEW_FILE[] = ".new-"; // and six letters of mkstemp's: such a file is not whole yet
static constexpr size_t MODEL_DIGITS = 32;

int64_t now_ns() {
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

// ---- folders ------------------------------------------------------------------------------------------------------------

template <typename Body> static void for_each_name(const std::string & folder, Body body) {
    const std::unique_ptr<DIR, int (*)(DIR *)> open(opendir(folder.c_str()), closedir);
    if (open == nullptr) {
        return;
    }
    while (const dirent * found = readdir(open.get())) {
        body(std::string(found->d_name));
    }
}

static bool is_model(const std::string & name) {
    return name.size() == MODEL_DIGITS &&
           std::all_of(name.begin(), name.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

static bool is_new(const std::string & name) {
    return name.compare(0, strlen(NEW_FILE), NEW_FILE) == 0;
}

// What nobody is writing any more: its writer held a lock for as long as it lived.
static bool is_left_behind(const std::string & path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        return false;
    }
    const descriptor file(fd);
    return flock(fd, LOCK_EX | LOCK_NB) == 0;
}

static int64_t time_of(const struct stat & about) {
#if defined(__APPLE__)
    return int64_t(about.st_mtimespec.tv_sec) * 1000000000 + about.st_mtimespec.tv_nsec;
#else
    return int64_t(about.st_mtim.tv_sec) * 1000000000 + about.st_mtim.tv_nsec;
#endif
}

// The end of a prompt is used less often than its beginning, without which it is of no use: it is the older one of two that
// were used together.
static void set_time(int fd, int64_t used_ns, uint32_t end) {
    const int64_t ns = used_ns - int64_t(end) * 1000;
    timespec times[2] = {{0, UTIME_OMIT}, {time_t(ns / 1000000000), long(ns % 1000000000)}};
    futimens(fd, times);
}

prompt_store::prompt_store(std::string folder, const std::string & model, uint64_t budget, pulse & p, std::function<void()> news)
    : folder_(std::move(folder)), own_folder_(folder_ + "/" + model), budget_(budget), pulse_(p), news_(std::move(news)) {
    look();
    reader_ = thread([this] { read_all(); });
    writer_ = thread([this] { write_all(); });
}

prompt_store::~prompt_store() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        closing_ = true;
        asked_.notify_all();
        brought_.notify_all();
    }
    reader_.join();
    writer_.join();
}

// ---- the asker's side -----------------------------------------------------------------------------------------------------

bool prompt_store::has(const prompt_digest & digest, uint32_t end) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return names_.count(prompt_file_name(digest, end)) > 0;
}

std::vector<uint32_t> prompt_store::ends() const {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<uint32_t> all;
    for (const auto & [end, n] : ends_) {
        all.push_back(end);
    }
    return all;
}

void prompt_store::look_again() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!looks_ && ms_between(looked_, steady::now()) > LOOK_AGAIN_MS) {
        looks_ = true;
        asked_.notify_one();
    }
}

void prompt_store::fetch(std::vector<prompt_piece> wanted) {
    std::lock_guard<std::mutex> lock(mutex_);
    wanted_ = std::move(wanted);
    is_fetching_ = true;
    at_end_ = false;
    read_ms_ = 0;
    asked_.notify_one();
}

prompt_store::fetched prompt_store::take(prompt_piece & into) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!came_.empty()) {
        into = std::move(came_.front());
        came_.pop_front();
        asked_.notify_one();
        return fetched::piece;
    }
    if (!at_end_) {
        return fetched::nothing;
    }
    at_end_ = false;
    is_fetching_ = false;
    return fetched::end;
}

bool prompt_store::has_news() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return !came_.empty() || at_end_;
}

double prompt_store::read_ms() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return read_ms_;
}

bool prompt_store::has_room() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return unwritten_.size() < MOST_UNWRITTEN;
}

bool prompt_store::is_writing() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return !unwritten_.empty();
}

void prompt_store::keep(prompt_piece && piece, int64_t used_ns) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (writes_ && unwritten_.size() < MOST_UNWRITTEN) {
        unwritten_.push_back({std::move(piece), used_ns});
        brought_.notify_one();
    }
}

// Whoever hears it may be about to ask.
void prompt_store::tell(std::unique_lock<std::mutex> & lock) {
    if (!closing_) {
        lock.unlock();
        news_();
        lock.lock();
    }
}

// ---- the reader -----------------------------------------------------------------------------------------------------------

// What there is of this model now.
void prompt_store::look() {
    std::unordered_set<std::string> names;
    std::map<uint32_t, size_t> ends;
    for_each_name(own_folder_, [&](const std::string & name) {
        if (const uint32_t end = end_in_name(name); end > 0) {
            names.insert(name);
            ends[end]++;
        }
    });
    std::lock_guard<std::mutex> lock(mutex_);
    names_ = std::move(names);
    ends_ = std::move(ends);
    looked_ = steady::now();
    looks_ = false;
}

void prompt_store::read_all() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        asked_.wait(lock, [this] { return closing_ || looks_ || (is_fetching_ && !wanted_.empty() && came_.size() < PIECES_AHEAD); });
        if (closing_) {
            return;
        }
        if (looks_) {
            lock.unlock();
            look();
            lock.lock();
            continue;
        }
        std::vector<prompt_piece> wanted = std::move(wanted_);
        wanted_.clear();
        const int64_t used_ns = now_ns();
        for (prompt_piece & piece : wanted) {
            asked_.wait(lock, [this] { return closing_ || came_.size() < PIECES_AHEAD; });
            if (closing_) {
                return;
            }
            lock.unlock();
            const auto began = steady::now();
            const bool good = read(piece, used_ns) == prompt_read::good;
            lock.lock();
            read_ms_ += ms_between(began, steady::now());
            if (!good) {
                break;
            }
            came_.push_back(std::move(piece));
            tell(lock);
        }
        at_end_ = true;
        tell(lock);
    }
}

prompt_read prompt_store::read(prompt_piece & piece, int64_t used_ns) {
    const std::string name = prompt_file_name(piece.digest, piece.end);
    const int fd = ::open(path_of(name).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    prompt_read how = fd < 0 && errno == ELOOP ? prompt_read::damaged : prompt_read::failed; // a link is nobody's prompt
    if (fd >= 0) {
        const descriptor file(fd);
        how = read_prompt_file(fd, piece);
        if (how == prompt_read::good) {
            set_time(fd, used_ns, piece.end);
            pulse_.disk_read_bytes += piece.file_bytes();
        }
    }
    if (how == prompt_read::damaged) {
        fprintf(stderr, "lmlite: a file of the prompt cache is damaged, and is removed: %s\n", name.c_str());
        ::remove(path_of(name).c_str()); // an empty folder, too
        pulse_.disk_damaged++;
    }
    if (how != prompt_read::good) { // until the folder is looked at again nobody asks for it
        std::lock_guard<std::mutex> lock(mutex_);
        if (names_.erase(name) > 0 && --ends_[piece.end] == 0) {
            ends_.erase(piece.end);
        }
    }
    return how;
}

// ---- the writer -----------------------------------------------------------------------------------------------------------

void prompt_store::write_all() {
    make_room(0); // what is left of others, and of a larger budget
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        brought_.wait(lock, [this] { return closing_ || !unwritten_.empty(); });
        if (unwritten_.empty()) { // what was brought before the end is written
            return;
        }
        const kept & item = unwritten_.front(); // stays where it is while others are added
        const std::string name = prompt_file_name(item.piece.digest, item.piece.end);
        const bool wanted = writes_ && names_.count(name) == 0;
        lock.unlock();
        const bool written = wanted && write(item);
        lock.lock();
        if (written && names_.insert(name).second) {
            ends_[item.piece.end]++;
        }
        unwritten_.pop_front();
        tell(lock);
    }
}

void prompt_store::stop_writing(const char * what) {
    fprintf(stderr, "lmlite: no more prompts are kept on the disk: %s in %s: %s\n", what, folder_.c_str(), strerror(errno));
    std::lock_guard<std::mutex> lock(mutex_);
    writes_ = false;
}

// With all that is above them.
void prompt_store::make_folders() {
    for (size_t at = own_folder_.find('/', 1); at != std::string::npos; at = own_folder_.find('/', at + 1)) {
        ::mkdir(own_folder_.substr(0, at).c_str(), PRIVATE_FOLDER);
    }
    ::mkdir(own_folder_.c_str(), PRIVATE_FOLDER);
}

bool prompt_store::write(const kept & item) {
    const uint64_t bytes = item.piece.file_bytes();
    if (!make_room(bytes)) {
        return false;
    }
    std::string path = path_of(std::string(NEW_FILE) + "XXXXXX");
    int fd = ::mkstemp(path.data()); // readable by its owner alone
    if (fd < 0 && errno == ENOENT) {
        make_folders();
        path = path_of(std::string(NEW_FILE) + "XXXXXX");
        fd = ::mkstemp(path.data());
    }
    if (fd < 0) {
        stop_writing("no file can be made");
        return false;
    }
    const descriptor file(fd);
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
    flock(fd, LOCK_EX | LOCK_NB);
    const std::string name = prompt_file_name(item.piece.digest, item.piece.end);
    if (!write_prompt_file(fd, item.piece)) {
        stop_writing("nothing can be written");
        ::unlink(path.c_str());
        return false;
    }
    set_time(fd, item.used_ns, item.piece.end);
    if (::rename(path.c_str(), path_of(name).c_str()) != 0) {
        if (errno != EISDIR && errno != ENOTEMPTY && errno != EEXIST) { // somebody's folder is in its place: only it is not kept
            stop_writing("a file cannot be renamed");
        }
        ::unlink(path.c_str());
        return false;
    }
    held_bytes_ += bytes;
    pulse_.disk_bytes = held_bytes_;
    pulse_.disk_written_bytes += bytes;
    return true;
}

// Removes what was used least recently, of all models, until so many bytes fit the budget. False: they never do.
bool prompt_store::make_room(uint64_t bytes) {
    if (bytes > budget_) {
        return false;
    }
    const bool is_old = !is_counted_ || ms_between(counted_, steady::now()) > COUNT_AGAIN_MS;
    if (!is_old && held_bytes_ + bytes <= budget_) {
        return true;
    }
    struct file {
        int64_t used_ns;
        std::string path;
        uint64_t bytes;
    };
    std::vector<file> files;
    uint64_t held = 0;
    for_each_name(folder_, [&](const std::string & model) {
        if (!is_model(model)) {
            return;
        }
        const std::string inner = folder_ + "/" + model;
        for_each_name(inner, [&](const std::string & name) {
            const std::string path = inner + "/" + name;
            struct stat about;
            if ((end_in_name(name) == 0 && !is_new(name)) || ::lstat(path.c_str(), &about) != 0 || !S_ISREG(about.st_mode)) {
                return;
            }
            if (!is_new(name)) {
                files.push_back({time_of(about), path, uint64_t(about.st_size)});
            } else if (is_left_behind(path) && ::unlink(path.c_str()) == 0) {
                return;
            }
            held += uint64_t(about.st_size);
        });
    });
    if (held + bytes > budget_) {
        const uint64_t wanted = budget_ - std::max(bytes, budget_ / FREED_SHARE);
        std::sort(files.begin(), files.end(), [](const file & a, const file & b) { return a.used_ns < b.used_ns; });
        for (size_t i = 0; i < files.size() && held > wanted; i++) {
            if (::unlink(files[i].path.c_str()) == 0 || errno == ENOENT) {
                held -= files[i].bytes;
                const size_t slash = files[i].path.rfind('/');
                const std::string name = files[i].path.substr(slash + 1);
                std::lock_guard<std::mutex> lock(mutex_);
                if (files[i].path.compare(0, slash, own_folder_) == 0 && names_.erase(name) > 0) {
                    const auto end = ends_.find(end_in_name(name));
                    if (end != ends_.end() && --end->second == 0) {
                        ends_.erase(end);
                    }
                }
            }
        }
    }
    held_bytes_ = held;
    counted_ = steady::now();
    is_counted_ = true;
    pulse_.disk_bytes = held;
    return held + bytes <= budget_;
}

}  // namespace lm
