// The loops around the kernels for few rows: weights stay in the L2 cache, activations in the L1 cache.
#pragma once

#include <algorithm>

#include "linear/job.h"

namespace octavo::packed {

// Some groups of columns: where their weights lie in a block, in how many bytes the next block follows, and where
// their activations lie, in a tile of `height` rows.
struct Span {
    const uint8_t* weights;
    int64_t next_block;
    int64_t groups;
    const uint8_t* x;
    int64_t height;
};

constexpr int64_t L2_BYTES = 256 << 10;             // of weights that are used for all rows before the next
constexpr int64_t L1_BYTES = 24 << 10;              // of activations that are used for all these weights
constexpr int MAX_BLOCKS = 64;                      // of these weights

// What one thread works on at a time: some blocks, and the groups of columns that it has reached.
struct Work {
    Range blocks, groups;
    Floats (*sums)[TILE];  // of each block, for the rows of a tile, between one range of groups and the next
};

// A kernel's run<ROWS, COLS> adds ROWS rows times COLS blocks of 16 outputs to acc [ROWS][COLS]. It fetches what the
// next block has at this place: the hardware's own prefetch loses the stream of weights between those of the
// activations, and 16 rows took five times as long from memory as from cache.
template <class Kernel, int ROWS, int COLS> void run_rows(const Job& job, const Work& work, int64_t block, int64_t row) {
    const Place at = place_of(job.x, row);
    const Range groups = work.groups;
    const Span span{job.w.data + block * job.block_bytes + groups.begin * job.group_bytes, job.block_bytes,
                    groups.end - groups.begin,
                    at.tile + groups.begin * at.height * group_bytes(job.x.kind) + at.row * Kernel::row_bytes, at.height};
    Floats acc[ROWS * COLS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < COLS; ++c) {
            acc[r * COLS + c] = groups.begin == 0 ? no_floats() : work.sums[block + c - work.blocks.begin][at.row + r];
        }
    Kernel::template run<ROWS, COLS>(span, acc);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < COLS; ++c) {
            if (groups.end == job.groups) store_outputs(job, row + r, (block + c) * LANES, acc[r * COLS + c]);
            else work.sums[block + c - work.blocks.begin][at.row + r] = acc[r * COLS + c];
        }
}

// Rows [row, end) of one tile, in pieces of 16, 8, 4, 2, 1.
template <class Kernel, int ROWS> void run_tile(const Job& job, const Work& work, int64_t row, int64_t end) {
    for (; end - row >= ROWS; row += ROWS) {
        constexpr int COLS = Kernel::cols(ROWS);
        int64_t block = work.blocks.begin;
        for (; block + COLS <= work.blocks.end; block += COLS) run_rows<Kernel, ROWS, COLS>(job, work, block, row);
        for (; block < work.blocks.end; ++block) run_rows<Kernel, ROWS, 1>(job, work, block, row);
    }
    if constexpr (ROWS > 1) run_tile<Kernel, ROWS / 2>(job, work, row, end);
}

// Some blocks times all rows. The weights stay in the L2 cache; of a tile's activations, as many groups at a time as
// fit the L1 cache beside them. Sums wait in memory meanwhile, which changes none of their bits.
template <class Kernel> void run_blocks(const Job& job, Range blocks) {
    Floats sums[MAX_BLOCKS][TILE];
    for (int64_t row = 0; row < job.x.rows; row += TILE) {
        const int64_t end = std::min(row + TILE, job.x.rows);
        const int64_t step = std::max<int64_t>(8, L1_BYTES / ((end - row) * group_bytes(job.x.kind)) / 8 * 8);
        for (int64_t group = 0; group < job.groups; group += step) {
            const Work work{blocks, {group, std::min(group + step, job.groups)}, sums};
            run_tile<Kernel, Kernel::max_rows>(job, work, row, end);
        }
    }
}

template <class Kernel> void run(const Job& job, int thread, int threads) {
    const Range all = split((job.w.n + LANES - 1) / LANES, thread, threads);
    const int64_t step = std::clamp<int64_t>(L2_BYTES / job.block_bytes / 4 * 4, 4, MAX_BLOCKS);
    for (int64_t block = all.begin; block < all.end; block += step) {
        run_blocks<Kernel>(job, {block, std::min(block + step, all.end)});
    }
}

}  // namespace octavo::packed
