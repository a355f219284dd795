// Sixteen lanes: the same few operations for AVX-512, AVX2 and plain C++, so that every kernel is written once.
//
// All three give the same bits: products and sums are fused where `fma` stands and nowhere else.
#pragma once

#include "native/common.h"

namespace octavo::packed {

// Rows whose accumulators fit the registers. Plain C++ without a fused multiply-add is too slow for it to matter.
#if OCTAVO_ISA >= 2
constexpr int REGISTER_ROWS = 8;
#elif OCTAVO_ISA == 1 || defined(__FP_FAST_FMAF)
constexpr int REGISTER_ROWS = 4;
#else
constexpr int REGISTER_ROWS = 1;
#endif

OCTAVO_INLINE float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
    uint32_t bits;
    if (rest >= 0x7c00) {  // infinity and NaN
        bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest >= 0x400) {
        bits = sign | ((rest << 13) + (112u << 23));
    } else {  // subnormal: an integer times 2^-24
        const float value = float(rest) * 0x1p-24f;
        std::memcpy(&bits, &value, 4);
        bits |= sign;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

#if OCTAVO_ISA >= 2

using Bytes = __m512i;  // 64 x uint8
using Ints = __m512i;   // 16 x int32
using Floats = __m512;  // 16 x float

OCTAVO_INLINE Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
OCTAVO_INLINE Bytes all_bytes(uint8_t x) { return _mm512_set1_epi8(char(x)); }
OCTAVO_INLINE Bytes byte_and(Bytes a, Bytes b) { return _mm512_and_si512(a, b); }
OCTAVO_INLINE Bytes byte_or(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
// For each byte (below 16) the one at that place of `table`.
OCTAVO_INLINE Bytes look_up(const uint8_t* table, Bytes x) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), x);
}
template <int N> OCTAVO_INLINE Bytes bits_right(Bytes x) { return _mm512_srli_epi16(x, N); }
template <int N> OCTAVO_INLINE Bytes bits_left(Bytes x) { return _mm512_slli_epi16(x, N); }

OCTAVO_INLINE Ints all_ints(int32_t x) { return _mm512_set1_epi32(x); }
OCTAVO_INLINE Ints load_uint8s(const void* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
OCTAVO_INLINE Ints load_int8s(const void* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
OCTAVO_INLINE Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
OCTAVO_INLINE Ints int_add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
OCTAVO_INLINE Ints int_sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
OCTAVO_INLINE Ints int_and(Ints a, int32_t b) { return _mm512_and_si512(a, _mm512_set1_epi32(b)); }
OCTAVO_INLINE Ints int_or(Ints a, Ints b) { return _mm512_or_si512(a, b); }
OCTAVO_INLINE Ints int_right(Ints x, int n) { return _mm512_srl_epi32(x, _mm_cvtsi32_si128(n)); }
OCTAVO_INLINE Ints int_left(Ints x, int n) { return _mm512_sll_epi32(x, _mm_cvtsi32_si128(n)); }
template <int N> OCTAVO_INLINE Ints int_left(Ints x) { return _mm512_slli_epi32(x, N); }
OCTAVO_INLINE Ints as_ints(Bytes x) { return x; }

// acc + the sums of four products: 64 unsigned codes of at most BITS bits with four signed ones, repeated. In assembly
// because GCC 12 loads the four into a register of their own first: more instructions, and spilled accumulators.
template <int BITS> OCTAVO_INLINE Ints dot4(Ints acc, Bytes codes, const int8_t* four) {
    struct Four { int8_t x[4]; };
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(codes), "m"(*reinterpret_cast<const Four*>(four)));
    return acc;
}

// The four signed codes at p, repeated; to be used for several dot products.
OCTAVO_INLINE Ints load_four(const int8_t* p) {
    int32_t bits;
    std::memcpy(&bits, p, 4);
    return _mm512_set1_epi32(bits);
}
template <int BITS> OCTAVO_INLINE Ints dot4(Ints acc, Bytes codes, Ints four) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(four));
    return acc;
}

OCTAVO_INLINE Floats no_floats() { return _mm512_setzero_ps(); }
OCTAVO_INLINE Floats all_floats(float x) { return _mm512_set1_ps(x); }
OCTAVO_INLINE Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
OCTAVO_INLINE Floats load_halves(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
OCTAVO_INLINE Floats load_bf16s(const void* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
OCTAVO_INLINE Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
OCTAVO_INLINE Floats as_floats(Ints x) { return _mm512_castsi512_ps(x); }
OCTAVO_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
OCTAVO_INLINE Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
OCTAVO_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
OCTAVO_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
OCTAVO_INLINE Floats negate(Floats x) { return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN))); }
OCTAVO_INLINE void store_floats(float* p, Floats x) { _mm512_storeu_ps(p, x); }

#elif OCTAVO_ISA == 1

struct Bytes { __m256i a, b; };
struct Ints { __m256i a, b; };
struct Floats { __m256 a, b; };

OCTAVO_INLINE __m256i load_half_of(const void* p, int half) { return _mm256_loadu_si256((const __m256i*)p + half); }
OCTAVO_INLINE Bytes load_bytes(const void* p) { return {load_half_of(p, 0), load_half_of(p, 1)}; }
OCTAVO_INLINE Bytes all_bytes(uint8_t x) { return {_mm256_set1_epi8(char(x)), _mm256_set1_epi8(char(x))}; }
OCTAVO_INLINE Bytes byte_and(Bytes x, Bytes y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
OCTAVO_INLINE Bytes byte_or(Bytes x, Bytes y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
OCTAVO_INLINE Bytes look_up(const uint8_t* table, Bytes x) {
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return {_mm256_shuffle_epi8(both, x.a), _mm256_shuffle_epi8(both, x.b)};
}
template <int N> OCTAVO_INLINE Bytes bits_right(Bytes x) { return {_mm256_srli_epi16(x.a, N), _mm256_srli_epi16(x.b, N)}; }
template <int N> OCTAVO_INLINE Bytes bits_left(Bytes x) { return {_mm256_slli_epi16(x.a, N), _mm256_slli_epi16(x.b, N)}; }

OCTAVO_INLINE Ints all_ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
OCTAVO_INLINE Ints load_uint8s(const void* p) {
    const __m128i x = _mm_loadu_si128((const __m128i*)p);
    return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))};
}
OCTAVO_INLINE Ints load_int8s(const void* p) {
    const __m128i x = _mm_loadu_si128((const __m128i*)p);
    return {_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))};
}
OCTAVO_INLINE Ints load_ints(const void* p) { return {load_half_of(p, 0), load_half_of(p, 1)}; }
OCTAVO_INLINE Ints int_add(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
OCTAVO_INLINE Ints int_sub(Ints x, Ints y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
OCTAVO_INLINE Ints int_and(Ints x, int32_t y) {
    const __m256i mask = _mm256_set1_epi32(y);
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
OCTAVO_INLINE Ints int_or(Ints x, Ints y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
OCTAVO_INLINE Ints int_right(Ints x, int n) {
    const __m128i count = _mm_cvtsi32_si128(n);
    return {_mm256_srl_epi32(x.a, count), _mm256_srl_epi32(x.b, count)};
}
OCTAVO_INLINE Ints int_left(Ints x, int n) {
    const __m128i count = _mm_cvtsi32_si128(n);
    return {_mm256_sll_epi32(x.a, count), _mm256_sll_epi32(x.b, count)};
}
template <int N> OCTAVO_INLINE Ints int_left(Ints x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
OCTAVO_INLINE Ints as_ints(Bytes x) { return {x.a, x.b}; }

// Pairs of products must fit int16. Codes of up to 6 bits do: 2 * 63 * 127 = 16002. Those of 8 bits saturate, so they
// are split into their upper and lower halves.
OCTAVO_INLINE __m256i dot4_small(__m256i acc, __m256i codes, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(codes, x);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
OCTAVO_INLINE __m256i dot4_wide(__m256i acc, __m256i codes, __m256i x) {
    const __m256i low = _mm256_and_si256(codes, _mm256_set1_epi8(15));
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), _mm256_set1_epi8(15));
    const __m256i highs = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(16));
    return dot4_small(_mm256_add_epi32(acc, highs), low, x);
}
template <int BITS> OCTAVO_INLINE Ints dot4(Ints acc, Bytes codes, const int8_t* four) {
    int32_t bits;
    std::memcpy(&bits, four, 4);
    const __m256i x = _mm256_set1_epi32(bits);
    if constexpr (BITS > 6) return {dot4_wide(acc.a, codes.a, x), dot4_wide(acc.b, codes.b, x)};
    return {dot4_small(acc.a, codes.a, x), dot4_small(acc.b, codes.b, x)};
}

OCTAVO_INLINE Floats no_floats() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
OCTAVO_INLINE Floats all_floats(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
OCTAVO_INLINE Floats load_floats(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
OCTAVO_INLINE Floats load_halves(const void* p) {
    const __m128i* x = (const __m128i*)p;
    return {_mm256_cvtph_ps(_mm_loadu_si128(x)), _mm256_cvtph_ps(_mm_loadu_si128(x + 1))};
}
OCTAVO_INLINE Floats load_bf16s(const void* p) {
    const auto half = [](const __m128i* x) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(x)), 16));
    };
    return {half((const __m128i*)p), half((const __m128i*)p + 1)};
}
OCTAVO_INLINE Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
OCTAVO_INLINE Floats as_floats(Ints x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
OCTAVO_INLINE Floats add(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
OCTAVO_INLINE Floats sub(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
OCTAVO_INLINE Floats mul(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
OCTAVO_INLINE Floats fma(Floats x, Floats y, Floats z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
OCTAVO_INLINE Floats negate(Floats x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}
OCTAVO_INLINE void store_floats(float* p, Floats x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}

#else

typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));

template <class To, class Stored> OCTAVO_INLINE To load_as(const void* p) {
    Stored stored __attribute__((vector_size(16 * sizeof(Stored))));
    std::memcpy(&stored, p, sizeof stored);
    return __builtin_convertvector(stored, To);
}
OCTAVO_INLINE Bytes load_bytes(const void* p) {
    Bytes x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
OCTAVO_INLINE Bytes all_bytes(uint8_t x) { return x - Bytes{}; }
OCTAVO_INLINE Bytes byte_and(Bytes x, Bytes y) { return x & y; }
OCTAVO_INLINE Bytes byte_or(Bytes x, Bytes y) { return x | y; }
OCTAVO_INLINE Bytes look_up(const uint8_t* table, Bytes x) {
    for (int i = 0; i < 64; ++i) x[i] = table[x[i]];
    return x;
}
template <int N> OCTAVO_INLINE Bytes bits_right(Bytes x) { return (Bytes)((Ints)x >> N); }
template <int N> OCTAVO_INLINE Bytes bits_left(Bytes x) { return (Bytes)((Ints)x << N); }

OCTAVO_INLINE Ints all_ints(int32_t x) { return x - Ints{}; }
OCTAVO_INLINE Ints load_uint8s(const void* p) { return load_as<Ints, uint8_t>(p); }
OCTAVO_INLINE Ints load_int8s(const void* p) { return load_as<Ints, int8_t>(p); }
OCTAVO_INLINE Ints load_ints(const void* p) { return load_as<Ints, int32_t>(p); }
OCTAVO_INLINE Ints int_add(Ints x, Ints y) { return x + y; }
OCTAVO_INLINE Ints int_sub(Ints x, Ints y) { return x - y; }
OCTAVO_INLINE Ints int_and(Ints x, int32_t y) { return x & y; }
OCTAVO_INLINE Ints int_or(Ints x, Ints y) { return x | y; }
OCTAVO_INLINE Ints int_right(Ints x, int n) { return x >> n; }
OCTAVO_INLINE Ints int_left(Ints x, int n) { return x << n; }
template <int N> OCTAVO_INLINE Ints int_left(Ints x) { return x << N; }
OCTAVO_INLINE Ints as_ints(Bytes x) { return (Ints)x; }
template <int BITS> OCTAVO_INLINE Ints dot4(Ints acc, Bytes codes, const int8_t* four) {
    for (int j = 0; j < 4; ++j) acc += ((Ints)codes >> 8 * j & 255) * four[j];
    return acc;
}

OCTAVO_INLINE Floats no_floats() { return Floats{}; }
OCTAVO_INLINE Floats all_floats(float x) { return x - Floats{}; }
OCTAVO_INLINE Floats load_floats(const float* p) { return load_as<Floats, float>(p); }
OCTAVO_INLINE Floats load_halves(const void* p) {
    uint16_t x[16];
    std::memcpy(x, p, sizeof x);
    Floats out;
    for (int i = 0; i < 16; ++i) out[i] = half_to_float(x[i]);
    return out;
}
OCTAVO_INLINE Floats load_bf16s(const void* p) { return (Floats)(load_as<Ints, uint16_t>(p) << 16); }
OCTAVO_INLINE Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
OCTAVO_INLINE Floats as_floats(Ints x) { return (Floats)x; }
OCTAVO_INLINE Floats add(Floats x, Floats y) { return x + y; }
OCTAVO_INLINE Floats sub(Floats x, Floats y) { return x - y; }
OCTAVO_INLINE Floats mul(Floats x, Floats y) { return x * y; }
// Without an instruction for it, fma is a call of the C library for each lane: out of line, or compiling takes a minute.
#ifdef __FP_FAST_FMAF
OCTAVO_INLINE
#else
__attribute__((noinline)) static
#endif
Floats fma(Floats x, Floats y, Floats z) {
    for (int i = 0; i < 16; ++i) z[i] = std::fma(x[i], y[i], z[i]);
    return z;
}
OCTAVO_INLINE Floats negate(Floats x) { return -x; }
OCTAVO_INLINE void store_floats(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }

#endif

// Integer sums that start at this number are the bits of a float, 1.5 * 2^23 + the sum, up to 2^22. A subtraction makes
// the float, which keeps the multipliers free for dot products: a conversion would take one of their slots.
constexpr int32_t FLOAT_BITS = 0x4b400000;
OCTAVO_INLINE Floats sum_to_floats(Ints x) { return sub(as_floats(x), all_floats(12582912.f)); }

// acc + the products of pairs of bf16: the odd one is added first, then the even one (as VDPBF16PS does).
OCTAVO_INLINE Floats dot2_bf16(Floats acc, Ints pairs, uint32_t x) {
#if OCTAVO_ISA >= 2
    return _mm512_dpbf16_ps(acc, (__m512bh)pairs, (__m512bh)_mm512_set1_epi32(int32_t(x)));
#else
    float even, odd;
    const uint32_t low = x << 16, high = x & 0xffff0000;
    std::memcpy(&even, &low, 4);
    std::memcpy(&odd, &high, 4);
    acc = fma(as_floats(int_and(pairs, int32_t(0xffff0000))), all_floats(odd), acc);
    return fma(as_floats(int_left<16>(pairs)), all_floats(even), acc);
#endif
}

}  // namespace octavo::packed
