// The compiled convolution kernels: one row per instance and what it is for. Every instance exists
// for bf16, fp16 and tf32 (where it fits shared memory); names are stable, tuning tables hold them.
#pragma once

#include <cstring>

namespace cnnkernels::plan {

enum class Family {
  igemm,        // implicit GEMM: every tap fetched through an im2col map; any stride, dilation
  halo_res,     // stride 1: input box in shared memory once, all weights of 64 channels resident
  halo_stream,  // stride 1: input box once, weights streamed tap by tap
};

struct Instance {
  const char* name;
  Family family;
  int channels;   // output channels of a block's tile; 64: each consumer warpgroup has its pixels
  int pixels;     // N of wgmma: output pixels of one warpgroup's accumulators
  int row_bytes;  // bytes of input channels in one shared-memory row (the swizzle span)
  const char* why;
  bool measured = true;  // false: no GPU has run it yet, so only its name selects it
  int split = 1;         // igemm: blocks (a cluster) that share the sums of a tile
  bool pingpong =
      false;  // igemm: a warpgroup owns whole tiles, one stores while the other multiplies
};

constexpr Instance kInstances[] = {
    // 128 channels x N pixels; N is chosen so that the tiles fill the multiprocessors.
    {"igemm_128x64", Family::igemm, 128, 64, 128, "fewest pixels per tile: 7x7 maps, small batch"},
    {"igemm_128x96", Family::igemm, 128, 96, 128, "132 tiles on 7x7 x 64 x 512 channels"},
    {"igemm_128x128", Family::igemm, 128, 128, 128, "middle sizes, deeper pipeline than 192"},
    {"igemm_128x160", Family::igemm, 128, 160, 128, "fills the last wave between 128 and 192"},
    {"igemm_128x192", Family::igemm, 128, 192, 128, "large maps: operand traffic near 256's"},
    {"igemm_128x224", Family::igemm, 128, 224, 128, "fills the last wave between 192 and 256"},
    {"igemm_128x256", Family::igemm, 128, 256, 128, "least operand traffic, memory-bound 1x1"},
    // 64 channels: the two warpgroups take N pixels each, so no half of the tile is padding.
    {"igemm_64x64", Family::igemm, 64, 64, 128, "K <= 64: two times 64 pixels"},
    {"igemm_64x128", Family::igemm, 64, 128, 128, "K <= 64: two times 128 pixels"},
    {"igemm_64x256", Family::igemm, 64, 256, 128, "K <= 64 on large maps"},
    // Not measured yet: see docs/kernels/conv2d.md for what each should win.
    {"igemm_128x208", Family::igemm, 128, 208, 128, "7x7 x 64 x 2048 channels: 256 tiles", false},
    {"igemm_64x192", Family::igemm, 64, 192, 128, "28x28 x 64, K = 64: 131 tiles", false},
    // 2, 4 or 8 blocks share the K of a tile: few tiles of long sums, small batches.
    {"igemm_128x208_k2", Family::igemm, 128, 208, 128, "7x7 x 64 x 512: 64 tiles", false, 2},
    {"igemm_128x128_k2", Family::igemm, 128, 128, 128, "half a wave of tiles", false, 2},
    {"igemm_128x224_k4", Family::igemm, 128, 224, 128, "7x7 x 32 x 512: 28 tiles", false, 4},
    {"igemm_128x128_k4", Family::igemm, 128, 128, 128, "a quarter of a wave", false, 4},
    {"igemm_128x64_k4", Family::igemm, 128, 64, 128, "batch 1 to 8", false, 4},
    {"igemm_128x64_k8", Family::igemm, 128, 64, 128, "batch 1", false, 8},
    // A warpgroup's epilogue under the other's products: many tiles of short sums.
    {"igemm_128x96_pp", Family::igemm, 128, 96, 128, "7x7 x 64 x 2048 + residual", false, 1, true},
    {"igemm_128x144_pp", Family::igemm, 128, 144, 128, "fills the last wave: 7x7 x 96", false, 1,
     true},
    {"igemm_128x192_pp", Family::igemm, 128, 192, 128, "1x1 of 4 to 16 steps, large batch", false,
     1, true},
    // Resident weights: 95-100 % of the matmul rate on VGG's 64-channel layers.
    {"halo_res_224_c128", Family::halo_res, 64, 224, 128, "C <= 64 (16-bit), maps from 28"},
    {"halo_res_112_c128", Family::halo_res, 64, 112, 128, "C <= 64 (16-bit), maps of 14"},
    {"halo_res_224_c64", Family::halo_res, 64, 224, 64, "C <= 32 (16-bit), maps from 28"},
    {"halo_res_112_c64", Family::halo_res, 64, 112, 64, "C <= 32 (16-bit), maps of 14"},
    {"halo_res_224_c32", Family::halo_res, 64, 224, 32, "C <= 16 (16-bit), maps from 28"},
    {"halo_res_112_c32", Family::halo_res, 64, 112, 32, "C <= 16 (16-bit), maps of 14"},
    // Streamed weights: half the L2 traffic of im2col.
    {"halo_stream_224_c128", Family::halo_stream, 128, 224, 128, "8 x 28 divides 56, 112, 224"},
    {"halo_stream_112_c128", Family::halo_stream, 128, 112, 128, "maps of 14"},
    {"halo_stream_208_c128", Family::halo_stream, 128, 208, 128, "7 whole rows of a 28 map"},
    {"halo_stream_224_c64", Family::halo_stream, 128, 224, 64, "C = 96, 160: no half-empty chunk"},
    {"halo_stream_2x112_c128", Family::halo_stream, 64, 112, 128, "TF32, C = 64, K = 64 and 192",
     false},
    {"halo_stream_208_c64", Family::halo_stream, 128, 208, 64, "the same on 27 and 28 maps", false},
};
constexpr int kInstanceCount = sizeof(kInstances) / sizeof(kInstances[0]);

inline const Instance* find_instance(const char* name) {
  for (const Instance& instance : kInstances)
    if (std::strcmp(instance.name, name) == 0) return &instance;
  return nullptr;
}

}  // namespace cnnkernels::plan
