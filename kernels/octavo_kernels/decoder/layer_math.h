// What layers compute token by token beside attention: norms, products with what adapters add, MLPs and mixtures.
#pragma once

#include <vector>

#include "activation/cpu.h"
#include "decoder/adapters.h"
#include "decoder/records.h"
#include "decoder/ways.h"
#include "rms_norm/cpu.h"

namespace octavo {
namespace {

class LayerMath {
protected:
    const Model model;
    const Numbers numbers;
    const std::vector<Layer> layers;

    LayerMath(const Model& m, const Numbers& n, const Layer* l) : model(m), numbers(n), layers(l, l + m.num_layers) {}

    Precision precision() const { return Precision(model.precision); }

    // out may be x; without a weight there is no norm.
    void norm(const float* x, const float* weight, const float* bias, float* out) const {
        if (!weight) std::copy_n(x, x == out ? 0 : model.hidden, out);
        else if (model.layer_norm) layer_norm_row(x, weight, bias, numbers.eps, model.hidden, out);
        else rms_norm_row(x, weight, numbers.eps, model.hidden, out);
    }

    // to = from + branch, post-normed and scaled in `room` where the model does so. `to` may be `from`, `room` the
    // branch.
    void add_branch(const float* from, const float* branch, const float* post_norm, float* room, float* to) const {
        if (post_norm) norm(branch, post_norm, nullptr, room), branch = room;
        if (numbers.residual_scale == 1.f) return add_row(branch, from, model.hidden, to);
        if (to != from) std::copy_n(from, model.hidden, to);
        add_scaled_row(branch, numbers.residual_scale, model.hidden, to);
    }

    // Normalises the residual x and packs it as row `i` of the next matrices' input.
    void norm_and_pack(const float* x, const float* weight, const float* bias, float* normed_row, const Input& input,
                       int64_t i) const {
        norm(x, weight, bias, normed_row);
        input.pack(i, normed_row);
    }

    // Products of one input, with what adapters add (`product`): A x comes before them.
    template <class Way, class P, class F>
    void multiply(const Way& way, const Layer& layer, Site site, std::initializer_list<int64_t> outputs,
                  const Input& input, const P& prepare, const F& f) const {
        const StepAdapters& adapters = way.shared.adapters;
        if (adapters.none()) return way.multiply(outputs, prepare, f);
        const int64_t at = &layer - layers.data();
        way.multiply(outputs, prepare, adapters.units(), [&](int64_t unit) {
            adapters.project(at, site, input, way.shared.low, unit);
        }, f);
    }

    // Some outputs of a layer's matrix, with what adapters add.
    template <class Way>
    void product(const Way& way, const Layer& layer, Part part, const Matrix& matrix, const Input& input, float* out,
                 int64_t stride, Range blocks) const {
        const StepAdapters& adapters = way.shared.adapters;
        const int64_t at = &layer - layers.data();
        input.multiply(matrix, precision(), out, stride, blocks);
        if (adapters.none()) return;
        way.projected();
        adapters.add(at, part, way.shared.low, out, stride, blocks);
    }

    template <class Way, class P>
    void feed(const Layer& layer, const Way& way, const P& prepare) const {
        const Input& between = way.shared.down_input;
        multiply(way, layer, kMlpSite, {layer.up.n}, way.own.mlp_input, prepare,
                 [&](size_t, Range blocks) { feed_in(layer, way, between, blocks); });
        multiply_down(layer, way, between, [&](size_t, Range blocks) { feed_out(layer, way, between, blocks); });
    }

    // Some columns between the matrices of an MLP.
    template <class Way>
    void feed_in(const Layer& layer, const Way& way, const Input& between, Range blocks) const {
        const Range columns{blocks.begin * 16, std::min(blocks.end * 16, layer.up.n)};
        const int64_t stride = 2 * way.gate_width;
        float *gate = way.gate(columns.begin), *up = gate + way.gate_width;
        if (layer.gate.data) product(way, layer, kGate, layer.gate, way.own.mlp_input, gate, stride, blocks);
        product(way, layer, kUp, layer.up, way.own.mlp_input, up, stride, blocks);
        for (int64_t i = 0; i < way.tokens.count; ++i) {
            float *row = gate + i * stride, *values = row + way.gate_width;
            if (layer.gate.data) gate_row(Gate(model.gate), row, values, columns.end - columns.begin, values);
            else activate_row(Gate(model.gate), values, columns.end - columns.begin, values);
            between.pack(i, values, columns);
        }
    }

    template <class Way, class F>
    void multiply_down(const Layer& layer, const Way& way, const Input& between, const F& f) const {
        const StepAdapters& adapters = way.shared.adapters;
        if (adapters.none()) return way.multiply({model.hidden}, f);
        const int64_t at = &layer - layers.data();
        way.multiply({model.hidden}, adapters.units(), [&](int64_t unit) {
            adapters.project(at, kDownSite, between, way.shared.low, unit);
        }, f);
    }

    template <class Way>
    void feed_out(const Layer& layer, const Way& way, const Input& between, Range blocks) const {
        product(way, layer, kDown, layer.down, between, way.shared.fed + blocks.begin * 16, model.hidden, blocks);
    }

    // The mixture of a layer in place of its MLP. Router, shared expert and its gate are multiplied together;
    // RedundantRows find each token's experts in every thread, the other strategies once.
    template <class Way, class P>
    void mix(const Layer& layer, const Mixture& m, const Way& way, const P& prepare) const {
        const int64_t count = way.tokens.count, stride = m.count + 1;
        const StepExperts& shared = way.shared.experts;
        StepExperts& own = way.own.experts;
        int64_t prepared = Way::few ? 0 : count;  // rows, by this thread
        const auto prepare_next = [&](int64_t i) { prepare(i), prepared += Way::few; };
        const auto score = [&](size_t i, Range blocks) {
            float* scores = shared.scores + blocks.begin * 16;
            if (i == 0) way.own.mlp_input.multiply(m.router, Precision::exact, scores, stride, blocks);
            else if (i == 1) feed_in(layer, way, way.shared.shared_input, blocks);
            else way.own.mlp_input.multiply(m.shared_gate, Precision::exact, scores + m.count, stride, blocks);
        };
        multiply(way, layer, kMlpSite, {m.router.n, layer.up.n, m.shared_gate.n}, way.own.mlp_input, prepare_next,
                 score);
        const auto choose = [&](int64_t i) { own.plan.choose(m, shared.scores + i * stride, i); };
        const auto sort = [&] { own.plan.sort(m, count); };
        const auto place = [&](int64_t row) {
            const Range rows = own.plan.groups[own.plan.group[row]].rows;
            own.inputs.part(rows).pack(row - rows.begin, way.own.normed + own.plan.token[row] * model.hidden);
        };
        bool sorted = !Way::few, placed = !Way::few;
        if constexpr (!Way::few) way.each(count, choose), way.once(sort), way.each(count * m.chosen, place);
        const auto find = [&] {
            for (int64_t i = 0; !sorted && i < count; ++i) choose(i);
            if (!sorted) sort();
            sorted = true;
        };
        const int64_t together = blocks_together(count * m.chosen / m.count);
        way.share([&](int64_t unit, int64_t units) {
            find();
            while (prepared < count) prepare_next(prepared);
            for (int64_t row = 0; !placed && row < count * m.chosen; ++row) place(row);
            placed = true;
            own.plan.slice(blocks_of(m.experts[0].up.n), unit, units, together,
                           [&](const Group& group, Range blocks) { expert_in(m, own, shared, group, blocks); });
        });
        multiply_down(layer, way, way.shared.shared_input, [&](size_t, Range blocks) {
            find();
            if (layer.up.data) feed_out(layer, way, way.shared.shared_input, blocks);
            experts_out(m, own.plan, way.shared, layer.up.data != nullptr, count, blocks);
        });
    }

    // As feed_in() for the rows of one expert.
    void expert_in(const Mixture& m, const StepExperts& own, const StepExperts& shared, const Group& group,
                   Range blocks) const {
        thread_local Buffer room;
        const Expert& expert = m.experts[group.expert];
        const Forms input = own.inputs.part(group.rows), between = shared.between.part(group.rows);
        const Range columns{blocks.begin * 16, std::min(blocks.end * 16, expert.up.n)};
        const int64_t rows = group.rows.end - group.rows.begin, width = columns.end - columns.begin;
        float *gate = room.floats(2 * rows * width), *up = gate + rows * width;
        input.multiply(expert.gate, precision(), gate, width, blocks);
        input.multiply(expert.up, precision(), up, width, blocks);
        for (int64_t i = 0; i < rows; ++i) {
            float *row = gate + i * width, *values = up + i * width;
            if (m.numbers[1] > 0) clamped_gate_row(row, values, m.numbers[1], width, values);
            else gate_row(Gate(model.gate), row, values, width, values);
            between.pack(i, values, columns);
        }
    }

    // Some columns of the sum over each token's experts, added in the order of the experts to the shared expert's.
    void experts_out(const Mixture& m, const Plan& plan, const Workspace& shared, bool has_shared, int64_t count,
                     Range blocks) const {
        thread_local Buffer room;
        const int64_t begin = blocks.begin * 16, width = std::min(blocks.end * 16, model.hidden) - begin;
        for (int64_t i = 0; i < count; ++i) {
            float* to = shared.fed + i * model.hidden + begin;
            if (!has_shared) std::fill_n(to, width, 0.f);
            else if (m.shared_gate.data) scale_row(shared.experts.shared_share(m, i), width, to);
        }
        for (const Group& group : plan.groups) {
            const int64_t rows = group.rows.end - group.rows.begin;
            float* products = room.floats(rows * width);
            shared.experts.between.part(group.rows)
                .multiply(m.experts[group.expert].down, precision(), products, width, blocks);
            for (int64_t i = 0; i < rows; ++i) {
                const int64_t row = group.rows.begin + i;
                add_scaled_row(products + i * width, plan.share[row], width,
                               shared.fed + plan.token[row] * model.hidden + begin);
            }
        }
    }

    // Values between the matrices of the MLPs of layers without a mixture, or else of shared experts.
    int64_t inner_of(bool in_mixture) const {
        int64_t found = 0;
        for (const Layer& layer : layers)
            if ((layer.mixture != nullptr) == in_mixture) found = layer.up.n;
        return found || in_mixture ? found : inner_of(true);
    }

    // Of attention's results.
    int64_t gate_size() const {
        for (const Layer& layer : layers)
            if (!layer.recurrent) return layer.z.n;
        return 0;
    }

    int64_t mixed_width() const {
        for (const Layer& layer : layers)
            if (layer.recurrent) return layer.out.k;
        return 0;
    }

    const Mixture* first_mixture() const {
        for (const Layer& layer : layers)
            if (layer.mixture) return layer.mixture;
        return nullptr;
    }
};

}  // namespace
}  // namespace octavo
