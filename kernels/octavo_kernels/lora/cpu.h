// A LoRA adapter's product, y += B (A x), for single rows of an input that the model's own matrices have packed.
//
// A and B are stored in the kind of that input: floats, bf16, or codes of 8 bits in groups of 32 columns with a bf16
// scale each (a float16 would lose those of small changes); beside floats halves, too. A's that share an input are
// stacked and lie in blocks of 16 rows as a `linear`'s weights do. B lies in blocks of 16 outputs, whose columns take
// the room that the rank needs:
//   f32, f16  [ceil(n / 16)][rank][16]
//   bf16  [ceil(n / 16)][ceil(rank / 2)][16] pairs
//   int8  [ceil(n / 16)][ceil(rank / 32)] of 16 scales and up to 8 steps of [16][4] codes
// A row's sums run over the columns in order, whatever rows are beside it.
#pragma once

#include <algorithm>

#include "linear/activations.h"
#include "linear/job.h"

namespace octavo {

enum class LowKind : int32_t { f32 = 0, bf16 = 1, int8 = 2, f16 = 3 };

// What the input of such matrices is packed as.
constexpr ActivationKind input_of(LowKind kind) {
    return kind == LowKind::f16 ? ActivationKind::f32 : ActivationKind(kind);
}

// Words of a record of Python's (lora/packed.py). n, rank: 0 where nothing is changed.
struct LowA {
    int64_t kind, n, k;
    const uint8_t* data;
};
struct LowB {
    int64_t rank, offset, place, n;  // where its A x begins among those of its input; where it is packed, in `kPlace`s
    const uint8_t* data;
};

namespace packed {
namespace {

constexpr int64_t kMaxRank = 256, kMaxStacked = 3 * kMaxRank;
constexpr int64_t kPlace = GROUP;  // floats of room for 32 numbers of a packed A x
constexpr int kRowsBeside = REGISTER_ROWS;  // that share a load of weights, at most
constexpr int64_t kNext = 4096;  // bytes: what comes next lies next, in a matrix and after it

struct LowCodes : Grouped<8, 7, 1, 32, 1, false> {
    static OCTAVO_INLINE void read_scales(const uint8_t* unit, Scales& group) { group.scale[0] = load_bf16s(unit); }
};

template <LowKind KIND> constexpr int64_t unit_bytes_of() {
    return KIND == LowKind::int8 ? LowCodes::unit_bytes : KIND == LowKind::f32 ? 2048 : 1024;
}

// Bytes of a column, or pair of columns, of sixteen rows.
template <LowKind KIND> constexpr int64_t kWordBytes = KIND == LowKind::f16 ? 32 : 64;

// The dot products of up to 32 codes with those of ROWS rows, whose scales are `x`'s and the sixteen at `unit`.
template <int ROWS>
OCTAVO_INLINE void add_codes(const uint8_t* unit, int64_t steps, const Group8* const (&x)[ROWS], Floats (&acc)[ROWS]) {
    Scales w;
    LowCodes::read_scales(unit, w);
    Ints dot[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) dot[r] = first_sum<LowCodes>(*x[r], 0);
    for (int64_t i = 0; i < steps; ++i) {
        const Bytes codes = load_bytes(unit + 32 + 64 * i);
        __builtin_prefetch(unit + 64 * i + kNext, 0, 2);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) dot[r] = dot4<8>(dot[r], codes, x[r]->code + 4 * i);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) acc[r] = scale_out<LowCodes>(w, *x[r], {sum_to_floats(dot[r])}, acc[r]);
}

// Columns or pairs of columns with a word of each of ROWS rows.
template <LowKind KIND, int ROWS>
OCTAVO_INLINE void add_words(const uint8_t* weights, const uint32_t (&x)[ROWS], Floats (&acc)[ROWS]) {
    __builtin_prefetch(weights + kNext, 0, 2);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        if constexpr (KIND == LowKind::bf16) {
            acc[r] = dot2_bf16(acc[r], load_ints(weights), x[r]);
        } else {
            float value;
            std::memcpy(&value, &x[r], 4);
            const Floats w = KIND == LowKind::f16 ? load_halves(weights) : load_floats((const float*)weights);
            acc[r] = fma(w, all_floats(value), acc[r]);
        }
    }
}

// The i-th column, or pair of columns, of a group of a packed row (activations.h).
template <LowKind KIND> OCTAVO_INLINE uint32_t word_of(const Place& row, int64_t group, int64_t i) {
    constexpr int64_t words = KIND == LowKind::bf16 ? GROUP / 2 : GROUP;
    constexpr bool in_rows = KIND == LowKind::bf16 && OCTAVO_ISA >= 3;
    const int64_t at = in_rows ? (group * row.height + row.row) * words + i
                               : (group * words + i) * row.height + row.row;
    uint32_t word;
    std::memcpy(&word, row.tile + 4 * at, 4);
    return word;
}

// Sixteen rows of A times ROWS rows.
template <LowKind KIND, int ROWS>
OCTAVO_INLINE void project_rows(const uint8_t* unit, int64_t groups, const Place (&rows)[ROWS], Floats (&acc)[ROWS]) {
    for (int64_t group = 0; group < groups; ++group, unit += unit_bytes_of<KIND>()) {
        if constexpr (KIND == LowKind::int8) {
            const Group8* x[ROWS];
            for (int r = 0; r < ROWS; ++r)
                x[r] = reinterpret_cast<const Group8*>(rows[r].tile) + group * rows[r].height + rows[r].row;
            add_codes<ROWS>(unit, STEPS, x, acc);
        } else {
            constexpr int64_t words = KIND == LowKind::bf16 ? GROUP / 2 : GROUP;
            for (int64_t i = 0; i < words; ++i) {
                uint32_t x[ROWS];
                for (int r = 0; r < ROWS; ++r) x[r] = word_of<KIND>(rows[r], group, i);
                add_words<KIND, ROWS>(unit + kWordBytes<KIND> * i, x, acc);
            }
        }
    }
}

// A x of some rows.
template <LowKind KIND, int ROWS>
void project(const LowA& a, const Activations& input, const int64_t* rows, float (&to)[ROWS][kMaxStacked]) {
    Place x[ROWS];
    for (int r = 0; r < ROWS; ++r) x[r] = place_of(input, rows[r]);
    const int64_t groups = groups_of(a.k), bytes = groups * unit_bytes_of<KIND>();
    for (int64_t block = 0; block < blocks_of(a.n); ++block) {
        Floats acc[ROWS];
        for (int r = 0; r < ROWS; ++r) acc[r] = no_floats();
        project_rows<KIND, ROWS>(a.data + block * bytes, groups, x, acc);
        for (int r = 0; r < ROWS; ++r) store_floats(to[r] + block * LANES, acc[r]);
    }
}

// Packs the A x of one row as B takes it.
template <LowKind KIND> void pack_low(int64_t rank, const float* x, float* to) {
    if constexpr (input_of(KIND) == ActivationKind::f32) {
        std::memcpy(to, x, rank * 4);
    } else if constexpr (KIND == LowKind::bf16) {
        for (int64_t i = 0; i < rank; i += kLanes) store((bf16*)to + i, load_part(x + i, rank - i));
    } else {
        for (int64_t i = 0; i < rank; i += GROUP) {
            float values[GROUP] = {};
            std::memcpy(values, x + i, std::min<int64_t>(GROUP, rank - i) * 4);
            quantize(values, ((Group8*)to)[i / GROUP]);
        }
    }
}

int64_t block_bytes_of(LowKind kind, const LowB& b) {
    if (kind == LowKind::f32) return b.rank * 64;
    if (kind == LowKind::f16) return b.rank * 32;
    if (kind == LowKind::bf16) return (b.rank + 1) / 2 * 64;
    return (b.rank + GROUP - 1) / GROUP * 32 + (b.rank + 3) / 4 * 64;
}

// Sixteen outputs of B times ROWS rows.
template <LowKind KIND, int ROWS>
OCTAVO_INLINE void expand_rows(const LowB& b, const uint8_t* weights, const float* const (&x)[ROWS],
                               Floats (&acc)[ROWS]) {
    if constexpr (KIND == LowKind::int8) {
        for (int64_t first = 0; first < b.rank; first += GROUP) {
            const int64_t steps = (std::min<int64_t>(GROUP, b.rank - first) + 3) / 4;
            const Group8* groups[ROWS];
            for (int r = 0; r < ROWS; ++r) groups[r] = (const Group8*)x[r] + first / GROUP;
            if (steps == 4) add_codes<ROWS>(weights, 4, groups, acc);  // rank 16: unrolled
            else add_codes<ROWS>(weights, steps, groups, acc);
            weights += 32 + 64 * steps;
        }
    } else {
        const int64_t words = KIND == LowKind::bf16 ? (b.rank + 1) / 2 : b.rank;
        for (int64_t i = 0; i < words; ++i) {
            uint32_t word[ROWS];
            for (int r = 0; r < ROWS; ++r) std::memcpy(&word[r], x[r] + i, 4);
            add_words<KIND, ROWS>(weights + kWordBytes<KIND> * i, word, acc);
        }
    }
}

// Adds B (A x) to the outputs `blocks` of ROWS rows, of which y takes those of the first block. x: A x, packed.
template <LowKind KIND, int ROWS>
void expand(const LowB& b, const float* const (&x)[ROWS], float* const (&y)[ROWS], Range blocks) {
    const int64_t bytes = block_bytes_of(KIND, b);
    const uint8_t* weights = b.data + blocks.begin * bytes;
    const Range whole{blocks.begin, std::min(blocks.end, b.n / LANES)};
    Floats acc[ROWS];
    for (int64_t block = blocks.begin; block < whole.end; ++block, weights += bytes) {
        const int64_t at = (block - blocks.begin) * LANES;
        for (int r = 0; r < ROWS; ++r) acc[r] = load_floats(y[r] + at);
        expand_rows<KIND, ROWS>(b, weights, x, acc);
        for (int r = 0; r < ROWS; ++r) store_floats(y[r] + at, acc[r]);
    }
    if (whole.end == blocks.end) return;
    const int64_t at = (whole.end - blocks.begin) * LANES, count = b.n - whole.end * LANES;
    float ends[ROWS][LANES] = {};  // the last block has fewer outputs
    for (int r = 0; r < ROWS; ++r) std::memcpy(ends[r], y[r] + at, count * 4), acc[r] = load_floats(ends[r]);
    expand_rows<KIND, ROWS>(b, weights, x, acc);
    for (int r = 0; r < ROWS; ++r) store_floats(ends[r], acc[r]), std::memcpy(y[r] + at, ends[r], count * 4);
}

}  // namespace
}  // namespace packed
}  // namespace octavo
