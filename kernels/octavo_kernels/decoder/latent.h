// Latent attention: what stands before and after attention over one cached record per token.
//
// A record is a token's latent vector, behind the part of its key that is rotated as it is. Every head has two matrices
// of its own: K makes of a query what its product with a latent is, V of the weighted sum of latents the head's result.
// So attention itself is that of a model with one key-value head, and reads each record once for all heads.
#pragma once

#include <algorithm>

#include "decoder/tokens.h"
#include "linear/input.h"
#include "rms_norm/cpu.h"

namespace octavo {

// Words of a record of Python's.
struct Latent {
    int64_t size, query_size;     // of a latent; and of what queries are first projected to, 0 where they are not
    int64_t content, value;       // values of a head's query that are not rotated, and of its result
    Matrix q_b;                   // [heads * (content + rotated)][query_size], or no data
    Matrix k_b, v_b;              // [heads * size][content], [heads * value][size]
    const float *q_norm, *kv_norm;
    const float* eps;             // of both
};

namespace {

// The memory of a step's latent attention: inputs of q_b, k_b and v_b, the last two with a row for each head and token.
struct StepLatents {
    Input query_input, content_input, value_input;
    float* values;  // [tokens][heads * value], or before attention [tokens][query_size]

    void add(const Latent& l, Precision precision) {
        if (l.q_b.data) query_input.add(l.q_b, precision);
        content_input.add(l.k_b, precision);
        value_input.add(l.v_b, precision);
    }
    void reserve(const Latent& l, int64_t tokens) {
        const int64_t heads = l.v_b.n / l.value;
        query_input.reserve(tokens, l.query_size);
        content_input.reserve(tokens * heads, l.content);
        value_input.reserve(tokens * heads, l.size);
        values = values_.floats(tokens * std::max(l.v_b.n, l.query_size));
    }

private:
    Buffer values_;
};

// One head's rows of an input with a row for each head and token.
inline Forms of_head(const Input& input, int64_t head, int64_t tokens) {
    return input.part({head * tokens, (head + 1) * tokens});
}

// Some blocks of all heads' outputs, `rows` (a multiple of 16) of each: out[token * stride + head * head_stride + row].
inline void multiply_heads(const Input& input, const Matrix& matrix, Precision precision, int64_t tokens, int64_t rows,
                           float* out, int64_t stride, int64_t head_stride, Range blocks) {
    const int64_t each = rows / 16;
    for (int64_t head = blocks.begin / each; head * each < blocks.end; ++head) {
        const Range mine{std::max(blocks.begin, head * each), std::min(blocks.end, (head + 1) * each)};
        float* to = out + head * head_stride + (mine.begin - head * each) * 16;
        of_head(input, head, tokens).multiply(matrix, precision, to, stride, mine);
    }
}

// What of a step latent attention reads and writes.
struct LatentRows {
    Precision precision;
    int64_t heads, rotated;
    float* first;    // [tokens][first_stride] what the first matrices made: queries, or what they are projected to; records
    int64_t first_stride;
    float* own;      // [tokens][heads * (content + rotated)] queries, where they are projected first
    float* queries;  // [tokens][heads * (rotated + size)] what attends to records

    const float* query(const Latent& l, int64_t token, int64_t head) const {
        const int64_t width = l.content + rotated;
        return (l.q_b.data ? own + token * heads * width : first + token * first_stride) + head * width;
    }
    float* record(const Latent& l, int64_t token) const { return first + (token + 1) * first_stride - l.size - rotated; }
    float* attending(const Latent& l, int64_t token, int64_t head) const {
        return queries + (token * heads + head) * (rotated + l.size);
    }
};

// From what the first matrices made to queries of latents, which are yet to get their rotated part.
template <class Way>
void make_queries(const LatentRows& rows, const Latent& l, const Way& way) {
    const int64_t first = way.tokens.first, count = way.tokens.count, width = rows.heads * (l.content + rows.rotated);
    const StepLatents& own = way.own.latents;
    if (l.q_b.data) {
        const auto prepare = [&](int64_t i) {
            float* normed = own.values + i * l.query_size;
            rms_norm_row(rows.first + (first + i) * rows.first_stride, l.q_norm, *l.eps, l.query_size, normed);
            own.query_input.pack(i, normed);
        };
        way.multiply({l.q_b.n}, prepare, [&](size_t, Range blocks) {
            own.query_input.multiply(l.q_b, rows.precision, rows.own + first * width + blocks.begin * 16, width, blocks);
        });
    }
    const auto prepare = [&](int64_t i) {
        for (int64_t head = 0; head < rows.heads; ++head)
            of_head(own.content_input, head, count).pack(i, rows.query(l, first + i, head));
    };
    const int64_t each = rows.rotated + l.size;
    way.multiply({l.k_b.n}, prepare, [&](size_t, Range blocks) {
        multiply_heads(own.content_input, l.k_b, rows.precision, count, l.size, rows.attending(l, first, 0) + rows.rotated,
                       rows.heads * each, each, blocks);
    });
}

// From the weighted sums of records [tokens][heads * (rotated + size)] to the heads' results, `values`.
template <class Way>
void make_values(const LatentRows& rows, const Latent& l, const float* attended, const Way& way) {
    const int64_t count = way.tokens.count, each = rows.rotated + l.size;
    const StepLatents& own = way.own.latents;
    const auto prepare = [&](int64_t i) {
        const float* sums = attended + way.tokens[i] * rows.heads * each + rows.rotated;
        for (int64_t head = 0; head < rows.heads; ++head)
            of_head(own.value_input, head, count).pack(i, sums + head * each);
    };
    way.multiply({l.v_b.n}, prepare, [&](size_t, Range blocks) {
        multiply_heads(own.value_input, l.v_b, rows.precision, count, l.value, way.shared.latents.values, l.v_b.n, l.value,
                       blocks);
    });
}

}  // namespace
}  // namespace octavo
