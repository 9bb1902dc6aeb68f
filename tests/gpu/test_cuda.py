"""What only a GPU can show."""

from __future__ import annotations

import pytest
import reference
import torch

from alexnet2012 import AlexNet
from alexnet2012.checks import load_recipe
from alexnet2012.choices import Precision
from alexnet2012.config import AugmentConfig, ModelConfig
from alexnet2012.data.feeding import Place
from alexnet2012.data.loaders import TrainLoader
from alexnet2012.data.store import Store
from alexnet2012.layers import draws
from alexnet2012.normalisation import local_response_norm
from alexnet2012.precision import allow_tf32
from alexnet2012.sharding import Share

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


def test_dropout_draws_on_the_gpu_what_it_draws_on_the_cpu() -> None:
    rows, units = Share(3, 60, 64), Share(5, 90, 100)
    on_cpu, on_gpu = (
        draws(torch.tensor([9], device=device), rows, units) for device in ("cpu", "cuda")
    )
    assert torch.equal(on_gpu.cpu(), on_cpu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_normalisation_is_the_cpus(dtype: torch.dtype) -> None:
    norm = load_recipe("paper").lrn
    draw = torch.Generator().manual_seed(0)
    x, grad = (20 * torch.randn(4, 96, 55, 55, generator=draw).to(dtype) for _ in range(2))

    def both(device: str) -> tuple[torch.Tensor, torch.Tensor]:
        there = x.to(device).requires_grad_()
        y = local_response_norm(there, norm, 2)
        return y.detach().cpu(), torch.autograd.grad(y, there, grad.to(device))[0].cpu()

    # Roots and sums differ in float32's last bits, which may round a bf16 the other way.
    bound = torch.finfo(dtype).eps + 1e-5
    for got, want in zip(both("cuda"), both("cpu"), strict=True):
        difference = (got.double() - want.double()).abs().max() / want.double().abs().max()
        assert difference < bound


def test_fp32_is_not_tf32() -> None:
    a = torch.randn(512, 512, device="cuda")
    exact = a.double() @ a.double()

    def error(precision: Precision) -> float:
        allow_tf32(precision)
        return float(((a @ a).double() - exact).abs().max())

    assert error(Precision.fp32) < 1e-3
    if torch.cuda.get_device_capability() >= (8, 0):
        assert error(Precision.tf32) > 10 * error(Precision.fp32)
