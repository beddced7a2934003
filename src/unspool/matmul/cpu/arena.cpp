// Small layers would each end in a broken 2 MiB page, so they share: a layer of 1 MiB in 4 KiB
// pages is read a few percent slower (more misses of the address cache), and a page of its own
// wastes one.

#include "matmul/cpu/arena.hpp"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace unspool {
namespace {

constexpr std::size_t kPage = std::size_t(2) << 20;
constexpr std::size_t kShared = 16 * kPage;  // address space: pages are only taken when written
constexpr std::size_t kAlign = 64;

std::size_t up(std::size_t size, std::size_t unit) { return (size + unit - 1) / unit * unit; }

#if defined(__linux__)
std::shared_ptr<void> map(std::size_t bytes) {
  const std::size_t all = bytes + kPage;  // for alignment
  void* found = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) throw std::bad_alloc();
  const auto address = reinterpret_cast<std::uintptr_t>(found);
  void* const aligned = reinterpret_cast<void*>(up(address, kPage));
#ifdef MADV_HUGEPAGE
  madvise(aligned, bytes, MADV_HUGEPAGE);  // advice: may be refused
#endif
  return {aligned, [found, all](void*) { munmap(found, all); }};
}
#else
std::shared_ptr<void> map(std::size_t bytes) {
  void* const found = std::aligned_alloc(kAlign, up(bytes, kAlign));
  if (!found) throw std::bad_alloc();
  std::fill_n(static_cast<uint8_t*>(found), up(bytes, kAlign), uint8_t(0));
  return {found, std::free};
}
#endif

}  // namespace

Block::Block(std::size_t bytes) : size_(bytes) {
  // Never destroyed: blocks may be made while the process ends.
  static std::mutex& mutex = *new std::mutex;
  static std::shared_ptr<void>& open = *new std::shared_ptr<void>;
  static std::size_t used = kShared;
  const std::size_t wanted = up(std::max<std::size_t>(bytes, 1), kAlign);
  const std::lock_guard<std::mutex> lock(mutex);
  if (wanted > kShared / 2) {
    whole_ = map(up(wanted, kPage));
    at_ = static_cast<uint8_t*>(whole_.get());
    return;
  }
  if (used + wanted > kShared) {
    open = map(kShared);
    used = 0;
  }
  whole_ = open;
  at_ = static_cast<uint8_t*>(open.get()) + used;
  used += wanted;
}

}  // namespace unspool
