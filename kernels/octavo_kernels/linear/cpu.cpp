// Matrix products with packed weights: three kernels (int8, bf16, float32 activations) and the loops around them.
//
// A kernel computes up to 16 rows times 16 outputs over all of K with the accumulators in registers. Weights are
// unpacked in registers once for these rows; a 4-bit group of 32 x 16 weights is 4 loads, 12 logic operations and,
// for each row, 8 VNNI instructions and 4 to scale out. K is never split: one order of summation for any batch.
#include "linear/cpu.h"

#include <algorithm>
#include <vector>

#include "linear/formats.h"

namespace octavo {
namespace packed {
namespace {

// ---- activations ----------------------------------------------------------------------------------------------------

constexpr int TILE = 16;  // rows that lie together: [K / 32][rows of the tile][32 columns], float kinds by column

// 32 activations: code * scale, and the sums that zero points and minima are multiplied with.
struct Group8 {
    int8_t code[GROUP];
    float scale;
    float sum;              // of all codes
    int32_t minus_sum;      // less the sum of all codes
    int32_t minus_half[2];  // less the sums of the first and the last 16
};

int64_t groups_of(int64_t k) { return (k + GROUP - 1) / GROUP; }

int64_t group_bytes(ActivationKind kind) {
    switch (kind) {
        case ActivationKind::int8: return sizeof(Group8);
        case ActivationKind::bf16: return GROUP * 2;
        default: return GROUP * 4;
    }
}

// The tile that a row lies in: where it starts, its height, the row in it.
struct Place {
    uint8_t* tile;
    int64_t height, row;
};

Place place_of(const Activations& x, int64_t row) {
    const int64_t first = row / TILE * TILE;
    uint8_t* tile = x.data + first * groups_of(x.k) * group_bytes(x.kind);
    return {tile, std::min<int64_t>(TILE, x.rows - first), row - first};
}

float largest(const float* x) {
    Vec top{};
    for (int i = 0; i < GROUP; i += kLanes) top = max(top, (Vec)((IVec)load(x + i) & 0x7fffffff));
    return max(top);
}

// Codes -127..127, rounded to even. Below 1e-30, where 127 / top would overflow, they are zero.
void quantize(const float* x, Group8& to) {
    const float top = largest(x), inverse = top > 1e-30f ? 127.f / top : 0.f;
    for (int i = 0; i < GROUP; ++i) {
        const float shifted = x[i] * inverse + 12582912.f;  // 1.5 * 2^23: the integer is in the lowest bits
        int32_t bits;
        std::memcpy(&bits, &shifted, 4);
        to.code[i] = int8_t(bits);
    }
    int32_t half[2] = {0, 0};
    for (int i = 0; i < GROUP / 2; ++i) half[0] -= to.code[i];
    for (int i = GROUP / 2; i < GROUP; ++i) half[1] -= to.code[i];
    to.scale = top / 127.f;
    to.sum = float(-half[0] - half[1]);
    to.minus_sum = half[0] + half[1];
    to.minus_half[0] = half[0];
    to.minus_half[1] = half[1];
}

void store_group(ActivationKind kind, const Place& at, int64_t group, const float* x) {
    if (kind == ActivationKind::int8) {
        quantize(x, reinterpret_cast<Group8*>(at.tile)[group * at.height + at.row]);
    } else if (kind == ActivationKind::bf16) {
        bf16* to = reinterpret_cast<bf16*>(at.tile) + (group * GROUP * at.height + 2 * at.row);
        for (int i = 0; i < GROUP; ++i) to[i / 2 * 2 * at.height + i % 2] = to_bf16(x[i]);
    } else {
        float* to = reinterpret_cast<float*>(at.tile) + group * GROUP * at.height + at.row;
        for (int i = 0; i < GROUP; ++i) to[i * at.height] = x[i];
    }
}

template <class T> void pack_any_row(const Activations& to, int64_t row, const T* x) {
    const Place at = place_of(to, row);
    for (int64_t group = 0; group < groups_of(to.k); ++group) {
        float values[GROUP] = {};
        const int64_t first = group * GROUP, count = std::min<int64_t>(GROUP, to.k - first);
        for (int64_t i = 0; i < count; ++i) values[i] = to_float(x[first + i]);
        store_group(to.kind, at, group, values);
    }
}

// ---- kernels --------------------------------------------------------------------------------------------------------

// 16 outputs of one row of one group: acc + scale of x * (scale * dot + min * sum).
template <class Format> OCTAVO_INLINE Floats multiply_group(Floats acc, const Group& w, const Group8& x) {
    constexpr int steps = STEPS / Format::HALVES;
    Floats total{};
    for (int half = 0; half < Format::HALVES; ++half) {
        const int32_t minus = Format::HALVES == 2 ? x.minus_half[half] : x.minus_sum;
        Ints dot = Format::ZERO_BITS >= 0 ? int_left<std::max(Format::ZERO_BITS, 0)>(all_ints(minus)) : no_ints();
        for (int i = half * steps; i < (half + 1) * steps; ++i) {
            dot = dot4<Format::BITS>(dot, w.codes[i], x.code + 4 * i);
        }
        total = half == 0 ? mul(to_floats(dot), w.scale[0]) : fma(to_floats(dot), w.scale[1], total);
    }
    if constexpr (Format::HAS_MIN) {
        for (int half = 0; half < Format::HALVES; ++half) {
            const float sum = Format::HALVES == 2 ? float(-x.minus_half[half]) : x.sum;
            total = fma(w.min[half], all_floats(sum), total);
        }
    }
    return fma(total, all_floats(x.scale), acc);
}

// A kernel's run<ROWS, COLS>: `rows` from `row` of a tile times COLS blocks of 16 outputs. acc: [ROWS][COLS].
template <class Format> struct Int8Kernel {
    static constexpr ActivationKind kind = ActivationKind::int8;
    static constexpr int cols(int) { return 1; }

    template <int ROWS, int COLS>
    static void run(const uint8_t* block, int64_t, int64_t groups, const Place& at, Floats* acc) {
        const Group8* x = reinterpret_cast<const Group8*>(at.tile) + at.row;
        Floats sums[ROWS];
        for (int r = 0; r < ROWS; ++r) sums[r] = no_floats();
        for (int64_t unit = 0; unit < groups / Format::GROUPS; ++unit, block += Format::unit_bytes) {
            for (int index = 0; index < Format::GROUPS; ++index, x += at.height) {
                Group w;
                Format::read_scales(block, index, w);
                Format::read_codes(block, index, w);
                for (int r = 0; r < ROWS; ++r) sums[r] = multiply_group<Format>(sums[r], w, x[r]);
            }
        }
        for (int r = 0; r < ROWS; ++r) acc[r] = sums[r];
    }
};

template <class Format> struct FloatKernel {
    static constexpr ActivationKind kind = ActivationKind::f32;
    static constexpr int cols(int) { return 1; }

    template <int ROWS, int COLS>
    static void run(const uint8_t* block, int64_t, int64_t groups, const Place& at, Floats* acc) {
        const float* x = reinterpret_cast<const float*>(at.tile) + at.row;
        alignas(64) float buffer[GROUP * LANES];
        Floats sums[ROWS];
        for (int r = 0; r < ROWS; ++r) sums[r] = no_floats();
        for (int64_t unit = 0; unit < groups / Format::GROUPS; ++unit, block += Format::unit_bytes) {
            for (int index = 0; index < Format::GROUPS; ++index) {
                const float* w = decode<Format>(block, index, buffer);
                for (int i = 0; i < GROUP; ++i, w += LANES, x += at.height) {
                    const Floats column = load_floats(w);
                    for (int r = 0; r < ROWS; ++r) sums[r] = fma(column, all_floats(x[r]), sums[r]);
                }
            }
        }
        for (int r = 0; r < ROWS; ++r) acc[r] = sums[r];
    }
};

// With few rows several blocks go side by side: one chain of dependent sums each would wait for its latency.
struct Bf16Kernel {
    static constexpr ActivationKind kind = ActivationKind::bf16;
    static constexpr int cols(int rows) { return rows <= 4 ? 4 : 1; }

    template <int ROWS, int COLS>
    static void run(const uint8_t* block, int64_t block_bytes, int64_t groups, const Place& at, Floats* acc) {
        const uint32_t* x = reinterpret_cast<const uint32_t*>(at.tile) + at.row;
        Floats sums[ROWS][COLS];
        for (int r = 0; r < ROWS; ++r)
            for (int c = 0; c < COLS; ++c) sums[r][c] = no_floats();
        for (int64_t i = 0; i < groups * (GROUP / 2); ++i, block += 64, x += at.height) {
            Ints w[COLS];
            for (int c = 0; c < COLS; ++c) w[c] = load_ints(block + c * block_bytes);
            for (int r = 0; r < ROWS; ++r)
                for (int c = 0; c < COLS; ++c) sums[r][c] = dot2_bf16(sums[r][c], w[c], x[r]);
        }
        for (int r = 0; r < ROWS; ++r)
            for (int c = 0; c < COLS; ++c) acc[r * COLS + c] = sums[r][c];
    }
};

// ---- loops ----------------------------------------------------------------------------------------------------------

constexpr int MAX_ROWS = OCTAVO_ISA >= 2 ? 16 : 4;  // of a kernel: its accumulators must fit the registers
constexpr int64_t CACHED = 256 << 10;               // bytes of weights, and of activations, that stay in the L2 cache

struct Job {
    const PackedMatrix& w;
    const Activations& x;
    float* out;
    int64_t out_stride;
    const float* bias;
    int64_t groups, block_bytes;
};

void store_outputs(const Job& job, int64_t row, int64_t column, Floats acc) {
    float* to = job.out + row * job.out_stride + column;
    const int64_t count = std::min<int64_t>(LANES, job.w.n - column);
    if (count == LANES) {
        if (job.bias) acc = add(acc, load_floats(job.bias + column));
        return store_floats(to, acc);
    }
    float values[LANES];
    store_floats(values, acc);
    for (int64_t i = 0; i < count; ++i) to[i] = job.bias ? values[i] + job.bias[column + i] : values[i];
}

template <class Kernel, int ROWS, int COLS> void run_rows(const Job& job, int64_t block, int64_t row) {
    Floats acc[ROWS * COLS];
    Kernel::template run<ROWS, COLS>(job.w.data + block * job.block_bytes, job.block_bytes, job.groups,
                                     place_of(job.x, row), acc);
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < COLS; ++c) store_outputs(job, row + r, (block + c) * LANES, acc[r * COLS + c]);
}

// Rows [row, end) of one tile, in pieces of 16, 8, 4, 2, 1.
template <class Kernel, int ROWS> void run_tile(const Job& job, Range blocks, int64_t row, int64_t end) {
    for (; end - row >= ROWS; row += ROWS) {
        constexpr int COLS = Kernel::cols(ROWS);
        int64_t block = blocks.begin;
        for (; block + COLS <= blocks.end; block += COLS) run_rows<Kernel, ROWS, COLS>(job, block, row);
        for (; block < blocks.end; ++block) run_rows<Kernel, ROWS, 1>(job, block, row);
    }
    if constexpr (ROWS > 1) run_tile<Kernel, ROWS / 2>(job, blocks, row, end);
}

// Some blocks whose weights stay in cache, times all rows, some of them at a time.
template <class Kernel> void run_blocks(const Job& job, Range blocks) {
    for (int64_t row = 0; row < job.x.rows; row += TILE) {
        run_tile<Kernel, MAX_ROWS>(job, blocks, row, std::min(row + TILE, job.x.rows));
    }
}

template <class Kernel> void run(const Job& job, int thread, int threads) {
    const Range all = split((job.w.n + LANES - 1) / LANES, thread, threads);
    const int64_t step = std::max<int64_t>(4, CACHED / job.block_bytes / 4 * 4);
    for (int64_t block = all.begin; block < all.end; block += step) {
        run_blocks<Kernel>(job, {block, std::min(block + step, all.end)});
    }
}

template <class Format> int64_t block_bytes(int64_t k) {
    return groups_of(k) / Format::GROUPS * Format::unit_bytes;
}

}  // namespace
}  // namespace packed

using namespace packed;

int64_t packed_bytes(WeightFormat format, int64_t n, int64_t k) {
    const int64_t blocks = (n + LANES - 1) / LANES;
    return blocks * with_format(format, [&](auto f) { return block_bytes<decltype(f)>(k); });
}

ActivationKind activation_kind(WeightFormat format, bool exact) {
    if (exact || format == WeightFormat::f32 || format == WeightFormat::f16) return ActivationKind::f32;
    return format == WeightFormat::bf16 ? ActivationKind::bf16 : ActivationKind::int8;
}

int64_t activation_bytes(ActivationKind kind, int64_t rows, int64_t k) {
    return rows * groups_of(k) * group_bytes(kind);
}

void pack_row(const Activations& to, int64_t row, const float* x) { pack_any_row(to, row, x); }
void pack_row(const Activations& to, int64_t row, const bf16* x) { pack_any_row(to, row, x); }

void linear(const PackedMatrix& w, const Activations& x, float* out, int64_t out_stride, const float* bias, int thread,
            int threads) {
    with_format(w.format, [&](auto f) {
        using Format = decltype(f);
        const Job job{w, x, out, out_stride, bias, groups_of(w.k), block_bytes<Format>(w.k)};
        if (x.kind == ActivationKind::f32) return run<FloatKernel<Format>>(job, thread, threads);
        if constexpr (std::is_same_v<Format, Bfloat16>) return run<Bf16Kernel>(job, thread, threads);
        else if constexpr (is_grouped<Format>) return run<Int8Kernel<Format>>(job, thread, threads);
    });
}

void read_row(const PackedMatrix& w, int64_t row, float* out) {
    with_format(w.format, [&](auto f) {
        using Format = decltype(f);
        alignas(64) float buffer[GROUP * LANES];
        const uint8_t* block = w.data + row / LANES * block_bytes<Format>(w.k);
        for (int64_t first = 0; first < w.k; first += GROUP) {
            const int64_t group = first / GROUP, unit = group / Format::GROUPS;
            const float* values = decode<Format>(block + unit * Format::unit_bytes, group % Format::GROUPS, buffer);
            const int64_t count = std::min<int64_t>(GROUP, w.k - first);
            for (int64_t i = 0; i < count; ++i) out[first + i] = values[i * LANES + row % LANES];
        }
    });
}

}  // namespace octavo

using namespace octavo;

// x: [rows, k] with a row stride, float32 or bf16; out: [rows, n] float32.
OCTAVO_API void octavo_linear(int64_t format, int64_t n, int64_t k, const uint8_t* data, const void* x,
                              int64_t x_stride, int64_t x_is_bf16, int64_t rows, int64_t exact, const float* bias,
                              float* out) {
    const PackedMatrix w{WeightFormat(format), n, k, data};
    const ActivationKind kind = activation_kind(w.format, exact != 0);
    std::vector<uint8_t> room(activation_bytes(kind, rows, k));
    const Activations packed{kind, rows, k, room.data()};
    parallel([&](int thread, int threads) {
        const Range mine = split(rows, thread, threads);
        for (int64_t row = mine.begin; row < mine.end; ++row) {
            if (x_is_bf16) pack_row(packed, row, static_cast<const bf16*>(x) + row * x_stride);
            else pack_row(packed, row, static_cast<const float*>(x) + row * x_stride);
        }
        barrier();
        linear(w, packed, out, n, bias, thread, threads);
    });
}

// out: [count, k] float32, the rows of the matrix that `rows` names.
OCTAVO_API void octavo_linear_read_rows(int64_t format, int64_t n, int64_t k, const uint8_t* data, const int64_t* rows,
                                        int64_t count, float* out) {
    const PackedMatrix w{WeightFormat(format), n, k, data};
    for (int64_t i = 0; i < count; ++i) read_row(w, rows[i], out + i * k);
}

OCTAVO_API int64_t octavo_linear_packed_bytes(int64_t format, int64_t n, int64_t k) {
    return packed_bytes(WeightFormat(format), n, k);
}
