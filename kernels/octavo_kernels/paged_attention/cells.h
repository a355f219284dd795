// Where the cells of a cache lie, and how keys and values are read from them.
#pragma once

#include "paged_attention/rows.h"

namespace octavo {

inline int64_t slot_of(const Sequences& s, int64_t sequence, int64_t position, int64_t block_size) {
    return s.tables[sequence * s.table_stride + position / block_size] * block_size + position % block_size;
}

// A cell of a packed cache: one of its block's.
struct Place {
    int64_t block, cell;
};

inline Place place_of(const KvCache& cache, int64_t slot) {
    return {slot / cache.block_size, slot % cache.block_size / kCell};
}

inline Place find_place(const KvCache& cache, const Sequences& s, int64_t sequence, int64_t position) {
    const int64_t cells = cache.block_size / kCell, index = position / kCell / cells;
    return {s.tables[sequence * s.table_stride + index], position / kCell - index * cells};
}

// T: the type it is stored in.
template <class T>
T* packed_cell(const KvCache& cache, const void* base, Place place, int64_t head) {
    const int64_t cells = cache.block_size / kCell;
    return (T*)((char*)base + place.block * cache.block_bytes) + (head * cells + place.cell) * cache.cell_values();
}

// The scales of a cell of 8-bit keys or values.
inline float* scales_of(const KvCache& cache, const void* base, Place place, int64_t head) {
    const int64_t codes = cache.heads * cache.block_size * cache.padded_dim();
    float* scales = (float*)((char*)base + place.block * cache.block_bytes + codes);
    return scales + head * cache.block_size + place.cell * kCell;
}

template <class T>
int64_t key_index(int64_t place, int64_t d) {
    return (d / kPerWord<T> * kCell + place) * kPerWord<T> + d % kPerWord<T>;
}

template <class T>
int64_t value_index(int64_t place, int64_t d, int64_t padded) {
    return (place / kPerWord<T> * padded + d) * kPerWord<T> + place % kPerWord<T>;
}

OCTAVO_INLINE void store_weights(float* p, Vec v) { store(p, v); }
OCTAVO_INLINE void store_weights(bf16* p, Vec v) {
#if OCTAVO_ISA >= 2
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);  // takes weights below 1e-38 for 0
    std::memcpy(p, &rounded, sizeof rounded);
#else
    store(p, v);
#endif
}

// Places `from` to `valid` of a cell of a plain cache, packed; the rest 0: those before may lie in blocks that are given
// back, where anything may be.
template <class T>
void pack_cell(const KvCache& cache, const Sequences& sequences, int64_t sequence, int64_t position, int64_t from,
               int64_t valid, int64_t head, T* k, T* v) {
    std::memset(k, 0, cache.cell_values() * sizeof(T));
    std::memset(v, 0, cache.cell_values() * sizeof(T));
    for (int64_t i = from; i < valid; ++i) {
        const int64_t slot = slot_of(sequences, sequence, position + i, cache.block_size);
        const T* key = (const T*)cache.k + (slot * cache.heads + head) * cache.dim;
        const T* value = (const T*)cache.v + (slot * cache.heads + head) * cache.dim;
        for (int64_t d = 0; d < cache.dim; ++d) k[key_index<T>(i, d)] = key[d];
        for (int64_t d = 0; d < cache.dim; ++d) v[value_index<T>(i, d, cache.padded_dim())] = value[d];
    }
}

// The first `valid` values of a packed cell; the rest, which may be anything, as 0: a weight of 0 times NaN is NaN.
template <class T>
void clean_values(const T* from, int64_t valid, int64_t padded, T* to) {
    const int64_t whole = valid / kPerWord<T> * kPerWord<T> * padded;
    std::memcpy(to, from, whole * sizeof(T));
    std::memset(to + whole, 0, (kCell * padded - whole) * sizeof(T));
    if (valid % kPerWord<T> == 0) return;
    for (int64_t d = 0; d < padded; ++d) to[value_index<T>(valid - 1, d, padded)] = from[value_index<T>(valid - 1, d, padded)];
}

OCTAVO_INLINE Vec load_codes(const int8_t* p) {
#if OCTAVO_ISA >= 2
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif OCTAVO_ISA == 1
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    Vec v;
    for (int i = 0; i < kLanes; ++i) v[i] = p[i];
    return v;
#endif
}

// `count` codes (a multiple of 64) as T, which holds each exactly.
template <class T>
OCTAVO_INLINE void unpack_codes(const int8_t* codes, int64_t count, T* to) {
    for (int64_t i = 0; i < count; i += kLanes) store_weights(to + i, load_codes(codes + i));
}

#if OCTAVO_ISA >= 2
struct Bf16Bytes {
    alignas(64) uint8_t low[128] = {}, high[128] = {};

    constexpr Bf16Bytes() {
        for (int x = 1; x < 128; ++x) {
            int exponent = 6;
            while (x >> exponent == 0) --exponent;
            const int bits = (127 + exponent) << 7 | ((x << (7 - exponent)) & 127);
            low[x] = uint8_t(bits), high[x] = uint8_t(bits >> 8);
        }
    }
};
constexpr Bf16Bytes kBf16Bytes;  // of 0..127

// Magnitudes are looked up byte by byte: 7 instructions for 64 codes, where converting takes 12.
template <>
OCTAVO_INLINE void unpack_codes<bf16>(const int8_t* codes, int64_t count, bf16* to) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), sign = _mm512_set1_epi8(-128);
    const __m512i low0 = _mm512_load_si512(kBf16Bytes.low), low1 = _mm512_load_si512(kBf16Bytes.low + 64);
    const __m512i high0 = _mm512_load_si512(kBf16Bytes.high), high1 = _mm512_load_si512(kBf16Bytes.high + 64);
    for (int64_t i = 0; i < count; i += 64) {
        const __m512i x = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(codes + i)), size = _mm512_abs_epi8(x);
        const __m512i low = _mm512_permutex2var_epi8(low0, size, low1);
        const __m512i high = _mm512_permutex2var_epi8(high0, size, high1);
        const __m512i signed_high = _mm512_ternarylogic_epi64(high, x, sign, 0xf8);  // high | (x & sign)
        _mm512_storeu_si512(to + i, _mm512_unpacklo_epi8(low, signed_high));
        _mm512_storeu_si512(to + i + 32, _mm512_unpackhi_epi8(low, signed_high));
    }
}
#endif

// An 8-bit cell in the type that is computed in, which holds every code exactly, and its scales; the scales of places
// that hold nothing are 0.
template <class T>
void unpack_cell(const KvCache& cache, const void* base, Place place, int64_t head, int64_t valid, T* to,
                 float* scales) {
    const int8_t* codes = packed_cell<int8_t>(cache, base, place, head);
    unpack_codes(codes, cache.cell_values(), to);
    std::memcpy(scales, scales_of(cache, base, place, head), valid * sizeof(float));
    std::memset(scales + valid, 0, (kCell - valid) * sizeof(float));
}

#if OCTAVO_ISA >= 2
#define OCTAVO_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define OCTAVO_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif OCTAVO_ISA == 1
#define OCTAVO_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define OCTAVO_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define OCTAVO_LOW 0, 4, 1, 5
#define OCTAVO_HIGH 2, 6, 3, 7
#endif

// to[j * stride + i] = from[i][j] of kLanes rows: each round puts the lanes of a row beside those of the one half a square
// below it, and after as many rounds as there are bits in a lane's number all are where they belong.
OCTAVO_INLINE void transpose(Vec (&rows)[kLanes], float* to, int64_t stride) {
    for (int width = 1; width < kLanes; width *= 2) {
        Vec next[kLanes];
        for (int i = 0; i < kLanes / 2; ++i) {
            next[2 * i] = __builtin_shufflevector(rows[i], rows[i + kLanes / 2], OCTAVO_LOW);
            next[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + kLanes / 2], OCTAVO_HIGH);
        }
        for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
    }
    for (int j = 0; j < kLanes; ++j) store(to + j * stride, rows[j]);
}
#undef OCTAVO_LOW
#undef OCTAVO_HIGH

// The keys of a cell from its values, which are the same: [16][padded] becomes [padded][16].
inline void turn_cell(const float* values, int64_t padded, float* keys) {
    for (int64_t place = 0; place < kCell; place += kLanes)
        for (int64_t d = 0; d < padded; d += kLanes) {
            Vec rows[kLanes];
            for (int i = 0; i < kLanes; ++i) rows[i] = load(values + (place + i) * padded + d);
            transpose(rows, keys + d * kCell + place, kCell);
        }
}

// Pairs of places become pairs of dimensions on the way: [8][padded][2] becomes [padded / 2][16][2].
inline void turn_cell(const bf16* values, int64_t padded, bf16* keys) {
    float* to = (float*)keys;
    uint32_t row[2 * kCell];
    alignas(64) uint32_t square[kCell][kCell];  // [place][pair of dimensions]
    for (int64_t d = 0; d < padded; d += 2 * kCell) {
        const int64_t pairs = std::min(kCell, (padded - d) / 2);
        for (int64_t i = 0; i < kCell / 2; ++i) {
            std::memcpy(row, values + 2 * (i * padded + d), 2 * pairs * sizeof(uint32_t));
            for (int64_t e = 0; e < pairs; ++e) {
                const uint32_t even = row[2 * e], odd = row[2 * e + 1];
                square[2 * i][e] = (even & 0xffff) | odd << 16;
                square[2 * i + 1][e] = even >> 16 | (odd & 0xffff0000);
            }
        }
        for (int64_t place = 0; place < kCell; place += kLanes)
            for (int64_t e = 0; e < pairs; e += kLanes) {
                Vec rows[kLanes];
                for (int i = 0; i < kLanes; ++i) std::memcpy(&rows[i], &square[place + i][e], sizeof rows[i]);
                if (pairs - e >= kLanes) transpose(rows, to + (d / 2 + e) * kCell + place, kCell);
                else {
                    float last[kLanes * kLanes];
                    transpose(rows, last, kLanes);
                    for (int64_t j = 0; j < pairs - e; ++j)
                        std::memcpy(to + (d / 2 + e + j) * kCell + place, last + j * kLanes, kLanes * sizeof(float));
                }
            }
    }
}

template <class T>
void find_split(const KvCache& cache, const Sequences& sequences, const AttentionItem& item, int64_t key,
                float* scratch, Split& split) {
    const int64_t context = sequences.context_lens[item.sequence];
    const int64_t end = std::min(std::min(item.end, key + kSplit), context);
    split.key = key;
    split.cells = (end - key + kCell - 1) / kCell;
    split.cell_bytes = cache.cell_values() * sizeof(T);
    split.scaled = cache.form == KvForm::int8;
    T* own = (T*)scratch;
    for (int64_t cell = std::max<int64_t>(0, item.begin - key) / kCell; cell < split.cells; ++cell) {
        const int64_t position = key + cell * kCell, valid = std::min(kCell, context - position);
        T* own_k = own + 2 * cell * cache.cell_values();
        T* own_v = own_k + cache.cell_values();
        split.k[cell] = (const float*)own_k, split.v[cell] = (const float*)own_v;
        if (cache.form == KvForm::plain) {
            const int64_t from = std::max<int64_t>(0, item.begin - position);
            pack_cell(cache, sequences, item.sequence, position, from, valid, item.head, own_k, own_v);
            continue;
        }
        const Place place = find_place(cache, sequences, item.sequence, position);
        if (cache.form == KvForm::int8) {
            unpack_cell(cache, cache.v, place, item.head, valid, own_v, split.v_scales + cell * kCell);
            if (!cache.shared) {
                unpack_cell(cache, cache.k, place, item.head, valid, own_k, split.k_scales + cell * kCell);
                continue;
            }
            std::memcpy(split.k_scales + cell * kCell, split.v_scales + cell * kCell, kCell * sizeof(float));
        } else {
            const T* v = packed_cell<T>(cache, cache.v, place, item.head);
            if (valid == kCell) split.v[cell] = (const float*)v;
            else clean_values(v, valid, cache.padded_dim(), own_v);
        }
        if (cache.shared) turn_cell((const T*)split.v[cell], cache.padded_dim(), own_k);
        else split.k[cell] = (const float*)packed_cell<T>(cache, cache.k, place, item.head);
    }
}

// Starts loading the keys that are read after `count` cells from `cell` on, and the values of these. A cell is too short
// for the processor's own prefetching to get going.
template <class T>
void fetch_cells(const Split& split, int64_t cell, int64_t count) {
    for (int64_t i = cell; i < cell + count; ++i) {
        const char* later = i + count < split.cells ? (const char*)split.k[i + count] : nullptr;
        for (int64_t at = 0; at < split.cell_bytes; at += 64) {
            if (later) __builtin_prefetch(later + at);
            __builtin_prefetch((const char*)split.v[i] + at);
        }
    }
}

}  // namespace octavo
