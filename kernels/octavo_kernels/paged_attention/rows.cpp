// Scores, weights and weighted sums of some rows of queries over one split of keys, with the sums in registers.
#include "paged_attention/rows.h"

#include "paged_attention/cells.h"

namespace octavo {
namespace {

constexpr int kColumns = 4;
constexpr int kCellVecs = kCell / kLanes, kSplitVecs = kSplit / kLanes;
constexpr int kStepCells = 4;  // whose keys are multiplied while those of the next are fetched

// ---- dot products over words: a float, or a pair of bf16 ----------------------------------------------------------

OCTAVO_INLINE Vec load_words(const void* p) { return load((const float*)p); }

// sum + a . b, where a is one word for all lanes and b a word per lane.
template <class T>
OCTAVO_INLINE Vec dot(Vec sum, float a, Vec b) {
    if constexpr (sizeof(T) == 4) return fma(splat(a), b, sum);
#if OCTAVO_ISA >= 2
    const __m512 wide = _mm512_set1_ps(a);
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)wide, (__m512bh)b);
#else
    uint32_t word;
    std::memcpy(&word, &a, 4);
    const UVec pair = word - UVec{};
    sum = fma((Vec)(pair << 16), (Vec)((UVec)b << 16), sum);
    return fma((Vec)(pair & 0xffff0000u), (Vec)((UVec)b & 0xffff0000u), sum);
#endif
}

// sums[R][C] += sum over k of a[r][k] * b[c][k]: a is rows of words, b[c] vectors `b_stride` words apart.
template <class T, int R, int C>
OCTAVO_INLINE void multiply(Vec (&sums)[R][C], const float* a, int64_t a_stride, const float* const (&b)[C],
                            int64_t b_stride, int64_t count) {
    for (int64_t k = 0; k < count; ++k) {
        Vec columns[C];
        for (int c = 0; c < C; ++c) {
            columns[c] = load_words(b[c] + k * b_stride);
#if OCTAVO_ISA >= 1
            if (R <= 3) asm("" : "+v"(columns[c]));  // else GCC loads it again for every row; of six rows it may
#endif
        }
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) sums[r][c] = dot<T>(sums[r][c], a[r * a_stride + k], columns[c]);
    }
}

// ---- one split, a few rows -----------------------------------------------------------------------------------------

template <class T, int R, int C>
void score_columns(const Split& split, int first, const float* q, int64_t words, float* scores) {
    const float* b[C];
    for (int c = 0; c < C; ++c) b[c] = split.k[(first + c) / kCellVecs] + (first + c) % kCellVecs * kLanes;
    Vec sums[R][C] = {};
    multiply<T, R, C>(sums, q, words, b, kCell, words);
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store(scores + r * kSplit + (first + c) * kLanes, sums[r][c]);
}

// What two parts of the context are multiplied with where they are joined.
struct Shares {
    float before[kLanes], later[kLanes];  // per row
};

// Sums of what the rows see in some cells join the rows' sums.
template <class T, int R, int C>
void weigh_columns(const Split& split, Range cells, int64_t column, const float* weights, const Shares& shares,
                   float* sums, int64_t padded) {
    Vec total[R][C] = {};
    constexpr int64_t kWords = kCell / kPerWord<T>;  // of weights per cell
    for (int64_t cell = cells.begin; cell < cells.end; ++cell) {
        const float* b[C];
        for (int c = 0; c < C; ++c) b[c] = split.v[cell] + column + c * kLanes;
        multiply<T, R, C>(total, weights + cell * kWords, kSplit / kPerWord<T>, b, padded, kWords);
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) {
            float* to = sums + r * padded + column + c * kLanes;
            store(to, fma(total[r][c], splat(shares.later[r]), load(to) * splat(shares.before[r])));
        }
}

// 2^x; 0 for -infinity, and NaN for NaN. The polynomials are minimax fits of 2^r for r in [0, 1], exact at 0: to 2 ulp, or
// (short) to 9e-5, which is little beside bf16's rounding.
template <bool kShort = false>
OCTAVO_INLINE Vec exp2(Vec x) {
#if OCTAVO_ISA >= 2
    const Vec r = (Vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    const Vec clamped = max(x, splat(-126.f)), shifter = splat(12582912.f);  // 1.5 * 2^23: adding it rounds
    const Vec n = (clamped - splat(0.5f) + shifter) - shifter, r = clamped - n;
#endif
    Vec p;
    if constexpr (kShort) {
        p = fma(splat(7.706705118e-2f), r, splat(2.276449812e-1f));
        p = fma(p, r, splat(6.951167887e-1f));
    } else {
        p = fma(splat(1.867130515e-3f), r, splat(9.017028846e-3f));
        p = fma(p, r, splat(5.579991266e-2f));
        p = fma(p, r, splat(2.401644439e-1f));
        p = fma(p, r, splat(6.931512952e-1f));
    }
    p = fma(p, r, splat(1.f));
#if OCTAVO_ISA >= 2
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)x);  // times 2^floor(x)
#else
    const Vec scaled = p * (Vec)((__builtin_convertvector(n, IVec) + 127) << 23);
    return x == x ? (x < splat(-126.f) ? Vec{} : scaled) : x;
#endif
}

OCTAVO_INLINE IVec positions_from(int64_t key) {
    IVec lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    return lane + int32_t(key);
}

// Scores that are more than a product: 8-bit keys' scales, soft cap, slopes, biases. They leave as powers of two.
template <bool kScaled>
void treat(const Split& split, float* scores, Range vecs, const Shape& shape, Visible seen) {
    for (int64_t i = vecs.begin; i < vecs.end; ++i) {
        Vec score = load(scores + i * kLanes);
        if (kScaled) score = score * load(split.k_scales + i * kLanes);
        if (shape.softcap == 0) score = score * splat(shape.scale * kLog2e);
        else score = splat(shape.softcap * kLog2e) * tanh(score * splat(shape.scale / shape.softcap));
        const Vec distance = __builtin_convertvector(positions_from(split.key + i * kLanes) - seen.own, Vec);
        if (shape.sloped) score = fma(distance, splat(seen.slope * kLog2e), score);
        if (shape.bias) score = fma(load(shape.bias + split.key + i * kLanes - seen.own), splat(kLog2e), score);
        store(scores + i * kLanes, score);
    }
}

// Keys that a row does not see weigh nothing. Most rows see all or only the last vectors in part.
void hide(const Split& split, float* scores, Range vecs, Visible seen) {
    for (int64_t i = vecs.begin; i < vecs.end; ++i) {
        const int64_t key = split.key + i * kLanes;
        if (seen.first <= key && key + kLanes - 1 <= seen.last) continue;
        const IVec position = positions_from(key), hidden = (position < seen.first) | (position > seen.last);
        store(scores + i * kLanes, hidden ? splat(kNone) : load(scores + i * kLanes));
    }
}

// Weights of one row, 2^(score * unit - highest), and their sum; returns the highest.
template <class T, bool kScaled>
OCTAVO_INLINE float soften(const Split& split, const float* scores, Range vecs, float unit, float* weight, T* weights) {
    Vec top = splat(kNone);
    for (int64_t i = vecs.begin; i < vecs.end; ++i) top = max(load(scores + i * kLanes), top);
    const float highest = max(top) * unit;
    const Vec shift = splat(highest == kNone ? 0.f : -highest);  // 2^(-inf) is the 0 that a row without keys needs
    Vec total = {};
    for (int64_t i = vecs.begin; i < vecs.end; ++i) {
        const Vec p = exp2<sizeof(T) == 2>(fma(load(scores + i * kLanes), splat(unit), shift));
        total = total + p;
        store_weights(weights + i * kLanes, kScaled ? p * load(split.v_scales + i * kLanes) : p);
    }
    *weight = sum(total);
    return highest;
}

template <class T, bool kScaled>
float soften_row(const Split& split, float* scores, Range vecs, const Shape& shape, Visible seen, float* weight,
                 T* weights) {
    const bool plain = !kScaled && shape.softcap == 0 && !shape.sloped && !shape.bias;
    if (!plain) treat<kScaled>(split, scores, vecs, shape, seen);
    hide(split, scores, vecs, seen);
    return soften<T, kScaled>(split, scores, vecs, plain ? shape.scale * kLog2e : 1.f, weight, weights);
}

// Where two parts of the context meet: what each is multiplied with; highest and weight become those of both.
template <int R>
OCTAVO_INLINE Shares share_out(Rows rows, const float* later_weight, const float* later_highest) {
    Shares shares = {};
    for (int r = 0; r < R; ++r) {
        const float top = rows.highest[r] > later_highest[r] ? rows.highest[r] : later_highest[r];
        const float base = top == kNone ? 0.f : top;
        shares.before[r] = rows.highest[r] - base, shares.later[r] = later_highest[r] - base;
        rows.highest[r] = top;
    }
    static_assert(R <= kLanes, "one exp2 serves all rows");
    store(shares.before, exp2(load(shares.before)));
    store(shares.later, exp2(load(shares.later)));
    for (int r = 0; r < R; ++r)
        rows.weight[r] = later_weight[r] * shares.later[r] + rows.weight[r] * shares.before[r];
    return shares;
}

// Scores of all keys of a split that some of the rows see, their weights, and the weighted sums of values.
template <class T, int R>
void attend_rows(const Split& split, const float* q, const Shape& shape, const Visible* seen, bool fetch, Rows rows) {
    alignas(64) float scores[R * kSplit];
    alignas(64) T weights[R * kSplit];
    int64_t first = seen[0].first, last = seen[0].last;
    for (int r = 1; r < R; ++r)
        first = std::min<int64_t>(first, seen[r].first), last = std::max<int64_t>(last, seen[r].last);
    if (last < split.key) return;
    const Range cells{std::max<int64_t>(0, first - split.key) / kCell,
                      std::min(split.cells, (last - split.key) / kCell + 1)};
    const Range vecs{cells.begin * kCellVecs, cells.end * kCellVecs};
    int column = int(vecs.begin);
    const auto fetch_next = [&] {
        if (!fetch || (column - vecs.begin) % (kStepCells * kCellVecs)) return;
        const int64_t cell = column / kCellVecs;
        fetch_cells<T>(split, cell, std::min<int64_t>(kStepCells, cells.end - cell));
    };
    for (; column + kColumns <= vecs.end; column += kColumns) {
        fetch_next();
        score_columns<T, R, kColumns>(split, column, q, shape.words, scores);
    }
    if (column < vecs.end) fetch_next();
    for (; column + 2 <= vecs.end; column += 2) score_columns<T, R, 2>(split, column, q, shape.words, scores);
    for (; column < vecs.end; ++column) score_columns<T, R, 1>(split, column, q, shape.words, scores);

    float highest[R], weight[R];
    for (int r = 0; r < R; ++r) {
        float* from = scores + r * kSplit;
        T* to = weights + r * kSplit;
        highest[r] = split.scaled ? soften_row<T, true>(split, from, vecs, shape, seen[r], &weight[r], to)
                                  : soften_row<T, false>(split, from, vecs, shape, seen[r], &weight[r], to);
    }
    const Shares shares = share_out<R>(rows, weight, highest);
    int64_t d = 0;
    for (; d + kColumns * kLanes <= shape.padded; d += kColumns * kLanes)
        weigh_columns<T, R, kColumns>(split, cells, d, (const float*)weights, shares, rows.sums, shape.padded);
    for (; d + 2 * kLanes <= shape.padded; d += 2 * kLanes)
        weigh_columns<T, R, 2>(split, cells, d, (const float*)weights, shares, rows.sums, shape.padded);
    for (; d < shape.padded; d += kLanes)
        weigh_columns<T, R, 1>(split, cells, d, (const float*)weights, shares, rows.sums, shape.padded);
}

}  // namespace

template <class T>
void attend_rows(int64_t count, const Split& split, const float* q, const Shape& shape, const Visible* seen, bool fetch,
                 Rows rows) {
    switch (count) {
        case 1: return attend_rows<T, 1>(split, q, shape, seen, fetch, rows);
        case 2: return attend_rows<T, 2>(split, q, shape, seen, fetch, rows);
#if OCTAVO_ISA >= 2
        case 3: return attend_rows<T, 3>(split, q, shape, seen, fetch, rows);
        case 4: return attend_rows<T, 4>(split, q, shape, seen, fetch, rows);
        case 5: return attend_rows<T, 5>(split, q, shape, seen, fetch, rows);
        case 6: return attend_rows<T, 6>(split, q, shape, seen, fetch, rows);
#endif
    }
}

void merge_row(Rows row, const float* later, float later_weight, float later_highest, int64_t padded) {
    const Shares shares = share_out<1>(row, &later_weight, &later_highest);
    for (int64_t d = 0; d < padded; d += kLanes)
        store(row.sums + d, fma(load(later + d), splat(shares.later[0]), load(row.sums + d) * splat(shares.before[0])));
}

template void attend_rows<float>(int64_t, const Split&, const float*, const Shape&, const Visible*, bool, Rows);
template void attend_rows<bf16>(int64_t, const Split&, const float*, const Shape&, const Visible*, bool, Rows);

}  // namespace octavo
