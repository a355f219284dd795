// A whole step of a decoder-only transformer in one call: embedding, layers, paged attention, final norm, logits.
//
// It calls the ops' functions inside one parallel region, in phases. A phase is the work between two barriers: a new
// one begins wherever a thread reads what another one wrote. Between two attentions there are three strategies
// (ways.h):
//   SharedRows     one phase normalises and packs the input rows, the next multiplies; matrices are cut by outputs
//   RedundantRows  at most 3 tokens: each thread packs all input rows itself, which saves the first of these phases
//   RunPerThread   long prompts: one phase in which each thread takes a run of tokens through all matrices, so that
//                  their activations stay in its core's cache; not of mixtures, which would have few rows per expert
// Activations are float32 between the matrices; each matrix packs them as its format requires (linear/cpu.h).
#include <atomic>
#include <memory>
#include <vector>

#include "decoder/delta_net.h"
#include "decoder/layer_math.h"
#include "paged_attention/cpu.h"
#include "rotary/cpu.h"

namespace octavo {
namespace {

constexpr int64_t kPhasesPerLayer = 30, kOtherPhases = 7;
constexpr char kStay = 1, kLeave = 2;

OCTAVO_INLINE void clip_row(float largest, int64_t count, float* x) {
    for (int64_t i = 0; i < count; i += kLanes)
        store_part(x + i, max(min(load_part(x + i, count - i), splat(largest)), splat(-largest)), count - i);
}

class Decoder : LayerMath {
    const Latent* const latent;  // of the first layer, or null; those of all layers are alike
    const int64_t q_size, kv_size, qkv_size;  // the last: with latent attention, of the queries that attend to records;
                                              // with a gate, that too, behind the values
    const Widths widths;
    StateRows state_rows = {};  // of the next step
    StepStates states_of_step;

    std::vector<AttentionPlan> plans;  // of each window and group of layers (Layer::plan)
    Buffer residual_, qkv_, attended_, normed_, scratch_, partials_, first_, own_queries_;
    Input head_input;
    Workspace shared, last;  // used by all threads; `last` for the tokens that pass through the last layer's matrices
    std::vector<std::unique_ptr<Workspace>> own;  // one per thread
    std::vector<int64_t> slots;                   // [groups][tokens] cache slot of each token's key and value
    int64_t num_tokens = 0, num_sequences = 0, groups = 1, scratch_floats = 0;
    float *residual, *qkv, *attended, *normed, *scratch, *partials;
    float *first, *own_queries;  // of latent attention (LatentRows)
    const int32_t* token_ids;
    int threads = 1;  // for which the step's memory is laid out
    int64_t cuts = 1;
    Tokens finished = {};  // those that pass through the last layer's matrices, after its attention
    Phases phases;
    const int32_t *hurry = nullptr, *next_hurry = nullptr;  // of this step and the next, or null: it runs to its end
    std::vector<std::atomic<char>> verdicts;                // of each layer, and the end: whether threads go on to it
    const int64_t* adapting = nullptr;               // of the next step: an Adapter or null for each of its sequences
    std::vector<const Adapter*> adapters;            // of each token; empty where none has one
    const Mixture* const mixture;  // of the first layer that has one, or null; those of all layers are alike
    int64_t first_token = 0;  // token of the embedding's first row, if a rank has only some rows
    SumOverRanks sum_over_ranks = nullptr;

    KvCache cache(const Layer& layer) const {
        const KvForm form = model.kv_is_int8 ? KvForm::int8 : KvForm::packed;
        return {model.kv_is_bf16 != 0, form, model.block_size, model.kv_heads, model.head_dim, model.block_bytes,
                layer.k_cache, layer.v_cache, latent != nullptr};
    }

    float* residual_of(int64_t token) const { return residual + token * model.hidden; }

    void embed(int64_t token) {
        float* to = residual + token * model.hidden;
        const int64_t row = token_ids[token] - first_token;
        if (row < 0 || row >= model.embedding.n) return (void)std::fill_n(to, model.hidden, 0.f);
        read_row(model.embedding.packed(), row, to);
        if (numbers.embedding_scale != 1.f) scale_row(numbers.embedding_scale, model.hidden, to);
    }

    // The rest of an embedding, once it is the sum over all ranks.
    void finish_embedding(int64_t token) {
        float* x = residual_of(token);
        const int64_t position = plans[0].positions[token];
        if (model.positions) add_row(model.positions + position * model.hidden, x, model.hidden, x);
        norm(x, model.embedding_norm, model.embedding_norm_bias, x);
    }

    // Of one token's queries and keys, over all heads.
    void norm_all_heads(const Layer& layer, int64_t token) {
        float *q = qkv + token * qkv_size, *k = q + q_size;
        rms_norm_row(q, layer.q_norm, numbers.eps, q_size, q);
        rms_norm_row(k, layer.k_norm, numbers.eps, kv_size, k);
    }

    // One KV head of one token: norms, rotation, and storing key and value.
    void rotate_and_store(const Layer& layer, int64_t token, int64_t head) {
        const AttentionPlan& plan = plans[layer.plan];
        const int64_t group = model.query_heads / model.kv_heads, dim = model.head_dim;
        const int64_t slot = slots[layer.group * num_tokens + token];
        float *row = qkv + token * qkv_size, *key = row + q_size + head * dim, *value = key + kv_size;
        const int64_t position = plan.positions[token];
        const float* angles = layer.rotary + position * layer.rotary_dim;
        for (int64_t i = head * group; i < (head + 1) * group; ++i) {
            float* q = row + i * dim;
            if (numbers.qkv_clip != 0) clip_row(numbers.qkv_clip, dim, q);
            if (layer.q_norm && !model.wide_norms) rms_norm_row(q, layer.q_norm, numbers.eps, dim, q);
            rotate_head(q, angles, layer.rotary_dim / 2);
            if (model.query_scales) scale_row(model.query_scales[position], dim, q);
        }
        if (numbers.qkv_clip != 0) clip_row(numbers.qkv_clip, dim, key), clip_row(numbers.qkv_clip, dim, value);
        if (layer.k_norm && !model.wide_norms) rms_norm_row(key, layer.k_norm, numbers.eps, dim, key);
        rotate_head(key, angles, layer.rotary_dim / 2);
        store_packed_key(cache(layer), slot, head, key);
        store_packed_value(cache(layer), slot, head, value);
    }

    // Outputs of a layer's first matrices, and the input of the one after attention or what stands in its place.
    int64_t row_of(const Layer& layer) const {
        if (!layer.recurrent) return qkv_size;
        return layer.q.n + layer.k.n + layer.v.n + layer.z.n + layer.b.n + layer.a.n;
    }
    const Input& mixed(const Layer& layer, const Workspace& w) const {
        return layer.recurrent ? w.mixed_input : w.out_input;
    }

    SharedRows shared_rows(int& cursor, Tokens tokens, Workspace& shared, Workspace& own) {
        return {phases, cursor, cuts, tokens, sum_over_ranks, shared, own, model.inner};
    }

    // The number of runs for RunPerThread; 0 if the tokens are too few for it.
    int64_t runs_of(int64_t tokens) const {
        if (sum_over_ranks || mixture || latent || tokens < threads * kLeastTokens) return 0;
        return ((tokens + kRunTokens - 1) / kRunTokens + threads - 1) / threads * threads;
    }

    template <class Way>
    void enter(const Way& way) {
        const int64_t first = way.tokens.first, count = way.tokens.count;
        way.each(count, [&](int64_t i) { embed(first + i); });
        way.sum(residual_of(first), count * model.hidden);
        if (model.positions || model.embedding_norm)
            way.each(count, [&](int64_t i) { finish_embedding(first + i); });
    }

    // The residual of the strategy's token i after a layer's attention, and after the layer. In RedundantRows it stays
    // in each thread's own memory until no thread reads the previous residual any more.
    template <class Way>
    float* after_attention(const Way& way, const Layer& layer, int64_t i) const {
        const int64_t at = i * model.hidden;
        float *x = residual_of(way.tokens[i]), *to = Way::few ? way.own.residual + at : x;
        add_branch(x, way.shared.attended + at, layer.post_attention_norm, way.own.normed + at, to);
        return to;
    }
    template <class Way>
    const float* after_layer(const Way& way, const Layer& layer, int64_t i) const {
        const int64_t at = i * model.hidden;
        float* x = Way::few ? after_attention(way, layer, i) : residual_of(way.tokens[i]);
        add_branch(x, way.shared.fed + at, layer.post_mlp_norm, way.own.normed + at, x);
        return x;
    }

    // Computes queries, and stores keys and values. `before`: the layer whose output is the input, or null (embedding).
    template <class Way>
    void before_attention(const Layer* before, const Layer& layer, const Way& way) {
        const int64_t first = way.tokens.first, count = way.tokens.count, heads = model.kv_heads, hidden = model.hidden;
        Product products[] = {{&layer.q, 0}, {&layer.k, 0}, {&layer.v, 0}, {&layer.z, 0}, {&layer.b, 0}, {&layer.a, 0}};
        for (int i = 1; i < 6; ++i) products[i].column = products[i - 1].column + products[i - 1].matrix->n;
        const int64_t row = row_of(layer);
        const Workspace& own = way.own;
        const auto prepare = [&](int64_t i) {
            const float* x = before ? after_layer(way, *before, i) : residual_of(first + i);
            norm_and_pack(x, layer.attention_norm, layer.attention_norm_bias, own.normed + i * hidden, own.qkv_input, i);
        };
        const auto outputs = {layer.q.n, layer.k.n, layer.v.n, layer.z.n, layer.b.n, layer.a.n};
        multiply(way, layer, kQkvSite, outputs, own.qkv_input, prepare, [&](size_t i, Range blocks) {
            float* to = qkv + first * row + products[i].column + blocks.begin * 16;
            if (i < 3) product(way, layer, Part(kQ + i), *products[i].matrix, own.qkv_input, to, row, blocks);
            else own.qkv_input.multiply(*products[i].matrix, precision(), to, row, blocks);
        });
        if (layer.recurrent) {
            if (Way::few && before) way.each(count, [&](int64_t i) { settle(way, *before, i); });
            return;
        }
        if (model.wide_norms) way.each(count, [&](int64_t i) { norm_all_heads(layer, first + i); });
        way.each(count * heads, [&](int64_t i) {
            rotate_and_store(layer, first + i / heads, i % heads);
            if (Way::few && before && i % heads == 0) settle(way, *before, i / heads);
        });
    }

    LatentRows latent_rows() const {
        const int64_t width = layers[0].q.n + model.head_dim, rotated = model.head_dim - latent->size;
        return {precision(), model.query_heads, rotated, first, width, own_queries, qkv};
    }

    // As before_attention(), where what is stored is one record for all heads.
    template <class Way>
    void before_latent_attention(const Layer* before, const Layer& layer, const Way& way) {
        const int64_t begin = way.tokens.first, count = way.tokens.count, hidden = model.hidden;
        const LatentRows rows = latent_rows();
        const Latent& l = *layer.latent;
        const Workspace& own = way.own;
        const auto prepare = [&](int64_t i) {
            const float* x = before ? after_layer(way, *before, i) : residual_of(begin + i);
            norm_and_pack(x, layer.attention_norm, layer.attention_norm_bias, own.normed + i * hidden, own.qkv_input, i);
        };
        way.multiply({layer.q.n, layer.k.n}, prepare, [&](size_t i, Range blocks) {
            float* to = first + begin * rows.first_stride + (i ? layer.q.n : 0) + blocks.begin * 16;
            own.qkv_input.multiply(i ? layer.k : layer.q, precision(), to, rows.first_stride, blocks);
        });
        make_queries(rows, l, way);
        way.each(count, [&](int64_t i) {
            rotate_and_store(layer, rows, begin + i);
            if (Way::few && before) settle(way, *before, i);
        });
    }

    // The rotated part of one token's queries, and its record.
    void rotate_and_store(const Layer& layer, const LatentRows& rows, int64_t token) {
        const Latent& l = *layer.latent;
        const int64_t position = plans[layer.plan].positions[token], rotated = rows.rotated;
        const float* angles = layer.rotary + position * layer.rotary_dim;
        for (int64_t head = 0; head < rows.heads; ++head) {
            float* query = rows.attending(l, token, head);
            std::copy_n(rows.query(l, token, head) + l.content, rotated, query);
            rotate_head(query, angles, rotated / 2);
            if (model.query_scales) scale_row(model.query_scales[position], model.head_dim, query);
        }
        thread_local Buffer room;
        float *stored = rows.record(l, token), *record = room.floats(model.head_dim);
        std::copy_n(stored + l.size, rotated, record);
        rotate_head(record, angles, rotated / 2);
        rms_norm_row(stored, l.kv_norm, *l.eps, l.size, record + rotated);
        store_packed_value(cache(layer), slots[layer.group * num_tokens + token], 0, record);
    }

    // RedundantRows: copies the residual that this thread computed in its own memory to the shared one.
    template <class Way>
    void settle(const Way& way, const Layer& layer, int64_t i) const {
        const float* x = after_layer(way, layer, i);
        if (Way::few) std::memcpy(residual_of(way.tokens[i]), x, model.hidden * sizeof(float));
    }

    void recur(const Layer& layer, int& cursor) {
        const Recurrent& r = *layer.recurrent;
        const SharedRows way = shared_rows(cursor, {}, shared, shared);
        if (r.rule) {  // neighbouring items are other sequences' same head, for those may be of any length
            const DeltaNet net(r, states_of_step, qkv, numbers.eps);
            return way.each(num_sequences * r.rule->key_heads, [&](int64_t i) {
                net.head(i % num_sequences, i / num_sequences, attended);
            });
        }
        const ShortConv conv(r, states_of_step, qkv);
        way.each(num_tokens, [&](int64_t t) { conv.token(t, attended + t * layer.out.k); });
        way.each(num_sequences, [&](int64_t s) { conv.save(s); });
    }

    void attention(const Layer& layer, int& cursor, int thread) {
        const AttentionPlan& plan = plans[layer.plan];
        const AttentionParams params{numbers.attention_scale, numbers.attention_softcap, model.slopes, layer.sinks};
        phases.run(cursor, int64_t(plan.items.size()), [&](int64_t item) {
            attend(plan, item, cache(layer), params, qkv, qkv_size, attended, q_size, scratch + thread * scratch_floats,
                   partials);
        });
        if (!plan.merged_tokens.empty())
            shared_rows(cursor, {}, shared, shared).each(int64_t(plan.merged_tokens.size()), [&](int64_t i) {
                merge_splits(plan, i, cache(layer), params, partials, attended, q_size);
            });
        // now: in RunPerThread other tokens' next queries may come where these gates are before they are packed
        if (layer.z.data)
            shared_rows(cursor, {}, shared, shared).each(num_tokens, [&](int64_t i) {
                float *row = attended + i * q_size, *gate = qkv + i * qkv_size + q_size + 2 * kv_size;
                gate_row(gate, row, q_size, row, [](Vec x) { return sigmoid(x); });
            });
    }

    // The rest of a layer after its attention: output projection and MLP, each added to the residual.
    template <class Way>
    void finish_layer(const Layer& layer, const Way& way) {
        const int64_t count = way.tokens.count, hidden = model.hidden;
        const Workspace &shared = way.shared, &own = way.own;
        if (layer.latent) make_values(latent_rows(), *layer.latent, attended, way);
        const auto pack_attended = [&](int64_t i) {
            mixed(layer, own).pack(i, layer.latent ? shared.latents.values + i * widths.heads
                                                   : attended + way.tokens[i] * layer.out.k);
        };
        multiply(way, layer, kOutSite, {hidden}, mixed(layer, own), pack_attended, [&](size_t, Range blocks) {
            product(way, layer, kOut, layer.out, mixed(layer, own), shared.attended + blocks.begin * 16, hidden, blocks);
        });
        way.sum(shared.attended, count * hidden);
        const auto prepare = [&](int64_t i) {
            const auto pack = [&](const float* x) {
                norm_and_pack(x, layer.mlp_norm, layer.mlp_norm_bias, own.normed + i * hidden, own.mlp_input, i);
            };
            if (model.parallel) pack(residual_of(way.tokens[i])), after_attention(way, layer, i);
            else pack(after_attention(way, layer, i));
        };
        if (layer.mixture) mix(layer, *layer.mixture, way, prepare);
        else feed(layer, way, prepare);
        way.sum(shared.fed, count * hidden);
    }

    // Everything from the end of layer i - 1's attention (or the embedding) to layer i's attention (or the end).
    template <class Way>
    void go_to_attention(size_t i, const Way& way) {
        const Layer* before = i > 0 ? &layers[i - 1] : nullptr;
        if (before) finish_layer(*before, way);
        else enter(way);
        if (i < layers.size() && latent) before_latent_attention(before, layers[i], way);
        else if (i < layers.size()) before_attention(before, layers[i], way);
        else way.each(way.tokens.count, [&](int64_t j) { settle(way, *before, j); });
    }

    // Whether all threads leave the step before a layer: as the first that comes there finds.
    bool leaves_before(size_t layer) {
        if (!hurry) return false;
        char verdict = 0, mine = __atomic_load_n(hurry, __ATOMIC_RELAXED) ? kLeave : kStay;
        return (verdicts[layer].compare_exchange_strong(verdict, mine) ? mine : verdict) == kLeave;
    }

    // Returns whether it came to the end.
    bool run_layers(int& cursor, int thread) {
        for (size_t i = 0; i <= layers.size(); ++i) {
            if (leaves_before(i)) return false;
            const Tokens tokens = i < layers.size() ? Tokens{0, num_tokens, nullptr} : finished;
            if (tokens.count == 0) break;  // part of a prompt after which nothing is sampled
            Workspace& w = i < layers.size() ? shared : last;
            if (const int64_t runs = runs_of(tokens.count)) {
                run_per_thread(cursor, i, thread, tokens, runs);
            } else if (!sum_over_ranks && tokens.count <= kFewTokens) {
                own[thread]->reserve(widths, tokens.count, 0);
                if (mixture) own[thread]->experts.reserve(*mixture, tokens.count);
                if (latent) own[thread]->latents.reserve(*latent, tokens.count);
                go_to_attention(i, RedundantRows{shared_rows(cursor, tokens, w, *own[thread])});
            } else {
                go_to_attention(i, shared_rows(cursor, tokens, w, w));
            }
            if (i == layers.size()) break;
            if (layers[i].recurrent) recur(layers[i], cursor);
            else attention(layers[i], cursor, thread);
        }
        return true;
    }

    void run_per_thread(int& cursor, size_t i, int thread, Tokens tokens, int64_t runs) {
        Workspace& w = *own[thread];
        phases.run(cursor, runs, [&](int64_t run) {
            const Tokens part = tokens.part(split(tokens.count, int(run), int(runs), 4));
            w.reserve(widths, part.count, kRunBlocks * 16);
            w.adapters.build(part, adapters);
            w.reserve_low(part.count, w.adapters.stride);
            go_to_attention(i, RunPerThread{part, w, w, kRunBlocks * 16});
        });
    }

    // Logits after the tokens `token_index`, from the residual that run_layers computed.
    void run_head(int& cursor, const int64_t* token_index, int64_t count, float* logits) {
        const SharedRows way = shared_rows(cursor, {0, count, token_index}, last, last);
        const auto prepare = [&](int64_t i) {
            float* row = normed + i * model.hidden;
            norm(residual_of(token_index[i]), model.final_norm, model.final_norm_bias, row);
            if (numbers.logit_scale != 1.f) scale_row(numbers.logit_scale, model.hidden, row);
            head_input.pack(i, row);
        };
        way.multiply({model.vocab}, prepare, [&](size_t, Range blocks) {
            head_input.multiply(model.head, precision(), logits + blocks.begin * 16, model.vocab, blocks);
        });
        if (numbers.logit_softcap == 0) return;
        const Vec cap = splat(numbers.logit_softcap);
        way.each(count, [&](int64_t r) {
            for (int64_t i = 0; i < model.vocab; i += kLanes) {
                float* at = logits + r * model.vocab + i;
                store_part(at, cap * tanh(load_part(at, model.vocab - i) / cap), model.vocab - i);
            }
        });
    }

    // A step's sequences with the block tables of one group of layers.
    static Sequences in_group(Sequences s, int64_t group) {
        s.tables += group * s.count * s.table_stride;
        return s;
    }

    void plan_attention(const Sequences& all) {
        std::vector<char> built(plans.size());
        for (const Layer& layer : layers)
            if (!layer.recurrent && !built[layer.plan]++)
                plans[layer.plan].build(in_group(all, layer.group), layer.window, model.query_heads, cache(layer));
        slots.resize(groups * num_tokens);
        for (int64_t group = 0; group < groups; ++group) find_slots(in_group(all, group), &slots[group * num_tokens]);
    }

    void find_slots(const Sequences& s, int64_t* found) const {
        for (int64_t i = 0; i < s.count; ++i)
            for (int64_t t = s.query_start[i]; t < s.query_start[i + 1]; ++t) {
                const int64_t position = s.context_lens[i] - s.query_start[i + 1] + t;
                const int64_t block = s.tables[i * s.table_stride + position / model.block_size];
                found[t] = block * model.block_size + position % model.block_size;
            }
    }

    void find_adapters(const Sequences& s) {
        adapters.assign(adapting ? num_tokens : 0, nullptr);
        for (int64_t i = 0; adapting && i < s.count; ++i)
            std::fill(&adapters[s.query_start[i]], adapters.data() + s.query_start[i + 1], (const Adapter*)adapting[i]);
        adapting = nullptr;
    }

    void reserve() {
        while (int(own.size()) < threads) own.push_back(new_workspace());
        if (precision() == Precision::twice && !adapters.empty()) {  // adapters take float32
            shared.want_floats(), last.want_floats();
            for (auto& w : own) w->want_floats();
        }
        cuts = threads == 1 ? 1 : 4 * threads;
        scratch_floats = 0;
        int64_t partial = 0;
        for (const AttentionPlan& plan : plans) {
            scratch_floats = std::max(scratch_floats, attention_scratch(plan, cache(layers[0])));
            partial = std::max(partial, partial_floats(plan, cache(layers[0])));
        }
        residual = residual_.floats(num_tokens * model.hidden);
        int64_t row = qkv_size;
        for (const Layer& layer : layers) row = std::max(row, row_of(layer));
        qkv = qkv_.floats(num_tokens * row);
        attended = attended_.floats(num_tokens * std::max(q_size, widths.mixed));
        first = first_.floats(latent ? num_tokens * latent_rows().first_stride : 0);
        own_queries = own_queries_.floats(latent ? num_tokens * latent->q_b.n : 0);
        scratch = scratch_.floats(threads * scratch_floats);
        partials = partials_.floats(partial);
        const Tokens all{0, runs_of(num_tokens) ? 0 : num_tokens, nullptr};
        const Tokens ends{0, runs_of(finished.count) ? 0 : finished.count, finished.list};
        for (auto [w, tokens] : {std::pair{&shared, all}, std::pair{&last, ends}}) {
            w->reserve(widths, tokens.count, model.inner);
            if (mixture) w->experts.reserve(*mixture, tokens.count);
            if (latent) w->latents.reserve(*latent, tokens.count);
            w->adapters.build(tokens, adapters);
            w->reserve_low(tokens.count, w->adapters.stride);
        }
    }

    void want_inputs(Workspace& w) const {
        for (const Layer& layer : layers) {
            for (const Matrix* m : {&layer.q, &layer.k, &layer.v, &layer.z, &layer.b, &layer.a})
                if (m->data) w.qkv_input.add(*m, precision());
            if (layer.latent) w.latents.add(*layer.latent, precision());
            (layer.recurrent ? w.mixed_input : w.out_input).add(layer.out, precision());
            if (layer.gate.data) w.mlp_input.add(layer.gate, precision());
            if (layer.up.data) w.mlp_input.add(layer.up, precision());
            if (layer.up.data) (layer.mixture ? w.shared_input : w.down_input).add(layer.down, precision());
            if (!layer.mixture) continue;
            w.mlp_input.add(layer.mixture->router, Precision::exact);  // it decides
            w.experts.add(*layer.mixture, precision());
        }
    }

    std::unique_ptr<Workspace> new_workspace() const {
        auto w = std::make_unique<Workspace>();
        want_inputs(*w);
        return w;
    }

public:
    Decoder(const Model& m, const Numbers& n, const Layer* l)
        : LayerMath(m, n, l), latent(layers[0].latent),
          q_size(m.query_heads * m.head_dim), kv_size(m.kv_heads * m.head_dim),
          qkv_size(latent ? q_size : q_size + 2 * kv_size + gate_size()),
          widths{m.hidden, latent ? latent->v_b.n : q_size, inner_of(false), inner_of(true), mixed_width()},
          phases(kPhasesPerLayer * m.num_layers + kOtherPhases), verdicts(m.num_layers + 1), mixture(first_mixture()) {
        for (const Layer& layer : layers) {
            plans.resize(std::max(int64_t(plans.size()), layer.plan + 1));
            groups = std::max(groups, layer.group + 1);
        }
        want_inputs(shared), want_inputs(last);
        head_input.add(model.head, precision());
    }

    void adapt(const int64_t* of_sequences) { adapting = of_sequences; }

    void recur_from(const StateRows& rows) { state_rows = rows; }

    void give_way(const int32_t* flag) { next_hurry = flag; }

    void set_ranks(int64_t first, SumOverRanks sum) { first_token = first, sum_over_ranks = sum; }

    // Returns whether it came to the end.
    bool step(const int32_t* tokens, const Sequences& sequences, bool whole, const int64_t* token_index, int64_t count,
              int64_t kept, float* logits) {
        hurry = next_hurry, next_hurry = nullptr;
        for (auto& verdict : verdicts) verdict = 0;
        num_tokens = sequences.query_start[sequences.count];
        token_ids = tokens;
        finished = whole ? Tokens{0, num_tokens, nullptr} : Tokens{0, count + kept, token_index};
        num_sequences = sequences.count;
        states_of_step.build(sequences, state_rows), state_rows = {};
        plan_attention(sequences);
        phases.reset();
        find_adapters(sequences);
        threads = num_threads();
        reserve();
        normed = normed_.floats(count * model.hidden);
        head_input.reserve(count, model.hidden);
        std::atomic<bool> ended = true;
        join(threads, [&](int thread) {
            int cursor = 0;
            if (!run_layers(cursor, thread)) ended = false;
            else if (count) run_head(cursor, token_index, count, logits);
        });
        return ended;
    }

    // The residual stream after the last layer of the last step, which must have had `whole` set; as for logits().
    void hidden(float* out) const { std::memcpy(out, residual, num_tokens * model.hidden * sizeof(float)); }

    void states(const int64_t* token_index, int64_t count, float* out) const {
        for (int64_t i = 0; i < count; ++i)
            norm(residual_of(token_index[i]), model.final_norm, model.final_norm_bias, out + i * model.hidden);
    }

    void logits(const int64_t* token_index, int64_t count, float* out) {
        normed = normed_.floats(count * model.hidden);
        head_input.reserve(count, model.hidden);
        phases.reset();
        join(threads, [&](int) {
            int cursor = 0;
            run_head(cursor, token_index, count, out);
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

// The model is one rank's share: its embedding begins with token `first_token`, and `sum` adds up the ranks' results.
OCTAVO_API void octavo_decoder_set_ranks(int64_t decoder, int64_t first_token, octavo::SumOverRanks sum) {
    ((octavo::Decoder*)decoder)->set_ranks(first_token, sum);
}

// Gives the next step's sequences the adapters at these addresses (lora/packed.py), null for none.
OCTAVO_API void octavo_decoder_adapt(int64_t decoder, const int64_t* adapters) {
    ((octavo::Decoder*)decoder)->adapt(adapters);
}

// Says which states of recurrent layers the next step reads and writes, as in octavo.step.
OCTAVO_API void octavo_decoder_recur(int64_t decoder, const int32_t* source, int64_t count, const int32_t* saved,
                                     const int32_t* targets) {
    ((octavo::Decoder*)decoder)->recur_from({source, count, saved, targets});
}

// The next step may end before a layer at which *flag is not 0. What it has written to the cache is then written again.
OCTAVO_API void octavo_decoder_give_way(int64_t decoder, const int32_t* flag) {
    ((octavo::Decoder*)decoder)->give_way(flag);
}

// Returns 1, or 0 where the step gave way, so that nothing but its block copies counts.
// Arrays as in octavo.step, tables: [groups of layers][sequences][table_stride]; token_index: [count + kept] different
// flat tokens. After the first `count` logits
// [count, vocab] are computed; octavo_decoder_states() gives the states of the others.
// whole: whether the other tokens pass through the last layer too.
OCTAVO_API int64_t octavo_decoder_step(int64_t decoder, const int32_t* token_ids, int64_t num_sequences,
                                    const int32_t* query_start, const int32_t* context_lens, const int32_t* tables,
                                    int64_t table_stride, int64_t whole, const int64_t* token_index, int64_t count,
                                    int64_t kept, float* logits) {
    using namespace octavo;
    const Sequences sequences{num_sequences, query_start, context_lens, tables, table_stride};
    return ((Decoder*)decoder)->step(token_ids, sequences, whole != 0, token_index, count, kept, logits);
}

// [tokens of the last step, hidden] before the final norm.
OCTAVO_API void octavo_decoder_hidden(int64_t decoder, float* out) { ((octavo::Decoder*)decoder)->hidden(out); }

// [count, hidden] of some tokens of the last step, after the final norm.
OCTAVO_API void octavo_decoder_states(int64_t decoder, const int64_t* token_index, int64_t count, float* out) {
    ((octavo::Decoder*)decoder)->states(token_index, count, out);
}

// Logits after other tokens of the last step.
OCTAVO_API void octavo_decoder_logits(int64_t decoder, const int64_t* token_index, int64_t count, float* logits) {
    ((octavo::Decoder*)decoder)->logits(token_index, count, logits);
}
