// Leaf ops cnnkernels::_conv2d_cuda and its forms with other inputs and outputs: convolution on
// Hopper's tensor cores.
#include <cstdlib>
#include <string>

#include "common/tensor.h"
#include "conv2d/conv2d.h"

namespace cnnkernels {
namespace {

// Channels between neighbouring pixels of a channels_last tensor or a channel slice of one; 0: it
// is neither.
int64_t channel_pitch(const Tensor& t) {
  if (t.dim() != 4 || (t.size(1) != 1 && t.stride(1) != 1)) return 0;
  const int64_t n = t.size(0), c = t.size(1), h = t.size(2), w = t.size(3);
  const int64_t pitch = w > 1 ? t.stride(3) : h > 1 ? t.stride(2) : n > 1 ? t.stride(0) : c;
  const bool regular =
      (h == 1 || t.stride(2) == w * pitch) && (n == 1 || t.stride(0) == h * w * pitch);
  return regular && pitch >= c ? pitch : 0;
}

// The same with TMA's condition.
int64_t input_pitch(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, name, " must be [N, C, H, W], got ", to_string(t));
  const int64_t pitch = channel_pitch(t);
  STD_TORCH_CHECK(pitch > 0, name,
                  " must be channels_last or a channel slice of such a tensor, shape ",
                  to_string(t));
  const int bytes = t.scalar_type() == ScalarType::Float ? 4 : 2;
  STD_TORCH_CHECK(pitch * bytes % 16 == 0, name, "'s pixels are ", pitch,
                  " channels apart; TMA wants a multiple of 16 bytes");
  return pitch;
}

void check_weight(const Tensor& x, const Tensor& weight, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be [N, C, H, W], got ", to_string(x));
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

// CNNKERNELS_PDL=1: kernels start before the stream's previous one has ended, and wait inside.
bool early_start() {
  static const bool on = [] {
    const char* value = std::getenv("CNNKERNELS_PDL");
    return value != nullptr && *value != '\0' && *value != '0';
  }();
  return on;
}

Tensor channels_last(const Tensor& t) {
  return is_channels_last(t)
             ? t
             : torch::stable::contiguous(t, torch::headeronly::MemoryFormat::ChannelsLast);
}

// `out` from channel `offset` on, for k channels of [N, P, Q] pixels of x's type.
void* output_slice(const plan::ConvProblem& p, const Tensor& x, const Tensor& out, int64_t offset,
                   int64_t k, const char* name) {
  check_same_device(x, out, name);
  const int window = p.pool ? 2 : 1;
  STD_TORCH_CHECK(out.scalar_type() == x.scalar_type() && is_channels_last(out) &&
                      out.size(0) == p.n && out.size(2) == p.p() / window &&
                      out.size(3) == p.q() / window,
                  name, " must be channels_last [", p.n, ", >= ", k, ", ", p.p() / window, ", ",
                  p.q() / window, "] of x's dtype, got ", to_string(out));
  STD_TORCH_CHECK(offset >= 0 && offset + k <= out.size(1), name, "'s channel offset is ", offset,
                  " with ", k, " channels to write; it has ", out.size(1));
  STD_TORCH_CHECK(out.size(1) * p.element_bytes() % 16 == 0, name,
                  "'s channels must take a multiple of 16 bytes, got ", out.size(1));
  void* start = static_cast<char*>(out.data_ptr()) + offset * p.element_bytes();
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(start) % 16 == 0, name,
                  " must be written from a multiple of 16 bytes on");
  return start;
}

// The parameters but for the output; `filter` keeps a rearranged weight alive.
ConvParams params_of(const plan::ConvProblem& p, const Tensor& x, const Tensor& weight,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                     bool relu, Tensor& filter) {
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
  filter = channels_last(weight);
  ConvParams params{};
  params.problem = p;
  params.input = aligned(x, "x");
  params.input_pitch = input_pitch(x, "x");
  params.weight = aligned(filter, "weight");
  params.bias = bias ? bias->data_ptr() : nullptr;
  params.residual = residual ? aligned(*residual, "residual") : nullptr;
  params.relu = relu;
  params.early_start = early_start();
  return params;
}

void launch(const ConvParams& params, const Tensor& x, const std::string& instance) {
  STD_CUDA_CHECK(launch_conv2d_sm90(params, instance_of(instance),
                                    static_cast<cudaStream_t>(current_stream(x))));
}

// Runs the convolution into `out` from channel `offset` on.
void run(const plan::ConvProblem& p, const Tensor& x, const Tensor& weight,
         const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, bool relu,
         const std::string& instance, const Tensor& out, int64_t offset) {
  Tensor filter;
  ConvParams params = params_of(p, x, weight, bias, residual, relu, filter);
  params.output = output_slice(p, x, out, offset, p.k, "out");
  params.output_pitch = out.size(1);
  launch(params, x, instance);
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
  DeviceGuard guard(x.get_device_index());
  run(p, x, weight, bias, residual, relu, instance, out, channel_offset);
}

// conv2d_cuda whose output channels [0, split) go to `first` from channel first_offset on, and the
// others to `second` from second_offset on.
void conv2d_cuda_split(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                       const Ints& stride, const Ints& padding, const Ints& dilation, bool relu,
                       const std::string& instance, int64_t split, const Tensor& first,
                       int64_t first_offset, const Tensor& second, int64_t second_offset) {
  plan::ConvProblem p = problem_of(x, weight, std::nullopt, stride, padding, dilation, 1);
  p.two_outputs = true;
  STD_TORCH_CHECK(split > 0 && split < p.k && split * p.element_bytes() % 16 == 0, "split is ",
                  split, "; it must be in (0, ", p.k, ") and a multiple of 16 bytes");
  DeviceGuard guard(x.get_device_index());
  Tensor filter;
  ConvParams params = params_of(p, x, weight, bias, std::nullopt, relu, filter);
  params.split = split;
  params.output = output_slice(p, x, first, first_offset, split, "first");
  params.output_pitch = first.size(1);
  params.second_output = output_slice(p, x, second, second_offset, p.k - split, "second");
  params.second_pitch = second.size(1);
  launch(params, x, instance);
}

// relu?(conv2d(x, weight) + conv2d(shortcut_x, shortcut_weight, stride=shortcut_stride) + bias)
// with shortcut_weight [K, C2, 1, 1] → [N, K, P, Q].
Tensor conv2d_projection_cuda(const Tensor& x, const Tensor& weight, const Tensor& shortcut_x,
                              const Tensor& shortcut_weight, const std::optional<Tensor>& bias,
                              const Ints& stride, const Ints& padding, const Ints& dilation,
                              const Ints& shortcut_stride, bool relu, const std::string& instance) {
  plan::ConvProblem p = problem_of(x, weight, std::nullopt, stride, padding, dilation, 1);
  check_weight(shortcut_x, shortcut_weight, 1);
  check_pair(shortcut_stride, "shortcut_stride", 1);
  check_same_device(x, shortcut_x, "shortcut_x");
  STD_TORCH_CHECK(shortcut_x.scalar_type() == x.scalar_type() && shortcut_x.size(0) == p.n,
                  "shortcut_x must have x's dtype and batch, got ", to_string(shortcut_x));
  STD_TORCH_CHECK(shortcut_weight.size(0) == p.k && shortcut_weight.size(2) == 1 &&
                      shortcut_weight.size(3) == 1,
                  "shortcut_weight must be [", p.k, ", C2, 1, 1], got ",
                  to_string(shortcut_weight));
  p.shortcut_c = shortcut_x.size(1), p.shortcut_h = shortcut_x.size(2);
  p.shortcut_w = shortcut_x.size(3);
  p.shortcut_stride_h = shortcut_stride[0], p.shortcut_stride_w = shortcut_stride[1];
  const std::string why_not = plan::conv_why_not(p);
  STD_TORCH_CHECK(why_not.empty(), why_not);
  DeviceGuard guard(x.get_device_index());
  Tensor out = empty_like_device(x, {p.n, p.k, p.p(), p.q()}, x.scalar_type(), Layout::nhwc);
  Tensor filter;
  ConvParams params = params_of(p, x, weight, bias, std::nullopt, relu, filter);
  const Tensor shortcut_filter = channels_last(shortcut_weight);
  params.shortcut_input = aligned(shortcut_x, "shortcut_x");
  params.shortcut_pitch = input_pitch(shortcut_x, "shortcut_x");
  params.shortcut_weight = aligned(shortcut_filter, "shortcut_weight");
  params.output = out.data_ptr();
  params.output_pitch = p.k;
  launch(params, x, instance);
  return out;
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
  m.def(
      "_conv2d_cuda_split(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
      "int[] "
      "dilation, bool relu, str instance, int split, Tensor(a!) first, int first_offset, "
      "Tensor(b!) "
      "second, int second_offset) -> ()");
  m.def(
      "_conv2d_projection_cuda(Tensor x, Tensor weight, Tensor shortcut_x, Tensor shortcut_weight, "
      "Tensor? bias, int[] stride, int[] padding, int[] dilation, int[] shortcut_stride, bool "
      "relu, "
      "str instance) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CUDA, m) {
  m.impl("_conv2d_cuda", TORCH_BOX(&conv2d_cuda));
  m.impl("_conv2d_pool_cuda", TORCH_BOX(&conv2d_pool_cuda));
  m.impl("_conv2d_cuda_out", TORCH_BOX(&conv2d_cuda_out));
  m.impl("_conv2d_cuda_split", TORCH_BOX(&conv2d_cuda_split));
  m.impl("_conv2d_projection_cuda", TORCH_BOX(&conv2d_projection_cuda));
}

}  // namespace cnnkernels
