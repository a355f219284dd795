// What layers have in place of attention: a state of one size, which each of a sequence's tokens finds and leaves.
//
// Everything here goes token by token and channel by channel, in an order that depends on neither: a token has the same
// bits alone or in a batch, in a chunk of any size, and after a state that was kept.
#pragma once

#include <vector>

#include "paged_attention/cpu.h"

namespace octavo {

// Words of a record of Python's (decoder/__init__.py).
struct Recurrent {
    int64_t taps, channels;
    const float* weight;  // [taps][channels], the oldest first
    const float* bias;    // [channels], or null
    float* states;        // of the layer, in the first state
    int64_t stride;       // floats from a state to the next
};

// Which states a step reads and writes, as in octavo.step; without any all begin, and nothing is kept.
struct StateRows {
    const int32_t* source;  // of each sequence; below 0: none
    int64_t count;
    const int32_t *saved, *targets;
};

namespace {

// The same, by sequence.
class StepStates {
    StateRows rows = {};
    const int32_t* query_start = nullptr;
    std::vector<int32_t> of_token;     // sequence
    std::vector<int64_t> first_saved;  // per sequence, and where the last one's end

public:
    void build(const Sequences& sequences, const StateRows& rows_) {
        rows = rows_, query_start = sequences.query_start;
        of_token.clear(), first_saved.clear();
        int64_t save = 0;
        for (int64_t s = 0; s < sequences.count; ++s) {
            of_token.resize(query_start[s + 1], int32_t(s));
            first_saved.push_back(save);
            while (save < rows.count && rows.saved[save] < query_start[s + 1]) ++save;
        }
        first_saved.push_back(save);
    }

    int64_t sequence(int64_t token) const { return of_token[token]; }
    int64_t start(int64_t sequence) const { return query_start[sequence]; }
    const float* source(const Recurrent& r, int64_t sequence) const {
        return rows.source && rows.source[sequence] >= 0 ? r.states + rows.source[sequence] * r.stride : nullptr;
    }

    // f(token, where what it leaves goes), rising: the last one's place may be the source.
    template <class F>
    void saves(const Recurrent& r, int64_t sequence, const F& f) const {
        for (int64_t k = first_saved[sequence]; k < first_saved[sequence + 1]; ++k)
            f(int64_t(rows.saved[k]), r.states + rows.targets[k] * r.stride);
    }
};

// Short convolutions: tokens have rows of [b | c | x], of which out = c (bias + sum of weight * (b x) over the last
// tokens). A state is b x of the last taps - 1 tokens, the newest last.
class ShortConv {
    const Recurrent& r;
    const StepStates& step;
    const float* rows;

    // Lanes of b x at a token, or at one before the sequence's first in this step.
    Vec input(int64_t token, int64_t start, const float* state, int64_t i) const {
        const int64_t left = r.channels - i, place = r.taps - 1 + token - start;
        const float* row = rows + token * 3 * r.channels + i;
        if (token >= start) return load_part(row, left) * load_part(row + 2 * r.channels, left);
        return state ? load_part(state + place * r.channels + i, left) : Vec{};
    }

public:
    ShortConv(const Recurrent& r_, const StepStates& step_, const float* rows_) : r(r_), step(step_), rows(rows_) {}

    void token(int64_t t, float* out) const {
        const int64_t sequence = step.sequence(t), start = step.start(sequence);
        const float *state = step.source(r, sequence), *gate = rows + t * 3 * r.channels + r.channels;
        for (int64_t i = 0; i < r.channels; i += kLanes) {
            const int64_t left = r.channels - i;
            Vec sum{};
            for (int64_t tap = 0; tap < r.taps; ++tap) {
                const Vec x = input(t - r.taps + 1 + tap, start, state, i);
                sum = sum + x * load_part(r.weight + tap * r.channels + i, left);
            }
            if (r.bias) sum = sum + load_part(r.bias + i, left);
            store_part(out + i, sum * load_part(gate + i, left), left);
        }
    }

    // Once all tokens of a sequence are through. Rows of a state that is written over itself move to lower places.
    void save(int64_t sequence) const {
        const int64_t start = step.start(sequence);
        const float* state = step.source(r, sequence);
        step.saves(r, sequence, [&](int64_t token, float* to) {
            for (int64_t row = 0; row < r.taps - 1; ++row)
                for (int64_t i = 0; i < r.channels; i += kLanes)
                    store_part(to + row * r.channels + i, input(token - r.taps + 2 + row, start, state, i), r.channels - i);
        });
    }
};

}  // namespace
}  // namespace octavo
