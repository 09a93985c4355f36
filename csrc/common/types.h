// Element types and memory layouts, shared by host arithmetic, kernels and bindings.
#pragma once

namespace cnnkernels {

enum class Dtype { f32, f16, bf16, f64 };

// nchw: contiguous. nhwc: torch.channels_last, the channel is the fastest dimension in memory.
enum class Layout { nchw, nhwc };

}  // namespace cnnkernels
