// Tensor maps of the convolution kernels as plain numbers: dimensions (fastest first), strides in
// bytes, boxes, im2col corners. The launcher hands them to the driver; tests replay them.
#pragma once

#include <array>
#include <cstdint>

#include "plan/conv_problem.h"

namespace cnnkernels::plan {

struct TensorMap {
  int rank = 0;
  uint64_t dims[4] = {1, 1, 1, 1};
  uint64_t strides[3] = {};        // bytes between neighbours in dims 1..rank-1
  uint32_t box[4] = {1, 1, 1, 1};  // tiled: elements loaded; im2col: {channels, pixels}
  uint32_t element_strides[4] = {1, 1, 1, 1};
  int swizzle = 128;  // bytes: 32, 64 or 128
  bool im2col = false;
  int lower[2] = {}, upper[2] = {};  // im2col corners, {w, h}
  uint64_t bytes() const { return rank < 2 ? 0 : strides[rank - 2] * dims[rank - 1]; }
};

// Input [N, H, W, C] with `pitch` channels between pixels, walked in output order.
inline TensorMap im2col_map(const ConvProblem& x, int64_t pitch, int row_bytes, int pixels) {
  TensorMap m;
  const uint64_t e = x.element_bytes();
  m.rank = 4;
  m.im2col = true;
  m.dims[0] = x.c, m.dims[1] = x.w, m.dims[2] = x.h, m.dims[3] = x.n;
  m.strides[0] = pitch * e, m.strides[1] = m.strides[0] * x.w, m.strides[2] = m.strides[1] * x.h;
  m.box[0] = row_bytes / e, m.box[1] = pixels;
  m.element_strides[1] = x.stride_w, m.element_strides[2] = x.stride_h;
  m.swizzle = row_bytes;
  m.lower[0] = -x.pad_w, m.lower[1] = -x.pad_h;
  m.upper[0] = x.pad_w - (x.s - 1) * x.dilation_w;
  m.upper[1] = x.pad_h - (x.r - 1) * x.dilation_h;
  return m;
}

// Rows of `channels` elements, `pitch` apart: a 1x1 convolution's input, the output, the residual.
inline TensorMap matrix_map(const ConvProblem& x, int64_t channels, int64_t pitch, int box_channels,
                            int box_rows) {
  TensorMap m;
  m.rank = 2;
  m.dims[0] = channels, m.dims[1] = x.pixels();
  m.strides[0] = pitch * x.element_bytes();
  m.box[0] = box_channels, m.box[1] = box_rows;
  m.swizzle = box_channels * x.element_bytes();
  return m;
}

// Weights [K, R, S, C]: box = row_bytes of channels, one tap, `filters` output channels.
inline TensorMap weight_map(const ConvProblem& x, int row_bytes, int filters) {
  TensorMap m;
  const uint64_t e = x.element_bytes();
  m.rank = 3;
  m.dims[0] = x.c, m.dims[1] = uint64_t(x.r) * x.s, m.dims[2] = x.k;
  m.strides[0] = x.c * e, m.strides[1] = m.strides[0] * m.dims[1];
  m.box[0] = row_bytes / e, m.box[2] = filters;
  m.swizzle = row_bytes;
  return m;
}

// [N, H, W, channels] with `pitch` channels between pixels: box of box_w x box_h pixels.
inline TensorMap image_map(const ConvProblem& x, int channels, int w, int h, int64_t pitch,
                           int row_bytes, int box_w, int box_h) {
  TensorMap m;
  const uint64_t e = x.element_bytes();
  m.rank = 4;
  m.dims[0] = channels, m.dims[1] = w, m.dims[2] = h, m.dims[3] = x.n;
  m.strides[0] = pitch * e, m.strides[1] = m.strides[0] * w, m.strides[2] = m.strides[1] * h;
  m.box[0] = row_bytes / e, m.box[1] = box_w, m.box[2] = box_h;
  m.swizzle = row_bytes;
  return m;
}

// Everything the driver's encoding depends on but address and type, as words to hash and compare.
using MapKey = std::array<uint64_t, 14>;
inline MapKey map_key(const TensorMap& m) {
  auto two = [](auto a, auto b) { return uint64_t(uint32_t(a)) << 32 | uint32_t(b); };
  return {m.dims[0],
          m.dims[1],
          m.dims[2],
          m.dims[3],
          m.strides[0],
          m.strides[1],
          m.strides[2],
          two(m.box[0], m.box[1]),
          two(m.box[2], m.box[3]),
          two(m.element_strides[0], m.element_strides[1]),
          two(m.element_strides[2], m.element_strides[3]),
          two(m.rank * 2 + m.im2col, m.swizzle),
          two(m.lower[0], m.lower[1]),
          two(m.upper[0], m.upper[1])};
}

// Why the driver refuses the map, or nullptr (its documented limits).
inline const char* map_error(const TensorMap& m) {
  for (int i = 0; i + 1 < m.rank; ++i)
    if (m.strides[i] % 16 != 0 || m.strides[i] >= (uint64_t{1} << 40))
      return "a stride that is no multiple of 16 bytes or not below 2^40";
  for (int i = 0; i < m.rank; ++i) {
    if (m.dims[i] == 0 || m.dims[i] > (uint64_t{1} << 32)) return "a dimension over 2^32";
    if (!m.im2col && (m.box[i] == 0 || m.box[i] > 256)) return "a box side over 256";
    if (m.element_strides[i] > 8) return "a stride over 8";
  }
  if (m.im2col) {
    if (m.box[0] > 256 || m.box[1] > 1024) return "an im2col box over 256 channels or 1024 pixels";
    for (int i = 0; i < 2; ++i)
      if (m.lower[i] < -128 || m.lower[i] > 127 || m.upper[i] < -128 || m.upper[i] > 127)
        return "a padding or filter extent over 128";
  }
  return nullptr;
}

}  // namespace cnnkernels::plan
