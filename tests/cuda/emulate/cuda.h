// Stands in for the driver's header where kernels run on the host: the tensor map is readable.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

struct CUtensorMap {
  uint8_t* base;
  int element_bytes, rank;
  uint64_t dims[5], strides[4];  // elements; bytes
  uint32_t box[5];
};
