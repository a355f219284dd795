// What Python passes: records of 64-bit words (decoder/__init__.py writes them in this order).
#pragma once

#include "linear/input.h"

namespace octavo {

struct Mixture;
struct Latent;
struct Recurrent;

struct Layer {
    Matrix q, k, v, out, gate, up, down;                   // gate has no data where the MLP has no gate
    const float *attention_norm, *mlp_norm;                // or null, where branches take the residual as it is
    const float *q_norm, *k_norm;                          // or null
    const float *post_attention_norm, *post_mlp_norm;      // or null
    const float* rotary;                                   // [positions][rotary_dim]
    int64_t rotary_dim, window;
    void *k_cache, *v_cache;
    const Mixture* mixture;  // or null; gate, up and down are then the shared expert's, if there is one (mixture.h)
    const float* sinks;      // [query_heads], or null
    const float *attention_norm_bias, *mlp_norm_bias;  // or null
    const Latent* latent;  // or null; q is then what comes first of queries, k makes records, and there is no v (latent.h)
    const Recurrent* recurrent;  // in place of attention, or null; q, k and v are then what it takes (recurrent.h)
    int64_t group, plan;  // whose block tables are this layer's; window and group, counted from 0
    Matrix z, b, a;  // further ones beside q, k and v: z gates attention's or a delta net's result; b and a: delta_net.h
};

struct Model {
    int64_t hidden, query_heads, kv_heads, head_dim, inner, vocab;
    int64_t gate, precision, kv_is_bf16, kv_is_int8, block_size, block_bytes, num_layers;
    int64_t layer_norm;  // in place of RMS norms, but for those of queries and keys
    Matrix embedding, head;
    const float* final_norm;
    const float* slopes;  // [query_heads], or null (ALiBi)
    int64_t parallel;     // attention and MLP both start from a layer's input
    int64_t wide_norms;   // norms of queries and keys go over all heads: [query_heads * head_dim], [kv_heads * head_dim]
    const float* final_norm_bias;                          // or null
    const float *embedding_norm, *embedding_norm_bias;     // or null
    const float* positions;                                // [positions][hidden] added to embeddings, or null
    const float* query_scales;                             // [positions], of queries once they are rotated, or null
};

struct Numbers {
    float eps, attention_scale, attention_softcap, logit_softcap, embedding_scale;
    float residual_scale, logit_scale;
    float qkv_clip;  // 0: none
};

}  // namespace octavo
