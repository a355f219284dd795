// How keys and values are written into the cells of a packed cache.
#include "paged_attention/cells.h"

namespace octavo {
namespace {

// dim values rounded to T, then moved word by word: pairs of a key lie side by side, those of two values do not.
template <class T>
struct Rounded {
    T values[kMaxDim];

    Rounded(const float* from, int64_t dim) {
        for (int64_t d = 0; d < dim; d += kLanes) store_part(values + d, load_part(from + d, dim - d), dim - d);
        for (int64_t d = dim; d < dim + dim % 2; ++d) values[d] = from_float<T>(0);
    }
};

template <class T>
void store_key(const KvCache& cache, int64_t slot, int64_t head, const float* key) {
    T* cell = packed_cell<T>(cache, cache.k, place_of(cache, slot), head);
    const Rounded<T> rounded(key, cache.dim);
    for (int64_t d = 0; d < cache.dim; d += kPerWord<T>)
        std::memcpy(cell + key_index<T>(slot % kCell, d), rounded.values + d, 4);
}

template <class T>
void store_value(const KvCache& cache, int64_t slot, int64_t head, const float* value) {
    T* to = packed_cell<T>(cache, cache.v, place_of(cache, slot), head) + value_index<T>(slot % kCell, 0, cache.padded_dim());
    const Rounded<T> rounded(value, cache.dim);
    for (int64_t d = 0; d < cache.dim; ++d) to[d * kPerWord<T>] = rounded.values[d];
}

// dim values as codes of 8 bits times one scale (`reference.quantize` in kv_store); NaN where a value is not finite.
struct Coded {
    int8_t codes[kMaxDim + kLanes];
    float scale;

    Coded(const float* from, int64_t dim) {
        Vec top = {}, broken = {};
        for (int64_t d = 0; d < dim; d += kLanes) {
            const Vec x = load_part(from + d, dim - d);
            top = max(max(x, -x), top);
            broken = fma(x, Vec{}, broken);  // 0 times infinity or NaN
        }
        const float highest = max(top);
        const bool finite = sum(broken) == 0;
        const Vec inverse = splat(finite && highest > 0 ? 127.f / highest : 0.f), shifter = splat(12582912.f);
        for (int64_t d = 0; d < dim; d += kLanes) {
            const IVec bits = (IVec)(load_part(from + d, dim - d) * inverse + shifter);  // 1.5 * 2^23 + the integer
            for (int i = 0; i < kLanes; ++i) codes[d + i] = int8_t(bits[i]);
        }
        scale = finite ? highest * float(1.0 / 127.0) : std::numeric_limits<float>::quiet_NaN();
    }
};

// T: the type whose places the codes take.
template <class T>
void store_coded_key(const KvCache& cache, int64_t slot, int64_t head, const float* key) {
    const Place place = place_of(cache, slot);
    int8_t* cell = packed_cell<int8_t>(cache, cache.k, place, head);
    const Coded coded(key, cache.dim);
    for (int64_t d = 0; d < cache.dim; ++d) cell[key_index<T>(slot % kCell, d)] = coded.codes[d];
    scales_of(cache, cache.k, place, head)[slot % kCell] = coded.scale;
}

template <class T>
void store_coded_value(const KvCache& cache, int64_t slot, int64_t head, const float* value) {
    const Place place = place_of(cache, slot);
    int8_t* cell = packed_cell<int8_t>(cache, cache.v, place, head);
    const Coded coded(value, cache.dim);
    for (int64_t d = 0; d < cache.dim; ++d)
        cell[value_index<T>(slot % kCell, d, cache.padded_dim())] = coded.codes[d];
    scales_of(cache, cache.v, place, head)[slot % kCell] = coded.scale;
}

}  // namespace

void store_packed_key(const KvCache& cache, int64_t slot, int64_t head, const float* key) {
    if (cache.form == KvForm::int8)
        return cache.is_bf16 ? store_coded_key<bf16>(cache, slot, head, key)
                             : store_coded_key<float>(cache, slot, head, key);
    cache.is_bf16 ? store_key<bf16>(cache, slot, head, key) : store_key<float>(cache, slot, head, key);
}

void store_packed_value(const KvCache& cache, int64_t slot, int64_t head, const float* value) {
    if (cache.form == KvForm::int8)
        return cache.is_bf16 ? store_coded_value<bf16>(cache, slot, head, value)
                             : store_coded_value<float>(cache, slot, head, value);
    cache.is_bf16 ? store_value<bf16>(cache, slot, head, value) : store_value<float>(cache, slot, head, value);
}

}  // namespace octavo
