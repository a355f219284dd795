// Who computes which texts of a step.
//
// Texts do not see each other, so a thread takes a run of whole texts through all layers: their activations stay in its
// core's cache, and no thread waits for another. Runs are cut by tokens, longest texts first, and threads take them one by
// one. Where that would leave threads without work (one text, two of unequal length), all share every layer of all texts.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "native/common.h"

namespace octavo::encoder {

constexpr int64_t kRunLimit = 192;   // tokens of a run of several texts
constexpr double kUneven = 1.15;     // the busiest thread's work over the average, from which on layers are shared

struct Plan {
    std::vector<int64_t> order;  // texts, longest first
    std::vector<Range> runs;     // of `order`; none where layers are shared

    // starts: [texts + 1] first token of each; knee: tokens of a text whose attention costs as much as its matrices.
    void build(const int32_t* starts, int64_t texts, int threads, int64_t knee) {
        const auto length = [&](int64_t text) { return int64_t(starts[text + 1]) - starts[text]; };
        order.resize(texts);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
        const int64_t tokens = starts[texts] - starts[0], rounds = (tokens - 1) / (threads * kRunLimit) + 1;
        const int64_t limit = (tokens - 1) / (threads * rounds) + 1;
        runs.clear();
        std::vector<double> costs;
        for (int64_t i = 0, room = 0; i < texts; ++i) {
            const int64_t count = length(order[i]);
            if (count > room) runs.push_back({i, i}), costs.push_back(0), room = limit;
            room -= count, runs.back().end = i + 1;
            costs.back() += double(count) * double(count + knee);
        }
        if (threads > 1 && is_uneven(costs, threads)) runs.clear();
    }

private:
    // Whether one thread would work much longer than the average, if each took the next run as soon as it could.
    static bool is_uneven(const std::vector<double>& costs, int threads) {
        std::vector<double> busy(threads);
        for (const double cost : costs) *std::min_element(busy.begin(), busy.end()) += cost;
        const double total = std::accumulate(busy.begin(), busy.end(), 0.0);
        return *std::max_element(busy.begin(), busy.end()) * threads > kUneven * total;
    }
};

}  // namespace octavo::encoder
