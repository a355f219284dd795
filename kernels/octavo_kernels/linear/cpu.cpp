// Matrix products with packed weights: three kernels (int8, bf16, float32 activations) and the loops around them.
//
// A kernel computes some rows times 16 outputs with the accumulators in registers; weights are unpacked in registers
// once for these rows. For eight rows, a 4-bit group of 32 columns is 4 loads and 12 logic operations, and for each row 8
// VNNI instructions and 4 to scale out. Every output is one sum over the columns in order, whatever the batch.
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

// What activations are multiplied with to become codes. Below 1e-30, where it would overflow, all codes are zero.
OCTAVO_INLINE float inverse_of(float top) { return top > 1e-30f ? 127.f / top : 0.f; }

// The largest magnitude; NaN where there is one, so that it spoils its own row and no more than that.
#if OCTAVO_ISA >= 1
OCTAVO_INLINE float largest(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 nan = _mm256_or_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q), _mm256_cmp_ps(c, d, _CMP_UNORD_Q));
    if (_mm256_movemask_ps(nan)) return std::numeric_limits<float>::quiet_NaN();
    const __m256 high = _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d));
    const __m256 low = _mm256_min_ps(_mm256_min_ps(a, b), _mm256_min_ps(c, d));
    const __m256 sign = _mm256_set1_ps(-0.f);
    const __m256 both = _mm256_max_ps(_mm256_andnot_ps(sign, high), _mm256_andnot_ps(sign, low));
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

// 32 codes in order, and the sums of the first and the last sixteen.
OCTAVO_INLINE float to_codes(const float* x, int8_t* codes, int32_t* sums) {
    const __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8);
    const __m256 c = _mm256_loadu_ps(x + 16), d = _mm256_loadu_ps(x + 24);
    const float top = largest(a, b, c, d);
    const __m256 inverse = _mm256_set1_ps(inverse_of(top));
    const auto code = [&](__m256 v) { return _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse)); };
    const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(code(a), code(b)), _mm256_packs_epi32(code(c), code(d)));
    const __m256i all = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), all);
    const __m256i eights = _mm256_sad_epu8(_mm256_xor_si256(all, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
    const __m256i sixteens = _mm256_add_epi64(eights, _mm256_srli_si256(eights, 8));
    sums[0] = _mm256_extract_epi32(sixteens, 0) - 16 * 128;
    sums[1] = _mm256_extract_epi32(sixteens, 4) - 16 * 128;
    return top;
}
#else
float to_codes(const float* x, int8_t* codes, int32_t* sums) {
    float top = 0;
    for (int i = 0; i < GROUP; ++i) top = std::fabs(x[i]) <= top ? top : std::fabs(x[i]);
    for (int i = 0; i < GROUP; ++i) top = x[i] == x[i] ? top : x[i];
    const float inverse = inverse_of(top);
    sums[0] = sums[1] = 0;
    for (int i = 0; i < GROUP; ++i) {
        const float shifted = x[i] * inverse + 12582912.f;  // 1.5 * 2^23: the integer is in the lowest bits
        int32_t bits;
        std::memcpy(&bits, &shifted, 4);
        codes[i] = int8_t(bits);
        sums[i / 16] += codes[i];
    }
    return top;
}
#endif

// Codes -127..127, rounded to even.
void quantize(const float* x, Group8& to) {
    int32_t sums[2];
    to.scale = to_codes(x, to.code, sums) / 127.f;
    to.sum = float(sums[0] + sums[1]);
    to.minus_sum = -sums[0] - sums[1];
    to.minus_half[0] = -sums[0];
    to.minus_half[1] = -sums[1];
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
        const int64_t first = group * GROUP, count = std::min<int64_t>(GROUP, to.k - first);
        if constexpr (std::is_same_v<T, float>) {
            if (count == GROUP) {
                store_group(to.kind, at, group, x + first);
                continue;
            }
        }
        float values[GROUP] = {};
        for (int64_t i = 0; i < count; ++i) values[i] = to_float(x[first + i]);
        store_group(to.kind, at, group, values);
    }
}

// ---- kernels --------------------------------------------------------------------------------------------------------

// The bits of 1.5 * 2^23 less zero point times sum of codes: what a chain of dot products starts from.
template <class Format> OCTAVO_INLINE Ints first_sum(const Group8& x, int half) {
    if constexpr (Format::ZERO_BITS < 0) return all_ints(FLOAT_BITS);
    else {
        const int32_t minus = Format::HALVES == 2 ? x.minus_half[half] : x.minus_sum;
        return int_add(all_ints(FLOAT_BITS), int_left<Format::ZERO_BITS>(all_ints(minus)));
    }
}

// acc + scale of x * (scale * dot + min * sum), for 16 outputs of one row.
template <class Format>
OCTAVO_INLINE Floats scale_out(const Group& w, const Group8& x, const Ints (&dot)[Format::HALVES], Floats acc) {
    Floats total = mul(sum_to_floats(dot[0]), w.scale[0]);
    if constexpr (Format::HALVES == 2) total = fma(sum_to_floats(dot[1]), w.scale[1], total);
    if constexpr (Format::HAS_MIN) {
        for (int half = 0; half < Format::HALVES; ++half) {
            const float sum = Format::HALVES == 2 ? float(-x.minus_half[half]) : x.sum;
            total = fma(w.min[half], all_floats(sum), total);
        }
    }
    return fma(total, all_floats(x.scale), acc);
}

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
        for (int r = 0; r < together; ++r) acc[first + r] = scale_out<Format>(w, x[first + r], dot[r], acc[first + r]);
    }
}

// Some groups of columns: where their weights lie in a block, in how many bytes the next block follows, and where
// their activations lie, in a tile of `height` rows.
struct Span {
    const uint8_t* weights;
    int64_t next_block;
    int64_t groups;
    const uint8_t* x;
    int64_t height;
};

// Fetch what the next block has at this place. The hardware's own prefetch loses the stream of weights between those
// of the activations: 16 rows took five times as long from memory as from cache.
OCTAVO_INLINE void fetch(const uint8_t* p, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// A kernel's run<ROWS, COLS> adds ROWS rows times COLS blocks of 16 outputs to acc [ROWS][COLS].
template <class Format> struct Int8Kernel {
    static constexpr int max_rows = REGISTER_ROWS;
    static constexpr int64_t row_bytes = sizeof(Group8);  // from one row of a tile to the next
    static constexpr int cols(int) { return 1; }

    template <int ROWS, int COLS> static OCTAVO_INLINE void run(const Span& span, Floats (&acc)[ROWS * COLS]) {
        const Group8* x = reinterpret_cast<const Group8*>(span.x);
        const uint8_t* unit = span.weights;
        for (int64_t group = 0; group < span.groups; group += Format::GROUPS, unit += Format::unit_bytes) {
            for (int index = 0; index < Format::GROUPS; ++index, x += span.height) {
                constexpr int bytes = Format::unit_bytes / Format::GROUPS;
                fetch(unit + span.next_block + index * bytes, bytes);
                Group w;
                Format::read_scales(unit, index, w);
                Format::read_codes(unit, index, w);
                multiply_group<Format, ROWS>(w, x, acc);
            }
        }
    }
};

template <class Format> struct FloatKernel {
    static constexpr int max_rows = OCTAVO_ISA >= 2 ? 16 : REGISTER_ROWS;
    static constexpr int64_t row_bytes = 4;
    static constexpr int cols(int) { return 1; }

    template <int ROWS, int COLS> static OCTAVO_INLINE void run(const Span& span, Floats (&acc)[ROWS * COLS]) {
        const float* x = reinterpret_cast<const float*>(span.x);
        const uint8_t* unit = span.weights;
        alignas(64) float buffer[GROUP * LANES];
        for (int64_t group = 0; group < span.groups; group += Format::GROUPS, unit += Format::unit_bytes) {
            for (int index = 0; index < Format::GROUPS; ++index) {
                constexpr int bytes = Format::unit_bytes / Format::GROUPS;
                fetch(unit + span.next_block + index * bytes, bytes);
                const float* w = decode<Format>(unit, index, buffer);
                for (int i = 0; i < GROUP; ++i, w += LANES, x += span.height) {
                    const Floats column = load_floats(w);
#pragma GCC unroll 16
                    for (int r = 0; r < ROWS; ++r) acc[r] = fma(column, all_floats(x[r]), acc[r]);
                }
            }
        }
    }
};

// With few rows several blocks go side by side: one chain of dependent sums each would wait for its latency.
struct Bf16Kernel {
    static constexpr int max_rows = REGISTER_ROWS;
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

// ---- loops ----------------------------------------------------------------------------------------------------------

constexpr int64_t L2_BYTES = 256 << 10;             // of weights that are used for all rows before the next
constexpr int64_t L1_BYTES = 24 << 10;              // of activations that are used for all these weights
constexpr int MAX_BLOCKS = 64;                      // of these weights
constexpr int64_t PREFETCH_BYTES = 16 << 10;        // of a thread's first weights, before it may start on them

struct Job {
    const PackedMatrix& w;
    const Activations& x;
    float* out;
    int64_t out_stride;
    const float* bias;
    int64_t groups, block_bytes, group_bytes;
};

// What one thread works on at a time: some blocks, and the groups of columns that it has reached.
struct Work {
    Range blocks, groups;
    Floats (*sums)[TILE];  // of each block, for the rows of a tile, between one range of groups and the next
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
        const Job job{w, x, out, out_stride, bias, groups_of(w.k), block_bytes<Format>(w.k),
                      Format::unit_bytes / Format::GROUPS};
        if (x.kind == ActivationKind::f32) return run<FloatKernel<Format>>(job, thread, threads);
        if constexpr (std::is_same_v<Format, Bfloat16>) return run<Bf16Kernel>(job, thread, threads);
        else if constexpr (is_grouped<Format>) return run<Int8Kernel<Format>>(job, thread, threads);
    });
}

void prefetch(const PackedMatrix& w, int thread, int threads) {
    const int64_t blocks = (w.n + LANES - 1) / LANES, bytes = packed_bytes(w.format, w.n, w.k) / blocks;
    const Range mine = split(blocks, thread, threads);
    const uint8_t* first = w.data + mine.begin * bytes;
    const int64_t size = std::min<int64_t>((mine.end - mine.begin) * bytes, PREFETCH_BYTES);
    for (int64_t i = 0; i < size; i += 64) __builtin_prefetch(first + i, 0, 2);
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

// Eleven rows (8 + 2 + 1) of known numbers against plain loops over the dequantised weights, to the precision of the
// activations. A wrong dot product is off by far more.
bool agrees(WeightFormat format, bool exact) {
    constexpr int64_t n = LANES, k = 256, rows = 11;
    const ActivationKind kind = activation_kind(format, exact);
    const float precision = kind == ActivationKind::f32 ? 1e-5f : 2e-3f;
    std::vector<uint8_t> data(packed_bytes(format, n, k)), room(activation_bytes(kind, rows, k));
    uint32_t state = 1;
    const auto random = [&] { return (state = state * 1664525u + 1013904223u) >> 16; };
    for (uint8_t& byte : data) byte = random() % 60;  // any bytes are codes; with these no float is infinite
    std::vector<float> x(rows * k), out(rows * n), w(k);
    for (float& value : x) value = float(int32_t(random() % 2001) - 1000) / 1000;
    const PackedMatrix matrix{format, n, k, data.data()};
    const Activations packed{kind, rows, k, room.data()};
    for (int64_t row = 0; row < rows; ++row) pack_row(packed, row, &x[row * k]);
    linear(matrix, packed, out.data(), n, nullptr, 0, 1);
    for (int64_t column = 0; column < n; ++column) {
        read_row(matrix, column, w.data());
        for (int64_t row = 0; row < rows; ++row) {
            double expected = 0, size = 0;
            for (int64_t i = 0; i < k; ++i) expected += double(w[i]) * x[row * k + i], size += std::fabs(w[i]);
            if (!(std::fabs(out[row * n + column] - expected) <= precision * size)) return false;
        }
    }
    return true;
}

SelfTest self_test("linear", [] {
    for (int32_t format = 0; format <= int32_t(WeightFormat::z8); ++format) {
        if (!agrees(WeightFormat(format), true) || !agrees(WeightFormat(format), false)) return false;
    }
    return true;
});

}  // namespace
}  // namespace packed
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
