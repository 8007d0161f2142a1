// What a build for GPUs says where there is none.
#include "check.h"

#include "model.h"

#include "ggml-backend.h"
#include "llama.h"
#include "ggml/src/ggml-backend-impl.h"

using namespace lm;

static ggml_backend_reg backend_without_devices(const char * name) {
    ggml_backend_reg backend = {};
    backend.api_version = GGML_BACKEND_API_VERSION;
    backend.iface.get_name = [](ggml_backend_reg_t it) { return static_cast<const char *>(it->context); };
    backend.iface.get_device_count = [](ggml_backend_reg_t) { return size_t(0); };
    backend.context = const_cast<char *>(name);
    return backend;
}

TEST(a_build_for_gpus_that_finds_none_says_so) {
    const bool has_gpu = llama_supports_gpu_offload();
    const bool is_for_cpus = ggml_backend_reg_count() == 1;
    CHECK(told_without_gpu().empty() == (has_gpu || is_for_cpus));
    static ggml_backend_reg backend = backend_without_devices("Abacus");
    ggml_backend_register(&backend);
    CHECK(told_without_gpu().empty() == has_gpu);
    CHECK(!is_for_cpus || told_without_gpu().find("Abacus, which found no GPU") != std::string::npos);
}
