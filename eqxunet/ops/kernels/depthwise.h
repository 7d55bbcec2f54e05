// Depthwise convolution: a kernel of its own for each channel, in whole vectors of channels.
//
//   forward     out[p, c]    += row[p * stride + k, c] * kernel[k, c]
//   gradient    kernel[k, c] += row[p * stride + k, c] * y[p, c]

#pragma once

#include "tiles.h"

namespace eqxunet {

// kTile pixels of one output row in V vectors of channels; the first `pixels` of them are stored.
template <int V>
void depthwise_tile(const float* rows, const Geometry& g, const float* kernel, float* out,
                    Size pixels) {
  Vec sum[kTile][V] = {};
  for (Size kh = 0; kh < g.kernel; ++kh, rows += g.padded())
    for (Size kw = 0; kw < g.kernel; ++kw, kernel += g.c_in) {
#pragma GCC unroll 16
      for (int p = 0; p < kTile; ++p)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v)
          sum[p][v] +=
              at(rows + p * g.step() + kw * g.c_in + v * kLanes) * at(kernel + v * kLanes);
    }
  const int count = std::min<Size>(pixels, kTile);
  for (int p = 0; p < count; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) at(out + p * g.c_in + v * kLanes) = sum[p][v];
}

void depthwise(ffi::ThreadPool pool, const Geometry& g, const float* x, const float* kernel,
               float* out) {
  const Size rows = std::clamp<Size>(kCacheBytes / (g.padded() * g.stride * 4), 1, g.h_out);
  const Size chunks = ceil_div(g.h_out, rows);
  parallel_for(
      pool, g.n * chunks, [=] { return Rows(g, rows); },
      [=](Size task, Rows& in) {
        const Size image = task / chunks, top = task % chunks * rows;
        const Size count = std::min(rows, g.h_out - top);
        in.load(x, image, top, count, {});
        for (Size r = 0; r < count; ++r) {
          float* row = out + (image * g.h_out + top + r) * g.w_out * g.c_in;
          for (Size p = 0; p < g.w_out; p += kTile)
            for (Size c = 0; c < g.c_in; c += kBlock) {
              auto tile = g.c_in - c >= kBlock ? depthwise_tile<2> : depthwise_tile<1>;
              tile(in[r] + p * g.step() + c, g, kernel + c, row + p * g.c_in + c, g.w_out - p);
            }
        }
      });
}

// The input's gradient at any stride; g is that of the forward convolution. Each row of x collects
// from the rows of y that read it.
void depthwise_input_gradient(ffi::ThreadPool pool, const Geometry& g, const float* y,
                              const float* kernel, float* x) {
  const Size c_in = g.c_in;
  parallel_for(
      pool, g.n * g.h, [] { return 0; },
      [=](Size task, int) {
        const Size image = task / g.h, i = task % g.h;
        float* to = x + task * g.w * c_in;
        std::fill_n(to, g.w * c_in, 0.0f);
        for (Size kh = 0; kh < g.kernel; ++kh) {
          const Size offset = i + g.top - kh;
          if (offset < 0 || offset % g.stride != 0 || offset / g.stride >= g.h_out) continue;
          const float* from = y + (image * g.h_out + offset / g.stride) * g.w_out * c_in;
          for (Size p = 0; p < g.w_out; ++p)
            for (Size kw = 0; kw < g.kernel; ++kw) {
              const Size j = p * g.stride + kw - g.left;
              if (j < 0 || j >= g.w) continue;
              const float* k = kernel + (kh * g.kernel + kw) * c_in;
              for (Size c = 0; c < c_in; c += kLanes)
                at(to + j * c_in + c) += at(from + p * c_in + c) * at(k + c);
            }
        }
      });
}

// One kernel row by V vectors of channels, on top of what is in `total`, over an output row; K of
// its values at a time.
template <int V, int K>
void depthwise_gradient_row(const float* row, const Geometry& g, const float* y, float* total) {
  for (Size k = 0; k < g.kernel; k += K, row += K * g.c_in, total += K * g.c_in) {
    Vec sum[K][V] = {};
    const float *x = row, *gradient = y;
    for (Size p = 0; p < g.w_out; ++p, x += g.step(), gradient += g.c_in) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
#pragma GCC unroll 5
        for (int i = 0; i < K; ++i)
          sum[i][v] += at(gradient + v * kLanes) * at(x + i * g.c_in + v * kLanes);
    }
#pragma GCC unroll 5
    for (int i = 0; i < K; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) at(total + i * g.c_in + v * kLanes) += sum[i][v];
  }
}

template <int V>
auto depthwise_gradient_of(Size kernel) {
  return kernel % 5 == 0   ? depthwise_gradient_row<V, 5>
         : kernel % 3 == 0 ? depthwise_gradient_row<V, 3>
                           : depthwise_gradient_row<V, 1>;
}

void depthwise_kernel_gradient(ffi::ThreadPool pool, const Geometry& g, const float* x,
                               const float* y, float* kernel) {
  const Size size = g.kernel * g.taps();
  const Size rows = std::clamp<Size>(kCacheBytes / (g.padded() * g.stride * 4), 1, g.h_out);
  const Size chunks = ceil_div(g.h_out, rows), tasks = g.n * chunks;
  const Size slots = std::min(tasks, kMaxSlots);  // by the shapes alone, as the order of sums is
  const auto add_two = depthwise_gradient_of<2>(g.kernel), add = depthwise_gradient_of<1>(g.kernel);
  Floats totals = aligned(slots * size);
  float* sums = totals.get();
  parallel_for(
      pool, slots, [=] { return Rows(g, rows); },
      [=](Size slot, Rows& in) {
        float* total = sums + slot * size;
        std::fill_n(total, size, 0.0f);
        for (Size task = slot * tasks / slots; task < (slot + 1) * tasks / slots; ++task) {
          const Size image = task / chunks, top = task % chunks * rows;
          const Size count = std::min(rows, g.h_out - top);
          in.load(x, image, top, count, {});
          for (Size r = 0; r < count; ++r) {
            const float* from = y + (image * g.h_out + top + r) * g.w_out * g.c_in;
            for (Size kh = 0; kh < g.kernel; ++kh)
              for (Size c = 0; c < g.c_in; c += kBlock)
                (g.c_in - c >= kBlock ? add_two : add)(in[r] + kh * g.padded() + c, g, from + c,
                                                       total + kh * g.taps() + c);
          }
        }
      });
  std::copy_n(sums, size, kernel);
  for (Size s = 1; s < slots; ++s)
    for (Size i = 0; i < size; ++i) kernel[i] += sums[s * size + i];
}

}  // namespace eqxunet
