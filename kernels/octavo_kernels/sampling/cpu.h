// Drawing a token from a row of logits: temperature, min-p, top-k, top-p, one uniform number per row. The definition is
// reference.py; nothing is sorted but the few logits around a threshold.
#pragma once

#include <vector>

#include "native/common.h"

namespace octavo {

struct SamplingRow {
    float temperature;  // 0: the likeliest token
    int32_t top_k;      // 0: all
    float top_p, min_p;
    uint64_t seed;
    int64_t position;  // with the seed, the counter of the random number
    const uint32_t* mask = nullptr;  // a bit per token that may be drawn; none: all may
    int64_t words = 0;               // of the mask; tokens beyond may not
};

struct SamplingScratch {
    std::vector<float> scaled, weights, candidates;
    std::vector<int64_t> chunks;  // where those with any weight begin: what else there is adds nothing to any sum
    std::vector<double> before;   // of each of those, the sum of all weights before it
};

// The token, or -1 where the largest logit is not finite.
int64_t sample_row(const float* logits, int64_t vocab, const SamplingRow& row, SamplingScratch& scratch);

}  // namespace octavo
