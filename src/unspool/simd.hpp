// Vectors of four and eight. No include guard: each_isa.hpp compiles it once per instruction set.
// Macros and references in the place of vector arguments: those have no stable ABI without AVX.

typedef float f4 __attribute__((vector_size(16)));
typedef int m4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef int m8 __attribute__((vector_size(32)));

typedef float unaligned_f4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef float unaligned_f8 __attribute__((vector_size(32), aligned(4), may_alias));

template <class Vector>
struct Unaligned;
template <>
struct Unaligned<f4> {
  typedef unaligned_f4 type;
};
template <>
struct Unaligned<f8> {
  typedef unaligned_f8 type;
};
// A vector where it lies in memory, to read or to write.
#define UNSPOOL_VIEW(Vector, at) (*(const typename Unaligned<Vector>::type*)(at))

#define UNSPOOL_ALL(x) (f8{x, x, x, x, x, x, x, x})

UNSPOOL_INLINE void store(float* to, const f8& value) { *(unaligned_f8*)to = value; }
