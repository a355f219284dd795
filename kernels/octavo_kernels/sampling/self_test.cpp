// Drawn tokens against a sorted vocabulary.
#include <algorithm>

#include "sampling/cpu.h"

namespace octavo {
namespace {

// Whether a token that was drawn belongs to what top-k, top-p and min-p leave, by plain loops; a probability that lies
// on an edge to within rounding counts on both sides.
bool may_draw(const std::vector<float>& logits, const SamplingRow& row, int64_t token) {
    std::vector<double> p;
    const double top = *std::max_element(logits.begin(), logits.end());
    for (const float x : logits) p.push_back(std::exp((x - top) / row.temperature));
    const double own = p.at(size_t(token));
    if (own < row.min_p * (1 - 1e-4)) return false;
    double kept = 0, above = 0;
    int64_t likelier = 0;
    std::vector<double> sorted = p;
    std::sort(sorted.rbegin(), sorted.rend());
    const size_t count = row.top_k ? std::min<size_t>(size_t(row.top_k), p.size()) : p.size();
    for (size_t i = 0; i < count; ++i)
        if (sorted[i] >= row.min_p) kept += sorted[i];
    for (const double other : p)
        if (other > own * (1 + 1e-4)) above += other, ++likelier;
    return likelier < int64_t(count) && above < row.top_p * kept * (1 + 1e-4);
}

SelfTest self_test("sampling", [] {
    std::vector<float> logits(1003);
    uint32_t state = 1;
    for (float& x : logits) x = float((state = state * 1664525u + 1013904223u) >> 16) / 5000;
    const int64_t best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    const int64_t vocab = int64_t(logits.size());
    SamplingScratch scratch;
    if (sample_row(logits.data(), vocab, {0, 0, 1, 0, 0, 0}, scratch) != best) return false;
    for (int64_t position = 0; position < 8; ++position)
        for (SamplingRow row : {SamplingRow{1, 0, 1, 0, 7, 0}, {0.7f, 5, 1, 0, 7, 0}, {2, 0, 0.8f, 0, 7, 0},
                                {1.5f, 40, 0.9f, 0.1f, 7, 0}}) {
            row.position = position;
            const int64_t token = sample_row(logits.data(), vocab, row, scratch);
            if (token < 0 || token >= vocab || !may_draw(logits, row, token)) return false;
        }
    std::vector<uint32_t> mask(31);  // of 992 tokens
    for (uint32_t& word : mask) word = (state = state * 1664525u + 1013904223u) % 3 ? 0 : state;
    std::vector<float> barred = logits;
    for (int64_t i = 0; i < vocab; ++i)
        if (i >= 992 || !(mask[size_t(i / 32)] >> i % 32 & 1)) barred[size_t(i)] = -std::numeric_limits<float>::infinity();
    for (const float temperature : {0.f, 0.7f})
        for (int64_t position = 0; position < 8; ++position) {
            SamplingRow row{temperature, 40, 0.9f, 0, 7, position};
            const int64_t want = sample_row(barred.data(), vocab, row, scratch);
            row.mask = mask.data(), row.words = 31;
            if (want < 0 || sample_row(logits.data(), vocab, row, scratch) != want) return false;
        }
    logits[17] = std::numeric_limits<float>::quiet_NaN();
    return sample_row(logits.data(), vocab, {1, 0, 1, 0, 7, 0}, scratch) == -1;
});

}  // namespace
}  // namespace octavo
