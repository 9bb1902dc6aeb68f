"""Imported before anything imports Triton, which then interprets the kernels for a GPU on a CPU."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
