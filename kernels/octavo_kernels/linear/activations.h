// Activations in the form that the kernels of cpu.cpp read: codes in groups of 32, bf16, or floats as they are.
#pragma once

#include <algorithm>
#include <type_traits>

#include "linear/cpu.h"
#include "linear/formats.h"

namespace octavo::packed {
namespace {

// Rows that lie together: [K / 32][rows of the tile][32 columns]; float columns lie side by side, [32][rows], and so do
// pairs of bf16 ones, but for AMX, which takes them in rows.
constexpr int TILE = 16;

// 32 activations: code * scale, and the sums that zero points and minima are multiplied with.
struct Group8 {
    int8_t code[GROUP];
    float scale;
    float sum;              // of all codes
    int32_t minus_sum;      // less the sum of all codes
    int32_t minus_half[2];  // less the sums of the first and the last 16
    int32_t unused[3];      // no code crosses a cache line
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

// Stores 32 columns of a row. rest: null, or what becomes x less what was stored.
__attribute__((noinline)) void store_group(ActivationKind kind, const Place& at, int64_t group, const float* x,
                                           float* rest) {
    if (kind == ActivationKind::int8) {
        Group8& to = reinterpret_cast<Group8*>(at.tile)[group * at.height + at.row];
        quantize(x, to);
        if (rest)
            for (int i = 0; i < GROUP; ++i) rest[i] = x[i] - float(to.code[i]) * to.scale;
    } else if (kind == ActivationKind::bf16) {
        bf16 values[GROUP];
        for (int i = 0; i < GROUP; i += kLanes) store(values + i, load(x + i));
        if (rest)
            for (int i = 0; i < GROUP; i += kLanes) store(rest + i, load(x + i) - load(values + i));
#if OCTAVO_ISA >= 3
        bf16* to = reinterpret_cast<bf16*>(at.tile) + (group * at.height + at.row) * GROUP;
        std::memcpy(to, values, sizeof values);
#else
        bf16* to = reinterpret_cast<bf16*>(at.tile) + (group * GROUP * at.height + 2 * at.row);
        for (int i = 0; i < GROUP; i += 2) std::memcpy(to + i * at.height, values + i, 4);
#endif
    } else {
        float* to = reinterpret_cast<float*>(at.tile) + group * GROUP * at.height + at.row;
        for (int i = 0; i < GROUP; ++i) to[i * at.height] = x[i];
    }
}

// x: the columns from columns.begin on.
template <class T> void pack_any(const Activations& to, int64_t row, const T* x, Range columns) {
    const Place first_part = place_of(to, row * to.parts), last_part = place_of(to, row * to.parts + to.parts - 1);
    float rest[GROUP];
    const auto store = [&](int64_t group, const float* values) {
        if (to.parts == 1) return store_group(to.kind, first_part, group, values, nullptr);
        store_group(to.kind, first_part, group, values, rest);
        store_group(to.kind, last_part, group, rest, nullptr);
    };
    for (int64_t group = columns.begin / GROUP; group < groups_of(columns.end); ++group) {
        const int64_t first = group * GROUP - columns.begin, count = std::min(GROUP, int(columns.end - group * GROUP));
        if constexpr (std::is_same_v<T, float>) {
            if (count == GROUP) {
                store(group, x + first);
                continue;
            }
        }
        float values[GROUP] = {};
        for (int64_t i = 0; i < count; ++i) values[i] = to_float(x[first + i]);
        store(group, values);
    }
}

}  // namespace
}  // namespace octavo::packed
