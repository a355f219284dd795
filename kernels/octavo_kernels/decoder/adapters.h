// The LoRA adapters of a step: which rows go through which, and what they add to a matrix's outputs.
//
// Rows of one adapter are computed together, so that its A and B are read once for all of them. Where no sequence of a
// step has an adapter, all of this is a comparison with an empty list.
#pragma once

#include <vector>

#include "decoder/tokens.h"
#include "linear/input.h"
#include "lora/cpu.h"

namespace octavo {

// The inputs that matrices share, and the matrices, in the order of Python's words (lora/packed.py).
enum Site { kQkvSite, kOutSite, kMlpSite, kDownSite, kSites };
enum Part { kQ, kK, kV, kOut, kGate, kUp, kDown, kParts };
constexpr Site kSiteOf[kParts] = {kQkvSite, kQkvSite, kQkvSite, kOutSite, kMlpSite, kMlpSite, kDownSite};

// Words of a record of Python's: one layer of an adapter. A's of one input are stacked.
struct AdapterLayer {
    LowA a[kSites];
    LowB b[kParts];
};

struct Adapter {
    int64_t widest;  // most rows of any `a`
    AdapterLayer layers[1];
};

namespace {

constexpr size_t kRowsTogether = 64;  // of one adapter: more are several pieces of work for the threads

// Some rows of one adapter.
struct AdapterRows {
    const Adapter* adapter;
    std::vector<int64_t> rows;

    template <ActivationKind KIND, int ROWS>
    void project(const LowA& a, int64_t block, const Activations& x, float* low, int64_t stride, size_t row) const {
        for (; row + ROWS <= rows.size(); row += ROWS) {
            float* to[ROWS];
            for (int r = 0; r < ROWS; ++r) to[r] = low + rows[row + r] * stride;
            packed::project<KIND, ROWS>(a, block, x, &rows[row], to);
        }
        if constexpr (ROWS > 1) project<KIND, ROWS / 2>(a, block, x, low, stride, row);
    }

    template <ActivationKind KIND, int ROWS>
    void expand(const LowB& b, const float* low, int64_t low_stride, float* out, int64_t stride, Range blocks,
                size_t row) const {
        for (; row + ROWS <= rows.size(); row += ROWS) {
            const float* x[ROWS];
            float* y[ROWS];
            for (int r = 0; r < ROWS; ++r) x[r] = low + rows[row + r] * low_stride, y[r] = out + rows[row + r] * stride;
            packed::expand<KIND, ROWS>(b, x, y, blocks);
        }
        if constexpr (ROWS > 1) expand<KIND, ROWS / 2>(b, low, low_stride, out, stride, blocks, row);
    }
};

// Calls f with a constant.
template <class F> void with_kind(int64_t kind, const F& f) {
    switch (ActivationKind(kind)) {
        case ActivationKind::int8: return f(std::integral_constant<ActivationKind, ActivationKind::int8>());
        case ActivationKind::bf16: return f(std::integral_constant<ActivationKind, ActivationKind::bf16>());
        default: return f(std::integral_constant<ActivationKind, ActivationKind::f32>());
    }
}

class StepAdapters {
    std::vector<AdapterRows> groups;  // memory stays for later steps
    size_t used = 0;

    AdapterRows& group_of(const Adapter* adapter) {
        for (size_t g = used; g-- > 0;)
            if (groups[g].adapter == adapter && groups[g].rows.size() < kRowsTogether) return groups[g];
        if (used == groups.size()) groups.emplace_back();
        AdapterRows& fresh = groups[used++];
        fresh.adapter = adapter;
        fresh.rows.clear();
        return fresh;
    }

public:
    int64_t stride = 0;  // of the rows of `low`, which holds A x of one site

    // of: each token's adapter or null; empty where no token has one.
    void build(const Tokens& tokens, const std::vector<const Adapter*>& of) {
        used = 0;
        stride = 0;
        if (of.empty()) return;
        for (int64_t i = 0; i < tokens.count; ++i)
            if (const Adapter* adapter = of[tokens[i]]) group_of(adapter).rows.push_back(i);
        for (size_t g = 0; g < used; ++g) stride = std::max(stride, blocks_of(groups[g].adapter->widest) * 16);
    }

    bool none() const { return used == 0; }

    // A x in units() pieces: of 16 rows of an adapter's A each.
    int64_t units(int64_t layer, Site site) const {
        int64_t count = 0;
        for (size_t g = 0; g < used; ++g) count += blocks_of(groups[g].adapter->layers[layer].a[site].n);
        return count;
    }
    void project(int64_t layer, Site site, const Input& input, float* low, int64_t unit) const {
        for (size_t g = 0; g < used; ++g) {
            const LowA& a = groups[g].adapter->layers[layer].a[site];
            if (unit < blocks_of(a.n))
                return with_kind(a.kind, [&](auto kind) {
                    const Activations& x = input.form(kind);
                    groups[g].project<kind, packed::kRowsBeside>(a, unit, x, low, stride, 0);
                });
            unit -= blocks_of(a.n);
        }
    }

    // Adds B (A x) to the outputs `blocks` of a matrix, of which `out` takes the first; `to`: its rows' stride.
    void add(int64_t layer, Part part, const float* low, float* out, int64_t to, Range blocks) const {
        for (size_t g = 0; g < used; ++g) {
            const AdapterLayer& changed = groups[g].adapter->layers[layer];
            const LowB& b = changed.b[part];
            if (!b.rank) continue;
            with_kind(changed.a[kSiteOf[part]].kind, [&](auto kind) {
                groups[g].expand<kind, packed::kRowsBeside>(b, low, stride, out, to, blocks, 0);
            });
        }
    }
};

}  // namespace
}  // namespace octavo
