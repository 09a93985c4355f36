"""Triton kernels and their launches. No policy and no torch.library here: cnnkernels.ops decides."""
