// The loops around the kernels for few rows: weights stay in the L2 cache, activations in the L1 cache.
#pragma once

#include <algorithm>

#include "linear/job.h"

namespace octavo::packed {
namespace {

// Some groups of columns: where their weights lie in a block, in how many bytes the next block follows, and where
// their activations lie, in a tile of `height` rows.
struct Span {
    const uint8_t* weights;
    int64_t next_block;
    int64_t groups;
    const uint8_t* x;
    int64_t height;
    bool first;  // whether the next blocks' weights are to be fetched
};

constexpr int64_t L2_BYTES = 256 << 10;             // of weights that are used for all rows before the next
constexpr int64_t L1_BYTES = 28 << 10;              // of activations that are used for all these weights
constexpr int MAX_BLOCKS = 64;                      // of these weights

// What one thread works on at a time: some blocks, and the groups of columns that it has reached.
struct Work {
    Range blocks, groups;
    Floats (*sums)[TILE];  // of each block, for the rows of a tile, between one range of groups and the next
    bool first;            // these weights were not used before
};

// What a kernel says of its loops: max_rows and cols(rows), the largest piece of a tile's rows and the blocks that pieces
// take side by side; smaller(rows), the next smaller piece; is_next(rows, left), whether a piece of that size comes
// where `left` rows are left; together(rows), the blocks whose columns are gone through at once for a tile's rows.
// Here: pieces are halves of the largest.
struct Halves {
    static constexpr int smaller(int rows) { return rows / 2; }
    static bool is_next(int, int64_t) { return true; }
};

// A kernel's run<ROWS, COLS> adds ROWS rows times COLS blocks of 16 outputs to acc [ROWS][COLS]. It fetches what the
// next block has at this place: the hardware's own prefetch loses the stream of weights between those of the
// activations, and 16 rows took five times as long from memory as from cache.
template <class Kernel, int ROWS, int COLS>
__attribute__((noinline)) void run_rows(const Job& job, const Work& work, int64_t block, int64_t row) {
    const Place at = place_of(job.x, row);
    const Range groups = work.groups;
    const Span span{job.w.data + block * job.block_bytes + groups.begin * job.group_bytes, job.block_bytes,
                    groups.end - groups.begin,
                    at.tile + groups.begin * at.height * group_bytes(job.x.kind) + at.row * Kernel::row_bytes, at.height,
                    work.first && at.row < ROWS};
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

// ROWS rows times the blocks from `block` on, as many side by side as the kernel takes, then fewer.
template <class Kernel, int ROWS, int COLS>
void run_columns(const Job& job, const Work& work, int64_t block, int64_t row) {
    for (; block + COLS <= work.blocks.end; block += COLS) run_rows<Kernel, ROWS, COLS>(job, work, block, row);
    if constexpr (COLS > 1) run_columns<Kernel, ROWS, (COLS + 1) / 2>(job, work, block, row);
}

// Rows [row, end) of one tile, in pieces of ROWS at most.
template <class Kernel, int ROWS> void run_tile(const Job& job, const Work& work, int64_t row, int64_t end) {
    for (; end - row >= ROWS && Kernel::is_next(ROWS, end - row); row += ROWS)
        run_columns<Kernel, ROWS, Kernel::cols(ROWS)>(job, work, work.blocks.begin, row);
    if constexpr (ROWS > 1) run_tile<Kernel, Kernel::smaller(ROWS)>(job, work, row, end);
}

// Some blocks times all rows. The weights stay in the L2 cache. Of a tile's columns, as many groups at a time as fit the
// L1 cache: activations of all its rows, and weights where several pieces of the tile use them. Sums wait in memory
// meanwhile, which changes none of their bits.
template <class Kernel> void run_blocks(const Job& job, Range blocks) {
    Floats sums[MAX_BLOCKS][TILE];
    for (int64_t row = 0; row < job.x.rows; row += TILE) {
        const int64_t end = std::min(row + TILE, job.x.rows), rows = end - row, together = Kernel::together(rows);
        const int64_t weights = rows > Kernel::max_rows ? together * job.group_bytes : 0;
        const int64_t step = std::max<int64_t>(8, L1_BYTES / (rows * group_bytes(job.x.kind) + weights) / 8 * 8);
        for (int64_t group = 0; group < job.groups; group += step) {
            const Range groups{group, std::min(group + step, job.groups)};
            for (int64_t block = blocks.begin; block < blocks.end; block += together) {
                const Range some{block, std::min(block + together, blocks.end)};
                const Work work{some, groups, sums + (block - blocks.begin), row == 0};
                run_tile<Kernel, Kernel::max_rows>(job, work, row, end);
            }
        }
    }
}

template <class Kernel> void run(const Job& job) {
    const int64_t together = blocks_together(job.x.rows);
    const Range all = job.blocks;
    const int64_t step = std::clamp<int64_t>(L2_BYTES / job.block_bytes, together, MAX_BLOCKS) / together * together;
    for (int64_t block = all.begin; block < all.end; block += step) {
        run_blocks<Kernel>(job, {block, std::min(block + step, all.end)});
    }
}

}  // namespace
}  // namespace octavo::packed
