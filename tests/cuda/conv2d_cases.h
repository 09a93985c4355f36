// The convolutions of check_conv2d.cu.
#pragma once

struct Case {
  int n, h, w, c, k, r, s, stride, pad, dilation, groups;
  bool residual, relu, bias;
  int extra;  // channels of the wider output tensor besides k
  bool pool = false;
  int input_extra = 0;  // channels of the wider input tensor besides c
  int shortcut_c = 0, shortcut_stride = 1;
  int split = 0;  // the channels from here on go to a second output
};

const Case kCases[] = {
    {2, 14, 14, 64, 64, 1, 1, 1, 0, 1, 1, false, true, true, 0},
    {3, 7, 7, 256, 136, 1, 1, 1, 0, 1, 1, true, true, true, 0},
    {2, 27, 27, 128, 320, 1, 1, 1, 0, 1, 1, true, false, true, 0},
    {2, 15, 15, 72, 64, 3, 3, 2, 1, 1, 1, true, true, true, 0},
    {2, 13, 19, 128, 256, 3, 3, 1, 1, 1, 1, true, true, false, 0},
    {2, 28, 28, 128, 128, 3, 3, 1, 1, 1, 1, false, true, true, 64},
    {3, 14, 14, 96, 208, 3, 3, 1, 1, 1, 1, false, true, true, 0},
    {1, 56, 56, 64, 64, 3, 3, 1, 1, 1, 1, false, true, true, 0},
    {5, 29, 57, 32, 136, 5, 5, 1, 1, 1, 1, false, false, true, 0},
    {9, 28, 28, 16, 32, 5, 5, 1, 2, 1, 1, false, true, true, 8},
    {9, 14, 14, 16, 48, 5, 5, 1, 2, 1, 1, false, true, true, 0},
    {2, 27, 27, 48, 128, 5, 5, 1, 2, 1, 2, false, true, true, 0},
    {2, 27, 27, 96, 256, 5, 5, 1, 2, 1, 2, true, true, true, 32},
    {3, 28, 20, 160, 48, 3, 3, 1, 2, 2, 1, false, true, true, 0},
    {2, 23, 30, 64, 72, 1, 7, 1, 3, 1, 1, false, true, true, 0},
    {2, 17, 33, 40, 48, 3, 3, 1, 0, 1, 1, false, true, true, 0},
    {70, 7, 7, 64, 512, 3, 3, 1, 1, 1, 1, true, true, true, 0},
    {40, 28, 28, 64, 192, 3, 3, 1, 1, 1, 1, false, true, true, 0},
    {2, 56, 56, 64, 64, 3, 3, 1, 1, 1, 1, true, true, true, 0},
    {3, 28, 28, 128, 136, 3, 3, 1, 1, 1, 1, true, true, true, 64},
    {3, 14, 14, 96, 208, 3, 3, 1, 1, 1, 1, true, true, false, 0},
    {2, 28, 28, 64, 72, 3, 3, 1, 1, 1, 1, false, true, true, 64, true},
    {2, 31, 45, 128, 192, 3, 3, 1, 1, 1, 1, false, true, true, 0, true},
    {3, 14, 14, 16, 64, 5, 5, 1, 2, 1, 1, false, false, true, 0, true},
    {20, 56, 56, 128, 256, 3, 3, 1, 1, 1, 1, false, true, true, 0, true},
    // channel slices of wider inputs
    {3, 14, 14, 64, 72, 1, 1, 1, 0, 1, 1, false, true, true, 0, false, 48},
    {2, 14, 14, 96, 136, 3, 3, 1, 1, 1, 1, true, true, true, 32, false, 16},
    {2, 28, 28, 32, 64, 5, 5, 1, 2, 1, 1, false, true, true, 0, false, 64},
    {2, 15, 15, 64, 64, 3, 3, 2, 1, 1, 2, false, true, true, 0, false, 64},
    // projection shortcuts: stride, chunks that end early, a shortcut from a slice
    {3, 7, 7, 512, 136, 1, 1, 1, 0, 1, 1, false, true, true, 0, false, 0, 256, 2},
    {2, 14, 14, 72, 320, 3, 3, 1, 1, 1, 1, false, true, true, 64, false, 16, 40, 2},
    {2, 28, 28, 64, 256, 1, 1, 1, 0, 1, 1, false, false, false, 0, false, 0, 64, 1},
    // two outputs, split at and inside a box of 64 channels
    {3, 14, 14, 192, 176, 1, 1, 1, 0, 1, 1, false, true, true, 64, false, 0, 0, 1, 64},
    {3, 14, 14, 480, 304, 1, 1, 1, 0, 1, 1, false, true, true, 0, false, 0, 0, 1, 160},
    {2, 9, 9, 72, 200, 3, 3, 1, 1, 1, 1, false, true, true, 32, false, 0, 0, 1, 136},
    // three tiles of 8 x 14 pixels: the last pair of halo_stream_2x112 is half empty
    {1, 14, 20, 64, 72, 3, 3, 1, 1, 1, 1, true, true, true, 0},
    // long sums on few pixels
    {1, 7, 7, 512, 512, 3, 3, 1, 1, 1, 1, true, true, true, 0},
    {5, 7, 7, 2048, 200, 1, 1, 1, 0, 1, 1, false, true, true, 32},
};
