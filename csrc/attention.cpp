#include "attention.h"

#include "ggml-cpu.h"
#include "ggml-cpu-impl.h"
#include "simd-gemm.h"
#include "traits.h"
#include "vec.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace lm {
namespace {

constexpr int64_t TILE = 64; // cells that are computed with at a time, and the most rows (query x head)

// A run of queries at least this long is worth a matrix product.
constexpr int64_t LONG_RUN = 16;

// llama.cpp itself multiplies matrices from this many queries on: who sees fewer cells had no matrices alone.
constexpr int64_t LONG_BATCH = 64;

// A short run of one sequence alone that sees fewer cells is computed in llama.cpp's steps: it takes a few milliseconds either
// way. One that sees more, a chat's next message or guesses that are verified, would take ten times as long as in tiles.
constexpr int64_t FEW_CELLS = 128;

// From this many cells on, those of others cost a single query more than a look at the mask.
constexpr int64_t MANY_CELLS = 512;

// Queries after one another belong to one sequence if all of them see the same cells but for so many.
constexpr int64_t STRANGERS = 16;

constexpr ggml_fp16_t UNSEEN = 0xfc00; // minus infinity
constexpr float NEVER = -INFINITY;
constexpr size_t LINE = 64;

size_t in_lines(size_t bytes) {
    return (bytes + LINE - 1) / LINE * LINE;
}

// One call's tensors and numbers. Shapes: q [DK, queries, heads], k [DK, cells, kv heads], v [DV, cells, kv heads],
// mask [cells, queries] f16, out [DV, heads, queries].
struct problem {
    problem(const ggml_tensor * op, int n_threads)
        : out(op), q(op->src[0]), k(op->src[1]), v(op->src[2]), mask(op->src[3]), sinks(op->src[4]), n_queries(q->ne[1]),
          n_cells(k->ne[1]), n_heads(q->ne[2]), n_kv_heads(k->ne[2]), dk(k->ne[0]), dv(v->ne[0]), group(n_heads / n_kv_heads),
          n_words((n_cells + 63) / 64), key(ggml_get_type_traits_cpu(k->type)), value(ggml_get_type_traits(v->type)) {
        memcpy(&scale, op->op_params + 0, sizeof scale);
        memcpy(&max_bias, op->op_params + 1, sizeof max_bias);
        memcpy(&softcap, op->op_params + 2, sizeof softcap);
        if (softcap != 0) {
            scale /= softcap;
        }
        const auto has_work_for_all = [&] { return n_queries * n_heads / heads_at_once >= n_threads; };
        heads_at_once = std::min(group, TILE);
        while (group % heads_at_once != 0 || (heads_at_once > 1 && !has_work_for_all())) {
            heads_at_once--;
        }
    }

    static bool suits(const ggml_tensor * op);

    const float * query(int64_t i, int64_t head) const {
        return reinterpret_cast<const float *>(static_cast<const char *>(q->data) + size_t(i) * q->nb[1] + size_t(head) * q->nb[2]);
    }
    const char * cell(const ggml_tensor * of, int64_t i, int64_t kv_head) const {
        return static_cast<const char *>(of->data) + size_t(i) * of->nb[1] + size_t(kv_head) * of->nb[2];
    }
    const ggml_fp16_t * mask_row(int64_t i) const {
        return reinterpret_cast<const ggml_fp16_t *>(static_cast<const char *>(mask->data) + size_t(i) * mask->nb[1]);
    }
    float * answer(int64_t i, int64_t head) const {
        return reinterpret_cast<float *>(static_cast<char *>(out->data) + size_t(i * n_heads + head) * out->nb[1]);
    }
    // What the mask's numbers are multiplied with (ALiBi).
    float slope(int64_t head) const {
        if (max_bias <= 0) {
            return 1;
        }
        const auto n = int64_t(1) << int64_t(std::floor(std::log2(double(n_heads))));
        return head < n ? std::pow(std::pow(2.0f, -max_bias / float(n)), float(head + 1))
                        : std::pow(std::pow(2.0f, -max_bias / 2 / float(n)), float(2 * (head - n) + 1));
    }
    float score(float dot) const { return softcap == 0 ? dot : softcap * std::tanh(dot); }

    const ggml_tensor * out;
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * v;
    const ggml_tensor * mask;
    const ggml_tensor * sinks;
    int64_t n_queries, n_cells, n_heads, n_kv_heads, dk, dv;
    int64_t group; // heads that share a kv head
    int64_t heads_at_once; // of them in one task
    int64_t n_words; // of the bits of a query
    const ggml_type_traits_cpu * key;
    const ggml_type_traits * value;
    float scale, max_bias, softcap;
};

bool problem::suits(const ggml_tensor * op) {
    if (op->op != GGML_OP_FLASH_ATTN_EXT || op->src[3] == nullptr) {
        return false;
    }
    const ggml_tensor * q = op->src[0];
    const ggml_tensor * k = op->src[1];
    const ggml_tensor * v = op->src[2];
    const ggml_tensor * mask = op->src[3];
    const bool one_of_each = q->ne[3] == 1 && k->ne[3] == 1 && v->ne[3] == 1 && mask->ne[2] == 1 && mask->ne[3] == 1;
    return one_of_each && q->type == GGML_TYPE_F32 && mask->type == GGML_TYPE_F16 && k->ne[2] == v->ne[2] &&
           q->ne[2] % k->ne[2] == 0 && (v->type == GGML_TYPE_F32 || ggml_get_type_traits(v->type)->to_float != nullptr);
}

// ---- who sees what -----------------------------------------------------------------------------------------------------

// Queries that one task computes, for some heads of one kv head.
struct block {
    int64_t first, n;
    bool in_tiles;
};

// Calls `use` with the cells whose bits are set, in ascending order and at most TILE at a time.
template <typename Use> void each_tile(const uint64_t * bits, int64_t n_words, Use use) {
    int32_t cells[TILE];
    int64_t n = 0;
    for (int64_t word = 0; word < n_words; word++) {
        for (uint64_t left = bits[word]; left != 0; left &= left - 1) {
            cells[n++] = int32_t(word * 64 + __builtin_ctzll(left));
            if (n == TILE) {
                use(cells, n);
                n = 0;
            }
        }
    }
    if (n > 0) {
        use(cells, n);
    }
}

void read_mask(const ggml_fp16_t * mask, int64_t n_cells, uint64_t * bits) {
    for (int64_t from = 0; from < n_cells; from += 64, mask += 64) {
        const int64_t n = std::min<int64_t>(64, n_cells - from);
        unsigned any = 0;
        for (int64_t i = 0; i < n; i++) {
            any |= mask[i] ^ UNSEEN;
        }
        uint64_t word = 0;
        if (any != 0) {
            for (int64_t i = 0; i < n; i++) {
                word |= uint64_t(mask[i] != UNSEEN) << i;
            }
        }
        bits[from / 64] = word;
    }
}

// How many cells either sees.
int64_t merge(uint64_t * all, const uint64_t * one, int64_t n_words) {
    int64_t n = 0;
    for (int64_t i = 0; i < n_words; i++) {
        all[i] |= one[i];
        n += __builtin_popcountll(all[i]);
    }
    return n;
}

// The memory of a call: the bits of all queries, then for each thread its blocks and its numbers.
class workspace {
  public:
    workspace(const problem & p, int n_threads) : p_(p), n_threads_(n_threads) {
        bits_ = in_lines(size_t(p.n_queries * p.n_words) * sizeof(uint64_t));
        blocks_ = in_lines(size_t(p.n_queries) * sizeof(block));
        seen_ = in_lines(size_t(p.n_words) * sizeof(uint64_t));
        numbers_ = in_lines(size_t(TILE * (3 * p.dk + 2 * p.dv + 2 * TILE + 4)) * sizeof(float) + 8 * LINE);
    }
    size_t size() const { return LINE + bits_ + size_t(n_threads_) * (blocks_ + seen_ + numbers_); }

    uint64_t * bits(void * at, int64_t query) const { return reinterpret_cast<uint64_t *>(base(at)) + query * p_.n_words; }
    block * blocks(void * at, int thread) const { return reinterpret_cast<block *>(own(at, thread)); }
    uint64_t * seen(void * at, int thread) const { return reinterpret_cast<uint64_t *>(own(at, thread) + blocks_); }
    char * numbers(void * at, int thread) const { return own(at, thread) + blocks_ + seen_; }

  private:
    static char * base(void * at) { return reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(at) + LINE - 1) / LINE * LINE); }
    char * own(void * at, int thread) const { return base(at) + bits_ + size_t(thread) * (blocks_ + seen_ + numbers_); }

    const problem & p_;
    int n_threads_;
    size_t bits_, blocks_, seen_, numbers_;
};

// Hands out pieces of a thread's numbers.
class pieces {
  public:
    explicit pieces(char * at) : at_(at) {}
    template <typename T> T * take(int64_t n) {
        T * piece = reinterpret_cast<T *>(at_);
        at_ += in_lines(size_t(n) * sizeof(T));
        return piece;
    }

  private:
    char * at_;
};

// ---- the work ------------------------------------------------------------------------------------------------------------

class worker {
  public:
    worker(const problem & p, const ggml_compute_params & params)
        : p_(p), params_(params), work_(p, params.nth), seen_(work_.seen(params.wdata, params.ith)) {}

    // False: the kernels of llama.cpp are to do it.
    bool run();

  private:
    bool attend_alone();
    const uint64_t * bits(int64_t query) const { return work_.bits(params_.wdata, query); }
    int64_t find_blocks(block * into);
    void attend(const block & b, int64_t kv_head, int64_t head, int64_t n_heads);
    void attend_stepwise(int64_t query, const uint64_t * seen, int64_t kv_head, int64_t head, int64_t n_heads);
    void attend_in_tiles(const block & b, int64_t kv_head, int64_t head, int64_t n_heads);
    void unpack(const ggml_tensor * of, int64_t kv_head, const int32_t * cells, int64_t n, float * into, int64_t width) const;
    void fetch_ahead(const int32_t * cells, int64_t n, int64_t kv_head) const;
    void finish(float * sums, float most, float total, int64_t query, int64_t head) const;

    const problem & p_;
    const ggml_compute_params & params_;
    workspace work_;
    uint64_t * seen_;
};

bool worker::run() {
    if (p_.n_queries == 1) {
        return attend_alone();
    }
    const int64_t share = (p_.n_queries + params_.nth - 1) / params_.nth;
    for (int64_t i = share * params_.ith; i < std::min(p_.n_queries, share * (params_.ith + 1)); i++) {
        read_mask(p_.mask_row(i), p_.n_cells, work_.bits(params_.wdata, i));
    }
    if (params_.ith == 0) {
        ggml_threadpool_chunk_set(params_.threadpool, params_.nth);
    }
    ggml_barrier(params_.threadpool);
    block * blocks = work_.blocks(params_.wdata, params_.ith);
    const int64_t n_blocks = find_blocks(blocks);
    const int64_t parts = p_.group / p_.heads_at_once;
    const int64_t n_tasks = n_blocks * p_.n_kv_heads * parts;
    for (int64_t task = params_.ith; task < n_tasks; task = ggml_threadpool_chunk_add(params_.threadpool, 1)) {
        const int64_t from_end = n_tasks - 1 - task; // prompts lie behind the tokens of streams: what takes long goes first
        const int64_t part = from_end % parts;
        const int64_t kv_head = from_end / parts % p_.n_kv_heads;
        const int64_t head = kv_head * p_.group + part * p_.heads_at_once;
        attend(blocks[from_end / parts / p_.n_kv_heads], kv_head, head, p_.heads_at_once);
    }
    return true;
}

// A single query, if most of the cells are of others. Each thread does without the rest.
bool worker::attend_alone() {
    const ggml_fp16_t * mask = p_.mask_row(0);
    int64_t n_seen = 0;
    for (int64_t i = 0; i < p_.n_cells; i++) {
        n_seen += mask[i] != UNSEEN;
    }
    if (p_.n_cells < MANY_CELLS || n_seen > p_.n_cells / 2) {
        return false;
    }
    read_mask(mask, p_.n_cells, seen_);
    for (int64_t head = params_.ith * p_.heads_at_once; head < p_.n_heads; head += params_.nth * p_.heads_at_once) {
        attend_stepwise(0, seen_, head / p_.group, head, p_.heads_at_once);
    }
    return true;
}

// Runs of queries that see the same cells, cut to the size of a task. Every thread finds the same.
int64_t worker::find_blocks(block * into) {
    int64_t n_blocks = 0;
    int64_t first = 0;
    while (first < p_.n_queries) {
        std::fill(seen_, seen_ + p_.n_words, 0);
        int64_t most = merge(seen_, bits(first), p_.n_words);
        int64_t end = first + 1;
        bool is_one_text = true; // each query sees what the one before saw
        for (; end < p_.n_queries; end++) {
            int64_t own = 0;
            int64_t both = 0;
            for (int64_t i = 0; i < p_.n_words; i++) {
                own += __builtin_popcountll(bits(end)[i]);
                both += __builtin_popcountll(bits(end)[i] | seen_[i]);
            }
            if (both > std::max(own, most) + STRANGERS) {
                break;
            }
            is_one_text = is_one_text && both == own;
            most = merge(seen_, bits(end), p_.n_words);
        }
        const bool alone = first == 0 && end == p_.n_queries && p_.n_queries < LONG_BATCH;
        const bool in_tiles = alone ? p_.n_queries > 1 && is_one_text && most >= FEW_CELLS
                                    : end - first >= LONG_RUN && most >= LONG_BATCH;
        const int64_t most_queries = in_tiles ? std::max<int64_t>(1, TILE / p_.heads_at_once) : 1;
        const int64_t n_parts = (end - first + most_queries - 1) / most_queries;
        for (int64_t part = 0; part < n_parts; part++) {
            const int64_t from = first + (end - first) * part / n_parts;
            into[n_blocks++] = {from, first + (end - first) * (part + 1) / n_parts - from, in_tiles};
        }
        first = end;
    }
    return n_blocks;
}

void worker::attend(const block & b, int64_t kv_head, int64_t head, int64_t n_heads) {
    if (b.in_tiles) {
        return attend_in_tiles(b, kv_head, head, n_heads);
    }
    for (int64_t i = b.first; i < b.first + b.n; i++) {
        attend_stepwise(i, bits(i), kv_head, head, n_heads);
    }
}

void worker::fetch_ahead(const int32_t * cells, int64_t n, int64_t kv_head) const {
    for (const ggml_tensor * of : {p_.k, p_.v}) {
        const size_t bytes = ggml_row_size(of->type, of->ne[0]);
        for (int64_t i = 0; i < n; i++) {
            const char * row = p_.cell(of, cells[i], kv_head);
            for (size_t at = 0; at < bytes; at += LINE) {
                __builtin_prefetch(row + at);
            }
        }
    }
}

// The sums of a row, scaled to its answer. A sink is one more cell that is seen and has no value.
void worker::finish(float * sums, float most, float total, int64_t query, int64_t head) const {
    if (p_.sinks != nullptr) {
        const float sink = static_cast<const float *>(p_.sinks->data)[head];
        if (sink > most) {
            const float shrink = std::exp(most - sink);
            ggml_vec_scale_f32(int(p_.dv), sums, shrink);
            total = total * shrink + 1;
        } else {
            total += std::exp(sink - most);
        }
    }
    ggml_vec_scale_f32(int(p_.dv), sums, total == 0 ? 0 : 1 / total);
    memcpy(p_.answer(query, head), sums, size_t(p_.dv) * sizeof(float));
}

// Cell by cell, with the roundings of llama.cpp's kernel for few queries: 16-bit sums where values are 16-bit floats.
void worker::attend_stepwise(int64_t query, const uint64_t * seen, int64_t kv_head, int64_t head, int64_t n_heads) {
    pieces memory(work_.numbers(params_.wdata, params_.ith));
    const bool half = p_.v->type == GGML_TYPE_F16;
    const ggml_type dot_type = p_.key->vec_dot_type;
    const size_t row = in_lines(ggml_row_size(dot_type, p_.dk));
    char * queries = memory.take<char>(int64_t(row) * n_heads);
    float * sums = memory.take<float>(p_.dv * n_heads);
    auto * half_sums = memory.take<ggml_fp16_t>(half ? p_.dv * n_heads : 0);
    float * value = memory.take<float>(p_.dv);
    float * most = memory.take<float>(n_heads);
    float * total = memory.take<float>(n_heads);
    float * slope = memory.take<float>(n_heads);
    for (int64_t h = 0; h < n_heads; h++) {
        slope[h] = p_.slope(head + h);
        ggml_get_type_traits_cpu(dot_type)->from_float(p_.query(query, head + h), queries + size_t(h) * row, p_.dk);
        most[h] = NEVER;
        total[h] = 0;
    }
    memset(sums, 0, size_t(p_.dv * n_heads) * sizeof(float));
    if (half) {
        memset(half_sums, 0, size_t(p_.dv * n_heads) * sizeof(ggml_fp16_t));
    }
    const ggml_fp16_t * mask = p_.mask_row(query);
    const int n = int(p_.dv);
    each_tile(seen, p_.n_words, [&](const int32_t * cells, int64_t n_cells) {
        fetch_ahead(cells, n_cells, kv_head);
        for (int64_t h = 0; h < n_heads; h++) {
            for (int64_t i = 0; i < n_cells; i++) {
                float dot;
                p_.key->vec_dot(int(p_.dk), &dot, 0, p_.cell(p_.k, cells[i], kv_head), 0, queries + size_t(h) * row, 0, 1);
                const float s = p_.score(dot * p_.scale) + slope[h] * GGML_CPU_FP16_TO_FP32(mask[cells[i]]);
                float shrink = 1;
                float weight = 1;
                if (s > most[h]) {
                    shrink = expf(most[h] - s);
                    most[h] = s;
                } else {
                    weight = expf(s - most[h]);
                }
                const char * v = p_.cell(p_.v, cells[i], kv_head);
                if (half) {
                    ggml_fp16_t * to = half_sums + h * p_.dv;
                    if (shrink != 1) {
                        ggml_vec_scale_f16(n, to, shrink);
                    }
                    ggml_vec_mad_f16(n, to, reinterpret_cast<const ggml_fp16_t *>(v), weight);
                } else {
                    const float * from = reinterpret_cast<const float *>(v);
                    if (p_.v->type != GGML_TYPE_F32) {
                        p_.value->to_float(v, value, p_.dv);
                        from = value;
                    }
                    if (shrink != 1) {
                        ggml_vec_scale_f32(n, sums + h * p_.dv, shrink);
                    }
                    ggml_vec_mad_f32(n, sums + h * p_.dv, from, weight);
                }
                total[h] = total[h] * shrink + weight;
            }
        }
    });
    for (int64_t h = 0; h < n_heads; h++) {
        if (half) {
            ggml_cpu_fp16_to_fp32(half_sums + h * p_.dv, sums + h * p_.dv, p_.dv);
        }
        finish(sums + h * p_.dv, most[h], total[h], query, head + h);
    }
}

// The cells' rows as floats, [n, width].
void worker::unpack(const ggml_tensor * of, int64_t kv_head, const int32_t * cells, int64_t n, float * into, int64_t width) const {
    for (int64_t i = 0; i < n; i++) {
        const char * row = p_.cell(of, cells[i], kv_head);
        if (of->type == GGML_TYPE_F16) {
            ggml_cpu_fp16_to_fp32(reinterpret_cast<const ggml_fp16_t *>(row), into + i * width, width);
        } else if (of->type == GGML_TYPE_F32) {
            memcpy(into + i * width, row, size_t(width) * sizeof(float));
        } else {
            ggml_get_type_traits(of->type)->to_float(row, into + i * width, width);
        }
    }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define LMLITE_SHUFFLES
#endif
#endif

typedef float eight __attribute__((vector_size(32)));

#ifdef LMLITE_SHUFFLES
// 8 x 8 numbers.
void transpose_square(const float * from, int64_t from_width, float * to, int64_t to_width) {
    eight r[8], s[8];
    for (int i = 0; i < 8; i++) {
        memcpy(&r[i], from + i * from_width, sizeof r[i]);
    }
    for (int i = 0; i < 8; i += 2) {
        s[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        s[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (const int i : {0, 1, 4, 5}) {
        r[i] = __builtin_shufflevector(s[i], s[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        r[i + 2] = __builtin_shufflevector(s[i], s[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    for (int i = 0; i < 4; i++) {
        s[i] = __builtin_shufflevector(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        s[i + 4] = __builtin_shufflevector(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    for (int i = 0; i < 8; i++) {
        memcpy(to + i * to_width, &s[i], sizeof s[i]);
    }
}
#endif

// [TILE, width] to [width, TILE].
void transpose(const float * from, int64_t width, float * to) {
    int64_t x = 0;
#ifdef LMLITE_SHUFFLES
    for (; x + 8 <= width; x += 8) {
        for (int64_t y = 0; y < TILE; y += 8) {
            transpose_square(from + y * width + x, width, to + x * TILE + y, TILE);
        }
    }
#endif
    for (; x < width; x++) {
        for (int64_t y = 0; y < TILE; y++) {
            to[x * TILE + y] = from[y * width + x];
        }
    }
}

float highest_of(const float * tile) {
    eight most;
    float lanes[8];
    memcpy(&most, tile, sizeof most);
    for (int64_t i = 8; i < TILE; i += 8) {
        eight x;
        memcpy(&x, tile + i, sizeof x);
        most = x > most ? x : most;
    }
    memcpy(lanes, &most, sizeof lanes);
    return *std::max_element(lanes, lanes + 8);
}

// As products of matrices, TILE cells at a time, in 32-bit floats. Row r is head r % n_heads of query r / n_heads.
void worker::attend_in_tiles(const block & b, int64_t kv_head, int64_t head, int64_t n_heads) {
    const int64_t n_rows = b.n * n_heads;
    pieces memory(work_.numbers(params_.wdata, params_.ith));
    float * queries = memory.take<float>(TILE * p_.dk);
    float * rows = memory.take<float>(TILE * std::max(p_.dk, p_.dv));
    float * keys = memory.take<float>(TILE * p_.dk);
    float * sums = memory.take<float>(TILE * p_.dv);
    float * scores = memory.take<float>(TILE * TILE);
    float * masks = memory.take<float>(TILE * TILE);
    float * most = memory.take<float>(TILE);
    float * total = memory.take<float>(TILE);
    float * slopes = memory.take<float>(n_heads);
    for (int64_t h = 0; h < n_heads; h++) {
        slopes[h] = p_.slope(head + h);
    }
    std::fill(seen_, seen_ + p_.n_words, 0);
    for (int64_t i = 0; i < b.n; i++) {
        merge(seen_, bits(b.first + i), p_.n_words);
        for (int64_t h = 0; h < n_heads; h++) {
            float * row = queries + (i * n_heads + h) * p_.dk;
            memcpy(row, p_.query(b.first + i, head + h), size_t(p_.dk) * sizeof(float));
            ggml_vec_scale_f32(int(p_.dk), row, p_.scale);
        }
    }
    std::fill(most, most + n_rows, NEVER);
    std::fill(total, total + n_rows, 0);
    memset(sums, 0, size_t(n_rows * p_.dv) * sizeof(float));
    each_tile(seen_, p_.n_words, [&](const int32_t * cells, int64_t n) {
        unpack(p_.k, kv_head, cells, n, rows, p_.dk);
        std::fill(rows + n * p_.dk, rows + TILE * p_.dk, 0.0f);
        transpose(rows, p_.dk, keys);
        memset(scores, 0, size_t(n_rows * TILE) * sizeof(float));
        simd_gemm(scores, queries, keys, int(n_rows), int(p_.dk), int(TILE));
        for (int64_t i = 0; i < b.n; i++) {
            const ggml_fp16_t * mask = p_.mask_row(b.first + i);
            for (int64_t c = 0; c < n; c++) {
                masks[i * TILE + c] = GGML_CPU_FP16_TO_FP32(mask[cells[c]]);
            }
            std::fill(masks + i * TILE + n, masks + (i + 1) * TILE, NEVER);
        }
        unpack(p_.v, kv_head, cells, n, rows, p_.dv);
        std::fill(rows + n * p_.dv, rows + TILE * p_.dv, 0.0f);
        for (int64_t r = 0; r < n_rows; r++) {
            float * score = scores + r * TILE;
            const float * mask = masks + r / n_heads * TILE;
            const float slope = slopes[r % n_heads];
            if (p_.softcap != 0) {
                for (int64_t c = 0; c < TILE; c++) {
                    score[c] = p_.score(score[c]);
                }
            }
            for (int64_t c = 0; c < TILE; c++) {
                score[c] += slope * mask[c];
            }
            const float highest = std::max(most[r], highest_of(score));
            if (highest == NEVER) { // this row sees none of these
                memset(score, 0, TILE * sizeof(float));
                continue;
            }
            if (highest > most[r]) {
                const float shrink = std::exp(most[r] - highest);
                ggml_vec_scale_f32(int(p_.dv), sums + r * p_.dv, shrink);
                total[r] *= shrink;
                most[r] = highest;
            }
            total[r] += float(ggml_vec_soft_max_f32(int(TILE), score, score, highest));
        }
        simd_gemm(sums, scores, rows, int(n_rows), int(TILE), int(p_.dv));
    });
    for (int64_t r = 0; r < n_rows; r++) {
        finish(sums + r * p_.dv, most[r], total[r], b.first + r / n_heads, head + r % n_heads);
    }
}

// ---- the place in ggml ---------------------------------------------------------------------------------------------------

class kernel : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        size = workspace(problem(op, n_threads), n_threads).size();
        return false; // ggml adds what its own kernels need, which may be called upon
    }
    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const problem p(op, params->nth);
        return worker(p, *params).run();
    }
};

// ggml asks "extra" buffer types whether one of them wants to compute an operation. No tensor is ever in a buffer of this.
class hook : public ggml::cpu::extra_buffer_type {
  public:
    bool supports_op(ggml_backend_dev_t, const ggml_tensor *) override { return false; }
    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        return problem::suits(op) ? &kernel_ : nullptr;
    }

  private:
    kernel kernel_;
};

}  // namespace

void install_attention() {
    static hook here;
    static ggml_backend_buffer_type type = {{}, nullptr, &here};
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    const auto extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts"));
    extra(cpu); // remembers the list as it is now: weights are never offered a place in ours
    ggml_backend_cpu_get_extra_buffer_types().push_back(&type);
}

}  // namespace lm
