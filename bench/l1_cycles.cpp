// Cycles of a strip kernel's loop with all data in the L1: appended by l1_cycles.py to the
// translation unit of perf/strip_loop.py, whose `counted` is the kernel and `Counted` its code.
//
// A call takes 256 or 512 columns of one strip; their difference is the loop's alone, without what a
// call does once. Cycles are time by the clock times the frequency, which a chain of dependent adds,
// one a cycle, tells in the same round: `counter` registers count at another frequency.
//
//   round      chain, 256 columns, 512 columns    prints (t512 - t256) / (4 lines of 64) / t of a cycle
#include <time.h>

#include <vector>

namespace {

constexpr int64_t kShort = 256, kLong = 512;  // 2 bits of 64 rows: 4 and 8 KiB
constexpr int kCalls = 100, kAdds = 100000, kFarAhead = 8192;

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Ten adds of a register to itself's sum: no processor does two of them in a cycle.
double seconds_of_a_cycle() {
  uint64_t sum = 1, one = 1;
  const double begun = now();
  for (int i = 0; i < kAdds / 10; ++i)
    __asm__ volatile(
        "add %1, %0\n add %1, %0\n add %1, %0\n add %1, %0\n add %1, %0\n"
        "add %1, %0\n add %1, %0\n add %1, %0\n add %1, %0\n add %1, %0\n"
        : "+r"(sum)
        : "r"(one));
  return (now() - begun) / kAdds;
}

double seconds_of_a_call(unspool::StripJob& job, unspool::Strips& strips, int64_t k, float* out) {
  strips.k = strips.group = strips.block = k;
  unspool::counted(job, 0, out);
  const double begun = now();
  for (int i = 0; i < kCalls; ++i) unspool::counted(job, 0, out);
  return (now() - begun) / kCalls;
}

}  // namespace

int main(int, char** arguments) {
  using namespace unspool;
  const int m = atoi(arguments[1]), rounds = atoi(arguments[2]);
  constexpr int64_t kBytes = kernels::Counted::kQwords * kernels::kWidth * kLong /
                             kernels::columns_of<kernels::Counted>();
  Strips strips = {};
  for (int i = 0; i < 128; ++i) strips.plan.table[0][i] = strips.plan.table[1][i] = uint8_t(i);
  strips.code = Block(sizeof(kernels::Counted));
  new (strips.code.bytes()) kernels::Counted(strips.plan);
  strips.codes = Block(kBytes + kFarAhead);
  for (int64_t i = 0; i < kBytes; ++i) strips.codes.bytes()[i] = uint8_t(i * 2654435761u >> 13);
  const std::vector<int8_t> q(std::size_t(m) * kChunkColumns, 1);
  const std::vector<int32_t> starts(std::size_t(m), 0);
  const std::vector<float> scales(std::size_t(m) * 4, 1.0f);
  std::vector<float> out(std::size_t(m) * kernels::kWidth);
  StripJob job = {strips, {m, q.data(), starts.data(), scales.data()}, 1.0f, 0};
  for (int round = -3; round < rounds; ++round) {  // three to warm up
    const double cycle = seconds_of_a_cycle();
    const double few = seconds_of_a_call(job, strips, kShort, out.data());
    const double many = seconds_of_a_call(job, strips, kLong, out.data());
    const double lines = double((kLong - kShort) * kernels::kWidth) / 64;
    if (round >= 0) std::printf("%.4f %.4f\n", (many - few) / lines / cycle, 1e-9 / cycle);
  }
  return 0;
}
