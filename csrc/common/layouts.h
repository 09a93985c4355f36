// The layout that several tensors of one call share.
#pragma once

#include <initializer_list>

#include "common/tensor.h"

namespace cnnkernels {

// The layout in which all the tensors are dense; nchw where both hold.
inline Layout common_layout(std::initializer_list<const Tensor*> tensors) {
  bool nchw = true, nhwc = true;
  for (const Tensor* t : tensors) {
    layout_of(*t, "every tensor");
    nchw = nchw && t->is_contiguous();
    nhwc = nhwc && is_channels_last(*t);
  }
  STD_TORCH_CHECK(nchw || nhwc, "the tensors must share one layout, contiguous or channels_last");
  return nchw ? Layout::nchw : Layout::nhwc;
}

}  // namespace cnnkernels
