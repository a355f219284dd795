// Matrix products with packed weights, for the op's Python wrapper and for the native decoder.
//
//     y[R, N] = x[R, K] W[N, K]^T (+ bias)
//
// Activations are converted once (`pack_row`) and then multiplied by any number of matrices of one `ActivationKind`.
// Every output element is summed in one fixed order that depends on K alone, so a row's bits do not depend on the
// other rows, on the number of threads, or (int8 and f32 activations) on the instruction set. Buffers that start at a
// multiple of 64 bytes are read fastest.
#pragma once

#include "native/common.h"

namespace octavo {

// The numbers are part of the C interface and of packed files: append only. Names are GGUF's, but for z4 and z8.
enum class WeightFormat : int32_t {
    f32 = 0, f16 = 1, bf16 = 2,
    q4_0 = 3, q4_1 = 4, q5_0 = 5, q5_1 = 6, q8_0 = 7,
    q2_k = 8, q3_k = 9, q4_k = 10, q5_k = 11, q6_k = 12,
    z4 = 13, z8 = 14, mxfp4 = 15,
};

// How a matrix wants its activations. f32: as they are. bf16: rounded to it. int8: groups of 32 with a scale each.
enum class ActivationKind : int32_t { f32 = 0, bf16 = 1, int8 = 2 };

// Weights in blocks of 16 outputs: [ceil(N / 16)][K / unit][unit of 16 rows], see formats.h. Rows are padded to 16 with
// zeros, K of the float formats to 32. `data` holds packed_bytes(format, n, k) bytes.
struct PackedMatrix {
    WeightFormat format;
    int64_t n, k;
    const uint8_t* data;
};

// What a product does with its input. The numbers are part of the C interface.
// exact: float32 throughout, as if the weights were dequantised.
// fast: int8 for the grouped integer formats, bf16 for bf16 weights, float32 for f32 and f16 weights.
// twice: as fast, and what that rounding leaves of a row is rounded as well, as a row of its own: 15 bits of a group's
// largest value in place of 8, 17 of each value in place of 9. Both rows are multiplied by a weight that is read once.
enum class Precision : int64_t { fast = 0, exact = 1, twice = 2 };

// A batch of converted rows; `data` holds activation_bytes(kind, rows, k) bytes, aligned to 4. With parts = 2 each row of
// the batch is two of these `rows`, one after the other, and its output the sum of theirs.
struct Activations {
    ActivationKind kind;
    int64_t rows, k;
    uint8_t* data;
    int64_t parts = 1;
};

int64_t packed_bytes(WeightFormat format, int64_t n, int64_t k);

// What `linear` needs for a matrix.
ActivationKind activation_kind(WeightFormat format, Precision precision);

inline int64_t parts_of(ActivationKind kind, Precision precision) {
    return precision == Precision::twice && kind != ActivationKind::f32 ? 2 : 1;
}

int64_t activation_bytes(ActivationKind kind, int64_t rows, int64_t k);

// Convert row `row` of the batch from k floats (or bf16). Rows are independent: any thread may take any of them.
void pack_row(const Activations& to, int64_t row, const float* x);
void pack_row(const Activations& to, int64_t row, const bf16* x);

// Some columns of a row, of which x is the first: from a multiple of 32 to another or to k.
void pack_columns(const Activations& to, int64_t row, const float* x, Range columns);

// out[r * out_stride + i] for all rows of the batch: the outputs of some blocks of 16, of which `out` takes the first. The activations
// must be complete before. x.k must be w.k, and x.kind one that the format knows (activation_kind). bias: [n] or null.
void linear(const PackedMatrix& w, const Activations& x, float* out, int64_t out_stride, const float* bias, Range blocks);

// Blocks that kernels take side by side: a range of blocks is best a multiple of it.
inline int64_t blocks_together(int64_t rows) { return rows < 4 ? 2 : 6; }

// Row `row` of the matrix in float32 (k values): the embedding of a token. Exact.
void read_row(const PackedMatrix& w, int64_t row, float* out);

}  // namespace octavo
