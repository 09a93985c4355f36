"""Compiles the Triton kernels for a GPU that need not be here; run by test_triton_compile.py in a
process without Triton's interpreter. Prints one JSON object per kernel."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from cnnkernels._triton import (
    add_relu,
    conv2d_descriptor,
    conv2d_pair,
    conv2d_pointer,
    conv2d_stem,
    global_avg_pool2d,
    lrn,
    max_pool2d,
)
from cnnkernels.tuning import space

# The layers that the config space is checked on: n, c, h, w, k, r, s, stride, padding.
LAYERS = [
    (64, 64, 56, 56, 64, 1, 1, 1, 0),
    (64, 256, 14, 14, 1024, 1, 1, 1, 0),
    (64, 256, 56, 56, 512, 1, 1, 2, 0),
    (64, 64, 56, 56, 64, 3, 3, 1, 1),
    (64, 512, 28, 28, 512, 3, 3, 1, 1),
    (64, 96, 28, 28, 128, 3, 3, 1, 1),
    (64, 16, 28, 28, 32, 5, 5, 1, 2),
    (64, 128, 56, 56, 128, 3, 3, 2, 1),
    (64, 3, 224, 224, 64, 7, 7, 2, 3),
    (64, 3, 227, 227, 96, 11, 11, 4, 0),
    (1, 512, 7, 7, 512, 3, 3, 1, 1),
    (1, 2048, 7, 7, 512, 1, 1, 1, 0),
]


def build(
    fn, signature: dict, constants: dict, capability: int, numbers: dict | None = None, **options
) -> dict:
    """Compile one @triton.jit function as a launch with these numbers would: a 1 is a constant,
    multiples of 16 and pointers are known to be so."""
    numbers = numbers or {}
    constants = constants | {n: 1 for n, value in numbers.items() if value == 1}
    types = {n: "constexpr" if n in constants else signature.get(n, "i32") for n in fn.arg_names}
    aligned = [
        i for i, n in enumerate(fn.arg_names)
        if types[n][0] == "*" or (n not in constants and numbers.get(n, 1) % 16 == 0)
    ]  # fmt: skip
    source = ASTSource(
        fn, types, constexprs=constants, attrs={(i,): [["tt.divisibility", 16]] for i in aligned}
    )
    kernel = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = kernel.asm["ptx"]
    return {
        "kernel": fn.__name__, "capability": capability, "shared": kernel.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"), "mma": ptx.count("mma.sync"),
        "tma_loads": ptx.count("cp.async.bulk.tensor") - ptx.count(".global.shared::cta"),
        "tma_stores": ptx.count(".global.shared::cta"), "async_loads": ptx.count("cp.async.cg"),
        "dots_from_registers": kernel.asm["ttgir"].count("ttg.dot_op"),
        # A load that the pipeline leaves out makes and destroys its barrier where it waits.
        "waits": kernel.asm["ttgir"].split("scf.for")[-1].count("ttng.init_barrier"),
        **resources(kernel.asm["cubin"]),
    }  # fmt: skip


def resources(cubin: bytes) -> dict:
    """What ptxas gave a thread: registers, and bytes of local memory, where spills go."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.check_output([tool, "-res-usage", file.name], text=True)
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", text).groups()
    return {"registers": int(registers), "spills": int(stack) + int(local)}


def pointers(dtype: str) -> dict:
    return {f"{name}_ptr": f"*{dtype}" for name in ("x", "w", "bias", "res", "out")}


def descriptor(conv: space.Conv, config: dict, capability: int, dtype: str = "bf16") -> dict:
    """The kernel as conv2d_descriptor() launches it for this layer and config."""
    box, n, k = config["box"], config["block_n"], config["block_k"]
    taps, channels = space._reduction(conv, config["kind"])
    stem = config["kind"] == "stem"
    by_two = not stem and conv.stride == (2, 2) and conv.r > 1
    halved = 2 if conv.pool else 1
    out_box = [box[0], box[1] // halved, box[2] // halved, n // config["split"]]
    blocks = {"x": [*box[:2], 1, box[2], k] if by_two else [*box, k], "w": [1, n, k],
              "res": out_box, "out": out_box}  # fmt: skip
    slices = config.get("slices", 1)
    stored = "fp32" if slices > 1 else dtype
    types = {"x": dtype, "w": dtype, "res": stored, "out": stored}
    signature = {name: f"tensordesc<{types[name]}{block}>" for name, block in blocks.items()}
    constants = {
        "C": channels, "R": taps if stem else conv.r, "S": 1 if stem else conv.s,
        "PAD_H": conv.padding[0], "PAD_W": conv.padding[1], "DIL_H": 1, "DIL_W": 1,
        "BY_TWO": by_two, "HAS_BIAS": slices == 1, "HAS_RES": conv.residual and slices == 1, "RELU": slices == 1,
        "PRECISION": "tf32", "SLICES": slices,
        "BOX_N": box[0], "BOX_H": box[1], "BOX_W": box[2], "BN": n, "BK": k,
        "SPLIT": config["split"], "SWAP": config["kind"] != "matrix",
        "FLATTEN": config["flatten"], "POOL": conv.pool,
    }  # fmt: skip
    options = {name: config[name] for name in ("num_warps", "num_stages")}
    kernel = conv2d_descriptor.conv2d_descriptor_kernel
    built = build(kernel, signature | pointers(dtype), constants, capability, **options)
    return built | {"config": config, "layer": [conv.n, conv.c, conv.h, conv.k, conv.r]}


def pointer(conv: space.Conv, config: dict, capability: int, dtype: str) -> dict:
    """The kernel as conv2d_pointer() launches it for this layer and config."""
    nchw = not conv.nhwc
    constants = {
        "CG": conv.c // conv.groups, "R": conv.r, "S": conv.s, "STRIDE_H": conv.stride[0],
        "STRIDE_W": conv.stride[1], "PAD_H": conv.padding[0], "PAD_W": conv.padding[1],
        "DIL_H": 1, "DIL_W": 1, "HAS_BIAS": True, "HAS_RES": conv.residual, "RELU": True,
        "POOL": conv.pool, "PRECISION": "ieee", "FLAT": config["flat"], "NCHW": nchw, "WIDE": False,
        "ALIGN": 1 if nchw or conv.c % 8 else 8, "BM": config["block_m"], "BN": config["block_n"],
        "BK": config["block_k"],
    }  # fmt: skip
    p, q = (conv.p // 2, conv.q // 2) if conv.pool else (conv.p, conv.q)
    sizes = (conv.n, conv.h, conv.w, p, q, conv.k // conv.groups)
    numbers = dict(zip(("N", "H", "W", "P", "Q", "KG"), sizes))
    for axes, shape in (
        ("xn xc xh xw", (conv.n, conv.c, conv.h, conv.w)),
        ("wk wc wr ws", (conv.k, conv.c // conv.groups, conv.r, conv.s)),
        ("rn rk rp rq", (conv.n, conv.k, p, q)), ("on ok op oq", (conv.n, conv.k, p, q)),
    ):  # fmt: skip
        layout = torch.contiguous_format if nchw else torch.channels_last
        strides = torch.empty(shape, device="meta", memory_format=layout).stride()
        numbers |= zip(axes.split(), strides)
    options = {name: config[name] for name in ("num_warps", "num_stages")}
    built = build(
        conv2d_pointer.conv2d_pointer_kernel, pointers(dtype), constants, capability, numbers,
        **options,
    )  # fmt: skip
    return built | {
        "config": config,
        "nchw": nchw,
        "dtype": dtype,
        "layer": [conv.c, conv.k, conv.r],
    }


def layers():
    for n, c, h, w, k, r, s, stride, padding in LAYERS:
        yield space.Conv(
            n, c, h, w, k, r, s, (stride, stride), (padding, padding), (1, 1), 1, True, 2
        )


def descriptors(every: bool):
    """Every tile once for each way of reading (a tile's kernels differ in little else), or one in
    twenty of them."""
    seen = set()
    for conv, extra in itertools.product(layers(), ({}, {"residual": True}, {"pool": True})):
        conv = replace(conv, **extra)
        kind = space.descriptor_kind(conv)
        for config in space.descriptor_configs(conv, 90, 132, False):
            tile = {name: v for name, v in config.items() if name not in ("box", "programs")}
            pixels = config["box"][0] * config["box"][1] * config["box"][2]
            key = json.dumps([kind, conv.stride, pixels, extra, tile])
            if key not in seen:
                seen.add(key)
                if every or len(seen) % 20 == 1:
                    built = descriptor(conv, config, 90)
                    yield built | {"estimate": space.shared_bytes(conv, config)}


def pointer_kernels(capability: int, every: bool):
    seen = set()
    for number, conv in enumerate(layers()):
        if number not in (3, 4) and not every:
            continue
        for extra, dtype in (
            ({"residual": True}, "bf16"), ({"residual": True, "nhwc": False}, "fp16"),
            ({"pool": True}, "bf16"), ({"pool": True, "nhwc": False}, "bf16"),
            ({"element_size": 4}, "fp32"),
        ):  # fmt: skip
            variant = replace(conv, **extra)
            for config in space.pointer_configs(variant, capability)[: None if every else 1]:
                key = json.dumps([dtype, extra, config, conv.r])
                if key not in seen:
                    seen.add(key)
                    yield pointer(variant, config, capability, dtype)


def all_pairs(every: bool):
    shapes = [(128, 512, 128), (256, 1024, 256)]
    if every:
        shapes += [
            (64, 256, 64),
            (64, 256, 128),
            (128, 512, 256),
            (256, 1024, 512),
            (512, 2048, 512),
        ]
    types = {"bf16": 2, "fp16": 2, "fp32": 4} if every else {"bf16": 2}
    for (c, k1, k2), dtype in itertools.product(shapes, types):
        for config in space.pair_configs(c, k1, k2, types[dtype]):
            m, n = config["block_m"], config["block_n"]
            blocks = {"x": [m, c], "w1": [n, c], "res": [m, n], "w2": [k2, n], "y": [m, n],
                      "z": [m, k2]}  # fmt: skip
            signature = {name: f"tensordesc<{dtype}{block}>" for name, block in blocks.items()}
            constants = {"K1": k1, "K2": k2, "HAS_B1": True, "HAS_B2": True, "PRECISION": "tf32",
                         "BM": m, "BN": n, "PREFETCH": config["prefetch"]}  # fmt: skip
            built = build(
                conv2d_pair.conv2d_pair_kernel,
                signature | {"b1_ptr": f"*{dtype}", "b2_ptr": f"*{dtype}"}, constants, 90,
                num_warps=config["num_warps"], num_stages=config["num_stages"],
            )  # fmt: skip
            yield built | {"config": config, "channels": [c, k1, k2], "dtype": dtype}


def the_others(capability: int):
    x = {"x_ptr": "*bf16", "out_ptr": "*bf16", "input_ptr": "*bf16", "residual_ptr": "*bf16",
         "w_ptr": "*bf16", "bias_ptr": "*bf16", "part_ptr": "*fp32", "res_ptr": "*bf16", "x_out_ptr": "*bf16", "w_out_ptr": "*bf16",
         "scale": "fp32", "beta": "fp32", "k": "fp32"}  # fmt: skip
    pool = {"R": 3, "S": 3, "STRIDE_H": 2, "STRIDE_W": 2, "PAD_H": 1, "PAD_W": 1, "DIL_H": 1,
            "DIL_W": 1, "NHWC": True, "RELU": True, "WIDE": False, "BLOCK": 1024}  # fmt: skip
    stem = {"C": 3, "CP": 16, "R": 7, "S": 7, "STRIDE_H": 2, "STRIDE_W": 2, "PAD_H": 3, "PAD_W": 3,
            "WIDE": False, "BLOCK": 1024}  # fmt: skip
    norm = {"SIZE": 5, "BIAS": False, "RELU": True, "WIDE": False, "SUM": tl.float32, "BLOCK": 1024}
    slices = {"HAS_BIAS": True, "HAS_RES": True, "RELU": True, "SLICES": 16, "BLOCK": 512}
    numbers = {"ok": 1, "rk": 1, **dict.fromkeys(("on", "op", "oq", "rn", "rp", "rq", "K"), 64)}
    average = {"ROWS_FAST": True, "BLOCK_R": 64, "BLOCK_P": 16}
    for fn, constants in [
        (add_relu.add_relu_kernel, {"BLOCK": 1024}),
        (max_pool2d.max_pool2d_kernel, pool),
        (lrn.lrn_kernel, norm),
        (global_avg_pool2d.global_avg_pool2d_kernel, average),
        (conv2d_stem.stem_prepare_kernel, stem),
        (conv2d_descriptor.conv2d_slices_kernel, slices),
    ]:
        yield build(
            fn, x, constants, capability, {n: numbers[n] for n in numbers if n in fn.arg_names}
        )


if __name__ == "__main__":
    what, capability, every = sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["all"]
    kernels = {"descriptors": lambda: descriptors(every), "pairs": lambda: all_pairs(every),
               "pointers": lambda: pointer_kernels(capability, every),
               "others": lambda: the_others(capability)}  # fmt: skip
    for kernel in kernels[what]():
        print(json.dumps(kernel), flush=True)
