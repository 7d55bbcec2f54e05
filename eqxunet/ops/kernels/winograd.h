// Winograd's F(2x2, 3x3) (Lavin, Gray, CVPR 2016): a tile of 2x2 outputs takes 16 products of
// transformed values instead of 36. The 16 are as many matrix products over the tiles at hand.

#pragma once

#include "tiles.h"

namespace eqxunet {

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
    const Vec m0 = at(in + j * plane), m1 = at(in + (4 + j) * plane), m2 = at(in + (8 + j) * plane),
              m3 = at(in + (12 + j) * plane);
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
  Size across, rows, together;  // tiles a row; rows of pixels; images
  Size values, products;        // floats of a plane

  // `width` floats of a plane belong to each tile's products.
  Tiles(const Geometry& g, Size width, Size bytes = kWinogradBytes) {
    across = ceil_div(g.w_out, 2);
    const Size fitting = bytes / (kPlanes * (g.c_in + width) * Size{sizeof(float)});
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
  // What is summed is read and written once for so many tiles; where it is in no core's L2, of more.
  const bool large = kPlanes * g.c_in * g.c_out * Size{sizeof(float)} > 2 << 20;
  const Tiles tiles(g, g.c_out, (large ? 4 : 1) * kWinogradBytes);
  const Size chunks = ceil_div(g.h_out, tiles.rows), groups = ceil_div(g.n, tiles.together);
  const Size tasks = groups * chunks, taps = round_up(g.c_in, kTaps), plane = taps * g.c_out;
  // By the shapes alone: the order of the sums must not depend on the threads.
  const Size slots =
      std::min({std::max<Size>(2, g.n * g.h_out * g.w_out / 4096), tasks, kMaxSlots});
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
              const Vec in[2][2] = {
                  {at(first), right ? at(first + g.c_out) : Vec{}},
                  {below ? at(second) : Vec{}, below && right ? at(second + g.c_out) : Vec{}}};
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

}  // namespace eqxunet
