// Gated delta nets: a convolution, then for each value head a matrix that decays and is written to with every token.
//
// With a head's matrix S [key_dim][value_dim], a query, a key of length 1 and a value, a token does
//     S = e^-decay S;  S = S + k (beta (v - S^T k))^T;  out = S^T q
// S^T k and S^T q of the S before are found in one pass over it, in which what the token before wrote is added: so a pass
// for each token, and one behind the last. A column of S has to do with no other column: some columns stay in the
// first-level cache for all tokens of a run.
//
// State spaces (Mamba-2) are the same with S = S + k (beta v)^T and out = S^T q + skip v: k and q are their B and C as
// they are, v is x and beta the time step, which the decay has too. Their norm goes over all heads that share a key.
#pragma once

#include <cmath>

#include "activation/cpu.h"
#include "decoder/mixture.h"
#include "decoder/recurrent.h"
#include "linear/input.h"
#include "rms_norm/cpu.h"

namespace octavo {

// Words of a record of Python's.
struct Rule {
    int64_t key_heads, value_heads, key_dim, value_dim;
    int64_t tiled, erases;      // value head h has key head h % key_heads, and not h / (value_heads / key_heads); a delta net
    const float *decay, *step;  // [value_heads], the first below 0
    const float *scale, *skip;  // [value_dim] or, of all heads, [values]: of the norm that follows; [value_heads]
};

namespace {

// Tokens have rows of [q | k | v | z | b | a], whose first three go through the convolution.
class DeltaNet {
    static constexpr int kParts = OCTAVO_ISA >= 2 ? 4 : 2;  // what of a row of S is in registers
    static constexpr int64_t kColumns = kParts * kLanes, kRun = 32;  // tokens that share the columns' way to the cache

    struct Plain {
        const float* rows;
        int64_t stride;

        Vec operator()(int64_t token, int64_t i, int64_t left) const { return load_part(rows + token * stride + i, left); }
    };
    const Recurrent& r;
    const Rule& rule;
    const StepStates& step;
    const float* rows;
    const int64_t group, keys, values, stride;
    const int64_t query_at, key_at, value_at;  // among the convolution's channels
    const float eps;
    const Taps<Plain> taps;

    // A run's tokens of one key head, and of one of its value heads at a time.
    struct Run {
        int64_t begin, end;
        float *query, *key, *value;           // [kRun][key_dim or value_dim]
        float *product, *keep, *beta;         // [kRun] k q, e^-decay and how much is written
    };

    int64_t value_head(int64_t head, int64_t i) const { return rule.tiled ? head + i * rule.key_heads : head * group + i; }

    // Some channels of a token, convolved.
    void mix(int64_t token, int64_t sequence, int64_t channel, int64_t count, float* out) const {
        for (int64_t i = 0; i < count; i += kLanes)
            store_part(out + i, silu(taps(token, sequence, channel + i, count - i)), count - i);
    }

    static float dot(const float* x, const float* y, int64_t count) {
        Vec total{};
        for (int64_t i = 0; i < count; i += kLanes)
            total = fma(load_part(x + i, count - i), load_part(y + i, count - i), total);
        return sum(total);
    }

    void scale_to(float length, float* x) const {
        scale_row(length / std::sqrt(dot(x, x, rule.key_dim) + 1e-6f), rule.key_dim, x);
    }

    void make_keys(int64_t sequence, int64_t head, const Run& run) const {
        const int64_t dim = rule.key_dim;
        for (int64_t t = run.begin; t < run.end; ++t) {
            float *q = run.query + (t - run.begin) * dim, *k = run.key + (t - run.begin) * dim;
            mix(t, sequence, query_at + head * dim, dim, q), mix(t, sequence, key_at + head * dim, dim, k);
            if (rule.erases) scale_to(1 / std::sqrt(float(dim)), q), scale_to(1.f, k);
            run.product[t - run.begin] = dot(q, k, dim);
        }
    }

    void make_values(int64_t sequence, int64_t head, const Run& run) const {
        for (int64_t t = run.begin; t < run.end; ++t) {
            const int64_t i = t - run.begin;
            const float *b = rows + t * stride + r.channels + values + head, *a = b + rule.value_heads;
            mix(t, sequence, value_at + head * rule.value_dim, rule.value_dim, run.value + i * rule.value_dim);
            const float x = (rule.erases ? *a : *b) + rule.step[head], time = x > 20 ? x : std::log1p(std::exp(x));
            run.keep[i] = std::exp(rule.decay[head] * time);
            run.beta[i] = rule.erases ? 1 / (1 + std::exp(-*b)) : time;
        }
    }

    // One pass over some columns of S: adds what the token before wrote, `change` times its key, to what was kept of S;
    // finds S^T k and S^T q.
    template <bool kAdd, bool kRead>
    void pass(float* s, float keep, const float* old_key, const Vec* change, const float* key, const float* query,
              Vec* of_key, Vec* of_query) const {
        Vec added[kParts], found_k[kParts] = {}, found_q[kParts] = {};
        for (int p = 0; kAdd && p < kParts; ++p) added[p] = change[p];
        for (int64_t i = 0; i < rule.key_dim; ++i, s += kColumns)
            for (int p = 0; p < kParts; ++p) {
                Vec x = load(s + p * kLanes);
                if constexpr (kAdd) {
                    x = fma(splat(old_key[i]), added[p], splat(keep) * x);
                    store(s + p * kLanes, x);
                }
                if constexpr (kRead) {
                    found_k[p] = fma(splat(key[i]), x, found_k[p]);
                    found_q[p] = fma(splat(query[i]), x, found_q[p]);
                }
            }
        for (int p = 0; kRead && p < kParts; ++p) of_key[p] = found_k[p], of_query[p] = found_q[p];
    }

    // A run's tokens over some columns of S, the first of which is `column` of the head's; values become what is read.
    void walk(float* s, const Run& run, int64_t head, int64_t column) const {
        const int64_t dim = rule.key_dim, left = rule.value_dim - column;
        Vec change[kParts], of_key[kParts], of_query[kParts];
        for (int64_t i = 0; i < run.end - run.begin; ++i) {
            const float *key = run.key + i * dim, *query = run.query + i * dim;
            if (i == 0) pass<false, true>(s, 0, nullptr, nullptr, key, query, of_key, of_query);
            else pass<true, true>(s, run.keep[i - 1], key - dim, change, key, query, of_key, of_query);
            float* value = run.value + i * rule.value_dim + column;
            for (int64_t p = 0; p < kParts && p * kLanes < left; ++p) {
                const Vec keep = splat(run.keep[i]), v = load_part(value + p * kLanes, left - p * kLanes);
                change[p] = splat(run.beta[i]) * (rule.erases ? v - keep * of_key[p] : v);
                Vec out = fma(splat(run.product[i]), change[p], keep * of_query[p]);
                if (rule.skip) out = fma(splat(rule.skip[head]), v, out);
                store_part(value + p * kLanes, out, left - p * kLanes);
            }
        }
        const int64_t last = run.end - run.begin - 1;
        pass<true, false>(s, run.keep[last], run.key + last * dim, change, nullptr, nullptr, nullptr, nullptr);
    }

    // Some columns of a head's S in a state: behind the convolution's.
    float* columns(float* state, int64_t head, int64_t column) const {
        return state + (r.taps - 1) * r.channels + head * rule.key_dim * rule.value_dim + column;
    }
    void read(const float* state, int64_t head, int64_t column, float* s) const {
        const int64_t count = std::min(kColumns, rule.value_dim - column);
        const float* from = state ? columns(const_cast<float*>(state), head, column) : nullptr;
        for (int64_t i = 0; i < rule.key_dim; ++i, s += kColumns) {
            std::fill_n(s, kColumns, 0.f);
            if (from) std::copy_n(from + i * rule.value_dim, count, s);
        }
    }
    void write(const float* s, int64_t head, int64_t column, float* state) const {
        const int64_t count = std::min(kColumns, rule.value_dim - column);
        float* to = columns(state, head, column);
        for (int64_t i = 0; i < rule.key_dim; ++i, s += kColumns) std::copy_n(s, count, to + i * rule.value_dim);
    }

    // The norm of what a run's tokens have read, and its gate.
    void finish(int64_t head, const Run& run, float* out) const {
        const int64_t dim = rule.value_dim;
        for (int64_t t = run.begin; t < run.end; ++t) {
            float *value = run.value + (t - run.begin) * dim, *to = out + t * values + head * dim;
            if (rule.erases) rms_norm_row(value, rule.scale, eps, dim, value);
            gate_row(Gate::silu, rows + t * stride + r.channels + head * dim, value, dim, to);
        }
    }

    // A state space's norm, once all of a key head's values are there.
    void norm(int64_t head, const Run& run, float* out) const {
        const int64_t width = group * rule.value_dim, first = head * width;
        for (int64_t t = run.begin; t < run.end; ++t) {
            float* row = out + t * values + first;
            rms_norm_row(row, rule.scale + first, eps, width, row);
        }
    }

public:
    DeltaNet(const Recurrent& r_, const StepStates& step_, const float* rows_, float eps_)
        : r(r_), rule(*r.rule), step(step_), rows(rows_), group(rule.value_heads / rule.key_heads),
          keys(rule.key_heads * rule.key_dim), values(rule.value_heads * rule.value_dim),
          stride(r.channels + values + (rule.erases ? 2 : 1) * rule.value_heads),
          query_at(rule.erases ? 0 : values + keys), key_at(rule.erases ? keys : values),
          value_at(rule.erases ? 2 * keys : 0), eps(eps_),
          taps(r, step, {rows_, stride}) {}

    // All of a sequence's tokens in one key head, and the value heads that it serves: out [tokens][values].
    void head(int64_t sequence, int64_t head, float* out) const {
        thread_local Buffer room;
        const int64_t start = step.start(sequence), end = step.start(sequence + 1), dim = rule.key_dim;
        const int64_t cuts = (rule.value_dim + kColumns - 1) / kColumns, size = dim * kColumns;
        float* s = room.floats(group * cuts * size + kRun * (2 * dim + rule.value_dim + 3));
        float* more = s + group * cuts * size;
        float *values_of = more + 2 * kRun * dim, *numbers = values_of + kRun * rule.value_dim;
        Run run{start, start, more, more + kRun * dim, values_of, numbers, numbers + kRun, numbers + 2 * kRun};
        for (; run.begin < end; run.begin = run.end) {
            run.end = step.stop(sequence, run.begin, kRun);
            make_keys(sequence, head, run);
            for (int64_t i = 0; i < group; ++i) {
                const int64_t h = value_head(head, i);
                make_values(sequence, h, run);
                for (int64_t cut = 0; cut < cuts; ++cut) {
                    float* mine = s + (i * cuts + cut) * size;
                    if (run.begin == start) read(step.source(r, sequence), h, cut * kColumns, mine);
                    walk(mine, run, h, cut * kColumns);
                    step.saves(r, sequence, [&](int64_t token, float* to) {
                        if (token == run.end - 1) write(mine, h, cut * kColumns, to);
                    });
                }
                finish(h, run, out);
            }
            if (!rule.erases) norm(head, run, out);
        }
        for (const int64_t at : {query_at, key_at}) taps.save(sequence, {at + head * dim, at + (head + 1) * dim});
        for (int64_t i = 0; i < group; ++i) {
            const int64_t first = value_at + value_head(head, i) * rule.value_dim;
            taps.save(sequence, {first, first + rule.value_dim});
        }
    }
};

}  // namespace
}  // namespace octavo
