// Attention of one text and one KV head: all tokens see each other, or those that lie within reach.
//
// Keys and values are packed into cells as in a paged cache (paged_attention/cpu.h) and attended to by its inner loops.
// A row's bits depend on its text alone: rows are taken together from the text's first token on.
#pragma once

#include "linear/input.h"
#include "paged_attention/cells.h"

namespace octavo::encoder {

// What one thread needs for it.
class Room {
    Buffer memory;

public:
    float *k, *v;    // cells of all keys
    void* rows;      // 16 keys or values, rounded
    float* query;    // of kRows rows
    Rows sums;

    void reserve(int64_t tokens, int64_t padded) {
        const int64_t cells = (tokens + kCell - 1) / kCell * kCell * padded;
        k = memory.floats(2 * cells + (kCell + 2 * kRows) * padded + 2 * kCell);
        v = k + cells, rows = v + cells, query = (float*)rows + kCell * padded;
        sums.sums = query + kRows * padded, sums.weight = sums.sums + kRows * padded, sums.highest = sums.weight + kCell;
    }
};

// Queries, keys and values of a text, in rows of `stride` values; where its outputs go.
struct Heads {
    const float *q, *k, *v;
    int64_t stride, count;
    float* out;
    int64_t out_stride;
};

// 16 rows of dim values rounded to T and padded; rows that are not there are 0.
template <class T>
void round_rows(const float* from, int64_t stride, int64_t count, int64_t dim, int64_t padded, T* to) {
    if (count < kCell || dim < padded) std::memset(to, 0, kCell * padded * sizeof(T));
    for (int64_t r = 0; r < count; ++r)
        for (int64_t d = 0; d < dim; d += kLanes)
            store_part(to + r * padded + d, load_part(from + r * stride + d, dim - d), dim - d);
}

template <class T>
void pack_keys(const T* rows, int64_t padded, T* cell) {
    const int64_t words = padded / kPerWord<T>;
    const uint32_t* from = (const uint32_t*)rows;
    uint32_t* to = (uint32_t*)cell;
    for (int64_t word = 0; word < words; ++word)
        for (int64_t place = 0; place < kCell; ++place) to[word * kCell + place] = from[place * words + word];
}

template <class T>
void pack_values(const T* rows, int64_t padded, T* cell) {
    constexpr int64_t together = kPerWord<T>;
    for (int64_t place = 0; place < kCell; place += together)
        for (int64_t d = 0; d < padded; ++d)
            for (int64_t i = 0; i < together; ++i) cell[place * padded + d * together + i] = rows[(place + i) * padded + d];
}

template <class T>
void pack_cells(const Heads& heads, int64_t dim, int64_t padded, const Room& room) {
    T *k = (T*)room.k, *v = (T*)room.v, *rows = (T*)room.rows;
    for (int64_t at = 0; at < heads.count; at += kCell) {
        const int64_t count = std::min(kCell, heads.count - at);
        round_rows(heads.k + at * heads.stride, heads.stride, count, dim, padded, rows);
        pack_keys(rows, padded, k + at * padded);
        round_rows(heads.v + at * heads.stride, heads.stride, count, dim, padded, rows);
        pack_values(rows, padded, v + at * padded);
    }
}

// The keys from `key` on, at most a split of them.
template <class T>
void find_split(const Room& room, int64_t key, int64_t count, int64_t padded, Split& split) {
    split.key = key, split.scaled = false;
    split.cells = (std::min(kSplit, count - key) + kCell - 1) / kCell;
    split.cell_bytes = kCell * padded * sizeof(T);
    for (int64_t cell = 0; cell < split.cells; ++cell) {
        split.k[cell] = (const float*)((const T*)room.k + (key + cell * kCell) * padded);
        split.v[cell] = (const float*)((const T*)room.v + (key + cell * kCell) * padded);
    }
}

// One query head, for some of the text's tokens (the first is a multiple of kRows): the cells are packed.
template <class T>
void attend_tokens(const Heads& heads, Range tokens, const Shape& shape, int64_t reach, const Room& room) {
    Split split;
    Visible seen[kRows];
    for (int64_t first = tokens.begin; first < tokens.end; first += kRows) {
        const int64_t rows = std::min<int64_t>(kRows, tokens.end - first), last = heads.count - 1;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t own = first + r;
            pack_query<T>(heads.q + own * heads.stride, shape.dim, shape.words, room.query + r * shape.words);
            seen[r] = {int32_t(std::max<int64_t>(0, own - reach)), int32_t(std::min(last, own + reach)), int32_t(own), 0};
        }
        clear(room.sums, rows, shape.padded);
        for (int64_t key = seen[0].first / kSplit * kSplit; key <= seen[rows - 1].last; key += kSplit) {
            find_split<T>(room, key, heads.count, shape.padded, split);
            attend_rows<T>(rows, split, room.query, shape, seen, false, room.sums);
        }
        for (int64_t r = 0; r < rows; ++r)
            write_row(room.sums.sums + r * shape.padded, room.sums.weight[r], shape.dim,
                      heads.out + (first + r) * heads.out_stride);
    }
}

}  // namespace octavo::encoder
