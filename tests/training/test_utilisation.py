"""Peak memory and MFU of a run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from alexnet2012 import AlexNet
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.nn.cost_model import training_flops
from alexnet2012.training.utilisation import mfu_pct, model_flop_utilisation
from alexnet2012.utils.cards import peak_flops

FREED = """
import torch
from alexnet2012.training.utilisation import peak_memory_bytes
device = torch.device("cpu")
before = peak_memory_bytes(device)
torch.ones(2**28, dtype=torch.uint8)
print(peak_memory_bytes(device) - before)
"""


def test_the_peak_includes_memory_that_was_freed() -> None:
    found = subprocess.run([sys.executable, "-c", FREED], stdout=subprocess.PIPE, check=True)
    assert 2**28 * 0.9 < int(found.stdout) < 2**28 * 1.5


def test_the_papers_network_needs_four_gigaflops_an_image_and_twice_the_peak_halves_its_mfu() -> (
    None
):
    model = AlexNet("paper", mesh=Mesh(torch.device("cpu")))
    # 724.4 M multiply-adds forward, of which conv1 105.4 M; backward twice, for conv1 once.
    assert training_flops(model) == pytest.approx(2 * (3 * 724.4e6 - 105.4e6), rel=1e-4)
    assert mfu_pct(model, 1000.0, 1e13) == pytest.approx(2 * mfu_pct(model, 1000.0, 2e13))
    assert mfu_pct(model, 1000.0, 1e13) == pytest.approx(41.36, abs=0.01)
    assert model_flop_utilisation(model, 1000.0) == {}  # a CPU


def test_a_rate_is_known_only_for_exactly_the_card_of_the_data_sheet() -> None:
    assert peak_flops("NVIDIA H200", "bf16") == 989.5e12
    assert peak_flops("NVIDIA H100 PCIe", "bf16") is None  # slower than the SXM card
    assert peak_flops("GeForce GTX 580", "bf16") is None
