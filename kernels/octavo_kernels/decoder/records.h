// What Python passes: records of 64-bit words (decoder/__init__.py writes them in this order).
#pragma once

#include "linear/input.h"

namespace octavo {

struct Mixture;

struct Layer {
    Matrix q, k, v, out, gate, up, down;                   // gate has no data where the MLP has no gate
    const float *attention_norm, *mlp_norm;
    const float *q_norm, *k_norm;                          // or null
    const float *post_attention_norm, *post_mlp_norm;      // or null
    const float* rotary;                                   // [positions][rotary_dim]
    int64_t rotary_dim, window;
    void *k_cache, *v_cache;
    const Mixture* mixture;  // or null; gate, up and down are then the shared expert's, if there is one (mixture.h)
    const float* sinks;      // [query_heads], or null
};

struct Model {
    int64_t hidden, query_heads, kv_heads, head_dim, inner, vocab;
    int64_t gate, exact, kv_is_bf16, kv_is_int8, block_size, block_bytes, num_layers;
    int64_t layer_norm;  // in place of RMS norms, but for those of queries and keys
    Matrix embedding, head;
    const float* final_norm;
    const float* slopes;  // [query_heads], or null (ALiBi)
};

struct Numbers {
    float eps, attention_scale, attention_softcap, logit_softcap, embedding_scale;
};

}  // namespace octavo
