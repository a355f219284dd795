#include <algorithm>

#include "native/common.h"

namespace octavo {
namespace {

constexpr int64_t kChunk = 512;  // e^x summed in single precision before a double takes it

struct Norm {
    float norm;
    int64_t rank;
};

Norm log_norm(const float* logits, int64_t vocab, int64_t token) {
    const float own = logits[token];
    Vec top = splat(own);
    IVec larger = {};  // a lane counts down by one per larger logit: comparisons give -1
    for (int64_t i = 0; i < vocab; i += kLanes) {
        Vec x = load_part(logits + i, vocab - i);
        if (vocab - i < kLanes)
            for (int lane = int(vocab - i); lane < kLanes; ++lane) x[lane] = own;
        top = max(x, top);
        larger += x > splat(own);
    }
    int64_t rank = 1;
    for (int lane = 0; lane < kLanes; ++lane) rank -= larger[lane];
    const float peak = max(top);
    double total = 0;
    for (int64_t begin = 0; begin < vocab; begin += kChunk) {
        const int64_t end = std::min(vocab, begin + kChunk);
        Vec part = {};
        for (int64_t i = begin; i < end; i += kLanes) {
            Vec x = exp(load_part(logits + i, end - i) - splat(peak));
            if (end - i < kLanes)
                for (int lane = int(end - i); lane < kLanes; ++lane) x[lane] = 0;
            part = part + x;
        }
        total += sum(part);
    }
    return {float(double(peak) + std::log(total)), rank};
}

SelfTest self_test("norms of logits", [] {
    float logits[2051];
    uint32_t state = 1;
    for (float& x : logits) x = float((state = state * 1664525u + 1013904223u) >> 16) / 5000;
    double total = 0;
    int64_t rank = 1;
    for (const float x : logits) total += std::exp(double(x)), rank += x > logits[7];
    const Norm found = log_norm(logits, 2051, 7);
    return found.rank == rank && std::abs(found.norm - std::log(total)) < 1e-4;
});

}  // namespace
}  // namespace octavo

// Per row r of logits[logits_row[r]], [L, vocab]: log(sum of e^logit), and 1 + the number of logits above tokens[r]'s.
OCTAVO_API void octavo_log_norms(const float* logits, int64_t vocab, int64_t rows, const int64_t* logits_row,
                                 const int64_t* tokens, float* norms, int64_t* ranks) {
    using namespace octavo;
    parallel_if(rows * vocab >= 1 << 16, [&](int thread, int threads) {
        const Range part = split(rows, thread, threads);
        for (int64_t r = part.begin; r < part.end; ++r) {
            const Norm found = log_norm(logits + logits_row[r] * vocab, vocab, tokens[r]);
            norms[r] = found.norm;
            ranks[r] = found.rank;
        }
    });
}
