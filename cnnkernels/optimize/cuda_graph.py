"""A CUDA graph of a program for one set of input shapes, with static buffers."""

from __future__ import annotations

from collections.abc import Callable

import torch


class GraphRunner:
    """Captures ``run(*flat)`` and replays it: inputs are copied into static buffers, outputs out of
    them, so that two calls' results are independent and all graphs can share one memory ``pool``."""

    def __init__(self, run: Callable, flat: list, pool, warmups: int = 3):
        self._inputs = [t.clone() if isinstance(t, torch.Tensor) else t for t in flat]
        device = next(t.device for t in self._inputs if isinstance(t, torch.Tensor))
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(warmups):  # kernels compile and libraries allocate outside the graph
                run(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph, pool=pool):
            self._outputs = run(*self._inputs)

    def __call__(self, *flat):
        for static, value in zip(self._inputs, flat):
            if isinstance(static, torch.Tensor):
                static.copy_(value, non_blocking=True)
        self._graph.replay()
        return [t.clone() if isinstance(t, torch.Tensor) else t for t in self._outputs]
