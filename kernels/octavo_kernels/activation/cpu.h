// Activations of one row, most of them gated.
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

// gpt-oss's form: both are clamped, and 1 is added to `up`.
inline void clamped_gate_row(const float* gate, const float* up, float limit, int64_t count, float* out) {
    const Vec high = splat(limit), low = splat(-limit);
    for (int64_t i = 0; i < count; i += kLanes) {
        const Vec x = min(high, load_part(gate + i, count - i)), y = max(low, min(high, load_part(up + i, count - i)));
        store_part(out + i, (y + splat(1.f)) * (x * sigmoid(splat(1.702f) * x)), count - i);
    }
}

// x times the normal distribution's integral up to x, to 1e-7 |x| (Abramowitz and Stegun 7.1.26).
OCTAVO_INLINE Vec exact_gelu(Vec x) {
    const Vec size = max(x, -x) * splat(0.70710678118654752f), t = splat(1.f) / fma(splat(0.3275911f), size, splat(1.f));
    Vec p = fma(splat(1.061405429f), t, splat(-1.453152027f));
    p = fma(p, t, splat(1.421413741f));
    p = fma(p, t, splat(-0.284496736f));
    p = fma(p, t, splat(0.254829592f));
    const Vec tail = splat(0.5f) * p * t * exp(-size * size);
    return x * (x < Vec{} ? tail : splat(1.f) - tail);
}

enum class Gate : int64_t { silu, gelu, exact_gelu, relu, squared_relu };

// Calls f with the function of `kind`.
template <class F>
void with_function(Gate kind, const F& f) {
    switch (kind) {
        case Gate::silu: return f([](Vec x) { return silu(x); });
        case Gate::gelu: return f([](Vec x) { return gelu(x); });
        case Gate::exact_gelu: return f([](Vec x) { return exact_gelu(x); });
        case Gate::relu: return f([](Vec x) { return max(x, Vec{}); });
        case Gate::squared_relu: return f([](Vec x) { return max(x, Vec{}) * max(x, Vec{}); });
    }
}

template <class T>
void gate_row(Gate kind, const T* gate, const T* up, int64_t count, T* out) {
    with_function(kind, [&](const auto& function) { gate_row(gate, up, count, out, function); });
}

// out[i] = f(x[i]) for i < count.
inline void activate_row(Gate kind, const float* x, int64_t count, float* out) {
    with_function(kind, [&](const auto& function) {
        for (int64_t i = 0; i < count; i += kLanes) store_part(out + i, function(load_part(x + i, count - i)), count - i);
    });
}

}  // namespace octavo
