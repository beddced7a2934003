// How quickly this machine reads main memory: what kernels that stream weights are held against.

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

#include "matmul/cpu/arena.hpp"
#include "matmul/cpu/features.hpp"
#include "pool.hpp"

namespace unspool {
namespace {

constexpr std::size_t kPiece = std::size_t(1) << 20;  // what a thread takes at a time
constexpr std::size_t kVectors = 8;  // sums that are independent of each other

#define UNSPOOL_INLINE inline __attribute__((always_inline))

// The exclusive-or of all words of a piece, in vectors as wide as V, read at one place or at four
// in turn: some processors fetch ahead further for several streams (Zen 3: 18 GB/s in the place of
// 15).
template <class V, std::size_t streams>
UNSPOOL_INLINE uint64_t fold(const uint8_t* bytes) {
  V sums[kVectors] = {};
  const V* const vectors = reinterpret_cast<const V*>(bytes);
  constexpr std::size_t part = kPiece / sizeof(V) / streams;
  for (std::size_t i = 0; i < part; i += kVectors)
    for (std::size_t s = 0; s < streams; ++s)
      for (std::size_t j = 0; j < kVectors; ++j) sums[j] ^= vectors[s * part + i + j];
  for (std::size_t j = 1; j < kVectors; ++j) sums[0] ^= sums[j];
  uint64_t all = 0;
  for (std::size_t i = 0; i < sizeof(V) / 8; ++i) all ^= uint64_t(sums[0][i]);
  return all;
}

// Vectors for one family of machines, and how they are read.
#define UNSPOOL_READER(name, bytes, attributes)                              \
  typedef uint64_t name##Words __attribute__((vector_size(bytes), may_alias)); \
  attributes uint64_t name(const uint8_t* at, bool four) {                   \
    return four ? fold<name##Words, 4>(at) : fold<name##Words, 1>(at);       \
  }

UNSPOOL_READER(fold_portable, 16, )
#ifdef UNSPOOL_X86_TARGETS
UNSPOOL_READER(fold_avx2, 32, __attribute__((target("avx2"))))
UNSPOOL_READER(fold_avx512, 64, __attribute__((target("avx512f"))))
#endif

typedef uint64_t (*Fold)(const uint8_t*, bool four);

Fold widest() {
#ifdef UNSPOOL_X86_TARGETS
  if (runs(kAvx512)) return fold_avx512;
  if (runs(kAvx2)) return fold_avx2;
#endif
  return fold_portable;
}

}  // namespace
}  // namespace unspool

#define UNSPOOL_EXPORT extern "C" __attribute__((visibility("default")))

// That many bytes in pages of 2 MiB, word i holding i * 0x9E3779B97F4A7C15; null: no memory.
UNSPOOL_EXPORT void* unspool_read_memory(std::size_t bytes) {
  try {
    std::unique_ptr<unspool::Block> block(new unspool::Block(bytes));
    auto* const words = reinterpret_cast<uint64_t*>(block->bytes());
    // Pages that were never written would all be one page of zeros.
    for (std::size_t i = 0; i < bytes / 8; ++i) words[i] = i * 0x9E3779B97F4A7C15;
    return block.release();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

UNSPOOL_EXPORT void unspool_read_release(void* memory) {
  delete static_cast<unspool::Block*>(memory);
}

// Reads `count` bytes from byte `first` on, whole MiB, with the widest loads of this machine, in
// one stream per thread or four; the exclusive-or of their words.
UNSPOOL_EXPORT uint64_t unspool_read(const void* memory, std::size_t first, std::size_t count,
                                     int four, std::size_t threads) {
  using namespace unspool;
  const uint8_t* const bytes = static_cast<const Block*>(memory)->bytes() + first;
  const Fold fold = widest();
  std::atomic<uint64_t> all{0};
  share(count / kPiece, threads, [&](std::size_t, std::size_t piece) {
    all.fetch_xor(fold(bytes + piece * kPiece, four != 0), std::memory_order_relaxed);
  });
  return all.load();
}

UNSPOOL_EXPORT int unspool_read_width() {
  using namespace unspool;
  const Fold fold = widest();
#ifdef UNSPOOL_X86_TARGETS
  if (fold == fold_avx512) return 64;
  if (fold == fold_avx2) return 32;
#endif
  return fold == fold_portable ? 16 : 0;
}
