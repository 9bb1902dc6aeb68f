"""What a precision computes with."""

from __future__ import annotations

from typing import NamedTuple

import torch

from alexnet2012.choices import Precision


class Types(NamedTuple):
    """What a precision computes with."""

    parameters: torch.dtype
    activations: torch.dtype


TYPES = {
    Precision.fp32: Types(torch.float32, torch.float32),
    Precision.fp64: Types(torch.float64, torch.float64),
    Precision.tf32: Types(torch.float32, torch.float32),
    Precision.bf16: Types(torch.float32, torch.bfloat16),
}


def set_up_products(precision: Precision) -> None:
    """How a GPU multiplies in this process.

    Float32 may be rounded to tf32 or not (torch lets cuDNN do it), and cuDNN tries its algorithms
    for each shape: those that it picks unseen take twice as long for the first convolution.
    """
    torch.backends.cudnn.allow_tf32 = precision is Precision.tf32
    torch.backends.cuda.matmul.allow_tf32 = precision is Precision.tf32
    torch.backends.cudnn.benchmark = True
