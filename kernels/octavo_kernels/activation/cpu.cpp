#include "activation/cpu.h"

namespace octavo {
namespace {

template <class T>
void gate(Gate kind, const T* gate_up, int64_t rows, int64_t stride, int64_t inner, T* out) {
    parallel_if(rows * inner >= 1 << 13, [&](int thread, int threads) {
        const Range part = split(rows, thread, threads);
        for (int64_t r = part.begin; r < part.end; ++r)
            gate_row(kind, gate_up + r * stride, gate_up + r * stride + inner, inner, out + r * inner);
    });
}

}  // namespace
}  // namespace octavo

// gate_up: [rows, 2 inner] with a row stride in values; out: [rows, inner] contiguous. kind: 0 SiLU, 1 GELU (tanh).
OCTAVO_API void octavo_activation(int64_t type, int64_t kind, const void* gate_up, int64_t rows, int64_t stride,
                                  int64_t inner, void* out) {
    using namespace octavo;
    if (type == 0) gate(Gate(kind), (const float*)gate_up, rows, stride, inner, (float*)out);
    else gate(Gate(kind), (const bf16*)gate_up, rows, stride, inner, (bf16*)out);
}
