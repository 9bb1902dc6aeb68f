"""The kernels for a GPU, interpreted where there is none, against plain torch in float64.

Bound: sums of up to 25 products, roots and quotients in float32 keep six digits of the largest
number; bf16 results are rounded to eight bits besides. What these tests tell apart is larger.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alexnet2012 import AlexNet
from alexnet2012.config.enums import LayerOp, Precision
from alexnet2012.config.schema import ConvConfig, ModelConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.nn.dropout import Dropout
from alexnet2012.nn.kernels import autograd as kernels
from alexnet2012.nn.kernels import launchers
from alexnet2012.nn.kernels.epilogue import Epilogue, NormParams, Pool, split_epilogues
from alexnet2012.nn.layers import ColumnParallelConv2d
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.nn.precision import allow_tf32
from alexnet2012.utils.shard import Shard

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _float32() -> None:
    allow_tf32(Precision.fp32)


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "possible", lambda device, dtype: dtype != torch.float64)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (30 * torch.randn(shape, generator=draw, dtype=torch.float64)).to(DEVICE)


def plain(z: Tensor, bias: Tensor | None, tail: Epilogue, towers: int) -> Tensor:
    y = z if bias is None else z + bias[:, None, None]
    if tail.relu:
        y = F.relu(y)
    if tail.norm is not None:
        size, scale, beta, k = tail.norm
        alpha = scale * size
        halves = [F.local_response_norm(x, size, alpha, beta, k) for x in y.chunk(towers, 1)]
        y = torch.cat(halves, 1)
    if tail.pool is not None:
        y = F.max_pool2d(y, tail.pool.size, tail.pool.stride, ceil_mode=True)
    return F.relu(y) if tail.relu_last else y


NORMS = st.builds(
    NormParams,
    size=st.sampled_from([3, 5]),
    scale=st.sampled_from([1e-4, 2e-3]),
    beta=st.sampled_from([0.75, 0.5]),
    k=st.sampled_from([1.0, 2.0]),
)
POOLS = st.builds(Pool, size=st.sampled_from([2, 3]), stride=st.sampled_from([1, 2, 3]))
TAILS = st.builds(
    Epilogue,
    relu=st.booleans(),
    norm=st.none() | NORMS,
    pool=st.none() | POOLS,
    relu_last=st.booleans(),
).filter(lambda tail: tail.pool is not None or not tail.relu_last)


@given(
    tail=TAILS,
    towers=st.sampled_from([1, 2]),
    channels=st.sampled_from([8, 24, 48]),
    side=st.integers(3, 8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    has_bias=st.booleans(),
    reads_apart=st.booleans(),
    gives_apart=st.booleans(),
)
@settings(max_examples=40)
def test_what_follows_a_product_is_what_torch_makes_of_it(
    tail: Epilogue,
    towers: int,
    channels: int,
    side: int,
    dtype: torch.dtype,
    has_bias: bool,
    reads_apart: bool,
    gives_apart: bool,
) -> None:
    z = numbers(2, towers * channels, side, side).to(dtype).double().requires_grad_()
    bias = numbers(towers * channels, seed=1).float().double().requires_grad_()
    want = plain(z, bias if has_bias else None, tail, towers)
    grad = numbers(*want.shape, seed=2).to(dtype).double()
    wanted = torch.autograd.grad(want, [z, bias], grad, allow_unused=True)

    last = torch.channels_last
    parts = z.detach().to(dtype).chunk(towers if reads_apart else 1, 1)
    products = [x.contiguous(memory_format=last).requires_grad_() for x in parts]
    own_bias = bias.detach().float().requires_grad_() if has_bias else None
    out = kernels.fused_epilogue(products, own_bias, tail, towers, by_tower=gives_apart)
    assert len(out) == (towers if gives_apart else 1)
    grads = [g.contiguous(memory_format=last) for g in grad.to(dtype).chunk(len(out), 1)]
    read = products if own_bias is None else [*products, own_bias]
    found = torch.autograd.grad(out, read, grads)

    close(torch.cat(out, 1), want, dtype)
    if dtype == torch.bfloat16 and tail.norm is not None and tail.pool is not None:
        return  # rounded in between, where a pool may take another of two close ones
    close(torch.cat(found[: len(products)], 1), wanted[0], dtype)
    if has_bias:  # summed before anything is rounded
        close(found[-1], wanted[1], torch.float32)


def close(got: Tensor, want: Tensor | None, dtype: torch.dtype) -> None:
    assert want is not None
    bound = 2e-6 + (2 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0)
    assert (got.double() - want).abs().max() <= bound * want.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (65, 96), (64 * 264 * 2 + 9, 40)])
def test_sums_over_many_rows_are_those_in_float64(shape: tuple[int, int]) -> None:
    """Each of them once, and none from beyond the last."""
    around = numbers(shape[0] + 2, shape[1]).float()
    around[0] = around[-1] = math.nan
    x = around[1:-1]
    torch.testing.assert_close(launchers.summed(x).double(), x.double().sum(0), rtol=1e-5, atol=0.1)


def test_what_is_no_number_stays_none() -> None:
    z = torch.ones(1, 8, 5, 5, device=DEVICE).contiguous(memory_format=torch.channels_last)
    z[0, 2, 2, 2] = torch.nan
    for tail in (
        Epilogue(relu=True),
        Epilogue(relu=True, pool=Pool(3, 2)),
        Epilogue(norm=NormParams(3, 1, 0.75, 1)),
    ):
        (y,) = kernels.fused_epilogue([z], None, tail, 1, by_tower=False)
        assert y.isnan().any()


def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """Without a GPU: an A100 and an H100. A thread's numbers stay in its registers."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    program = Path(__file__).parents[1] / "compiled.py"
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert len(found) == 27
    for kernel, made in found.items():
        if not kernel.startswith("blocks"):  # which gathers pixels
            assert "ld.global.v4.b32" in made["ptx"], kernel  # 16 bytes at a time
        if kernel.startswith("norm"):  # nor does one wait for another
            assert made["shared"] == 0 and "bar.sync" not in made["ptx"], kernel


def test_recipes_fall_into_passes() -> None:
    paper, code145 = (load_recipe(name) for name in ("paper", "code145"))
    norm, pool = NormParams(5, 1e-4, 0.75, 2.0), Pool(3, 2)

    def of(recipe: str, conv: str, channels: int = 48) -> list[Epilogue | LayerOp]:
        chosen = paper if recipe == "paper" else code145
        return split_epilogues(chosen.convs[conv], chosen, ModelConfig().activation, channels)

    assert of("paper", "conv1") == [Epilogue(relu=True, norm=norm, pool=pool)]
    assert of("paper", "conv3") == [Epilogue(relu=True)]
    assert of("paper", "conv5") == [Epilogue(relu=True, pool=pool)]
    code145.pool.size = 12  # 144 places, more than a byte holds
    assert LayerOp.max_pool in of("code145", "conv1")
    code145.pool.size = 3
    (first,) = of("code145", "conv1")
    assert isinstance(first, Epilogue) and first.relu_last and not first.relu
    assert [step for step in of("code145", "conv2") if isinstance(step, LayerOp)] == [
        LayerOp.spatial_norm
    ]


@pytest.mark.parametrize(
    ("side", "config"),
    [
        (23, ConvConfig(kernels=4, kernel_size=11, stride=4, padding=2)),
        (20, ConvConfig(kernels=4, kernel_size=11, stride=4, padding=0, overhang=True)),
        (15, ConvConfig(kernels=4, kernel_size=5, stride=2, padding=1)),
    ],
)
def test_a_convolution_of_blocks_is_that_of_pixels(side: int, config: ConvConfig) -> None:
    layer = ColumnParallelConv2d(config, Shard(0, 4, 4), kernel_channels=3, groups=1)
    layer.draw(0.01, 0.5, torch.Generator().manual_seed(0))
    layer.to(DEVICE)
    images = numbers(2, 3, side, side).float()
    for laid in (images, images.contiguous(memory_format=torch.channels_last)):
        got = layer(layer.in_blocks(laid, torch.float32), blocks=True)
        torch.testing.assert_close(got, layer(images, skip_bias=True), rtol=1e-5, atol=1e-5)
    got_grad, want_grad = (
        torch.autograd.grad(y.square().sum(), layer.weight)[0]
        for y in (
            layer(layer.in_blocks(images, torch.float32), blocks=True),
            layer(images, skip_bias=True),
        )
    )
    torch.testing.assert_close(got_grad, want_grad, rtol=1e-4, atol=1e-2)


def test_dropout_in_one_pass_drops_the_same_units() -> None:
    z, rows = numbers(6, 40).float().requires_grad_(), Shard(3, 9, 12)
    plain_dropout, in_one = (
        Dropout(0.5, Shard(40, 80, 80), seed=7, device=DEVICE) for _ in range(2)
    )
    for _ in range(2):  # the stream goes on
        want, got = plain_dropout(F.relu(z), rows), in_one.after_relu(z, rows)
        assert torch.equal(got, want)
        grads = [torch.autograd.grad(y.square().sum(), z)[0] for y in (want, got)]
        assert torch.equal(*grads)
    assert torch.equal(plain_dropout.state, in_one.state)


@pytest.mark.parametrize("loss", [None, 6.9, -0.0])
def test_an_update_in_one_pass_is_the_same(loss: float | None) -> None:
    weight, velocity, grad = (numbers(70, 3, seed=i).float() for i in range(3))
    want_v = 0.9 * velocity - 0.01 * grad - 5e-6 * weight
    want_w = weight + want_v
    checked = None if loss is None else torch.tensor(loss, device=DEVICE)
    launchers.sgd_update(weight, velocity, grad, 0.9, 0.01, 5e-6, checked)
    torch.testing.assert_close((weight, velocity), (want_w, want_v), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_an_update_by_a_loss_that_is_no_number_changes_nothing(
    loss: float, dtype: torch.dtype
) -> None:
    weight, velocity, grad = (numbers(70, 3, seed=i).float() for i in range(3))
    before = weight.clone(), velocity.clone()
    no_number = torch.tensor(loss, dtype=dtype, device=DEVICE)
    launchers.sgd_update(weight, velocity, grad, 0.9, 0.01, 5e-6, no_number)
    assert torch.equal(weight, before[0]) and torch.equal(velocity, before[1])


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("recipe", ["paper", "code145"])
def test_a_step_of_the_net_is_that_in_float64(recipe: str) -> None:
    images, labels = numbers(1, 3, 64, 64) * 2, torch.tensor([3], device=DEVICE)

    def stepped(precision: str) -> dict[str, Tensor]:
        model = ModelConfig(width=0.5, input_size=64)
        net = AlexNet(recipe, 10, model=model, precision=precision)
        assert net.fused is (precision == "fp32")
        optimizer = PaperSGD(net, load_recipe(recipe).optimizer)
        optimizer.set_rates(LearningRates(1e-3, 2e-3))
        F.cross_entropy(net(images.to(net.types.parameters)), labels).backward()
        optimizer.step()
        return {name: weight.detach().double() for name, weight in net.named_parameters()}

    got = stepped("fp32")
    for name, want in stepped("fp64").items():
        assert (got[name] - want).norm() <= 1e-5 * want.norm(), name


def test_saved_maps_that_come_back_laid_otherwise_are_laid_again() -> None:
    z = numbers(2, 16, 5, 5).float().contiguous(memory_format=torch.channels_last).requires_grad_()
    tail = Epilogue(relu=True, norm=NormParams(5, 1e-4, 0.75, 2.0), pool=Pool(3, 2))

    def grad() -> Tensor:
        (y,) = kernels.fused_epilogue([z], None, tail, 2, by_tower=False)
        return torch.autograd.grad(y.square().sum(), z)[0]

    want = grad()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone().contiguous(), lambda x: x):
        assert torch.equal(grad(), want)


def test_a_gradient_of_a_gradient_is_refused() -> None:
    z = numbers(1, 8, 3, 3).float().requires_grad_()
    (y,) = kernels.fused_epilogue(
        [z], None, Epilogue(norm=NormParams(5, 1e-4, 0.75, 2.0)), 1, by_tower=False
    )
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(y.sum(), z, create_graph=True)


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_an_update_by_a_gradient_that_lies_otherwise_is_the_same() -> None:
    net = AlexNet("paper", 4, model=ModelConfig(width=0.5, input_size=64))
    optimizer = PaperSGD(net, load_recipe("paper").optimizer)
    optimizer.set_rates(LearningRates(0.1, 0.1))
    weight, before = net.conv1.weight, net.conv1.weight.detach().clone()
    weight.grad = numbers(*weight.shape).float()  # NCHW, and the weight lies channels last
    assert weight.grad.stride() != weight.stride()
    optimizer.step()
    want = before - 0.1 * weight.grad - 0.1 * 0.0005 * before
    torch.testing.assert_close(weight.detach(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_a_batch_of_no_pictures_gives_gradients_of_zero() -> None:
    """Of what is left at the end of an epoch a replica may get nothing."""
    net = AlexNet("paper", 10, model=ModelConfig(width=0.5, input_size=64))
    net(torch.empty(0, 3, 64, 64, device=DEVICE)).sum().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None and not weight.grad.any(), name


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_images_that_want_a_gradient_get_one() -> None:
    net = AlexNet("paper", 10, model=ModelConfig(width=0.5, input_size=64))
    images = numbers(1, 3, 64, 64).float().requires_grad_()
    net(images).sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0
