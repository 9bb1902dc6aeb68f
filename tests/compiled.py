"""Compile the Triton kernels for GPUs that need not be present; print PTX and shared memory."""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from alexnet2012.nn.kernels import triton_kernels

TILE = {"VECTORS": 6, "TOWERS": 2, "T": 128, "CYCLE": 3, "ITERATIONS": 8}
NORM = {"BETA": 0.75, "HALF": 2}
POOL = {"HEIGHT": 55, "WIDTH": 55, "OUTHEIGHT": 27, "OUTWIDTH": 27, "SIZE": 3, "STRIDE": 2}
FLAGS: dict[str, dict[str, Any]] = {
    "bias_relu_norm_kernel": {**NORM, "BIAS": True, "RELU": True},
    "bias_relu_norm_backward_kernel": {**NORM, "BIAS": True, "RELU": True},
    "bias_relu_kernel": {"BIAS": True, "RELU": True},
    "bias_relu_backward_kernel": {"BIAS": True, "RELU": True},
    "max_pool_kernel": {**POOL, "BIAS": True, "RELU": True},
    "max_pool_backward_kernel": {**POOL, "BIAS": True},
    "space_to_depth_kernel": {"STRIDE": 4, "PADDING": 2, "BLOCKS": 64, "CHANNELS": 64},
    "column_sums_kernel": {"ROWS": 64, "COLUMNS": 32},
    "sgd_kernel": {"CHECKED": True, "BLOCK": 2048},
}


def compiled(name: str, maps: str, capability: int) -> dict[str, Any]:
    kernel = getattr(triton_kernels, name)
    constants = {a: v for a, v in {**TILE, **FLAGS[name]}.items() if a in kernel.arg_names}
    types = dict.fromkeys(("bias", "sums", "w", "v", "loss", "rates"), "*fp32") | {"argmax": "*i8"}
    types |= dict.fromkeys(("scale", "k", "momentum"), "fp32")
    types |= dict.fromkeys(("images", "z", "y", "x", "grad", "grad_z", "grad_x", "g"), maps)
    if name == "column_sums_kernel":
        types |= {"x": "*fp32", "y": "*fp32"}
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "i32")
        for argument in kernel.arg_names
    }
    positions = {argument: (i,) for i, argument in enumerate(kernel.arg_names)}
    aligned = [
        a
        for a, kind in signature.items()
        if kind[0] == "*" or "_" in a or a in ("count", "columns")
    ]
    source = ASTSource(
        kernel,
        signature,
        constexprs={positions[argument]: value for argument, value in constants.items()},
        attrs={positions[argument]: [["tt.divisibility", 16]] for argument in aligned},
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    return {"shared": kernel.metadata.shared, "ptx": kernel.asm["ptx"]}


if __name__ == "__main__":
    results = {
        f"{name} {maps} {capability}": compiled(name, maps, capability)
        for name in FLAGS
        for maps, capability in (("*bf16", 80), ("*bf16", 90), ("*fp32", 90))
    }
    sys.stdout.write(json.dumps(results))
