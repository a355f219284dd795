// RMS norm and layer norm of one row, whole or part of a larger function.
#pragma once

#include "native/common.h"

namespace octavo {

// 1 / sqrt(mean(x^2) + eps); four chains of partial sums, whatever the row is part of.
template <class T>
float rms_scale(const T* x, float eps, int64_t dim) {
    Vec partial[4] = {};
    for (int64_t i = 0; i < dim; i += kLanes) {
        const Vec v = load_part(x + i, dim - i);
        Vec& total = partial[i / kLanes % 4];
        total = fma(v, v, total);
    }
    const float squares = sum((partial[0] + partial[1]) + (partial[2] + partial[3]));
    return 1.f / std::sqrt(squares / float(dim) + eps);
}

// out = x / sqrt(mean(x^2) + eps) * weight; out may be x.
template <class T>
void rms_norm_row(const T* x, const float* weight, float eps, int64_t dim, T* out) {
    const Vec scale = splat(rms_scale(x, eps, dim));
    for (int64_t i = 0; i < dim; i += kLanes)
        store_part(out + i, load_part(x + i, dim - i) * scale * load_part(weight + i, dim - i), dim - i);
}

// total = x + residual, rounded to T; total may be either of them.
template <class T>
void add_row(const T* x, const T* residual, int64_t dim, T* total) {
    for (int64_t i = 0; i < dim; i += kLanes)
        store_part(total + i, load_part(x + i, dim - i) + load_part(residual + i, dim - i), dim - i);
}

// out = (x - mean) / sqrt(variance + eps) * weight + bias; out may be x, bias null.
inline void layer_norm_row(const float* x, const float* weight, const float* bias, float eps, int64_t dim, float* out) {
    Vec total = {};
    for (int64_t i = 0; i < dim; i += kLanes) total = total + load_part(x + i, dim - i);
    const Vec mean = splat(sum(total) / float(dim));
    for (int64_t i = 0; i < dim; i += kLanes) store_part(out + i, load_part(x + i, dim - i) - mean, dim - i);
    rms_norm_row(out, weight, eps, dim, out);
    if (bias) add_row(out, bias, dim, out);
}

}  // namespace octavo
