// Leaf ops cnnkernels::_conv2d_cuda and _conv2d_cuda_out: convolution on Hopper's tensor cores.
#include <string>

#include "common/tensor.h"
#include "conv2d/conv2d.h"

namespace cnnkernels {
namespace {

void check_weight(const Tensor& x, const Tensor& weight, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be [N, C, H, W], got ", to_string(x));
  STD_TORCH_CHECK(is_channels_last(x), "x must be channels_last, shape ", to_string(x));
  STD_TORCH_CHECK(weight.dim() == 4 && groups > 0 && weight.size(1) * groups == x.size(1),
                  "weight must be [K, C / groups, R, S] with C=", x.size(1), " and groups=", groups,
                  ", got ", to_string(weight));
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "weight must have x's dtype");
  check_same_device(x, weight, "weight");
}

void check_pair(const Ints& pair, const char* name, int64_t least) {
  STD_TORCH_CHECK(pair.size() == 2 && pair[0] >= least && pair[1] >= least, name,
                  " must be two numbers of at least ", least);
}

plan::ConvProblem problem_of(const Tensor& x, const Tensor& weight,
                             const std::optional<Tensor>& residual, const Ints& stride,
                             const Ints& padding, const Ints& dilation, int64_t groups,
                             bool pool = false) {
  check_weight(x, weight, groups);
  check_pair(stride, "stride", 1);
  check_pair(padding, "padding", 0);
  check_pair(dilation, "dilation", 1);
  plan::ConvProblem p;
  p.n = x.size(0), p.c = x.size(1), p.h = x.size(2), p.w = x.size(3);
  p.k = weight.size(0), p.r = weight.size(2), p.s = weight.size(3);
  p.stride_h = stride[0], p.stride_w = stride[1];
  p.pad_h = padding[0], p.pad_w = padding[1];
  p.dilation_h = dilation[0], p.dilation_w = dilation[1];
  p.groups = groups, p.residual = residual.has_value(), p.pool = pool, p.dtype = dtype_of(x, "x");
  const std::string why_not = plan::conv_why_not(p);
  STD_TORCH_CHECK(why_not.empty(), why_not);
  return p;
}

// TMA wants 16-byte aligned addresses.
const void* aligned(const Tensor& t, const char* name) {
  const void* p = t.data_ptr();
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(p) % 16 == 0, name, " must start at 16 bytes");
  return p;
}

const plan::Instance* instance_of(const std::string& name) {
  if (name.empty()) return nullptr;
  const plan::Instance* instance = plan::find_instance(name.c_str());
  STD_TORCH_CHECK(instance != nullptr, "instance is '", name,
                  "', see cnnkernels._plan.conv_instances()");
  return instance;
}

// Runs the convolution into `out` from channel `offset` on; all tensors checked but for out.
void run(const plan::ConvProblem& p, const Tensor& x, const Tensor& weight,
         const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, bool relu,
         const std::string& instance, const Tensor& out, int64_t offset) {
  if (bias)
    STD_TORCH_CHECK(bias->scalar_type() == x.scalar_type() && bias->dim() == 1 &&
                        bias->size(0) == p.k && bias->is_contiguous(),
                    "bias must be contiguous [", p.k, "] of x's dtype, got ", to_string(*bias));
  if (residual)
    STD_TORCH_CHECK(residual->scalar_type() == x.scalar_type() && is_channels_last(*residual) &&
                        residual->size(0) == p.n && residual->size(1) == p.k &&
                        residual->size(2) == p.p() && residual->size(3) == p.q(),
                    "residual must be channels_last [", p.n, ", ", p.k, ", ", p.p(), ", ", p.q(),
                    "] of x's dtype, got ", to_string(*residual));
  const Tensor filter =
      is_channels_last(weight)
          ? weight
          : torch::stable::contiguous(weight, torch::headeronly::MemoryFormat::ChannelsLast);
  ConvParams params{p,
                    aligned(x, "x"),
                    aligned(filter, "weight"),
                    bias ? bias->data_ptr() : nullptr,
                    residual ? aligned(*residual, "residual") : nullptr,
                    static_cast<char*>(out.data_ptr()) + offset * p.element_bytes(),
                    out.size(1),
                    relu};
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(params.output) % 16 == 0,
                  "the output must start at 16 bytes");
  STD_CUDA_CHECK(launch_conv2d_sm90(params, instance_of(instance),
                                    static_cast<cudaStream_t>(current_stream(x))));
}

// x [N, C, H, W], weight [K, C/groups, R, S] → [N, K, P, Q]; everything channels_last.
Tensor conv2d_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   const std::optional<Tensor>& residual, const Ints& stride, const Ints& padding,
                   const Ints& dilation, int64_t groups, bool relu, const std::string& instance) {
  const plan::ConvProblem p = problem_of(x, weight, residual, stride, padding, dilation, groups);
  DeviceGuard guard(x.get_device_index());
  Tensor out = empty_like_device(x, {p.n, p.k, p.p(), p.q()}, x.scalar_type(), Layout::nhwc);
  run(p, x, weight, bias, residual, relu, instance, out, 0);
  return out;
}

// max_pool2d(relu(conv2d(x, weight, bias)), 2): [N, K, P / 2, Q / 2], stride and dilation 1.
Tensor conv2d_pool_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const Ints& padding, int64_t groups, bool relu,
                        const std::string& instance) {
  const Ints one = {1, 1};
  const plan::ConvProblem p = problem_of(x, weight, std::nullopt, one, padding, one, groups, true);
  const std::string why_not = plan::choose_plan(p.group(), 132).why_not;
  STD_TORCH_CHECK(why_not.empty(), "no kernel pools this convolution: ", why_not);
  DeviceGuard guard(x.get_device_index());
  Tensor out =
      empty_like_device(x, {p.n, p.k, p.p() / 2, p.q() / 2}, x.scalar_type(), Layout::nhwc);
  run(p, x, weight, bias, std::nullopt, relu, instance, out, 0);
  return out;
}

// The same as conv2d_cuda into channels [channel_offset, channel_offset + K) of out [N, >= K, P,
// Q].
void conv2d_cuda_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& residual, const Ints& stride, const Ints& padding,
                     const Ints& dilation, int64_t groups, bool relu, const std::string& instance,
                     const Tensor& out, int64_t channel_offset) {
  const plan::ConvProblem p = problem_of(x, weight, residual, stride, padding, dilation, groups);
  check_same_device(x, out, "out");
  STD_TORCH_CHECK(out.scalar_type() == x.scalar_type() && is_channels_last(out) &&
                      out.size(0) == p.n && out.size(2) == p.p() && out.size(3) == p.q(),
                  "out must be channels_last [", p.n, ", >= K, ", p.p(), ", ", p.q(),
                  "] of x's dtype, got ", to_string(out));
  STD_TORCH_CHECK(channel_offset >= 0 && channel_offset + p.k <= out.size(1), "channel_offset is ",
                  channel_offset, " with K=", p.k, "; out has ", out.size(1), " channels");
  STD_TORCH_CHECK(out.size(1) * p.element_bytes() % 16 == 0,
                  "out's channels must take a multiple of 16 bytes, got ", out.size(1));
  DeviceGuard guard(x.get_device_index());
  run(p, x, weight, bias, residual, relu, instance, out, channel_offset);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def(
      "_conv2d_cuda(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, int[] "
      "padding, int[] dilation, int groups, bool relu, str instance) -> Tensor");
  m.def(
      "_conv2d_pool_cuda(Tensor x, Tensor weight, Tensor? bias, int[] padding, int groups, bool "
      "relu, str instance) -> Tensor");
  m.def(
      "_conv2d_cuda_out(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, "
      "int[] padding, int[] dilation, int groups, bool relu, str instance, Tensor(a!) out, int "
      "channel_offset) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CUDA, m) {
  m.impl("_conv2d_cuda", TORCH_BOX(&conv2d_cuda));
  m.impl("_conv2d_pool_cuda", TORCH_BOX(&conv2d_pool_cuda));
  m.impl("_conv2d_cuda_out", TORCH_BOX(&conv2d_cuda_out));
}

}  // namespace cnnkernels
