"""The dtypes of each precision, and the switch for TF32."""

from __future__ import annotations

from typing import NamedTuple

import torch

from alexnet2012.config.enums import Precision


class DTypes(NamedTuple):
    """Dtypes of a model's parameters and activations."""

    parameters: torch.dtype
    activations: torch.dtype


DTYPES = {
    Precision.fp32: DTypes(torch.float32, torch.float32),
    Precision.fp64: DTypes(torch.float64, torch.float64),
    Precision.tf32: DTypes(torch.float32, torch.float32),
    Precision.bf16: DTypes(torch.float32, torch.bfloat16),
}


def allow_tf32(precision: Precision) -> None:
    """Allow TF32 in this process's float32 products for ``tf32``, forbid it otherwise."""
    torch.backends.cudnn.allow_tf32 = precision is Precision.tf32
    torch.backends.cuda.matmul.allow_tf32 = precision is Precision.tf32
