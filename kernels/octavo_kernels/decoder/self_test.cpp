// A whole step of a small model against plain loops: matrices, norms, rotation, attention, every kind of cache, both
// activations, threads.
#include <cstdlib>
#include <memory>

#include "activation/cpu.h"
#include "decoder/records.h"
#include "native/common.h"

OCTAVO_API int64_t octavo_decoder_new(const void* model, const void* numbers, const void* layers);
OCTAVO_API void octavo_decoder_free(int64_t decoder);
OCTAVO_API int64_t octavo_decoder_step(int64_t decoder, const int32_t* token_ids, int64_t num_sequences,
                                    const int32_t* query_start, const int32_t* context_lens, const int32_t* tables,
                                    int64_t table_stride, int64_t whole, const int64_t* token_index, int64_t count,
                                    int64_t kept, float* logits);

namespace octavo {
namespace {

constexpr int64_t kHidden = 64, kHeads = 4, kKvHeads = 2, kDim = 24, kInner = 80, kVocab = 50, kLayers = 2;
constexpr int64_t kBlock = 16, kBlocks = 24, kPaddedDim = 32;
constexpr int64_t kLong = 300, kShort = 5, kWindow = 40;  // tokens: more than one split, less than a tile
constexpr float kEps = 1e-5f, kSoftcap = 20;

using Floats = std::vector<float>;

struct Random {
    uint32_t state = 1;
    float operator()() {  // in (-1, 1)
        state = state * 1664525u + 1013904223u;
        return (float(state >> 16) - 32767.5f) / 32768;
    }
    Floats vector(int64_t count, float size) {
        Floats out(count);
        for (float& x : out) x = (*this)() * size;
        return out;
    }
};

// A matrix [n, k] as it is and in the packed layout of float32 (linear/formats.h): blocks of 16 rows, column by column.
struct Weights {
    int64_t n, k;
    Floats plain, packed;

    Weights(Random& random, int64_t n_, int64_t k_) : n(n_), k(k_), plain(random.vector(n_ * k_, 0.2f)) {
        const int64_t columns = (k + 31) / 32 * 32;
        packed.resize((n + 15) / 16 * 16 * columns);
        for (int64_t r = 0; r < n; ++r)
            for (int64_t c = 0; c < k; ++c) packed[(r / 16 * columns + c) * 16 + r % 16] = plain[r * k + c];
    }
    Floats times(const Floats& x) const {
        Floats out(n);
        for (int64_t r = 0; r < n; ++r) {
            double sum = 0;
            for (int64_t c = 0; c < k; ++c) sum += double(plain[r * k + c]) * x[c];
            out[r] = float(sum);
        }
        return out;
    }
    Matrix matrix() const {
        return {int64_t(WeightFormat::f32), n, k, reinterpret_cast<const uint8_t*>(packed.data()), nullptr};
    }
};

struct PlainLayer {
    Weights q, k, v, out, gate, up, down;
    Floats attention_norm, mlp_norm, q_norm, k_norm;
    int64_t window;

    PlainLayer(Random& r, int64_t window_)
        : q(r, kHeads * kDim, kHidden), k(r, kKvHeads * kDim, kHidden), v(r, kKvHeads * kDim, kHidden),
          out(r, kHidden, kHeads * kDim), gate(r, kInner, kHidden), up(r, kInner, kHidden), down(r, kHidden, kInner),
          attention_norm(r.vector(kHidden, 2)), mlp_norm(r.vector(kHidden, 2)), q_norm(r.vector(kDim, 2)),
          k_norm(r.vector(kDim, 2)), window(window_) {}
};

struct PlainModel {
    Gate gate;
    Random random;
    Weights embedding{random, kVocab, kHidden}, head{random, kVocab, kHidden};
    PlainLayer layers[kLayers] = {PlainLayer(random, int64_t(1) << 40), PlainLayer(random, kWindow)};
    Floats final_norm = random.vector(kHidden, 2), rotary = random.vector((kLong + 1) * kDim, 1);

    explicit PlainModel(Gate gate_) : gate(gate_) {}
};

void norm(float* x, const Floats& weight) {
    const size_t dim = weight.size();
    double squares = 0;
    for (size_t i = 0; i < dim; ++i) squares += double(x[i]) * x[i];
    for (size_t i = 0; i < dim; ++i) x[i] = float(x[i] / std::sqrt(squares / double(dim) + kEps) * weight[i]);
}

Floats normed(Floats x, const Floats& weight) {
    norm(x.data(), weight);
    return x;
}

void rotate(float* head, const float* angles) {
    for (int64_t i = 0; i < kDim / 2; ++i) {
        const float a = head[i], b = head[i + kDim / 2], cos = angles[i], sin = angles[i + kDim / 2];
        head[i] = a * cos - b * sin;
        head[i + kDim / 2] = b * cos + a * sin;
    }
}

double activated(double x, Gate gate) {
    if (gate == Gate::silu) return x / (1 + std::exp(-x));
    return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

// One sequence, token by token, with keys and values kept as they are.
class PlainSequence {
    const PlainModel& model;
    std::vector<Floats> keys[kLayers], values[kLayers];  // per position

    Floats attend(int64_t layer, const Floats& q, int64_t position) const {
        Floats out(kHeads * kDim);
        for (int64_t head = 0; head < kHeads; ++head) {
            const int64_t kv = head / (kHeads / kKvHeads) * kDim;
            double total = 0;
            std::vector<double> sums(kDim);
            for (int64_t p = position; p >= 0 && p > position - model.layers[layer].window; --p) {
                double score = 0;
                for (int64_t i = 0; i < kDim; ++i) score += double(q[head * kDim + i]) * keys[layer][p][kv + i];
                const double weight = std::exp(kSoftcap * std::tanh(score / std::sqrt(double(kDim)) / kSoftcap));
                total += weight;
                for (int64_t i = 0; i < kDim; ++i) sums[i] += weight * values[layer][p][kv + i];
            }
            for (int64_t i = 0; i < kDim; ++i) out[head * kDim + i] = float(sums[i] / total);
        }
        return out;
    }

public:
    explicit PlainSequence(const PlainModel& m) : model(m) {}

    Floats logits(int32_t token) {
        const int64_t position = int64_t(keys[0].size());
        const float* angles = &model.rotary[position * kDim];
        Floats x(&model.embedding.plain[token * kHidden], &model.embedding.plain[(token + 1) * kHidden]);
        const auto add = [&](const Floats& branch) {
            for (int64_t i = 0; i < kHidden; ++i) x[i] += branch[i];
        };
        for (int64_t i = 0; i < kLayers; ++i) {
            const PlainLayer& layer = model.layers[i];
            Floats input = normed(x, layer.attention_norm);
            Floats q = layer.q.times(input), k = layer.k.times(input);
            for (int64_t h = 0; h < kHeads; ++h) norm(&q[h * kDim], layer.q_norm), rotate(&q[h * kDim], angles);
            for (int64_t h = 0; h < kKvHeads; ++h) norm(&k[h * kDim], layer.k_norm), rotate(&k[h * kDim], angles);
            keys[i].push_back(k);
            values[i].push_back(layer.v.times(input));
            add(layer.out.times(attend(i, q, position)));
            input = normed(x, layer.mlp_norm);
            Floats gate = layer.gate.times(input);
            const Floats up = layer.up.times(input);
            for (int64_t j = 0; j < kInner; ++j) gate[j] = float(activated(gate[j], model.gate) * up[j]);
            add(layer.down.times(gate));
        }
        return model.head.times(normed(x, model.final_norm));
    }
};

enum class Cache { f32, bf16, int8 };

// The same model in the library, with a cache of its own.
class Fast {
    std::unique_ptr<uint8_t[]> cache;
    int64_t decoder;

public:
    Fast(const PlainModel& plain, Cache kind) {
        const int64_t token_bytes = kind == Cache::int8 ? kPaddedDim + 4 : kPaddedDim * (kind == Cache::bf16 ? 2 : 4);
        const int64_t layer_bytes = 2 * kKvHeads * kBlock * token_bytes;
        cache = std::make_unique<uint8_t[]>(kBlocks * kLayers * layer_bytes + 63);
        uint8_t* kv = cache.get() + 63 - (uintptr_t(cache.get()) + 63) % 64;
        Model model{};
        model.hidden = kHidden, model.inner = kInner, model.vocab = kVocab;
        model.query_heads = kHeads, model.kv_heads = kKvHeads, model.head_dim = kDim;
        model.gate = int64_t(plain.gate), model.precision = int64_t(Precision::exact);
        model.kv_is_bf16 = kind == Cache::bf16, model.kv_is_int8 = kind == Cache::int8;
        model.block_size = kBlock, model.block_bytes = kLayers * layer_bytes;
        model.num_layers = kLayers;
        model.embedding = plain.embedding.matrix(), model.head = plain.head.matrix();
        model.final_norm = plain.final_norm.data();
        std::vector<Layer> layers;
        for (const PlainLayer& from : plain.layers) {
            Layer layer{};
            layer.q = from.q.matrix(), layer.k = from.k.matrix(), layer.v = from.v.matrix();
            layer.out = from.out.matrix();
            layer.gate = from.gate.matrix(), layer.up = from.up.matrix(), layer.down = from.down.matrix();
            layer.attention_norm = from.attention_norm.data(), layer.mlp_norm = from.mlp_norm.data();
            layer.q_norm = from.q_norm.data(), layer.k_norm = from.k_norm.data();
            layer.rotary = plain.rotary.data(), layer.rotary_dim = kDim, layer.window = from.window;
            layer.plan = int64_t(layers.size());
            layer.k_cache = kv, layer.v_cache = kv + layer_bytes / 2;
            kv += layer_bytes;
            layers.push_back(layer);
        }
        Numbers numbers{};
        numbers.eps = kEps, numbers.attention_scale = 1 / std::sqrt(float(kDim));
        numbers.attention_softcap = kSoftcap, numbers.embedding_scale = numbers.residual_scale = numbers.logit_scale = 1;
        decoder = octavo_decoder_new(&model, &numbers, layers.data());
    }
    ~Fast() { octavo_decoder_free(decoder); }
    Fast(const Fast&) = delete;

    // Tokens [from, to) of a long sequence and the last of a short one that was computed before but for it.
    Floats step(const std::vector<int32_t>& tokens, int32_t from, int32_t to, int32_t short_from) {
        std::vector<int32_t> ids(tokens.begin() + from, tokens.begin() + to);
        ids.insert(ids.end(), tokens.begin() + short_from, tokens.begin() + kShort);
        const int32_t starts[] = {0, to - from, int32_t(ids.size())}, contexts[] = {to, int32_t(kShort)};
        int32_t tables[2][kBlocks - 1] = {};
        for (int32_t i = 0; i < kBlocks - 1; ++i) tables[0][i] = kBlocks - 1 - i;  // scattered; block 0 is the other's
        const int64_t token_index[] = {to - from - 1, int64_t(ids.size()) - 1};
        Floats logits(2 * kVocab);
        octavo_decoder_step(decoder, ids.data(), 2, starts, contexts, tables[0], kBlocks - 1, 0, token_index, 2, 0,
                            logits.data());
        return logits;
    }
};

bool close(const Floats& logits, const Floats& expected_long, const Floats& expected_short, float precision) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < 2 * kVocab; ++i) {
        const float expected = i < kVocab ? expected_long[i] : expected_short[i - kVocab];
        error = std::max(error, std::fabs(double(logits[i]) - expected));
        size = std::max(size, std::fabs(double(expected)));
        if (!(logits[i] == logits[i])) return false;
    }
    return error <= precision * size;
}

bool agrees(Gate gate, Cache kind, int threads) {
    const PlainModel model(gate);
    std::vector<int32_t> tokens(kLong + 1);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = int32_t(i * i * 7 % kVocab);
    PlainSequence first(model), second(model);
    Floats expected, next, other;
    for (int64_t i = 0; i < kLong; ++i) expected = first.logits(tokens[i]);
    next = first.logits(tokens[kLong]);
    for (int64_t i = 0; i < kShort; ++i) other = second.logits(tokens[i]);
    const float precision = kind == Cache::f32 ? 1e-4f : 3e-2f;
    set_threads(threads);
    Fast fast(model, kind);
    return close(fast.step(tokens, 0, kLong, 0), expected, other, precision) &&
           close(fast.step(tokens, kLong, kLong + 1, kShort - 1), next, other, precision);
}

SelfTest self_test("a decoder's step", [] {
    const int wanted = num_threads();
    const bool good = agrees(Gate::silu, Cache::f32, 1) && agrees(Gate::silu, Cache::bf16, 2) &&
                      agrees(Gate::gelu, Cache::int8, 2);
    set_threads(wanted);
    return good;
});

}  // namespace
}  // namespace octavo
