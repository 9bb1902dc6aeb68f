/* LRN over rows of channels, W at a time, with the vectors that the includer defines.

   y = x * d^-3/4 with d = k + scale * W(x^2), where W sums over five neighbouring channels.
   gx = g * d^-3/4 - 3/2 * scale * x * W(g * x * d^-7/4), as W is its own transpose. */

TARGET INLINE V NAME(rsqrt)(V x) { /* the processor's estimate and a Newton step */
  const V r = NAME(rsqrt_estimate)(x);
  const V error = NAME(minus_mul_add)(NAME(mul)(x, r), r, NAME(set)(1));
  return NAME(mul_add)(NAME(mul)(NAME(set)(0.5f), r), error, r);
}

/* What differs by the type of the numbers: T is f32 or bf16. */
#define LRN_ROWS(T)                                                                                \
  /* The first n of W numbers; left: how many follow in memory, n or more. */                      \
  TARGET INLINE V NAME(load_first_##T)(const T##_t *from, int n, int64_t left) {                   \
    if (n >= W) return NAME(load_##T)(from);                                                       \
    if (left >= W) return NAME(first)(NAME(load_##T)(from), n);                                    \
    T##_t numbers[W] = {0};                                                                        \
    for (int i = 0; i < n; i++) numbers[i] = from[i];                                              \
    return NAME(load_##T)(numbers);                                                                \
  }                                                                                                \
                                                                                                   \
  /* May overwrite what follows, which is stored later. */                                         \
  TARGET INLINE void NAME(store_first_##T)(T##_t *to, V x, int n, int64_t left) {                  \
    if (n >= W || left >= W) {                                                                     \
      NAME(store_##T)(to, x);                                                                      \
      return;                                                                                      \
    }                                                                                              \
    T##_t numbers[W];                                                                              \
    NAME(store_##T)(numbers, x);                                                                   \
    for (int i = 0; i < n; i++) to[i] = numbers[i];                                                \
  }                                                                                                \
                                                                                                   \
  TARGET INLINE void NAME(rows_##T)(int is_backward, const T##_t *x, const T##_t *grad,            \
                                    T##_t *out, int64_t rows, int channels, float scale,           \
                                    float k) {                                                     \
    const V zero = NAME(set)(0), scales = NAME(set)(scale), ks = NAME(set)(k);                     \
    const V largest = NAME(set)(FLT_MAX), factor = NAME(set)(-1.5f * scale);                       \
    for (int64_t row = 0; row < rows; row++, x += channels, out += channels) {                     \
      const int64_t left = (rows - row) * channels;  V x_before = zero, x_at = NAME(load_first_##T)(x, channels, left);                                 \
      V square_before = zero, square_at = NAME(mul)(x_at, x_at);                                   \
      V direct_before = zero, cross_before2 = zero, cross_before = zero;                           \
      for (int i = 0; i < channels; i += W) {                                                      \
        const V x_after =                                                                          \
            i + W < channels ? NAME(load_first_##T)(x + i + W, channels - i - W, left - i - W) : zero;           \
        const V square_after = NAME(mul)(x_after, x_after);                                        \
        const V sum = NAME(window_sum)(square_before, square_at, square_after);                    \
        /* An infinite d would give NaN; min returns its second operand if that is NaN. */         \
        const V d = NAME(min)(largest, NAME(mul_add)(scales, sum, ks));                            \
        const V q = NAME(rsqrt)(d), one_over_d = NAME(mul)(q, q);                                  \
        const V power = NAME(mul)(one_over_d, NAME(rsqrt)(q));                                     \
        if (is_backward) {                                                                         \
          const V direct = NAME(mul)(NAME(load_first_##T)(grad + i, channels - i, left - i), power);         \
          const V cross = NAME(mul)(NAME(mul)(direct, x_at), one_over_d);                          \
          if (i > 0) {                                                                             \
            const V crossed = NAME(window_sum)(cross_before2, cross_before, cross);                \
            NAME(store_##T)                                                                        \
            (out + i - W, NAME(mul_add)(NAME(mul)(factor, x_before), crossed, direct_before));     \
          }                                                                                        \
          x_before = x_at, direct_before = direct;                                                 \
          cross_before2 = cross_before, cross_before = cross;                                      \
        } else {                                                                                   \
          NAME(store_first_##T)(out + i, NAME(mul)(x_at, power), channels - i, left - i);                    \
        }                                                                                          \
        x_at = x_after, square_before = square_at, square_at = square_after;                       \
      }                                                                                            \
      if (is_backward) {                                                                           \
        const int last = (channels - 1) / W * W;                                                   \
        const V crossed = NAME(window_sum)(cross_before2, cross_before, zero);                     \
        const V g = NAME(mul_add)(NAME(mul)(factor, x_before), crossed, direct_before);            \
        NAME(store_first_##T)(out + last, g, channels - last, left - last);                                     \
        grad += channels;                                                                          \
      }                                                                                            \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  TARGET static void NAME(forward_##T)(const void *x, const void *grad, void *out, int64_t rows,   \
                                       int channels, float scale, float k) {                       \
    /* Loops over a constant number of channels are unrolled: those of the full-size network. */   \
    if (channels == 48) NAME(rows_##T)(0, x, grad, out, rows, 48, scale, k);                       \
    else if (channels == 128) NAME(rows_##T)(0, x, grad, out, rows, 128, scale, k);                \
    else NAME(rows_##T)(0, x, grad, out, rows, channels, scale, k);                                \
  }                                                                                                \
                                                                                                   \
  TARGET static void NAME(backward_##T)(const void *x, const void *grad, void *out, int64_t rows,  \
                                        int channels, float scale, float k) {                      \
    if (channels == 48) NAME(rows_##T)(1, x, grad, out, rows, 48, scale, k);                       \
    else if (channels == 128) NAME(rows_##T)(1, x, grad, out, rows, 128, scale, k);                \
    else NAME(rows_##T)(1, x, grad, out, rows, channels, scale, k);                                \
  }

LRN_ROWS(f32)
LRN_ROWS(bf16)
#undef LRN_ROWS
