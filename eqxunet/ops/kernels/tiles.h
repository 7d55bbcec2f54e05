// What the algorithms share: threads, vectors, padded rows, and products of small tiles.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace eqxunet {

namespace ffi = xla::ffi;
using Size = int64_t;

// A tile of sums is kTile pixels, or kTaps values of a kernel row, by 2 vectors of channels: as
// many as the registers of the instruction set hold beside their operands.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kTile = 8, kTaps = 12;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTile = 6, kTaps = 6;
#else
constexpr int kLanes = 4, kTile = 8, kTaps = 8;
#endif
constexpr int kBlock = 2 * kLanes;
constexpr Size kCacheBytes = 1 << 18;  // of a core's L2 that the rows at work may fill
constexpr Size kMaxSlots = 16;         // partial sums of a gradient

typedef float Vec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vec& at(float* p) { return *reinterpret_cast<Vec*>(p); }
inline const Vec& at(const float* p) { return *reinterpret_cast<const Vec*>(p); }

inline Size ceil_div(Size a, Size b) { return (a + b - 1) / b; }
inline Size round_up(Size a, Size b) { return ceil_div(a, b) * b; }

// Vectors that cross a cache line load at half the speed.
struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], Free>;
inline Floats aligned(Size count) {
  void* memory = std::aligned_alloc(64, round_up(count * sizeof(float), 64));
  if (memory == nullptr) throw std::bad_alloc();
  return Floats(static_cast<float*>(memory));
}

// Calls body(i, local) for i in [0, count) on the caller's thread and those of the pool that are
// free; local is what make_local() returned on that thread. Waits for bodies that started, never
// for a thread, so it cannot deadlock where the caller is one of the pool's.
template <class MakeLocal, class Body>
void parallel_for(ffi::ThreadPool pool, Size count, MakeLocal make_local, Body body) {
  struct Progress {
    std::atomic<Size> next{0};
    Size done = 0;
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto progress = std::make_shared<Progress>();
  auto work = [=] {
    Size i = progress->next.fetch_add(1), mine = 0;
    if (i >= count) return;
    auto local = make_local();
    for (; i < count; i = progress->next.fetch_add(1), ++mine) body(i, local);
    std::lock_guard<std::mutex> lock(progress->mutex);
    if ((progress->done += mine) == count) progress->finished.notify_all();
  };
  for (Size i = 1; i < std::min<Size>(pool.num_threads(), count); ++i)
    pool.Schedule([work] { work(); });
  work();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->finished.wait(lock, [&] { return progress->done == count; });
}

struct Geometry {
  Size n, h, w, c_in, h_out, w_out, c_out, kernel, stride, top, left;

  Size step() const { return stride * c_in; }  // from one output pixel's row to the next
  Size taps() const { return kernel * c_in; }  // values of a row that one pixel weighs
  Size rows_in(Size rows) const { return (rows - 1) * stride + kernel; }
  Size padded() const {  // floats from one row to the next, in whole cache lines
    return round_up((round_up(w_out, kTile) * stride + kernel) * c_in + kTaps, 16);
  }
};

// What becomes of the input, relu(scale * x + offset), with a scale and an offset for each image
// and channel; nothing where they are null.
struct Activation {
  const float *scale, *offset;

  void copy(float* to, const float* from, Size count, Size image, Size channels) const {
    if (scale == nullptr) {
      std::memcpy(to, from, count * sizeof(float));
      return;
    }
    const float *a = scale + image * channels, *b = offset + image * channels;
    Size i = 0;
    for (; i + channels <= count; i += channels) activate(to + i, from + i, a, b, channels);
    activate(to + i, from + i, a, b, count - i);
  }

 private:
  static void activate(float* __restrict to, const float* __restrict from,
                       const float* __restrict a, const float* __restrict b, Size count) {
    for (Size c = 0; c < count; ++c) to[c] = std::max(from[c] * a[c] + b[c], 0.0f);  // NaN stays
  }
};

// Consecutive rows of one image between columns of zeros.
class Rows {
 public:
  Rows(const Geometry& g, Size rows) : g_(g), data_(aligned(g.rows_in(rows) * g.padded())) {
    std::fill_n(data_.get(), g.rows_in(rows) * g.padded(), 0.0f);
  }

  // Loads what the output rows [top, top + rows) read.
  void load(const float* x, Size image, Size top, Size rows, const Activation& activation) {
    Size width = std::min(g_.w * g_.c_in, g_.padded() - g_.left * g_.c_in);
    for (Size r = 0; r < g_.rows_in(rows); ++r) {
      Size y = top * g_.stride - g_.top + r;
      float* to = data_.get() + r * g_.padded() + g_.left * g_.c_in;
      if (0 <= y && y < g_.h)
        activation.copy(to, x + (image * g_.h + y) * g_.w * g_.c_in, width, image, g_.c_in);
      else
        std::memset(to, 0, width * sizeof(float));
    }
  }

  // What the first kernel row reads for pixel 0 of output row r, counted from top.
  const float* operator[](Size r) const { return data_.get() + r * g_.stride * g_.padded(); }

 private:
  Geometry g_;
  Floats data_;
};

// Sums kTile pixels of V vectors of channels on top of the bias, and stores the first
// `pixels` x `channels` of them.
template <int V>
void forward_tile(const float* rows, const Geometry& g, const float* kernel, const float* bias,
                  bool relu, float* out, Size pixels, Size channels) {
  Vec sum[kTile][V];
#pragma GCC unroll 16
  for (int p = 0; p < kTile; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[p][v] = at(bias + v * kLanes);
  for (Size kh = 0; kh < g.kernel; ++kh, rows += g.padded())
    for (Size k = 0; k < g.taps(); ++k, kernel += kBlock) {
#pragma GCC unroll 16
      for (int p = 0; p < kTile; ++p) {
        Vec x = rows[p * g.step() + k] - Vec{};
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[p][v] += x * at(kernel + v * kLanes);
      }
    }
  if (relu) {
#pragma GCC unroll 16
    for (int p = 0; p < kTile; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[p][v] = sum[p][v] < 0.0f ? Vec{} : sum[p][v];  // NaN stays
  }
  if (pixels >= kTile && channels == V * kLanes) {
#pragma GCC unroll 16
    for (int p = 0; p < kTile; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) at(out + p * g.c_out + v * kLanes) = sum[p][v];
  } else {
    for (Size p = 0; p < std::min<Size>(pixels, kTile); ++p)
      std::memcpy(out + p * g.c_out, sum[p], channels * sizeof(float));
  }
}

// Adds kTaps values by V vectors of channels to `total`: sums over pixels, of which row(m, r) holds
// the first and y all, row after row.
template <int V, class Row>
void gradient_tile(Row row, Size images, Size rows, Size pixels, Size step, const float* y,
                   Size channels, float* total) {
  Vec sum[kTaps][V];
#pragma GCC unroll 16
  for (int i = 0; i < kTaps; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[i][v] = at(total + i * channels + v * kLanes);
  for (Size m = 0; m < images; ++m)
    for (Size r = 0; r < rows; ++r) {
      const float* x = row(m, r);
      for (Size p = 0; p < pixels; ++p, x += step, y += channels) {
#pragma GCC unroll 16
        for (int i = 0; i < kTaps; ++i) {
          Vec value = x[i] - Vec{};
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) sum[i][v] += value * at(y + v * kLanes);
        }
      }
    }
#pragma GCC unroll 16
  for (int i = 0; i < kTaps; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) at(total + i * channels + v * kLanes) = sum[i][v];
}

}  // namespace eqxunet
