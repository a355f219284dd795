// Float32 throughout: weights become floats in registers, columns are added in order.
#include "linear/loops.h"

namespace octavo::packed {
namespace {

// Once for all numbers of rows: in every kernel for itself it took half of the library's compile time, and a call costs
// little beside a group.
template <class Format>
__attribute__((noinline)) const float* decode_apart(const uint8_t* unit, int index, float* buffer) {
    return decode<Format>(unit, index, buffer);
}

template <class Format> struct FloatKernel : Halves {
    static constexpr int max_rows = OCTAVO_ISA >= 2 ? 16 : REGISTER_ROWS;
    static constexpr int64_t row_bytes = 4;
    static int64_t together(int64_t) { return 1; }
    static constexpr int cols(int) { return 1; }

    template <int ROWS, int COLS> static OCTAVO_INLINE void run(const Span& span, Floats (&acc)[ROWS * COLS]) {
        const float* x = reinterpret_cast<const float*>(span.x);
        const uint8_t* unit = span.weights;
        alignas(64) float buffer[GROUP * LANES];
        for (int64_t group = 0; group < span.groups; group += Format::GROUPS, unit += Format::unit_bytes) {
            for (int index = 0; index < Format::GROUPS; ++index) {
                constexpr int bytes = Format::unit_bytes / Format::GROUPS;
                fetch(unit + span.next_block + index * bytes, bytes);
                const float* w = decode_apart<Format>(unit, index, buffer);
                for (int i = 0; i < GROUP; ++i, w += LANES, x += span.height) {
                    const Floats column = load_floats(w);
#pragma GCC unroll 16
                    for (int r = 0; r < ROWS; ++r) acc[r] = fma(column, all_floats(x[r]), acc[r]);
                }
            }
        }
    }
};

}  // namespace

void multiply_exact(const Job& job) {
    with_format(job.w.format, [&](auto f) { run<FloatKernel<decltype(f)>>(job); });
}

}  // namespace octavo::packed
