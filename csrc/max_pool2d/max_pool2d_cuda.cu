// Which max-pool kernel runs; the rule is plan::choose_pool_kernel.
#include "common/dispatch.cuh"
#include "max_pool2d/max_pool2d.h"

namespace cnnkernels {
namespace {

int vector_size(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 8; }

bool has_vectors(const PoolShape& s, Dtype dtype, const void* a, const void* b, const void* c) {
  return s.c % vector_size(dtype) == 0 && aligned_to(a, 16) && aligned_to(b, 16) &&
         aligned_to(c, vector_size(dtype)) && !wide_offsets(s);
}

}  // namespace

cudaError_t launch_max_pool2d(const MaxPoolParams& p, cudaStream_t stream) {
  const PoolShape& s = p.shape;
  if (s.n * s.c * s.oh * s.ow == 0) return cudaSuccess;
  const bool vectors = has_vectors(s, p.dtype, p.x, p.y, p.offsets);
  switch (plan::choose_pool_kernel(s, p.layout, vectors)) {
    case plan::PoolKernel::vector: return launch_max_pool2d_nhwc(p, stream);
    case plan::PoolKernel::planes: return launch_max_pool2d_nchw(p, stream);
    case plan::PoolKernel::any_vector: return launch_max_pool2d_any(p, true, stream);
    default: return launch_max_pool2d_any(p, false, stream);
  }
}

cudaError_t launch_max_pool2d_backward(const MaxPoolBackwardParams& p, cudaStream_t stream) {
  const PoolShape& s = p.shape;
  if (s.n * s.c * s.h * s.w == 0) return cudaSuccess;
  const bool vectors = has_vectors(s, p.dtype, p.dy, p.dx, p.offsets);
  switch (plan::choose_pool_kernel(s, p.layout, vectors)) {
    case plan::PoolKernel::vector: return launch_max_pool2d_backward_nhwc(p, stream);
    case plan::PoolKernel::planes: return launch_max_pool2d_backward_nchw(p, stream);
    default: return launch_max_pool2d_backward_any(p, stream);
  }
}

}  // namespace cnnkernels
