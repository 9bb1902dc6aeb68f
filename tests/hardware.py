"""Imported before anything asks for a GPU or imports Triton.

Tests are of nets on a CPU, also where there is a GPU: ``make test-gpu`` shows it to those that want
one. Where none is shown, Triton interprets the kernels.
"""

from __future__ import annotations

import os

from alexnet2012.utils.collector import before_imports

before_imports()
import torch  # noqa: E402

if "ALEXNET2012_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
