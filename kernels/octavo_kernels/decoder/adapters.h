// The LoRA adapters of a step: which rows go through which, and what they add to a matrix's outputs.
//
// Rows of one adapter are packed together, so that its A and B are read once for all of them. Where no sequence of a
// step has an adapter, all of this is a comparison with an empty list.
#pragma once

#include <memory>
#include <vector>

#include "decoder/tokens.h"
#include "linear/input.h"
#include "lora/cpu.h"

namespace octavo {

// The inputs that matrices share, and the matrices, in the order of Python's words (lora/packed.py).
enum Site { kQkvSite, kOutSite, kMlpSite, kDownSite, kSites };
enum Part { kQ, kK, kV, kOut, kGate, kUp, kDown, kParts };

// Words of a record of Python's: one layer of an adapter. A's of one input are stacked; no data: nothing is changed.
struct AdapterLayer {
    Matrix a[kSites];
    LowRank b[kParts];
};

struct Adapter {
    int64_t widest;  // most rows of any `a`
    AdapterLayer layers[1];
};

namespace {

constexpr int64_t kRowsTogether = 64;  // of one adapter: more are several pieces of work for the threads

constexpr size_t kManyGroups = 4;

// Some rows of one adapter.
struct AdapterRows {
    const Adapter* adapter;
    std::vector<int64_t> rows;
    Input inputs[kSites];
    Buffer low_;
    float* low;  // [rows][stride]: A x
    int64_t stride;

    void reserve(const Widths& widths) {
        const int64_t count = int64_t(rows.size());
        for (int site = 0; site < kSites; ++site) {
            const int64_t k = site == kOutSite ? widths.heads : site == kDownSite ? widths.inner : widths.hidden;
            inputs[site].reserve(count, k);
        }
        stride = blocks_of(adapter->widest) * 16;
        low = low_.floats(count * stride);
    }

    template <int ROWS>
    void add(const LowRank& b, bool exact, float* out, int64_t out_stride, Range blocks, size_t first) const {
        const float* x[ROWS];
        float* y[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            x[r] = low + int64_t(first + r) * stride;
            y[r] = out + rows[first + r] * out_stride;
        }
        packed::add_low_rank<ROWS>(b, exact, x, y, blocks);
    }
};

class StepAdapters {
    std::vector<std::unique_ptr<AdapterRows>> groups;  // memory stays for later steps
    size_t used = 0;
    std::vector<std::pair<int64_t, int64_t>> places;  // of each row: group, or -1, and row in it

    AdapterRows& group_of(const Adapter* adapter, bool exact) {
        for (size_t g = used; g-- > 0;)
            if (groups[g]->adapter == adapter && int64_t(groups[g]->rows.size()) < kRowsTogether) return *groups[g];
        if (used == groups.size()) {
            groups.push_back(std::make_unique<AdapterRows>());
            const Matrix kind{int64_t(exact ? WeightFormat::f32 : WeightFormat::bf16), 0, 0, nullptr, nullptr};
            for (Input& input : groups.back()->inputs) input.add(kind, exact);
        }
        AdapterRows& fresh = *groups[used++];
        fresh.adapter = adapter;
        fresh.rows.clear();
        return fresh;
    }

    static void project_rows(const AdapterRows& group, int64_t layer, Site site, bool exact) {
        const Matrix& a = group.adapter->layers[layer].a[site];
        if (a.n) group.inputs[site].multiply(a, exact, group.low, group.stride, {0, blocks_of(a.n)});
    }

public:
    // of: each token's adapter or null; empty where no token has one.
    void build(const Tokens& tokens, const std::vector<const Adapter*>& of, const Widths& widths, bool exact) {
        used = 0;
        if (of.empty()) return;
        places.assign(tokens.count, {-1, 0});
        for (int64_t i = 0; i < tokens.count; ++i) {
            const Adapter* adapter = of[tokens[i]];
            if (!adapter) continue;
            AdapterRows& group = group_of(adapter, exact);
            for (size_t g = used; g-- > 0;)
                if (groups[g].get() == &group) places[i] = {int64_t(g), int64_t(group.rows.size())};
            group.rows.push_back(i);
        }
        for (size_t g = 0; g < used; ++g) groups[g]->reserve(widths);
    }

    bool none() const { return used == 0; }

    void pack(Site site, int64_t row, const float* x) const {
        if (used && places[row].first >= 0) groups[places[row].first]->inputs[site].pack(places[row].second, x);
    }
    void pack(Site site, int64_t row, const float* x, Range columns) const {
        if (used && places[row].first >= 0) groups[places[row].first]->inputs[site].pack(places[row].second, x, columns);
    }

    // A x in units() pieces: of some rows each, or where those are few of 16 rows of A.
    int64_t units(int64_t layer, Site site) const {
        if (used >= kManyGroups) return int64_t(used);
        int64_t count = 0;
        for (size_t g = 0; g < used; ++g) count += blocks_of(groups[g]->adapter->layers[layer].a[site].n);
        return count;
    }
    void project(int64_t layer, Site site, bool exact, int64_t unit) const {
        if (used >= kManyGroups) return project_rows(*groups[unit], layer, site, exact);
        for (size_t g = 0; g < used; ++g) {
            const Matrix& a = groups[g]->adapter->layers[layer].a[site];
            if (unit < blocks_of(a.n))
                return groups[g]->inputs[site].multiply(a, exact, groups[g]->low + unit * 16, groups[g]->stride,
                                                        {unit, unit + 1});
            unit -= blocks_of(a.n);
        }
    }

    // Adds B (A x) to the outputs `blocks` of a matrix, of which `out` takes the first.
    void add(int64_t layer, Part part, bool exact, float* out, int64_t stride, Range blocks) const {
        for (size_t g = 0; g < used; ++g) {
            const AdapterRows& group = *groups[g];
            const LowRank& b = group.adapter->layers[layer].b[part];
            if (!b.rank) continue;
            for (size_t row = 0; row < group.rows.size(); row += 8) {
                switch (std::min<size_t>(8, group.rows.size() - row)) {
                    case 1: group.add<1>(b, exact, out, stride, blocks, row); break;
                    case 2: group.add<2>(b, exact, out, stride, blocks, row); break;
                    case 3: group.add<3>(b, exact, out, stride, blocks, row); break;
                    case 4: group.add<4>(b, exact, out, stride, blocks, row); break;
                    case 5: group.add<5>(b, exact, out, stride, blocks, row); break;
                    case 6: group.add<6>(b, exact, out, stride, blocks, row); break;
                    case 7: group.add<7>(b, exact, out, stride, blocks, row); break;
                    default: group.add<8>(b, exact, out, stride, blocks, row);
                }
            }
        }
    }
};

}  // namespace
}  // namespace octavo
