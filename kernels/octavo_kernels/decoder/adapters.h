// The LoRA adapters of a step: which rows go through which, and what they add to a matrix's outputs.
//
// Rows of one adapter are computed together, so that its A and B are read once for all of them. Where no sequence of a
// step has an adapter, all of this is a comparison with an empty list.
#pragma once

#include <algorithm>
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
    int64_t widest;  // most places of the packed A x of an input
    AdapterLayer layers[1];
};

namespace {

// Some rows of one adapter: as many as share a load of its weights.
struct AdapterPiece {
    const Adapter* adapter;
    const int64_t* rows;
    int64_t count;

    // low: A x of all rows, packed.
    template <LowKind KIND, int ROWS>
    void project(const AdapterLayer& layer, Site site, const Activations& x, float* low, int64_t stride) const {
        float sums[ROWS][packed::kMaxStacked];
        packed::project<KIND, ROWS>(layer.a[site], x, rows, sums);
        for (int part = 0; part < kParts; ++part) {
            const LowB& b = layer.b[part];
            if (kSiteOf[part] != site || !b.rank) continue;
            for (int r = 0; r < ROWS; ++r)
                packed::pack_low<KIND>(b.rank, sums[r] + b.offset, low + rows[r] * stride + b.place * packed::kPlace);
        }
    }

    template <LowKind KIND, int ROWS>
    void expand(const LowB& b, const float* low, int64_t low_stride, float* out, int64_t stride, Range blocks) const {
        const float* x[ROWS];
        float* y[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            x[r] = low + rows[r] * low_stride + b.place * packed::kPlace;
            y[r] = out + rows[r] * stride;
        }
        packed::expand<KIND, ROWS>(b, x, y, blocks);
    }
};

// Calls f with the number of rows as a constant.
template <int ROWS = packed::kRowsBeside, class F> void with_rows(int64_t count, const F& f) {
    if constexpr (ROWS > 1)
        if (count < ROWS) return with_rows<ROWS - 1>(count, f);
    f(std::integral_constant<int, ROWS>());
}

// Calls f with a constant.
template <class F> void with_kind(int64_t kind, const F& f) {
    switch (LowKind(kind)) {
        case LowKind::int8: return f(std::integral_constant<LowKind, LowKind::int8>());
        case LowKind::bf16: return f(std::integral_constant<LowKind, LowKind::bf16>());
        case LowKind::f16: return f(std::integral_constant<LowKind, LowKind::f16>());
        default: return f(std::integral_constant<LowKind, LowKind::f32>());
    }
}

constexpr int64_t kFewRows = std::min(4, packed::kRowsBeside);  // of a piece, so that each thread gets some

class StepAdapters {
    struct Rows {
        const Adapter* adapter;
        std::vector<int64_t> rows;
    };
    std::vector<Rows> groups;  // memory stays for later steps
    size_t used = 0;
    std::vector<AdapterPiece> pieces;

    Rows& rows_of(const Adapter* adapter) {
        for (size_t g = used; g-- > 0;)
            if (groups[g].adapter == adapter) return groups[g];
        if (used == groups.size()) groups.emplace_back();
        Rows& fresh = groups[used++];
        fresh.adapter = adapter;
        fresh.rows.clear();
        return fresh;
    }

    // Pieces of about equally many rows.
    void cut(const Rows& group, int64_t most) {
        const int64_t count = int64_t(group.rows.size()), parts = (count + most - 1) / most;
        for (int64_t i = 0; i < parts; ++i) {
            const Range part = split(count, int(i), int(parts));
            pieces.push_back({group.adapter, group.rows.data() + part.begin, part.end - part.begin});
        }
    }

public:
    int64_t stride = 0;  // floats of a row of `low`, which holds A x of one site, packed

    // of: each token's adapter or null; empty where no token has one.
    void build(const Tokens& tokens, const std::vector<const Adapter*>& of) {
        used = 0;
        stride = 0;
        pieces.clear();
        if (of.empty()) return;
        for (int64_t i = 0; i < tokens.count; ++i)
            if (const Adapter* adapter = of[tokens[i]]) rows_of(adapter).rows.push_back(i);
        const int64_t rows = std::count_if(of.begin(), of.end(), [](const Adapter* adapter) { return adapter; });
        const int64_t most = rows / num_threads() < packed::kRowsBeside ? kFewRows : packed::kRowsBeside;
        for (size_t g = 0; g < used; ++g) {
            cut(groups[g], most);
            stride = std::max(stride, groups[g].adapter->widest * packed::kPlace);
        }
    }

    bool none() const { return used == 0; }

    // A x in units() pieces.
    int64_t units() const { return int64_t(pieces.size()); }

    void project(int64_t layer, Site site, const Input& input, float* low, int64_t unit) const {
        const AdapterPiece& piece = pieces[unit];
        const AdapterLayer& changed = piece.adapter->layers[layer];
        if (!changed.a[site].n) return;
        with_kind(changed.a[site].kind, [&](auto kind) {
            with_rows(piece.count, [&](auto rows) {
                piece.project<kind, rows>(changed, site, input.form(input_of(kind)), low, stride);
            });
        });
    }

    // Adds B (A x) to the outputs `blocks` of a matrix, of which `out` takes the first; `to`: its rows' stride.
    void add(int64_t layer, Part part, const float* low, float* out, int64_t to, Range blocks) const {
        for (const AdapterPiece& piece : pieces) {
            const AdapterLayer& changed = piece.adapter->layers[layer];
            if (!changed.b[part].rank) continue;
            with_kind(changed.a[kSiteOf[part]].kind, [&](auto kind) {
                with_rows(piece.count, [&](auto rows) {
                    piece.expand<kind, rows>(changed.b[part], low, stride, out, to, blocks);
                });
            });
        }
    }
};

}  // namespace
}  // namespace octavo
