// The sequence ids of the unified cache: which are free, which keep the cells of a finished request for a later one.
// A prompt takes the longest prefix that any finished or running sequence has in the cache by sharing its cells.
#pragma once

#include "model.h"
#include "sequence.h"

#include <list>
#include <vector>

namespace lm {

class prefix_cache {
  public:
    prefix_cache(llama_memory_t memory, sharing kind, int32_t n_sequences);

    // Gives `s` a sequence id and the longest prefix there is (never its last token, which must be computed), from idle
    // sequences or `running` ones. Evicts if no id is free. Sets s.seq and s.n_cached; false if no id can be had.
    bool assign(sequence & s, const std::vector<sequence *> & running);

    // Takes the cells of a sequence that ended, to be reused until they are evicted.
    void keep(sequence & s);
    // Frees the cells of a sequence at once.
    void drop(sequence & s);
    // Forgets the least recently used idle sequence; false if there is none.
    bool evict();

    size_t idle_tokens() const;

  private:
    struct entry {
        llama_seq_id seq;
        std::vector<llama_token> tokens;
        std::string cache_key;
    };
    struct source {
        llama_seq_id seq = -1;
        size_t shared = 0;
        std::list<entry>::iterator idle; // valid if `whole`
        bool whole = false;              // an idle entry that the prompt continues to the letter
    };
    source longest_prefix(const sequence & s, const std::vector<sequence *> & running);
    bool share(llama_seq_id from, sequence & s, size_t n);
    llama_seq_id take_free_id();

    llama_memory_t memory_; // borrowed from the context
    sharing kind_;
    std::vector<llama_seq_id> free_;
    std::list<entry> idle_; // most recently used first
};

}  // namespace lm
