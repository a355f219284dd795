// Matrix products on AMX tiles: int8 activations for many rows, bf16 for any number.
//
// int8: codes of a group of 32 columns are unpacked once for all rows; two row tiles times two blocks of 16 outputs make
// four exact integer sums at a time, which vector code scales out as it does behind VNNI, in the same order: the same
// bits. A tile instruction (16 rows x 16 outputs x 32 columns) takes 16 cycles and scaling out its sums 32 (four vector
// instructions a row, two a cycle), against 96 for VNNI with its own scaling out; so tiles are multiplied while the sums
// of the step before are scaled out.
// bf16: sums stay in their tiles from the first column to the last. A row's sum is made by the same instructions
// whatever the rows beside it.
#pragma once

#if OCTAVO_ISA >= 3

#include <vector>

#include "linear/job.h"
#include "native/amx.h"

namespace octavo::packed {
namespace {

constexpr int PAIR = 2 * TILE;                      // rows multiplied together
constexpr int64_t MIN_TILE_ROWS = 12;               // with fewer, VNNI keeps up: their time is that of reading the weights
constexpr int64_t PANEL_BYTES = 256 << 10;          // of weights that stay in the L2 cache for all rows
constexpr int64_t PAIR_BYTES = 24 << 10;            // of activations that stay in the L1 cache for these weights
constexpr int MAX_PANEL_BLOCKS = 32;
constexpr int64_t AHEAD = 4 << 10;                  // bytes from where weights are read to where they are fetched

// The tiles that two or fewer row tiles of activations lie in; the second may have no rows.
struct TilePair {
    const uint8_t* tile[2];
    int64_t height[2];
    int64_t row_bytes;  // of one group

    TilePair(const Activations& x, int64_t row) : height{0, 0}, row_bytes(group_bytes(x.kind)) {
        for (int i = 0; i < 2 && row + i * TILE < x.rows; ++i) {
            const Place at = place_of(x, row + i * TILE);
            tile[i] = at.tile;
            height[i] = at.height;
        }
    }
    OCTAVO_INLINE const uint8_t* at(int i, int64_t group) const { return tile[i] + group * height[i] * row_bytes; }
};

// Tile registers: 0 to 3 hold sums (first row tile times first block, times second block, second row tile likewise), 4
// and 5 activations of the row tiles, 6 and 7 weights of the blocks.
void configure_tiles(const TilePair& rows, int64_t column_bytes) {
    amx::Config config;
    for (int i = 0; i < 2; ++i) {
        config.set(6 + i, column_bytes / 4, 64);
        if (rows.height[i] == 0) continue;
        config.set(2 * i, rows.height[i], 64);
        config.set(2 * i + 1, rows.height[i], 64);
        config.set(4 + i, rows.height[i], column_bytes);
    }
    amx::configure(config);
}

using Sums = Floats[PAIR];  // of 16 outputs for the rows of a pair of tiles

template <class Format> class Int8Tiles {
    static constexpr int HALVES = Format::HALVES, TOGETHER = 2 / HALVES;  // groups a step, so that it has two sums
    static constexpr int COLUMNS = GROUP / HALVES;
    using Codes = std::conditional_t<Format::ZERO_BITS >= 0, int8_t, uint8_t>;  // less their zero point, or as they are

    const int64_t groups;
    std::vector<Group>& panel;  // [blocks][groups]
    alignas(64) int32_t dots[2][2][2][2][TILE][LANES];  // [step % 2][sum][row tile][block][row][output]

    static std::vector<Group>& room() {
        thread_local std::vector<Group> own;  // kept: a panel is as large for the next product
        return own;
    }

    // Sum `which` of a step, of one group or half of one.
    template <int COLS>
    OCTAVO_INLINE void multiply(const TilePair& rows, int64_t block, int64_t group, int half) const {
        const Group* w = &panel[block * groups + group];
        const int64_t first = half * COLUMNS;
        amx::load<6>(w->codes + first / 4, 64);
        if constexpr (COLS == 2) amx::load<7>(w[groups].codes + first / 4, 64);
        amx::load<4>(rows.at(0, group) + first, sizeof(Group8));
        amx::zero<0>();
        amx::dot_int8<Codes, 0, 4, 6>();
        if constexpr (COLS == 2) {
            amx::zero<1>();
            amx::dot_int8<Codes, 1, 4, 7>();
        }
        if (rows.height[1] == 0) return;
        amx::load<5>(rows.at(1, group) + first, sizeof(Group8));
        amx::zero<2>();
        amx::dot_int8<Codes, 2, 5, 6>();
        if constexpr (COLS == 2) {
            amx::zero<3>();
            amx::dot_int8<Codes, 3, 5, 7>();
        }
    }

    template <int COLS> OCTAVO_INLINE void store(const TilePair& rows, int64_t step, int which) {
        auto& to = dots[step % 2][which];
        amx::store<0>(to[0][0], 64);
        if constexpr (COLS == 2) amx::store<1>(to[0][1], 64);
        if (rows.height[1] == 0) return;
        amx::store<2>(to[1][0], 64);
        if constexpr (COLS == 2) amx::store<3>(to[1][1], 64);
    }

    // COUNT groups' sums of one row tile join the rows' sums.
    template <int COLS, int COUNT>
    OCTAVO_INLINE void scale(const TilePair& rows, int i, int64_t block, int64_t group, int64_t step,
                             Sums* sums) const {
        Scales w[COUNT][COLS];
        const Group8* x[COUNT];
#pragma GCC unroll 2
        for (int at = 0; at < COUNT; ++at) {
#pragma GCC unroll 2
            for (int c = 0; c < COLS; ++c) w[at][c] = panel[(block + c) * groups + group + at];
            x[at] = reinterpret_cast<const Group8*>(rows.at(i, group + at));
        }
        const auto& from = dots[step % 2];
        for (int64_t row = 0; row < rows.height[i]; ++row)
#pragma GCC unroll 2
            for (int c = 0; c < COLS; ++c) {
                Floats acc = sums[block + c][i * TILE + row];
#pragma GCC unroll 2
                for (int at = 0; at < COUNT; ++at) {
                    Floats dot[HALVES];
                    for (int half = 0; half < HALVES; ++half)
                        dot[half] = to_floats(load_ints(from[at * HALVES + half][i][c][row]));
                    acc = scale_out<Format>(w[at][c], x[at][row], dot, acc);
                }
                sums[block + c][i * TILE + row] = acc;
            }
    }

public:
    Int8Tiles(const Job& job, Range blocks) : groups(job.groups), panel(room()) {
        panel.resize((blocks.end - blocks.begin) * groups);
        Group* to = panel.data();
        for (int64_t block = blocks.begin; block < blocks.end; ++block) {
            const uint8_t* unit = job.w.data + block * job.block_bytes;
            for (int64_t group = 0; group < groups; ++group, ++to) {
                const int index = int(group % Format::GROUPS);
                fetch(unit + AHEAD + index * job.group_bytes, int(job.group_bytes));
                Format::read_scales(unit, index, *to);
                Format::read_codes(unit, index, *to);
                if constexpr (Format::ZERO_BITS >= 0)
                    for (Bytes& codes : to->codes) codes = _mm512_sub_epi8(codes, all_bytes(1 << Format::ZERO_BITS));
                if (index == Format::GROUPS - 1) unit += Format::unit_bytes;
            }
        }
    }

    static void configure(const TilePair& rows) { configure_tiles(rows, COLUMNS); }

    template <int COLS> void run(const TilePair& rows, int64_t block, Range range, Sums* sums) {
        const int64_t steps = (range.end - range.begin + TOGETHER - 1) / TOGETHER;
        for (int64_t step = 0; step <= steps; ++step)
            for (int which = 0; which < 2; ++which) {
                const int64_t group = range.begin + step * TOGETHER + which / HALVES, before = step - 1;
                const bool more = group < range.end;
                if (more) multiply<COLS>(rows, block, group, which % HALVES);
                if (step > 0) {
                    const int64_t first = range.begin + before * TOGETHER;
                    if (first + TOGETHER <= range.end) scale<COLS, TOGETHER>(rows, which, block, first, before, sums);
                    else scale<COLS, 1>(rows, which, block, first, before, sums);
                }
                if (more) store<COLS>(rows, step, which);
            }
    }
};

class Bf16Tiles {
    const uint8_t* const weights;  // of the first block
    const int64_t block_bytes;

    template <int COLS> static OCTAVO_INLINE void multiply(const TilePair& rows, const uint8_t* w, int64_t next,
                                                           int64_t group) {
        amx::load<6>(w, 64);
        if constexpr (COLS == 2) amx::load<7>(w + next, 64);
        amx::load<4>(rows.at(0, group), 64);
        amx::dot_bf16<0, 4, 6>();
        if constexpr (COLS == 2) amx::dot_bf16<1, 4, 7>();
        if (rows.height[1] == 0) return;
        amx::load<5>(rows.at(1, group), 64);
        amx::dot_bf16<2, 5, 6>();
        if constexpr (COLS == 2) amx::dot_bf16<3, 5, 7>();
    }

public:
    Bf16Tiles(const Job& job, Range blocks)
        : weights(job.w.data + blocks.begin * job.block_bytes), block_bytes(job.block_bytes) {}

    static void configure(const TilePair& rows) { configure_tiles(rows, 64); }

    template <int COLS> void run(const TilePair& rows, int64_t block, Range range, Sums* sums) {
        Sums* to = sums + block;
        amx::load<0>(to[0], 64);
        if constexpr (COLS == 2) amx::load<1>(to[1], 64);
        if (rows.height[1]) {
            amx::load<2>(to[0] + TILE, 64);
            if constexpr (COLS == 2) amx::load<3>(to[1] + TILE, 64);
        }
        const uint8_t* w = weights + block * block_bytes + range.begin * Bfloat16::unit_bytes;
        for (int64_t group = range.begin; group < range.end; ++group, w += Bfloat16::unit_bytes) {
            for (int c = 0; c < COLS; ++c) fetch<3>(w + c * block_bytes + AHEAD, Bfloat16::unit_bytes);
            multiply<COLS>(rows, w, block_bytes, group);
        }
        amx::store<0>(to[0], 64);
        if constexpr (COLS == 2) amx::store<1>(to[1], 64);
        if (rows.height[1]) {
            amx::store<2>(to[0] + TILE, 64);
            if constexpr (COLS == 2) amx::store<3>(to[1] + TILE, 64);
        }
    }
};

// Some blocks times all rows, a pair of row tiles at a time; of its columns, as many as fit the L1 cache. Sums wait in
// memory meanwhile.
template <class Tiles> void run_panel(const Job& job, Range blocks) {
    alignas(64) Sums sums[MAX_PANEL_BLOCKS];
    Tiles tiles(job, blocks);
    const int64_t count = blocks.end - blocks.begin;
    for (int64_t row = 0; row < job.x.rows; row += PAIR) {
        const TilePair rows(job.x, row);
        const int64_t height = rows.height[0] + rows.height[1];
        const int64_t step = std::max<int64_t>(8, PAIR_BYTES / (height * rows.row_bytes) / 8 * 8);
        Tiles::configure(rows);
        std::memset(sums, 0, count * sizeof(Sums));
        for (int64_t group = 0; group < job.groups; group += step) {
            const Range range{group, std::min(group + step, job.groups)};
            for (int64_t block = 0; block + 2 <= count; block += 2) tiles.template run<2>(rows, block, range, sums);
            if (count % 2) tiles.template run<1>(rows, count - 1, range, sums);
        }
        for (int64_t block = 0; block < count; ++block)
            for (int64_t r = 0; r < height; ++r)
                store_outputs(job, row + r, (blocks.begin + block) * LANES, sums[block][r]);
    }
    amx::release();
}

template <class Tiles> void run_tiles(const Job& job, int64_t block_room) {
    const Range all = job.blocks;
    const int64_t step = std::clamp<int64_t>(PANEL_BYTES / block_room / 2 * 2, 2, MAX_PANEL_BLOCKS);
    for (int64_t block = all.begin; block < all.end; block += step)
        run_panel<Tiles>(job, {block, std::min(block + step, all.end)});
}

}  // namespace
}  // namespace octavo::packed

#endif
