#include "native/common.h"

// Per piece of memory the sum of all 64-bit words, each xored with its index times kMix; then the sum over the pieces.
// Sums wrap, so that they are the same on any number of threads. Of a size, the part that is a multiple of 64 counts.
OCTAVO_API int64_t octavo_checksum(const uint8_t* const* pieces, const int64_t* sizes, int64_t count) {
    using namespace octavo;
    typedef uint64_t Words __attribute__((vector_size(64)));
    constexpr uint64_t kMix = 0x9e3779b97f4a7c15;
    uint64_t sums[kMaxThreads] = {};
    parallel([&](int thread, int threads) {
        Words sum = {};
        for (int64_t piece = 0; piece < count; ++piece) {
            const uint8_t* data = pieces[piece];
            const Range mine = split(sizes[piece] / 64, thread, threads);
            Words mix;
            for (int lane = 0; lane < 8; ++lane) mix[lane] = kMix * (8 * uint64_t(mine.begin) + lane);
            for (int64_t i = mine.begin; i < mine.end; ++i) {
                __builtin_prefetch(data + 64 * i + 16384, 0, 2);
                Words words;
                std::memcpy(&words, data + 64 * i, 64);
                sum += words ^ mix;
                mix += 8 * kMix;
            }
        }
        for (int lane = 0; lane < 8; ++lane) sums[thread] += sum[lane];
    });
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    return int64_t(total);
}
