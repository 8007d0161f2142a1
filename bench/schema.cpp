// What schemas cost with the vocabulary of a GGUF, and what they accept: `lmlite-schema-bench VOCABULARY.gguf [tokens]`. Run by
// bench/schema.py, which writes lines: S and a schema, T and a text for it, W. Answers one line each: "ok compile_us" or "no
// compile_us why"; "verdict n_tokens look_us... | mask_us...", where a look tests the token that comes next and 15 others, as a
// sampler does, and moves on; "greedy_us... | hot_us...", of tokens that are sampled from rows which know nothing of JSON, at
// temperature 0, and at 1 without a cut, less what that takes without a schema.
#include "fixture.h"
#include "error.h"
#include "grammar.h"
#include "matcher.h"
#include "sampler.h"

#include <algorithm>
#include <iostream>
#include <random>
#include <time.h>

using namespace lm;

std::string model_path; // of the fixture; not used

static constexpr int N_OTHERS = 15;
static constexpr size_t N_ROWS = 32;
static constexpr size_t N_SAMPLED = 40; // tokens of each walk

static double cpu_us() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return double(now.tv_sec) * 1e6 + double(now.tv_nsec) / 1e3;
}

// The longest token that the rest of the text begins with.
static llama_token next_token(const token_tree & tree, std::string_view rest) {
    llama_token best = -1;
    uint16_t depth = 0;
    for (size_t i = 0; i < tree.nodes().size();) {
        const token_tree::node & n = tree.nodes()[i];
        if (n.depth != depth + 1) {
            break;
        }
        if (depth == rest.size() || n.byte != uint8_t(rest[depth])) {
            i = n.next;
            continue;
        }
        depth++;
        best = n.ids_end > n.ids_begin ? tree.ids()[n.ids_begin] : best;
        i++;
    }
    return best;
}

// A few likely tokens over a bell.
static std::vector<std::vector<float>> make_rows(size_t n_vocab) {
    std::mt19937 rng(7);
    std::normal_distribution<float> bell(0, 2);
    std::vector<std::vector<float>> rows(N_ROWS, std::vector<float>(n_vocab));
    for (std::vector<float> & row : rows) {
        for (float & logit : row) {
            logit = bell(rng);
        }
        for (int i = 0; i < 40; i++) {
            row[rng() % n_vocab] += 14.0f - 0.25f * float(i);
        }
    }
    return rows;
}

// What each token takes that is sampled, in microseconds.
static std::vector<double> sample_some(const vocabulary & vocab, const std::vector<std::vector<float>> & rows, grammar_ptr g, float temperature, uint32_t seed) {
    sampling_params params;
    params.temperature = temperature;
    params.top_k = 0;
    params.top_p = 1;
    params.min_p = 0;
    params.seed = seed;
    sampler choose(params, vocab, g ? std::make_unique<matcher>(g, vocab) : nullptr, 4096);
    std::vector<double> us;
    std::vector<float> row;
    for (size_t i = 0; i < N_SAMPLED; i++) {
        row = rows[(seed + i) % rows.size()];
        const double before = cpu_us();
        const std::optional<llama_token> id = choose.sample(row.data());
        us.push_back(cpu_us() - before);
        if (!id || vocab.is_eog(*id)) {
            break;
        }
    }
    return us;
}

static double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + long(values.size() / 2), values.end());
    return values[values.size() / 2];
}

int main(int argc, char ** argv) {
    if (argc < 2) {
        return 2;
    }
    const vocabulary & vocab = load_vocab(argv[1]);
    const token_tree & tree = vocab.tree();
    if (argc > 2) { // the tokens, for others to compare with: their bytes, unless they end a text or are not shown
        for (llama_token id = 0; id < vocab.size(); id++) {
            for (const char c : vocab.piece(id)) {
                printf("%02x", uint8_t(c));
            }
            puts(vocab.is_eog(id) ? "end" : "");
        }
        return 0;
    }
    const std::vector<std::vector<float>> rows = make_rows(size_t(vocab.size()));
    const double plain[] = {median(sample_some(vocab, rows, nullptr, 0, 1)), median(sample_some(vocab, rows, nullptr, 1, 1))};
    std::mt19937 rng(1);
    uint32_t seed = 0;
    grammar_ptr g;
    for (std::string line; std::getline(std::cin, line);) {
        const std::string rest = line.substr(1);
        const double begin = cpu_us();
        if (line[0] == 'S') {
            g = nullptr;
            try {
                g = leaf_grammar(vocab, read_schema(rest), "response_format");
                std::cout << "ok " << cpu_us() - begin << std::endl;
            } catch (const error & e) {
                std::cout << "no " << cpu_us() - begin << " " << e.what() << std::endl;
            }
            continue;
        }
        if (line[0] == 'W') {
            seed++;
            for (const int hot : {0, 1}) {
                for (const double us : sample_some(vocab, rows, g, float(hot), seed)) {
                    std::cout << " " << us - plain[hot];
                }
                std::cout << (hot ? "" : " |");
            }
            std::cout << std::endl;
            continue;
        }
        matcher m(g, vocab);
        std::string looks;
        std::string masks;
        size_t n = 0;
        bool fits = true;
        for (std::string_view left = rest; fits && !left.empty(); n++) {
            const llama_token id = next_token(tree, left);
            double before = cpu_us();
            m.allowed();
            masks += " " + std::to_string(cpu_us() - before);
            before = cpu_us();
            for (int i = 0; i < N_OTHERS; i++) {
                m.allows(llama_token(rng() % size_t(vocab.size())));
            }
            fits = m.allows(id) && m.accept(id);
            looks += " " + std::to_string(cpu_us() - before);
            left.remove_prefix(tree.bytes(id).size());
        }
        std::cout << (fits && m.allows(tree.ends().front())) << " " << n << looks << " |" << masks << std::endl;
    }
}
