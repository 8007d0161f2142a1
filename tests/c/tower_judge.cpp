// What a tower does with a sound, and how often. Of the folder that is named: model.gguf, and its projector mmproj.gguf.
#include "check.h"
#include "tower.h"

#include <fstream>
#include <iterator>

using namespace lm;

static std::string content(const std::string & name) {
    std::ifstream file(model_path + "/" + name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

static std::shared_ptr<media_file> sound_file(std::string bytes) {
    const std::string digest = digest_of(bytes);
    return std::make_shared<media_file>(
        media_file{media_kind::sound, counted_bytes(std::move(bytes), std::make_shared<std::atomic<size_t>>(0)), digest});
}

// So that nobody can decode it once more.
static void forget_bytes(media_file & file) {
    const counted_bytes gone(std::move(file.data));
}

PROGRAM(listen_once) {
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    llama_model * text = llama_model_load_from_file((model_path + "/model.gguf").c_str(), params);
    CHECK(text != nullptr);
    tower::settings wanted;
    wanted.path = model_path + "/mmproj.gguf";
    wanted.use_gpu = false;
    {
        tower t(wanted, text, [](float) { return true; });
        const std::string bytes = content("sound.wav");
        const auto first = sound_file(bytes);
        const auto second = sound_file(bytes);
        const media_prompt prompt = t.tokenize({{"", true, size_t(0)}}, {first});
        CHECK(t.knows_length(*first) && t.knows_length(*second));
        CHECK(t.has_heard(*first) && !t.has_heard(*second));
        t.listen_to(0, {second});
        CHECK(t.has_heard(*second));
        const media_prompt again = t.tokenize({{"", true, size_t(0)}}, {second});
        CHECK(prompt.parts.size() == 2 && again.parts.size() == 2);
        forget_bytes(*first);
        forget_bytes(*second);
        for (size_t i = 0; i < 2; i++) { // in turns, as those of two requests are
            const media_rows rows = t.encode(prompt.parts[i], [] { return true; });
            CHECK(rows && *rows == *t.encode(again.parts[i], [] { return true; }));
            t.keep_rows(prompt.parts[i].key, rows);
        }
        CHECK(first->cut == nullptr && second->cut == nullptr); // nothing of them is encoded any more
        CHECK(t.has_heard(*first)); // its rows are known
    }
    llama_model_free(text);
}
