// A LoRA adapter's product, y += B (A x), for single rows of an input that the model's own matrices have packed.
//
// A and B are stored in the kind of that input: floats, bf16, or codes of 8 bits in groups of 32 columns with a bf16
// scale each (a float16 would lose those of small changes). A's that share an input are stacked and lie in blocks of 16
// rows as a `linear`'s weights do. B lies in blocks of 16 outputs, whose columns take the room that the rank needs:
//   f32   [ceil(n / 16)][rank][16]
//   bf16  [ceil(n / 16)][ceil(rank / 2)][16] pairs
//   int8  [ceil(n / 16)][ceil(rank / 32)] of 16 scales and up to 8 steps of [16][4] codes
// A row's sums run over the columns in order, whatever rows are beside it.
#pragma once

#include <algorithm>

#include "linear/activations.h"
#include "linear/job.h"

namespace octavo {

// Words of a record of Python's (lora/packed.py). n, rank: 0 where nothing is changed.
struct LowA {
    int64_t kind, n, k;
    const uint8_t* data;
};
struct LowB {
    int64_t rank, offset, n;  // offset: of its A x among those of the matrices with the same input
    const uint8_t* data;
};

namespace packed {
namespace {

constexpr int64_t kMaxRank = 256;
constexpr int kRowsBeside = REGISTER_ROWS < 4 ? REGISTER_ROWS : 4;  // that share a load of weights
constexpr int64_t kNext = 4096;  // bytes: what comes next lies next, in a matrix and after it

struct LowCodes : Grouped<8, 7, 1, 32, 1, false> {
    static OCTAVO_INLINE void read_scales(const uint8_t* unit, Scales& group) { group.scale[0] = load_bf16s(unit); }
};

template <ActivationKind KIND> constexpr int64_t unit_bytes_of() {
    return KIND == ActivationKind::int8 ? LowCodes::unit_bytes : KIND == ActivationKind::bf16 ? 1024 : 2048;
}

// The dot products of up to 32 codes with those of ROWS rows, whose scales are `x`'s and the sixteen at `unit`.
template <int ROWS>
OCTAVO_INLINE void add_codes(const uint8_t* unit, int64_t steps, const Group8* const (&x)[ROWS], Floats (&acc)[ROWS]) {
    Scales w;
    LowCodes::read_scales(unit, w);
    Ints dot[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) dot[r] = first_sum<LowCodes>(*x[r], 0);
    for (int64_t i = 0; i < steps; ++i) {
        const Bytes codes = load_bytes(unit + 32 + 64 * i);
        __builtin_prefetch(unit + 64 * i + kNext, 0, 2);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) dot[r] = dot4<8>(dot[r], codes, x[r]->code + 4 * i);
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) acc[r] = scale_out<LowCodes>(w, *x[r], {sum_to_floats(dot[r])}, acc[r]);
}

// Columns or pairs of columns with a word of each of ROWS rows.
template <ActivationKind KIND, int ROWS>
OCTAVO_INLINE void add_words(const uint8_t* weights, const uint32_t (&x)[ROWS], Floats (&acc)[ROWS]) {
    __builtin_prefetch(weights + kNext, 0, 2);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
        if constexpr (KIND == ActivationKind::bf16) {
            acc[r] = dot2_bf16(acc[r], load_ints(weights), x[r]);
        } else {
            float value;
            std::memcpy(&value, &x[r], 4);
            acc[r] = fma(load_floats(reinterpret_cast<const float*>(weights)), all_floats(value), acc[r]);
        }
    }
}

// The i-th column, or pair of columns, of a group of a packed row (activations.h).
template <ActivationKind KIND> OCTAVO_INLINE uint32_t word_of(const Place& row, int64_t group, int64_t i) {
    constexpr int64_t words = KIND == ActivationKind::bf16 ? GROUP / 2 : GROUP;
    constexpr bool in_rows = KIND == ActivationKind::bf16 && OCTAVO_ISA >= 3;
    const int64_t at = in_rows ? (group * row.height + row.row) * words + i
                               : (group * words + i) * row.height + row.row;
    uint32_t word;
    std::memcpy(&word, row.tile + 4 * at, 4);
    return word;
}

// Sixteen rows of A times ROWS rows.
template <ActivationKind KIND, int ROWS>
OCTAVO_INLINE void project_rows(const uint8_t* unit, int64_t groups, const Place (&rows)[ROWS], Floats (&acc)[ROWS]) {
    for (int64_t group = 0; group < groups; ++group, unit += unit_bytes_of<KIND>()) {
        if constexpr (KIND == ActivationKind::int8) {
            const Group8* x[ROWS];
            for (int r = 0; r < ROWS; ++r)
                x[r] = reinterpret_cast<const Group8*>(rows[r].tile) + group * rows[r].height + rows[r].row;
            add_codes<ROWS>(unit, STEPS, x, acc);
        } else {
            constexpr int64_t words = KIND == ActivationKind::bf16 ? GROUP / 2 : GROUP;
            for (int64_t i = 0; i < words; ++i) {
                uint32_t x[ROWS];
                for (int r = 0; r < ROWS; ++r) x[r] = word_of<KIND>(rows[r], group, i);
                add_words<KIND, ROWS>(unit + 64 * i, x, acc);
            }
        }
    }
}

// Outputs 16 block .. 16 block + 15 of A x of some rows; to[r] takes all outputs of row r.
template <ActivationKind KIND, int ROWS>
void project(const LowA& a, int64_t block, const Activations& input, const int64_t* rows, float* const (&to)[ROWS]) {
    Place x[ROWS];
    Floats acc[ROWS];
    for (int r = 0; r < ROWS; ++r) x[r] = place_of(input, rows[r]), acc[r] = no_floats();
    const int64_t groups = groups_of(a.k);
    project_rows<KIND, ROWS>(a.data + block * groups * unit_bytes_of<KIND>(), groups, x, acc);
    for (int r = 0; r < ROWS; ++r) store_floats(to[r] + block * LANES, acc[r]);
}

// A x of one row as B takes it.
template <ActivationKind KIND> struct LowRow {
    uint32_t words[kMaxRank];

    void set(const LowB& b, const float* x) {
        if constexpr (KIND == ActivationKind::f32) {
            std::memcpy(words, x, b.rank * 4);
        } else {
            bf16 values[kMaxRank + kLanes];
            for (int64_t i = 0; i < b.rank; i += kLanes) store(values + i, load_part(x + i, b.rank - i));
            std::memcpy(words, values, (b.rank + 1) / 2 * 4);
        }
    }
};

template <> struct LowRow<ActivationKind::int8> {
    Group8 groups[kMaxRank / GROUP];

    void set(const LowB& b, const float* x) {
        for (int64_t i = 0; i < b.rank; i += GROUP) {
            float values[GROUP] = {};
            std::memcpy(values, x + i, std::min<int64_t>(GROUP, b.rank - i) * 4);
            quantize(values, groups[i / GROUP]);
        }
    }
};

template <ActivationKind KIND> int64_t block_bytes_of(const LowB& b) {
    if constexpr (KIND == ActivationKind::f32) return b.rank * 64;
    if constexpr (KIND == ActivationKind::bf16) return (b.rank + 1) / 2 * 64;
    return (b.rank + GROUP - 1) / GROUP * 32 + (b.rank + 3) / 4 * 64;
}

// Sixteen outputs of B times ROWS rows.
template <ActivationKind KIND, int ROWS>
OCTAVO_INLINE void expand_rows(const LowB& b, const uint8_t* weights, const LowRow<KIND> (&x)[ROWS],
                               Floats (&acc)[ROWS]) {
    if constexpr (KIND == ActivationKind::int8) {
        for (int64_t first = 0; first < b.rank; first += GROUP) {
            const int64_t steps = (std::min<int64_t>(GROUP, b.rank - first) + 3) / 4;
            const Group8* groups[ROWS];
            for (int r = 0; r < ROWS; ++r) groups[r] = &x[r].groups[first / GROUP];
            add_codes<ROWS>(weights, steps, groups, acc);
            weights += 32 + 64 * steps;
        }
    } else {
        const int64_t words = KIND == ActivationKind::bf16 ? (b.rank + 1) / 2 : b.rank;
        for (int64_t i = 0; i < words; ++i) {
            uint32_t word[ROWS];
            for (int r = 0; r < ROWS; ++r) word[r] = x[r].words[i];
            add_words<KIND, ROWS>(weights + 64 * i, word, acc);
        }
    }
}

// Adds B (A x) to the outputs `blocks` of ROWS rows, of which y takes those of the first block. low: A x.
template <ActivationKind KIND, int ROWS>
void expand(const LowB& b, const float* const (&low)[ROWS], float* const (&y)[ROWS], Range blocks) {
    LowRow<KIND> x[ROWS];
    for (int r = 0; r < ROWS; ++r) x[r].set(b, low[r] + b.offset);
    const uint8_t* weights = b.data + blocks.begin * block_bytes_of<KIND>(b);
    for (int64_t block = blocks.begin; block < blocks.end; ++block, weights += block_bytes_of<KIND>(b)) {
        const int64_t at = (block - blocks.begin) * LANES, count = std::min<int64_t>(LANES, b.n - block * LANES);
        float ends[ROWS][LANES] = {};  // where the last block has fewer outputs
        Floats acc[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            if (count < LANES) std::memcpy(ends[r], y[r] + at, count * 4);
            acc[r] = load_floats(count < LANES ? ends[r] : y[r] + at);
        }
        expand_rows<KIND, ROWS>(b, weights, x, acc);
        for (int r = 0; r < ROWS; ++r) {
            store_floats(count < LANES ? ends[r] : y[r] + at, acc[r]);
            if (count < LANES) std::memcpy(y[r] + at, ends[r], count * 4);
        }
    }
}

}  // namespace
}  // namespace packed
}  // namespace octavo
