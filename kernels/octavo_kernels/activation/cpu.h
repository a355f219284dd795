// Gated activations of one row.
#pragma once

#include "native/common.h"

namespace octavo {

OCTAVO_INLINE Vec silu(Vec x) { return x * sigmoid(x); }

// 0.5 x (1 + tanh(u)) is x sigmoid(2u), which does not cancel where u is far below 0.
OCTAVO_INLINE Vec gelu(Vec x) {
    const Vec u = splat(0.7978845608028654f) * fma(x * x * x, splat(0.044715f), x);
    return x * sigmoid(u + u);
}

// out[i] = f(gate[i]) * up[i] for i < count.
template <class T, class F>
OCTAVO_INLINE void gate_row(const T* gate, const T* up, int64_t count, T* out, F f) {
    for (int64_t i = 0; i < count; i += kLanes)
        store_part(out + i, f(load_part(gate + i, count - i)) * load_part(up + i, count - i), count - i);
}

enum class Gate : int64_t { silu, gelu };

template <class T>
void gate_row(Gate kind, const T* gate, const T* up, int64_t count, T* out) {
    if (kind == Gate::silu) gate_row(gate, up, count, out, [](Vec x) { return silu(x); });
    else gate_row(gate, up, count, out, [](Vec x) { return gelu(x); });
}

}  // namespace octavo
