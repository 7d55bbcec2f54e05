// 2D convolution for CPUs, channels last, as XLA custom calls (XLA's FFI, on XLA's own threads).
//
// The input may be relu(scale * x + offset), computed as x is copied into padded rows, which are
// read from the cache then; bias and relu of the output are applied in registers. Every sum has a
// fixed order, whatever the number of threads, so results are reproducible to the bit.

#include "depthwise.h"
#include "direct.h"
#include "winograd.h"

namespace eqxunet {

using Tensor = ffi::Buffer<ffi::F32, 4>;
using Table = ffi::Buffer<ffi::F32, 2>;
using Vector = ffi::Buffer<ffi::F32, 1>;
using Result = ffi::ResultBuffer<ffi::F32, 4>;

Activation activation(Table scale, Table offset) {
  if (scale.element_count() == 0) return {nullptr, nullptr};
  return {scale.typed_data(), offset.typed_data()};
}

Geometry geometry(Tensor x, Tensor out, Size kernel, Size stride, Size top, Size left) {
  auto in = x.dimensions(), result = out.dimensions();
  return {in[0], in[1], in[2], in[3], result[1], result[2], result[3], kernel, stride, top, left};
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
    Floats packed =
        pack(pool, g, size, [=](Size kh, Size i, Size c) { return k[(kh * row + c) * c_out + i]; });
    convolve(pool, g, size, y.typed_data(), {}, packed, nullptr, false, x->typed_data());
  }
  return ffi::Error::Success();
}

// Of conv(relu(scale * x + offset), kernel), without what is empty.
ffi::Error KernelGradient(ffi::ThreadPool pool, Tensor x, Tensor y, Table scale, Table offset,
                          Result kernel, Size stride, Size top, Size left) {
  const Geometry g = geometry(x, y, kernel->dimensions()[0], stride, top, left);
  const auto gradient = suits_winograd(g) ? kernel_gradient_winograd : kernel_gradient;
  gradient(pool, g, x.typed_data(), activation(scale, offset), y.typed_data(),
           kernel->typed_data());
  return ffi::Error::Success();
}

// Depthwise, in whole vectors of channels; the kernel is (k, k, 1, c).
ffi::Error Depthwise(ffi::ThreadPool pool, Tensor x, Tensor kernel, Result y, Size stride, Size top,
                     Size left) {
  const Geometry g = geometry(x, *y, kernel.dimensions()[0], stride, top, left);
  depthwise(pool, g, x.typed_data(), kernel.typed_data(), y->typed_data());
  return ffi::Error::Success();
}

ffi::Error DepthwiseInputGradient(ffi::ThreadPool pool, Tensor y, Tensor kernel, Result x,
                                  Size stride, Size top, Size left) {
  const Geometry g = geometry(*x, y, kernel.dimensions()[0], stride, top, left);
  depthwise_input_gradient(pool, g, y.typed_data(), kernel.typed_data(), x->typed_data());
  return ffi::Error::Success();
}

ffi::Error DepthwiseKernelGradient(ffi::ThreadPool pool, Tensor x, Tensor y, Result kernel,
                                   Size stride, Size top, Size left) {
  const Geometry g = geometry(x, y, kernel->dimensions()[0], stride, top, left);
  depthwise_kernel_gradient(pool, g, x.typed_data(), y.typed_data(), kernel->typed_data());
  return ffi::Error::Success();
}

auto operands() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Tensor>().Arg<Tensor>(); }

template <class Binding>
auto window(Binding binding) {
  return std::move(binding)
      .template Ret<Tensor>()
      .template Attr<Size>("stride")
      .template Attr<Size>("top")
      .template Attr<Size>("left");
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    conv2d, Forward, window(operands().Arg<Table>().Arg<Table>().Arg<Vector>()).Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(conv2d_input_gradient, InputGradient, window(operands()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(conv2d_kernel_gradient, KernelGradient,
                              window(operands().Arg<Table>().Arg<Table>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise2d, Depthwise, window(operands()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise2d_input_gradient, DepthwiseInputGradient,
                              window(operands()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise2d_kernel_gradient, DepthwiseKernelGradient,
                              window(operands()));

}  // namespace eqxunet
