// A whole step of a decoder-only transformer in one call: embedding, layers, paged attention, final norm, logits.
//
// It composes the ops' functions inside one region, as phases: a new one wherever a thread reads what another wrote.
// Activations are float32 between the matrices; each matrix takes them as its format wants (linear/cpu.h).
#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include "activation/cpu.h"
#include "decoder/records.h"
#include "linear/cpu.h"
#include "paged_attention/cpu.h"
#include "rms_norm/cpu.h"
#include "rotary/cpu.h"

namespace octavo {
namespace {

// ---- memory that grows ----------------------------------------------------------------------------------------------

struct Free {
    void operator()(void* p) const { std::free(p); }
};

class Buffer {
    std::unique_ptr<void, Free> memory;
    int64_t bytes = 0;

public:
    // Room for `wanted` bytes, 64-byte aligned; what was in it is lost when it grows.
    void* reserve(int64_t wanted) {
        if (wanted > bytes) {
            bytes = (wanted + wanted / 4 + 63) / 64 * 64;
            memory.reset();
            memory.reset(std::aligned_alloc(64, bytes));
            if (!memory) std::abort();
        }
        return memory.get();
    }
    float* floats(int64_t count) { return (float*)reserve(count * 4); }
};

// One input of several matrices, converted once into every form that one of them wants.
class Input {
    Buffer buffers[3];
    Activations forms[3] = {};
    bool wanted[3] = {};

public:
    void add(const Matrix& w, bool exact) { wanted[int(activation_kind(WeightFormat(w.format), exact))] = true; }

    void reserve(int64_t rows, int64_t k) {
        for (int kind = 0; kind < 3; ++kind) {
            if (!wanted[kind]) continue;
            const int64_t bytes = activation_bytes(ActivationKind(kind), rows, k);
            forms[kind] = {ActivationKind(kind), rows, k, (uint8_t*)buffers[kind].reserve(bytes)};
        }
    }
    void pack(int64_t row, const float* x) const {
        for (int kind = 0; kind < 3; ++kind)
            if (wanted[kind]) pack_row(forms[kind], row, x);
    }
    void multiply(const Matrix& w, bool exact, float* out, int64_t stride, int thread, int threads) const {
        const int kind = int(activation_kind(WeightFormat(w.format), exact));
        linear(w.packed(), forms[kind], out, stride, w.bias, thread, threads);
    }
};

// ---- the decoder ----------------------------------------------------------------------------------------------------

constexpr int64_t kPhasesPerLayer = 13, kOtherPhases = 6;

// Adds up the values that all ranks of a model have at this point, in place.
using SumOverRanks = void (*)(float* values, int64_t count);

class Decoder {
    const Model model;
    const Numbers numbers;
    const std::vector<Layer> layers;
    const int64_t q_size, kv_size, qkv_size;

    std::map<int64_t, AttentionPlan> plans;  // by window
    Buffer residual_, qkv_, attended_, branch_, gate_up_, normed_, scratch_, partials_;
    Input qkv_input, out_input, mlp_input, down_input, head_input;
    std::vector<int64_t> slots;  // per token, where its key and value go
    int64_t num_tokens = 0, scratch_floats = 0;
    float *residual, *qkv, *attended, *branch, *gate_up, *normed, *scratch, *partials;
    const int32_t* token_ids;
    int64_t cuts = 1;  // units of a phase whose work can be cut anywhere
    Phases phases;
    int64_t first_token = 0;  // of the embedding's rows, where a rank has a part of them
    SumOverRanks sum_over_ranks = nullptr;

    bool exact() const { return model.exact != 0; }

    KvCache cache(const Layer& layer) const {
        const KvForm form = model.kv_is_int8 ? KvForm::int8 : KvForm::packed;
        return {model.kv_is_bf16 != 0, form, model.block_size, model.kv_heads, model.head_dim, model.block_bytes,
                layer.k_cache, layer.v_cache};
    }

    // A row of the residual is normed and becomes row `row` of the next matrices' input.
    void norm_and_pack(int64_t token, const float* weight, const Input& input, int64_t row) {
        float* to = normed + row * model.hidden;
        rms_norm_row(residual + token * model.hidden, weight, numbers.eps, model.hidden, to);
        input.pack(row, to);
    }

    // The branch (post-normed where the model says so) joins the residual of this thread's rows.
    void add_branch(const float* post_norm, int64_t row) {
        float *from = branch + row * model.hidden, *to = residual + row * model.hidden;
        if (post_norm) rms_norm_row(from, post_norm, numbers.eps, model.hidden, from);
        add_row(from, to, model.hidden, to);
    }

    void embed(int64_t token) {
        float* to = residual + token * model.hidden;
        const int64_t row = token_ids[token] - first_token;
        if (row < 0 || row >= model.embedding.n) return (void)std::fill_n(to, model.hidden, 0.f);
        read_row(model.embedding.packed(), row, to);
        if (numbers.embedding_scale != 1.f)
            for (int64_t i = 0; i < model.hidden; ++i) to[i] *= numbers.embedding_scale;
    }

    // One KV head of one token: norms, rotation, and the key and value into the cache.
    void rotate_and_store(const Layer& layer, int64_t token, int64_t head) {
        const AttentionPlan& plan = plans.at(layer.window);
        const int64_t group = model.query_heads / model.kv_heads, dim = model.head_dim;
        float *row = qkv + token * qkv_size, *key = row + q_size + head * dim, *value = key + kv_size;
        const int64_t position = plan.positions[token];
        const float* angles = layer.rotary + position * layer.rotary_dim;
        for (int64_t i = head * group; i < (head + 1) * group; ++i) {
            float* q = row + i * dim;
            if (layer.q_norm) rms_norm_row(q, layer.q_norm, numbers.eps, dim, q);
            rotate_head(q, angles, layer.rotary_dim / 2);
        }
        if (layer.k_norm) rms_norm_row(key, layer.k_norm, numbers.eps, dim, key);
        rotate_head(key, angles, layer.rotary_dim / 2);
        store_packed_key(cache(layer), slots[token], head, key);
        store_packed_value(cache(layer), slots[token], head, value);
    }

    // The matrices of one phase, each cut by outputs into so many units that a slow thread does not hold up the rest.
    struct Product {
        const Matrix* matrix;
        float* out;
    };

    void multiply(int& cursor, const Input& input, std::initializer_list<Product> products, int64_t stride) {
        const Product* first = products.begin();
        phases.run(cursor, int64_t(products.size()) * cuts, [&](int64_t unit) {
            const Product& p = first[unit / cuts];
            input.multiply(*p.matrix, exact(), p.out, stride, int(unit % cuts), int(cuts));
        });
    }

    // f(row) for all rows, some at a time.
    template <class F>
    void each_row(int& cursor, int64_t rows, const F& f) {
        const int64_t units = std::min(rows, cuts);
        phases.run(cursor, units, [&](int64_t unit) {
            const Range part = split(rows, int(unit), int(units));
            for (int64_t r = part.begin; r < part.end; ++r) f(r);
        });
    }

    // What this rank has computed of `values` [num_tokens][hidden] becomes the whole.
    void sum(int& cursor, float* values) {
        if (sum_over_ranks) phases.run(cursor, 1, [&](int64_t) { sum_over_ranks(values, num_tokens * model.hidden); });
    }

    void attention(const Layer& layer, int& cursor, int thread) {
        multiply(cursor, qkv_input, {{&layer.q, qkv}, {&layer.k, qkv + q_size}, {&layer.v, qkv + q_size + kv_size}},
                 qkv_size);
        each_row(cursor, num_tokens * model.kv_heads,
                 [&](int64_t i) { rotate_and_store(layer, i / model.kv_heads, i % model.kv_heads); });
        const AttentionPlan& plan = plans.at(layer.window);
        const AttentionParams params{numbers.attention_scale, numbers.attention_softcap, nullptr};
        phases.run(cursor, int64_t(plan.items.size()), [&](int64_t item) {
            attend(plan, item, cache(layer), params, qkv, qkv_size, attended, q_size, scratch + thread * scratch_floats,
                   partials);
        });
        if (!plan.merged_tokens.empty())
            each_row(cursor, int64_t(plan.merged_tokens.size()),
                     [&](int64_t i) { merge_splits(plan, i, cache(layer), partials, attended, q_size); });
        each_row(cursor, num_tokens, [&](int64_t r) { out_input.pack(r, attended + r * q_size); });
        multiply(cursor, out_input, {{&layer.out, branch}}, model.hidden);
        sum(cursor, branch);
    }

    void mlp(const Layer& layer, int& cursor) {
        const int64_t inner = model.inner;
        multiply(cursor, mlp_input, {{&layer.gate, gate_up}, {&layer.up, gate_up + inner}}, 2 * inner);
        each_row(cursor, num_tokens, [&](int64_t r) {
            float* row = gate_up + r * 2 * inner;
            gate_row(Gate(model.gate), row, row + inner, inner, row);
            down_input.pack(r, row);
        });
        multiply(cursor, down_input, {{&layer.down, branch}}, model.hidden);
        sum(cursor, branch);
    }

    void run_layers(int& cursor, int thread) {
        each_row(cursor, num_tokens, [&](int64_t r) { embed(r); });
        sum(cursor, residual);
        each_row(cursor, num_tokens, [&](int64_t r) { norm_and_pack(r, layers[0].attention_norm, qkv_input, r); });
        for (size_t i = 0; i < layers.size(); ++i) {
            const Layer& layer = layers[i];
            attention(layer, cursor, thread);
            each_row(cursor, num_tokens, [&](int64_t r) {
                add_branch(layer.post_attention_norm, r);
                norm_and_pack(r, layer.mlp_norm, mlp_input, r);
            });
            mlp(layer, cursor);
            each_row(cursor, num_tokens, [&](int64_t r) {
                add_branch(layer.post_mlp_norm, r);
                if (i + 1 < layers.size()) norm_and_pack(r, layers[i + 1].attention_norm, qkv_input, r);
            });
        }
    }

    // Logits after the tokens `lines`, from the residual that run_layers left.
    void run_head(int& cursor, const int64_t* lines, int64_t count, float* logits) {
        each_row(cursor, count, [&](int64_t r) { norm_and_pack(lines[r], model.final_norm, head_input, r); });
        multiply(cursor, head_input, {{&model.head, logits}}, model.vocab);
        if (numbers.logit_softcap == 0) return;
        const Vec cap = splat(numbers.logit_softcap);
        each_row(cursor, count, [&](int64_t r) {
            for (int64_t i = 0; i < model.vocab; i += kLanes) {
                float* at = logits + r * model.vocab + i;
                store_part(at, cap * tanh(load_part(at, model.vocab - i) / cap), model.vocab - i);
            }
        });
    }

    void find_slots(const Sequences& s) {
        slots.resize(num_tokens);
        for (int64_t i = 0; i < s.count; ++i)
            for (int64_t t = s.query_start[i]; t < s.query_start[i + 1]; ++t) {
                const int64_t position = s.context_lens[i] - s.query_start[i + 1] + t;
                const int64_t block = s.tables[i * s.table_stride + position / model.block_size];
                slots[t] = block * model.block_size + position % model.block_size;
            }
    }

    void reserve(int threads) {
        cuts = threads == 1 ? 1 : 4 * threads;
        scratch_floats = 0;
        int64_t shared = 0;
        for (const auto& [window, plan] : plans) {
            scratch_floats = std::max(scratch_floats, attention_scratch(plan, cache(layers[0])));
            shared = std::max(shared, partial_floats(plan, cache(layers[0])));
        }
        residual = residual_.floats(num_tokens * model.hidden);
        qkv = qkv_.floats(num_tokens * qkv_size);
        attended = attended_.floats(num_tokens * q_size);
        branch = branch_.floats(num_tokens * model.hidden);
        gate_up = gate_up_.floats(num_tokens * 2 * model.inner);
        scratch = scratch_.floats(threads * scratch_floats);
        partials = partials_.floats(shared);
        qkv_input.reserve(num_tokens, model.hidden);
        out_input.reserve(num_tokens, q_size);
        mlp_input.reserve(num_tokens, model.hidden);
        down_input.reserve(num_tokens, model.inner);
    }

public:
    Decoder(const Model& m, const Numbers& n, const Layer* l)
        : model(m), numbers(n), layers(l, l + m.num_layers), q_size(m.query_heads * m.head_dim),
          kv_size(m.kv_heads * m.head_dim), qkv_size(q_size + 2 * kv_size), phases(kPhasesPerLayer * m.num_layers + kOtherPhases) {
        for (const Layer& layer : layers) {
            for (const Matrix* w : {&layer.q, &layer.k, &layer.v}) qkv_input.add(*w, exact());
            for (const Matrix* w : {&layer.gate, &layer.up}) mlp_input.add(*w, exact());
            out_input.add(layer.out, exact());
            down_input.add(layer.down, exact());
        }
        head_input.add(model.head, exact());
    }

    void set_ranks(int64_t first, SumOverRanks sum) { first_token = first, sum_over_ranks = sum; }

    void step(const int32_t* tokens, const Sequences& sequences, const int64_t* lines, int64_t count, float* logits) {
        num_tokens = sequences.query_start[sequences.count];
        token_ids = tokens;
        for (const Layer& layer : layers) plans[layer.window];
        for (auto& [window, plan] : plans) plan.build(sequences, window, model.query_heads, cache(layers[0]));
        phases.reset();
        find_slots(sequences);
        reserve(num_threads());
        normed = normed_.floats(std::max(num_tokens, count) * model.hidden);
        head_input.reserve(count, model.hidden);
        join([&](int thread) {
            int cursor = 0;
            run_layers(cursor, thread);
            if (count) run_head(cursor, lines, count, logits);
        });
    }

    // The residual stream after the last layer of the last step.
    void hidden(float* out) const { std::memcpy(out, residual, num_tokens * model.hidden * sizeof(float)); }

    void logits(const int64_t* lines, int64_t count, float* out) {
        normed = normed_.floats(count * model.hidden);
        head_input.reserve(count, model.hidden);
        phases.reset();
        join([&](int) {
            int cursor = 0;
            run_head(cursor, lines, count, out);
        });
    }
};

}  // namespace
}  // namespace octavo

OCTAVO_API int64_t octavo_decoder_new(const void* model, const void* numbers, const void* layers) {
    using namespace octavo;
    return (int64_t) new Decoder(*(const Model*)model, *(const Numbers*)numbers, (const Layer*)layers);
}

OCTAVO_API void octavo_decoder_free(int64_t decoder) { delete (octavo::Decoder*)decoder; }

// This model is one rank's share: its embedding begins with token `first_token`, and `sum` joins what the ranks compute.
OCTAVO_API void octavo_decoder_set_ranks(int64_t decoder, int64_t first_token, octavo::SumOverRanks sum) {
    ((octavo::Decoder*)decoder)->set_ranks(first_token, sum);
}

// Arrays as in octavo.step; lines: [count] flat tokens after which logits [count, vocab] are wanted.
OCTAVO_API void octavo_decoder_step(int64_t decoder, const int32_t* token_ids, int64_t num_sequences,
                                    const int32_t* query_start, const int32_t* context_lens, const int32_t* tables,
                                    int64_t table_stride, const int64_t* lines, int64_t count, float* logits) {
    using namespace octavo;
    ((Decoder*)decoder)
        ->step(token_ids, {num_sequences, query_start, context_lens, tables, table_stride}, lines, count, logits);
}

// [tokens of the last step, hidden] before the final norm.
OCTAVO_API void octavo_decoder_hidden(int64_t decoder, float* out) { ((octavo::Decoder*)decoder)->hidden(out); }

// Logits after other tokens of the last step.
OCTAVO_API void octavo_decoder_logits(int64_t decoder, const int64_t* lines, int64_t count, float* logits) {
    ((octavo::Decoder*)decoder)->logits(lines, count, logits);
}
