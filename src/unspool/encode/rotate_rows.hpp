// The Walsh-Hadamard transform of one row. Compiled once per instruction set by each_isa.hpp.

// One layer of butterflies over a block in memory, partners `gap` >= 8 apart.
UNSPOOL_INLINE void far_layer(float* block, size_t size, size_t gap) {
  for (size_t base = 0; base < size; base += 2 * gap) {
    for (size_t i = base; i < base + gap; i += 8) {
      const f8 a = UNSPOOL_VIEW(f8, block + i), b = UNSPOOL_VIEW(f8, block + i + gap);
      store(block + i, a + b);
      store(block + i + gap, a - b);
    }
  }
}

// Partners 1, 2 and 4 apart, inside one vector. partner - v is a - b where v holds b.
UNSPOOL_INLINE void near_layers(f8& v) {
  const m8 one = {1, 0, 3, 2, 5, 4, 7, 6}, two = {2, 3, 0, 1, 6, 7, 4, 5};
  const m8 four = {4, 5, 6, 7, 0, 1, 2, 3};
  v = __builtin_shuffle(v, one) + v * f8{1, -1, 1, -1, 1, -1, 1, -1};
  v = __builtin_shuffle(v, two) + v * f8{1, 1, -1, -1, 1, 1, -1, -1};
  v = __builtin_shuffle(v, four) + v * f8{1, 1, 1, 1, -1, -1, -1, -1};
}

UNSPOOL_INLINE void block_of_eights(float* block, size_t size) {
  for (size_t i = 0; i < size; i += 8) {
    f8 v = UNSPOOL_VIEW(f8, block + i);
    near_layers(v);
    store(block + i, v);
  }
  for (size_t gap = 8; gap < size; gap *= 2) far_layer(block, size, gap);
}

UNSPOOL_INLINE void small_block(float* block, size_t size) {
  for (size_t gap = 1; gap < size; gap *= 2) {
    for (size_t i = 0; i < size; ++i) {
      if (i & gap) continue;
      const float a = block[i], b = block[i + gap];
      block[i] = a + b;
      block[i + gap] = a - b;
    }
  }
}

// in, out, before and after [k]: out = (H (in * before)) * scale * after, block by block.
static void rotate_row(const float* in, size_t k, size_t size, float scale, const float* before,
                       const float* after, float* out) {
  for (size_t i = 0; i < k; ++i) out[i] = in[i] * before[i];
  for (size_t i = 0; i < k; i += size) {
    if (size >= 8)
      block_of_eights(out + i, size);
    else
      small_block(out + i, size);
  }
  for (size_t i = 0; i < k; ++i) out[i] = out[i] * scale * after[i];
}
