// Causal attention of a ragged batch over a paged KV cache.
//
// Every score and every weighted sum of one query row is made in an order that depends on positions alone: keys come in
// cells of 16 and splits of 256 positions, counted from position 0; a split's weights are relative to its own highest
// score, and splits are joined first to last (online softmax, Milakov and Gimelshein 2018, with tiles that flash decoding
// can hand out, Dao et al. 2023). A masked key weighs exactly 0. So a row has the same bits alone or in a batch, in a
// chunk of any size, with any number of threads, and whether or not it shares its blocks with other sequences.
//
// Keys are stored so that 16 of them fill the lanes of a vector, and nothing is shuffled while scores are computed:
//
//     packed K of a cell:  float [head_dim][16],      bf16 [head_dim / 2][16][2]
//     packed V of a cell:  float [16][head_dim],      bf16 [8][head_dim][2]         (pairs of keys side by side)
//
// Where a key is its value, the values alone are stored, and a cell's keys are made of them when it is read: by the rows
// of many heads at once, so that this is little beside what they compute.
//
// head_dim is padded to a multiple of 16; 8-bit ones are codes in those same places, and after the codes of a block
// its scales, float [KV head][position]. One (block, KV head) holds block_size / 16 cells in a row. The op's public
// function takes a plain [block][position][head][dim] cache instead; its cells are packed into scratch when read.
#pragma once

#include <vector>

#include "native/common.h"

namespace octavo {

constexpr int64_t kCell = 16, kSplit = 256;
constexpr int64_t kMaxDim = 1024;  // of a head in a packed cache

enum class KvForm { plain, packed, int8 };  // the last two in cells

struct KvCache {
    bool is_bf16;  // what attention computes in, and what is stored but for int8
    KvForm form;
    int64_t block_size, heads, dim;
    int64_t block_bytes;  // from one block of a packed cache to the next
    const void* k;
    const void* v;
    bool shared = false;  // a key is its value: only values are stored (latent attention)

    int64_t padded_dim() const { return (dim + kCell - 1) / kCell * kCell; }
    int64_t cell_values() const { return kCell * padded_dim(); }
};

// A step's sequences, as in octavo.step: sequence s has tokens query_start[s] .. query_start[s + 1] - 1, the last of
// its context_lens[s]; its position p lies in block tables[s * table_stride + p / block_size].
struct Sequences {
    int64_t count;
    const int32_t* query_start;
    const int32_t* context_lens;
    const int32_t* tables;
    int64_t table_stride;
};

// What is attended to in one go: rows (tokens x the query heads of one KV head) that see one run of keys.
struct AttentionItem {
    int32_t head;                      // KV head
    int32_t sequence;                  // whose block table is read
    int32_t first_token, num_tokens;   // in AttentionPlan::tokens
    int64_t begin, end;                // key positions; whole splits, or up to the last key seen
    bool partial;                      // one split of several: the result is merged later
};

// The items of a step for layers of one window, made once per step.
struct AttentionPlan {
    Sequences sequences;
    int64_t window;  // positions a query sees, its own included; huge for all
    int64_t query_heads;
    std::vector<int32_t> positions;        // per token
    std::vector<int32_t> tokens;           // the items' tokens
    std::vector<AttentionItem> items;      // largest first
    std::vector<int32_t> merged_tokens;    // tokens whose splits are separate items
    std::vector<int32_t> first_partial;    // per token: where its partial results begin, or -1
    std::vector<int32_t> first_split;      // per token
    int64_t num_partials = 0;              // each query_heads rows of padded_dim + 2 floats

    void build(const Sequences& sequences, int64_t window, int64_t query_heads, const KvCache& cache);
};

struct AttentionParams {
    float scale;
    float softcap;        // 0: none
    const float* slopes;  // [query_heads]: what a key's score loses per position of distance (ALiBi); or null
    const float* sinks = nullptr;  // [query_heads]: score of a key whose value is 0, which every row sees; or null
};

// Floats of scratch that one thread needs, and that all share for partial results.
int64_t attention_scratch(const AttentionPlan& plan, const KvCache& cache);
int64_t partial_floats(const AttentionPlan& plan, const KvCache& cache);

// One of the plan's items, in any order and on any thread. q, out: [token][query_heads * dim] with strides in values.
template <class Q>
void attend(const AttentionPlan& plan, int64_t item, const KvCache& cache, const AttentionParams& params, const Q* q,
            int64_t q_stride, Q* out, int64_t out_stride, float* scratch, float* partials);

// Once all items are done: the output of one of the plan's merged_tokens.
template <class Q>
void merge_splits(const AttentionPlan& plan, int64_t index, const KvCache& cache, const AttentionParams& params,
                  const float* partials, Q* out, int64_t out_stride);

// Write one token's key or value of one head (dim values) into a packed cache.
void store_packed_key(const KvCache& cache, int64_t slot, int64_t head, const float* key);
void store_packed_value(const KvCache& cache, int64_t slot, int64_t head, const float* value);

}  // namespace octavo
