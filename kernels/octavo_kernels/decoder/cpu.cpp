// A whole step of a decoder-only transformer in one call: embedding, layers, paged attention, final norm, logits.
//
// It composes the ops' functions inside one region, as phases: a new one wherever a thread reads what another wrote.
// With few tokens a phase is one op, its matrices cut by outputs (`Together`). With many, a phase is a run of tokens on
// their way from one attention to the next (`Apart`): what lies between stays in the cache of the core that made it.
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

// Tokens that a thread takes through the matrices at once, and the least for which that pays: each thread then reads all
// weights. 48 x 12 KiB of SmolLM2's widest rows fit the L2 cache beside the weights. AMX unpacks weights anew for each run.
constexpr int64_t kRunTokens = OCTAVO_ISA >= 3 ? 256 : 48, kLeastTokens = 16;

// Adds up the values that all ranks of a model have at this point, in place.
using SumOverRanks = void (*)(float* values, int64_t count);

// What lies between the matrices, for some tokens.
struct Workspace {
    Input qkv_input, out_input, mlp_input, down_input;
    float *branch, *gate_up, *normed;  // [tokens][hidden], [tokens][2 inner], [tokens][hidden]

    void reserve(const Model& model, int64_t tokens) {
        branch = branch_.floats(tokens * model.hidden);
        gate_up = gate_up_.floats(tokens * 2 * model.inner);
        normed = normed_.floats(tokens * model.hidden);
        qkv_input.reserve(tokens, model.hidden);
        out_input.reserve(tokens, model.query_heads * model.head_dim);
        mlp_input.reserve(tokens, model.hidden);
        down_input.reserve(tokens, model.inner);
    }

private:
    Buffer branch_, gate_up_, normed_;
};

struct Product {
    const Matrix* matrix;
    float* out;
};

using Products = std::initializer_list<Product>;

// Tokens that go through the matrices: consecutive ones of a step, or those that a list names.
struct Tokens {
    int64_t first, count;
    const int64_t* list;  // or null

    int64_t operator[](int64_t i) const { return list ? list[first + i] : first + i; }
    Tokens part(Range range) const { return {first + range.begin, range.end - range.begin, list}; }
};

// All tokens of a step, each op shared out among the threads, as a phase of its own.
struct Together {
    Phases& phases;
    int& cursor;
    int64_t cuts;  // units of a phase whose work can be cut anywhere
    Tokens tokens;
    SumOverRanks sum_over_ranks;

    // f(i) for i < count, some at a time.
    template <class F>
    void each(int64_t count, const F& f) const {
        const int64_t units = std::min(count, cuts);
        phases.run(cursor, units, [&](int64_t unit) {
            const Range part = split(count, int(unit), int(units));
            for (int64_t i = part.begin; i < part.end; ++i) f(i);
        });
    }

    // Each matrix is cut by outputs into so many units that a slow thread does not hold up the rest.
    void multiply(const Input& input, bool exact, Products products, int64_t stride) const {
        const Product* first = products.begin();
        phases.run(cursor, int64_t(products.size()) * cuts, [&](int64_t unit) {
            const Product& p = first[unit / cuts];
            input.multiply(*p.matrix, exact, p.out, stride, int(unit % cuts), int(cuts));
        });
    }

    // What this rank has computed of `values` becomes the whole.
    void sum(float* values, int64_t count) const {
        if (sum_over_ranks) phases.run(cursor, 1, [&](int64_t) { sum_over_ranks(values, count); });
    }
};

// A run of tokens, on one thread.
struct Apart {
    Tokens tokens;

    template <class F>
    void each(int64_t count, const F& f) const {
        for (int64_t i = 0; i < count; ++i) f(i);
    }
    void multiply(const Input& input, bool exact, Products products, int64_t stride) const {
        for (const Product& p : products) input.multiply(*p.matrix, exact, p.out, stride, 0, 1);
    }
    void sum(float*, int64_t) const {}
};

class Decoder {
    const Model model;
    const Numbers numbers;
    const std::vector<Layer> layers;
    const int64_t q_size, kv_size, qkv_size;

    std::map<int64_t, AttentionPlan> plans;  // by window
    Buffer residual_, qkv_, attended_, normed_, scratch_, partials_;
    Input head_input;
    Workspace shared;
    std::vector<std::unique_ptr<Workspace>> own;  // of each thread
    std::vector<int64_t> slots;                   // per token, where its key and value go
    int64_t num_tokens = 0, scratch_floats = 0;
    float *residual, *qkv, *attended, *normed, *scratch, *partials;
    const int32_t* token_ids;
    int64_t cuts = 1;
    Tokens finished = {};  // that pass through the last layer's matrices, behind its attention
    Phases phases;
    int64_t first_token = 0;  // of the embedding's rows, where a rank has a part of them
    SumOverRanks sum_over_ranks = nullptr;

    bool exact() const { return model.exact != 0; }

    KvCache cache(const Layer& layer) const {
        const KvForm form = model.kv_is_int8 ? KvForm::int8 : KvForm::packed;
        return {model.kv_is_bf16 != 0, form, model.block_size, model.kv_heads, model.head_dim, model.block_bytes,
                layer.k_cache, layer.v_cache};
    }

    // A token's residual is normed into `to` and becomes row `row` of the next matrices' input.
    void norm_and_pack(int64_t token, const float* weight, float* to, const Input& input, int64_t row) const {
        rms_norm_row(residual + token * model.hidden, weight, numbers.eps, model.hidden, to);
        input.pack(row, to);
    }

    // The branch (post-normed where the model says so) joins the token's residual.
    void add_branch(float* branch, const float* post_norm, int64_t token) const {
        float* to = residual + token * model.hidden;
        if (post_norm) rms_norm_row(branch, post_norm, numbers.eps, model.hidden, branch);
        add_row(branch, to, model.hidden, to);
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

    Together together(int& cursor, Tokens tokens) { return {phases, cursor, cuts, tokens, sum_over_ranks}; }

    // How many runs of tokens go apart; 0 where all go together.
    int64_t runs_of(int64_t tokens) const {
        const int64_t threads = num_threads();
        if (sum_over_ranks || tokens < threads * kLeastTokens) return 0;
        return ((tokens + kRunTokens - 1) / kRunTokens + threads - 1) / threads * threads;
    }

    template <class Way>
    void enter(const Way& way, Workspace& w) {
        const int64_t first = way.tokens.first, count = way.tokens.count, hidden = model.hidden;
        way.each(count, [&](int64_t i) { embed(first + i); });
        way.sum(residual + first * hidden, count * hidden);
        way.each(count, [&](int64_t i) {
            norm_and_pack(first + i, layers[0].attention_norm, w.normed + i * hidden, w.qkv_input, i);
        });
    }

    // Queries, and keys and values into the cache.
    template <class Way>
    void before_attention(const Layer& layer, const Way& way, const Workspace& w) {
        const int64_t first = way.tokens.first, count = way.tokens.count, heads = model.kv_heads;
        float *q = qkv + first * qkv_size, *k = q + q_size, *v = k + kv_size;
        way.multiply(w.qkv_input, exact(), {{&layer.q, q}, {&layer.k, k}, {&layer.v, v}}, qkv_size);
        way.each(count * heads, [&](int64_t i) { rotate_and_store(layer, first + i / heads, i % heads); });
    }

    void attention(const Layer& layer, int& cursor, int thread) {
        const AttentionPlan& plan = plans.at(layer.window);
        const AttentionParams params{numbers.attention_scale, numbers.attention_softcap, nullptr};
        phases.run(cursor, int64_t(plan.items.size()), [&](int64_t item) {
            attend(plan, item, cache(layer), params, qkv, qkv_size, attended, q_size, scratch + thread * scratch_floats,
                   partials);
        });
        if (!plan.merged_tokens.empty())
            together(cursor, {}).each(int64_t(plan.merged_tokens.size()), [&](int64_t i) {
                merge_splits(plan, i, cache(layer), partials, attended, q_size);
            });
    }

    // The rest of a layer; `next` is the one that follows, or null.
    template <class Way>
    void after_attention(const Layer& layer, const Layer* next, const Way& way, const Workspace& w) {
        const Tokens& tokens = way.tokens;
        const int64_t count = tokens.count, hidden = model.hidden, inner = model.inner;
        way.each(count, [&](int64_t i) { w.out_input.pack(i, attended + tokens[i] * q_size); });
        way.multiply(w.out_input, exact(), {{&layer.out, w.branch}}, hidden);
        way.sum(w.branch, count * hidden);
        way.each(count, [&](int64_t i) {
            add_branch(w.branch + i * hidden, layer.post_attention_norm, tokens[i]);
            norm_and_pack(tokens[i], layer.mlp_norm, w.normed + i * hidden, w.mlp_input, i);
        });
        way.multiply(w.mlp_input, exact(), {{&layer.gate, w.gate_up}, {&layer.up, w.gate_up + inner}}, 2 * inner);
        way.each(count, [&](int64_t i) {
            float* row = w.gate_up + i * 2 * inner;
            gate_row(Gate(model.gate), row, row + inner, inner, row);
            w.down_input.pack(i, row);
        });
        way.multiply(w.down_input, exact(), {{&layer.down, w.branch}}, hidden);
        way.sum(w.branch, count * hidden);
        way.each(count, [&](int64_t i) {
            add_branch(w.branch + i * hidden, layer.post_mlp_norm, tokens[i]);
            if (next) norm_and_pack(tokens[i], next->attention_norm, w.normed + i * hidden, w.qkv_input, i);
        });
    }

    // From before layer i, or from the embedding, to its attention; after the last layer, to the end.
    template <class Way>
    void go_to_attention(size_t i, const Way& way, Workspace& w) {
        const Layer* layer = i < layers.size() ? &layers[i] : nullptr;
        if (i == 0) enter(way, w);
        else after_attention(layers[i - 1], layer, way, w);
        if (layer) before_attention(*layer, way, w);
    }

    void run_layers(int& cursor, int thread) {
        for (size_t i = 0; i <= layers.size(); ++i) {
            const Tokens tokens = i < layers.size() ? Tokens{0, num_tokens, nullptr} : finished;
            if (tokens.count == 0) break;  // a part of a prompt that nothing is drawn after
            const int64_t runs = runs_of(tokens.count);
            if (runs == 0) go_to_attention(i, together(cursor, tokens), shared);
            else
                phases.run(cursor, runs, [&](int64_t run) {
                    const Apart way{tokens.part(split(tokens.count, int(run), int(runs), 4))};
                    own[thread]->reserve(model, way.tokens.count);
                    go_to_attention(i, way, *own[thread]);
                });
            if (i < layers.size()) attention(layers[i], cursor, thread);
        }
    }

    // Logits after the tokens `lines`, from the residual that run_layers left.
    void run_head(int& cursor, const int64_t* lines, int64_t count, float* logits) {
        const Together way = together(cursor, {});
        way.each(count, [&](int64_t i) {
            norm_and_pack(lines[i], model.final_norm, normed + i * model.hidden, head_input, i);
        });
        way.multiply(head_input, exact(), {{&model.head, logits}}, model.vocab);
        if (numbers.logit_softcap == 0) return;
        const Vec cap = splat(numbers.logit_softcap);
        way.each(count, [&](int64_t r) {
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
        int64_t partial = 0;
        for (const auto& [window, plan] : plans) {
            scratch_floats = std::max(scratch_floats, attention_scratch(plan, cache(layers[0])));
            partial = std::max(partial, partial_floats(plan, cache(layers[0])));
        }
        residual = residual_.floats(num_tokens * model.hidden);
        qkv = qkv_.floats(num_tokens * qkv_size);
        attended = attended_.floats(num_tokens * q_size);
        scratch = scratch_.floats(threads * scratch_floats);
        partials = partials_.floats(partial);
        const int64_t together = runs_of(num_tokens) == 0 ? num_tokens : runs_of(finished.count) == 0 ? finished.count : 0;
        shared.reserve(model, together);
        while (int(own.size()) < threads) own.push_back(new_workspace());
    }

    void want_inputs(Workspace& w) const {
        for (const Layer& layer : layers) {
            for (const Matrix* m : {&layer.q, &layer.k, &layer.v}) w.qkv_input.add(*m, exact());
            for (const Matrix* m : {&layer.gate, &layer.up}) w.mlp_input.add(*m, exact());
            w.out_input.add(layer.out, exact());
            w.down_input.add(layer.down, exact());
        }
    }

    std::unique_ptr<Workspace> new_workspace() const {
        auto w = std::make_unique<Workspace>();
        want_inputs(*w);
        return w;
    }

public:
    Decoder(const Model& m, const Numbers& n, const Layer* l)
        : model(m), numbers(n), layers(l, l + m.num_layers), q_size(m.query_heads * m.head_dim),
          kv_size(m.kv_heads * m.head_dim), qkv_size(q_size + 2 * kv_size), phases(kPhasesPerLayer * m.num_layers + kOtherPhases) {
        want_inputs(shared);
        head_input.add(model.head, exact());
    }

    void set_ranks(int64_t first, SumOverRanks sum) { first_token = first, sum_over_ranks = sum; }

    void step(const int32_t* tokens, const Sequences& sequences, bool whole, const int64_t* lines, int64_t count,
              float* logits) {
        num_tokens = sequences.query_start[sequences.count];
        token_ids = tokens;
        finished = whole ? Tokens{0, num_tokens, nullptr} : Tokens{0, count, lines};
        for (const Layer& layer : layers) plans[layer.window];
        for (auto& [window, plan] : plans) plan.build(sequences, window, model.query_heads, cache(layers[0]));
        phases.reset();
        find_slots(sequences);
        reserve(num_threads());
        normed = normed_.floats(count * model.hidden);
        head_input.reserve(count, model.hidden);
        join([&](int thread) {
            int cursor = 0;
            run_layers(cursor, thread);
            if (count) run_head(cursor, lines, count, logits);
        });
    }

    // The residual stream after the last layer of the last step, which must have been whole; likewise for logits().
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

// Arrays as in octavo.step; lines: [count] flat tokens, none of them twice, after which logits [count, vocab] are wanted.
// whole: whether the other tokens pass through the last layer, too.
OCTAVO_API void octavo_decoder_step(int64_t decoder, const int32_t* token_ids, int64_t num_sequences,
                                    const int32_t* query_start, const int32_t* context_lens, const int32_t* tables,
                                    int64_t table_stride, int64_t whole, const int64_t* lines, int64_t count,
                                    float* logits) {
    using namespace octavo;
    const Sequences sequences{num_sequences, query_start, context_lens, tables, table_stride};
    ((Decoder*)decoder)->step(token_ids, sequences, whole != 0, lines, count, logits);
}

// [tokens of the last step, hidden] before the final norm.
OCTAVO_API void octavo_decoder_hidden(int64_t decoder, float* out) { ((octavo::Decoder*)decoder)->hidden(out); }

// Logits after other tokens of the last step.
OCTAVO_API void octavo_decoder_logits(int64_t decoder, const int64_t* lines, int64_t count, float* logits) {
    ((octavo::Decoder*)decoder)->logits(lines, count, logits);
}
