// CNNKERNELS_HD marks arithmetic that kernels and the host (planner, CPU tests) share.
#pragma once

#ifdef __CUDACC__
#define CNNKERNELS_HD __host__ __device__ __forceinline__
#else
#define CNNKERNELS_HD inline
#endif
