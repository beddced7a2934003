// Runs the products that test_other_machines.py wrote down, on the machine this is compiled for.
//
//   replay IN OUT
//
// IN, little endian, one product after the other:
//   int64  path, kind, n, k, batches, arrays, bytes of a CodedMatrix, bytes of a Turn
//   CodedMatrix, Turn, Turn; their pointers are the addresses the arrays had where they came from
//   arrays times: uint64 address, uint64 bytes, the bytes
//   int64 [batches] rows of activations; float32 [largest of them, k]
// OUT, for each: float32 [rows, n] of every batch; int64, whether codes are owned; the codes if so.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <vector>

#include "matmul/cpu/coded_matrix.hpp"
#include "matmul/cpu/product.hpp"

using namespace unspool;

extern "C" {
int unspool_prepare(const CodedMatrix*, const Turn*, const Turn*, int64_t n, int64_t k,
                    int32_t path, int32_t kind, int64_t threads, void** out);
int unspool_multiply(const Product* const*, int64_t count, const void* x, int32_t type, int64_t m,
                     int64_t x_stride, const Result*, int64_t threads);
int unspool_owns_codes(const void*);
int unspool_canonical(const void*, int64_t threads, uint8_t* out);
void unspool_release(void*);
}

namespace {

constexpr int64_t kThreads = 2;

void expect(bool holds, const char* what, int found) {
  if (holds) return;
  std::fprintf(stderr, "%s: %d\n", what, found);
  std::exit(1);
}

class Reader {
 public:
  explicit Reader(const char* path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
  }
  bool more() const { return at_ < bytes_.size(); }
  template <class T>
  T take() {
    T one;
    std::memcpy(&one, take(sizeof one).data(), sizeof one);
    return one;
  }
  std::vector<char> take(std::size_t count) {
    expect(at_ + count <= bytes_.size(), "the file ends early", int(at_));
    at_ += count;
    return {bytes_.begin() + int64_t(at_ - count), bytes_.begin() + int64_t(at_)};
  }

 private:
  std::vector<char> bytes_;
  std::size_t at_ = 0;
};

struct Case {
  int64_t path, kind, n, k, batches, arrays, matrix_bytes, turn_bytes;
};

// The arrays that pointers of a case mean, by the address they had.
struct Arrays {
  std::map<uint64_t, std::vector<char>> by_address;
  template <class T>
  void mend(const T*& pointer) {
    if (!pointer) return;
    const std::vector<char>& array = by_address.at(reinterpret_cast<uint64_t>(pointer));
    pointer = reinterpret_cast<const T*>(array.data());
  }
  void mend(const void*& pointer) { mend(reinterpret_cast<const char*&>(pointer)); }
};

template <class T>
void put(std::ofstream& out, const T* data, std::size_t count) {
  out.write(reinterpret_cast<const char*>(data), std::streamsize(count * sizeof(T)));
}

void multiply(const Case& c, const void* product, Reader& in, std::ofstream& out) {
  std::vector<int64_t> batches;
  for (int64_t i = 0; i < c.batches; ++i) batches.push_back(in.take<int64_t>());
  const int64_t most = *std::max_element(batches.begin(), batches.end());
  const std::vector<char> x = in.take(std::size_t(most * c.k) * sizeof(float));
  const Product* const products[] = {static_cast<const Product*>(product)};
  for (const int64_t m : batches) {
    std::vector<float> y(std::size_t(m * c.n));
    const Result result{y.data(), c.n, nullptr};
    const int status =
        unspool_multiply(products, 1, x.data(), kFloat32, m, c.k, &result, kThreads);
    expect(status == 0, "multiply", status);
    put(out, y.data(), y.size());
  }
}

void put_codes(const CodedMatrix& m, const void* product, std::ofstream& out) {
  const int64_t owned = unspool_owns_codes(product);
  put(out, &owned, 1);
  if (!owned) return;
  std::vector<uint8_t> codes(std::size_t(m.n / m.tile_rows * m.across() * m.words * 4));
  unspool_canonical(product, kThreads, codes.data());
  put(out, codes.data(), codes.size());
}

void replay(Reader& in, std::ofstream& out) {
  const Case c = in.take<Case>();
  expect(c.matrix_bytes == sizeof(CodedMatrix), "bytes of a matrix", int(sizeof(CodedMatrix)));
  expect(c.turn_bytes == sizeof(Turn), "bytes of a turn", int(sizeof(Turn)));
  CodedMatrix m = in.take<CodedMatrix>();
  Turn turns[] = {in.take<Turn>(), in.take<Turn>()};
  Arrays arrays;
  for (int64_t i = 0; i < c.arrays; ++i) {
    const uint64_t address = in.take<uint64_t>(), size = in.take<uint64_t>();
    arrays.by_address[address] = in.take(size);
  }
  arrays.mend(m.codes);
  arrays.mend(m.values);
  arrays.mend(m.scale_values);
  for (const void** pointer : {&m.entries, &m.parameter, &m.fast, &m.scale}) arrays.mend(*pointer);
  for (Turn& turn : turns) {
    arrays.mend(turn.before);
    arrays.mend(turn.after);
  }
  void* product = nullptr;
  const int status = unspool_prepare(&m, &turns[0], &turns[1], c.n, c.k, int32_t(c.path),
                                     int32_t(c.kind), kThreads, &product);
  expect(status == 0, "prepare", status);
  multiply(c, product, in, out);
  put_codes(m, product, out);
  unspool_release(product);
}

}  // namespace

int main(int argc, char** argv) {
  expect(argc == 3, "replay IN OUT; arguments", argc - 1);
  Reader in(argv[1]);
  std::ofstream out(argv[2], std::ios::binary);
  while (in.more()) replay(in, out);
  return out.good() ? 0 : 1;
}
