// 2D convolution for CPUs, channels last, as XLA custom calls (XLA's FFI, on XLA's own threads).
//
// A row of the input, padded, holds for output pixel p the kw * c_in values that one row of the
// kernel weighs, contiguous and stride * c_in apart from those of p + 1. So both directions are
// small matrix products over rows copied into a padded buffer, and nothing is unfolded (im2col):
//
//   forward     out[p, o]    += row[p * step + k] * kernel[k, o]
//   gradient    kernel[k, o] += row[p * step + k] * y[p, o]
//
// The rows may be those of relu(scale * x + offset), computed as x is copied. Each direction keeps
// a tile of sums in vector registers. Every sum has a fixed order, whatever the number
// of threads, so results are reproducible to the bit.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Size = int64_t;
using Tensor = ffi::Buffer<ffi::F32, 4>;
using Table = ffi::Buffer<ffi::F32, 2>;
using Vector = ffi::Buffer<ffi::F32, 1>;
using Result = ffi::ResultBuffer<ffi::F32, 4>;

namespace {

// A tile of sums is kTile pixels, or kTaps values of a kernel row, by 2 vectors of channels: as many
// as the registers of the instruction set hold beside their operands.
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

Size ceil_div(Size a, Size b) { return (a + b - 1) / b; }
Size round_up(Size a, Size b) { return ceil_div(a, b) * b; }

// Vectors that cross a cache line load at half the speed.
struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], Free>;
Floats aligned(Size count) {
  return Floats(static_cast<float*>(std::aligned_alloc(64, round_up(count * sizeof(float), 64))));
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

  Size step() const { return stride * c_in; }            // from one output pixel's row to the next
  Size taps() const { return kernel * c_in; }            // values of a row that one pixel weighs
  Size rows_in(Size rows) const { return (rows - 1) * stride + kernel; }
  Size padded() const {  // floats from one row to the next, in whole cache lines
    return round_up((round_up(w_out, kTile) * stride + kernel) * c_in + kTaps, 16);
  }
};

// What becomes of the input, relu(scale * x + offset), with a scale and an offset for each image and
// channel; nothing where they are null.
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

Activation activation(Table scale, Table offset) {
  if (scale.element_count() == 0) return {nullptr, nullptr};
  return {scale.typed_data(), offset.typed_data()};
}

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

Geometry geometry(Tensor x, Tensor out, Size kernel, Size stride, Size top, Size left) {
  auto in = x.dimensions(), result = out.dimensions();
  return {in[0], in[1], in[2], in[3], result[1], result[2], result[3], kernel, stride, top, left};
}

// The kernel in blocks of channels one after another, each contiguous and filled up with zeros.
// value(phase, i, c) is what weighs value i of a pixel's rows for channel c of the output.
template <class Value>
Floats pack(ffi::ThreadPool pool, const Geometry& g, Size phases, Value value) {
  const Size blocks = ceil_div(g.c_out, kBlock), values = g.kernel * g.taps(), c_out = g.c_out;
  Floats packed = aligned(phases * blocks * values * kBlock);
  float* all = packed.get();
  parallel_for(
      pool, phases * blocks, [] { return 0; },
      [=](Size b, int) {
        float* to = all + b * values * kBlock;
        const Size first = b % blocks * kBlock;
        for (Size i = 0; i < values; ++i)
          for (Size c = first; c < first + kBlock; ++c)
            *to++ = c < c_out ? value(b / blocks, i, c) : 0.0f;
      });
  return packed;
}

// Each output row has as many phases, rows that another packed kernel computes from the same input.
void convolve(ffi::ThreadPool pool, const Geometry& g, Size phases, const float* x,
              const Activation& activation, const Floats& packed, const float* bias, bool relu,
              float* out) {
  const Size rows = std::clamp<Size>(kCacheBytes / (g.padded() * g.stride * 4), 1, g.h_out);
  const Size chunks = ceil_div(g.h_out, rows);
  const float* kernels = packed.get();
  std::vector<float> biases(round_up(g.c_out, kBlock), 0.0f);
  if (bias != nullptr) std::copy_n(bias, g.c_out, biases.data());
  const float* first = biases.data();
  parallel_for(
      pool, g.n * chunks, [=] { return Rows(g, rows); },
      [=](Size task, Rows& in) {
        const Size image = task / chunks, top = task % chunks * rows;
        const Size count = std::min(rows, g.h_out - top);
        in.load(x, image, top, count, activation);
        const float* kernel = kernels;
        for (Size phase = 0; phase < phases; ++phase)
          for (Size c = 0; c < g.c_out; c += kBlock, kernel += g.kernel * g.taps() * kBlock) {
            const Size channels = std::min<Size>(kBlock, g.c_out - c);
            auto tile = channels > kLanes ? forward_tile<2> : forward_tile<1>;
            for (Size r = 0; r < count; ++r) {
              float* row = out + ((image * g.h_out + top + r) * phases + phase) * g.w_out * g.c_out;
              for (Size p = 0; p < g.w_out; p += kTile)
                tile(in[r] + p * g.step(), g, kernel, first + c, relu, row + p * g.c_out + c,
                     g.w_out - p, channels);
            }
          }
      });
}

// Winograd's F(2x2, 3x3) (Lavin, Gray, CVPR 2016): a tile of 2x2 outputs takes 16 products of
// transformed values instead of 36. The 16 are as many matrix products over the tiles at hand.
constexpr Size kPlanes = 16;
constexpr Size kWinogradBytes = 3 << 18;  // of a core's L2 that transformed tiles may fill

bool suits_winograd(const Geometry& g) {
  return g.kernel == 3 && g.stride == 1 && g.c_in % kLanes == 0 && g.c_out % kLanes == 0 &&
         g.c_in > kLanes && g.c_out > kLanes;
}

// From 4x4 values of the input, `row` and `step` floats apart, to 16 planes.
inline void transform_input(const float* in, Size row, Size step, float* out, Size plane) {
  Vec half[4][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vec d0 = at(in + j * step), d1 = at(in + row + j * step),
              d2 = at(in + 2 * row + j * step), d3 = at(in + 3 * row + j * step);
    half[0][j] = d0 - d2;
    half[1][j] = d1 + d2;
    half[2][j] = d2 - d1;
    half[3][j] = d1 - d3;
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    at(out + (4 * i + 0) * plane) = half[i][0] - half[i][2];
    at(out + (4 * i + 1) * plane) = half[i][1] + half[i][2];
    at(out + (4 * i + 2) * plane) = half[i][2] - half[i][1];
    at(out + (4 * i + 3) * plane) = half[i][1] - half[i][3];
  }
}

// From 16 planes of products to 2x2 outputs.
inline void transform_output(const float* in, Size plane, Vec out[2][2]) {
  Vec half[2][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vec m0 = at(in + j * plane), m1 = at(in + (4 + j) * plane),
              m2 = at(in + (8 + j) * plane), m3 = at(in + (12 + j) * plane);
    half[0][j] = m0 + m1 + m2;
    half[1][j] = m1 - m2 - m3;
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    out[i][0] = half[i][0] + half[i][1] + half[i][2];
    out[i][1] = half[i][1] - half[i][2] - half[i][3];
  }
}

// As pack, transformed: for each block of channels 16 planes of (c_in, kBlock).
template <class Value>
Floats pack_winograd(ffi::ThreadPool pool, const Geometry& g, Value value) {
  const Size blocks = ceil_div(g.c_out, kBlock), c_in = g.c_in, c_out = g.c_out;
  Floats packed = aligned(blocks * kPlanes * c_in * kBlock);
  float* all = packed.get();
  parallel_for(
      pool, blocks * c_in, [] { return 0; },
      [=](Size task, int) {
        const Size block = task / c_in, i = task % c_in, first = block * kBlock;
        float k[3][3][kBlock] = {}, half[4][3][kBlock];
        for (Size a = 0; a < 3; ++a)
          for (Size b = 0; b < 3; ++b)
            for (Size c = first; c < std::min(first + kBlock, c_out); ++c)
              k[a][b][c - first] = value(0, (a * 3 + b) * c_in + i, c);
        for (Size b = 0; b < 3; ++b)
          for (Size c = 0; c < kBlock; ++c) {
            const float k0 = k[0][b][c], k1 = k[1][b][c], k2 = k[2][b][c];
            half[0][b][c] = k0;
            half[1][b][c] = (k0 + k1 + k2) * 0.5f;
            half[2][b][c] = (k0 - k1 + k2) * 0.5f;
            half[3][b][c] = k2;
          }
        float* to = all + (block * kPlanes * c_in + i) * kBlock;
        const Size plane = c_in * kBlock;
        for (Size a = 0; a < 4; ++a)
          for (Size c = 0; c < kBlock; ++c) {
            const float h0 = half[a][0][c], h1 = half[a][1][c], h2 = half[a][2][c];
            to[(4 * a + 0) * plane + c] = h0;
            to[(4 * a + 1) * plane + c] = (h0 + h1 + h2) * 0.5f;
            to[(4 * a + 2) * plane + c] = (h0 - h1 + h2) * 0.5f;
            to[(4 * a + 3) * plane + c] = h2;
          }
      });
  return packed;
}

// Rows of several images as transformed tiles, plane after plane.
struct Tiles {
  Size across, rows, together;        // tiles a row; rows of pixels; images
  Size values, products;              // floats of a plane

  // `width` floats of a plane belong to each tile's products.
  Tiles(const Geometry& g, Size width) {
    across = ceil_div(g.w_out, 2);
    const Size fitting = kWinogradBytes / (kPlanes * (g.c_in + width) * Size{sizeof(float)});
    const Size down = ceil_div(g.h_out, 2);
    const Size tile_rows = std::clamp<Size>(fitting / across, 1, down);
    rows = 2 * tile_rows;
    together = std::clamp<Size>(fitting / (across * down), 1, g.n);
    const Size most = round_up(together * tile_rows * across, kTile);
    // Planes a whole number of pages apart would share the same few lines of the cache.
    values = most * g.c_in + kLanes;
    products = most * width + kLanes;
  }
};

// Transforms the input of the tiles of `many` images from output row `top` on; returns how many.
Size load_tiles(const Tiles& tiles, const Geometry& g, Rows& in, const float* x, Size image,
                Size many, Size top, Size down, const Activation& activation, float* values) {
  Size t = 0;
  for (Size m = 0; m < many; ++m) {
    in.load(x, image + m, top, 2 * down, activation);
    for (Size r = 0; r < down; ++r)
      for (Size p = 0; p < tiles.across; ++p, ++t)
        for (Size c = 0; c < g.c_in; c += kLanes)
          transform_input(in[2 * r] + 2 * p * g.c_in + c, g.padded(), g.c_in,
                          values + t * g.c_in + c, tiles.values);
  }
  return t;
}

void convolve_winograd(ffi::ThreadPool pool, const Geometry& g, const float* x,
                       const Activation& activation, const Floats& packed, const float* bias,
                       bool relu, float* out) {
  const Tiles tiles(g, kBlock);
  const Size chunks = ceil_div(g.h_out, tiles.rows), groups = ceil_div(g.n, tiles.together);
  const float* kernels = packed.get();
  struct Local {
    Rows in;
    Floats values, products;
  };
  Geometry product = g;
  product.c_out = kBlock;
  product.kernel = product.stride = 1;
  static const float zeros[kBlock] = {};
  const float* none = zeros;
  parallel_for(
      pool, groups * chunks,
      [=] {
        Local local{Rows(g, tiles.rows), aligned(kPlanes * tiles.values),
                    aligned(kPlanes * tiles.products)};
        std::fill_n(local.values.get(), kPlanes * tiles.values, 0.0f);
        return local;
      },
      [=](Size task, Local& local) {
        const Size image = task / chunks * tiles.together, top = task % chunks * tiles.rows;
        const Size many = std::min(tiles.together, g.n - image);
        const Size count = std::min(tiles.rows, g.h_out - top), down = ceil_div(count, 2);
        float* values = local.values.get();
        float* products = local.products.get();
        const Size t =
            load_tiles(tiles, g, local.in, x, image, many, top, down, activation, values);
        const float* kernel = kernels;
        for (Size c = 0; c < g.c_out; c += kBlock) {
          const Size channels = std::min<Size>(kBlock, g.c_out - c);
          for (Size plane = 0; plane < kPlanes; ++plane, kernel += g.c_in * kBlock)
            for (Size i = 0; i < t; i += kTile)
              forward_tile<2>(values + plane * tiles.values + i * g.c_in, product, kernel, none,
                              false, products + plane * tiles.products + i * kBlock, kTile, kBlock);
          for (Size i = 0; i < t; ++i) {
            const Size m = i / (down * tiles.across), r = i / tiles.across % down;
            const Size y = top + 2 * r, p = i % tiles.across * 2;
            for (Size v = 0; v < channels; v += kLanes) {
              Vec result[2][2];
              transform_output(products + i * kBlock + v, tiles.products, result);
              for (Size a = 0; a < std::min<Size>(2, g.h_out - y); ++a)
                for (Size b = 0; b < std::min<Size>(2, g.w_out - p); ++b) {
                  Vec sum = result[a][b];
                  if (bias != nullptr) sum += at(bias + c + v);
                  if (relu) sum = sum < 0.0f ? Vec{} : sum;
                  at(out + (((image + m) * g.h_out + y + a) * g.w_out + p + b) * g.c_out + c + v) =
                      sum;
                }
            }
          }
        }
      });
}

// 2x2 gradients of outputs, transformed by the transpose of transform_output.
inline void transform_gradient(const Vec in[2][2], float* out, Size plane) {
  Vec half[4][2];
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    half[0][j] = in[0][j];
    half[1][j] = in[0][j] + in[1][j];
    half[2][j] = in[0][j] - in[1][j];
    half[3][j] = -in[1][j];
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    at(out + (4 * i + 0) * plane) = half[i][0];
    at(out + (4 * i + 1) * plane) = half[i][0] + half[i][1];
    at(out + (4 * i + 2) * plane) = half[i][0] - half[i][1];
    at(out + (4 * i + 3) * plane) = -half[i][1];
  }
}

// The transpose of the whole: products of transformed inputs and transformed gradients, summed over
// tiles, then transformed by the transpose of what packs the kernel.
void kernel_gradient_winograd(ffi::ThreadPool pool, const Geometry& g, const float* x,
                              const Activation& activation, const float* y, float* kernel) {
  const Tiles tiles(g, g.c_out);
  const Size chunks = ceil_div(g.h_out, tiles.rows), groups = ceil_div(g.n, tiles.together);
  const Size tasks = groups * chunks, taps = round_up(g.c_in, kTaps), plane = taps * g.c_out;
  // By the shapes alone: the order of the sums must not depend on the threads.
  const Size slots = std::min({std::max<Size>(2, g.n * g.h_out * g.w_out / 4096), tasks, kMaxSlots});
  Floats totals = aligned(slots * kPlanes * plane);
  float* sums = totals.get();
  struct Local {
    Rows in;
    Floats values, gradients;
  };
  parallel_for(
      pool, slots,
      [=] {
        Local local{Rows(g, tiles.rows), aligned(kPlanes * tiles.values),
                    aligned(kPlanes * tiles.products)};
        std::fill_n(local.values.get(), kPlanes * tiles.values, 0.0f);
        return local;
      },
      [=](Size slot, Local& local) {
        float* total = sums + slot * kPlanes * plane;
        std::fill_n(total, kPlanes * plane, 0.0f);
        float* values = local.values.get();
        float* gradients = local.gradients.get();
        for (Size task = slot * tasks / slots; task < (slot + 1) * tasks / slots; ++task) {
          const Size image = task / chunks * tiles.together, top = task % chunks * tiles.rows;
          const Size many = std::min(tiles.together, g.n - image);
          const Size down = ceil_div(std::min(tiles.rows, g.h_out - top), 2);
          const Size t =
              load_tiles(tiles, g, local.in, x, image, many, top, down, activation, values);
          for (Size i = 0; i < t; ++i) {
            const Size m = i / (down * tiles.across), r = i / tiles.across % down;
            const Size row = top + 2 * r, p = i % tiles.across * 2;
            const float* from = y + (((image + m) * g.h_out + row) * g.w_out + p) * g.c_out;
            const bool below = row + 1 < g.h_out, right = p + 1 < g.w_out;
            for (Size c = 0; c < g.c_out; c += kLanes) {
              const float* first = from + c;
              const float* second = first + g.w_out * g.c_out;
              const Vec in[2][2] = {{at(first), right ? at(first + g.c_out) : Vec{}},
                                    {below ? at(second) : Vec{},
                                     below && right ? at(second + g.c_out) : Vec{}}};
              transform_gradient(in, gradients + i * g.c_out + c, tiles.products);
            }
          }
          for (Size i = 0; i < kPlanes; ++i)
            for (Size c = 0; c < g.c_out; c += kBlock)
              for (Size k = 0; k < g.c_in; k += kTaps) {
                const auto row = [&](Size, Size) { return values + i * tiles.values + k; };
                const float* from = gradients + i * tiles.products + c;
                float* to = total + i * plane + k * g.c_out + c;
                if (g.c_out - c > kLanes)
                  gradient_tile<2>(row, 1, 1, t, g.c_in, from, g.c_out, to);
                else
                  gradient_tile<1>(row, 1, 1, t, g.c_in, from, g.c_out, to);
              }
        }
      });
  parallel_for(
      pool, g.c_in, [] { return 0; },
      [=](Size i, int) {
        for (Size c = 0; c < g.c_out; c += kLanes) {
          Vec m[4][4], half[3][4];
          for (Size a = 0; a < 4; ++a)
            for (Size b = 0; b < 4; ++b) {
              const float* from = sums + (4 * a + b) * plane + i * g.c_out + c;
              m[a][b] = at(from);
              for (Size s = 1; s < slots; ++s) m[a][b] += at(from + s * kPlanes * plane);
            }
          for (Size b = 0; b < 4; ++b) {
            half[0][b] = m[0][b] + (m[1][b] + m[2][b]) * 0.5f;
            half[1][b] = (m[1][b] - m[2][b]) * 0.5f;
            half[2][b] = (m[1][b] + m[2][b]) * 0.5f + m[3][b];
          }
          for (Size a = 0; a < 3; ++a) {
            float* to = kernel + (a * 3 * g.c_in + i) * g.c_out + c;
            const Size next = g.c_in * g.c_out;
            at(to) = half[a][0] + (half[a][1] + half[a][2]) * 0.5f;
            at(to + next) = (half[a][1] - half[a][2]) * 0.5f;
            at(to + 2 * next) = (half[a][1] + half[a][2]) * 0.5f + half[a][3];
          }
        }
      });
}

// A convolution at stride 1; value as for pack.
template <class Value>
void convolve_once(ffi::ThreadPool pool, const Geometry& g, const float* x,
                   const Activation& activation, Value value, const float* bias, bool relu,
                   float* out) {
  if (suits_winograd(g))
    convolve_winograd(pool, g, x, activation, pack_winograd(pool, g, value), bias, relu, out);
  else
    convolve(pool, g, 1, x, activation, pack(pool, g, 1, value), bias, relu, out);
}

// relu(conv(relu(scale * x + offset), kernel) + bias), without what is empty or not asked for.
ffi::Error Forward(ffi::ThreadPool pool, Tensor x, Tensor kernel, Table scale, Table offset,
                   Vector bias, Result y, Size stride, Size top, Size left, bool relu) {
  const Geometry g = geometry(x, *y, kernel.dimensions()[0], stride, top, left);
  const float* k = kernel.typed_data();
  const Size c_out = g.c_out;
  convolve_once(
      pool, g, x.typed_data(), activation(scale, offset),
      [=](Size, Size i, Size c) { return k[i * c_out + c]; },
      bias.element_count() ? bias.typed_data() : nullptr, relu, y->typed_data());
  return ffi::Error::Success();
}

// The input's gradient at stride 1, or where windows neither overlap nor leave gaps.
ffi::Error InputGradient(ffi::ThreadPool pool, Tensor y, Tensor kernel, Result x, Size stride,
                         Size top, Size left) {
  const Size size = kernel.dimensions()[0], c_in = x->dimensions()[3];
  const float* k = kernel.typed_data();
  Geometry g = geometry(y, *x, size, 1, size - 1 - top, size - 1 - left);
  const Size c_out = g.c_in;
  if (stride == 1) {  // a convolution with the kernel turned around
    const Size last = size * size - 1;
    const auto value = [=](Size, Size i, Size c) {
      return k[((last - i / c_out) * c_in + c) * c_out + i % c_out];
    };
    convolve_once(pool, g, y.typed_data(), {}, value, nullptr, false, x->typed_data());
  } else {  // a row of y times a kernel row is a row of x
    g = {g.n, g.h, g.w, c_out, g.h, g.w, size * c_in, 1, 1, 0, 0};
    const Size row = g.c_out;
    Floats packed = pack(pool, g, size, [=](Size kh, Size i, Size c) {
      return k[(kh * row + c) * c_out + i];
    });
    convolve(pool, g, size, y.typed_data(), {}, packed, nullptr, false, x->typed_data());
  }
  return ffi::Error::Success();
}

// Of conv(relu(scale * x + offset), kernel), without what is empty.
ffi::Error KernelGradient(ffi::ThreadPool pool, Tensor x, Tensor y, Table scale, Table offset,
                          Result kernel, Size stride, Size top, Size left) {
  const Geometry g = geometry(x, y, kernel->dimensions()[0], stride, top, left);
  if (suits_winograd(g)) {
    kernel_gradient_winograd(pool, g, x.typed_data(), activation(scale, offset), y.typed_data(),
                             kernel->typed_data());
    return ffi::Error::Success();
  }
  // A slot's partial sums, rounded up to whole tiles.
  const Size taps = round_up(g.taps(), kTaps), channels = round_up(g.c_out, kLanes);
  const Size size = g.kernel * taps * channels;
  // A tile is read and written once in so many rows; where that is more than an image's, of several.
  const Size pixels = size * Size{sizeof(float)} > kCacheBytes ? 512 : 128;
  const Size pass = ceil_div(pixels, g.w_out);
  const Size together = std::clamp<Size>(pass / g.h_out, 1, g.n);
  const Size row_bytes = (g.padded() * stride + g.w_out * channels) * 4;
  const Size fitting = std::max(pass, kCacheBytes / row_bytes / pass * pass);
  const Size rows = std::min(fitting, g.h_out);
  const Size chunks = ceil_div(g.h_out, rows), tasks = ceil_div(g.n, together) * chunks;
  // By the shapes alone: the order of the sums must not depend on the threads.
  const Size slots =
      std::min({std::max<Size>(2, g.n * g.h_out * g.w_out / 1024), tasks, kMaxSlots});
  Floats totals = aligned(slots * size);
  float* sums = totals.get();
  const float* images = x.typed_data();
  const float* gradients = y.typed_data();
  const Activation active = activation(scale, offset);
  struct Local {
    std::vector<Rows> in;
    std::vector<float> y;  // with whole vectors of channels, where it hasn't any
  };
  parallel_for(
      pool, slots,
      [=] {
        const bool whole = channels == g.c_out;
        Local local{{}, std::vector<float>(whole ? 0 : together * rows * g.w_out * channels)};
        for (Size m = 0; m < together; ++m) local.in.emplace_back(g, rows);
        return local;
      },
      [=](Size slot, Local& local) {
        float* total = sums + slot * size;
        std::fill_n(total, size, 0.0f);
        for (Size task = slot * tasks / slots; task < (slot + 1) * tasks / slots; ++task) {
          const Size image = task / chunks * together, first = task % chunks * rows;
          const Size count = std::min(rows, g.h_out - first);
          const Size many = std::min(together, g.n - image);
          for (Size m = 0; m < many; ++m)
            local.in[m].load(images, image + m, first, count, active);
          const float* from = gradients + (image * g.h_out + first) * g.w_out * g.c_out;
          if (!local.y.empty()) {
            for (Size p = 0; p < many * count * g.w_out; ++p)
              std::copy_n(from + p * g.c_out, g.c_out, &local.y[p * channels]);
            from = local.y.data();
          }
          for (Size r = 0; r < count; r += pass)
            for (Size c = 0; c < channels; c += kBlock) {
              for (Size kh = 0; kh < g.kernel; ++kh)
                for (Size k = 0; k < g.taps(); k += kTaps) {
                  const auto row = [&](Size m, Size i) {
                    return local.in[m][r + i] + kh * g.padded() + k;
                  };
                  const float* y = from + r * g.w_out * channels + c;
                  float* to = total + (kh * taps + k) * channels + c;
                  const Size some = std::min(pass, count - r);
                  if (channels - c > kLanes)
                    gradient_tile<2>(row, many, some, g.w_out, g.step(), y, channels, to);
                  else
                    gradient_tile<1>(row, many, some, g.w_out, g.step(), y, channels, to);
                }
            }
        }
      });
  float* result = kernel->typed_data();
  parallel_for(
      pool, g.kernel * g.taps(), [] { return 0; },
      [=](Size i, int) {
        const float* from = sums + (i / g.taps() * taps + i % g.taps()) * channels;
        float* to = result + i * g.c_out;
        std::copy_n(from, g.c_out, to);
        for (Size s = 1; s < slots; ++s)
          for (Size c = 0; c < g.c_out; ++c) to[c] += from[s * size + c];
      });
  return ffi::Error::Success();
}

auto operands() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Tensor>().Arg<Tensor>(); }

template <class Binding>
auto window(Binding binding) {
  return std::move(binding).template Ret<Tensor>().template Attr<Size>("stride").template Attr<Size>(
      "top").template Attr<Size>("left");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    conv2d, Forward,
    window(operands().Arg<Table>().Arg<Table>().Arg<Vector>()).Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(conv2d_input_gradient, InputGradient, window(operands()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(conv2d_kernel_gradient, KernelGradient,
                              window(operands().Arg<Table>().Arg<Table>()));
