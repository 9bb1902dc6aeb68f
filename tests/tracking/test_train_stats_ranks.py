"""Training statistics of several processes equal those of one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranks import run_ranks

from alexnet2012.config.enums import Precision
from alexnet2012.config.schema import ModelConfig
from alexnet2012.distributed.mesh import init_mesh
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.tracking.train_stats import kernels, update_ratios
from alexnet2012.utils.shard import Shard

TINY = ModelConfig(width=0.04, input_size=64)


def watched(sums_over_towers: bool = True) -> tuple[dict[str, float], bytes, dict[str, int]]:
    mesh = init_mesh(towers=2, device="cpu")
    model = AlexNet("paper", 4, model=TINY, mesh=mesh, precision=Precision.fp64)
    optimizer = PaperSGD(model, model.recipe.optimizer)
    rows = Shard(0, 4, 4)  # the same on every replica, dropout and all
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator())
    torch.nn.functional.cross_entropy(model(images, rows), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.set_rates(LearningRates(weight=0.01, bias=0.02))
    optimizer.step()
    before = sum(b for (_, way), b in model.comm.traffic.sent_bytes.items() if way != "inference")
    alone = model.mesh if sums_over_towers else type(mesh)(mesh.device)
    found = update_ratios(model, optimizer, alone), kernels(model).numpy().tobytes()
    after = sum(b for (_, way), b in model.comm.traffic.sent_bytes.items() if way != "inference")
    return *found, {"before": before, "after": after}


@pytest.mark.parametrize("processes", [2, 4])
def test_every_rank_has_the_ratios_and_kernels_of_one_process(processes: int) -> None:
    ((alone, kernels_alone, _),) = run_ranks(1, watched)
    for ratios, weights, sent in run_ranks(processes, watched):
        # float64; sums of squares in another order
        assert ratios == pytest.approx(alone, rel=1e-9)
        np.testing.assert_allclose(np.frombuffer(weights), np.frombuffer(kernels_alone), rtol=1e-9)
        assert sent["before"] == sent["after"] > 0  # of training


def test_a_ratio_of_one_tower_alone_is_detected() -> None:
    ((alone, *_),) = run_ranks(1, watched)
    for ratios, *_ in run_ranks(2, watched, False):
        assert ratios != pytest.approx(alone, rel=1e-9)
