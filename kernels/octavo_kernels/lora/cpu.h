// The second half of a LoRA adapter's product, y += B (A x); the first half, A x, is a `linear`.
//
// B lies in blocks of 16 outputs: [ceil(n / 16)][rank][16] floats, or [ceil(n / 16)][ceil(rank / 2)][16] pairs of bf16,
// so that any rank takes the room that it needs. A row's sum runs over the rank in order, whatever rows are beside it.
#pragma once

#include <algorithm>

#include "linear/vector.h"

namespace octavo {

// Words of a record of Python's (lora/packed.py): B of one matrix. `rank` is 0 where the matrix is not changed.
struct LowRank {
    int64_t rank, offset, n;  // offset: of its A x among those of the matrices with the same input
    const uint8_t* data;
};

namespace packed {
namespace {

constexpr int64_t kMaxRank = 256;

// A x of a few rows as the products take it.
template <int ROWS> struct LowRankInput {
    uint32_t words[kMaxRank][ROWS];

    void set(const LowRank& b, bool exact, const float* const (&x)[ROWS]) {
        for (int r = 0; r < ROWS; ++r) {
            const float* from = x[r] + b.offset;
            if (exact) {
                for (int64_t i = 0; i < b.rank; ++i) std::memcpy(&words[i][r], from + i, 4);
                continue;
            }
            bf16 values[kMaxRank + kLanes];
            for (int64_t i = 0; i < b.rank; i += kLanes) store(values + i, load_part(from + i, b.rank - i));
            for (int64_t i = 0; i < b.rank; i += 2) std::memcpy(&words[i / 2][r], values + i, 4);
        }
    }
};

// Adds to ROWS rows of outputs, of which `y` takes those of the first block.
template <int ROWS>
void add_low_rank(const LowRank& b, bool exact, const float* const (&x)[ROWS], float* const (&y)[ROWS], Range blocks) {
    LowRankInput<ROWS> input;
    input.set(b, exact, x);
    const int64_t steps = exact ? b.rank : (b.rank + 1) / 2;
    constexpr int64_t ahead = 4096;  // bytes: what comes next lies next, in B and after it
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const uint8_t* weights = b.data + block * steps * 64;
        const int64_t at = (block - blocks.begin) * 16, count = std::min<int64_t>(16, b.n - block * 16);
        float ends[ROWS][16];  // where the last block has fewer outputs
        Floats acc[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            if (count < 16) std::fill_n(ends[r], 16, 0.f), std::memcpy(ends[r], y[r] + at, count * 4);
            acc[r] = load_floats(count < 16 ? ends[r] : y[r] + at);
        }
        for (int64_t i = 0; i < steps; ++i, weights += 64) {
            __builtin_prefetch(weights + ahead, 0, 2);
            if (exact) {
                const Floats column = load_floats(reinterpret_cast<const float*>(weights));
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    float value;
                    std::memcpy(&value, &input.words[i][r], 4);
                    acc[r] = fma(column, all_floats(value), acc[r]);
                }
            } else {
                const Ints pairs = load_ints(weights);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) acc[r] = dot2_bf16(acc[r], pairs, input.words[i][r]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            if (count == 16) {
                store_floats(y[r] + at, acc[r]);
                continue;
            }
            store_floats(ends[r], acc[r]);
            std::memcpy(y[r] + at, ends[r], count * 4);
        }
    }
}

}  // namespace
}  // namespace packed
}  // namespace octavo
