// One loop over independent items, shared by a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace unspool {

// Calls body(worker, item) once for every item in [0, items). Items are handed out one at a time by
// an atomic counter, so a slow core takes fewer of them; a body that writes only its own item's
// output gives the same bytes for every thread count. `worker` < threads names the scratch memory
// a body may use. The body must not throw: allocate before the loop.
template <class Body>
void parallel_for(std::size_t items, std::size_t threads, const Body& body) {
  std::atomic<std::size_t> next{0};
  const auto work = [&](std::size_t worker) {
    for (std::size_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
      body(worker, item);
    }
  };
  std::vector<std::thread> others;
  const std::size_t wanted = std::min(threads, items);
  try {
    others.reserve(wanted);
    for (std::size_t worker = 1; worker < wanted; ++worker) others.emplace_back(work, worker);
  } catch (const std::system_error&) {
    // The system has no thread left to give: those already running and this one do the work.
  }
  work(0);
  for (std::thread& other : others) other.join();
}

}  // namespace unspool
