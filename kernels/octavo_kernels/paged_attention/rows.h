// What some rows of queries see of one split of keys: scores, weights, weighted sums. For attention over a paged cache
// (cpu.cpp) and over whole texts (encoder/attention.h).
#pragma once

#include <algorithm>

#include "paged_attention/cpu.h"

namespace octavo {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr int kRows = OCTAVO_ISA >= 2 ? 6 : 2;  // rows in registers: 6 x 4 sums, 4 operands, 1 broadcast of 32

template <class T>
constexpr int64_t kPerWord = 4 / sizeof(T);

// The keys and values of a split, wherever its cells lie, and what 8-bit ones are multiplied with.
struct Split {
    int64_t key, cells;  // its first position, and how many cells of it hold keys
    int64_t cell_bytes;  // of keys, as of values
    const float* k[kSplit / kCell];
    const float* v[kSplit / kCell];
    bool scaled;
    alignas(64) float k_scales[kSplit];
    alignas(64) float v_scales[kSplit];
};

// What rows have seen so far: R rows of unnormalised sums, their weights' sum and the maximum score.
struct Rows {
    float* sums;     // [rows][padded]
    float* weight;   // [rows]
    float* highest;  // [rows]
};

// What a row sees: keys first..last; its own position; and its head's slope (ALiBi), 0 for none.
struct Visible {
    int32_t first, last, own;
    float slope;
};

struct Shape {
    int64_t dim, padded, words;
    float scale, softcap;
    bool sloped;
    const float* bias;  // what a score gains by the key's position less the row's, which may be negative; or null
};

// Scores of all keys of a split that some of the rows see (kRows of them at most), their weights, and the weighted sums of
// values, which join those of earlier splits. q: packed rows (pack_query). fetch: whether cells are fetched ahead.
template <class T>
void attend_rows(int64_t count, const Split& split, const float* q, const Shape& shape, const Visible* seen, bool fetch,
                 Rows rows);

// Adds a later part of the context to an earlier one, as weigh_columns does.
void merge_row(Rows row, const float* later, float later_weight, float later_highest, int64_t padded);

inline Rows from_row(Rows rows, int64_t row, int64_t padded) {
    return {rows.sums + row * padded, rows.weight + row, rows.highest + row};
}

template <class T, class Q>
void pack_query(const Q* q, int64_t dim, int64_t words, float* to) {
    T* values = (T*)to;
    if constexpr (sizeof(Q) == 4) {
        for (int64_t d = 0; d < dim; d += kLanes) store_part(values + d, load_part(q + d, dim - d), dim - d);
    } else {
        for (int64_t d = 0; d < dim; ++d) values[d] = from_float<T>(to_float(q[d]));
    }
    for (int64_t d = dim; d < words * kPerWord<T>; ++d) values[d] = from_float<T>(0);
}

inline void clear(Rows rows, int64_t count, int64_t padded) {
    std::memset(rows.sums, 0, count * padded * sizeof(float));
    std::memset(rows.weight, 0, count * sizeof(float));
    std::fill(rows.highest, rows.highest + count, kNone);
}

constexpr float kLog2e = 1.44269504088896341f;

// The weights' sum of a row, whose scores are powers of two, with that of its head's sink.
inline float with_sink(float weight, float highest, const float* sinks, int64_t head) {
    return sinks ? weight + std::exp2(sinks[head] * kLog2e - highest) : weight;
}

template <class Q>
void write_row(const float* sums, float weight, int64_t dim, Q* out) {
    const Vec share = splat(1.f / weight);
    for (int64_t d = 0; d < dim; d += kLanes) store_part(out + d, load(sums + d) * share, dim - d);
}

}  // namespace octavo
