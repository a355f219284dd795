// Matrix products with packed weights: the kernels for int8 and bf16 activations, and the public functions.
//
// A kernel computes some rows times 16 outputs with the accumulators in registers; weights are unpacked in registers
// once for these rows. For eight rows, a 4-bit group of 32 columns is 4 loads and 12 logic operations, and for each row 8
// VNNI instructions and 4 to scale out. Every output is one sum over the columns in order, whatever the batch.
#include "linear/cpu.h"

#include <algorithm>
#include <vector>

#include "linear/loops.h"
#include "linear/panels.h"
#include "linear/tiles.h"

namespace octavo {
namespace packed {
namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

// One group of ROWS rows. Chains of dot products are interleaved: each waits four cycles for its last result, and two
// can start in each cycle. Eight chains and eight accumulators fit the registers beside the codes.
template <class Format, int ROWS>
OCTAVO_INLINE void multiply_group(const Group& w, const Group8* x, Floats (&acc)[ROWS]) {
    constexpr int halves = Format::HALVES, steps = STEPS / halves, together = ROWS > halves ? ROWS / halves : 1;
#pragma GCC unroll 8
    for (int first = 0; first < ROWS; first += together) {
        Ints dot[together][halves];
#pragma GCC unroll 8
        for (int r = 0; r < together; ++r)
#pragma GCC unroll 2
            for (int half = 0; half < halves; ++half) dot[r][half] = first_sum<Format>(x[first + r], half);
#pragma GCC unroll 8
        for (int i = 0; i < steps; ++i)
#pragma GCC unroll 2
            for (int half = 0; half < halves; ++half)
#pragma GCC unroll 8
                for (int r = 0; r < together; ++r) {
                    const int step = half * steps + i;
                    dot[r][half] = dot4<Format::BITS>(dot[r][half], w.codes[step], x[first + r].code + 4 * step);
                }
#pragma GCC unroll 8
        for (int r = 0; r < together; ++r) {
            Floats sums[halves];
            for (int half = 0; half < halves; ++half) sums[half] = sum_to_floats(dot[r][half]);
            acc[first + r] = scale_out<Format>(w, x[first + r], sums, acc[first + r]);
        }
    }
}

// One group of ROWS rows and COLS blocks, `next` bytes apart: as many chains of dot products at once. Four activations are
// loaded once for several blocks; with one block, their loads kept the multipliers waiting.
template <class Format, int ROWS, int COLS>
OCTAVO_INLINE void multiply_blocks(const uint8_t* unit, int64_t next, const Group8* x, Floats (&acc)[ROWS * COLS]) {
    Ints dot[ROWS][COLS];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 3
        for (int c = 0; c < COLS; ++c) dot[r][c] = first_sum<Format>(x[r], 0);
    const uint8_t* p = Format::codes_at(unit, 0);
    for_steps([&](auto i) __attribute__((always_inline)) {
        Bytes codes[COLS];
#pragma GCC unroll 3
        for (int c = 0; c < COLS; ++c) codes[c] = Format::Codes::template step<i>(p + c * next);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            const Ints four = load_four(x[r].code + 4 * i);
#pragma GCC unroll 3
            for (int c = 0; c < COLS; ++c) dot[r][c] = dot4<Format::BITS>(dot[r][c], codes[c], four);
        }
    });
#pragma GCC unroll 3
    for (int c = 0; c < COLS; ++c) {
        Scales w;
        Format::read_scales(unit + c * next, 0, w);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r)
            acc[r * COLS + c] = scale_out<Format>(w, x[r], {sum_to_floats(dot[r][c])}, acc[r * COLS + c]);
    }
}

template <class Format> struct Int8Kernel {
    // Reading the scales of the K formats takes too long to do it for few rows only.
    static constexpr bool wide = OCTAVO_ISA >= 2 && Format::GROUPS == 1;
    static constexpr int max_rows = wide ? 6 : REGISTER_ROWS;
    static constexpr int64_t row_bytes = sizeof(Group8);  // from one row of a tile to the next
    // Up to twelve chains. A fifth row apart from four took 0.37 to 0.6 of what these took, in one piece 0.25 or nothing.
    static constexpr int cols(int rows) { return !wide || rows < 3 ? 1 : rows < 5 ? 3 : 2; }
    static constexpr int smaller(int rows) { return wide ? rows - 1 : rows / 2; }
    // Sixes and fives where nothing is left after them, else fours.
    static bool is_next(int rows, int64_t left) {
        if (!wide || rows < 5) return true;
        return rows == 6 ? left == 6 || left == 11 || left == 12 : left == 5 || left == 10;
    }
    static int64_t together(int64_t rows) { return !wide ? 1 : is_next(6, rows) || is_next(5, rows) ? 2 : 3; }

    template <int ROWS, int COLS> static OCTAVO_INLINE void run(const Span& span, Floats (&acc)[ROWS * COLS]) {
        const Group8* x = reinterpret_cast<const Group8*>(span.x);
        const uint8_t* unit = span.weights;
        for (int64_t group = 0; group < span.groups; group += Format::GROUPS, unit += Format::unit_bytes) {
            for (int index = 0; index < Format::GROUPS; ++index, x += span.height) {
                constexpr int bytes = Format::unit_bytes / Format::GROUPS;
                if (span.first)
                    for (int c = 0; c < COLS; ++c) fetch(unit + (COLS + c) * span.next_block + index * bytes, bytes);
                if constexpr (COLS > 1) {
                    multiply_blocks<Format, ROWS, COLS>(unit, span.next_block, x, acc);
                } else {
                    Group w;
                    Format::read_scales(unit, index, w);
                    Format::read_codes(unit, index, w);
                    multiply_group<Format, ROWS>(w, x, acc);
                }
            }
        }
    }
};

// With few rows several blocks go side by side: one chain of dependent sums each would wait for its latency.
struct Bf16Kernel : Halves {
    static constexpr int max_rows = REGISTER_ROWS;
    static int64_t together(int64_t) { return 4; }
    static constexpr int64_t row_bytes = 4;
    static constexpr int cols(int rows) { return rows <= 4 ? 4 : 2; }

    template <int ROWS, int COLS> static OCTAVO_INLINE void run(const Span& span, Floats (&acc)[ROWS * COLS]) {
        const uint32_t* x = reinterpret_cast<const uint32_t*>(span.x);
        const uint8_t* pairs = span.weights;
        for (int64_t i = 0; i < span.groups * (GROUP / 2); ++i, pairs += 64, x += span.height) {
            Ints w[COLS];
#pragma GCC unroll 4
            for (int c = 0; c < COLS; ++c) {
                fetch(pairs + (COLS + c) * span.next_block, 64);
                w[c] = load_ints(pairs + c * span.next_block);
            }
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
                for (int c = 0; c < COLS; ++c) acc[r * COLS + c] = dot2_bf16(acc[r * COLS + c], w[c], x[r]);
        }
    }
};

}  // namespace
}  // namespace packed

using namespace packed;

int64_t packed_bytes(WeightFormat format, int64_t n, int64_t k) {
    const int64_t blocks = (n + LANES - 1) / LANES;
    return blocks * with_format(format, [&](auto f) { return block_bytes<decltype(f)>(k); });
}

ActivationKind activation_kind(WeightFormat format, Precision precision) {
    if (precision == Precision::exact || format == WeightFormat::f32 || format == WeightFormat::f16) return ActivationKind::f32;
    return format == WeightFormat::bf16 ? ActivationKind::bf16 : ActivationKind::int8;
}

int64_t activation_bytes(ActivationKind kind, int64_t rows, int64_t k) {
    return rows * groups_of(k) * group_bytes(kind);
}

void pack_row(const Activations& to, int64_t row, const float* x) { pack_any(to, row, x, {0, to.k}); }
void pack_row(const Activations& to, int64_t row, const bf16* x) { pack_any(to, row, x, {0, to.k}); }
void pack_columns(const Activations& to, int64_t row, const float* x, Range columns) { pack_any(to, row, x, columns); }

void linear(const PackedMatrix& w, const Activations& x, float* out, int64_t out_stride, const float* bias,
            Range blocks) {
    with_format(w.format, [&](auto f) {
        using Format = decltype(f);
        const Job job{w, x, out, out_stride, bias, blocks, groups_of(w.k), block_bytes<Format>(w.k),
                      Format::unit_bytes / Format::GROUPS};
        if (x.kind == ActivationKind::f32) return multiply_exact(job);
#if OCTAVO_ISA >= 3
        if constexpr (std::is_same_v<Format, Bfloat16>)
            return run_tiles<Bf16Tiles>(job, job.block_bytes);
        if constexpr (is_grouped<Format>)
            if (x.rows >= MIN_TILE_ROWS)
                return run_tiles<Int8Tiles<Format>>(job, job.groups * sizeof(Group));
#endif
#if OCTAVO_ISA == 2
        if constexpr (has_panels<Format>)
            if (x.rows >= MIN_PANEL_ROWS) return Panels<Format>(job).run();
#endif
        if constexpr (std::is_same_v<Format, Bfloat16>) return run<Bf16Kernel>(job);
        else if constexpr (is_grouped<Format>) return run<Int8Kernel<Format>>(job);
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

namespace packed {
namespace {

// Rows for every kernel (two tiles and 8 + 2 + 1 more) of known numbers, against plain loops over the dequantised weights,
// to the precision of the activations (a wrong dot product is off by far more), and bit for bit against a row alone.
bool agrees(WeightFormat format, Precision precision) {
    constexpr int64_t n = 3 * LANES, rows = 43;
    const int64_t k = with_format(format, [](auto f) { return f.unit_columns > GROUP ? 8 * GROUP : 9 * GROUP; });
    const ActivationKind kind = activation_kind(format, precision);
    const int64_t parts = parts_of(kind, precision);
    const float bound = kind == ActivationKind::f32 ? 1e-5f : parts == 2 ? 3e-5f : 2e-3f;
    std::vector<uint8_t> data(packed_bytes(format, n, k)), room(activation_bytes(kind, rows * parts, k));
    uint32_t state = 1;
    const auto random = [&] { return (state = state * 1664525u + 1013904223u) >> 16; };
    for (uint8_t& byte : data) byte = random() % 60;  // any bytes are codes; with these no float is infinite
    std::vector<float> x(rows * k), out(rows * n), alone(n), w(k);
    for (float& value : x) value = float(int32_t(random() % 2001) - 1000) / 1000;
    const PackedMatrix matrix{format, n, k, data.data()};
    const auto multiply = [&](int64_t first, int64_t count, float* to) {
        const Activations packed{kind, count * parts, k, room.data(), parts};
        for (int64_t row = 0; row < count; ++row) pack_row(packed, row, &x[(first + row) * k]);
        linear(matrix, packed, to, n, nullptr, {0, n / LANES});
    };
    multiply(0, rows, out.data());
    for (int64_t column = 0; column < n; ++column) {
        read_row(matrix, column, w.data());
        for (int64_t row = 0; row < rows; ++row) {
            double expected = 0, size = 0;
            for (int64_t i = 0; i < k; ++i) expected += double(w[i]) * x[row * k + i], size += std::fabs(w[i]);
            if (!(std::fabs(out[row * n + column] - expected) <= bound * size)) return false;
        }
    }
    for (const int64_t row : {int64_t(3), int64_t(20), rows - 1}) {
        multiply(row, 1, alone.data());
        if (std::memcmp(alone.data(), &out[row * n], n * sizeof(float)) != 0) return false;
    }
    return true;
}

SelfTest self_test("linear", [] {
    for (int32_t format = 0; format <= int32_t(WeightFormat::mxfp4); ++format) {
        for (const Precision precision : {Precision::exact, Precision::fast, Precision::twice})
            if (!agrees(WeightFormat(format), precision)) return false;
    }
    return true;
});

}  // namespace
}  // namespace packed
}  // namespace octavo

using namespace octavo;

// x: [rows, k] with a row stride, float32 or bf16; out: [rows, n] float32.
OCTAVO_API void octavo_linear(int64_t format, int64_t n, int64_t k, const uint8_t* data, const void* x,
                              int64_t x_stride, int64_t x_is_bf16, int64_t rows, int64_t precision, const float* bias,
                              float* out) {
    const PackedMatrix w{WeightFormat(format), n, k, data};
    const ActivationKind kind = activation_kind(w.format, Precision(precision));
    const int64_t parts = parts_of(kind, Precision(precision));
    std::vector<uint8_t> room(activation_bytes(kind, rows * parts, k) + 63);
    const Activations packed{kind, rows * parts, k, room.data() + 63 - (uintptr_t(room.data()) + 63) % 64, parts};
    parallel([&](int thread, int threads) {
        const Range mine = split(rows, thread, threads);
        for (int64_t row = mine.begin; row < mine.end; ++row) {
            if (x_is_bf16) pack_row(packed, row, static_cast<const bf16*>(x) + row * x_stride);
            else pack_row(packed, row, static_cast<const float*>(x) + row * x_stride);
        }
        barrier();
        const Range blocks = split((n + LANES - 1) / LANES, thread, threads, blocks_together(rows));
        linear(w, packed, out + blocks.begin * LANES, n, bias, blocks);
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
