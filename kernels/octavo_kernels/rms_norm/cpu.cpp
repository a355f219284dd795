#include "rms_norm/cpu.h"

namespace octavo {
namespace {

constexpr int64_t kShare = 1 << 14;  // values below which one core does it all

template <class T>
void norm(const T* x, int64_t rows, int64_t heads, int64_t row_stride, int64_t head_stride, int64_t dim,
          const float* weight, float eps, T* out) {
    parallel_if(rows * heads * dim >= kShare, [&](int thread, int threads) {
        const Range part = split(rows * heads, thread, threads);
        for (int64_t i = part.begin; i < part.end; ++i)
            rms_norm_row(x + i / heads * row_stride + i % heads * head_stride, weight, eps, dim, out + i * dim);
    });
}

template <class T>
void add_norm(const T* x, const T* residual, int64_t rows, int64_t dim, const float* weight, float eps, T* out,
              T* total) {
    parallel_if(rows * dim >= kShare, [&](int thread, int threads) {
        const Range part = split(rows, thread, threads);
        for (int64_t i = part.begin * dim; i < part.end * dim; i += dim) {
            add_row(x + i, residual + i, dim, total + i);
            rms_norm_row(total + i, weight, eps, dim, out + i);
        }
    });
}

}  // namespace
}  // namespace octavo

// x: [rows, heads, dim] with the two strides in values; out: contiguous. type: 0 float, 1 bf16.
OCTAVO_API void octavo_rms_norm(int64_t type, const void* x, int64_t rows, int64_t heads, int64_t row_stride,
                                int64_t head_stride, int64_t dim, const float* weight, float eps, void* out) {
    using namespace octavo;
    if (type == 0) norm((const float*)x, rows, heads, row_stride, head_stride, dim, weight, eps, (float*)out);
    else norm((const bf16*)x, rows, heads, row_stride, head_stride, dim, weight, eps, (bf16*)out);
}

// All [rows, dim], contiguous.
OCTAVO_API void octavo_add_rms_norm(int64_t type, const void* x, const void* residual, int64_t rows, int64_t dim,
                                    const float* weight, float eps, void* out, void* total) {
    using namespace octavo;
    if (type == 0) add_norm((const float*)x, (const float*)residual, rows, dim, weight, eps, (float*)out, (float*)total);
    else add_norm((const bf16*)x, (const bf16*)residual, rows, dim, weight, eps, (bf16*)out, (bf16*)total);
}
