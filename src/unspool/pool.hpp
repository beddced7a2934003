// One loop over independent items, shared by a few threads.
//
// Where the process has a GNU OpenMP runtime already (importing torch loads one), its threads do
// the work: two pools on the same cores would take turns, and the other pool's threads spin for
// milliseconds after each of its loops. Else a small pool of our own does.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>

namespace unspool {

// Runs work(context, worker) on up to `threads` threads, this one among them, and waits. Fewer run
// where the system has none left, or where the caller is itself a worker.
void run_on_threads(std::size_t threads, void (*work)(void*, std::size_t), void* context);

// "openmp" or "own": which threads do the work.
const char* thread_pool();

// Calls body(worker, item) once for every item in [0, items). Items are handed out one at a time by
// an atomic counter, so a slow core takes fewer of them; a body that writes only its own item's
// output gives the same bytes for every thread count. `worker` < threads names the scratch memory
// a body may use. The body must not throw: allocate before the loop.
template <class Body>
void share(std::size_t items, std::size_t threads, const Body& body) {
  const std::size_t wanted = std::min(threads, items);
  if (wanted <= 1) {
    for (std::size_t item = 0; item < items; ++item) body(std::size_t(0), item);
    return;
  }
  struct Shared {
    std::atomic<std::size_t> next;
    std::size_t items;
    const Body& body;
  } shared{{0}, items, body};
  run_on_threads(
      wanted,
      [](void* context, std::size_t worker) {
        Shared& s = *static_cast<Shared*>(context);
        for (std::size_t item; (item = s.next.fetch_add(1, std::memory_order_relaxed)) < s.items;)
          s.body(worker, item);
      },
      &shared);
}

}  // namespace unspool
