#include <algorithm>

#include "native/common.h"

namespace octavo {
namespace {

constexpr int64_t kBits = 32;
constexpr float kForbidden = -std::numeric_limits<float>::infinity();

// Of 32 logits those whose bit is not set become -inf.
OCTAVO_INLINE void mask_word(float* x, uint32_t bits) {
    if (bits == ~0u) return;
    for (int64_t i = 0; i < kBits; i += kLanes) {
#if OCTAVO_ISA >= 2
        _mm512_mask_storeu_ps(x + i, __mmask16(~bits >> i), (__m512)splat(kForbidden));
#else
        IVec set;
        for (int lane = 0; lane < kLanes; ++lane) set[lane] = int32_t(1u << lane);
        set &= splat_int(int32_t(bits >> i));
        store(x + i, set != 0 ? load(x + i) : splat(kForbidden));
#endif
    }
}

// The words [begin, end) of a row of `vocab` logits; those from `words` on have no bit set.
void mask_part(float* logits, int64_t vocab, const uint32_t* mask, int64_t words, int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
        const uint32_t bits = w < words ? mask[w] : 0;
        float* x = logits + w * kBits;
        if ((w + 1) * kBits <= vocab) mask_word(x, bits);
        else
            for (int64_t i = 0; i < vocab - w * kBits; ++i) x[i] = bits >> i & 1 ? x[i] : kForbidden;
    }
}

SelfTest self_test("token masks", [] {
    constexpr int64_t vocab = 32 * 5 + 7;
    const uint32_t mask[] = {0, ~0u, 0x80000001u, 0x00ffa5c3u, 0x12345678u};  // none of the last 7
    float logits[vocab];
    for (int64_t i = 0; i < vocab; ++i) logits[i] = float(i);
    mask_part(logits, vocab, mask, 5, 0, 6);
    for (int64_t i = 0; i < vocab; ++i)
        if (logits[i] != (i < 160 && mask[i / 32] >> i % 32 & 1 ? float(i) : kForbidden)) return false;
    return true;
});

}  // namespace
}  // namespace octavo

// logits: [L, vocab]; masks: [count, words], a bit per token; mask m is of the row logits_row[m], of which none is twice.
OCTAVO_API void octavo_mask_tokens(float* logits, int64_t vocab, int64_t count, const int64_t* logits_row,
                                   const uint32_t* masks, int64_t words) {
    using namespace octavo;
    const int64_t row_words = (vocab + kBits - 1) / kBits;
    parallel_if(count * vocab >= 1 << 17, [&](int thread, int threads) {
        const Range part = split(count * row_words, thread, threads, 16);
        for (int64_t at = part.begin; at < part.end;) {
            const int64_t m = at / row_words, begin = at % row_words;
            const int64_t end = std::min(row_words, begin + part.end - at);
            mask_part(logits + logits_row[m] * vocab, vocab, masks + m * words, words, begin, end);
            at += end - begin;
        }
    });
}
