#include "native/common.h"

// x: [tokens, heads, head] bytes with strides in bytes; cache: [slots, heads, head] bytes, contiguous.
OCTAVO_API void octavo_kv_store(const char* x, int64_t tokens, int64_t heads, int64_t token_stride, int64_t head_stride,
                                int64_t head_bytes, char* cache, const int64_t* slots) {
    using namespace octavo;
    parallel_if(tokens * heads * head_bytes >= 1 << 18, [&](int thread, int threads) {
        const Range part = split(tokens, thread, threads);
        for (int64_t t = part.begin; t < part.end; ++t)
            for (int64_t h = 0; h < heads; ++h)
                std::memcpy(cache + (slots[t] * heads + h) * head_bytes, x + t * token_stride + h * head_stride,
                            head_bytes);
    });
}
