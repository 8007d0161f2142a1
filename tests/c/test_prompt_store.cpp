// Files of the prompt cache on the disk: what is damaged, swapped or somebody else's is never taken, and the folder keeps to its
// budget whoever shares it.
#include "check.h"
#include "prompt_store.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

using namespace lm;
namespace fs = std::filesystem;

static const std::string MODEL(32, 'a');

// A folder for the test, which goes with it.
struct folder {
    std::string path;

    folder() {
        char name[] = "/tmp/lmlite-prompts-XXXXXX";
        CHECK(mkdtemp(name) != nullptr);
        path = name;
    }
    ~folder() { fs::remove_all(path); }
    std::string of(const std::string & model) const { return path + "/" + model; }
    std::vector<std::string> names(const std::string & model = MODEL) const {
        std::vector<std::string> all;
        if (fs::exists(of(model))) {
            for (const auto & item : fs::directory_iterator(of(model))) {
                all.push_back(item.path().filename());
            }
        }
        std::sort(all.begin(), all.end());
        return all;
    }
};

static std::vector<llama_token> tokens_of(size_t n, llama_token first) {
    std::vector<llama_token> tokens(n);
    for (size_t i = 0; i < n; i++) {
        tokens[i] = first + llama_token(i);
    }
    return tokens;
}

// The tokens from `begin` to `end` of a prompt that begins with the token `first`.
static prompt_piece piece(llama_token first, uint32_t begin, uint32_t end, size_t state_bytes, const std::string & key = "") {
    const std::vector<llama_token> all = tokens_of(end, first);
    prompt_digester digester(MODEL, key);
    digester.push(all.data(), all.size());
    prompt_piece made;
    made.digest = digester.digest();
    made.begin = begin;
    made.end = end;
    made.tokens.assign(all.begin() + begin, all.end());
    for (size_t i = 0; i < state_bytes; i++) {
        made.state.push_back(uint8_t(size_t(first) * 31 + end * 7 + i * i));
    }
    return made;
}

static prompt_piece without_state(prompt_piece p) {
    p.state.clear();
    return p;
}

static std::string bytes_of(const prompt_piece & p) {
    FILE * file = tmpfile();
    CHECK(file != nullptr && write_prompt_file(fileno(file), p));
    std::string bytes(size_t(lseek(fileno(file), 0, SEEK_END)), '\0');
    CHECK(pread(fileno(file), bytes.data(), bytes.size(), 0) == ssize_t(bytes.size()));
    fclose(file);
    CHECK(bytes.size() == p.file_bytes());
    return bytes;
}

// Reads files that are made of bytes.
struct reader {
    FILE * file = tmpfile();

    ~reader() { fclose(file); }
    prompt_read read(const std::string & bytes, prompt_piece & into) const {
        const int fd = fileno(file);
        CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, bytes.data(), bytes.size(), 0) == ssize_t(bytes.size()));
        CHECK(lseek(fd, 0, SEEK_SET) == 0);
        return read_prompt_file(fd, into);
    }
};

TEST(a_prompt_file_gives_back_the_state_that_was_written) {
    const reader r;
    for (const size_t n : {1, 100, 70000}) {
        const prompt_piece written = piece(5, 128, 256, n);
        prompt_piece read = without_state(written);
        CHECK(r.read(bytes_of(written), read) == prompt_read::good);
        CHECK(read.state == written.state);
    }
}

TEST(a_prompt_file_of_other_tokens_places_or_callers_is_not_taken) {
    const reader r;
    const prompt_piece mine = piece(5, 128, 256, 500);
    const std::string bytes = bytes_of(mine);
    std::vector<prompt_piece> others = {piece(6, 128, 256, 0), piece(5, 128, 255, 0), piece(5, 0, 256, 0),
                                        piece(5, 128, 256, 0, "another caller")};
    others.push_back(without_state(mine));
    others.back().tokens[3]++; // of the same digest, which nobody will find
    for (prompt_piece & other : others) {
        CHECK(r.read(bytes, other) == prompt_read::damaged);
    }
}

// One bit or some bytes are others, some are zeros, it ends early or late, or has parts of another file.
static std::string damage(std::string bytes, const std::string & other, std::mt19937 & random) {
    const auto below = [&](size_t n) { return size_t(random() % n); };
    const size_t at = below(bytes.size());
    const size_t n = 1 + below(std::min<size_t>(bytes.size() - at, 64));
    switch (below(7)) {
        case 0: bytes[at] = char(bytes[at] ^ (1 << below(8))); break;
        case 1: std::generate_n(bytes.begin() + long(at), n, [&] { return char(below(256)); }); break;
        case 2: std::fill_n(bytes.begin() + long(at), n, '\0'); break;
        case 3: bytes.resize(at); break;
        case 4: bytes.resize(bytes.size() + 1 + below(5000), char(below(2))); break;
        case 5: bytes.replace(at, n, other, at, n); break;
        case 6: std::rotate(bytes.begin() + long(at), bytes.begin() + long(at + below(bytes.size() - at)), bytes.end()); break;
    }
    return bytes;
}

TEST(no_damage_to_a_prompt_file_goes_unseen) {
    std::mt19937 random(1);
    const reader r;
    const prompt_piece whole = piece(5, 16, 32, 700);
    const std::string bytes = bytes_of(whole);
    const std::string other = bytes_of(piece(9, 16, 32, 700));
    for (int i = 0; i < 40000; i++) {
        const std::string damaged = damage(bytes, other, random);
        prompt_piece read = without_state(whole);
        const prompt_read how = r.read(damaged, read);
        CHECK(damaged == bytes ? how == prompt_read::good : how == prompt_read::damaged);
    }
    for (size_t bit = 0; bit < bytes.size() * 8; bit++) { // each of them
        std::string damaged = bytes;
        damaged[bit / 8] = char(damaged[bit / 8] ^ (1 << bit % 8));
        prompt_piece read = without_state(whole);
        CHECK(r.read(damaged, read) == prompt_read::damaged);
    }
}

TEST(a_file_that_says_it_is_huge_costs_no_memory) {
    folder f;
    const std::string path = f.path + "/hole";
    const int fd = open(path.c_str(), O_RDWR | O_CREAT, 0600);
    const prompt_piece written = piece(5, 0, 16, 64);
    CHECK(fd >= 0 && write_prompt_file(fd, written) && ftruncate(fd, off_t(1) << 40) == 0 && lseek(fd, 0, SEEK_SET) == 0);
    prompt_piece read = without_state(written);
    CHECK(read_prompt_file(fd, read) == prompt_read::damaged && read.state.capacity() < 1000);
    close(fd);
}

TEST(names_of_prompt_files_are_told_from_all_others) {
    const prompt_piece p = piece(5, 0, 4096, 1);
    CHECK(end_in_name(prompt_file_name(p.digest, p.end)) == 4096);
    for (const char * name : {"", ".", "..", "-16", "0123456789abcdef0123456789abcdef-", "0123456789abcdef0123456789abcdef-x",
                              "0123456789ABCDEF0123456789abcdef-16", "0123456789abcdef0123456789abcdef-1234567890",
                              "0123456789abcdef0123456789abcdef-16.tmp", ".new-abcdef"}) {
        CHECK(end_in_name(name) == 0);
    }
}

// ---- the folder -----------------------------------------------------------------------------------------------------------

// A store whose news can be waited for.
struct watched {
    pulse beats;
    std::mutex mutex;
    std::condition_variable told;
    size_t n_news = 0;
    prompt_store store;

    watched(const folder & f, uint64_t budget, const std::string & model = MODEL)
        : store(f.path, model, budget, beats, [this] {
              std::lock_guard<std::mutex> lock(mutex);
              n_news++;
              told.notify_all();
          }) {}

    template <typename Condition> void wait(Condition condition) {
        std::unique_lock<std::mutex> lock(mutex);
        while (!condition()) {
            const size_t before = n_news;
            told.wait_for(lock, std::chrono::milliseconds(100), [&] { return n_news != before; });
        }
    }
    void keep(const prompt_piece & p, int64_t used_ns = now_ns()) {
        wait([this] { return store.has_room(); });
        store.keep(prompt_piece(p), used_ns);
        wait([this] { return !store.is_writing(); });
    }
    bool has(const prompt_piece & p) const { return store.has(p.digest, p.end); }
    std::vector<prompt_piece> fetch(const std::vector<prompt_piece> & wanted) {
        std::vector<prompt_piece> all;
        for (const prompt_piece & p : wanted) {
            all.push_back(without_state(p));
        }
        store.fetch(std::move(all));
        std::vector<prompt_piece> came;
        while (true) {
            wait([this] { return store.has_news(); });
            prompt_piece next;
            switch (store.take(next)) {
                case prompt_store::fetched::piece: came.push_back(std::move(next)); break;
                case prompt_store::fetched::end: return came;
                case prompt_store::fetched::nothing: break;
            }
        }
    }
};

TEST(what_a_store_kept_the_next_one_finds) {
    folder f;
    std::vector<prompt_piece> pieces;
    for (uint32_t end = 128; end <= 1280; end += 128) {
        pieces.push_back(piece(7, end - 128, end, 3000 + end));
    }
    {
        watched first(f, 1 << 20);
        for (const prompt_piece & p : pieces) {
            CHECK(!first.has(p));
            first.keep(p);
            CHECK(first.has(p));
        }
        CHECK(first.beats.disk_bytes == first.beats.disk_written_bytes && first.beats.disk_bytes > 30000);
    }
    watched second(f, 1 << 20);
    CHECK(second.store.ends().size() == pieces.size() && second.store.ends().front() == 128);
    const std::vector<prompt_piece> came = second.fetch(pieces);
    CHECK(came.size() == pieces.size());
    for (size_t i = 0; i < came.size(); i++) {
        CHECK(came[i].state == pieces[i].state);
    }
    CHECK(second.fetch({pieces[3]}).size() == 1); // one after the other
    CHECK(second.fetch({piece(8, 0, 128, 0)}).empty());
    watched other(f, 1 << 20, std::string(32, 'b'));
    CHECK(!other.has(pieces[0]) && other.store.ends().empty());
}

TEST(prompt_files_are_their_owners_alone_and_name_nobody) {
    folder f;
    watched w(f, 1 << 20);
    w.keep(piece(7, 0, 128, 100, "token of somebody"));
    CHECK(f.names().size() == 1);
    struct stat about;
    CHECK(stat((f.of(MODEL) + "/" + f.names()[0]).c_str(), &about) == 0 && (about.st_mode & 0777) == 0600);
    CHECK(stat(f.of(MODEL).c_str(), &about) == 0 && (about.st_mode & 0777) == 0700);
    std::ifstream file(f.of(MODEL) + "/" + f.names()[0], std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    CHECK(!bytes.empty() && bytes.find("somebody") == std::string::npos);
}

TEST(a_fetch_ends_at_a_damaged_file_which_is_removed) {
    folder f;
    const std::vector<prompt_piece> pieces = {piece(7, 0, 128, 900), piece(7, 128, 256, 900), piece(7, 256, 384, 900)};
    watched w(f, 1 << 20);
    for (const prompt_piece & p : pieces) {
        w.keep(p);
    }
    const std::string path = f.of(MODEL) + "/" + prompt_file_name(pieces[1].digest, 256);
    CHECK(truncate(path.c_str(), 700) == 0);
    CHECK(w.fetch(pieces).size() == 1);
    CHECK(w.beats.disk_damaged == 1 && !fs::exists(path) && !w.has(pieces[1]) && w.has(pieces[2]));
    w.keep(pieces[1]);
    CHECK(w.fetch(pieces).size() == 3);
    fs::rename(f.of(MODEL) + "/" + prompt_file_name(pieces[2].digest, 384), path); // one in the place of another
    CHECK(w.fetch(pieces).size() == 1 && !fs::exists(path));
}

TEST(a_folder_in_the_place_of_a_file_costs_that_file_only) {
    folder f;
    const std::vector<prompt_piece> pieces = {piece(7, 0, 128, 900), piece(7, 128, 256, 900)};
    watched w(f, 1 << 20);
    const std::string path = f.of(MODEL) + "/" + prompt_file_name(pieces[0].digest, 128);
    fs::create_directories(path + "/somebody's");
    w.keep(pieces[0]);
    w.keep(pieces[1]);
    CHECK(!w.has(pieces[0]) && w.has(pieces[1]) && f.names().size() == 2);
    fs::remove(path + "/somebody's");
    watched other(f, 1 << 20);
    CHECK(other.has(pieces[0]) && other.fetch(pieces).empty() && !fs::exists(path)); // an empty one goes, as what is damaged does
    w.keep(pieces[0]);
    CHECK(w.fetch(pieces).size() == 2);
}

TEST(a_link_in_the_place_of_a_file_is_not_followed_and_goes) {
    folder f;
    const std::vector<prompt_piece> pieces = {piece(7, 0, 128, 900), piece(7, 128, 256, 900)};
    watched w(f, 1 << 20);
    w.keep(pieces[0]);
    const std::string path = f.of(MODEL) + "/" + prompt_file_name(pieces[0].digest, 128);
    fs::rename(path, f.path + "/elsewhere");
    fs::create_symlink(f.path + "/elsewhere", path);
    CHECK(w.fetch(pieces).empty() && !fs::is_symlink(path) && fs::exists(f.path + "/elsewhere"));
    w.keep(pieces[0]);
    CHECK(w.fetch(pieces).size() == 1);
}

TEST(what_was_used_least_recently_goes_first_and_the_end_of_a_prompt_before_its_beginning) {
    folder f;
    const auto chain = [](llama_token first) {
        return std::vector<prompt_piece>{piece(first, 0, 128, 10000), piece(first, 128, 256, 10000), piece(first, 256, 384, 10000)};
    };
    const std::vector<prompt_piece> a = chain(1000), b = chain(2000), c = chain(3000);
    watched w(f, 70000);
    const int64_t now = now_ns();
    for (const auto & [prompt, age_s] : {std::pair(a, 300), std::pair(b, 200)}) {
        for (const prompt_piece & p : prompt) {
            w.keep(p, now - int64_t(age_s) * 1000000000);
        }
    }
    CHECK(f.names().size() == 6);
    CHECK(w.fetch(a).size() == 3); // used just now
    w.keep(c[0]);
    CHECK(w.has(b[0]) && w.has(b[1]) && !w.has(b[2]) && w.has(c[0]) && w.fetch(a).size() == 3);
    w.keep(c[1]);
    w.keep(c[2]);
    CHECK(!w.has(b[0]) && !w.has(b[1]) && w.fetch(c).size() == 3 && w.fetch(a).size() == 3);
    CHECK(w.beats.disk_bytes <= 70000);
}

TEST(the_budget_is_that_of_all_models_and_of_all_who_share_the_folder) {
    folder f;
    const std::string other = std::string(32, 'b');
    {
        watched elsewhere(f, 1 << 20, other);
        for (llama_token first = 0; first < 10; first++) {
            elsewhere.keep(piece(first * 1000, 0, 128, 10000));
        }
    }
    CHECK(f.names(other).size() == 10);
    watched w(f, 50000);
    w.keep(piece(77000, 0, 128, 10000));
    CHECK(f.names().size() == 1 && f.names(other).size() >= 2 && f.names(other).size() <= 3);
    w.keep(piece(78000, 0, 128, 60000)); // larger than all of it
    CHECK(f.names().size() == 1);
}

TEST(what_a_killed_writer_left_is_swept_and_what_is_not_ours_stays) {
    folder f;
    fs::create_directories(f.of(MODEL));
    fs::create_directories(f.path + "/notes");
    for (const char * name : {"/.new-abcdef", "/.new-qwerty", "/mine.txt"}) {
        std::ofstream(f.of(MODEL) + name) << std::string(5000, 'x');
    }
    std::ofstream(f.path + "/notes/.new-abcdef") << "not a model's folder";
    const int writing = open((f.of(MODEL) + "/.new-qwerty").c_str(), O_RDWR);
    CHECK(writing >= 0 && flock(writing, LOCK_EX) == 0); // whose writer lives
    watched w(f, 4000);
    w.keep(piece(7, 0, 128, 100));
    CHECK(!fs::exists(f.of(MODEL) + "/.new-abcdef"));
    CHECK(fs::exists(f.of(MODEL) + "/.new-qwerty") && fs::exists(f.of(MODEL) + "/mine.txt") && fs::exists(f.path + "/notes/.new-abcdef"));
    close(writing);
}

TEST(where_nothing_can_be_written_nothing_is_kept_and_nobody_waits) {
    folder f;
    std::ofstream(f.path + "/file") << "no folder";
    folder inner;
    inner.path = f.path + "/file";
    watched w(inner, 1 << 20);
    for (llama_token first = 0; first < 5; first++) {
        w.keep(piece(first * 1000, 0, 128, 100));
        CHECK(!w.has(piece(first * 1000, 0, 128, 100)));
    }
    CHECK(w.fetch({piece(0, 0, 128, 0)}).empty());
}

TEST(a_full_disk_leaves_no_part_of_a_file) {
    if (access("/dev/full", W_OK) != 0) {
        return;
    }
    const int full = open("/dev/full", O_WRONLY);
    CHECK(full >= 0 && !write_prompt_file(full, piece(7, 0, 128, 100)) && errno == ENOSPC);
    close(full);
}

TEST(two_stores_find_what_the_other_wrote) {
    folder f;
    watched a(f, 1 << 20);
    watched b(f, 1 << 20);
    const prompt_piece p = piece(7, 0, 128, 5000);
    a.keep(p);
    b.keep(p); // at the same place, and no harm
    CHECK(f.names().size() == 1);
    CHECK(a.fetch({p}).size() == 1 && b.fetch({p}).size() == 1);
}
