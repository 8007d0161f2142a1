// What schemas cost at a vocabulary of 152 k, and what they accept. Run by bench/schema.py, which writes lines: S and a schema, T
// and a text for it. Answers one line each: "ok compile_us" or "no compile_us why"; "verdict n_tokens look_us... | mask_us...",
// where a look tests the token that comes next and 15 others, as a sampler does, and moves on.
#include "fixture.h"
#include "error.h"
#include "grammar.h"
#include "matcher.h"

#include <iostream>
#include <random>
#include <time.h>

using namespace lm;

std::string model_path; // of the fixture; not used

static constexpr size_t N_VOCAB = 152064;
static constexpr int N_OTHERS = 15;

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

int main(int argc, char **) {
    const vocabulary & vocab = made_up_vocab(N_VOCAB);
    const token_tree & tree = vocab.tree();
    if (argc > 1) { // the tokens, for others to compare with
        for (llama_token id = 0; id < vocab.size(); id++) {
            for (const char c : tree.bytes(id)) {
                printf("%02x", uint8_t(c));
            }
            puts("");
        }
        return 0;
    }
    std::mt19937 rng(1);
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
                m.allows(llama_token(rng() % N_VOCAB));
            }
            fits = m.allows(id) && m.accept(id);
            looks += " " + std::to_string(cpu_us() - before);
            left.remove_prefix(tree.bytes(id).size());
        }
        std::cout << (fits && m.allows(2)) << " " << n << looks << " |" << masks << std::endl;
    }
}
