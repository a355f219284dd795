#include "rotary/cpu.h"

namespace octavo {
namespace {

template <class T>
void rotate(T* x, int64_t tokens, int64_t heads, int64_t token_stride, int64_t head_stride, const int64_t* positions,
            const float* table, int64_t rotary_dim) {
    parallel_if(tokens * heads * rotary_dim >= 1 << 14, [&](int thread, int threads) {
        const Range part = split(tokens, thread, threads);
        for (int64_t t = part.begin; t < part.end; ++t)
            for (int64_t h = 0; h < heads; ++h)
                rotate_head(x + t * token_stride + h * head_stride, table + positions[t] * rotary_dim, rotary_dim / 2);
    });
}

}  // namespace
}  // namespace octavo

// x: [tokens, heads, head_dim] in place, strides in values; table: [positions, rotary_dim].
OCTAVO_API void octavo_rotary(int64_t type, void* x, int64_t tokens, int64_t heads, int64_t token_stride,
                              int64_t head_stride, const int64_t* positions, const float* table, int64_t rotary_dim) {
    using namespace octavo;
    if (type == 0) rotate((float*)x, tokens, heads, token_stride, head_stride, positions, table, rotary_dim);
    else rotate((bf16*)x, tokens, heads, token_stride, head_stride, positions, table, rotary_dim);
}
