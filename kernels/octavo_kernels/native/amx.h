// Intel AMX: eight registers that hold a tile each, up to 16 rows of 64 bytes, and instructions that multiply them.
//
// OCTAVO_ISA 4 is for tests on CPUs without AMX: the same functions in plain C++ after the pseudo code of Intel's manual
// (Software Developer's Manual, volume 2), which abort where the CPU would fault. The instructions are written as
// assembly because GCC's own intrinsics do not say that they read memory: GCC 12 then leaves out the stores of a
// configuration before it is loaded (GCC PR 114098).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "native/common.h"

#if OCTAVO_ISA == 3
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace octavo::amx {

// Rows and bytes of a row of each tile; a tile that is not set must not be used.
struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int64_t height, int64_t bytes) {
        rows[tile] = uint8_t(height);
        row_bytes[tile] = uint16_t(bytes);
    }
};
static_assert(sizeof(Config) == 64);

#if OCTAVO_ISA == 3

// Ask the kernel for the tiles' state: once for the process, before any other function. Linux 5.16 or later.
inline bool permitted() {
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

// Configure this thread's tiles; release() gives their state back, so that nobody saves and restores it.
OCTAVO_INLINE void configure(const Config& config) { asm volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
OCTAVO_INLINE void release() { asm volatile("tilerelease" ::: "memory"); }

template <int TILE> OCTAVO_INLINE void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE> OCTAVO_INLINE void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE> OCTAVO_INLINE void zero() { asm volatile("tilezero %%tmm%c0" ::"i"(TILE)); }

// C[m][n] += the sum over k of A[m][k] B[k / 4][4 n + k % 4], int8 times Codes, which is int8_t or uint8_t.
template <class Codes, int C, int A, int B> OCTAVO_INLINE void dot_int8() {
    if constexpr (Codes(-1) < 0) asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    else asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// C[m][n] += the sum over k of A[m][k] B[k / 2][2 n + k % 2], bf16 times bf16: even and odd k first by themselves.
template <int C, int A, int B> OCTAVO_INLINE void dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#else

inline bool permitted() { return true; }

struct State {
    Config config{0};
    uint8_t tile[8][16][64];
};
inline thread_local State state;

inline int rows(int tile) { return state.config.rows[tile]; }
inline int row_bytes(int tile) { return state.config.row_bytes[tile]; }
inline void check(bool legal) {
    if (!legal) std::abort();
}

inline void configure(const Config& config) {
    check(config.palette == 1 && config.start_row == 0);
    for (int i = 0; i < 8; ++i)
        check(config.rows[i] <= 16 && config.row_bytes[i] <= 64 && !config.rows[i] == !config.row_bytes[i]);
    state.config = config;
    std::memset(state.tile, 0, sizeof state.tile);
}
inline void release() { state.config = Config{0}; }

template <int TILE> void zero() {
    check(rows(TILE) > 0);
    std::memset(state.tile[TILE], 0, sizeof state.tile[TILE]);
}
template <int TILE> void load(const void* from, int64_t stride) {
    zero<TILE>();
    for (int row = 0; row < rows(TILE); ++row)
        std::memcpy(state.tile[TILE][row], static_cast<const uint8_t*>(from) + row * stride, row_bytes(TILE));
}
template <int TILE> void store(void* to, int64_t stride) {
    check(rows(TILE) > 0);
    for (int row = 0; row < rows(TILE); ++row)
        std::memcpy(static_cast<uint8_t*>(to) + row * stride, state.tile[TILE][row], row_bytes(TILE));
}

// Rows of C, k / 4 bytes, columns of C, once the shapes fit.
inline void check_shapes(int c, int a, int b) {
    check(rows(c) > 0 && rows(c) == rows(a) && row_bytes(c) == row_bytes(b) && row_bytes(a) == 4 * rows(b));
}

template <class Codes, int C, int A, int B> void dot_int8() {
    check_shapes(C, A, B);
    for (int m = 0; m < rows(C); ++m)
        for (int n = 0; n < row_bytes(C) / 4; ++n) {
            int32_t sum;
            std::memcpy(&sum, &state.tile[C][m][4 * n], 4);
            for (int k = 0; k < row_bytes(A); ++k)
                sum += int8_t(state.tile[A][m][k]) * Codes(state.tile[B][k / 4][4 * n + k % 4]);
            std::memcpy(&state.tile[C][m][4 * n], &sum, 4);
        }
}

inline float bf16_at(const uint8_t* p) {
    bf16 x;
    std::memcpy(&x, p, 2);
    return to_float(x);
}

template <int C, int A, int B> void dot_bf16() {
    check_shapes(C, A, B);
    for (int m = 0; m < rows(C); ++m)
        for (int n = 0; n < row_bytes(C) / 4; ++n) {
            float part[2] = {};
            for (int k = 0; k < row_bytes(A) / 2; ++k)
                part[k % 2] = std::fma(bf16_at(&state.tile[A][m][2 * k]),
                                       bf16_at(&state.tile[B][k / 2][4 * n + 2 * (k % 2)]), part[k % 2]);
            float sum;
            std::memcpy(&sum, &state.tile[C][m][4 * n], 4);
            sum += part[0] + part[1];
            std::memcpy(&state.tile[C][m][4 * n], &sum, 4);
        }
}

#endif

}  // namespace octavo::amx
