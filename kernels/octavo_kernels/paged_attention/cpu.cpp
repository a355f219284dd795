#include "paged_attention/cells.h"

#include <algorithm>
#include <map>

namespace octavo {
namespace {

constexpr int64_t kTargetRows = 96;  // of an item with many tokens: for so many a split's K and V stay in the L2 cache
constexpr int64_t kFewRows = 16;     // items below this are split over the context

// ---- one item -----------------------------------------------------------------------------------------------------

int64_t tokens_per_item(int64_t group) { return std::max<int64_t>(1, kTargetRows / group); }

struct Scratch {
    float* q;   // [rows][words]
    Rows rows;
    Visible* seen;
    float* cells;  // of a split's K and V
};

int64_t round16(int64_t n) { return (n + 15) / 16 * 16; }

int64_t max_rows(const AttentionPlan& plan, const KvCache& cache) {
    const int64_t group = plan.query_heads / cache.heads;
    return tokens_per_item(group) * group;
}

Scratch lay_out(float* p, int64_t rows, int64_t padded) {
    auto take = [&p](int64_t floats) { float* begin = p; p += round16(floats); return begin; };
    Scratch s;
    s.q = take(rows * padded);
    s.rows = {take(rows * padded), take(rows), take(rows)};
    s.seen = (Visible*)take(rows * int64_t(sizeof(Visible) / sizeof(float)));
    s.cells = take(2 * kSplit * padded);
    return s;
}

template <class T, class Q>
void attend_item(const AttentionPlan& plan, const AttentionItem& item, const KvCache& cache,
                 const AttentionParams& params, const Q* q, int64_t q_stride, Q* out, int64_t out_stride,
                 float* scratch, float* partials) {
    const int64_t group = plan.query_heads / cache.heads, rows = item.num_tokens * group, dim = cache.dim;
    const int64_t words = (dim + kPerWord<T> - 1) / kPerWord<T>;
    const Shape shape{dim, cache.padded_dim(), words, params.scale, params.softcap, params.slopes != nullptr, nullptr};
    const Scratch s = lay_out(scratch, max_rows(plan, cache), shape.padded);
    const int32_t* tokens = plan.tokens.data() + item.first_token;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = tokens[r / group], head = item.head * group + r % group, last = plan.positions[token];
        pack_query<T>(q + token * q_stride + head * dim, dim, words, s.q + r * words);
        const int64_t first = std::max<int64_t>(0, last - plan.window + 1);
        s.seen[r] = {int32_t(first), int32_t(last), int32_t(last), params.slopes ? params.slopes[head] : 0.f};
    }
    clear(s.rows, rows, shape.padded);
    Split split;
    for (int64_t key = item.begin / kSplit * kSplit; key < item.end; key += kSplit) {
        find_split<T>(cache, plan.sequences, item, key, s.cells, split);
        for (int64_t r = 0; r < rows; r += kRows)
            attend_rows<T>(std::min<int64_t>(kRows, rows - r), split, s.q + r * words, shape, s.seen + r, r == 0,
                           from_row(s.rows, r, shape.padded));
    }
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = tokens[r / group], head = item.head * group + r % group;
        const Rows all = from_row(s.rows, r, shape.padded);
        if (item.partial) {
            const int64_t split = plan.first_partial[token] + item.begin / kSplit - plan.first_split[token];
            float* to = partials + (split * plan.query_heads + head) * (shape.padded + 2);
            std::memcpy(to, all.sums, shape.padded * sizeof(float));
            to[shape.padded] = *all.weight, to[shape.padded + 1] = *all.highest;
        } else {
            const float weight = with_sink(*all.weight, *all.highest, params.sinks, head);
            write_row(all.sums, weight, dim, out + token * out_stride + head * dim);
        }
    }
}

// ---- the plan -----------------------------------------------------------------------------------------------------

struct Planner {
    AttentionPlan& plan;
    const KvCache& cache;

    int64_t first_key(int64_t token) const { return std::max<int64_t>(0, plan.positions[token] - plan.window + 1); }

    void add(int64_t sequence, const std::vector<int32_t>& tokens, int64_t begin, int64_t end, bool partial) {
        const int32_t first = int32_t(plan.tokens.size());
        plan.tokens.insert(plan.tokens.end(), tokens.begin(), tokens.end());
        for (int32_t head = 0; head < cache.heads; ++head)
            plan.items.push_back({head, int32_t(sequence), first, int32_t(tokens.size()), begin, end, partial});
    }

    // Runs of tokens of one sequence, each with all the keys it sees.
    void add_whole(int64_t sequence, int64_t begin, int64_t end) {
        const int64_t step = tokens_per_item(plan.query_heads / cache.heads);
        for (int64_t token = begin; token < end; token += step) {
            std::vector<int32_t> tokens;
            for (int64_t t = token; t < std::min(end, token + step); ++t) tokens.push_back(int32_t(t));
            add(sequence, tokens, first_key(token), plan.positions[tokens.back()] + 1, false);
        }
    }

    // Tokens that see one split through the same blocks share an item, so that K and V are read once for all of them.
    using Key = std::pair<int64_t, std::vector<int32_t>>;
    std::map<Key, std::vector<std::pair<int32_t, int32_t>>> shared;  // (split, blocks) -> (sequence, token)

    void add_split(int64_t sequence, int64_t token) {
        const int64_t last = plan.positions[token], size = cache.block_size;
        plan.first_split[token] = int32_t(first_key(token) / kSplit);
        plan.first_partial[token] = int32_t(plan.num_partials);
        plan.merged_tokens.push_back(int32_t(token));
        plan.num_partials += last / kSplit - plan.first_split[token] + 1;
        const int32_t* table = plan.sequences.tables + sequence * plan.sequences.table_stride;
        for (int64_t split = plan.first_split[token]; split <= last / kSplit; ++split) {
            const int64_t begin = std::max(split * kSplit, first_key(token)), end = std::min((split + 1) * kSplit, last + 1);
            const bool whole = end == (split + 1) * kSplit && kSplit % size == 0;
            if (!whole) {
                add(sequence, {int32_t(token)}, begin, end, true);
                continue;
            }
            Key key{split, std::vector<int32_t>(table + split * kSplit / size, table + end / size)};
            shared[std::move(key)].emplace_back(int32_t(sequence), int32_t(token));
        }
    }

    void add_shared() {
        const size_t step = size_t(tokens_per_item(plan.query_heads / cache.heads));
        for (const auto& [key, members] : shared)
            for (size_t i = 0; i < members.size(); i += step) {
                std::vector<int32_t> tokens;
                int64_t begin = (key.first + 1) * kSplit;
                for (size_t j = i; j < std::min(members.size(), i + step); ++j) {
                    tokens.push_back(members[j].second);
                    begin = std::min(begin, std::max(key.first * kSplit, first_key(members[j].second)));
                }
                add(members[i].first, tokens, begin, (key.first + 1) * kSplit, true);
            }
    }
};

}  // namespace

void AttentionPlan::build(const Sequences& s, int64_t window_, int64_t query_heads_, const KvCache& cache) {
    sequences = s, window = window_, query_heads = query_heads_, num_partials = 0;
    const int64_t num_tokens = s.query_start[s.count], group = query_heads / cache.heads;
    for (auto* list : {&tokens, &merged_tokens, &positions}) list->clear();
    items.clear();
    positions.resize(num_tokens);
    first_partial.assign(num_tokens, -1);
    first_split.assign(num_tokens, 0);
    Planner planner{*this, cache, {}};
    for (int64_t i = 0; i < s.count; ++i) {
        const int64_t begin = s.query_start[i], end = s.query_start[i + 1];
        for (int64_t t = begin; t < end; ++t) positions[t] = int32_t(s.context_lens[i] - end + t);
        const int64_t splits = positions[end - 1] / kSplit - planner.first_key(begin) / kSplit + 1;
        if (splits == 1 || (end - begin > 1 && (end - begin) * group > kFewRows)) planner.add_whole(i, begin, end);
        else
            for (int64_t t = begin; t < end; ++t) planner.add_split(i, t);
    }
    planner.add_shared();
    std::stable_sort(items.begin(), items.end(), [](const AttentionItem& a, const AttentionItem& b) {
        return a.num_tokens * (a.end - a.begin) > b.num_tokens * (b.end - b.begin);
    });
}

int64_t attention_scratch(const AttentionPlan& plan, const KvCache& cache) {
    const int64_t rows = max_rows(plan, cache), padded = cache.padded_dim();
    return 2 * round16(rows * padded) + 2 * round16(rows) + round16(4 * rows) + round16(2 * kSplit * padded);
}

int64_t partial_floats(const AttentionPlan& plan, const KvCache& cache) {
    return plan.num_partials * plan.query_heads * (cache.padded_dim() + 2);
}

template <class Q>
void attend(const AttentionPlan& plan, int64_t item, const KvCache& cache, const AttentionParams& params, const Q* q,
            int64_t q_stride, Q* out, int64_t out_stride, float* scratch, float* partials) {
    const auto work = cache.is_bf16 ? attend_item<bf16, Q> : attend_item<float, Q>;
    work(plan, plan.items[item], cache, params, q, q_stride, out, out_stride, scratch, partials);
}

template <class Q>
void merge_splits(const AttentionPlan& plan, int64_t index, const KvCache& cache, const AttentionParams& params,
                  const float* partials, Q* out, int64_t out_stride) {
    const int64_t padded = cache.padded_dim(), entry = padded + 2, token = plan.merged_tokens[index];
    const int64_t count = plan.positions[token] / kSplit - plan.first_split[token] + 1;
    std::vector<float> sums(padded);
    for (int64_t head = 0; head < plan.query_heads; ++head) {
        float weight = 0, highest = kNone;
        std::fill(sums.begin(), sums.end(), 0.f);
        for (int64_t split = 0; split < count; ++split) {
            const float* from = partials + ((plan.first_partial[token] + split) * plan.query_heads + head) * entry;
            merge_row({sums.data(), &weight, &highest}, from, from[padded], from[padded + 1], padded);
        }
        weight = with_sink(weight, highest, params.sinks, head);
        write_row(sums.data(), weight, cache.dim, out + token * out_stride + head * cache.dim);
    }
}

template void attend<float>(const AttentionPlan&, int64_t, const KvCache&, const AttentionParams&, const float*,
                            int64_t, float*, int64_t, float*, float*);
template void attend<bf16>(const AttentionPlan&, int64_t, const KvCache&, const AttentionParams&, const bf16*, int64_t,
                           bf16*, int64_t, float*, float*);
template void merge_splits<float>(const AttentionPlan&, int64_t, const KvCache&, const AttentionParams&, const float*,
                                  float*, int64_t);
template void merge_splits<bf16>(const AttentionPlan&, int64_t, const KvCache&, const AttentionParams&, const float*,
                                 bf16*, int64_t);

namespace {

template <class Q>
void run_op(const AttentionPlan& plan, const KvCache& cache, const AttentionParams& params, const Q* q,
            int64_t q_stride, Q* out) {
    const int64_t per_thread = attention_scratch(plan, cache), out_stride = plan.query_heads * cache.dim;
    const int threads = num_threads();
    std::vector<float> scratch(per_thread * threads + 16), partials(partial_floats(plan, cache));
    float* aligned = (float*)((uintptr_t(scratch.data()) + 63) / 64 * 64);
    Phases phases(2);
    join(threads, [&](int thread) {
        int cursor = 0;
        phases.run(cursor, int64_t(plan.items.size()), [&](int64_t item) {
            attend(plan, item, cache, params, q, q_stride, out, out_stride, aligned + thread * per_thread,
                   partials.data());
        });
        phases.run(cursor, int64_t(plan.merged_tokens.size()), [&](int64_t i) {
            merge_splits(plan, i, cache, params, partials.data(), out, out_stride);
        });
    });
}

}  // namespace
}  // namespace octavo

// q: [tokens, query_heads, dim] with a token stride in values; caches: plain [blocks, block_size, kv_heads, dim];
// out: contiguous. type: 0 float, 1 bf16, of q, caches and out. window, softcap: 0 for none; slopes, sinks: [query_heads]
// or null.
OCTAVO_API void octavo_paged_attention(int64_t type, const void* q, int64_t q_stride, int64_t query_heads,
                                       const void* k_cache, const void* v_cache, int64_t block_size, int64_t kv_heads,
                                       int64_t dim, int64_t num_sequences, const int32_t* query_start,
                                       const int32_t* context_lens, const int32_t* tables, int64_t table_stride,
                                       float scale, int64_t window, float softcap, const float* slopes, const float* sinks,
                                       void* out) {
    using namespace octavo;
    const KvCache cache{type == 1, KvForm::plain, block_size, kv_heads, dim, 0, k_cache, v_cache};
    AttentionPlan plan;
    plan.build({num_sequences, query_start, context_lens, tables, table_stride}, window ? window : int64_t(1) << 40,
               query_heads, cache);
    const AttentionParams params{scale, softcap, slopes, sinks};
    if (type == 0) run_op(plan, cache, params, (const float*)q, q_stride, (float*)out);
    else run_op(plan, cache, params, (const bf16*)q, q_stride, (bf16*)out);
}
