"""How large the gradient is in each layer of a deep net before training: does it vanish?"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ... import models
from ..batches import Batches
from ..log import figure_of
from ..recipe import INIT, default_recipe, derive
from .common import Setting

# label: (net, constructor's arguments, whether to take Glorot's initial weights in place of He's)
NETS = {
    "plain, Glorot init": ("plain", {"norm": False}, True),
    "plain, He init": ("plain", {"norm": False}, False),
    "plain, batch norm": ("plain", {}, False),
    "residual, batch norm": ("resnet", {}, False),
}


def _norms(model: nn.Module, batches: Batches, count: int) -> list[float]:
    """Mean norm of the loss's gradient with respect to each 3×3 convolution's output.

    (The weights' gradients would hide it: in a net of ReLUs alone, what the signal loses on its way
    up and the gradient on its way down add up to the same in every layer.)
    """
    norms: list[float] = []

    def watch(layer, inputs, output) -> None:
        output.register_hook(lambda grad: norms.append(float(grad.double().norm())))

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    handles = [layer.register_forward_hook(watch) for layer in layers]
    sums = torch.zeros(len(layers), dtype=torch.float64)
    model.train()
    for _, (images, labels) in zip(range(count), batches.training(0)):
        nn.functional.cross_entropy(model(images), labels).backward()
        sums += torch.tensor(norms[::-1], dtype=torch.float64)  # the last layer came first
        norms.clear()
    for handle in handles:
        handle.remove()
    return (sums / count).tolist()


def gradients(setting: Setting, depths: tuple[int, ...] = (20, 56)) -> dict:
    """Gradient norm by layer for plain and residual nets, with and without batch norm.

    Fresh weights, real images, cross-entropy. ``ratio`` in the result is the norm at the first
    convolution over that at the last: far below 1 the gradient has vanished on its way, far above
    it has exploded. Glorot's weights are made for tanh: with ReLU each layer loses half the variance.
    """
    data = setting.load("cifar10" if setting.full else "fashion-mnist")
    count = 8 if setting.full else 2
    figure = figure_of(4.5 * len(depths))
    rows = []
    panels = figure.subplots(1, len(depths), sharey=True, squeeze=False)[0]
    for layers, axes in zip(depths, panels):
        for label, (kind, arguments, glorot) in NETS.items():
            name = f"{kind}{layers}_cifar"
            recipe = default_recipe(name, data.name, limit=setting.limit, augment=())
            recipe = replace(recipe, seed=setting.seed, batch=64)
            torch.manual_seed(derive(setting.seed, INIT))
            width = 16 if setting.full else 8
            model = models.create(name, in_channels=data.channels, width=width, **arguments)
            for layer in model.modules():
                if glorot and isinstance(layer, nn.Conv2d):
                    nn.init.xavier_normal_(layer.weight)
            size = (data.channels, 32 if setting.full else 14)
            batches = Batches(data, recipe, size, setting.place.device)
            norms = _norms(model.to(setting.place.device), batches, count)
            ratio = norms[0] / norms[-1]
            setting.say(
                f"depth {layers}, {label}: first layer {norms[0]:.2e}, last {norms[-1]:.2e}"
            )
            rows.append({"net": label, "depth": layers, "norms": norms, "ratio": ratio})
            axes.semilogy(norms, label=label)
        axes.set(title=f"{layers} layers", xlabel="convolution, from the input")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("norm of the gradient at the layer's output")
    panels[0].legend(fontsize="small")
    return setting.write("gradients", {"data": str(data), "rows": rows}, figure)
