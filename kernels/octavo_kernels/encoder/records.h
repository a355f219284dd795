// What Python passes: records of 64-bit words (encoder/__init__.py writes them in this order).
#pragma once

#include "linear/input.h"

namespace octavo::encoder {

struct Norm {
    const float *weight, *bias;  // either may be null: without weight there is no norm
};

struct Table {
    const float* data;  // [rows][hidden]
    int64_t rows;       // 0: there is none
};

struct Layer {
    Matrix q, k, v, out, gate, up, down;  // gate has no data where the MLP has no gate
    Norm attention, mlp;                  // before the branches, or (post-norm) after them
    const float* rotary;                  // [positions][rotary_dim]
    int64_t rotary_dim;
    int64_t reach;                        // a token sees those at most so far from it, on either side
};

struct Model {
    int64_t hidden, query_heads, kv_heads, head_dim, inner;
    int64_t activation, precision, narrow, norm_first, layer_norm, num_layers;
    Matrix embedding;
    Table positions, types;
    int64_t position_offset;      // row of a text's first token
    Norm embedding_norm, final_norm;
    const float* bias;            // [query_heads][bias_row]: of scores, by distance (MPNet); or null
    int64_t bias_row, bias_zero;  // values of a head, and which of them is of distance 0
};

struct Numbers {
    float eps, attention_scale, embedding_scale;
};

}  // namespace octavo::encoder
