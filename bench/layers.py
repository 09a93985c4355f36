"""The convolution layers of the classic networks that ``cnnkernels bench conv`` measures.

44 layers of ResNet-50 (and -18/34), VGG, AlexNet and GoogLeNet; input sizes are those of the
published networks.
"""

from __future__ import annotations

from dataclasses import dataclass


def _touched(size: int, out: int, kernel: int, stride: int, padding: int) -> int:
    """How many of ``size`` rows (or columns) any window reads: 1×1/2 reads every second."""
    rows = {o * stride - padding + r for o in range(out) for r in range(kernel)}
    return len(rows & set(range(size)))


@dataclass(frozen=True)
class ConvLayer:
    """One convolution [N, C, H, W] → [N, K, P, Q] with a square kernel, bias and ReLU."""

    net: str
    channels: int  # C
    height: int
    width: int
    filters: int  # K
    kernel: int  # R = S
    stride: int = 1
    padding: int = 0
    residual: bool = False  # in the network, a shortcut is added before the ReLU

    def label(self, batch: int) -> str:
        """As in "res/64x56x56x64->256 1x1/1": net/NxHxWxC->K RxS/stride."""
        return (
            f"{self.net}/{batch}x{self.height}x{self.width}x{self.channels}->{self.filters} "
            f"{self.kernel}x{self.kernel}/{self.stride}"
        )

    @property
    def out_size(self) -> tuple[int, int]:
        """(P, Q)."""
        return tuple(
            (size + 2 * self.padding - self.kernel) // self.stride + 1
            for size in (self.height, self.width)
        )

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.channels, self.height, self.width

    def output_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.filters, *self.out_size

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.filters, self.channels, self.kernel, self.kernel

    def flops(self, batch: int) -> int:
        """Two per multiply-accumulate of the direct method."""
        p, q = self.out_size
        return 2 * batch * p * q * self.filters * self.channels * self.kernel**2

    def read_bytes(self, batch: int, itemsize: int, residual: bool = False) -> int:
        """Input pixels that some window touches, weights, bias, and the residual where added."""
        p, q = self.out_size
        rows = _touched(self.height, p, self.kernel, self.stride, self.padding)
        columns = _touched(self.width, q, self.kernel, self.stride, self.padding)
        elements = batch * rows * columns * self.channels
        elements += self.filters * self.channels * self.kernel**2 + self.filters
        if residual:
            elements += batch * p * q * self.filters
        return elements * itemsize

    def write_bytes(self, batch: int, itemsize: int) -> int:
        p, q = self.out_size
        return batch * p * q * self.filters * itemsize


def _table(net: str, rows: str) -> list[ConvLayer]:
    """Rows "H C->K kernel/stride [+]": square input, "same" padding; + marks a residual layer."""
    layers = []
    for row in rows.strip().splitlines():
        size, channels, kernel, *residual = row.split()
        c, k = channels.split("->")
        r, stride = kernel.split("/")
        layers.append(
            ConvLayer(
                net,
                int(c),
                int(size),
                int(size),
                int(k),
                int(r),
                int(stride),
                padding=int(r) // 2 if int(r) != 11 else 0,
                residual=bool(residual),
            )
        )
    return layers


LAYERS: list[ConvLayer] = [
    *_table(
        "res",
        """
        56 64->64 1/1
        56 64->64 3/1 +
        56 64->256 1/1 +
        56 256->64 1/1
        56 256->128 1/1
        56 128->128 3/2
        28 128->512 1/1 +
        56 256->512 1/2
        28 512->128 1/1
        28 128->128 3/1 +
        28 256->256 3/2
        14 256->1024 1/1 +
        14 1024->256 1/1
        14 256->256 3/1 +
        7 512->512 3/1 +
        7 2048->512 1/1
        7 512->2048 1/1 +
        224 3->64 7/2
        """,
    ),
    *_table(
        "vgg",
        """
        224 3->64 3/1
        224 64->64 3/1
        112 64->128 3/1
        112 128->128 3/1
        56 128->256 3/1
        56 256->256 3/1
        28 256->512 3/1
        28 512->512 3/1
        14 512->512 3/1
        """,
    ),
    *_table(
        "alex",
        """
        227 3->96 11/4
        27 96->256 5/1
        13 256->384 3/1
        13 384->384 3/1
        13 384->256 3/1
        """,
    ),
    *_table(
        "goog",
        """
        56 64->64 1/1
        56 64->192 3/1
        28 192->64 1/1
        28 192->96 1/1
        28 96->128 3/1
        28 192->16 1/1
        28 16->32 5/1
        14 480->192 1/1
        14 96->208 3/1
        14 16->48 5/1
        7 832->384 1/1
        7 192->384 3/1
        """,
    ),
]
