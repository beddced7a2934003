// Every function of lanes_avx512.hpp, on emulated instructions, against its plain twin in
// lanes_portable.hpp: all bytes the same on random and extreme inputs. Prints the functions that
// differ; no output and status 0 where none does.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "avx512_by_simde.hpp"
#include "matmul/cpu/coded_matrix.hpp"
#include "matmul/cpu/strips.hpp"

#define UNSPOOL_INLINE inline
#define UNSPOOL_UNROLL
#define UNSPOOL_BFLOAT16
namespace unspool {
namespace emulated {
#include "matmul/cpu/lanes_avx512.hpp"
}  // namespace emulated
namespace plain {
#include "matmul/cpu/lanes_portable.hpp"
}  // namespace plain
}  // namespace unspool

namespace {

struct Register {
  uint8_t b[64];
};
template <class Vector>
Register bytes_of(const Vector& vector) {
  static_assert(sizeof vector == sizeof(Register), "registers of 64 bytes");
  Register r;
  std::memcpy(&r, &vector, sizeof r);
  return r;
}

int failures = 0;

void expect(bool same, const char* what) {
  if (same) return;
  ++failures;
  std::printf("%s\n", what);
}

bool same_bytes(const Register& a, const Register& b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

// Floats bit by bit; a NaN is any NaN.
bool same_floats(const Register& a, const Register& b) {
  float x[16], y[16];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  for (int i = 0; i < 16; ++i)
    if (std::memcmp(x + i, y + i, 4) != 0 && !(std::isnan(x[i]) && std::isnan(y[i]))) return false;
  return true;
}

// The same expression over the lanes of both.
#define EMULATED(...) [&] { using namespace unspool::emulated; return bytes_of(__VA_ARGS__); }()
#define PLAIN(...) [&] { using namespace unspool::plain; return bytes_of(__VA_ARGS__); }()
#define SAME(what, ...) expect(same_bytes(EMULATED(__VA_ARGS__), PLAIN(__VA_ARGS__)), what)
#define SAME_FLOATS(what, ...) expect(same_floats(EMULATED(__VA_ARGS__), PLAIN(__VA_ARGS__)), what)

std::mt19937_64 generator(1);

Register random_register() {
  uint64_t words[8];
  for (uint64_t& word : words) word = generator();
  return bytes_of(words);
}

// Random registers; all bits, none, ends of signed and unsigned numbers of 8, 16 and 32 bits.
std::vector<Register> inputs() {
  std::vector<Register> all;
  for (const uint8_t b : {0x00, 0xff, 0x80, 0x7f, 0x01, 0x55}) {
    all.emplace_back();
    std::memset(&all.back(), b, sizeof(Register));
  }
  for (const uint32_t d : {0x80000000u, 0x7fffffffu, 0x00010000u, 0x01000001u, 0x00ff00ffu}) {
    uint32_t dwords[16];
    for (uint32_t& dword : dwords) dword = d;
    all.push_back(bytes_of(dwords));
  }
  for (int i = 0; i < 100; ++i) all.push_back(random_register());
  return all;
}

Register masked(Register r, uint8_t mask) {
  for (uint8_t& b : r.b) b &= mask;
  return r;
}

template <int Count>
void shifts(const Register& a, const Register& b) {
  SAME("shift_words right", shift_words<Count % 16>(load(&a)));
  SAME("shift_words left", shift_words<-(Count % 16)>(load(&a)));
  SAME("funnel_qwords", funnel_qwords<Count>(load(&a), load(&b)));
}
template <int... Counts>
void all_shifts(const Register& a, const Register& b, std::integer_sequence<int, Counts...>) {
  (shifts<Counts + 1>(a, b), ...);
}

// The table of a code is repeated over index bits that it does not use.
template <int Bits>
void look_up(const Register& index) {
  uint8_t table[128];
  for (int i = 0; i < 128; ++i)
    table[i] = i < 1 << Bits ? uint8_t(generator()) : table[i & ((1 << Bits) - 1)];
  SAME("LookUp", [&] {
    LookUp<Bits> tables;
    tables.set(table);
    return tables.at(load(&index));
  }());
}

void on_bytes(const Register& a, const Register& b, const Register& c) {
  SAME("load", load(&a));
  SAME("store", [&] {
    Register to;
    store(&to, load(&a));
    return to;
  }());
  SAME("broadcast_byte", broadcast_byte(a.b[0]));
  uint32_t dword;
  std::memcpy(&dword, &a, 4);
  SAME("broadcast_dword", broadcast_dword(dword));
  SAME("select", select(load(&a), load(&b), load(&c)));
  SAME("exclusive_or", exclusive_or(load(&a), load(&b)));
  const Register places = masked(b, 15);
  SAME("shuffle", shuffle(load(&a), load(&places)));
  SAME("multiply_add", multiply_add(load(&a), load(&b), load(&c)));
  SAME("dot", dot<unspool::kNarrow>(load(&a), load(&b), load(&c)));
  SAME("dot of wide levels", dot<unspool::kWide>(load(&a), load(&b), load(&c)));
  SAME("four_activations", four_activations(reinterpret_cast<const int8_t*>(&a)));
  uint64_t starts;
  std::memcpy(&starts, &b, 8);
  starts &= 0x3f3f3f3f3f3f3f3f;
  SAME("Windows", [&] {
    Windows windows;
    windows.set(starts);
    return windows.cut(load(&a));
  }());
  SAME("upper_nibbles", masked(bytes_of(upper_nibbles(load(&a))), 15));  // the rest is not read
  look_up<1>(a), look_up<2>(a), look_up<3>(a), look_up<4>(a);
  look_up<5>(a), look_up<6>(a), look_up<7>(a);
}

void on_floats(const Register& a, const Register& b) {
  const auto* const x = reinterpret_cast<const float*>(&a);
  const auto* const y = reinterpret_cast<const float*>(&b);
  SAME("load_floats", load_floats(x));
  SAME("store_floats", [&] {
    Register to;
    store_floats(reinterpret_cast<float*>(&to), load_floats(x));
    return to;
  }());
  SAME_FLOATS("broadcast", broadcast(x[0]));
  SAME_FLOATS("product", product(load_floats(x), load_floats(y)));
  SAME_FLOATS("sum", sum(load_floats(x), load_floats(y)));
  SAME("to_floats", to_floats(load(&a)));
}

// Small integers in bfloat16: SIMDe adds a pair in another order, which these do not feel.
Register small_integers() {
  uint16_t pairs[32];
  for (uint16_t& number : pairs) {
    const float integer = float(int(generator() % 33) - 16);
    uint32_t bits;
    std::memcpy(&bits, &integer, 4);
    number = uint16_t(bits >> 16);
  }
  return bytes_of(pairs);
}

void on_pairs() {
  const Register a = small_integers(), b = small_integers();
  float start[16];
  for (float& one : start) one = float(int(generator() % 2001) - 1000);
  SAME("dot_pairs", dot_pairs(load_floats(start), load(&a), load(&b)));
}

// Every finite bit pattern of the scales.
void on_scales() {
  uint16_t sixteen[16];
  uint8_t small[16];
  for (uint32_t first = 0; first < 1 << 16; first += 16) {
    for (uint32_t i = 0; i < 16; ++i)
      sixteen[i] = uint16_t(((first + i) & 0x7c00) == 0x7c00 ? 0 : first + i);
    SAME("halves", halves(sixteen));
  }
  for (uint32_t first = 0; first < 1 << 8; first += 16) {
    for (uint32_t i = 0; i < 16; ++i)
      small[i] = uint8_t((first + i) % 0x80 == 0x7f ? 0 : first + i);
    SAME("e4m3_256ths", e4m3_256ths(small));
    for (uint32_t i = 0; i < 16; ++i) small[i] = uint8_t(first + i == 0xff ? 0 : first + i);
    SAME("e8m0", e8m0(small));
  }
}

}  // namespace

int main() {
  const std::vector<Register> all = inputs();
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Register &a = all[i], &b = all[(7 * i + 3) % all.size()];
    on_bytes(a, b, all[(11 * i + 5) % all.size()]);
    on_bytes(b, a, a);
    on_floats(a, b);
    on_pairs();
    all_shifts(a, b, std::make_integer_sequence<int, 63>());
  }
  on_scales();
  return failures ? 1 : 0;
}
