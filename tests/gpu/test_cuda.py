"""Tests that need a GPU: kernels, CUDA graphs, DALI on the GPU, TF32 and NCCL."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.distributed as dist
from ranks import run_ranks

from alexnet2012 import AlexNet, init_mesh
from alexnet2012.config.enums import Precision
from alexnet2012.config.schema import AugmentConfig, ModelConfig, NormConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.data.loaders import Batch, TrainLoader
from alexnet2012.data.store import Store
from alexnet2012.data.tower_feed import LoaderPlacement
from alexnet2012.distributed.devices import SHARED_GPU
from alexnet2012.nn.dropout import draws
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.lrn import local_response_norm
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.nn.precision import allow_tf32
from alexnet2012.training.cuda_graph import WARM_UP, can_capture
from alexnet2012.training.train_step import TrainStep
from alexnet2012.training.utilisation import (
    model_flop_utilisation,
    peak_memory_bytes,
    reset_peak_memory,
)
from alexnet2012.utils.cards import CARDS
from alexnet2012.utils.shard import Shard, shard_of

SIZES = [8] * 6 + [5] + [8] * 2  # images of nine steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device and `make test-gpu`"
    ),
]


@pytest.mark.parametrize("recipe", ["paper", "code145"])
def test_gpu_logits_equal_those_of_the_independent_model(recipe: str) -> None:
    model = AlexNet(recipe, 10, model=ModelConfig(width=0.25), precision="fp64").eval()
    assert next(model.parameters()).is_cuda
    images = 60 * torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        got = model(images.cuda()).cpu()
    weights = {name: w.cpu() for name, w in model.full_state_dict().items()}
    want = reference.logits(weights, images, recipe, {})
    # Sums are added in another order: errors in float64's last bits grow through eight layers.
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-10 * float(want.abs().max()))


def test_dali_gives_the_same_images_on_gpu_and_cpu(photos_store: Store) -> None:
    augment: AugmentConfig = load_recipe("paper").augment

    def first_batch(device: str) -> torch.Tensor:
        loader = TrainLoader(
            photos_store,
            photos_store.split("train"),
            augment,
            input_size=64,
            batch_size=8,
            seed=0,
            placement=LoaderPlacement(device=torch.device(device)),
        )
        return next(iter(loader.epoch(0))).images.cpu()

    # nvJPEG rounds its inverse transform differently from libjpeg: a few grey levels at most.
    difference = (first_batch("cuda") - first_batch("cpu")).abs()
    assert float(difference.mean()) < 1


def test_dropout_draws_the_same_numbers_on_gpu_and_cpu() -> None:
    rows, units = Shard(3, 60, 64), Shard(5, 90, 100)
    on_cpu, on_gpu = (
        draws(torch.tensor([9], device=device), rows, units) for device in ("cpu", "cuda")
    )
    assert torch.equal(on_gpu.cpu(), on_cpu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [3, 5])
def test_lrn_on_the_gpu_equals_that_on_the_cpu(dtype: torch.dtype, size: int) -> None:
    norm = NormConfig(size=size, alpha=1e-4, beta=0.75, k=2.0, divide_by_window=False)
    draw = torch.Generator().manual_seed(0)
    x, grad = (20 * torch.randn(4, 96, 55, 55, generator=draw).to(dtype) for _ in range(2))

    def result_and_gradient(device: str) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.to(device).requires_grad_()
        y = local_response_norm(leaf, norm, 2)
        return y.detach().cpu(), torch.autograd.grad(y, leaf, grad.to(device))[0].cpu()

    # Roots and sums differ in float32's last bits, which may change how a bf16 is rounded.
    bound = torch.finfo(dtype).eps + 1e-5
    for got, want in zip(*map(result_and_gradient, ("cuda", "cpu")), strict=True):
        difference = (got.double() - want.double()).abs().max() / want.double().abs().max()
        assert difference < bound


@pytest.mark.parametrize("recipe", ["paper", "code145"])
def test_training_with_kernels_and_cuda_graphs_equals_that_in_float64(recipe: str) -> None:
    """A step with another batch size falls between replays of the graph."""
    want = trained(recipe, SIZES, "fp64", fused=False)
    got = trained(recipe, SIZES, "fp32", fused=True)
    # Ten steps of float32 products of up to 9,216 terms: 1e-6 per step, partly accumulating.
    for name, weight in want.items():
        error = (got[name] - weight).norm() / weight.norm()
        assert error < 1e-4, (name, float(error))


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_two_towers_train_like_one_process(backend: str, tmp_path: Path) -> None:
    """Two processes on one GPU use gloo, through host memory, and no graph."""
    want = trained("paper", SIZES, "fp64", fused=False)
    nccl = nccl_file(tmp_path) if backend == "nccl" else None
    for rank in run_ranks(2, trained_tower, nccl):
        for name, weight in want.items():
            assert np.abs(rank[name] - weight.numpy()).max() <= 1e-4 * weight.abs().max(), name


@pytest.mark.parametrize("towers", [2, 1])
def test_replayed_nccl_collectives_equal_eager_ones(towers: int, tmp_path: Path) -> None:
    """Exchanges between towers, or sums over replicas."""
    for eager, graphed in run_ranks(2, eager_and_graphed, nccl_file(tmp_path), towers):
        assert graphed["sent"] == eager["sent"]
        assert (len(eager["sent"]) > 0) is (towers == 2)
        for name, weight in eager["weights"].items():  # cuBLAS may choose other algorithms
            assert np.abs(graphed["weights"][name] - weight).max() <= 1e-4 * np.abs(weight).max()


def eager_and_graphed(nccl: str, towers: int) -> list[dict[str, Any]]:
    join_nccl(nccl)
    mesh, results = init_mesh(towers), []
    for cuda_graph in (False, True):
        sent: dict[tuple[str, str], int] = {}
        weights = trained("paper", SIZES, "fp32", mesh=mesh, cuda_graph=cuda_graph, sent=sent)
        results.append({"weights": {n: w.numpy() for n, w in weights.items()}, "sent": sent})
    return results


def nccl_file(folder: Path) -> str:
    """Where two ranks of NCCL meet; skips the test if they cannot run."""
    if torch.cuda.device_count() < 2 and os.environ.get(SHARED_GPU) != "1":
        pytest.skip("needs two GPUs")
    return (folder / "nccl").as_uri()


def join_nccl(nccl: str) -> None:
    rank = dist.get_rank()
    dist.destroy_process_group()
    torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group("nccl", init_method=nccl, rank=rank, world_size=2)


def test_memory_and_mfu_of_a_gpu_are_those_of_its_tensors_and_its_data_sheet() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    reset_peak_memory(device)
    before = peak_memory_bytes(device)
    torch.empty(2**28, dtype=torch.uint8, device=device)
    assert peak_memory_bytes(device) >= before + 2**28
    model = AlexNet("paper", 10, model=ModelConfig(width=0.25), precision="bf16")
    known = torch.cuda.get_device_name() in {card.device_name for card in CARDS.values()}
    assert (model_flop_utilisation(model, 1000.0).get("mfu_pct", 0) > 0) == known


def trained_tower(nccl: str | None) -> dict[str, np.ndarray]:
    if nccl is None:
        os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    else:
        join_nccl(nccl)
    weights = trained("paper", SIZES, "fp32", mesh=init_mesh(2))
    return {name: weight.numpy() for name, weight in weights.items()}


def trained(
    recipe: str,
    sizes: list[int],
    precision: str,
    *,
    fused: bool = True,
    cuda_graph: bool = True,
    sent: dict[tuple[str, str], int] | None = None,
    **settings: Any,
) -> dict[str, torch.Tensor]:
    """The full weights after one step of each batch size, on the CPU in float64.

    ``sent`` is filled with the bytes that this tower sent.
    """
    allow_tf32(Precision(precision))
    config = ModelConfig(width=0.5, input_size=64)
    model = AlexNet(recipe, 10, model=config, precision=precision, **settings)
    assert next(model.parameters()).is_cuda
    model.fused &= fused
    assert model.fused is fused
    optimizer = PaperSGD(model, load_recipe(recipe).optimizer)
    step = TrainStep(model, optimizer, cuda_graph=cuda_graph)
    draw = torch.Generator().manual_seed(1)
    for number, count in enumerate(sizes):
        optimizer.set_rates(LearningRates(1e-3 / (1 + number), 2e-3))  # a replay reads new rates
        images = 60 * torch.randn(count, 3, 64, 64, generator=draw)
        labels = torch.randint(10, (count,), generator=draw)
        rows = shard_of(count, model.mesh.replicas, model.mesh.replica)
        images, labels = rows.of(images).cuda(), rows.of(labels).cuda()
        output = step(Batch(images, labels, np.arange(rows.size), rows))
        assert math.isfinite(output.loss) and 0 <= output.errors <= count
        assert (output.global_loss == output.loss) is (model.mesh.replicas == 1)
    captured = step._graphed is not None and step._graphed._graphs is not None
    assert captured is (cuda_graph and can_capture(model) and len(sizes) > WARM_UP)
    step.close()
    if sent is not None:
        sent.update(model.comm.traffic.sent_bytes)
    before = [weight.clone() for weight in model.parameters()]
    optimizer.step(loss=torch.full((), math.nan, device="cuda"))
    assert all(map(torch.equal, before, model.parameters()))
    return {name: w.double().cpu() for name, w in model.full_state_dict().items()}


def test_bf16_gradients_are_as_accurate_with_kernels_as_without() -> None:
    want = trained("paper", [8] * 6, "fp64", fused=False)
    got = trained("paper", [8] * 6, "bf16")
    plain = trained("paper", [8] * 6, "bf16", fused=False)
    for name, weight in want.items():
        error, plain_error = ((w[name] - weight).norm() for w in (got, plain))
        assert error < 2 * plain_error + 1e-6 * weight.norm(), name


def test_fp32_is_not_tf32() -> None:
    a = torch.randn(512, 512, device="cuda")
    exact = a.double() @ a.double()

    def error(precision: Precision) -> float:
        allow_tf32(precision)
        return float(((a @ a).double() - exact).abs().max())

    assert error(Precision.fp32) < 1e-3
    if torch.cuda.get_device_capability() >= (8, 0):
        assert error(Precision.tf32) > 10 * error(Precision.fp32)
