// Which LRN kernel runs; the rule is plan::choose_lrn_kernel.
#include "common/dispatch.cuh"
#include "lrn/lrn.h"

namespace cnnkernels {
namespace {

plan::LrnKernel choose(const LrnParams& p) {
  const int vector = p.dtype == Dtype::f32 ? 4 : 8;
  const bool vectors = p.shape.c % vector == 0 && aligned_to(p.x, 16) && aligned_to(p.bias, 16) &&
                       aligned_to(p.dy, 16) && aligned_to(p.out, 16);
  return plan::choose_lrn_kernel(p.shape, p.dtype, p.layout, vectors);
}

}  // namespace

cudaError_t launch_lrn(const LrnParams& p, cudaStream_t stream) {
  if (p.shape.n * p.shape.c * p.shape.pixels == 0) return cudaSuccess;
  switch (choose(p)) {
    case plan::LrnKernel::vector: return launch_lrn_nhwc(p, stream);
    case plan::LrnKernel::planes: return launch_lrn_nchw(p, stream);
    default: return launch_lrn_any(p, stream);
  }
}

cudaError_t launch_lrn_backward(const LrnParams& p, cudaStream_t stream) {
  if (p.shape.n * p.shape.c * p.shape.pixels == 0) return cudaSuccess;
  switch (choose(p)) {
    case plan::LrnKernel::vector: return launch_lrn_backward_nhwc(p, stream);
    case plan::LrnKernel::planes: return launch_lrn_backward_nchw(p, stream);
    default: return launch_lrn_backward_any(p, stream);
  }
}

}  // namespace cnnkernels
