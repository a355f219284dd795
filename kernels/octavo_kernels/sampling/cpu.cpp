#include "sampling/cpu.h"

#include <algorithm>
#include <functional>

namespace octavo {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr int64_t kChunk = 512;  // weights summed at a time; of a row with a mask most chunks have none
constexpr float kLikely = -12.f;  // scaled logits above it hold nearly all of a nucleus: tried first

// Philox4x32-10 (Salmon et al. 2011), its first two words as a number in [0, 1) with 53 bits, as in reference.py.
double uniform(uint64_t seed, uint64_t position) {
    uint32_t c[4] = {uint32_t(position), uint32_t(position >> 32), 0, 0};
    uint32_t k[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t(0xD2511F53) * c[0], b = uint64_t(0xCD9E8D57) * c[2];
        const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ k[0], uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k[1],
                                  uint32_t(a)};
        std::memcpy(c, next, sizeof c);
        k[0] += 0x9E3779B9, k[1] += 0xBB67AE85;
    }
    return double((uint64_t(c[0]) << 32 | c[1]) >> 11) * 0x1p-53;
}

// A row of logits of which all tokens may be drawn.
struct Free {
    const float* logits;

    float at(int64_t i) const { return logits[i]; }
    Vec part(int64_t i, int64_t count) const { return load_part(logits + i, count); }
    bool is_empty(int64_t begin, int64_t end) const {
        while (begin < end && logits[begin] == kNone) ++begin;
        return begin == end;
    }
};

// One whose tokens may be drawn where their bit is set; to all that reads it the others are -inf, whatever they are.
struct Masked {
    const float* logits;
    const uint32_t* mask;
    int64_t words;  // of the mask; tokens beyond are barred

    uint32_t bits(int64_t i) const { return i >> 5 < words ? mask[i >> 5] >> (i & 31) : 0; }
    float at(int64_t i) const { return bits(i) & 1 ? logits[i] : kNone; }
    Vec part(int64_t i, int64_t count) const {  // i is a multiple of kLanes: all is in one word
#if OCTAVO_ISA >= 2
        const uint32_t there = count >= kLanes ? ~0u : (1u << count) - 1;
        return (Vec)_mm512_mask_loadu_ps((__m512)splat(kNone), __mmask16(bits(i) & there), logits + i);
#else
        IVec set;
        for (int lane = 0; lane < kLanes; ++lane) set[lane] = int32_t(1u << lane);
        set &= splat_int(int32_t(bits(i)));
        return set != 0 ? load_part(logits + i, count) : splat(kNone);
#endif
    }
    bool is_empty(int64_t begin, int64_t end) const {  // of a chunk: it begins with a word
        uint32_t any = 0;
        for (int64_t w = begin / 32; w < std::min(words, (end + 31) / 32); ++w) any |= mask[w];
        return !any;
    }
};

struct Peak {
    float value;
    bool finite;
};

template <class Row>
Peak find_peak(const Row& row, int64_t vocab) {
    Vec top = splat(kNone);
    IVec bad = {};
    float peak = kNone;
    bool nan = false;
    for (int64_t begin = 0; begin < vocab; begin += kChunk) {
        const int64_t end = std::min(vocab, begin + kChunk);
        if (row.is_empty(begin, end)) continue;
        int64_t i = begin;
        for (; i + kLanes <= end; i += kLanes) {
            const Vec v = row.part(i, kLanes);
            bad |= v != v;
            top = max(v, top);
        }
        for (; i < end; ++i) {
            const float x = row.at(i);
            nan |= x != x;
            peak = x > peak ? x : peak;
        }
    }
    peak = std::max(peak, max(top));
    for (int lane = 0; lane < kLanes; ++lane) nan |= bad[lane] != 0;
    return {peak, !nan && std::isfinite(peak)};
}

template <class Row>
int64_t find(const Row& row, int64_t vocab, float value) {
    for (int64_t begin = 0; begin < vocab; begin += kChunk) {
        const int64_t end = std::min(vocab, begin + kChunk);
        if (row.is_empty(begin, end)) continue;
        int64_t i = begin;
        for (; i + kLanes <= end; i += kLanes) {
            const IVec same = row.part(i, kLanes) == splat(value);
            int32_t any = 0;
            for (int lane = 0; lane < kLanes; ++lane) any |= same[lane];
            if (any) break;
        }
        while (i < end && row.at(i) != value) ++i;
        if (i < end) return i;
    }
    return vocab;
}

// to[i] = (logits[i] - peak) / temperature; weights[i] = e^to[i], 0 below `lowest`; `chunks` lists those with any weight,
// and others need not be written. Returns the sum of the weights.
template <class Row>
double weigh(const Row& row, int64_t vocab, float peak, float temperature, float lowest, float* to, float* weights,
             std::vector<int64_t>& chunks) {
    double total = 0;
    chunks.clear();
    for (int64_t begin = 0; begin < vocab; begin += kChunk) {
        const int64_t end = std::min(vocab, begin + kChunk);
        if (row.is_empty(begin, end)) continue;
        Vec part = {};
        for (int64_t i = begin; i < end; i += kLanes) {
            Vec x = (row.part(i, end - i) - splat(peak)) / splat(temperature);
            if (end - i < kLanes)
                for (int lane = int(end - i); lane < kLanes; ++lane) x[lane] = kNone;
            x = x < splat(lowest) ? splat(kNone) : x;
            const Vec weight = exp(x);
            store_part(to + i, x, end - i);
            store_part(weights + i, weight, end - i);
            part = part + weight;
        }
        const float mass = sum(part);
        total += mass;
        if (mass != 0) chunks.push_back(begin);
    }
    return total;
}

// Values in the chunks that are at least `lowest`, in no particular order.
void collect(SamplingScratch& scratch, float lowest) {
    const float* x = scratch.scaled.data();
    const int64_t vocab = int64_t(scratch.scaled.size());
    scratch.candidates.clear();
    for (const int64_t begin : scratch.chunks) {
        const int64_t end = std::min(vocab, begin + kChunk);
        for (int64_t i = begin; i < end; i += kLanes) {
            const int64_t lanes = std::min<int64_t>(kLanes, end - i);
            bool any = false;
            for (int64_t lane = 0; lane < lanes; ++lane) any |= x[i + lane] >= lowest;
            if (!any) continue;
            for (int64_t lane = 0; lane < lanes; ++lane)
                if (x[i + lane] >= lowest) scratch.candidates.push_back(x[i + lane]);
        }
    }
}

constexpr int kBuckets = 1 << 11;

// Values at most 0, largest first: exponent and three bits of mantissa of -x.
int bucket_of(float x) {
    const float size = -x + 0.f;
    uint32_t bits;
    std::memcpy(&bits, &size, 4);
    return int(bits >> 20);
}

// The value at which the running total over x, largest first, reaches `goal`: the first x such that total(x and all
// before it) >= goal. amount(x) is what one value adds. Linear: values are counted in buckets, and only the bucket that
// holds the answer is sorted.
template <class Amount>
float reach(const std::vector<float>& x, double goal, Amount amount) {
    std::vector<double> totals(kBuckets, 0.0);
    for (const float value : x) totals[bucket_of(value)] += amount(value);
    int last = 0;  // the last bucket that is not empty, should rounding keep the total just below the goal
    for (int b = 0; b < kBuckets; ++b)
        if (totals[b] > 0) last = b;
    double before = 0;
    int bucket = 0;
    while (bucket < last && before + totals[bucket] < goal) before += totals[bucket++];
    std::vector<float> members;
    for (const float value : x)
        if (bucket_of(value) == bucket) members.push_back(value);
    std::sort(members.begin(), members.end(), std::greater<float>());
    for (const float value : members) {
        before += amount(value);
        if (before >= goal) return value;
    }
    return members.empty() ? kNone : members.back();
}

// The smallest scaled logit that survives top-k and then top-p.
float find_threshold(SamplingScratch& scratch, double total, const SamplingRow& row) {
    std::vector<float>& candidates = scratch.candidates;
    const int64_t vocab = int64_t(scratch.scaled.size());
    const bool by_count = row.top_k > 0 && row.top_k < vocab;
    if (!by_count && row.top_p >= 1) return kNone;
    collect(scratch, kLikely);
    const auto mass = [](float x) { return double(std::exp(x)); };
    double likely = 0;
    if (!by_count)
        for (const float x : candidates) likely += mass(x);
    if (by_count ? int64_t(candidates.size()) < row.top_k : likely < row.top_p * total)
        collect(scratch, std::numeric_limits<float>::lowest());
    float threshold = kNone;
    if (by_count) {
        threshold = reach(candidates, row.top_k, [](float) { return 1.0; });
        if (row.top_p >= 1) return threshold;
        candidates.erase(std::remove_if(candidates.begin(), candidates.end(), [&](float x) { return x < threshold; }),
                         candidates.end());
        total = 0;
        for (const float x : candidates) total += mass(x);
    }
    return reach(candidates, row.top_p * total, mass);
}

// Takes the weights below the threshold away, and chunks without any off the list.
void drop(SamplingScratch& scratch, float threshold) {
    const float* scaled = scratch.scaled.data();
    float* weights = scratch.weights.data();
    const int64_t vocab = int64_t(scratch.scaled.size());
    size_t kept = 0;
    for (const int64_t begin : scratch.chunks) {
        const int64_t end = std::min(vocab, begin + kChunk);
        bool any = false;
        for (int64_t i = begin; i < end; ++i) {
            weights[i] = scaled[i] < threshold ? 0 : weights[i];
            any |= weights[i] != 0;
        }
        if (any) scratch.chunks[kept++] = begin;
    }
    scratch.chunks.resize(kept);
}

// The first index at which the running sum of the weights passes `point` of the whole.
int64_t draw(SamplingScratch& scratch, double point) {
    if (scratch.chunks.empty()) return -1;
    const float* weights = scratch.weights.data();
    const int64_t vocab = int64_t(scratch.weights.size());
    double total = 0;
    scratch.before.clear();
    for (const int64_t begin : scratch.chunks) {
        scratch.before.push_back(total);
        for (int64_t i = begin; i < std::min(vocab, begin + kChunk); ++i) total += weights[i];
    }
    const double goal = point * total;
    size_t chunk = scratch.chunks.size() - 1;  // the last one at whose begin the goal is not passed
    while (chunk > 0 && scratch.before[chunk] > goal) --chunk;
    double running = scratch.before[chunk];
    int64_t last = 0;
    for (int64_t i = scratch.chunks[chunk]; i < std::min(vocab, scratch.chunks[chunk] + kChunk); ++i) {
        if (weights[i] == 0) continue;
        running += weights[i];
        last = i;
        if (running > goal) break;
    }
    return last;
}

template <class Row>
int64_t sample(const Row& from, int64_t vocab, const SamplingRow& row, SamplingScratch& scratch) {
    const Peak peak = find_peak(from, vocab);
    if (!peak.finite) return -1;
    if (row.temperature <= 0) return find(from, vocab, peak.value);
    scratch.scaled.resize(vocab);
    scratch.weights.resize(vocab);
    const float lowest = row.min_p > 0 ? std::log(row.min_p) : kNone;
    const double total = weigh(from, vocab, peak.value, row.temperature, lowest, scratch.scaled.data(),
                               scratch.weights.data(), scratch.chunks);
    const float threshold = find_threshold(scratch, total, row);
    if (threshold > kNone) drop(scratch, threshold);
    return draw(scratch, uniform(row.seed, uint64_t(row.position)));
}

}  // namespace

int64_t sample_row(const float* logits, int64_t vocab, const SamplingRow& row, SamplingScratch& scratch) {
    if (row.mask) return sample(Masked{logits, row.mask, row.words}, vocab, row, scratch);
    return sample(Free{logits}, vocab, row, scratch);
}

}  // namespace octavo

// One token per row: out[r] is drawn from logits[logits_row[r]], [L, vocab], of the tokens whose bit is set in
// masks[mask[r]], [M, words], the lowest bit of a word first; where mask[r] is -1, of all. The other arrays are [rows].
OCTAVO_API void octavo_sample(const float* logits, int64_t vocab, int64_t rows, const int64_t* logits_row,
                              const float* temperature, const int32_t* top_k, const float* top_p, const float* min_p,
                              const uint64_t* seed, const int64_t* position, const int32_t* mask, const uint32_t* masks,
                              int64_t words, int64_t* out) {
    using namespace octavo;
    parallel_if(rows * vocab >= 1 << 15, [&](int thread, int threads) {
        SamplingScratch scratch;
        const Range part = split(rows, thread, threads);
        for (int64_t r = part.begin; r < part.end; ++r) {
            const uint32_t* own = masks && mask[r] >= 0 ? masks + mask[r] * words : nullptr;
            const SamplingRow row{temperature[r], top_k[r], top_p[r], min_p[r], seed[r], position[r], own, words};
            out[r] = sample_row(logits + logits_row[r] * vocab, vocab, row, scratch);
        }
    });
}
