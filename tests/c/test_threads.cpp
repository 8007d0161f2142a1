// How threads wait for each other, and what becomes of an engine that cannot have one, or no memory: never the end of the
// process that it is in. This program's own pthread_create and malloc fail where a test says so.
#include "check.h"
#include "frames.h"
#include "lmlite.h"
#include "thread.h"

#include "ggml-cpu.h"
#include "ggml.h"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <dirent.h>
#include <dlfcn.h>
#include <sys/socket.h>
#include <unistd.h>

using namespace lm;

static std::atomic<int> threads_left{INT_MAX}; // before one that cannot be had; those after it can
static std::atomic<size_t> largest_block{SIZE_MAX};

#if defined(__linux__)
extern "C" int pthread_create(pthread_t * handle, const pthread_attr_t * attributes, void * (*body)(void *), void * argument) noexcept {
    static const auto real = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
    return threads_left-- == 0 ? EAGAIN : real(handle, attributes, body, argument);
}
#endif

#if defined(__GLIBC__)
extern "C" void * __libc_malloc(size_t size);
extern "C" void * malloc(size_t size) noexcept {
    return size > largest_block ? nullptr : __libc_malloc(size);
}
#endif

// ---- waiting ------------------------------------------------------------------------------------------------------------

static double cpu_s() {
    timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return double(used.tv_sec) + double(used.tv_nsec) / 1e9;
}

static void sleep_in_the_second(ggml_tensor *, const ggml_tensor *, int ith, int, void * for_s) {
    if (ith == 1) {
        usleep(useconds_t(*static_cast<double *>(for_s) * 1e6));
    }
}

// Computes one operation in two threads, of which the second takes `for_s`.
static void compute(ggml_threadpool * pool, double for_s) {
    ggml_context * context = ggml_init({1 << 20, nullptr, false});
    ggml_tensor * one = ggml_new_tensor_1d(context, GGML_TYPE_F32, 1);
    ggml_cgraph * graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, ggml_map_custom1(context, one, sleep_in_the_second, 2, &for_s));
    ggml_cplan plan = ggml_graph_plan(graph, 2, pool);
    std::vector<uint8_t> work(plan.work_size);
    plan.work_data = work.data();
    CHECK(ggml_graph_compute(graph, &plan) == GGML_STATUS_SUCCESS);
    ggml_free(context);
}

static ggml_threadpool * new_pool(int n_threads) {
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    return ggml_threadpool_new(&params);
}

TEST(a_thread_that_waits_for_another_leaves_its_core_to_others) {
    ggml_threadpool * pool = new_pool(2);
    compute(pool, 0);
    const double before = cpu_s();
    compute(pool, 0.5);
    CHECK(cpu_s() - before < 0.1);
    ggml_threadpool_free(pool);
}

TEST(threads_without_work_leave_their_cores_to_others) {
    ggml_threadpool * pool = new_pool(3);
    compute(pool, 0);
    const double before = cpu_s();
    usleep(500'000);
    CHECK(cpu_s() - before < 0.1);
    ggml_threadpool_free(pool);
}

// Each of many waits ends, whether it is spun, yielded or slept through, whoever comes last.
TEST(no_thread_sleeps_past_the_others) {
    ggml_threadpool * pool = new_pool(8);
    ggml_context * context = ggml_init({1 << 24, nullptr, false});
    ggml_tensor * x = ggml_new_tensor_1d(context, GGML_TYPE_F32, 1);
    ggml_cgraph * graph = ggml_new_graph_custom(context, 8192, false);
    const auto late = [](ggml_tensor * out, const ggml_tensor *, int ith, int n, void *) {
        static std::atomic<unsigned> turn{0};
        if (turn++ % 64 == 0) {
            usleep(ith % 2 == 0 ? 150 : 400);
        }
        if (ith == 0) {
            *static_cast<float *>(out->data) = float(n);
        }
    };
    for (int i = 0; i < 2000; i++) {
        x = ggml_map_custom1(context, x, late, 8, nullptr);
    }
    ggml_build_forward_expand(graph, x);
    ggml_cplan plan = ggml_graph_plan(graph, 8, pool);
    std::vector<uint8_t> work(plan.work_size);
    plan.work_data = work.data();
    for (int i = 0; i < 5; i++) {
        CHECK(ggml_graph_compute(graph, &plan) == GGML_STATUS_SUCCESS);
    }
    CHECK(*static_cast<float *>(x->data) == 8);
    ggml_free(context);
    ggml_threadpool_free(pool);
}

// ---- without threads, without memory --------------------------------------------------------------------------------------

#if defined(__linux__)

static int count(const char * folder) {
    int n = 0;
    DIR * listed = opendir(folder);
    while (readdir(listed) != nullptr) {
        n++;
    }
    closedir(listed);
    return n;
}

static int n_threads() { return count("/proc/self/task"); }
static int n_descriptors() { return count("/proc/self/fd"); }

// Whether no more threads are left. The system still lists one that was joined until it has put it away, which it tells nobody.
static bool has_threads(int n) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (n_threads() != n && std::chrono::steady_clock::now() < end) {
        std::this_thread::yield();
    }
    return n_threads() == n;
}

TEST(a_pool_that_cannot_have_its_threads_is_none_and_leaves_none) {
    const int before = n_threads();
    for (int there = 0; there < 3; there++) {
        threads_left = there;
        CHECK(new_pool(4) == nullptr);
        CHECK(has_threads(before));
    }
    threads_left = INT_MAX;
    ggml_threadpool_free(new_pool(4));
}

TEST(a_graph_whose_own_pool_cannot_have_its_threads_is_computed_by_one) {
    threads_left = 0;
    compute(nullptr, 0);
}

TEST(a_thread_that_cannot_be_had_is_told) {
    threads_left = 0;
    std::string told;
    try {
        lm::thread none([] {});
    } catch (const std::exception & e) {
        told = e.what();
    }
    CHECK(told == "no thread could be started");
}

TEST(a_thread_is_joined_when_its_object_goes) {
    std::atomic<int> done{0};
    {
        lm::thread first([&] { usleep(20'000), done++; });
        lm::thread second([&] { usleep(20'000), done++; });
        first = std::move(second);
        CHECK(done > 0 && !second.joinable() && first.joinable());
    }
    CHECK(done == 2);
}

// An engine in a thread, as in a host process.
class served {
  public:
    served() {
        int ends[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
        near_ = ends[0];
        timeval patience = {30, 0};
        setsockopt(near_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        thread_ = lm::thread([this, far = ends[1]] { status_ = lm_engine_serve(far); });
    }
    int32_t end() {
        if (near_ >= 0) {
            close(near_);
            near_ = -1;
        }
        thread_.join();
        return status_;
    }

    void send(frame_kind kind, uint32_t id, const std::string & payload) {
        const uint32_t header[3] = {uint32_t(payload.size()), uint32_t(kind), id};
        write(header, sizeof header);
        write(payload.data(), payload.size());
    }
    // The last frame of request `id`; empty once the engine has closed the socket.
    std::string answer(uint32_t id) {
        for (uint32_t header[3]; read(header, sizeof header);) {
            std::string payload(header[0], '\0');
            CHECK(read(payload.data(), payload.size()));
            if (header[2] == id && frame_kind(header[1]) != frame_kind::LOAD_PROGRESS) {
                return payload;
            }
        }
        return "";
    }
    std::string load() {
        send(frame_kind::LOAD, 1, R"({"path": ")" + model_path + R"(", "threads": 2, "context_length": 256, "parallel": 1})");
        return answer(1);
    }

  private:
    void write(const void * bytes, size_t n) { // an engine that has ended hears nothing
        for (ssize_t sent = 0; n > 0 && (sent = ::send(near_, bytes, n, MSG_NOSIGNAL)) > 0; n -= size_t(sent)) {
            bytes = static_cast<const char *>(bytes) + sent;
        }
    }
    bool read(void * into, size_t n) {
        for (size_t got = 0; got < n;) {
            const ssize_t more = recv(near_, static_cast<char *>(into) + got, n - got, 0);
            CHECK(more >= 0 || errno == ECONNRESET);
            if (more <= 0) {
                return false;
            }
            got += size_t(more);
        }
        return true;
    }

    int near_ = -1;
    int32_t status_ = 1;
    lm::thread thread_;
};

static bool has(const std::string & text, const char * part) {
    return text.find(part) != std::string::npos;
}

TEST(whichever_thread_an_engine_cannot_have_only_that_engine_ends) {
    const int threads = n_threads();
    const int descriptors = n_descriptors();
    int n_ended = 0;
    bool one_was_missing = true;
    for (int there = 0; one_was_missing; there++) {
        CHECK(there < 1000);
        threads_left = 1 + there; // the first is the test's own
        served engine;
        const std::string answer = engine.load();
        one_was_missing = threads_left < 0;
        threads_left = INT_MAX;
        const bool loaded = has(answer, "\"context_length\"");
        n_ended += !loaded;
        CHECK(loaded || answer.empty() || has(answer, "out_of_memory") || has(answer, "load_failed"));
        CHECK(loaded || one_was_missing);
        CHECK(engine.end() == (answer.empty() ? LM_ERR_RESOURCES : LM_OK));
        CHECK(has_threads(threads) && n_descriptors() == descriptors);
    }
    CHECK(n_ended >= 4); // for want of the preparer, the writer, a compute thread, the decoder
}

TEST(a_request_that_is_too_large_for_the_memory_is_answered_and_others_are_served) {
    served engine;
    CHECK(has(engine.load(), "\"context_length\""));
    const std::string large(8 << 20, 'x');
    largest_block = 4 << 20;
    engine.send(frame_kind::TOKENIZE, 2, large);
    CHECK(has(engine.answer(2), "out_of_memory"));
    largest_block = SIZE_MAX;
    engine.send(frame_kind::STATS, 3, "");
    CHECK(has(engine.answer(3), "running"));
    CHECK(engine.end() == LM_OK);
}

TEST(an_engine_without_any_memory_ends_alone) {
    const int threads = n_threads();
    const int descriptors = n_descriptors();
    served engine;
    CHECK(has(engine.load(), "\"context_length\""));
    const std::string text = "{\"text\": \"" + std::string(500, 'x') + "\"}";
    largest_block = 32;
    engine.send(frame_kind::TOKENIZE, 2, text);
    CHECK(engine.answer(2).empty());
    largest_block = SIZE_MAX;
    CHECK(engine.end() == LM_ERR_RESOURCES);
    CHECK(has_threads(threads) && n_descriptors() == descriptors);
}

#endif
