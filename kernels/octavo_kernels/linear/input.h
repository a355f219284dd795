// A matrix as Python passes it, the input of several of them, and memory for it that grows.
#pragma once

#include <cstdlib>
#include <memory>

#include "linear/cpu.h"

namespace octavo {

// Words of a record of Python's.
struct Matrix {
    int64_t format, n, k;
    const uint8_t* data;
    const float* bias;  // or null

    PackedMatrix packed() const { return {WeightFormat(format), n, k, data}; }
};

struct Free {
    void operator()(void* p) const { std::free(p); }
};

class Buffer {
    std::unique_ptr<void, Free> memory;
    int64_t bytes = 0;

public:
    // Room for `wanted` bytes, 64-byte aligned; its content is lost when it grows.
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

// The input of several matrices, converted once into every form that any of them needs.
class Forms {
protected:
    Activations forms[3] = {};
    bool wanted[3] = {};

public:
    void pack(int64_t row, const float* x) const {
        for (int kind = 0; kind < 3; ++kind)
            if (wanted[kind]) pack_row(forms[kind], row, x);
    }
    void pack(int64_t row, const float* x, Range columns) const {
        for (int kind = 0; kind < 3; ++kind)
            if (wanted[kind]) pack_columns(forms[kind], row, x, columns);
    }
    const Activations& form(ActivationKind kind) const { return forms[int(kind)]; }

    // Computes the outputs of some blocks of 16; `out` receives the first.
    void multiply(const Matrix& w, Precision precision, float* out, int64_t stride, Range blocks) const {
        const int kind = int(activation_kind(WeightFormat(w.format), precision));
        linear(w.packed(), forms[kind], out, stride, w.bias, blocks);
    }
    // Some rows as an input of their own: packed and multiplied apart from the others.
    Forms part(Range rows) const {
        Forms some = *this;
        for (Activations& form : some.forms) {
            if (!form.data) continue;
            form.rows = (rows.end - rows.begin) * form.parts;
            form.data += activation_bytes(form.kind, rows.begin * form.parts, form.k);
        }
        return some;
    }
};

// The same with its memory.
class Input : public Forms {
    Buffer buffers[3];

public:
    void add(const Matrix& w, Precision precision) {
        const ActivationKind kind = activation_kind(WeightFormat(w.format), precision);
        add(kind, parts_of(kind, precision));
    }
    void add(ActivationKind kind, int64_t parts = 1) { wanted[int(kind)] = true, forms[int(kind)].parts = parts; }

    void reserve(int64_t rows, int64_t k) {
        for (int kind = 0; kind < 3; ++kind) {
            if (!wanted[kind]) continue;
            const int64_t all = rows * forms[kind].parts, bytes = activation_bytes(ActivationKind(kind), all, k);
            forms[kind] = {ActivationKind(kind), all, k, (uint8_t*)buffers[kind].reserve(bytes), forms[kind].parts};
        }
    }
};

}  // namespace octavo
