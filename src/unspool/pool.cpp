#include "pool.hpp"

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <cstring>
#endif

namespace unspool {
namespace {

typedef void (*Work)(void*, std::size_t);
typedef void (*GompParallel)(void (*)(void*), void*, unsigned threads, unsigned flags);
typedef int (*OmpInParallel)();

struct OpenMp {
  GompParallel parallel = nullptr;
  OmpInParallel in_parallel = nullptr;
};

#if defined(__linux__)
int find_gomp(dl_phdr_info* info, std::size_t, void* found) {
  const char* const name = info->dlpi_name ? std::strrchr(info->dlpi_name, '/') : nullptr;
  if (!name || std::strncmp(name, "/libgomp", 8) != 0) return 0;
  *static_cast<const char**>(found) = info->dlpi_name;
  return 1;
}

// The runtime that is loaded now, if any; asked again until there is one.
OpenMp open_mp() {
  static std::mutex mutex;
  static OpenMp known;
  static unsigned long long checked = ~0ull;  // libraries loaded when last asked
  const std::lock_guard<std::mutex> lock(mutex);
  if (known.parallel) return known;
  unsigned long long loads = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* out) {
        *static_cast<unsigned long long*>(out) = info->dlpi_adds;
        return 1;
      },
      &loads);
  if (loads == checked) return known;
  checked = loads;
  const char* path = nullptr;
  dl_iterate_phdr(find_gomp, &path);
  void* const library = path ? dlopen(path, RTLD_NOW | RTLD_NOLOAD) : nullptr;
  if (library) {
    known.in_parallel = reinterpret_cast<OmpInParallel>(dlsym(library, "omp_in_parallel"));
    if (known.in_parallel)
      known.parallel = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
  }
  return known;
}
#else
OpenMp open_mp() { return {}; }
#endif

// A worker takes its number from a counter: fewer may come than were asked for.
struct Team {
  Work work;
  void* context;
  std::atomic<std::size_t> next{0};
  void join() { work(context, next.fetch_add(1, std::memory_order_relaxed)); }
};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Threads that sleep until a team is formed. One team at a time: who comes second works alone.
class Pool {
 public:
  void run(std::size_t threads, Team& team) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return team.join();
    grow(threads - 1);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      team_ = &team;
      places_ = std::min(threads - 1, workers_);
      busy_ = places_;
      ++round_;
    }
    wake_.notify_all();
    team.join();
    // Workers that have not started yet need not: the items are gone.
    std::unique_lock<std::mutex> lock(mutex_);
    busy_ -= places_;
    places_ = 0;
    done_.wait(lock, [&] { return busy_ == 0; });
    team_ = nullptr;
  }

 private:
  void grow(std::size_t wanted) {
    try {
      while (workers_ < wanted) {
        std::thread([this] { serve(); }).detach();
        ++workers_;
      }
    } catch (const std::system_error&) {
      // The system has no thread left to give: those that run do the work.
    }
  }

  void serve() {
    uint64_t seen = 0;
    for (;;) {
      // A layer follows a layer within microseconds; waking from sleep takes tens of them.
      for (int i = 0; i < 2000 && round_.load(std::memory_order_acquire) == seen; ++i) pause();
      Team* team = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_.load(std::memory_order_relaxed) != seen; });
        seen = round_.load(std::memory_order_relaxed);
        if (places_ == 0) continue;
        --places_;
        team = team_;
      }
      team->join();
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> round_{0};
  Team* team_ = nullptr;
  std::size_t workers_ = 0, places_ = 0, busy_ = 0;
};

// Never destroyed: its threads run until the process ends. A forked child has none of them.
Pool& pool() {
  static Pool* own = new Pool;
#if defined(__linux__)
  static pid_t process = getpid();
  if (process != getpid()) {
    process = getpid();
    own = new Pool;
  }
#endif
  return *own;
}

// Whether this process is a fork of the one that loaded the library: GNU OpenMP waits for ever for
// threads that did not come along.
#if defined(__linux__)
const pid_t loaded_by = getpid();
bool forked_since() { return getpid() != loaded_by; }
#else
bool forked_since() { return false; }
#endif

}  // namespace

void run_on_threads(std::size_t threads, void (*work)(void*, std::size_t), void* context) {
  Team team{work, context};
  const OpenMp omp = open_mp();
  if (!omp.parallel || forked_since()) return pool().run(threads, team);
  if (omp.in_parallel()) return team.join();
  omp.parallel([](void* t) { static_cast<Team*>(t)->join(); }, &team, unsigned(threads), 0);
}

const char* thread_pool() { return open_mp().parallel ? "openmp" : "own"; }

}  // namespace unspool

extern "C" __attribute__((visibility("default"))) const char* unspool_thread_pool() {
  return unspool::thread_pool();
}
