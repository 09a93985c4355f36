// One convolution: its groups one after another, each with the planned or the named instance.
#include "conv2d/conv2d.h"

namespace cnnkernels {
namespace {

int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

const void* advance(const void* p, int64_t bytes) {
  return p == nullptr ? nullptr : static_cast<const char*>(p) + bytes;
}

}  // namespace

cudaError_t launch_conv2d_group(const ConvGroup& group, cudaStream_t stream) {
  switch (group.plan.instance->family) {
    case plan::Family::igemm:
      return group.plan.instance->pingpong    ? launch_conv2d_igemm_pingpong(group, stream)
             : group.plan.instance->split > 1 ? launch_conv2d_igemm_split(group, stream)
                                              : launch_conv2d_igemm(group, stream);
    case plan::Family::halo_res: return launch_conv2d_halo_res(group, stream);
    case plan::Family::halo_stream: return launch_conv2d_halo_stream(group, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_conv2d_sm90(const ConvParams& params, const plan::Instance* instance,
                               cudaStream_t stream) {
  const plan::ConvProblem& whole = params.problem;
  if (whole.pixels() == 0) return cudaSuccess;
  if (!plan::conv_why_not(whole).empty()) return cudaErrorInvalidValue;
  const int sms = multiprocessors();
  ConvGroup group{params, params.input_pitch ? params.input_pitch : whole.c, whole.k, {}};
  group.params.problem = whole.group();
  const plan::ConvProblem& x = group.params.problem;
  group.plan = plan::cached_plan(x, instance, sms);
  if (!group.plan.why_not.empty()) return cudaErrorInvalidValue;

  const int64_t e = whole.element_bytes();
  for (int i = 0; i < whole.groups; ++i) {
    group.params.input = advance(params.input, i * x.c * e);
    group.params.weight = advance(params.weight, int64_t{i} * x.k * x.c * x.r * x.s * e);
    group.params.bias = advance(params.bias, i * x.k * e);
    group.params.residual = advance(params.residual, i * x.k * e);
    group.params.output = const_cast<void*>(advance(params.output, i * x.k * e));
    const cudaError_t error = launch_conv2d_group(group, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace cnnkernels
