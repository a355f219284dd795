// A whole step of an encoder in one call: embeddings, layers with attention between all tokens of a text, pooling.
//
// Texts are packed one after the other, without padding. plan.h says which thread computes what: mostly, each takes whole
// texts through all layers (Alone); else all share each layer (Together), by tokens where there are many and by outputs
// of the matrices where there are few (decoder/ways.h). A row's bits are the same either way.
#include <memory>
#include <vector>

#include "activation/cpu.h"
#include "decoder/ways.h"
#include "encoder/attention.h"
#include "encoder/plan.h"
#include "encoder/records.h"
#include "rms_norm/cpu.h"
#include "rotary/cpu.h"

namespace octavo::encoder {
namespace {

constexpr int64_t kPhasesPerLayer = 9, kOtherPhases = 4;
constexpr int64_t kChunkTokens = OCTAVO_ISA >= 3 ? 256 : 192;  // that Alone takes through the matrices together
constexpr int64_t kAttentionTokens = 16 * kRows;              // of an item, where threads share a text's attention

enum class Method : int32_t { cls, mean, last };

// A step's texts, in the order of octavo.step.
struct Step {
    const int32_t *tokens, *types, *starts;  // types may be null
    int64_t count;
    const int32_t* methods;                  // [count]
    float* pooled;                           // [count][hidden]
    float* states;                           // [tokens][hidden], or null
};

// Texts that pass through the layers together, and what their matrices and their attention exchange.
struct Texts {
    struct Text {
        int64_t index, first, count;  // in the step; its first row here; rows
    };
    struct Row {
        int64_t token, position;
    };
    struct Item {  // of attention: a KV head of a text, or some tokens of it
        int64_t text, head;
        Range tokens;
    };
    std::vector<Text> texts;
    std::vector<Row> rows;
    std::vector<int64_t> finished;  // rows whose states after the last layer are needed
    std::vector<Item> items;
    float *residual, *qkv, *attended;

    void clear() { texts.clear(), rows.clear(), finished.clear(), items.clear(); }

    void add(const Step& step, int64_t index) {
        const int64_t begin = step.starts[index], count = step.starts[index + 1] - begin, first = int64_t(rows.size());
        texts.push_back({index, first, count});
        for (int64_t i = 0; i < count; ++i) rows.push_back({begin + i, i});
        const Method method = Method(step.methods[index]);
        const bool all = step.states || method == Method::mean;
        for (int64_t i = 0; i < count; ++i)
            if (all || i == (method == Method::cls ? 0 : count - 1)) finished.push_back(first + i);
    }

    void add_items(int64_t heads, int64_t tokens) {
        for (int64_t text = 0; text < int64_t(texts.size()); ++text)
            for (int64_t head = 0; head < heads; ++head)
                for (int64_t begin = 0; begin < texts[text].count; begin += tokens)
                    items.push_back({text, head, {begin, std::min(begin + tokens, texts[text].count)}});
    }

    void reserve(int64_t hidden, int64_t qkv_size, int64_t q_size) {
        const int64_t count = int64_t(rows.size());
        residual = residual_.floats(count * hidden);
        qkv = qkv_.floats(count * qkv_size);
        attended = attended_.floats(count * q_size);
    }

private:
    Buffer residual_, qkv_, attended_;
};

// What a thread has for itself.
struct Desk {
    Workspace workspace;
    Texts texts;
    Room room;
};

// One thread that takes its texts through everything.
struct Alone {
    const Widths& widths;
    Desk& desk;

    template <class F>
    void rows(Tokens tokens, const F& f) {
        Workspace& w = desk.workspace;
        const int64_t chunks = (tokens.count + kChunkTokens - 1) / kChunkTokens;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const Tokens part = tokens.part(split(tokens.count, int(chunk), int(chunks), 4));
            w.reserve(widths, part.count, kRunBlocks * 16);
            f(RunPerThread{part, w, w, kRunBlocks * 16});
        }
    }
    template <class F>
    void each(int64_t count, const F& f) {
        for (int64_t i = 0; i < count; ++i) f(i, desk);
    }
};

// All threads of the pool, which share the work between two barriers.
struct Together {
    const Widths& widths;
    Phases& phases;
    int cursor;
    int threads;
    Workspace& shared;
    Desk& desk;

    static bool by_tokens(int64_t tokens, int threads) { return tokens >= threads * kLeastTokens; }

    template <class F>
    void rows(Tokens tokens, const F& f) {
        if (!by_tokens(tokens.count, threads)) {
            const int64_t cuts = threads == 1 ? 1 : 4 * threads;
            return f(SharedRows{phases, cursor, cuts, tokens, nullptr, shared, shared, widths.inner});
        }
        const int64_t runs = ((tokens.count + kRunTokens - 1) / kRunTokens + threads - 1) / threads * threads;
        phases.run(cursor, runs, [&](int64_t run) {
            Workspace& w = desk.workspace;
            const Tokens part = tokens.part(split(tokens.count, int(run), int(runs), 4));
            w.reserve(widths, part.count, kRunBlocks * 16);
            f(RunPerThread{part, w, w, kRunBlocks * 16});
        });
    }
    template <class F>
    void each(int64_t count, const F& f) {
        phases.run(cursor, count, [&](int64_t i) { f(i, desk); });
    }
};

class Encoder {
    const Model model;
    const Numbers numbers;
    const std::vector<Layer> layers;
    const int64_t q_size, kv_size, qkv_size;
    const Widths widths;

    Plan plan;
    Phases phases;
    Texts all;         // of a step whose layers are shared
    Workspace shared;  // for them
    std::vector<std::unique_ptr<Desk>> desks;  // one per thread
    Step step_;

    Precision precision() const { return Precision(model.precision); }
    bool norm_first() const { return model.norm_first != 0; }

    void norm(const float* x, const Norm& norm, float* out) const {
        if (model.layer_norm) return layer_norm_row(x, norm.weight, norm.bias, numbers.eps, model.hidden, out);
        rms_norm_row(x, norm.weight, numbers.eps, model.hidden, out);
        if (norm.bias) add_row(out, norm.bias, model.hidden, out);
    }

    // x += branch, and in a model of post-norms its norm.
    void add_branch(const float* branch, const Norm& after, float* x) const {
        add_row(branch, x, model.hidden, x);
        if (!norm_first()) norm(x, after, x);
    }

    // The residual x, normalised in a model of pre-norms, as row `i` of the next matrices' input.
    void pack_input(const float* x, const Norm& before, float* room, const Input& input, int64_t i) const {
        if (norm_first() && before.weight) norm(x, before, room), x = room;
        input.pack(i, x);
    }

    // x += row `index` of a table, if it has that row.
    void add_embedding(const Table& table, int64_t index, float* x) const {
        if (index >= 0 && index < table.rows) add_row(table.data + index * model.hidden, x, model.hidden, x);
    }

    void embed(const Texts::Row& row, float* x) const {
        const int64_t token = step_.tokens[row.token];
        if (token >= 0 && token < model.embedding.n) read_row(model.embedding.packed(), token, x);
        else std::fill_n(x, model.hidden, 0.f);
        if (numbers.embedding_scale != 1.f)
            for (int64_t i = 0; i < model.hidden; ++i) x[i] *= numbers.embedding_scale;
        add_embedding(model.types, step_.types ? step_.types[row.token] : 0, x);
        add_embedding(model.positions, row.position + model.position_offset, x);
        if (model.embedding_norm.weight) norm(x, model.embedding_norm, x);
    }

    float* residual_of(const Texts& t, int64_t row) const { return t.residual + row * model.hidden; }

    // Queries, keys and values; `before`: the layer whose output is the input, or null (embedding).
    template <class Way>
    void before_attention(const Texts& t, const Layer* before, const Layer& layer, const Way& way) const {
        const int64_t first = way.tokens.first, hidden = model.hidden;
        const Product products[] = {{&layer.q, 0}, {&layer.k, q_size}, {&layer.v, q_size + kv_size}};
        const Input& input = way.own.qkv_input;
        const auto prepare = [&](int64_t i) {
            float* x = residual_of(t, first + i);
            if (before) add_branch(way.shared.fed + i * hidden, before->mlp, x);
            else embed(t.rows[first + i], x);
            pack_input(x, layer.attention, way.own.normed + i * hidden, input, i);
        };
        way.multiply({q_size, kv_size, kv_size}, prepare, [&](size_t i, Range blocks) {
            float* to = t.qkv + first * qkv_size + products[i].column + blocks.begin * 16;
            input.multiply(*products[i].matrix, precision(), to, qkv_size, blocks);
        });
        if (layer.rotary_dim) way.each(way.tokens.count, [&](int64_t i) { rotate(t, layer, first + i); });
    }

    void rotate(const Texts& t, const Layer& layer, int64_t row) const {
        float* heads = t.qkv + row * qkv_size;
        const float* angles = layer.rotary + t.rows[row].position * layer.rotary_dim;
        for (int64_t i = 0; i < model.query_heads + model.kv_heads; ++i)
            rotate_head(heads + i * model.head_dim, angles, layer.rotary_dim / 2);
    }

    template <class T>
    void attend(const Texts& t, const Layer& layer, const Texts::Item& item, Room& room) const {
        const Texts::Text& text = t.texts[item.text];
        const int64_t dim = model.head_dim, padded = (dim + kCell - 1) / kCell * kCell;
        const int64_t words = (dim + kPerWord<T> - 1) / kPerWord<T>, group = model.query_heads / model.kv_heads;
        const float *row = t.qkv + text.first * qkv_size, *k = row + q_size + item.head * dim;
        Heads heads{row + item.head * group * dim, k, k + kv_size, qkv_size, text.count,
                    t.attended + text.first * q_size + item.head * group * dim, q_size};
        Shape shape{dim, padded, words, numbers.attention_scale, 0, false, nullptr};
        room.reserve(text.count, padded);
        pack_cells<T>(heads, dim, padded, room);
        for (int64_t i = 0; i < group; ++i, heads.q += dim, heads.out += dim) {
            if (model.bias) shape.bias = model.bias + (item.head * group + i) * model.bias_row + model.bias_zero;
            attend_tokens<T>(heads, item.tokens, shape, layer.reach, room);
        }
    }

    // The rest of a layer after its attention, but for adding the MLP's output to the residual.
    template <class Way>
    void finish_layer(const Texts& t, const Layer& layer, const Way& way) const {
        const int64_t count = way.tokens.count, hidden = model.hidden, inner = model.inner, stride = 2 * way.gate_width;
        const Workspace &shared = way.shared, &own = way.own;
        const auto pack_attended = [&](int64_t i) { own.out_input.pack(i, t.attended + way.tokens[i] * q_size); };
        way.multiply({hidden}, pack_attended, [&](size_t, Range blocks) {
            own.out_input.multiply(layer.out, precision(), shared.attended + blocks.begin * 16, hidden, blocks);
        });
        const auto prepare = [&](int64_t i) {
            float* x = residual_of(t, way.tokens[i]);
            add_branch(shared.attended + i * hidden, layer.attention, x);
            pack_input(x, layer.mlp, own.normed + i * hidden, own.mlp_input, i);
        };
        way.multiply({inner}, prepare, [&](size_t, Range blocks) {
            const Range columns{blocks.begin * 16, std::min(blocks.end * 16, inner)};
            float *gate = way.gate(columns.begin), *up = gate + way.gate_width;
            if (layer.gate.data) own.mlp_input.multiply(layer.gate, precision(), gate, stride, blocks);
            own.mlp_input.multiply(layer.up, precision(), up, stride, blocks);
            for (int64_t i = 0; i < count; ++i) {
                float *row = gate + i * stride, *values = row + way.gate_width;
                activate(layer, row, values, columns.end - columns.begin);
                shared.down_input.pack(i, values, columns);
            }
        });
        way.multiply({hidden}, [&](size_t, Range blocks) {
            shared.down_input.multiply(layer.down, precision(), shared.fed + blocks.begin * 16, hidden, blocks);
        });
    }

    void activate(const Layer& layer, const float* gate, float* values, int64_t count) const {
        if (layer.gate.data) gate_row(Gate(model.activation), gate, values, count, values);
        else activate_row(Gate(model.activation), values, count, values);
    }

    // Everything from the end of layer i - 1's attention (or the embedding) to layer i's attention (or the end).
    template <class Way>
    void go_to_attention(const Texts& t, size_t i, const Way& way) const {
        const Layer* before = i > 0 ? &layers[i - 1] : nullptr;
        if (before) finish_layer(t, *before, way);
        if (i < layers.size()) return before_attention(t, before, layers[i], way);
        way.each(way.tokens.count, [&](int64_t j) {
            float* x = residual_of(t, way.tokens[j]);
            add_branch(way.shared.fed + j * model.hidden, before->mlp, x);
            if (model.final_norm.weight) norm(x, model.final_norm, x);
        });
    }

    // One vector of a text's final states; a mean adds them up in their order.
    void pool(const Texts& t, const Texts::Text& text) const {
        const int64_t hidden = model.hidden;
        const float* states = residual_of(t, text.first);
        float* to = step_.pooled + text.index * hidden;
        if (step_.states)
            std::memcpy(step_.states + t.rows[text.first].token * hidden, states, text.count * hidden * sizeof(float));
        const Method method = Method(step_.methods[text.index]);
        std::memcpy(to, method == Method::last ? states + (text.count - 1) * hidden : states, hidden * sizeof(float));
        if (method != Method::mean) return;
        for (int64_t i = 1; i < text.count; ++i) add_row(states + i * hidden, to, hidden, to);
        for (int64_t i = 0; i < hidden; ++i) to[i] /= float(text.count);
    }

    template <class Crew>
    void run(const Texts& t, Crew crew) const {
        const Tokens every{0, int64_t(t.rows.size()), nullptr};
        const Tokens finished{0, int64_t(t.finished.size()), t.finished.data()};
        for (size_t i = 0; i <= layers.size(); ++i) {
            crew.rows(i < layers.size() ? every : finished, [&](const auto& way) { go_to_attention(t, i, way); });
            if (i == layers.size()) break;
            crew.each(int64_t(t.items.size()), [&](int64_t item, Desk& desk) {
                if (!model.narrow) attend<float>(t, layers[i], t.items[item], desk.room);
                else attend<bf16>(t, layers[i], t.items[item], desk.room);
            });
        }
        crew.each(int64_t(t.texts.size()), [&](int64_t i, Desk&) { pool(t, t.texts[i]); });
    }

    // Each thread takes runs of whole texts, longest first.
    void run_apart(int threads) {
        join(threads, [&](int thread) {
            Desk& desk = *desks[thread];
            int cursor = 0;
            phases.run(cursor, int64_t(plan.runs.size()), [&](int64_t run_) {
                desk.texts.clear();
                for (int64_t i = plan.runs[run_].begin; i < plan.runs[run_].end; ++i) desk.texts.add(step_, plan.order[i]);
                desk.texts.add_items(model.kv_heads, std::numeric_limits<int32_t>::max());
                desk.texts.reserve(model.hidden, qkv_size, q_size);
                run(desk.texts, Alone{widths, desk});
            });
        });
    }

    void run_together(int threads) {
        all.clear();
        for (const int64_t text : plan.order) all.add(step_, text);
        const bool few = int64_t(all.texts.size()) * model.kv_heads < 4 * threads;
        all.add_items(model.kv_heads, few ? kAttentionTokens : std::numeric_limits<int32_t>::max());
        all.reserve(model.hidden, qkv_size, q_size);
        const int64_t rows = int64_t(all.rows.size()), finished = int64_t(all.finished.size());
        const int64_t alike = Together::by_tokens(rows, threads) ? 0 : rows;
        shared.reserve(widths, std::max(alike, Together::by_tokens(finished, threads) ? 0 : finished), model.inner);
        join(threads, [&](int thread) { run(all, Together{widths, phases, 0, threads, shared, *desks[thread]}); });
    }

    void want_inputs(Workspace& w) const {
        for (const Layer& layer : layers) {
            for (const Matrix* m : {&layer.q, &layer.k, &layer.v}) w.qkv_input.add(*m, precision());
            if (layer.gate.data) w.mlp_input.add(layer.gate, precision());
            w.mlp_input.add(layer.up, precision());
            w.out_input.add(layer.out, precision());
            w.down_input.add(layer.down, precision());
        }
    }

    // Tokens of a text whose attention takes as long as its matrices; 8-bit products are about three times as fast.
    int64_t knee() const {
        const int64_t mlp = (layers[0].gate.data ? 3 : 2) * model.inner;
        const int64_t matrices = model.hidden * (qkv_size + q_size + mlp);
        return std::max<int64_t>(1, matrices / (2 * q_size * (model.narrow ? 3 : 1)));
    }

public:
    Encoder(const Model& m, const Numbers& n, const Layer* l)
        : model(m), numbers(n), layers(l, l + m.num_layers), q_size(m.query_heads * m.head_dim),
          kv_size(m.kv_heads * m.head_dim), qkv_size(q_size + 2 * kv_size), widths{m.hidden, q_size, m.inner},
          phases(kPhasesPerLayer * m.num_layers + kOtherPhases) {
        want_inputs(shared);
    }

    void step(const Step& s) {
        step_ = s;
        const int threads = num_threads();
        while (int(desks.size()) < threads) {
            desks.push_back(std::make_unique<Desk>());
            want_inputs(desks.back()->workspace);
        }
        plan.build(s.starts, s.count, threads, knee());
        phases.reset();
        if (plan.runs.empty()) run_together(threads);
        else run_apart(threads);
    }
};

}  // namespace
}  // namespace octavo::encoder

using namespace octavo::encoder;

OCTAVO_API int64_t octavo_encoder_new(const void* model, const void* numbers, const void* layers) {
    return (int64_t) new Encoder(*(const Model*)model, *(const Numbers*)numbers, (const Layer*)layers);
}

OCTAVO_API void octavo_encoder_free(int64_t encoder) { delete (Encoder*)encoder; }

// tokens, types: [tokens]; starts: [count + 1] where each text begins, none of which is empty; methods: [count] 0 for the
// first state, 1 for the mean, 2 for the last one; pooled: [count, hidden]; states: [tokens, hidden]. types, states: or null.
OCTAVO_API void octavo_encoder_step(int64_t encoder, const int32_t* tokens, const int32_t* types, const int32_t* starts,
                                    int64_t count, const int32_t* methods, float* pooled, float* states) {
    ((Encoder*)encoder)->step({tokens, types, starts, count, methods, pooled, states});
}
