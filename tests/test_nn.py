"""Drop-in layers against the torch.nn layers they stand for."""

import inspect

import pytest
import torch
from torch import nn

from cnnkernels import nn as ours

CONV = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
LRN = {"size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0}


def chain(*layers):
    return nn.Sequential(*layers)


# ours, the chain it stands for, the chain's layer with the weights
PAIRS = {
    "conv": (ours.Conv2dReLU(**CONV), chain(nn.Conv2d(**CONV), nn.ReLU())),
    "conv_no_bias": (
        ours.Conv2dReLU(**CONV, bias=False, stride=2, padding=1),
        chain(nn.Conv2d(**CONV, bias=False, stride=2, padding=1), nn.ReLU()),
    ),
    "conv_groups": (
        ours.Conv2dReLU(**CONV, groups=2, dilation=2, padding=(2, 1)),
        chain(nn.Conv2d(**CONV, groups=2, dilation=2, padding=(2, 1)), nn.ReLU()),
    ),
    "conv_same": (
        ours.Conv2dReLU(4, 6, (3, 4), padding="same"),
        chain(nn.Conv2d(4, 6, (3, 4), padding="same"), nn.ReLU()),
    ),
    "conv_valid": (
        ours.Conv2dReLU(**CONV, padding="valid"),
        chain(nn.Conv2d(**CONV, padding="valid"), nn.ReLU()),
    ),
    **{
        f"conv_{mode}": (
            ours.Conv2dReLU(**CONV, padding=1, padding_mode=mode),
            chain(nn.Conv2d(**CONV, padding=1, padding_mode=mode), nn.ReLU()),
        )
        for mode in ("reflect", "replicate", "circular")
    },
    "conv_same_reflect": (
        ours.Conv2dReLU(4, 6, 4, padding="same", padding_mode="reflect"),
        chain(nn.Conv2d(4, 6, 4, padding="same", padding_mode="reflect"), nn.ReLU()),
    ),
    "conv_pool": (
        ours.Conv2dReLUMaxPool2d(**CONV, padding=1),
        chain(nn.Conv2d(**CONV, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    ),
    "conv_pool_ceil": (
        ours.Conv2dReLUMaxPool2d(
            **CONV, padding=1, padding_mode="reflect", pool_kernel_size=3, pool_stride=2,
            pool_padding=1, ceil_mode=True,
        ),
        chain(
            nn.Conv2d(**CONV, padding=1, padding_mode="reflect"),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        ),
    ),
    "pool": (ours.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)),
    "pool_dilated": (
        ours.MaxPool2d((2, 3), dilation=2, ceil_mode=True),
        nn.MaxPool2d((2, 3), dilation=2, ceil_mode=True),
    ),
    "relu_pool": (ours.ReLUMaxPool2d(3, 2), chain(nn.ReLU(), nn.MaxPool2d(3, 2))),
    "lrn": (ours.LocalResponseNorm(**LRN), nn.LocalResponseNorm(**LRN)),
    "lrn_even": (ours.LocalResponseNorm(4), nn.LocalResponseNorm(4)),
    "relu_lrn": (ours.ReLULRN(**LRN), chain(nn.ReLU(), nn.LocalResponseNorm(**LRN))),
    "relu_lrn_pool": (
        ours.ReLULRNMaxPool2d(**LRN, kernel_size=3, stride=2),
        chain(nn.ReLU(), nn.LocalResponseNorm(**LRN), nn.MaxPool2d(3, 2)),
    ),
    "global_pool": (ours.GlobalAvgPool2d(), nn.AdaptiveAvgPool2d(1)),
}  # fmt: skip


def share_weights(layer, reference):
    """Load the chain's weights by their torch.nn names, and nothing else."""
    plain = reference[0] if isinstance(reference, nn.Sequential) else reference
    layer.load_state_dict(plain.state_dict(), strict=True)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", [(2, 4, 11, 12), (4, 9, 9), (0, 4, 9, 9)], ids=str)
def test_equals_the_chain(name, shape):
    layer, reference = PAIRS[name]
    share_weights(layer, reference)
    if 0 in shape and "conv_reflect" in name:
        pytest.skip("torch's reflection padding takes no empty batch")
    x = torch.randn(shape)
    if name == "relu_lrn_pool" and len(shape) == 3:
        # torch's LRN takes [N, C, L] here and its max-pool [C, H, W]: the fused layer refuses.
        with pytest.raises(ValueError, match="it must have 4 dimensions"):
            layer(x)
        return
    try:
        want = reference(x)
    except (RuntimeError, ValueError, IndexError) as error:
        pytest.skip(f"torch's own layer refuses this input: {error}")
    got = layer(x)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_equal_the_chain(name):
    layer, reference = PAIRS[name]
    share_weights(layer, reference)
    x = torch.randn(2, 4, 11, 12)
    results = []
    for module in (layer, reference):
        module.zero_grad(set_to_none=True)
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([leaf.grad, *(p.grad for p in module.parameters())])
    assert len(results[0]) == len(results[1])
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_conv_add_relu(mode):
    plain = nn.Conv2d(**CONV, padding=1, padding_mode=mode)
    layer = ours.Conv2dAddReLU(**CONV, padding=1, padding_mode=mode)
    layer.load_state_dict(plain.state_dict(), strict=True)
    x, residual = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(
        layer(x, residual), (plain(x) + residual).relu(), rtol=1e-5, atol=1e-5
    )


def test_add_relu():
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert torch.equal(ours.AddReLU()(a, b), (a + b).relu())


def test_max_pool_indices():
    x = torch.randn(2, 3, 8, 8)
    got = ours.MaxPool2d(2, return_indices=True)(x)
    for a, b in zip(got, nn.MaxPool2d(2, return_indices=True)(x)):
        assert torch.equal(a, b)


SUBCLASSES = {
    ours.Conv2dReLU: nn.Conv2d,
    ours.Conv2dAddReLU: nn.Conv2d,
    ours.MaxPool2d: nn.MaxPool2d,
    ours.LocalResponseNorm: nn.LocalResponseNorm,
    ours.ReLULRN: nn.LocalResponseNorm,
}


@pytest.mark.parametrize("layer", SUBCLASSES, ids=lambda c: c.__name__)
def test_constructor_is_torch_nns(layer):
    assert inspect.signature(layer) == inspect.signature(SUBCLASSES[layer])


def test_every_layer_is_tested():
    tested = {type(layer) for layer, _ in PAIRS.values()} | {ours.Conv2dAddReLU, ours.AddReLU}
    assert tested == {getattr(ours, name) for name in ours.__all__}


def test_device_and_dtype():
    layer = ours.Conv2dReLUMaxPool2d(**CONV, device="meta", dtype=torch.bfloat16)
    assert layer.weight.is_meta
    assert layer.weight.dtype is torch.bfloat16
    out = layer(torch.empty(2, 4, 9, 9, device="meta", dtype=torch.bfloat16))
    assert out.shape == (2, 6, 3, 3)


def test_bad_arguments():
    with pytest.raises(ValueError, match="return_indices is True"):
        ours.ReLUMaxPool2d(2, return_indices=True)
    with pytest.raises(ValueError, match="output_size is 7"):
        ours.GlobalAvgPool2d(7)
    assert "pool_kernel_size=3" in repr(ours.Conv2dReLUMaxPool2d(**CONV, pool_kernel_size=3))
    assert "kernel_size=3" in repr(ours.ReLULRNMaxPool2d(5, kernel_size=3))
