// What every cpu.cpp shares: the instruction set, bf16, vectors of floats, exp, and the thread pool's interface.
//
// OCTAVO_ISA says what this copy of the library may use: 0 portable C++, 1 AVX2 + FMA + F16C, 2 AVX-512 (F, BW, DQ, VL,
// VBMI, VNNI, BF16), 3 the same with AMX (tile, int8, bf16), 4 AMX's instructions emulated (native/amx.h). Floating-point contraction is off (-ffp-contract=off):
// where a product and a sum may fuse, the code says fma(), so that a row's bits never depend on what the compiler saw.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if OCTAVO_ISA >= 1
#include <immintrin.h>
#endif

#define OCTAVO_API extern "C" __attribute__((visibility("default")))
#define OCTAVO_INLINE inline __attribute__((always_inline))

namespace octavo {

// ---- threads ------------------------------------------------------------------------------------------------------

constexpr int kMaxThreads = 256;

struct Range {
    int64_t begin, end;
};

// The contiguous part of 0..count that `thread` of `threads` does; inner edges are multiples of `multiple`.
inline Range split(int64_t count, int thread, int threads, int64_t multiple = 1) {
    const int64_t units = (count + multiple - 1) / multiple;
    const int64_t begin = units * thread / threads * multiple, end = units * (thread + 1) / threads * multiple;
    return {begin < count ? begin : count, end < count ? end : count};
}

// Threads that parallel() runs on, the caller among them.
int num_threads();
void set_threads(int64_t threads);

// fn(ctx, thread, threads) on every thread of the pool, the caller being thread 0; returns when all are done. One
// region runs at a time in a process (a second caller waits); regions do not nest.
void parallel(void (*fn)(void* ctx, int thread, int threads), void* ctx);

template <class F>
void parallel(const F& f) {
    parallel([](void* ctx, int thread, int threads) { (*static_cast<const F*>(ctx))(thread, threads); }, (void*)&f);
}

// As parallel(), but on the caller alone, outside any region, when the work is too small to share (a region costs a few
// microseconds). f must not call barrier().
template <class F>
void parallel_if(bool worthwhile, const F& f) {
    if (worthwhile) parallel(f);
    else f(0, 1);
}

// Inside parallel(): returns once every thread of the region has called it, with all their writes visible. It must be
// called by all threads equally often.
void barrier();

// f(thread) on the caller (thread 0) and on those pool threads that come in time, `threads` at most, whatever the pool
// has by now: who lays memory out per thread names the number it did that for. Returns when all that came have left.
// Work is shared out by Phases, so that it gets done whoever comes: a thread that lost its core to another process
// holds up nothing but the unit of work that it has in hand.
void join(void (*fn)(void* ctx, int thread), void* ctx, int threads);

template <class F>
void join(int threads, const F& f) {
    join([](void* ctx, int thread) { (*static_cast<const F*>(ctx))(thread); }, (void*)&f, threads);
}

// One piece of a region's work, cut into units that threads take until there are none left.
struct alignas(64) Phase {
    std::atomic<int64_t> next{0};
    std::atomic<uint32_t> done{0};
    std::atomic<int32_t> sleepers{0};

    void finish(uint32_t units, uint32_t of);
    void wait(uint32_t of);
};

// The phases of a region in order; every thread goes through all of them with a cursor of its own.
class Phases {
    std::vector<Phase> phases;

public:
    explicit Phases(int64_t count) : phases(count) {}

    void reset() {
        for (Phase& phase : phases) phase.next = 0, phase.done = 0;
    }

    // f(unit) for the units 0..count-1 that fall to this thread; returns when all threads' units are done.
    template <class F>
    void run(int& cursor, int64_t count, const F& f) {
        start(cursor, count, f).wait(uint32_t(count));
    }

    // The same without the waiting: who needs what all threads' units wrote waits for the phase.
    template <class F>
    Phase& start(int& cursor, int64_t count, const F& f) {
        Phase& phase = phases.at(cursor++);
        uint32_t mine = 0;
        for (int64_t unit; (unit = phase.next.fetch_add(1, std::memory_order_relaxed)) < count; ++mine) f(unit);
        if (mine) phase.finish(mine, uint32_t(count));
        return phase;
    }
};

// ---- self-test ----------------------------------------------------------------------------------------------------

// A static SelfTest registers a check that fast code agrees with plain loops. All run before a library is first used on
// a CPU, in a process of their own; one that fails sends this machine to the next lower instruction set.
struct SelfTest {
    SelfTest(const char* name, bool (*passes)());
    const char* name;
    bool (*passes)();
    SelfTest* next;
};

// ---- bf16 ---------------------------------------------------------------------------------------------------------

struct bf16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

// Round to nearest, ties to even; NaN stays NaN.
inline bf16 to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return {uint16_t((bits >> 16) | 0x40)};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) { return x; }
template <>
inline bf16 from_float<bf16>(float x) { return to_bf16(x); }

// ---- vectors ------------------------------------------------------------------------------------------------------

// GCC and Clang lower arithmetic on these to the machine's own vectors; kLanes is what fits one register.
#if OCTAVO_ISA >= 2
constexpr int kLanes = 16;
#elif OCTAVO_ISA == 1
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UVec __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HVec __attribute__((vector_size(kLanes * 2)));

OCTAVO_INLINE Vec splat(float x) { return x - Vec{}; }
OCTAVO_INLINE IVec splat_int(int32_t x) { return x - IVec{}; }

OCTAVO_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if OCTAVO_ISA >= 2
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif OCTAVO_ISA == 1
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// b where either is NaN, as x86 has it.
OCTAVO_INLINE Vec max(Vec a, Vec b) {
#if OCTAVO_ISA >= 2
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif OCTAVO_ISA == 1
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

OCTAVO_INLINE Vec min(Vec a, Vec b) {
#if OCTAVO_ISA >= 2
    return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif OCTAVO_ISA == 1
    return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

OCTAVO_INLINE Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

OCTAVO_INLINE Vec load(const bf16* p) {
    HVec h;
    std::memcpy(&h, p, sizeof h);
    return (Vec)(__builtin_convertvector(h, UVec) << 16);
}

OCTAVO_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

OCTAVO_INLINE void store(bf16* p, Vec v) {
    const UVec bits = (UVec)v;
    const UVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const UVec nan = (bits >> 16) | 0x40;
    const HVec h = __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded, HVec);
    std::memcpy(p, &h, sizeof h);
}

// Sum and maximum of all lanes, always in the same order: the upper half onto the lower one until one is left.
#if OCTAVO_ISA >= 1
template <class F>
OCTAVO_INLINE float fold(Vec v, const F& f) {
#if OCTAVO_ISA >= 2
    const __m256 x8 = f(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    const __m256 x8 = (__m256)v;
#endif
    const __m128 x4 = f(_mm256_castps256_ps128(x8), _mm256_extractf128_ps(x8, 1));
    const __m128 x2 = f(x4, _mm_movehl_ps(x4, x4));
    return _mm_cvtss_f32(f(x2, _mm_movehdup_ps(x2)));
}

struct Add {
    OCTAVO_INLINE __m256 operator()(__m256 a, __m256 b) const { return _mm256_add_ps(a, b); }
    OCTAVO_INLINE __m128 operator()(__m128 a, __m128 b) const { return _mm_add_ps(a, b); }
};

struct Max {
    OCTAVO_INLINE __m256 operator()(__m256 a, __m256 b) const { return _mm256_max_ps(a, b); }
    OCTAVO_INLINE __m128 operator()(__m128 a, __m128 b) const { return _mm_max_ps(a, b); }
};

OCTAVO_INLINE float sum(Vec v) { return fold(v, Add()); }
OCTAVO_INLINE float max(Vec v) { return fold(v, Max()); }
#else
OCTAVO_INLINE float sum(Vec v) {
    float x[kLanes];
    store(x, v);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) x[i] += x[i + width];
    return x[0];
}

OCTAVO_INLINE float max(Vec v) {
    float x[kLanes];
    store(x, v);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
    return x[0];
}
#endif

// e^x to 2 ulp: 0 where that is too small for a float (from -104 on with AVX-512, from -87.3 else), infinity above 88.7,
// NaN for NaN. Range reduction by ln 2 in two parts and the polynomial of Cephes' expf (Moshier).
OCTAVO_INLINE Vec exp(Vec x) {
#if OCTAVO_ISA >= 2
    const Vec clamped = max(splat(-110.f), min(splat(100.f), x));  // max and min give their second where one is NaN
#else
    const Vec clamped = min(max(x, splat(-87.33f)), splat(88.72f));
#endif
    const Vec shifter = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vec n = fma(clamped, splat(1.44269504088896341f), shifter) - shifter;
    const Vec r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), clamped));
    Vec p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r + splat(1.f));
#if OCTAVO_ISA >= 2
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const IVec k = __builtin_convertvector(n, IVec);
    const IVec half = k >> 1;  // in two steps: 2^128 is no float, but 2^64 * 2^64 times p < 1 can be
    const Vec scaled = p * (Vec)((half + 127) << 23) * (Vec)((k - half + 127) << 23);
    const Vec high = x > splat(88.72f) ? splat(std::numeric_limits<float>::infinity()) : scaled;
    const Vec low = x < splat(-87.33f) ? Vec{} : high;
    return x == x ? low : x;
#endif
}

OCTAVO_INLINE Vec sigmoid(Vec x) { return splat(1.f) / (splat(1.f) + exp(-x)); }

// 2 sigmoid(2x) - 1; its error is absolute, 1e-7.
OCTAVO_INLINE Vec tanh(Vec x) { return splat(2.f) * sigmoid(x + x) - splat(1.f); }

// Load and store the first `lanes` (the rest is 0), so that the end of a row runs the same instructions as the rest.
template <class T>
OCTAVO_INLINE Vec load_part(const T* p, int64_t lanes) {
    if (lanes >= kLanes) return load(p);
    T x[kLanes] = {};
    std::memcpy(x, p, lanes * sizeof(T));
    return load(x);
}

template <class T>
OCTAVO_INLINE void store_part(T* p, Vec v, int64_t lanes) {
    if (lanes >= kLanes) return store(p, v);
    T x[kLanes];
    store(x, v);
    std::memcpy(p, x, lanes * sizeof(T));
}

}  // namespace octavo
