// Rotary embedding of one head.
#pragma once

#include "native/common.h"

namespace octavo {

// In place; cos_sin: half cosines, then half sines. Value i of the first half turns with value i + half.
template <class T>
void rotate_head(T* head, const float* cos_sin, int64_t half) {
    for (int64_t i = 0; i < half; i += kLanes) {
        const int64_t lanes = half - i;
        const Vec a = load_part(head + i, lanes), b = load_part(head + half + i, lanes);
        const Vec cos = load_part(cos_sin + i, lanes), sin = load_part(cos_sin + half + i, lanes);
        store_part(head + i, fma(-b, sin, a * cos), lanes);
        store_part(head + half + i, fma(a, sin, b * cos), lanes);
    }
}

}  // namespace octavo
