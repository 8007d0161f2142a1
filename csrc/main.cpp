// lmlite-engine FD: one engine in a process of its own, so that whatever kills it kills nothing else.
// Serves the inherited socket FD until the peer closes it. Exits 0 then, 1-3 for a negative lm_status, 64 for wrong usage,
// 75 if it had to be ended because it did not notice.
#include "lmlite.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <initializer_list>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <system_error>
#include <thread>
#include <unistd.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

static constexpr int EXIT_USAGE = 64; // EX_USAGE of sysexits.h
static constexpr int EXIT_ABANDONED = 75; // EX_TEMPFAIL
static constexpr std::chrono::seconds LAST_MOMENT{2};
static constexpr int LOOK_MS = 5000;
static constexpr double QUIET = 0.2;         // of a core: more, and what is free now is wanted again at once
static constexpr double IDLE = 0.02;         // below it nothing at all is under way
static constexpr double WORTH_S = 0.1;       // so much work since the last time leaves something behind
static constexpr size_t SPARE_BYTES = 4 << 20; // more than after the last time is worth giving back

// An engine goes before its server when memory runs out: the server answers for it and can load it again.
static constexpr int OOM_SCORE_STEP = 300;
static constexpr int OOM_SCORE_MAX = 1000;

static int parse_fd(const char * text) {
    char * end = nullptr;
    errno = 0;
    const long fd = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || fd < 0 || fd > INT32_MAX) {
        return -1;
    }
    int type = 0;
    socklen_t size = sizeof type;
    if (getsockopt(int(fd), SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM) {
        return -1;
    }
    return int(fd);
}

// The parent decides when an engine ends; a Ctrl-C or a closed terminal reaches the whole group and is its business.
static void leave_signals_to_parent() {
    for (int signal_number : {SIGINT, SIGHUP, SIGPIPE}) {
        signal(signal_number, SIG_IGN);
    }
}

// A crash costs a request, not a disk: cores of a process with a model in memory are gigabytes.
static void die_quietly() {
    const rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    setenv("GGML_NO_BACKTRACE", "1", 1); // else an abort forks a debugger
#if defined(__linux__)
    if (FILE * file = fopen("/proc/self/oom_score_adj", "r+")) { // raising one's own score needs no rights
        int score = 0;
        if (fscanf(file, "%d", &score) == 1) {
            rewind(file);
            fprintf(file, "%d", std::min(score + OOM_SCORE_STEP, OOM_SCORE_MAX));
        }
        fclose(file);
    }
#endif
}

// What is large is mapped for itself, and so is given back when it is let go. glibc's own bound moves up to 32 MB with the
// first large request, and what threads then leave free at the ends of their arenas, up to 64 MB each, stays.
static void give_large_memory_back() {
#if defined(__GLIBC__)
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
    mallopt(M_TRIM_THRESHOLD, 4 << 20);
#endif
}

// Small blocks that requests and prompts kept in memory have had lie free between others until they are given back.
class spare_memory {
  public:
    void look() {
#if defined(__GLIBC__)
        const double before = busy_s_;
        busy_s_ = cpu_s();
        const double part = (busy_s_ - before) * 1000 / LOOK_MS;
        const size_t now = resident_bytes();
        const bool worked = busy_s_ - given_back_s_ > WORTH_S;
        if ((part < QUIET && now > at_rest_ + SPARE_BYTES) || (part < IDLE && worked)) {
            malloc_trim(0);
            at_rest_ = resident_bytes();
            given_back_s_ = busy_s_;
        }
#endif
    }

  private:
    double busy_s_ = 0, given_back_s_ = 0;
    size_t at_rest_ = 0; // after the last time, when somebody may have been using it

    static double cpu_s() {
        timespec used = {};
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
        return double(used.tv_sec) + double(used.tv_nsec) / 1e9;
    }

    static size_t resident_bytes() {
        unsigned long n_pages = 0;
        if (FILE * file = fopen("/proc/self/statm", "r")) {
            if (fscanf(file, "%*u %lu", &n_pages) != 1) {
                n_pages = 0;
            }
            fclose(file);
        }
        return size_t(n_pages) * size_t(sysconf(_SC_PAGESIZE));
    }
};

// A step or a load that does not end must not outlive the server: when that is gone, this process has a moment left. Until
// then there is time to look at the memory.
static void look_after_process(int fd) {
#ifdef POLLRDHUP
    pollfd hung_up = {fd, POLLRDHUP, 0};
#else
    pollfd hung_up = {fd, 0, 0}; // POLLHUP is always told
#endif
    spare_memory spare;
    int n_told;
    while ((n_told = poll(&hung_up, 1, LOOK_MS)) == 0 || (n_told < 0 && errno == EINTR)) {
        spare.look();
    }
    std::this_thread::sleep_for(LAST_MOMENT);
    _exit(EXIT_ABANDONED);
}

// One that is stopped (SIGSTOP) notices nothing, and would keep its memory for good: when the server is gone, it continues,
// and ends. The signal also comes when only the thread that started this process ends, and means nothing then.
static void continue_after_parent() {
#if defined(__linux__)
    prctl(PR_SET_PDEATHSIG, SIGCONT);
#endif
}

int main(int argc, char ** argv) {
    const int fd = argc == 2 ? parse_fd(argv[1]) : -1;
    if (fd < 0) {
        fprintf(stderr, "usage: lmlite-engine FD   (FD: a connected stream socket; lmlite starts this program itself)\n");
        return EXIT_USAGE;
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    leave_signals_to_parent();
    die_quietly();
    give_large_memory_back();
    continue_after_parent();
    try {
        std::thread(look_after_process, fd).detach();
    } catch (const std::system_error &) { // nor would there be a thread for the engine
        return -LM_ERR_RESOURCES;
    }

    const int32_t status = lm_engine_serve(fd);
    fflush(nullptr);
    _exit(status == LM_OK ? 0 : -status); // the system frees a model faster than its destructors
}
