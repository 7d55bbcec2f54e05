// Convolution and its kernel's gradient as products over padded rows, for any kernel and stride.
//
// A row of the input, padded, holds for output pixel p the kw * c_in values that one row of the
// kernel weighs, contiguous and stride * c_in apart from those of p + 1. So both are small matrix
// products over rows, and nothing is unfolded (im2col):
//
//   forward     out[p, o]    += row[p * step + k] * kernel[k, o]
//   gradient    kernel[k, o] += row[p * step + k] * y[p, o]

#pragma once

#include "tiles.h"

namespace eqxunet {

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

void kernel_gradient(ffi::ThreadPool pool, const Geometry& g, const float* x,
                     const Activation& activation, const float* y, float* kernel) {
  // A slot's partial sums, rounded up to whole tiles.
  const Size taps = round_up(g.taps(), kTaps), channels = round_up(g.c_out, kLanes);
  const Size size = g.kernel * taps * channels;
  // A tile is read and written once in so many rows; where that is more than an image's, of
  // several.
  const Size least = size * Size{sizeof(float)} > kCacheBytes ? 512 : 128;
  const Size pass = ceil_div(least, g.w_out);
  const Size together = std::clamp<Size>(pass / g.h_out, 1, g.n);
  const Size row_bytes = (g.padded() * g.stride + g.w_out * channels) * 4;
  const Size fitting = std::max(pass, kCacheBytes / row_bytes / pass * pass);
  const Size rows = std::min(fitting, g.h_out);
  const Size chunks = ceil_div(g.h_out, rows), tasks = ceil_div(g.n, together) * chunks;
  // By the shapes alone: the order of the sums must not depend on the threads.
  const Size slots =
      std::min({std::max<Size>(2, g.n * g.h_out * g.w_out / 1024), tasks, kMaxSlots});
  Floats totals = aligned(slots * size);
  float* sums = totals.get();
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
          for (Size m = 0; m < many; ++m) local.in[m].load(x, image + m, first, count, activation);
          const float* from = y + (image * g.h_out + first) * g.w_out * g.c_out;
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
                  const float* pixels = from + r * g.w_out * channels + c;
                  float* to = total + (kh * taps + k) * channels + c;
                  const Size some = std::min(pass, count - r);
                  if (channels - c > kLanes)
                    gradient_tile<2>(row, many, some, g.w_out, g.step(), pixels, channels, to);
                  else
                    gradient_tile<1>(row, many, some, g.w_out, g.step(), pixels, channels, to);
                }
            }
        }
      });
  parallel_for(
      pool, g.kernel * g.taps(), [] { return 0; },
      [=](Size i, int) {
        const float* from = sums + (i / g.taps() * taps + i % g.taps()) * channels;
        float* to = kernel + i * g.c_out;
        std::copy_n(from, g.c_out, to);
        for (Size s = 1; s < slots; ++s)
          for (Size c = 0; c < g.c_out; ++c) to[c] += from[s * size + c];
      });
}

}  // namespace eqxunet
