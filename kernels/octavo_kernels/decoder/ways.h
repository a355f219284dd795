// Three strategies for taking a step's tokens through the matrices: SharedRows, RedundantRows, RunPerThread (cpu.cpp).
#pragma once

#include <algorithm>

#include "decoder/adapters.h"
#include "decoder/latent.h"
#include "decoder/mixture.h"
#include "decoder/tokens.h"
#include "linear/input.h"

namespace octavo {
namespace {

// RunPerThread: most tokens of a run, and the fewest per thread for which it pays: each thread reads all weights.
// Runs are longer with AMX, which unpacks the weights for each run.
constexpr int64_t kRunTokens = OCTAVO_ISA >= 3 ? 256 : 48, kLeastTokens = 16;
constexpr int64_t kRunBlocks = 24;  // blocks of outputs at a time: 48 rows of gate and up take 144 KiB of the L2 cache

// RedundantRows: up to this many tokens, norms and conversions (1 us each) cost less than another phase.
constexpr int64_t kFewTokens = 3;

// Replaces values by their sum over all ranks of the model.
using SumOverRanks = void (*)(float* values, int64_t count);

// Memory for the activations between the matrices, for some tokens.
struct Workspace {
    Input qkv_input, out_input, mlp_input, down_input;
    Input shared_input, mixed_input;  // of a shared expert's last matrix, and of recurrent layers'
    StepAdapters adapters;
    StepExperts experts;
    StepLatents latents;
    float *attended, *fed, *normed, *residual;  // [tokens][hidden]; the first two: outputs of attention and MLP
    float* gate_up;                             // [tokens][2 x the gate's width]
    float* low;                                 // [tokens][adapters' stride]: A x of the products that come next

    void reserve(const Widths& widths, int64_t tokens, int64_t gate_width) {
        attended = attended_.floats(tokens * widths.hidden);
        fed = fed_.floats(tokens * widths.hidden);
        gate_up = gate_up_.floats(tokens * 2 * gate_width);
        normed = normed_.floats(tokens * widths.hidden);
        residual = residual_.floats(tokens * widths.hidden);
        qkv_input.reserve(tokens, widths.hidden);
        out_input.reserve(tokens, widths.heads);
        mlp_input.reserve(tokens, widths.hidden);
        down_input.reserve(tokens, widths.inner);
        shared_input.reserve(tokens, widths.shared);
        mixed_input.reserve(tokens, widths.mixed);
    }
    void reserve_low(int64_t tokens, int64_t stride) { low = low_.floats(tokens * stride); }
    // The inputs as they are, too, from the next reserve() on.
    void want_floats() {
        for (Input* x : {&qkv_input, &out_input, &mlp_input, &down_input, &shared_input}) x->add(ActivationKind::f32);
    }

private:
    Buffer attended_, fed_, gate_up_, normed_, residual_, low_;
};

struct Product {
    const Matrix* matrix;
    int64_t column;  // of its first output, in a row of all outputs
};

// Cuts matrices into units of a few blocks of outputs, so that the others do not wait for a slow thread.
class Units {
    const std::initializer_list<int64_t> outputs;
    const int64_t most, multiple;

    int64_t units(int64_t n) const { return n ? std::clamp(blocks_of(n) / multiple, int64_t(1), most) : 0; }

public:
    Units(std::initializer_list<int64_t> outputs_, int64_t most_, int64_t rows)
        : outputs(outputs_), most(most_), multiple(blocks_together(rows)) {}

    int64_t count() const {
        int64_t total = 0;
        for (const int64_t n : outputs) total += units(n);
        return total;
    }
    // Calls f(matrix, blocks) for one unit.
    template <class F>
    void run(int64_t unit, const F& f) const {
        for (size_t i = 0; i < outputs.size(); ++i) {
            const int64_t n = outputs.begin()[i];
            if (unit < units(n)) return f(i, split(blocks_of(n), int(unit), int(units(n)), multiple));
            unit -= units(n);
        }
    }
};

// The interface of the strategies: multiply(outputs, prepare, f) calls prepare(i) for each token, which writes to
// `own`, then f(matrix, blocks) for all blocks of matrices with these numbers of outputs, which writes to `shared`. In
// between it calls project(i) for i < `projections`, which writes to `shared` too; f calls projected() before it reads
// that, so that whoever is done with that goes on, and by then nobody waits.

// One phase prepares the rows of all tokens, divided among the threads; the next multiplies.
struct SharedRows {
    static constexpr bool few = false;
    Phases& phases;
    int& cursor;
    int64_t cuts;  // number of units of a phase whose work can be cut anywhere
    Tokens tokens;
    SumOverRanks sum_over_ranks;
    Workspace& shared;
    Workspace& own;  // the same as `shared`
    int64_t gate_width;
    mutable Phase* projecting = nullptr;  // the phase of project(), until somebody has waited for it
    mutable uint32_t projections = 0;

    // Calls f(i) for i < count, cut into units.
    template <class F>
    void each(int64_t count, const F& f) const {
        const int64_t units = std::min(count, cuts);
        phases.run(cursor, units, [&](int64_t unit) {
            const Range part = split(count, int(unit), int(units));
            for (int64_t i = part.begin; i < part.end; ++i) f(i);
        });
    }
    template <class P, class F>
    void multiply(std::initializer_list<int64_t> outputs, const P& prepare, const F& f) const {
        each(tokens.count, prepare);
        multiply(outputs, f);
    }
    template <class P, class L, class F>
    void multiply(std::initializer_list<int64_t> outputs, const P& prepare, int64_t count, const L& project,
                  const F& f) const {
        each(tokens.count, prepare);
        multiply(outputs, count, project, f);
    }
    template <class L, class F>
    void multiply(std::initializer_list<int64_t> outputs, int64_t count, const L& project, const F& f) const {
        start(count, project);
        multiply(outputs, f);
        projected();
    }
    void projected() const {
        if (projecting) projecting->wait(projections);
        projecting = nullptr;
    }
    template <class F>
    void multiply(std::initializer_list<int64_t> outputs, const F& f) const {
        const Units units(outputs, cuts, tokens.count);
        phases.run(cursor, units.count(), [&](int64_t unit) { units.run(unit, f); });
    }
    // Calls f(unit, units) for as many units as threads can share.
    template <class F>
    void share(const F& f) const {
        phases.run(cursor, cuts, [&](int64_t unit) { f(unit, cuts); });
    }
    template <class F>
    void once(const F& f) const {
        phases.run(cursor, 1, [&](int64_t) { f(); });
    }
    // Adds up this rank's `values` with those of the others.
    void sum(float* values, int64_t count) const {
        if (sum_over_ranks) phases.run(cursor, 1, [&](int64_t) { sum_over_ranks(values, count); });
    }
    float* gate(int64_t column) const { return shared.gate_up + column; }

protected:
    template <class L> void start(int64_t count, const L& project) const {
        projections = uint32_t(count);
        projecting = &phases.start(cursor, count, project);
    }
};

// The same for very few tokens: each thread that computes a part of a product prepares all input rows itself.
struct RedundantRows : SharedRows {
    static constexpr bool few = true;
    using SharedRows::multiply;

    template <class P, class F>
    void multiply(std::initializer_list<int64_t> outputs, const P& prepare, const F& f) const {
        bool prepared = false;
        multiply(outputs, [&](size_t i, Range blocks) { prepare_all(prepared, prepare), f(i, blocks); });
    }
    template <class P, class L, class F>
    void multiply(std::initializer_list<int64_t> outputs, const P& prepare, int64_t count, const L& project,
                  const F& f) const {
        bool prepared = false;
        multiply(outputs, count, [&](int64_t i) { prepare_all(prepared, prepare), project(i); },
                 [&](size_t i, Range blocks) { prepare_all(prepared, prepare), f(i, blocks); });
    }

private:
    // Each thread before its first unit.
    template <class P> void prepare_all(bool& prepared, const P& prepare) const {
        for (int64_t i = 0; !prepared && i < tokens.count; ++i) prepare(i);
        prepared = true;
    }
};

// A run of tokens, which one thread takes through all matrices.
struct RunPerThread {
    static constexpr bool few = false;
    Tokens tokens;
    Workspace& shared;
    Workspace& own;  // the same as `shared`
    int64_t gate_width;

    template <class F>
    void each(int64_t count, const F& f) const {
        for (int64_t i = 0; i < count; ++i) f(i);
    }
    template <class P, class F>
    void multiply(std::initializer_list<int64_t> outputs, const P& prepare, const F& f) const {
        each(tokens.count, prepare);
        multiply(outputs, f);
    }
    template <class P, class L, class F>
    void multiply(std::initializer_list<int64_t> outputs, const P& prepare, int64_t count, const L& project,
                  const F& f) const {
        each(tokens.count, prepare);
        multiply(outputs, count, project, f);
    }
    template <class L, class F>
    void multiply(std::initializer_list<int64_t> outputs, int64_t count, const L& project, const F& f) const {
        each(count, project);
        multiply(outputs, f);
    }
    void projected() const {}
    template <class F>
    void multiply(std::initializer_list<int64_t> outputs, const F& f) const {
        for (size_t i = 0; i < outputs.size(); ++i) {
            const int64_t blocks = blocks_of(outputs.begin()[i]);
            for (int64_t block = 0; block < blocks; block += kRunBlocks)
                f(i, Range{block, std::min(block + kRunBlocks, blocks)});
        }
    }
    template <class F>
    void share(const F& f) const {
        f(0, 1);
    }
    template <class F>
    void once(const F& f) const {
        f();
    }
    void sum(float*, int64_t) const {}
    float* gate(int64_t) const { return shared.gate_up; }
};

}  // namespace
}  // namespace octavo
