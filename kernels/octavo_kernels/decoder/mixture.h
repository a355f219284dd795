// Mixtures of experts: which experts each token goes through, and the rows of a step sorted by expert.
//
// A router picks a few experts for each token. The rows of one expert are packed side by side, so that its matrices are
// read once for all of them. A token's experts are added up in the order of their numbers, whichever way they were
// found, so that its bits do not depend on the tokens beside it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "decoder/tokens.h"
#include "linear/input.h"

namespace octavo {

enum class Scoring : int64_t { softmax, sigmoid };

struct Expert {
    Matrix gate, up, down;
};

// Words of a record of Python's.
struct Mixture {
    int64_t count, chosen;      // experts, and experts per token
    int64_t scoring, normalise;
    int64_t groups, kept_groups;     // experts come in groups, of which the best are kept first; 0: they do not
    const float* numbers;       // what multiplies the shares, and what bounds the activations (gpt-oss) or 0
    const float* choice_bias;   // [count] added to the scores for the choice alone, or null
    Matrix router;
    Matrix shared_gate;         // one output, whose sigmoid is the share of the layer's own MLP; no data: it is 1
    Expert experts[1];          // [count]
};

namespace {

// One expert's rows among all rows of a step, sorted by expert.
struct Group {
    int64_t expert;
    Range rows;
};

// Where the tokens of a step go.
class Plan {
    std::vector<int64_t> places;  // [count + 1] where each expert's rows begin
    std::vector<int32_t> chosen;  // [tokens][chosen]
    std::vector<float> weights;

public:
    std::vector<Group> groups;   // in the order of the experts
    std::vector<int64_t> token;  // of each row
    std::vector<int32_t> group;
    std::vector<float> share;

private:
    // The best of the groups, by the sum of the two best scores in each.
    void keep_groups(const Mixture& m, const float* choice, std::vector<bool>& kept) const {
        const int64_t size = m.count / m.groups;
        std::vector<std::pair<float, int64_t>> best;
        for (int64_t g = 0; g < m.groups; ++g) {
            float first = -INFINITY, second = -INFINITY;
            for (int64_t e = g * size; e < (g + 1) * size; ++e) {
                if (choice[e] > first) second = first, first = choice[e];
                else if (choice[e] > second) second = choice[e];
            }
            best.push_back({-(size > 1 && m.choice_bias ? first + second : first), g});
        }
        std::stable_sort(best.begin(), best.end(), [](auto a, auto b) { return a.first < b.first; });
        kept.assign(m.count, false);
        for (int64_t i = 0; i < m.kept_groups; ++i)
            std::fill_n(kept.begin() + best[i].second * size, size, true);
    }

    static void to_probabilities(Scoring scoring, const float* scores, int64_t count, float* out) {
        if (scoring == Scoring::sigmoid) {
            for (int64_t e = 0; e < count; ++e) out[e] = 1.f / (1.f + std::exp(-scores[e]));
            return;
        }
        float top = scores[0], sum = 0;
        for (int64_t e = 1; e < count; ++e) top = std::max(top, scores[e]);
        for (int64_t e = 0; e < count; ++e) sum += out[e] = std::exp(scores[e] - top);
        for (int64_t e = 0; e < count; ++e) out[e] /= sum;
    }

public:
    void reserve(const Mixture& m, int64_t tokens) {
        const size_t rows = tokens * m.chosen;
        if (chosen.size() >= rows) return;
        for (auto* list : {&chosen, &group}) list->resize(rows);
        for (auto* list : {&weights, &share}) list->resize(rows);
        token.resize(rows);
    }

    // Chooses one token's experts by its scores; among equals the first. Tokens are independent of each other.
    void choose(const Mixture& m, const float* scores, int64_t at) {
        thread_local std::vector<float> probabilities, choice;
        thread_local std::vector<bool> kept;
        probabilities.resize(m.count);
        to_probabilities(Scoring(m.scoring), scores, m.count, probabilities.data());
        choice = probabilities;
        for (int64_t e = 0; m.choice_bias && e < m.count; ++e) choice[e] += m.choice_bias[e];
        if (m.groups > 1) keep_groups(m, choice.data(), kept);
        int32_t* mine = &chosen[at * m.chosen];
        int64_t found = 0;
        for (int64_t e = 0; e < m.count; ++e) {
            if (m.groups > 1 && !kept[e]) continue;
            int64_t place = found;
            while (place > 0 && choice[e] > choice[mine[place - 1]]) --place;
            if (place == m.chosen) continue;
            found = std::min(found + 1, m.chosen);
            for (int64_t i = found - 1; i > place; --i) mine[i] = mine[i - 1];
            mine[place] = int32_t(e);
        }
        float sum = 0;
        for (int64_t i = 0; i < m.chosen; ++i) sum += weights[at * m.chosen + i] = probabilities[mine[i]];
        const float factor = m.normalise ? m.numbers[0] / sum : m.numbers[0];
        for (int64_t i = 0; i < m.chosen; ++i) weights[at * m.chosen + i] *= factor;
    }

    // Sorts the rows of so many tokens by expert.
    void sort(const Mixture& m, int64_t tokens) {
        const int64_t rows = tokens * m.chosen;
        places.assign(m.count + 1, 0);
        for (int64_t i = 0; i < rows; ++i) ++places[chosen[i] + 1];
        groups.clear();
        for (int64_t e = 0; e < m.count; ++e) {
            const int64_t begin = places[e], end = places[e + 1] += begin;
            if (begin == end) continue;
            std::fill(&group[begin], group.data() + end, int32_t(groups.size()));
            groups.push_back({e, {begin, end}});
        }
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t row = places[chosen[i]]++;
            token[row] = i / m.chosen;
            share[row] = weights[i];
        }
    }

    // Of the blocks of all groups, `blocks` each, those that are unit `unit` of `units`: calls f(group, blocks). Pieces
    // take equally long: a block has to be read (as long as multiplying eight rows by it) and multiplied.
    template <class F>
    void slice(int64_t blocks, int64_t unit, int64_t units, int64_t multiple, const F& f) const {
        constexpr int64_t kRowsPerRead = 8;
        int64_t total = 0;
        for (const Group& g : groups) total += g.rows.end - g.rows.begin + kRowsPerRead;
        const int64_t begin = total * blocks * unit / units, end = total * blocks * (unit + 1) / units;
        int64_t passed = 0;
        for (const Group& g : groups) {
            const int64_t each = g.rows.end - g.rows.begin + kRowsPerRead;
            const auto edge = [&](int64_t at) {
                const int64_t pieces = std::max<int64_t>(0, at - passed) / (each * multiple);
                return std::min(pieces * multiple, blocks);
            };
            const bool to_end = end >= passed + each * blocks;
            const Range mine{edge(begin), to_end ? blocks : edge(end)};
            if (begin < passed + each * blocks && mine.begin < mine.end) f(g, mine);
            passed += each * blocks;
        }
    }
};

// The memory of a mixture's step.
struct StepExperts {
    Plan plan;
    Input inputs, between;  // [tokens x chosen] of the experts' first matrices, and of their last
    float* scores;          // [tokens][count + 1]: the router's, then the shared gate's

    void add(const Mixture& m, Precision precision) {
        for (int64_t e = 0; e < m.count; ++e) {
            inputs.add(m.experts[e].gate, precision);
            inputs.add(m.experts[e].up, precision);
            between.add(m.experts[e].down, precision);
        }
    }
    void reserve(const Mixture& m, int64_t tokens) {
        const Expert& one = m.experts[0];
        plan.reserve(m, tokens);
        inputs.reserve(tokens * m.chosen, one.up.k);
        between.reserve(tokens * m.chosen, one.down.k);
        scores = scores_.floats(tokens * (m.count + 1));
    }

    // Of a token's shared expert.
    float shared_share(const Mixture& m, int64_t token) const {
        return 1.f / (1.f + std::exp(-scores[token * (m.count + 1) + m.count]));
    }

private:
    Buffer scores_;
};

OCTAVO_INLINE void scale_row(float factor, int64_t count, float* x) {
    for (int64_t i = 0; i < count; i += kLanes)
        store_part(x + i, load_part(x + i, count - i) * splat(factor), count - i);
}

// to += factor x
OCTAVO_INLINE void add_scaled_row(const float* x, float factor, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += kLanes)
        store_part(to + i, fma(load_part(x + i, count - i), splat(factor), load_part(to + i, count - i)), count - i);
}

}  // namespace
}  // namespace octavo
