#include "infill.h"

#include "error.h"
#include "payload.h"

#include <algorithm>

namespace lm {

// Of a context that an answer of unknown length gets at least.
static constexpr size_t ANSWER_SHARE = 8;

// What stands after the gap gets at least this share of the room, if it wants it: what stands before says more.
static constexpr size_t SUFFIX_SHARE = 4;

using tokens = std::vector<llama_token>;

static void append(tokens & all, const tokens & more) {
    all.insert(all.end(), more.begin(), more.end());
}

static void check_vocabulary(const llama_vocab * vocab) {
    std::string missing;
    for (const auto & [id, name] : {std::pair(llama_vocab_fim_pre(vocab), "prefix"), std::pair(llama_vocab_fim_suf(vocab), "suffix"),
                                    std::pair(llama_vocab_fim_mid(vocab), "middle")}) {
        if (id == LLAMA_TOKEN_NULL) {
            missing += (missing.empty() ? "" : ", ") + std::string(name);
        }
    }
    if (!missing.empty()) {
        const std::string needs = "filling in the middle (its vocabulary has no token for: " + missing + ")";
        throw error("model_type", "the model does not support " + needs, json_object().add("needs", needs).text());
    }
}

// The other files, each behind a mark of its own where the vocabulary has one, with a name for the project and for the file
// that has the gap: models that know such marks were trained so.
static tokens write_files(const infill_prompt & infill, const vocabulary & vocab, size_t limit) {
    tokens all;
    const llama_token project = llama_vocab_fim_rep(vocab.get());
    const llama_token file = llama_vocab_fim_sep(vocab.get());
    const auto say = [&](const std::string & text) { append(all, vocab.tokenize(text, false, false)); };
    if (project != LLAMA_TOKEN_NULL) {
        all.push_back(project);
        say("myproject\n");
    }
    for (const infill_prompt::file & other : *infill.files) {
        if (file != LLAMA_TOKEN_NULL) {
            all.push_back(file);
            say(other.name + "\n");
        } else {
            say("\n\n--- snippet ---\n\n");
        }
        append(all, vocab.tokenize_ends(other.text, limit, false, false));
    }
    if (file != LLAMA_TOKEN_NULL) {
        all.push_back(file);
        say("filename\n");
    }
    return all;
}

tokens write_infill(const infill_prompt & infill, const vocabulary & vocab, size_t limit, int32_t max_tokens) {
    const llama_vocab * marks = vocab.get();
    check_vocabulary(marks);
    const auto read = [&](const std::string & text) {
        return infill.fits ? vocab.tokenize_ends(text, limit, false, false) : vocab.tokenize_within(text, limit, 1, false, false);
    };
    tokens prefix = read(infill.prefix);
    tokens suffix = read(infill.suffix);
    const tokens begun = vocab.tokenize_within(infill.begun, limit, 1, false, true);
    tokens files = infill.files ? write_files(infill, vocab, limit) : tokens();

    const bool has_bos = llama_vocab_get_add_bos(marks);
    const size_t needed = begun.size() + 3 + (has_bos ? 1 : 0);
    const size_t answer = max_tokens > 0 ? std::min(size_t(max_tokens), limit / 2) : std::max<size_t>(limit / ANSWER_SHARE, 1);
    if (needed + answer > limit || (!infill.fits && needed + prefix.size() + suffix.size() >= limit)) {
        throw context_overflow(needed + prefix.size() + suffix.size() + 1, limit);
    }
    if (infill.fits) {
        size_t room = limit - needed - answer;
        const size_t rest = room - std::min(room, prefix.size());
        suffix.resize(std::min(suffix.size(), std::max(room / SUFFIX_SHARE, rest)));
        room -= suffix.size();
        prefix.erase(prefix.begin(), prefix.end() - long(std::min(prefix.size(), room)));
        room -= prefix.size();
        files.erase(files.begin(), files.end() - long(std::min(files.size(), room)));
    }

    tokens all;
    all.reserve(needed + files.size() + prefix.size() + suffix.size());
    if (has_bos) {
        all.push_back(llama_vocab_bos(marks));
    }
    append(all, files);
    all.push_back(llama_vocab_fim_pre(marks));
    append(all, prefix);
    append(all, begun);
    all.push_back(llama_vocab_fim_suf(marks));
    append(all, suffix);
    all.push_back(llama_vocab_fim_mid(marks));
    return all;
}

}  // namespace lm
