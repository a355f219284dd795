// What the kernels for few rows (cpu.cpp) and for many (tiles.h) share: one product, and from sums to outputs.
#pragma once

#include "linear/activations.h"
#include "linear/cpu.h"
#include "linear/formats.h"

namespace octavo::packed {

struct Job {
    const PackedMatrix& w;
    const Activations& x;
    float* out;
    int64_t out_stride;
    const float* bias;
    Range blocks;
    int64_t groups, block_bytes, group_bytes;
};

// The product in float32 (exact.cpp).
void multiply_exact(const Job& job);

namespace {

template <class Format> int64_t block_bytes(int64_t k) {
    return groups_of(k) / Format::GROUPS * Format::unit_bytes;
}

// Have the memory send `bytes` from p on to the L2 cache (LOCALITY 2) or the L1 cache (3).
template <int LOCALITY = 2> OCTAVO_INLINE void fetch(const uint8_t* p, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, LOCALITY);
}

// The bits of 1.5 * 2^23 less zero point times sum of codes: what a chain of dot products starts from.
template <class Format> OCTAVO_INLINE Ints first_sum(const Group8& x, int half) {
    if constexpr (Format::ZERO_BITS < 0) return all_ints(FLOAT_BITS);
    else {
        const int32_t minus = Format::HALVES == 2 ? x.minus_half[half] : x.minus_sum;
        return int_add(all_ints(FLOAT_BITS), int_left<Format::ZERO_BITS>(all_ints(minus)));
    }
}

// acc + scale of x * (scale * dot + min * sum), for 16 outputs of one row; dot: exact sums of products of codes.
template <class Format>
OCTAVO_INLINE Floats scale_out(const Scales& w, const Group8& x, const Floats (&dot)[Format::HALVES], Floats acc) {
    Floats total = mul(dot[0], w.scale[0]);
    if constexpr (Format::HALVES == 2) total = fma(dot[1], w.scale[1], total);
    if constexpr (Format::HAS_MIN) {
        for (int half = 0; half < Format::HALVES; ++half) {
            const float sum = Format::HALVES == 2 ? float(-x.minus_half[half]) : x.sum;
            total = fma(w.min[half], all_floats(sum), total);
        }
    }
    return fma(total, all_floats(x.scale), acc);
}

// Sixteen sums of row `row` become its outputs from `column` on. Inlined it would triple the library; local to
// the file, the compiler knows which registers it leaves alone, and sums stay in theirs (bf16: 340 instead of 197 GOP/s).
// A row's second part comes after its first, and is added to what that left there.
__attribute__((noinline)) void store_outputs(const Job& job, int64_t row, int64_t column, Floats acc) {
    float* to = job.out + row / job.x.parts * job.out_stride + column - job.blocks.begin * LANES;
    const float* more = row % job.x.parts ? to : job.bias ? job.bias + column : nullptr;
    const int64_t count = std::min<int64_t>(LANES, job.w.n - column);
    if (count == LANES) {
        if (more) acc = add(acc, load_floats(more));
        return store_floats(to, acc);
    }
    float values[LANES];
    store_floats(values, acc);
    for (int64_t i = 0; i < count; ++i) to[i] = more ? values[i] + more[i] : values[i];
}

}  // namespace
}  // namespace octavo::packed
