// The thread pool and the self-test.
//
// Phases follow each other within microseconds while a step runs, and nothing does between steps. So a waiting thread
// spins for a short while and then sleeps in the kernel (futex), which leaves the core to whoever needs it: with two
// replicas on the same cores, a thread that waits for one that is not running gives its core up.
#include "native/common.h"

#if OCTAVO_ISA >= 3
#include "native/amx.h"
#endif

#include <algorithm>
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

constexpr int kSpins = 2000;  // times one pause (about 50 cycles): 30 microseconds

OCTAVO_INLINE void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#ifdef __linux__
void sleep_on(std::atomic<uint32_t>& word, uint32_t seen) {
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}
void wake_all(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
}
#else
void sleep_on(std::atomic<uint32_t>&, uint32_t) { std::this_thread::yield(); }
void wake_all(std::atomic<uint32_t>&) {}
#endif

// Returns the word once arrived(word); whoever changes it calls wake_all where there are sleepers.
template <class F>
uint32_t wait_until(std::atomic<uint32_t>& word, std::atomic<int32_t>& sleepers, const F& arrived) {
    for (int i = 0; i < kSpins; ++i) {
        const uint32_t now = word.load(std::memory_order_acquire);
        if (arrived(now)) return now;
        pause();
    }
    sleepers.fetch_add(1);
    uint32_t now;
    while (!arrived(now = word.load())) sleep_on(word, now);
    sleepers.fetch_sub(1);
    return now;
}

// A word that threads wait on.
struct Signal {
    std::atomic<uint32_t> value{0};
    std::atomic<int32_t> sleepers{0};

    void set(uint32_t next) {
        value.store(next);
        if (sleepers.load() > 0) wake_all(value);
    }

    // Returns the value once it is no longer `seen`.
    uint32_t wait(uint32_t seen) {
        return wait_until(value, sleepers, [seen](uint32_t now) { return now != seen; });
    }
};

constexpr uint32_t kJoined = 256, kClosed = 256, kCount = 255;

struct Pool {
    std::mutex region;  // held while one runs
    std::atomic<int> wanted{1};  // threads, the caller among them; may change between two regions
    int started = 1;             // of those, running
    void (*fn)(void*, int, int) = nullptr;
    void* ctx = nullptr;
    int threads = 1;  // of the region that runs
    Signal begin;  // number of the region << 9 | kJoined | its threads - 1: one word, so that a late thread reads one truth
    Signal arrived;  // rounds of the barrier
    std::atomic<int> missing{0};
    void (*joined)(void*, int) = nullptr;  // of a region that threads may miss
    std::atomic<uint32_t> door{kClosed};   // number of that region << 9 | kClosed | threads in it beside the caller
    std::atomic<int32_t> waiting_at_door{0};
};

// Never destroyed: its threads may outlive static objects at exit, where the kernel ends them.
Pool* pool = new Pool;

// Whether this thread got in before the door of region `seen` closed.
bool enter(uint32_t seen) {
    uint32_t door = pool->door.load();
    while (door >> 9 == seen >> 9 && !(door & kClosed))
        if (pool->door.compare_exchange_weak(door, door + 1)) return true;
    return false;
}

void leave() {
    pool->door.fetch_sub(1);
    if (pool->waiting_at_door.load() > 0) wake_all(pool->door);
}

void work(int thread, uint32_t seen) {
    for (;;) {
        seen = pool->begin.wait(seen);
        const int threads = int(seen & kCount) + 1;
        if (thread >= threads) continue;
        if (!(seen & kJoined)) {
            pool->fn(pool->ctx, thread, threads);
            barrier();
        } else if (enter(seen)) {
            pool->joined(pool->ctx, thread);
            leave();
        }
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

void set_threads(int64_t threads) {
    std::lock_guard<std::mutex> lock(pool->region);
    pool->wanted = int(threads < 1 ? 1 : threads > kMaxThreads ? kMaxThreads : threads);
}

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
    const uint32_t number = (pool->begin.value.load() >> 9) + 1;
    if (pool->threads > 1) pool->begin.set(number << 9 | uint32_t(pool->threads - 1));
    fn(ctx, 0, pool->threads);
    barrier();
}

void join(void (*fn)(void*, int), void* ctx, int most) {
    std::lock_guard<std::mutex> lock(pool->region);
    start_threads();
    const int threads = std::min(most, pool->wanted.load());
    pool->joined = fn;
    pool->ctx = ctx;
    const uint32_t number = (pool->begin.value.load() >> 9) + 1;
    if (threads > 1) {
        pool->door.store(number << 9);
        pool->begin.set(number << 9 | kJoined | uint32_t(threads - 1));
    }
    fn(ctx, 0);
    if (threads == 1) return;
    pool->door.fetch_or(kClosed);
    wait_until(pool->door, pool->waiting_at_door, [](uint32_t door) { return (door & kCount) == 0; });
}

void Phase::finish(uint32_t units, uint32_t of) {
    if (done.fetch_add(units) + units == of && sleepers.load() > 0) wake_all(done);
}

void Phase::wait(uint32_t of) {
    wait_until(done, sleepers, [of](uint32_t now) { return now == of; });
}

SelfTest::SelfTest(const char* name_, bool (*passes_)()) : name(name_), passes(passes_), next(first_test) {
    first_test = this;
}

}  // namespace octavo

OCTAVO_API void octavo_set_threads(int64_t threads) { octavo::set_threads(threads); }

OCTAVO_API int64_t octavo_get_threads() { return octavo::num_threads(); }

// What keeps this process from using the library, or null; to be asked before anything else.
OCTAVO_API const char* octavo_prepare() {
#if OCTAVO_ISA >= 3
    if (!octavo::amx::permitted()) return "the kernel does not permit AMX";
#endif
    return nullptr;
}

// The name of the first check that fails, or null.
OCTAVO_API const char* octavo_self_test() {
    for (octavo::SelfTest* test = octavo::first_test; test; test = test->next)
        if (!test->passes()) return test->name;
    return nullptr;
}
