"""Rivals outside torch, each where its package is installed: cuDNN's graph API and TensorRT."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable

import torch
from torch import nn

from .case import Candidate

# name → (module, the package that brings it)
ENGINES = {
    "cudnn graph": ("cudnn", "nvidia-cudnn-frontend"),
    "tensorrt": ("tensorrt", "tensorrt"),
}
MAX_PLANS = 16  # of cuDNN's graph, timed to find the fastest
PLAN_RUNS = 5
TENSORRT_WORKSPACE = 4 << 30


def why_absent(name: str, device: torch.device) -> str | None:
    """Why an engine can't run here; None when it can."""
    module, package = ENGINES[name]
    if device.type != "cuda":
        return "needs an NVIDIA GPU"
    if importlib.util.find_spec(module) is None:
        return f"not installed (pip install {package})"
    return None


class CudnnGraph:
    """convolution → bias (→ add) → ReLU as one cuDNN graph, on its fastest plan."""

    def __init__(self, x, w, b, z, out_shape, stride: int, padding: int):
        """x [N, C, H, W], w [K, C, R, S], b [K], z [N, K, P, Q] or None; all of one dtype."""
        import cudnn

        names = {
            torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BFLOAT16"
        }  # fmt: skip
        dtype = getattr(cudnn.data_type, names[x.dtype])
        self.handle = cudnn.create_handle()
        stream = torch.cuda.current_stream(x.device).cuda_stream
        cudnn.set_stream(handle=self.handle, stream=stream)
        graph = cudnn.pygraph(
            io_data_type=dtype,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=self.handle,
        )

        def tensor(name: str, like: torch.Tensor):
            shape, stride = list(like.shape), list(like.stride())
            return graph.tensor(name=name, dim=shape, stride=stride, data_type=dtype)

        self.format = torch.channels_last
        if not x.is_contiguous(memory_format=torch.channels_last):
            self.format = torch.contiguous_format
        self.out_shape = tuple(out_shape)
        out = self._new_output(x)
        self.inputs = [tensor("x", x), tensor("w", w), tensor("b", self._bias(b))]
        y = graph.conv_fprop(
            image=self.inputs[0], weight=self.inputs[1],
            padding=[padding] * 2, stride=[stride] * 2, dilation=[1, 1],
        )  # fmt: skip
        y = graph.bias(input=y, bias=self.inputs[2])
        if z is not None:
            self.inputs.append(tensor("z", z))
            y = graph.add(a=y, b=self.inputs[3])
        y = graph.relu(input=y)
        y.set_output(True).set_data_type(dtype).set_dim(list(out.shape)).set_stride(
            list(out.stride())
        )
        self.output, self.graph = y, graph
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.check_support()
        sizes = self._build_plans()
        self.workspace = torch.empty(max(*sizes.values(), 1), dtype=torch.uint8, device=x.device)
        self.plan = self._fastest_plan(list(sizes), (x, w, b, z))

    def _build_plans(self) -> dict[int, int]:
        """index → workspace bytes of every plan that can be built."""
        sizes, reason = {}, "there is none"
        for index in range(min(self.graph.get_execution_plan_count(), MAX_PLANS)):
            try:
                self.graph.build_plan_at_index(index)
                sizes[index] = self.graph.get_workspace_size_plan_at_index(index)
            except Exception as error:  # one that this GPU does not support
                reason = error
        if not sizes:
            raise RuntimeError(f"none of cuDNN's plans can be built: {reason}")
        return sizes

    def _fastest_plan(self, plans: list[int], inputs) -> int:
        times = {}
        for index in plans:
            self(*inputs, plan=index)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(PLAN_RUNS):
                self(*inputs, plan=index)
            end.record()
            end.synchronize()
            times[index] = start.elapsed_time(end)
        return min(times, key=times.get)

    def _new_output(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty(
            self.out_shape, dtype=x.dtype, device=x.device, memory_format=self.format
        )

    @staticmethod
    def _bias(b: torch.Tensor) -> torch.Tensor:
        """[K] as [1, K, 1, 1] with channels_last strides, which cuDNN reads its layout from."""
        return b.as_strided((1, len(b), 1, 1), (len(b), 1, len(b), len(b)))

    def __call__(self, x, w, b, z=None, plan: int | None = None) -> torch.Tensor:
        out = self._new_output(x)
        buffers = [x, w, self._bias(b), *([] if z is None else [z])]
        pack = {**dict(zip(self.inputs, buffers)), self.output: out}
        index = self.plan if plan is None else plan
        self.graph.execute_plan_at_index(pack, self.workspace, index, handle=self.handle)
        return out


class TensorRT:
    """A module as a TensorRT engine in the module's own precision, replayed as a CUDA graph."""

    def __init__(self, module: nn.Module, examples: tuple[torch.Tensor, ...], tf32: bool = False):
        """module: on the GPU, in eval mode; examples: its inputs, whose shapes become fixed."""
        import tensorrt as trt

        with torch.no_grad():
            result = module(*examples)
        result = result if isinstance(result, torch.Tensor) else result[0]
        onnx = io.BytesIO()
        names = [f"x{i}" for i in range(len(examples))]
        torch.onnx.export(
            module, examples, onnx, input_names=names, output_names=["y"], dynamo=False
        )
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        # Layers keep the precision that the module has; from TensorRT 11 on there is no other way.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(onnx.getvalue()):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise RuntimeError(f"TensorRT does not read the network: {errors}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, TENSORRT_WORKSPACE)
        if not tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        ends = [network.get_input(i) for i in range(len(examples))] + [network.get_output(0)]
        self.inputs = []
        for end, example in zip(ends, (*examples, result)):
            channels_last = self._channels_last(example)
            if channels_last:
                end.allowed_formats = 1 << int(trt.TensorFormat.HWC8)
            self.inputs.append(
                torch.empty_like(
                    example,
                    memory_format=torch.channels_last if channels_last else torch.contiguous_format,
                )
            )
        self.output = self.inputs.pop()
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeError("TensorRT built no engine")
        self.runtime = trt.Runtime(logger)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        self.context = self.engine.create_execution_context()
        for name, buffer in zip((*names, "y"), (*self.inputs, self.output)):
            self.context.set_tensor_address(name, buffer.data_ptr())
        self.graph = self._capture()

    @staticmethod
    def _channels_last(x: torch.Tensor) -> bool:
        """Whether TensorRT can take the tensor as it lies: its HWC8 is 16-bit with whole vectors."""
        return (
            x.dim() == 4
            and x.dtype.itemsize == 2
            and x.shape[1] % 8 == 0
            and x.is_contiguous(memory_format=torch.channels_last)
        )

    def _capture(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.context.execute_async_v3(stream.cuda_stream)  # what is set up lazily
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self.context.execute_async_v3(stream.cuda_stream)
        return graph

    def bind(self, *inputs: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Copy the inputs to where the graph reads them; the function that replays it."""
        for own, given in zip(self.inputs, inputs):
            own.copy_(given)

        def run():
            self.graph.replay()
            return self.output

        return run


def built_once(build: Callable[..., object], bind: Callable) -> Candidate:
    """A candidate whose engine is built from the first inputs; ``bind(engine, *inputs)`` per run."""
    kept: list = []

    def bound(*inputs):
        if not kept:
            kept.append(build(*inputs))
        return bind(kept[0], *inputs)

    return Candidate(bound, slow=True)
