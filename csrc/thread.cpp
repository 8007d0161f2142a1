#include "thread.h"

#include "error.h"

#include <unistd.h>

namespace lm {

static void * run(void * what) {
    (*static_cast<thread::body *>(what))();
    return nullptr;
}

thread::thread(body what, size_t stack) : body_(std::make_unique<body>(std::move(what))) {
    pthread_attr_t attributes;
    int failed = pthread_attr_init(&attributes);
    if (failed == 0) {
        if (stack > 0) {
            failed = pthread_attr_setstacksize(&attributes, stack);
        }
        failed = failed != 0 ? failed : pthread_create(&handle_, &attributes, run, body_.get());
        pthread_attr_destroy(&attributes);
    }
    if (failed != 0) {
        throw error("out_of_memory", "no thread could be started");
    }
}

thread & thread::operator=(thread && other) noexcept {
    join();
    body_ = std::move(other.body_);
    handle_ = other.handle_;
    return *this;
}

void thread::join() {
    if (body_) {
        pthread_join(handle_, nullptr);
        body_.reset();
    }
}

descriptor::~descriptor() {
    ::close(fd_);
}

}  // namespace lm
