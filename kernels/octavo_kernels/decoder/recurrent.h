// What layers have in place of attention: a state of one size, which each of a sequence's tokens finds and leaves.
//
// Everything here goes token by token and channel by channel, in an order that depends on neither: a token has the same
// bits alone or in a batch, in a chunk of any size, and after a state that was kept.
#pragma once

#include <algorithm>
#include <vector>

#include "paged_attention/cpu.h"

namespace octavo {

struct Rule;

// Words of a record of Python's (decoder/__init__.py).
struct Recurrent {
    int64_t taps, channels;
    const float* weight;  // [taps][channels], the oldest first
    const float* bias;    // [channels], or null
    float* states;        // of the layer, in the first state
    int64_t stride;       // floats from a state to the next
    const Rule* rule;     // what follows the convolution, or null: a gate
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
    // Where a sequence's tokens from `begin` on end that leave nothing before the last of them, at most `most`.
    int64_t stop(int64_t sequence, int64_t begin, int64_t most) const {
        int64_t end = std::min(begin + most, start(sequence + 1));
        for (int64_t k = first_saved[sequence]; k < first_saved[sequence + 1]; ++k)
            if (rows.saved[k] >= begin) end = std::min(end, int64_t(rows.saved[k]) + 1);
        return end;
    }
};

// A convolution over each channel's last tokens. Its state is their inputs, the newest last. In(token, i) has the lanes
// of a token's inputs from channel i on.
template <class In>
class Taps {
    const Recurrent& r;
    const StepStates& step;
    const In in;

    // At a token, or at one before the sequence's first in this step.
    Vec input(int64_t token, int64_t start, const float* state, int64_t i, int64_t left) const {
        if (token >= start) return in(token, i, left);
        return state ? load_part(state + (r.taps - 1 + token - start) * r.channels + i, left) : Vec{};
    }

public:
    Taps(const Recurrent& r_, const StepStates& step_, In in_) : r(r_), step(step_), in(in_) {}

    // The first `left` channels from i on, after a token.
    Vec operator()(int64_t token, int64_t sequence, int64_t i, int64_t left) const {
        const int64_t start = step.start(sequence);
        const float* state = step.source(r, sequence);
        Vec sum{};
        for (int64_t tap = 0; tap < r.taps; ++tap) {
            const Vec x = input(token - r.taps + 1 + tap, start, state, i, left);
            sum = sum + x * load_part(r.weight + tap * r.channels + i, left);
        }
        return r.bias ? sum + load_part(r.bias + i, left) : sum;
    }

    // Once all tokens of a sequence are through. Rows of a state that is written over itself move to lower places.
    void save(int64_t sequence, Range channels) const {
        const int64_t start = step.start(sequence), end = channels.end;
        const float* state = step.source(r, sequence);
        step.saves(r, sequence, [&](int64_t token, float* to) {
            for (int64_t row = 0; row < r.taps - 1; ++row)
                for (int64_t i = channels.begin; i < end; i += kLanes)
                    store_part(to + row * r.channels + i, input(token - r.taps + 2 + row, start, state, i, end - i), end - i);
        });
    }
};

// Short convolutions: tokens have rows of [b | c | x], of which out = c (bias + sum of weight * (b x) over the last
// tokens).
class ShortConv {
    struct Product {
        const float* rows;
        int64_t channels;

        Vec operator()(int64_t token, int64_t i, int64_t left) const {
            const float* row = rows + token * 3 * channels + i;
            return load_part(row, left) * load_part(row + 2 * channels, left);
        }
    };
    const Recurrent& r;
    const StepStates& step;
    const float* rows;
    const Taps<Product> taps;

public:
    ShortConv(const Recurrent& r_, const StepStates& step_, const float* rows_)
        : r(r_), step(step_), rows(rows_), taps(r, step, {rows_, r.channels}) {}

    void token(int64_t t, float* out) const {
        const float* gate = rows + t * 3 * r.channels + r.channels;
        for (int64_t i = 0; i < r.channels; i += kLanes) {
            const int64_t left = r.channels - i;
            store_part(out + i, taps(t, step.sequence(t), i, left) * load_part(gate + i, left), left);
        }
    }

    void save(int64_t sequence) const { taps.save(sequence, {0, r.channels}); }
};

}  // namespace
}  // namespace octavo
