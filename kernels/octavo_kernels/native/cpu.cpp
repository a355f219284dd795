// The thread pool and the self-test.
//
// Regions follow each other within microseconds while a step runs, and not at all between steps. So a waiting thread
// spins for a short while and then sleeps in the kernel (futex), which leaves the core to whoever needs it: with two
// replicas on the same cores, a thread that waits for one that is not running gives its core up.
#include "native/common.h"

#include <atomic>
#include <mutex>
#include <pthread.h>
#include <thread>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace octavo {
namespace {

constexpr int kSpins = 4000;  // times one pause (about 40 cycles): 50 microseconds

OCTAVO_INLINE void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A counter that threads wait on.
struct Signal {
    std::atomic<uint32_t> value{0};
    std::atomic<int32_t> sleepers{0};

    void set(uint32_t next) {
        value.store(next, std::memory_order_seq_cst);
        if (sleepers.load(std::memory_order_seq_cst) > 0) wake();
    }

    // Returns the value once it is no longer `seen`.
    uint32_t wait(uint32_t seen) {
        for (int i = 0; i < kSpins; ++i) {
            const uint32_t now = value.load(std::memory_order_acquire);
            if (now != seen) return now;
            pause();
        }
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        while (value.load(std::memory_order_seq_cst) == seen) sleep(seen);
        sleepers.fetch_sub(1, std::memory_order_seq_cst);
        return value.load(std::memory_order_acquire);
    }

#ifdef __linux__
    void sleep(uint32_t seen) { syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0); }
    void wake() { syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0); }
#else
    void sleep(uint32_t) { std::this_thread::yield(); }
    void wake() {}
#endif
};

struct Pool {
    std::mutex region;  // held while one runs
    int wanted = 1;     // threads, the caller among them
    int started = 1;    // of those, running
    void (*fn)(void*, int, int) = nullptr;
    void* ctx = nullptr;
    int threads = 1;  // of the region that runs
    Signal begin;    // number of the region << 8 | its threads - 1: one word, so that a late thread reads one truth
    Signal arrived;  // rounds of the barrier
    std::atomic<int> missing{0};
};

// Never destroyed: its threads may outlive static objects at exit, where the kernel ends them.
Pool* pool = new Pool;

void work(int thread, uint32_t seen) {
    for (;;) {
        seen = pool->begin.wait(seen);
        const int threads = int(seen & 255) + 1;
        if (thread >= threads) continue;
        pool->fn(pool->ctx, thread, threads);
        barrier();
    }
}

// Threads that already run and are not wanted stay asleep; missing ones are started.
void start_threads() {
    for (; pool->started < pool->wanted; ++pool->started) {
        const uint32_t seen = pool->begin.value.load();
        std::thread(work, pool->started, seen).detach();
    }
}

// A child has none of its parent's threads; the old pool (its mutex may be locked) is left behind.
void after_fork() {
    const int wanted = pool->wanted;
    pool = new Pool;
    pool->wanted = wanted;
}

const int fork_handler = pthread_atfork(nullptr, nullptr, after_fork);

SelfTest* first_test = nullptr;

}  // namespace

int num_threads() { return pool->wanted; }

void barrier() {
    if (pool->threads == 1) return;
    const uint32_t seen = pool->arrived.value.load(std::memory_order_acquire);
    if (pool->missing.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        pool->missing.store(pool->threads, std::memory_order_relaxed);
        pool->arrived.set(seen + 1);
    } else {
        pool->arrived.wait(seen);
    }
}

void parallel(void (*fn)(void*, int, int), void* ctx) {
    std::lock_guard<std::mutex> lock(pool->region);
    start_threads();
    pool->fn = fn;
    pool->ctx = ctx;
    pool->threads = pool->wanted;
    pool->missing.store(pool->threads, std::memory_order_relaxed);
    const uint32_t number = (pool->begin.value.load() >> 8) + 1;
    if (pool->threads > 1) pool->begin.set(number << 8 | uint32_t(pool->threads - 1));
    fn(ctx, 0, pool->threads);
    barrier();
}

SelfTest::SelfTest(const char* name_, bool (*passes_)()) : name(name_), passes(passes_), next(first_test) {
    first_test = this;
}

}  // namespace octavo

OCTAVO_API void octavo_set_threads(int64_t threads) {
    std::lock_guard<std::mutex> lock(octavo::pool->region);
    octavo::pool->wanted = int(threads < 1 ? 1 : threads > octavo::kMaxThreads ? octavo::kMaxThreads : threads);
}

OCTAVO_API int64_t octavo_get_threads() { return octavo::num_threads(); }

// The name of the first check that fails, or null.
OCTAVO_API const char* octavo_self_test() {
    for (octavo::SelfTest* test = octavo::first_test; test; test = test->next)
        if (!test->passes()) return test->name;
    return nullptr;
}
