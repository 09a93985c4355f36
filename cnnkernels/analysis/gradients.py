"""How large the gradient is in each layer of a network: does the signal reach the first one?"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def gradient_norms(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Norm of the loss's gradient by each convolution's *output*, in the order of the forward pass.

    By the output, not the weight: that is the signal that travels backwards from layer to layer.

    Args:
        model: a classifier; its weights are not changed.
        images: [N, C, H, W]. labels: [N] class indices, int64.
    """
    norms: dict[str, float] = {}

    def keep(name: str):
        def hook(_module, _args, out: Tensor) -> None:
            norms[name] = 0.0
            # A hook sees the gradient by this value, also where a ReLU then works in place.
            out.register_hook(lambda grad: norms.__setitem__(name, float(grad.norm())))

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and "downsample" not in name
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        F.cross_entropy(model(images), labels).backward()
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
        model.zero_grad(set_to_none=True)
    return norms


def decay(norms: dict[str, float]) -> float:
    """Gradient at the first layer over the gradient at the last: 0 has vanished, large has exploded."""
    values = list(norms.values())
    return values[0] / values[-1]


def patches(image: Tensor, count: int, side: int) -> Tensor:
    """The first ``count`` squares of a picture [C, H, W], row by row: [count, C, side, side]."""
    squares = image.unfold(1, side, side).unfold(2, side, side)
    squares = squares.permute(1, 2, 0, 3, 4).flatten(0, 1)
    if len(squares) < count:
        raise ValueError(f"count is {count}; the picture has {len(squares)} squares of side {side}")
    return squares[:count].contiguous()
