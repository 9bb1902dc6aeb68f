/* Normalisation over a square of pixels of each map, image by image, in channels-last layout.

   y = x * d^-3/4 with d = k + scale * W(x^2), where W sums over size * size pixels of the same map,
   cut at its edges. gx = g * d^-3/4 - 3/2 * scale * x * W(g * x * d^-7/4), as W is its own
   transpose. An image's numbers stay in a core's second-level cache. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float f32_t;
typedef uint16_t bf16_t;
typedef struct {
  int height, width, channels, size;
} Shape;
#define TARGET __attribute__((target("avx2,fma")))
#define INLINE TARGET static inline __attribute__((always_inline))

INLINE float load_f32(f32_t x) { return x; }
INLINE f32_t store_f32(float x) { return x; }

INLINE float load_bf16(bf16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

/* Rounds to nearest even. NaN stays NaN: the lower half of one that comes from bf16 is zero. */
INLINE bf16_t store_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

INLINE void add(float *restrict to, const float *restrict from, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i] += from[i];
}

/* W(values), by rows and then by columns. */
TARGET static void window_sums(float *restrict sums, float *restrict row_sums,
                               const float *restrict values, Shape shape) {
  const int64_t row = (int64_t)shape.width * shape.channels;
  const int reach = shape.size / 2;
  memcpy(row_sums, values, sizeof(float) * row * shape.height);
  for (int y = 0; y < shape.height; y++) {
    const int64_t at = y * row;
    for (int shift = 1; shift <= reach && shift < shape.width; shift++) {
      const int64_t offset = (int64_t)shift * shape.channels;
      add(row_sums + at + offset, values + at, row - offset);
      add(row_sums + at, values + at + offset, row - offset);
    }
  }
  memcpy(sums, row_sums, sizeof(float) * row * shape.height);
  for (int y = 0; y < shape.height; y++)
    for (int shift = 1; shift <= reach; shift++) {
      if (y >= shift) add(sums + y * row, row_sums + (y - shift) * row, row);
      if (y + shift < shape.height) add(sums + y * row, row_sums + (y + shift) * row, row);
    }
}

#define SPATIAL_NORM(T)                                                                            \
  TARGET static void image_##T(const T##_t *restrict x, const T##_t *restrict grad,                \
                               T##_t *restrict out, float *restrict scratch, Shape shape,          \
                               float scale, float k) {                                             \
    const int64_t count = (int64_t)shape.height * shape.width * shape.channels;                    \
    float *values = scratch, *row_sums = scratch + count, *sums = scratch + 2 * count;             \
    float *direct = scratch + 3 * count;                                                           \
    for (int64_t i = 0; i < count; i++) values[i] = load_##T(x[i]) * load_##T(x[i]);               \
    window_sums(sums, row_sums, values, shape);                                                    \
    for (int64_t i = 0; i < count; i++) {                                                          \
      const float q = 1 / sqrtf(k + scale * sums[i]), power = q * sqrtf(q);                        \
      if (grad) {                                                                                  \
        direct[i] = load_##T(grad[i]) * power;                                                     \
        values[i] = direct[i] * load_##T(x[i]) * (q * q);                                          \
      } else {                                                                                     \
        out[i] = store_##T(load_##T(x[i]) * power);                                                \
      }                                                                                            \
    }                                                                                              \
    if (!grad) return;                                                                             \
    window_sums(sums, row_sums, values, shape);                                                    \
    for (int64_t i = 0; i < count; i++)                                                            \
      out[i] = store_##T(direct[i] - 1.5f * scale * load_##T(x[i]) * sums[i]);                     \
  }

SPATIAL_NORM(f32)
SPATIAL_NORM(bf16)

/* Images [count, height, width, channels]: out = y, or with grad, the gradient of y: out = that of
   x. Returns 0, or 1 if there is no memory. */
int spatial_norm(int is_bf16, const char *x, const char *grad, char *out, int64_t count,
                 int height, int width, int channels, int size, float scale, float k,
                 int threads) {
  const Shape shape = {height, width, channels, size};
  const int64_t numbers = (int64_t)height * width * channels;
  const int64_t bytes = numbers * (is_bf16 ? 2 : 4);
  int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
  {
    float *scratch = malloc(4 * sizeof(float) * numbers);
    failed = !scratch;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < count; i++) {
      const int64_t at = i * bytes;
      const void *image = x + at, *gradient = grad ? grad + at : 0;
      if (!scratch) continue;
      if (is_bf16)
        image_bf16(image, gradient, (void *)(out + at), scratch, shape, scale, k);
      else
        image_f32(image, gradient, (void *)(out + at), scratch, shape, scale, k);
    }
    free(scratch);
  }
  return failed;
}
