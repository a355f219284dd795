// Attention of one text against plain loops: both types, windows, biases, heads that are padded, several splits of keys.
#include "encoder/attention.h"

namespace octavo::encoder {
namespace {

constexpr int64_t kDim = 24, kPadded = 32, kStride = 3 * kDim;
constexpr float kScale = 0.2f;

struct Case {
    int64_t count, reach;
    bool biased;
};

struct Random {
    uint32_t state = 1;
    float operator()() {  // in (-1, 1)
        state = state * 1664525u + 1013904223u;
        return (float(state >> 16) - 32767.5f) / 32768;
    }
};

// Output of one token; bias: of distance 0, or null.
void attend_plainly(const Case& c, const float* rows, const float* bias, int64_t token, double* out) {
    std::vector<double> weights(c.count);
    double total = 0;
    for (int64_t key = 0; key < c.count; ++key) {
        if (std::abs(key - token) > c.reach) continue;
        double score = 0;
        for (int64_t d = 0; d < kDim; ++d) score += double(rows[token * kStride + d]) * rows[key * kStride + kDim + d];
        weights[key] = std::exp(score * kScale + (bias ? bias[key - token] : 0));
        total += weights[key];
    }
    for (int64_t d = 0; d < kDim; ++d) {
        out[d] = 0;
        for (int64_t key = 0; key < c.count; ++key) out[d] += weights[key] / total * rows[key * kStride + 2 * kDim + d];
    }
}

template <class T>
bool agrees(const Case& c, double precision) {
    Random random;
    std::vector<float> rows(c.count * kStride), biases(2 * c.count + kCell), out(c.count * kDim);
    for (float& x : rows) x = random();
    for (float& x : biases) x = random();
    const float* bias = c.biased ? biases.data() + c.count - 1 : nullptr;
    const Heads heads{rows.data(), rows.data() + kDim, rows.data() + 2 * kDim, kStride, c.count, out.data(), kDim};
    const Shape shape{kDim, kPadded, kDim / kPerWord<T>, kScale, 0, false, bias};
    Room room;
    room.reserve(c.count, kPadded);
    pack_cells<T>(heads, kDim, kPadded, room);
    attend_tokens<T>(heads, {0, c.count}, shape, c.reach, room);
    for (int64_t token = 0; token < c.count; ++token) {
        double expected[kDim];
        attend_plainly(c, rows.data(), bias, token, expected);
        for (int64_t d = 0; d < kDim; ++d)
            if (!(std::fabs(out[token * kDim + d] - expected[d]) <= precision)) return false;
    }
    return true;
}

SelfTest self_test("encoder", [] {
    for (const Case& c : {Case{1, 1000, false}, Case{19, 1000, true}, Case{530, 1000, false}, Case{530, 20, true},
                          Case{40, 0, false}}) {
        if (!agrees<float>(c, 1e-5) || !agrees<bf16>(c, 3e-2)) return false;
    }
    return true;
});

}  // namespace
}  // namespace octavo::encoder
