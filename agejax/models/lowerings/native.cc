// Attention, depthwise convolutions and the first convolution of RGB images, with their gradients,
// in float32, for the CPU that this is built on: agejax/models/lowerings/native.py builds it, and
// says when it is used.
//
// Attention takes a block of queries at a time against all keys, so that no array of scores leaves
// the cache. A convolution keeps a kernel's taps for some channels in registers, and an image with
// its padding in the cache.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int W = 16, COLS = 4;  // floats of a register; registers of a tile's row
#elif defined(__AVX__)
constexpr int W = 8, COLS = 2;
#else
constexpr int W = 4, COLS = 2;
#endif
constexpr int ROWS = 6;  // of a tile of a product, which registers hold

typedef float Vec __attribute__((vector_size(4 * W)));
typedef float Loose __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * W)));

inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<Loose*>(p) = x; }
inline float sum_of(Vec x) {
  float sum = 0;
  for (int i = 0; i < W; ++i) sum += x[i];
  return sum;
}

// Runs task(0), ..., task(n - 1) on the pool and this thread. It waits only for tasks that somebody
// has begun, so a pool without a free thread is no deadlock.
template <typename Task>
void in_parallel(ffi::ThreadPool& pool, int64_t n, Task task) {
  struct State {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable finished;
    int64_t done = 0;
  };
  auto state = std::make_shared<State>();
  auto work = [state, n, task] {
    int64_t mine = 0;
    for (int64_t i; (i = state->next.fetch_add(1)) < n; ++mine) task(i);
    if (mine == 0) return;
    std::lock_guard<std::mutex> lock(state->mutex);
    if ((state->done += mine) == n) state->finished.notify_one();
  };
  for (int64_t i = 1; i < std::min(n, pool.num_threads()); ++i)
    pool.Schedule(decltype(work)(work));
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->finished.wait(lock, [&] { return state->done == n; });
}

// ---- products -----------------------------------------------------------------------------------

// A matrix whose entry (i, j) is at data[i * row + j * col].
struct Matrix {
  const float* data;
  int64_t row, col;
  Matrix at(int64_t i, int64_t j) const { return {data + i * row + j * col, row, col}; }
  Matrix transposed() const { return {data, col, row}; }
};

// C [R, V registers] = or += A [R, n] B [n, V registers], where B's rows are contiguous.
template <int R, int V>
inline void tile(int64_t n, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row,
                 bool add) {
  Vec sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = Vec{};
  for (int64_t k = 0; k < n; ++k) {
    Vec row[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) row[v] = load(b + k * b_row + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec x = a.data[r * a.row + k * a.col] - Vec{};
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] += x * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      float* p = c + r * c_row + v * W;
      store(p, add ? load(p) + sum[r][v] : sum[r][v]);
    }
}

// ---- attention ----------------------------------------------------------------------------------

constexpr int64_t BLOCK = 48;  // queries at a time

// The same for fewer rows too.
template <int R, int V>
void rows_up_to(int64_t rows, int64_t n, Matrix a, const float* b, int64_t b_row, float* c,
                int64_t c_row, bool add) {
  if (rows == R)
    tile<R, V>(n, a, b, b_row, c, c_row, add);
  else if constexpr (R > 1)
    rows_up_to<R - 1, V>(rows, n, a, b, b_row, c, c_row, add);
}

template <int V>
void columns(int64_t rows, int64_t n, Matrix a, const float* b, int64_t b_row, float* c,
             int64_t c_row, bool add) {
  for (int64_t r = 0; r < rows; r += ROWS)
    rows_up_to<ROWS, V>(std::min<int64_t>(ROWS, rows - r), n, a.at(r, 0), b, b_row, c + r * c_row,
                        c_row, add);
}

// C [rows, width] = or += A [rows, n] B [n, width], not packed, for a width of whole registers.
void small_product(int64_t rows, int64_t width, int64_t n, Matrix a, const float* b, int64_t b_row,
                   float* c, int64_t c_row, bool add) {
  for (int64_t left = width / W, some; left > 0; left -= some, b += some * W, c += some * W) {
    // 13 registers as 4 + 4 + 3 + 2: one alone would be slow.
    some = left == COLS + 1 ? (left + 1) / 2 : std::min<int64_t>(left, COLS);
    switch (some) {
      case 1: columns<1>(rows, n, a, b, b_row, c, c_row, add); break;
      case 2: columns<2>(rows, n, a, b, b_row, c, c_row, add); break;
      case 3: columns<3>(rows, n, a, b, b_row, c, c_row, add); break;
      default: columns<4>(rows, n, a, b, b_row, c, c_row, add); break;
    }
  }
}

// 2^x for x <= 0, within 2 units in the last place; 0 below -126. Polynomial of Cephes' exp2f.
inline Vec power_of_2(Vec x) {
  const Ints none = x < -126.0f;
  x = none ? Vec{} : x;
  const float round = 12582912.0f;  // 1.5 * 2^23: a float of this size is a whole number
  const Vec shifted = x + round, r = x - (shifted - round);
  Vec y = 1.535336188319500e-4f * r + 1.339887440266574e-3f;
  y = y * r + 9.618437357674640e-3f;
  y = y * r + 5.550332471162809e-2f;
  y = y * r + 2.402264791363012e-1f;
  y = y * r + 6.931472028550421e-1f;
  y = y * r + 1.0f;
  return none ? Vec{} : (Vec)((Ints)y + ((Ints)shifted << 23));
}

// q, k and v of one head within qkv [B, T, 3, H, D], and its place in y [B, T, H, D].
struct Head {
  int64_t tokens, dim, row, y_row, padded;  // padded: tokens in whole registers
  int64_t q, k, v, y, logs;                 // where they begin; logs [B, H, T]
  float scale, base;                        // 1 / sqrt(D), and log2(e) times that
  Head(int64_t heads, int64_t tokens, int64_t dim, int64_t i) : tokens(tokens), dim(dim) {
    const int64_t image = i / heads, head = i % heads;
    row = 3 * heads * dim, y_row = heads * dim, padded = (tokens + W - 1) / W * W;
    q = image * tokens * row + head * dim, k = q + y_row, v = k + y_row;
    y = image * tokens * y_row + head * dim, logs = i * tokens;
    scale = 1 / std::sqrt(static_cast<float>(dim)), base = 1.44269504f * scale;
  }
  // x [tokens, dim] -> [dim, padded]; zeros at the end.
  float* transpose(const float* x, std::vector<float>& to) const {
    to.assign(dim * padded, 0.0f);
    for (int64_t t = 0; t < tokens; t += W)
      for (int64_t d = 0; d < dim; ++d)
        for (int64_t i = t; i < std::min(t + W, tokens); ++i) to[d * padded + i] = x[i * row + d];
    return to.data();
  }
};

// The attention of one head, and the logarithm of each query's sum of exponentials.
void attend(const Head& h, const float* qkv, float* y, float* logs) {
  thread_local std::vector<float> keys, scratch;
  scratch.resize(BLOCK * h.padded);
  float *turned = h.transpose(qkv + h.k, keys), *shares = scratch.data();
  for (int64_t t = 0; t < h.tokens; t += BLOCK) {
    const int64_t some = std::min(BLOCK, h.tokens - t);
    const Matrix queries{qkv + h.q + t * h.row, h.row, 1};
    small_product(some, h.padded, h.dim, queries, turned, h.padded, shares, h.padded, false);
    for (int64_t r = 0; r < some; ++r) {
      float* row = shares + r * h.padded;
      std::fill(row + h.tokens, row + h.padded, -INFINITY);
      Vec tops = load(row);
      for (int64_t k = W; k < h.padded; k += W) {
        const Vec x = load(row + k);
        tops = x > tops ? x : tops;
      }
      float top = tops[0];
      for (int i = 1; i < W; ++i) top = std::max(top, tops[i]);
      Vec sums{};
      for (int64_t k = 0; k < h.padded; k += W) {
        const Vec share = power_of_2((load(row + k) - top) * h.base);
        store(row + k, share);
        sums += share;
      }
      const float sum = sum_of(sums), inverse = 1 / sum;
      logs[h.logs + t + r] = top * h.base + std::log2(sum);
      for (int64_t k = 0; k < h.padded; k += W) store(row + k, load(row + k) * inverse);
    }
    const Matrix weights{shares, h.padded, 1};
    float* out = y + h.y + t * h.y_row;
    small_product(some, h.dim, h.tokens, weights, qkv + h.v, h.row, out, h.y_row, false);
  }
}

// The gradient of one head's q, k and v.
void attend_back(const Head& h, const float* qkv, const float* y, const float* logs,
                 const float* dy, float* dqkv) {
  thread_local std::vector<float> keys, values, scratch;
  scratch.resize(2 * BLOCK * h.padded);
  float *shares = scratch.data(), *slopes = shares + BLOCK * h.padded;
  const float *turned_k = h.transpose(qkv + h.k, keys), *turned_v = h.transpose(qkv + h.v, values);
  for (int64_t t = 0; t < h.tokens; t += BLOCK) {
    const int64_t some = std::min(BLOCK, h.tokens - t);
    const float *queries = qkv + h.q + t * h.row, *out = y + h.y + t * h.y_row;
    const float* dout = dy + h.y + t * h.y_row;
    small_product(some, h.padded, h.dim, {queries, h.row, 1}, turned_k, h.padded, shares, h.padded,
                  false);
    small_product(some, h.padded, h.dim, {dout, h.y_row, 1}, turned_v, h.padded, slopes, h.padded,
                  false);
    for (int64_t r = 0; r < some; ++r) {
      Vec sums{};
      for (int64_t d = 0; d < h.dim; d += W)
        sums += load(out + r * h.y_row + d) * load(dout + r * h.y_row + d);
      const float inner = sum_of(sums), log = logs[h.logs + t + r];
      for (int64_t k = 0; k < h.padded; k += W) {  // nobody reads what the padding gets
        float *share = shares + r * h.padded + k, *slope = slopes + r * h.padded + k;
        const Vec x = load(share) * h.base - log;
        const Vec p = power_of_2(x > 0 ? Vec{} : x);
        store(share, p);
        store(slope, p * (load(slope) - inner) * h.scale);
      }
    }
    const Matrix p{shares, h.padded, 1}, ds{slopes, h.padded, 1};
    float *dq = dqkv + h.q + t * h.row, *dk = dqkv + h.k, *dv = dqkv + h.v;
    small_product(some, h.dim, h.tokens, ds, qkv + h.k, h.row, dq, h.row, false);
    small_product(h.tokens, h.dim, some, ds.transposed(), queries, h.row, dk, h.row, t > 0);
    small_product(h.tokens, h.dim, some, p.transposed(), dout, h.y_row, dv, h.row, t > 0);
  }
}

// ---- convolutions -------------------------------------------------------------------------------

struct Images {
  int64_t batch, rows, columns, channels;
  int64_t floats() const { return rows * columns * channels; }  // of one image
};

// Calls f(c) for whole registers of channels; the last may overlap the one before.
template <typename F>
inline void registers(int64_t channels, F f) {
  for (int64_t c = 0; c < channels; c += W) f(std::min(c, channels - W));
}

// One image [rows, columns, C] into the zeros of another that is `wide` columns wide: at `before`
// from its corner, and every `step` pixels.
void spread(const Images& x, const float* from, int64_t wide, int64_t before, int64_t step,
            float* to) {
  const int64_t together = step == 1 ? x.columns : 1;  // pixels
  for (int64_t i = 0; i < x.rows; ++i)
    for (int64_t j = 0; j < x.columns; j += together)
      std::copy_n(from + (i * x.columns + j) * x.channels, together * x.channels,
                  to + ((before + i * step) * wide + before + j * step) * x.channels);
}

// y [rows, columns, C] of one image x, `wide` columns wide with its padding; a kernel [K, K, C],
// which may be turned by half a turn.
template <int K>
void correlate(const float* x, int64_t wide, const float* kernel, bool turned, int64_t stride,
               const Images& shape, float* y) {
  const int64_t channels = shape.channels;
  registers(channels, [=](int64_t c) {
    Vec taps[K * K];
#pragma GCC unroll 25
    for (int t = 0; t < K * K; ++t)
      taps[t] = load(kernel + (turned ? K * K - 1 - t : t) * channels + c);
    for (int64_t i = 0; i < shape.rows; ++i)
      for (int64_t j = 0; j < shape.columns; ++j) {
        const float* corner = x + (i * wide + j) * stride * channels + c;
        Vec sum{};
#pragma GCC unroll 25
        for (int t = 0; t < K * K; ++t)
          sum += taps[t] * load(corner + (t / K * wide + t % K) * channels);
        store(y + (i * shape.columns + j) * channels + c, sum);
      }
  });
}

// sums [K, K, C] = each tap of one image x, `wide` columns wide with its padding, times dy.
template <int K>
void add_taps(const float* x, int64_t wide, const float* dy, int64_t stride, const Images& shape,
              float* sums) {
  const int64_t channels = shape.channels;
  registers(channels, [=](int64_t c) {
    Vec sum[K * K];
#pragma GCC unroll 25
    for (int t = 0; t < K * K; ++t) sum[t] = Vec{};
    for (int64_t i = 0; i < shape.rows; ++i)
      for (int64_t j = 0; j < shape.columns; ++j) {
        const float* corner = x + (i * wide + j) * stride * channels + c;
        const Vec slope = load(dy + (i * shape.columns + j) * channels + c);
#pragma GCC unroll 25
        for (int t = 0; t < K * K; ++t)
          sum[t] += slope * load(corner + (t / K * wide + t % K) * channels);
      }
#pragma GCC unroll 25
    for (int t = 0; t < K * K; ++t) store(sums + t * channels + c, sum[t]);
  });
}

// A group of images, one after the other.
template <int K>
void convolve(const Images& x, const Images& y, int64_t stride, int64_t padding, int64_t first,
              int64_t last, const float* in, const float* kernel, float* out) {
  thread_local std::vector<float> padded;
  const int64_t wide = x.columns + 2 * padding;
  padded.assign((x.rows + 2 * padding) * wide * x.channels, 0.0f);
  for (int64_t b = first; b < last; ++b) {
    spread(x, in + b * x.floats(), wide, padding, 1, padded.data());
    correlate<K>(padded.data(), wide, kernel, false, stride, y, out + b * y.floats());
  }
}

// The same group's gradient of x, and its share of the kernel's.
template <int K>
void convolve_back(const Images& x, const Images& y, int64_t stride, int64_t padding,
                   int64_t first, int64_t last, const float* in, const float* kernel,
                   const float* dy, float* dx, float* dkernel) {
  thread_local std::vector<float> padded, slopes, sums;
  const int64_t wide = x.columns + 2 * padding, wide_dy = x.columns + K - 1;
  padded.assign((x.rows + 2 * padding) * wide * x.channels, 0.0f);
  slopes.assign((x.rows + K - 1) * wide_dy * x.channels, 0.0f);
  sums.resize(K * K * x.channels);
  std::fill_n(dkernel, K * K * x.channels, 0.0f);
  for (int64_t b = first; b < last; ++b) {
    const float* slope = dy + b * y.floats();
    spread(x, in + b * x.floats(), wide, padding, 1, padded.data());
    spread(y, slope, wide_dy, K - 1 - padding, stride, slopes.data());
    correlate<K>(slopes.data(), wide_dy, kernel, true, 1, x, dx + b * x.floats());
    add_taps<K>(padded.data(), wide, slope, stride, y, sums.data());
    for (int64_t i = 0; i < K * K * x.channels; ++i) dkernel[i] += sums[i];
  }
}

// A 3 x 3 convolution of RGB: the taps [3, 3, 3, F] of some filters in registers.
void filter_rgb(const float* x, int64_t wide, const float* kernel, int64_t stride,
                const Images& shape, float* y) {
  const int64_t filters = shape.channels;
  registers(filters, [=](int64_t f) {
    Vec taps[27];
#pragma GCC unroll 27
    for (int t = 0; t < 27; ++t) taps[t] = load(kernel + t * filters + f);
    for (int64_t i = 0; i < shape.rows; ++i)
      for (int64_t j = 0; j < shape.columns; ++j) {
        const float* corner = x + (i * wide + j) * stride * 3;
        Vec sum{};
#pragma GCC unroll 27
        for (int t = 0; t < 27; ++t) sum += taps[t] * corner[t / 9 * wide * 3 + t % 9];
        store(y + (i * shape.columns + j) * filters + f, sum);
      }
  });
}

// sums [3, 3, 3, F] = each tap of one image times dy.
void add_rgb(const float* x, int64_t wide, const float* dy, int64_t stride, const Images& shape,
             float* sums) {
  const int64_t filters = shape.channels;
  registers(filters, [=](int64_t f) {
    Vec sum[27];
#pragma GCC unroll 27
    for (int t = 0; t < 27; ++t) sum[t] = Vec{};
    for (int64_t i = 0; i < shape.rows; ++i)
      for (int64_t j = 0; j < shape.columns; ++j) {
        const float* corner = x + (i * wide + j) * stride * 3;
        const Vec slope = load(dy + (i * shape.columns + j) * filters + f);
#pragma GCC unroll 27
        for (int t = 0; t < 27; ++t) sum[t] += slope * corner[t / 9 * wide * 3 + t % 9];
      }
#pragma GCC unroll 27
    for (int t = 0; t < 27; ++t) store(sums + t * filters + f, sum[t]);
  });
}

// ---- what XLA calls -----------------------------------------------------------------------------

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

// qkv [B, T, 3, H, D] -> y [B, T, H, D], logs [B, H, T].
ffi::Error Attention(ffi::ThreadPool pool, Array qkv, Result y, Result logs) {
  const auto d = qkv.dimensions();
  const float* in = qkv.typed_data();
  float *out = y->typed_data(), *sums = logs->typed_data();
  in_parallel(pool, d[0] * d[3], [=, heads = d[3], tokens = d[1], dim = d[4]](int64_t i) {
    attend(Head(heads, tokens, dim, i), in, out, sums);
  });
  return ffi::Error::Success();
}

ffi::Error AttentionBack(ffi::ThreadPool pool, Array qkv, Array y, Array logs, Array dy,
                         Result dqkv) {
  const auto d = qkv.dimensions();
  const float *in = qkv.typed_data(), *out = y.typed_data(), *sums = logs.typed_data();
  const float* slopes = dy.typed_data();
  float* result = dqkv->typed_data();
  in_parallel(pool, d[0] * d[3], [=, heads = d[3], tokens = d[1], dim = d[4]](int64_t i) {
    attend_back(Head(heads, tokens, dim, i), in, out, sums, slopes, result);
  });
  return ffi::Error::Success();
}

Images images_of(const Array& x) {
  const auto d = x.dimensions();
  return {d[0], d[1], d[2], d[3]};
}

// x [B, H, W, C], kernel [K, K, 1, C] -> y [B, H', W', C].
ffi::Error Depthwise(ffi::ThreadPool pool, Array x, Array kernel, Result y, int64_t stride,
                     int64_t padding) {
  const Images of_x = images_of(x), of_y = images_of(*y);
  const auto group = kernel.dimensions()[0] == 3 ? convolve<3> : convolve<5>;
  const float *in = x.typed_data(), *taps = kernel.typed_data();
  float* out = y->typed_data();
  in_parallel(pool, of_x.batch, [=](int64_t i) {
    group(of_x, of_y, stride, padding, i, i + 1, in, taps, out);
  });
  return ffi::Error::Success();
}

// And dy like y -> dx like x, and a part of the kernel's gradient for each group: [G, K, K, 1, C].
ffi::Error DepthwiseBack(ffi::ThreadPool pool, Array x, Array kernel, Array dy, Result dx,
                         Result dkernel, int64_t stride, int64_t padding) {
  const Images of_x = images_of(x), of_y = images_of(dy);
  const auto group = kernel.dimensions()[0] == 3 ? convolve_back<3> : convolve_back<5>;
  const float *in = x.typed_data(), *taps = kernel.typed_data(), *slopes = dy.typed_data();
  float *out = dx->typed_data(), *sums = dkernel->typed_data();
  const int64_t groups = dkernel->dimensions()[0], floats = kernel.element_count();
  in_parallel(pool, groups, [=](int64_t i) {
    group(of_x, of_y, stride, padding, i * of_x.batch / groups, (i + 1) * of_x.batch / groups, in,
          taps, slopes, out, sums + i * floats);
  });
  return ffi::Error::Success();
}

// x [B, H, W, 3], kernel [3, 3, 3, F] -> y [B, H', W', F].
ffi::Error Rgb(ffi::ThreadPool pool, Array x, Array kernel, Result y, int64_t stride,
               int64_t padding) {
  const Images of_x = images_of(x), of_y = images_of(*y);
  const float *in = x.typed_data(), *taps = kernel.typed_data();
  float* out = y->typed_data();
  in_parallel(pool, of_x.batch, [=](int64_t b) {
    thread_local std::vector<float> padded;
    const int64_t wide = of_x.columns + 2 * padding;
    padded.assign((of_x.rows + 2 * padding) * wide * 3, 0.0f);
    spread(of_x, in + b * of_x.floats(), wide, padding, 1, padded.data());
    filter_rgb(padded.data(), wide, taps, stride, of_y, out + b * of_y.floats());
  });
  return ffi::Error::Success();
}

// And dy like y -> a part of the kernel's gradient for each group of images: [G, 3, 3, 3, F].
ffi::Error RgbBack(ffi::ThreadPool pool, Array x, Array dy, Result dkernel, int64_t stride,
                   int64_t padding) {
  const Images of_x = images_of(x), of_y = images_of(dy);
  const float *in = x.typed_data(), *slopes = dy.typed_data();
  float* out = dkernel->typed_data();
  const int64_t groups = dkernel->dimensions()[0], floats = 27 * of_y.channels;
  in_parallel(pool, groups, [=](int64_t i) {
    thread_local std::vector<float> padded, sums;
    const int64_t wide = of_x.columns + 2 * padding;
    padded.assign((of_x.rows + 2 * padding) * wide * 3, 0.0f);
    sums.resize(floats);
    std::fill_n(out + i * floats, floats, 0.0f);
    for (int64_t b = i * of_x.batch / groups; b < (i + 1) * of_x.batch / groups; ++b) {
      spread(of_x, in + b * of_x.floats(), wide, padding, 1, padded.data());
      add_rgb(padded.data(), wide, slopes + b * of_y.floats(), stride, of_y, sums.data());
      for (int64_t j = 0; j < floats; ++j) out[i * floats + j] += sums[j];
    }
  });
  return ffi::Error::Success();
}

// What XLA passes to a kernel, in the order of its parameters.
auto on_threads() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>(); }
template <typename Binding>
auto strided(Binding binding) {
  return std::move(binding).template Attr<int64_t>("stride").template Attr<int64_t>("padding");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(agejax_attention, Attention,
                              on_threads().Arg<Array>().Ret<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    agejax_attention_back, AttentionBack,
    on_threads().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(agejax_depthwise, Depthwise,
                              strided(on_threads().Arg<Array>().Arg<Array>().Ret<Array>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    agejax_depthwise_back, DepthwiseBack,
    strided(on_threads().Arg<Array>().Arg<Array>().Arg<Array>().Ret<Array>().Ret<Array>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(agejax_rgb, Rgb,
                              strided(on_threads().Arg<Array>().Arg<Array>().Ret<Array>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(agejax_rgb_back, RgbBack,
                              strided(on_threads().Arg<Array>().Arg<Array>().Ret<Array>()));
