// Matrix products of the K formats for many rows behind VNNI: weights are unpacked once for up to 64 rows.
//
// A panel (two or three blocks, a unit of columns) lies unpacked in the L1 cache beside a tile's activations, and four
// rows times these blocks are multiplied at a time: Q6_K at 620 instead of 525 GOP/s a core, Q4_K at 665 instead of
// 625. The formats whose scales need no unpacking reach 650 without (2 % less at 64 rows, 8 % more at 16).
// Sums are made by the same instructions in the same order as in the kernels for few rows: the same bits.
#pragma once

#if OCTAVO_ISA == 2

#include "linear/job.h"

namespace octavo::packed {
namespace {

constexpr int64_t PANEL_ROWS = 64, MIN_PANEL_ROWS = 24;
constexpr int PANEL_GROUPS = 8;  // a unit of the K formats

template <class Format> constexpr bool has_panels = false;
template <int BITS> constexpr bool has_panels<WithMinK<BITS>> = true;
template <int BITS> constexpr bool has_panels<SymmetricK<BITS>> = true;
template <> inline constexpr bool has_panels<Q2K> = true;

template <class Format> class Panels {
    static constexpr int HALVES = Format::HALVES, COLS = HALVES == 2 ? 2 : 3;

    const Job& job;
    const Range blocks = job.blocks;
    alignas(64) Group panel[COLS][PANEL_GROUPS];
    alignas(64) Floats sums[PANEL_ROWS][COLS];  // between one range of groups and the next

    const uint8_t* weights(int64_t block, int64_t group) const {
        return job.w.data + block * job.block_bytes + group / PANEL_GROUPS * Format::unit_bytes;
    }

    void unpack(int64_t block, int64_t group) {
        static_assert(Format::GROUPS == PANEL_GROUPS);
        for (int c = 0; c < COLS; ++c) {
            const uint8_t* unit = weights(std::min(block + c, blocks.end - 1), group);
            for (int index = 0; index < PANEL_GROUPS; ++index) {
                Format::read_scales(unit, index, panel[c][index]);
                Format::read_codes(unit, index, panel[c][index]);
            }
        }
    }

    template <int ROWS>
    OCTAVO_INLINE void multiply_half(int64_t group, int half, const Group8* x, Ints (&dot)[ROWS][COLS]) const {
        constexpr int steps = STEPS / HALVES;
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            const Ints first = first_sum<Format>(x[r], half);
#pragma GCC unroll 3
            for (int c = 0; c < COLS; ++c) dot[r][c] = first;
        }
#pragma GCC unroll 8
        for (int i = half * steps; i < (half + 1) * steps; ++i) {
            Bytes codes[COLS];
#pragma GCC unroll 3
            for (int c = 0; c < COLS; ++c) codes[c] = panel[c][group].codes[i];
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                const Ints four = load_four(x[r].code + 4 * i);
#pragma GCC unroll 3
                for (int c = 0; c < COLS; ++c) dot[r][c] = dot4<Format::BITS>(dot[r][c], codes[c], four);
            }
        }
    }

    // ROWS rows of a tile times the panel.
    template <int ROWS> void multiply(const Place& at, int64_t row, int64_t block, Range groups) {
        const Group8* x = reinterpret_cast<const Group8*>(at.tile) + groups.begin * at.height + at.row;
        Floats(*own)[COLS] = sums + row % PANEL_ROWS;
        Floats acc[ROWS][COLS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 3
            for (int c = 0; c < COLS; ++c) acc[r][c] = groups.begin == 0 ? no_floats() : own[r][c];
        for (int64_t group = 0; group < PANEL_GROUPS; ++group, x += at.height) {
            Ints dot[HALVES][ROWS][COLS];
#pragma GCC unroll 2
            for (int half = 0; half < HALVES; ++half) multiply_half<ROWS>(group, half, x, dot[half]);
#pragma GCC unroll 3
            for (int c = 0; c < COLS; ++c)
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; ++r) {
                    Floats total[HALVES];
#pragma GCC unroll 2
                    for (int half = 0; half < HALVES; ++half) total[half] = sum_to_floats(dot[half][r][c]);
                    acc[r][c] = scale_out<Format>(panel[c][group], x[r], total, acc[r][c]);
                }
        }
        const int64_t count = std::min<int64_t>(COLS, blocks.end - block);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 3
            for (int c = 0; c < COLS; ++c) {
                if (groups.end < job.groups) own[r][c] = acc[r][c];
                else if (c < count) store_outputs(job, row + r, (block + c) * LANES, acc[r][c]);
            }
    }

    // Rows [begin, end) times the panel; meanwhile the weights at `next` come from memory.
    void multiply_rows(Range rows, int64_t block, Range groups, const uint8_t* next) {
        const int64_t bytes = Format::unit_bytes;
        for (int64_t row = rows.begin; row < rows.end;) {
            const Place at = place_of(job.x, row);
            const int64_t left = std::min(at.height - at.row, rows.end - row), step = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            const Range part = {bytes * (row - rows.begin) / (rows.end - rows.begin),
                                bytes * (row + step - rows.begin) / (rows.end - rows.begin)};
            for (int c = 0; c < COLS; ++c) fetch(next + c * job.block_bytes + part.begin, int(part.end - part.begin));
            if (step == 4) multiply<4>(at, row, block, groups);
            else if (step == 2) multiply<2>(at, row, block, groups);
            else multiply<1>(at, row, block, groups);
            row += step;
        }
    }

public:
    explicit Panels(const Job& job_) : job(job_) {}

    void run() {
        for (int64_t row = 0; row < job.x.rows; row += PANEL_ROWS) {
            const Range rows{row, std::min(row + PANEL_ROWS, job.x.rows)};
            for (int64_t block = blocks.begin; block < blocks.end; block += COLS)
                for (int64_t group = 0; group < job.groups; group += PANEL_GROUPS) {
                    const Range groups{group, group + PANEL_GROUPS};
                    unpack(block, group);
                    const bool last = groups.end == job.groups;
                    multiply_rows(rows, block, groups, last ? weights(block + COLS, 0) : weights(block, groups.end));
                }
        }
    }
};

}  // namespace
}  // namespace octavo::packed

#endif
