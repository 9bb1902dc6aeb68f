"""What only a GPU can show."""

from __future__ import annotations

import pytest
import reference
import torch

from alexnet2012 import AlexNet
from alexnet2012.checks import load_recipe
from alexnet2012.config import AugmentConfig, ModelConfig
from alexnet2012.data.feeding import Place
from alexnet2012.data.loaders import TrainLoader
from alexnet2012.data.store import Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("recipe", ["paper", "code145"])
def test_logits_on_the_gpu_are_those_of_the_independent_net(recipe: str) -> None:
    net = AlexNet(recipe, 10, model=ModelConfig(width=0.25), precision="fp64").eval()
    assert next(net.parameters()).is_cuda
    images = 60 * torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        got = net(images.cuda()).cpu()
    weights = {name: w.cpu() for name, w in net.full_state_dict().items()}
    want = reference.logits(weights, images, recipe, {})
    # Another library adds in another order: float64's last bits, grown through eight layers.
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-10 * float(want.abs().max()))


def test_dali_feeds_the_gpu_what_it_feeds_the_cpu(photos_store: Store) -> None:
    augment: AugmentConfig = load_recipe("paper").augment

    def first_batch(device: str) -> torch.Tensor:
        loader = TrainLoader(
            photos_store,
            photos_store.split("train"),
            augment,
            input_size=64,
            batch_size=8,
            seed=0,
            place=Place(device=torch.device(device)),
        )
        return next(iter(loader.epoch(0))).images.cpu()

    # nvJPEG rounds its inverse transform otherwise than libjpeg: a few grey levels at most.
    difference = (first_batch("cuda") - first_batch("cpu")).abs()
    assert float(difference.mean()) < 1
