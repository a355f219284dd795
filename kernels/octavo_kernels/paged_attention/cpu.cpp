#include "paged_attention/cells.h"

#include <algorithm>
#include <map>

namespace octavo {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr int64_t kTargetRows = 96;  // of an item with many tokens: for so many a split's K and V stay in the L2 cache
constexpr int64_t kFewRows = 16;     // items below this are split over the context
constexpr int kRows = OCTAVO_ISA >= 2 ? 6 : 2;  // rows in registers: 6 x 4 sums, 4 operands, 1 broadcast of 32
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

// What rows have seen so far: R rows of unnormalised sums, their weights' sum and the maximum score.
struct Rows {
    float* sums;     // [rows][padded]
    float* weight;   // [rows]
    float* highest;  // [rows]
};

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

constexpr float kLog2e = 1.44269504088896341f;

// What a row sees: keys first..last, the last being its own; and its head's slope (ALiBi), 0 for none.
struct Visible {
    int32_t first, last;
    float slope;
};

struct Shape {
    int64_t dim, padded, words;
    float scale, softcap;
    bool sloped;
};

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

// Scores that are more than a product: 8-bit keys' scales, soft cap, slopes. They leave as powers of two.
template <bool kScaled>
void treat(const Split& split, float* scores, Range vecs, const Shape& shape, Visible seen) {
    for (int64_t i = vecs.begin; i < vecs.end; ++i) {
        Vec score = load(scores + i * kLanes);
        if (kScaled) score = score * load(split.k_scales + i * kLanes);
        if (shape.softcap == 0) score = score * splat(shape.scale * kLog2e);
        else score = splat(shape.softcap * kLog2e) * tanh(score * splat(shape.scale / shape.softcap));
        const Vec distance = __builtin_convertvector(positions_from(split.key + i * kLanes) - seen.last, Vec);
        if (shape.sloped) score = fma(distance, splat(seen.slope * kLog2e), score);
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
    const bool plain = !kScaled && shape.softcap == 0 && !shape.sloped;
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
    for (; d < shape.padded; d += kLanes)
        weigh_columns<T, R, 1>(split, cells, d, (const float*)weights, shares, rows.sums, shape.padded);
}

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

// ---- one item -----------------------------------------------------------------------------------------------------

Rows from_row(Rows rows, int64_t row, int64_t padded) {
    return {rows.sums + row * padded, rows.weight + row, rows.highest + row};
}

// Adds a later part of the context to an earlier one, as weigh_columns does.
void merge_row(Rows row, const float* later, float later_weight, float later_highest, int64_t padded) {
    const Shares shares = share_out<1>(row, &later_weight, &later_highest);
    for (int64_t d = 0; d < padded; d += kLanes)
        store(row.sums + d, fma(load(later + d), splat(shares.later[0]), load(row.sums + d) * splat(shares.before[0])));
}

template <class Q>
void write_row(const float* sums, float weight, int64_t dim, Q* out) {
    const Vec share = splat(1.f / weight);
    for (int64_t d = 0; d < dim; d += kLanes) store_part(out + d, load(sums + d) * share, dim - d);
}

int64_t tokens_per_item(int64_t group) { return std::max<int64_t>(1, kTargetRows / group); }

struct Scratch {
    float* q;   // [rows][words]
    Rows rows;
    Visible* seen;
    float* cells;  // of a split's K and V
};

int64_t round16(int64_t n) { return (n + 15) / 16 * 16; }

int64_t max_rows(const AttentionPlan& plan, const KvCache& cache) {
    const int64_t group = plan.query_heads / cache.heads;
    return tokens_per_item(group) * group;
}

Scratch lay_out(float* p, int64_t rows, int64_t padded) {
    auto take = [&p](int64_t floats) { float* begin = p; p += round16(floats); return begin; };
    Scratch s;
    s.q = take(rows * padded);
    s.rows = {take(rows * padded), take(rows), take(rows)};
    s.seen = (Visible*)take(rows * int64_t(sizeof(Visible) / sizeof(float)));
    s.cells = take(2 * kSplit * padded);
    return s;
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

void clear(Rows rows, int64_t count, int64_t padded) {
    std::memset(rows.sums, 0, count * padded * sizeof(float));
    std::memset(rows.weight, 0, count * sizeof(float));
    std::fill(rows.highest, rows.highest + count, kNone);
}

template <class T, class Q>
void attend_item(const AttentionPlan& plan, const AttentionItem& item, const KvCache& cache,
                 const AttentionParams& params, const Q* q, int64_t q_stride, Q* out, int64_t out_stride,
                 float* scratch, float* partials) {
    const int64_t group = plan.query_heads / cache.heads, rows = item.num_tokens * group, dim = cache.dim;
    const int64_t words = (dim + kPerWord<T> - 1) / kPerWord<T>;
    const Shape shape{dim, cache.padded_dim(), words, params.scale, params.softcap, params.slopes != nullptr};
    const Scratch s = lay_out(scratch, max_rows(plan, cache), shape.padded);
    const int32_t* tokens = plan.tokens.data() + item.first_token;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = tokens[r / group], head = item.head * group + r % group, last = plan.positions[token];
        pack_query<T>(q + token * q_stride + head * dim, dim, words, s.q + r * words);
        const int64_t first = std::max<int64_t>(0, last - plan.window + 1);
        s.seen[r] = {int32_t(first), int32_t(last), params.slopes ? params.slopes[head] : 0.f};
    }
    clear(s.rows, rows, shape.padded);
    Split split;
    for (int64_t key = item.begin / kSplit * kSplit; key < item.end; key += kSplit) {
        find_split<T>(cache, plan.sequences, item, key, s.cells, split);
        for (int64_t r = 0; r < rows; r += kRows)
            attend_rows<T>(std::min<int64_t>(kRows, rows - r), split, s.q + r * words, shape, s.seen + r, r == 0,
                           from_row(s.rows, r, shape.padded));
    }
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = tokens[r / group], head = item.head * group + r % group;
        const Rows all = from_row(s.rows, r, shape.padded);
        if (item.partial) {
            const int64_t split = plan.first_partial[token] + item.begin / kSplit - plan.first_split[token];
            float* to = partials + (split * plan.query_heads + head) * (shape.padded + 2);
            std::memcpy(to, all.sums, shape.padded * sizeof(float));
            to[shape.padded] = *all.weight, to[shape.padded + 1] = *all.highest;
        } else {
            write_row(all.sums, *all.weight, dim, out + token * out_stride + head * dim);
        }
    }
}

// ---- the plan -----------------------------------------------------------------------------------------------------

struct Planner {
    AttentionPlan& plan;
    const KvCache& cache;

    int64_t first_key(int64_t token) const { return std::max<int64_t>(0, plan.positions[token] - plan.window + 1); }

    void add(int64_t sequence, const std::vector<int32_t>& tokens, int64_t begin, int64_t end, bool partial) {
        const int32_t first = int32_t(plan.tokens.size());
        plan.tokens.insert(plan.tokens.end(), tokens.begin(), tokens.end());
        for (int32_t head = 0; head < cache.heads; ++head)
            plan.items.push_back({head, int32_t(sequence), first, int32_t(tokens.size()), begin, end, partial});
    }

    // Runs of tokens of one sequence, each with all the keys it sees.
    void add_whole(int64_t sequence, int64_t begin, int64_t end) {
        const int64_t step = tokens_per_item(plan.query_heads / cache.heads);
        for (int64_t token = begin; token < end; token += step) {
            std::vector<int32_t> tokens;
            for (int64_t t = token; t < std::min(end, token + step); ++t) tokens.push_back(int32_t(t));
            add(sequence, tokens, first_key(token), plan.positions[tokens.back()] + 1, false);
        }
    }

    // Tokens that see one split through the same blocks share an item, so that K and V are read once for all of them.
    using Key = std::pair<int64_t, std::vector<int32_t>>;
    std::map<Key, std::vector<std::pair<int32_t, int32_t>>> shared;  // (split, blocks) -> (sequence, token)

    void add_split(int64_t sequence, int64_t token) {
        const int64_t last = plan.positions[token], size = cache.block_size;
        plan.first_split[token] = int32_t(first_key(token) / kSplit);
        plan.first_partial[token] = int32_t(plan.num_partials);
        plan.merged_tokens.push_back(int32_t(token));
        plan.num_partials += last / kSplit - plan.first_split[token] + 1;
        const int32_t* table = plan.sequences.tables + sequence * plan.sequences.table_stride;
        for (int64_t split = plan.first_split[token]; split <= last / kSplit; ++split) {
            const int64_t begin = std::max(split * kSplit, first_key(token)), end = std::min((split + 1) * kSplit, last + 1);
            const bool whole = end == (split + 1) * kSplit && kSplit % size == 0;
            if (!whole) {
                add(sequence, {int32_t(token)}, begin, end, true);
                continue;
            }
            Key key{split, std::vector<int32_t>(table + split * kSplit / size, table + end / size)};
            shared[std::move(key)].emplace_back(int32_t(sequence), int32_t(token));
        }
    }

    void add_shared() {
        const size_t step = size_t(tokens_per_item(plan.query_heads / cache.heads));
        for (const auto& [key, members] : shared)
            for (size_t i = 0; i < members.size(); i += step) {
                std::vector<int32_t> tokens;
                int64_t begin = (key.first + 1) * kSplit;
                for (size_t j = i; j < std::min(members.size(), i + step); ++j) {
                    tokens.push_back(members[j].second);
                    begin = std::min(begin, std::max(key.first * kSplit, first_key(members[j].second)));
                }
                add(members[i].first, tokens, begin, (key.first + 1) * kSplit, true);
            }
    }
};

}  // namespace

void AttentionPlan::build(const Sequences& s, int64_t window_, int64_t query_heads_, const KvCache& cache) {
    sequences = s, window = window_, query_heads = query_heads_, num_partials = 0;
    const int64_t num_tokens = s.query_start[s.count], group = query_heads / cache.heads;
    for (auto* list : {&tokens, &merged_tokens, &positions}) list->clear();
    items.clear();
    positions.resize(num_tokens);
    first_partial.assign(num_tokens, -1);
    first_split.assign(num_tokens, 0);
    Planner planner{*this, cache, {}};
    for (int64_t i = 0; i < s.count; ++i) {
        const int64_t begin = s.query_start[i], end = s.query_start[i + 1];
        for (int64_t t = begin; t < end; ++t) positions[t] = int32_t(s.context_lens[i] - end + t);
        const int64_t splits = positions[end - 1] / kSplit - planner.first_key(begin) / kSplit + 1;
        if (splits == 1 || (end - begin) * group > kFewRows) planner.add_whole(i, begin, end);
        else
            for (int64_t t = begin; t < end; ++t) planner.add_split(i, t);
    }
    planner.add_shared();
    std::stable_sort(items.begin(), items.end(), [](const AttentionItem& a, const AttentionItem& b) {
        return a.num_tokens * (a.end - a.begin) > b.num_tokens * (b.end - b.begin);
    });
}

int64_t attention_scratch(const AttentionPlan& plan, const KvCache& cache) {
    const int64_t rows = max_rows(plan, cache), padded = cache.padded_dim();
    return 2 * round16(rows * padded) + 2 * round16(rows) + round16(3 * rows) + round16(2 * kSplit * padded);
}

int64_t partial_floats(const AttentionPlan& plan, const KvCache& cache) {
    return plan.num_partials * plan.query_heads * (cache.padded_dim() + 2);
}

template <class Q>
void attend(const AttentionPlan& plan, int64_t item, const KvCache& cache, const AttentionParams& params, const Q* q,
            int64_t q_stride, Q* out, int64_t out_stride, float* scratch, float* partials) {
    const auto work = cache.is_bf16 ? attend_item<bf16, Q> : attend_item<float, Q>;
    work(plan, plan.items[item], cache, params, q, q_stride, out, out_stride, scratch, partials);
}

template <class Q>
void merge_splits(const AttentionPlan& plan, int64_t index, const KvCache& cache, const float* partials, Q* out,
                  int64_t out_stride) {
    const int64_t padded = cache.padded_dim(), entry = padded + 2, token = plan.merged_tokens[index];
    const int64_t count = plan.positions[token] / kSplit - plan.first_split[token] + 1;
    std::vector<float> sums(padded);
    for (int64_t head = 0; head < plan.query_heads; ++head) {
        float weight = 0, highest = kNone;
        std::fill(sums.begin(), sums.end(), 0.f);
        for (int64_t split = 0; split < count; ++split) {
            const float* from = partials + ((plan.first_partial[token] + split) * plan.query_heads + head) * entry;
            merge_row({sums.data(), &weight, &highest}, from, from[padded], from[padded + 1], padded);
        }
        write_row(sums.data(), weight, cache.dim, out + token * out_stride + head * cache.dim);
    }
}

template void attend<float>(const AttentionPlan&, int64_t, const KvCache&, const AttentionParams&, const float*,
                            int64_t, float*, int64_t, float*, float*);
template void attend<bf16>(const AttentionPlan&, int64_t, const KvCache&, const AttentionParams&, const bf16*, int64_t,
                           bf16*, int64_t, float*, float*);
template void merge_splits<float>(const AttentionPlan&, int64_t, const KvCache&, const float*, float*, int64_t);
template void merge_splits<bf16>(const AttentionPlan&, int64_t, const KvCache&, const float*, bf16*, int64_t);

namespace {

template <class Q>
void run_op(const AttentionPlan& plan, const KvCache& cache, const AttentionParams& params, const Q* q,
            int64_t q_stride, Q* out) {
    const int64_t per_thread = attention_scratch(plan, cache), out_stride = plan.query_heads * cache.dim;
    const int threads = num_threads();
    std::vector<float> scratch(per_thread * threads + 16), partials(partial_floats(plan, cache));
    float* aligned = (float*)((uintptr_t(scratch.data()) + 63) / 64 * 64);
    Phases phases(2);
    join(threads, [&](int thread) {
        int cursor = 0;
        phases.run(cursor, int64_t(plan.items.size()), [&](int64_t item) {
            attend(plan, item, cache, params, q, q_stride, out, out_stride, aligned + thread * per_thread,
                   partials.data());
        });
        phases.run(cursor, int64_t(plan.merged_tokens.size()), [&](int64_t i) {
            merge_splits(plan, i, cache, partials.data(), out, out_stride);
        });
    });
}

}  // namespace
}  // namespace octavo

// q: [tokens, query_heads, dim] with a token stride in values; caches: plain [blocks, block_size, kv_heads, dim];
// out: contiguous. type: 0 float, 1 bf16, of q, caches and out. window, softcap: 0 for none; slopes: [query_heads] or
// null.
OCTAVO_API void octavo_paged_attention(int64_t type, const void* q, int64_t q_stride, int64_t query_heads,
                                       const void* k_cache, const void* v_cache, int64_t block_size, int64_t kv_heads,
                                       int64_t dim, int64_t num_sequences, const int32_t* query_start,
                                       const int32_t* context_lens, const int32_t* tables, int64_t table_stride,
                                       float scale, int64_t window, float softcap, const float* slopes, void* out) {
    using namespace octavo;
    const KvCache cache{type == 1, KvForm::plain, block_size, kv_heads, dim, 0, k_cache, v_cache};
    AttentionPlan plan;
    plan.build({num_sequences, query_start, context_lens, tables, table_stride}, window ? window : int64_t(1) << 40,
               query_heads, cache);
    const AttentionParams params{scale, softcap, slopes};
    if (type == 0) run_op(plan, cache, params, (const float*)q, q_stride, (float*)out);
    else run_op(plan, cache, params, (const bf16*)q, q_stride, (bf16*)out);
}
