/* CPU kernels that read and write memory once, called by native/__init__.py through ctypes.

   A call is one parallel region. Threads take chunks as they finish, so that a core that another
   process keeps busy delays the others by one chunk at most. */

#include <float.h>
#include <immintrin.h>
#include <stdint.h>

typedef float f32_t;
typedef uint16_t bf16_t;
#define CHUNK 16384 /* numbers that a thread takes at a time; they fit in its first-level cache */
#define INLINE static inline __attribute__((always_inline))

/* ---- AVX2: V holds W numbers */
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(function) function##_avx2
#define W 8
#define V __m256

TARGET INLINE V set_avx2(float x) { return _mm256_set1_ps(x); }
TARGET INLINE V add_avx2(V a, V b) { return _mm256_add_ps(a, b); }
TARGET INLINE V mul_avx2(V a, V b) { return _mm256_mul_ps(a, b); }
TARGET INLINE V mul_add_avx2(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
TARGET INLINE V minus_mul_add_avx2(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
TARGET INLINE V first_avx2(V x, int n) { /* zero from the n-th number on */
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), index)));
}
TARGET INLINE V min_avx2(V a, V b) { return _mm256_min_ps(a, b); }
TARGET INLINE V rsqrt_estimate_avx2(V x) { return _mm256_rsqrt_ps(x); }

/* In each half of four: numbers n to 3 of low, then numbers 0 to n - 1 of high. */
#define SHIFT(high, low, n)                                                                        \
  _mm256_castsi256_ps(                                                                             \
      _mm256_alignr_epi8(_mm256_castps_si256(high), _mm256_castps_si256(low), 4 * (n)))
TARGET INLINE V window_sum_avx2(V before, V at, V after) {
  const V left = _mm256_permute2f128_ps(before, at, 0x21);
  const V right = _mm256_permute2f128_ps(at, after, 0x21);
  const V lower = add_avx2(SHIFT(at, left, 2), SHIFT(at, left, 3));
  const V upper = add_avx2(SHIFT(right, at, 1), SHIFT(right, at, 2));
  return add_avx2(add_avx2(lower, upper), at);
}
#undef SHIFT

TARGET INLINE V load_f32_avx2(const f32_t *from) { return _mm256_loadu_ps(from); }
TARGET INLINE void store_f32_avx2(f32_t *to, V x) { _mm256_storeu_ps(to, x); }

TARGET INLINE V load_bf16_avx2(const bf16_t *from) {
  const __m128i halves = _mm_loadu_si128((const __m128i *)from);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/* Rounds to nearest even. NaN stays NaN: the lower half of one that comes from bf16 is zero. */
TARGET INLINE void store_bf16_avx2(bf16_t *to, V x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i high = _mm256_srli_epi32(up, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(packed));
}

#include "lrn_rows.h"
#undef TARGET
#undef NAME
#undef W
#undef V

/* ---- AVX-512 */
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,fma")))
#define NAME(function) function##_avx512
#define W 16
#define V __m512

TARGET INLINE V set_avx512(float x) { return _mm512_set1_ps(x); }
TARGET INLINE V add_avx512(V a, V b) { return _mm512_add_ps(a, b); }
TARGET INLINE V mul_avx512(V a, V b) { return _mm512_mul_ps(a, b); }
TARGET INLINE V mul_add_avx512(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
TARGET INLINE V minus_mul_add_avx512(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
TARGET INLINE V first_avx512(V x, int n) { return _mm512_maskz_mov_ps((__mmask16)((1 << n) - 1), x); }
TARGET INLINE V min_avx512(V a, V b) { return _mm512_min_ps(a, b); }
TARGET INLINE V rsqrt_estimate_avx512(V x) { return _mm512_rsqrt14_ps(x); }

#define SHIFT(high, low, n)                                                                        \
  _mm512_castsi512_ps(                                                                             \
      _mm512_alignr_epi32(_mm512_castps_si512(high), _mm512_castps_si512(low), n))
TARGET INLINE V window_sum_avx512(V before, V at, V after) {
  const V lower = add_avx512(SHIFT(at, before, 14), SHIFT(at, before, 15));
  const V upper = add_avx512(SHIFT(after, at, 1), SHIFT(after, at, 2));
  return add_avx512(add_avx512(lower, upper), at);
}
#undef SHIFT

TARGET INLINE V load_f32_avx512(const f32_t *from) { return _mm512_loadu_ps(from); }
TARGET INLINE void store_f32_avx512(f32_t *to, V x) { _mm512_storeu_ps(to, x); }

TARGET INLINE V load_bf16_avx512(const bf16_t *from) {
  const __m256i halves = _mm256_loadu_si256((const __m256i *)from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

TARGET INLINE void store_bf16_avx512(bf16_t *to, V x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
}

#include "lrn_rows.h"
#undef TARGET
#undef NAME
#undef W
#undef V

/* ---- what Python calls */

/* Bits of the widest vectors that this processor and these kernels have; 0: none. */
int vector_bits(void) {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return 512;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 256 : 0;
}

typedef void LrnRows(const void *x, const void *grad, void *out, int64_t rows, int channels,
                     float scale, float k);
static LrnRows *const lrn_rows[2][2][2] = {
    {{forward_f32_avx2, backward_f32_avx2}, {forward_bf16_avx2, backward_bf16_avx2}},
    {{forward_f32_avx512, backward_f32_avx512}, {forward_bf16_avx512, backward_bf16_avx512}},
};

/* LRN of rows of channels: out = y, or with grad, the gradient of y: out = that of x. */
void lrn(int bits, int is_bf16, const char *x, const char *grad, char *out, int64_t rows,
         int channels, float scale, float k, int threads) {
  LrnRows *const compute = lrn_rows[bits == 512][is_bf16][grad != 0];
  const int64_t row_bytes = (int64_t)channels * (is_bf16 ? 2 : 4);
  const int64_t chunk = channels < CHUNK ? CHUNK / channels : 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t row = 0; row < rows; row += chunk) {
    const int64_t count = rows - row < chunk ? rows - row : chunk, at = row * row_bytes;
    compute(x + at, grad ? grad + at : 0, out + at, count, channels, scale, k);
  }
}

/* Rounds as torch does: after the first product, then after each fused multiply-add. */
__attribute__((target("avx2,fma"))) static void update(float *restrict weight,
                                                       float *restrict velocity,
                                                       const float *restrict grad, int64_t count,
                                                       float momentum, float lr, float decay) {
  for (int64_t i = 0; i < count; i++) {
    float v = __builtin_fmaf(-lr, grad[i], momentum * velocity[i]);
    velocity[i] = v = __builtin_fmaf(-decay, weight[i], v);
    weight[i] += v;
  }
}

/* Without multiplications: plain holds the sum of the vectors so far, by lane, and running the sum of
   those sums, so that after m vectors running = sum of (m - j) * vector j. */
__attribute__((target("avx2"))) static void sums(const int32_t *words, int64_t count,
                                                 uint64_t *sum, uint64_t *weighted) {
  const int64_t vectors = count / 4;
  __m256i plain = _mm256_setzero_si256(), running = plain;
  for (int64_t j = 0; j < vectors; j++) {
    const __m128i four = _mm_loadu_si128((const __m128i *)(words + 4 * j));
    plain = _mm256_add_epi64(plain, _mm256_cvtepi32_epi64(four));
    running = _mm256_add_epi64(running, plain);
  }
  uint64_t plains[4], runnings[4], total = 0, by_place = 0;
  _mm256_storeu_si256((__m256i *)plains, plain);
  _mm256_storeu_si256((__m256i *)runnings, running);
  for (int lane = 0; lane < 4; lane++) {
    total += plains[lane];
    by_place += 4 * (vectors * plains[lane] - runnings[lane]) + lane * plains[lane];
  }
  for (int64_t i = 4 * vectors; i < count; i++) {
    total += (int64_t)words[i];
    by_place += i * (int64_t)words[i];
  }
  *sum = total, *weighted = by_place;
}

/* The sum of signed words, and the sum of each times its place from 0, both modulo 2^64. */
void digest(const int32_t *words, int64_t count, uint64_t *result, int threads) {
  uint64_t total = 0, total_weighted = 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(+ : total, total_weighted)
  for (int64_t at = 0; at < count; at += CHUNK) {
    uint64_t sum, weighted;
    sums(words + at, count - at < CHUNK ? count - at : CHUNK, &sum, &weighted);
    total += sum, total_weighted += weighted + at * sum;
  }
  result[0] = total, result[1] = total_weighted;
}

typedef struct {
  float *weight, *velocity;
  const float *grad;
  int64_t count;
  float momentum, lr, decay;
} Update;

/* For each update: v = momentum * v - lr * g - decay * w;  w = w + v. One parallel region. */
void sgd_update(const Update *updates, int count, int threads) {
#pragma omp parallel num_threads(threads)
  for (int i = 0; i < count; i++) {
    const Update u = updates[i];
#pragma omp for schedule(dynamic) nowait
    for (int64_t at = 0; at < u.count; at += CHUNK) {
      const int64_t size = u.count - at < CHUNK ? u.count - at : CHUNK;
      update(u.weight + at, u.velocity + at, u.grad + at, size, u.momentum, u.lr, u.decay);
    }
  }
}
