// y = x W^T for one or several matrices that read the same x: activations are made once, the strips
// of all matrices shared out together.

#include "matmul/cpu/product.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>

#include "encode/rotate.hpp"
#include "matmul/cpu/float_product.hpp"
#include "matmul/cpu/integer.hpp"
#include "matmul/cpu/pairs.hpp"
#include "pool.hpp"

namespace {
using namespace unspool;

constexpr int kNoMemory = 1, kNoSuchPath = 2, kNoSuchProduct = 3;
constexpr std::size_t kKeptFloats = 4 << 20;  // 16 MiB: larger workspaces are made anew
constexpr int64_t kMostRows = 512;  // totals of a strip: 128 KiB, in the L2; then decode again

// Everything that a call needs, kept from call to call.
struct Workspace {
  std::vector<Quantized> activations;
  std::vector<float> scratch, turned, wide;  // float32 [m, padded columns and rows]
  std::size_t floats() const { return scratch.size() + turned.size() + wide.size(); }
};

// Calls that run at the same time have a workspace each.
class Workspaces {
 public:
  std::unique_ptr<Workspace> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) return std::unique_ptr<Workspace>(new Workspace);
    std::unique_ptr<Workspace> one = std::move(idle_.back());
    idle_.pop_back();
    return one;
  }
  void give(std::unique_ptr<Workspace> one) {
    if (one->floats() > kKeptFloats) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(one));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> idle_;
};

// Never destroyed: a thread may be multiplying while the process ends.
Workspaces& workspaces() {
  static Workspaces& all = *new Workspaces;
  return all;
}

// One product of a call, cut into strips.
struct Part {
  const Product* product;
  Result result;
  StripJob job;
};

// Scratch of one worker, in floats: levels, scales, totals, a row.
struct ScratchSize {
  int64_t rows, m;
  int64_t levels() const { return kChunkColumns * rows / 4; }
  int64_t scales() const { return kChunkColumns / 4 * rows; }
  int64_t floats() const { return levels() + scales() + m * rows + kChunkColumns / 4; }
  StripScratch view(float* at) const {
    float* const scales_at = at + levels();
    float* const totals = scales_at + scales();
    return {reinterpret_cast<uint8_t*>(at), scales_at, totals,
            reinterpret_cast<int8_t*>(totals + m * rows)};
  }
};

void add_bias(const Result& result, int64_t row, int64_t rows, float* values) {
  if (result.bias)
    for (int64_t r = 0; r < rows; ++r) values[r] += result.bias[row + r];
}

int64_t type_bytes(int32_t type) { return type == kFloat32 ? 4 : 2; }

uint8_t* place(const Result& result, int32_t type, int64_t i, int64_t row) {
  return static_cast<uint8_t*>(result.y) + (i * result.stride + row) * type_bytes(type);
}

// Totals of a strip, register by register, to rows of y: lanes 2q and 2q + 1 of register j are rows
// 8q + 2j and 8q + 2j + 1.
void put_totals(const Part& part, int32_t type, int64_t strip, const float* totals) {
  const Product& p = *part.product;
  const int64_t height = p.strips.kernel.rows, lanes = height / kRegisters, row = strip * height;
  const int64_t rows = std::min(height, p.n - row);
  const float* const scales = p.row_scales.data() + row;
  float values[8 * 8];
  for (int64_t i = 0; i < part.job.x.m; ++i, totals += height) {
    for (int64_t q = 0; q < lanes / 2; ++q)
      for (int64_t j = 0; j < kRegisters; ++j)
        std::memcpy(values + 8 * q + 2 * j, totals + j * lanes + 2 * q, 2 * sizeof(float));
    for (int64_t r = 0; r < rows; ++r) values[r] *= scales[r];
    add_bias(part.result, row, rows, values);
    narrow(values, rows, type, place(part.result, type, i, row));
  }
}

// Threads that pay for their start (some 10 us each) at 0.06 ns a weight and 0.01 ns for each row.
int64_t useful_threads(double weights, int64_t m, int64_t threads) {
  const double ns = weights * (0.06 + 0.01 * double(m));
  return std::max<int64_t>(1, std::min<int64_t>(threads, int64_t(ns / 15e3)));
}

void run_strips(const std::vector<Part>& parts, int32_t type, int64_t threads, Workspace& space) {
  ScratchSize size{0, parts[0].job.x.m};
  int64_t items = 0;
  double weights = 0;
  std::vector<int64_t> first;
  for (const Part& part : parts) {
    const Strips& s = part.product->strips;
    first.push_back(items);
    items += (part.product->n + s.kernel.rows - 1) / s.kernel.rows;
    size.rows = std::max(size.rows, s.kernel.rows);
    weights += double(part.product->n) * double(s.k);
  }
  const int64_t useful = useful_threads(weights, size.m, threads);
  const int64_t each = (size.floats() + 31) / 16 * 16;  // cache lines of their own
  space.scratch.resize(std::size_t(useful * each));
  share(std::size_t(items), std::size_t(useful), [&](std::size_t worker, std::size_t item) {
    std::size_t at = parts.size() - 1;
    while (first[at] > int64_t(item)) --at;
    const Part& part = parts[at];
    const int64_t strip = int64_t(item) - first[at];
    const StripScratch scratch = size.view(space.scratch.data() + int64_t(worker) * each);
    part.product->strips.kernel.product(part.job, strip, scratch);
    put_totals(part, type, strip, scratch.totals);
  });
}

int64_t scale_bytes(const Product& p) {
  return p.strips.kernel.rows * (p.strips.scale_kind == kHalfScale ? 2 : 1);
}

// Rows [first, first + rows.m) through all integer products.
void integer_rows(std::vector<Part> parts, const Rows& rows, int32_t type, int64_t threads,
                  Workspace& space) {
  std::vector<Activations> made;
  if (space.activations.size() < parts.size()) space.activations.resize(parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const ActivationLayout layout = parts[i].product->layout();
    std::size_t same = 0;
    while (same < i && !(parts[same].product->layout() == layout)) ++same;
    made.push_back(same < i ? made[same] : space.activations[i].fill(rows, layout, threads));
  }
  std::vector<Part> ready;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Product& p = *parts[i].product;
    ready.push_back({&p, parts[i].result, {p.strips, made[i], p.block_factor, scale_bytes(p)}});
  }
  run_strips(ready, type, threads, space);
}

// float32 rows of the padded result: rotated back, cut, and put where they belong.
void put_wide(const Product& p, const Result& result, int32_t type, int64_t m, int64_t threads,
              float* wide) {
  share(std::size_t(m), std::size_t(threads), [&](std::size_t, std::size_t i) {
    float* const row = wide + int64_t(i) * p.matrix.n;
    if (p.output.size)
      rotate_row(row, std::size_t(p.matrix.n), std::size_t(p.output.size), p.output.scale,
                 p.output.before, p.output.after, row);
    add_bias(result, 0, p.n, row);
    narrow(row, p.n, type, place(result, type, int64_t(i), 0));
  });
}

// Products of bfloat16 where there are instructions for them, else of float32 rounded to it.
void float_rows(const Product& p, float* x, int64_t m, int64_t threads, float* y) {
  if (p.kind == kPairs) return pair_product(p.matrix, p.path, x, m, threads, y);
  if (p.kind == kToBfloat16) round_to_bfloat16(m * p.matrix.k, x);
  float_product(p.matrix, p.path, x, m, threads, y);
}

// A product that is not integer, or whose rows mix at the end.
void wide_rows(const Product& p, const Rows& rows, const Result& result, int32_t type,
               int64_t threads, Workspace& space) {
  const int64_t m = rows.m;
  space.wide.resize(std::size_t(m * p.matrix.n));
  if (p.integer()) {
    Product unturned = p;
    unturned.n = p.matrix.n;
    const Result whole{space.wide.data(), p.matrix.n, nullptr};
    integer_rows({{&unturned, whole, {unturned.strips, {}, 0, 0}}}, rows, kFloat32, threads, space);
  } else {
    space.turned.resize(std::size_t(m * p.matrix.k));
    turn_rows(rows, p.input, p.matrix.k, threads, space.turned.data());
    float_rows(p, space.turned.data(), m, threads, space.wide.data());
  }
  put_wide(p, result, type, m, threads, space.wide.data());
}

Rows from_row(const Rows& rows, int64_t first, int64_t count) {
  const auto* const x = static_cast<const uint8_t*>(rows.x);
  return {x + first * rows.stride * type_bytes(rows.type), rows.type, count, rows.stride,
          rows.columns};
}

void multiply(const std::vector<const Product*>& products, const Rows& all, int32_t type,
              const Result* results, int64_t threads, Workspace& space) {
  for (int64_t first = 0; first < all.m; first += kMostRows) {
    const Rows rows = from_row(all, first, std::min(kMostRows, all.m - first));
    std::vector<Part> strips;
    for (std::size_t i = 0; i < products.size(); ++i) {
      const Product& p = *products[i];
      Result result = results[i];
      result.y = place(result, type, first, 0);
      if (p.integer() && !p.output.size)
        strips.push_back({&p, result, {p.strips, {}, 0, 0}});
      else
        wide_rows(p, rows, result, type, threads, space);
    }
    if (!strips.empty()) integer_rows(std::move(strips), rows, type, threads, space);
  }
}

void fold_scales(Product& p) {
  const CodedMatrix& m = p.matrix;
  const float factor = m.tensor_scale * m.integer_unit;
  p.block_factor = factor;
  p.row_scales.assign(std::size_t(m.n), m.scale_kind == kNoScale ? factor : 1);
  CodedMatrix folded = m;
  folded.tensor_scale = factor;
  if (m.scale_kind != kNoScale && m.scale_per_row())
    for (int64_t row = 0; row < m.n; ++row)
      p.row_scales[std::size_t(row)] = scale_at(folded, row, 0);
}

}  // namespace

#define UNSPOOL_EXPORT extern "C" __attribute__((visibility("default")))

// Size of the struct, so that a caller built against another one finds out.
UNSPOOL_EXPORT int unspool_matrix_bytes() { return int(sizeof(CodedMatrix)); }

// Prepares the product of an [n, k] matrix. `path`: features.hpp. 0: done, 1: no memory, 2: the
// processor lacks the path, 3: no product of that kind.
UNSPOOL_EXPORT int unspool_prepare(const CodedMatrix* matrix, const Turn* input, const Turn* output,
                                   int64_t n, int64_t k, int32_t path, int32_t kind,
                                   int64_t threads, void** out) {
  if (!runs(path) || (kind == kPairs && !runs_pairs(Path(path)))) return kNoSuchPath;
  if (kind == kPairs && !has_pairs(*matrix)) return kNoSuchProduct;
  try {
    std::unique_ptr<Product> p(new Product{
        *matrix, *input, *output, n, k, Path(path), Kind(kind), {}, {}, 1});
    p->strips.shape = kNoShape;
    if (kind == kToInt8) {
      p->strips = make_strips(p->matrix, p->path, threads);
      if (!p->integer()) return kNoSuchProduct;
      fold_scales(*p);
    }
    *out = p.release();
  } catch (const std::exception&) {  // std::bad_alloc, or std::length_error before it
    return kNoMemory;
  }
  return 0;
}

// Whether products of bfloat16 pairs have instructions of their own on a path.
UNSPOOL_EXPORT int unspool_runs_pairs(int32_t path) { return runs_pairs(Path(path)); }

UNSPOOL_EXPORT void unspool_release(void* product) { delete static_cast<Product*>(product); }

// Whether the codes were copied into strips: then the arrays they came from are not read any more.
UNSPOOL_EXPORT int unspool_owns_codes(const void* product) {
  return static_cast<const Product*>(product)->strips.codes.size() != 0;
}

// The codes of a product that owns them, as they were: [n / tile rows, k / tile columns, words].
UNSPOOL_EXPORT int unspool_canonical(const void* product, int64_t threads, uint8_t* out) {
  canonical(static_cast<const Product*>(product)->strips, threads, out);
  return 0;
}

// x [m, x_stride] times `count` prepared matrices of the same k; results[i] takes the i-th product,
// both of the same number type (activations.hpp). 0: done, 1: no memory, 3: not of the same k.
UNSPOOL_EXPORT int unspool_multiply(const Product* const* products, int64_t count, const void* x,
                                    int32_t type, int64_t m, int64_t x_stride,
                                    const Result* results, int64_t threads) {
  for (int64_t i = 1; i < count; ++i)
    if (products[i]->k != products[0]->k) return kNoSuchProduct;
  try {
    std::unique_ptr<Workspace> space = workspaces().take();
    const std::vector<const Product*> all(products, products + count);
    const Rows rows{x, type, m, x_stride, all[0]->k};
    multiply(all, rows, type, results, threads, *space);
    workspaces().give(std::move(space));
  } catch (const std::exception&) {  // std::bad_alloc, or std::length_error before it
    return kNoMemory;
  }
  return 0;
}

// The same for one matrix, without arrays: a call from Python costs 2 us less.
UNSPOOL_EXPORT int unspool_multiply_one(const Product* product, const void* x, int32_t type,
                                        int64_t m, int64_t x_stride, void* y, const float* bias,
                                        int64_t threads) {
  const Result result{y, product->n, bias};
  return unspool_multiply(&product, 1, x, type, m, x_stride, &result, threads);
}
