"""The Triton kernels against plain torch in float64; without a GPU, Triton interprets them.

Tolerance: sums of up to 25 products, roots and quotients in float32 keep six digits of the largest
number; bf16 results are also rounded to eight bits. The errors these tests detect are larger.
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
from alexnet2012.distributed.mesh import Mesh
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
def _kernels_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models use the kernels on the CPU, too."""
    monkeypatch.setattr(kernels, "kernels_available", lambda device, dtype: dtype != torch.float64)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (30 * torch.randn(shape, generator=draw, dtype=torch.float64)).to(DEVICE)


def rates(lr: float, decay: float) -> Tensor:
    return torch.tensor([lr, decay], device=DEVICE)


def plain(z: Tensor, bias: Tensor | None, epilogue: Epilogue, towers: int) -> Tensor:
    """The epilogue by torch's own functions."""
    y = z if bias is None else z + bias[:, None, None]
    if epilogue.relu:
        y = F.relu(y)
    if epilogue.norm is not None:
        size, scale, beta, k = epilogue.norm
        alpha = scale * size
        halves = [F.local_response_norm(x, size, alpha, beta, k) for x in y.chunk(towers, 1)]
        y = torch.cat(halves, 1)
    if epilogue.pool is not None:
        y = F.max_pool2d(y, epilogue.pool.size, epilogue.pool.stride, ceil_mode=True)
    return F.relu(y) if epilogue.relu_last else y


NORMS = st.builds(
    NormParams,
    size=st.sampled_from([3, 5]),
    scale=st.sampled_from([1e-4, 2e-3]),
    beta=st.sampled_from([0.75, 0.5]),
    k=st.sampled_from([1.0, 2.0]),
)
POOLS = st.builds(Pool, size=st.sampled_from([2, 3]), stride=st.sampled_from([1, 2, 3]))
EPILOGUES = st.builds(
    Epilogue,
    relu=st.booleans(),
    norm=st.none() | NORMS,
    pool=st.none() | POOLS,
    relu_last=st.booleans(),
).filter(lambda epilogue: epilogue.pool is not None or not epilogue.relu_last)


@given(
    epilogue=EPILOGUES,
    towers=st.sampled_from([1, 2]),
    channels=st.sampled_from([8, 24, 48]),
    side=st.integers(3, 8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    has_bias=st.booleans(),
    separate_inputs=st.booleans(),
    separate_outputs=st.booleans(),
)
@settings(max_examples=12)
def test_fused_epilogue_equals_torchs_layers(
    epilogue: Epilogue,
    towers: int,
    channels: int,
    side: int,
    dtype: torch.dtype,
    has_bias: bool,
    separate_inputs: bool,
    separate_outputs: bool,
) -> None:
    z = numbers(2, towers * channels, side, side).to(dtype).double().requires_grad_()
    bias = numbers(towers * channels, seed=1).float().double().requires_grad_()
    want = plain(z, bias if has_bias else None, epilogue, towers)
    grad = numbers(*want.shape, seed=2).to(dtype).double()
    wanted = torch.autograd.grad(want, [z, bias], grad, allow_unused=True)

    last = torch.channels_last
    chunks = z.detach().to(dtype).chunk(towers if separate_inputs else 1, 1)
    products = [x.contiguous(memory_format=last).requires_grad_() for x in chunks]
    own_bias = bias.detach().float().requires_grad_() if has_bias else None
    out = kernels.fused_epilogue(products, own_bias, epilogue, towers, separate=separate_outputs)
    assert len(out) == (towers if separate_outputs else 1)
    grads = [g.contiguous(memory_format=last) for g in grad.to(dtype).chunk(len(out), 1)]
    inputs = products if own_bias is None else [*products, own_bias]
    input_grads = torch.autograd.grad(out, inputs, grads)

    close(torch.cat(out, 1), want, dtype)
    if dtype == torch.bfloat16 and epilogue.norm is not None and epilogue.pool is not None:
        return  # rounding before the pool may change which of two close numbers is the maximum
    close(torch.cat(input_grads[: len(products)], 1), wanted[0], dtype)
    if has_bias:  # summed before rounding
        close(input_grads[-1], wanted[1], torch.float32)


def close(got: Tensor, want: Tensor | None, dtype: torch.dtype) -> None:
    assert want is not None
    bound = 2e-6 + (2 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0)
    assert (got.double() - want).abs().max() <= bound * want.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (65, 96), (64 * 6 + 9, 8)])
def test_column_sums_equal_those_in_float64(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row counts once, and no row outside the tensor; the last has two rounds of rows."""
    monkeypatch.setattr(launchers, "PROGRAMS", 6)
    padded = numbers(shape[0] + 2, shape[1]).float()
    padded[0] = padded[-1] = math.nan
    x = padded[1:-1]
    sums = launchers.column_sums(x).double()
    torch.testing.assert_close(sums, x.double().sum(0), rtol=1e-5, atol=0.1)


def test_kernels_propagate_nan() -> None:
    z = torch.ones(1, 8, 5, 5, device=DEVICE).contiguous(memory_format=torch.channels_last)
    z[0, 2, 2, 2] = torch.nan
    for epilogue in (
        Epilogue(relu=True),
        Epilogue(relu=True, pool=Pool(3, 2)),
        Epilogue(norm=NormParams(3, 1, 0.75, 1)),
    ):
        (y,) = kernels.fused_epilogue([z], None, epilogue, 1, separate=False)
        assert y.isnan().any()


def test_kernels_compile_for_a100_and_h100(tmp_path: Path) -> None:
    """No GPU is needed. Each thread's numbers stay in its registers."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    program = Path(__file__).parents[1] / "compiled.py"
    process = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=True
    )
    results = json.loads(process.stdout)
    assert len(results) == 27
    for kernel, compiled in results.items():
        if not kernel.startswith("space_to_depth"):  # which loads single pixels
            assert "ld.global.v4.b32" in compiled["ptx"], kernel  # 16 bytes at a time
        if kernel.startswith("bias_relu_norm"):  # threads do not wait for each other
            assert compiled["shared"] == 0 and "bar.sync" not in compiled["ptx"], kernel


def test_recipes_are_split_into_fused_passes() -> None:
    paper, code145 = (load_recipe(name) for name in ("paper", "code145"))
    norm, pool = NormParams(5, 1e-4, 0.75, 2.0), Pool(3, 2)

    def passes(recipe: str, conv: str, channels: int = 48) -> list[Epilogue | LayerOp]:
        config = paper if recipe == "paper" else code145
        return split_epilogues(config.convs[conv], config, ModelConfig().activation, channels)

    assert passes("paper", "conv1") == [Epilogue(relu=True, norm=norm, pool=pool)]
    assert passes("paper", "conv3") == [Epilogue(relu=True)]
    assert passes("paper", "conv5") == [Epilogue(relu=True, pool=pool)]
    code145.pool.size = 12  # 144 indices, more than an int8 holds
    assert LayerOp.max_pool in passes("code145", "conv1")
    code145.pool.size = 3
    (first,) = passes("code145", "conv1")
    assert isinstance(first, Epilogue) and first.relu_last and not first.relu
    assert [step for step in passes("code145", "conv2") if isinstance(step, LayerOp)] == [
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
def test_space_to_depth_convolution_equals_the_strided_one(side: int, config: ConvConfig) -> None:
    layer = ColumnParallelConv2d(config, Shard(0, 4, 4), kernel_channels=3, groups=1)
    layer.init_parameters(0.01, 0.5, torch.Generator().manual_seed(0))
    layer.to(DEVICE)
    images = numbers(2, 3, side, side).float()
    for x in (images, images.contiguous(memory_format=torch.channels_last)):
        got = layer(layer.space_to_depth(x, torch.float32), input_is_blocks=True)
        torch.testing.assert_close(got, layer(images, skip_bias=True), rtol=1e-5, atol=1e-5)
    got_grad, want_grad = (
        torch.autograd.grad(y.square().sum(), layer.weight)[0]
        for y in (
            layer(layer.space_to_depth(images, torch.float32), input_is_blocks=True),
            layer(images, skip_bias=True),
        )
    )
    torch.testing.assert_close(got_grad, want_grad, rtol=1e-4, atol=1e-2)


def test_fused_relu_dropout_drops_the_same_units() -> None:
    z, rows = numbers(6, 40).float().requires_grad_(), Shard(3, 9, 12)
    plain_dropout, fused = (
        Dropout(0.5, Shard(40, 80, 80), seed=7, device=DEVICE) for _ in range(2)
    )
    for _ in range(2):  # the second step draws the next numbers
        want, got = plain_dropout(F.relu(z), rows), fused.after_relu(z, rows)
        assert torch.equal(got, want)
        grads = [torch.autograd.grad(y.square().sum(), z)[0] for y in (want, got)]
        assert torch.equal(*grads)
    assert torch.equal(plain_dropout.state, fused.state)


@pytest.mark.parametrize("loss", [None, 6.9, -0.0])
def test_fused_update_equals_the_formula(loss: float | None) -> None:
    weight, velocity, grad = (numbers(70, 3, seed=i).float() for i in range(3))
    want_v = 0.9 * velocity - 0.01 * grad - 5e-6 * weight
    want_w = weight + want_v
    checked = None if loss is None else torch.tensor(loss, device=DEVICE)
    launchers.sgd_update(weight, velocity, grad, 0.9, rates(0.01, 5e-6), checked)
    torch.testing.assert_close((weight, velocity), (want_w, want_v), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_update_with_a_loss_that_is_not_finite_changes_nothing(
    loss: float, dtype: torch.dtype
) -> None:
    weight, velocity, grad = (numbers(70, 3, seed=i).float() for i in range(3))
    before = weight.clone(), velocity.clone()
    bad_loss = torch.tensor(loss, dtype=dtype, device=DEVICE)
    launchers.sgd_update(weight, velocity, grad, 0.9, rates(0.01, 5e-6), bad_loss)
    assert torch.equal(weight, before[0]) and torch.equal(velocity, before[1])


@pytest.mark.usefixtures("_kernels_available")
def test_an_update_reads_its_rates_from_memory_that_stays_the_same() -> None:
    """As a captured update does at each replay; a rate of 0 freezes, momentum or not."""
    model = AlexNet("paper", 4, model=ModelConfig(width=0.5, input_size=64))
    optimizer = PaperSGD(model, load_recipe("paper").optimizer)
    weight = model.fc8.weight
    weight.grad = numbers(*weight.shape).float()
    memory = optimizer._rates_on_device()
    for lr in (0.1, 0.01, 0.0):
        before, velocity = weight.detach().clone(), optimizer.velocity(weight).clone()
        optimizer.set_rates(LearningRates(lr, lr))
        assert optimizer._rates_on_device() is memory
        at = [group["layer"] for group in optimizer.param_groups].index("fc8")
        launchers.sgd_update(
            weight.detach(), optimizer.velocity(weight), weight.grad, 0.9, memory[at], None
        )
        want = 0.9 * velocity - lr * weight.grad - lr * 0.0005 * before if lr else 0
        torch.testing.assert_close(weight.detach(), before + want, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("_kernels_available")
@pytest.mark.parametrize("recipe", ["paper", "code145"])
def test_training_step_equals_that_in_float64(recipe: str) -> None:
    images, labels = numbers(1, 3, 64, 64) * 2, torch.tensor([3], device=DEVICE)
    own = load_recipe(recipe)
    own.fc6.units = own.fc7.units = 256  # the interpreter is slow
    if recipe == "code145":  # as in definition 177 of the 2012 code: a step that is not fused
        own.conv4.after.append(LayerOp.dropout)
        own.conv_dropout_rate = 0.2

    def stepped(precision: str) -> dict[str, Tensor]:
        config = ModelConfig(width=0.5, input_size=64)
        model = AlexNet(own, 10, model=config, precision=precision)
        assert model.fused is (precision == "fp32")
        optimizer = PaperSGD(model, own.optimizer)
        optimizer.set_rates(LearningRates(1e-3, 2e-3))
        F.cross_entropy(model(images.to(model.types.parameters)), labels).backward()
        optimizer.step()
        return {name: weight.detach().double() for name, weight in model.named_parameters()}

    got = stepped("fp32")
    for name, want in stepped("fp64").items():
        assert (got[name] - want).norm() <= 1e-5 * want.norm(), name


def test_saved_tensors_in_another_layout_give_the_same_gradient() -> None:
    z = numbers(2, 16, 5, 5).float().contiguous(memory_format=torch.channels_last).requires_grad_()
    epilogue = Epilogue(relu=True, norm=NormParams(5, 1e-4, 0.75, 2.0), pool=Pool(3, 2))

    def grad() -> Tensor:
        (y,) = kernels.fused_epilogue([z], None, epilogue, 2, separate=False)
        return torch.autograd.grad(y.square().sum(), z)[0]

    want = grad()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone().contiguous(), lambda x: x):
        assert torch.equal(grad(), want)


def test_double_backward_is_rejected() -> None:
    z = numbers(1, 8, 3, 3).float().requires_grad_()
    (y,) = kernels.fused_epilogue(
        [z], None, Epilogue(norm=NormParams(5, 1e-4, 0.75, 2.0)), 1, separate=False
    )
    with pytest.raises(RuntimeError, match=r"double backward; set model\.fused = False"):
        torch.autograd.grad(y.sum(), z, create_graph=True)


@pytest.mark.usefixtures("_kernels_available")
def test_update_with_a_gradient_in_another_layout_is_the_same() -> None:
    model = AlexNet("paper", 4, model=ModelConfig(width=0.5, input_size=64))
    optimizer = PaperSGD(model, load_recipe("paper").optimizer)
    optimizer.set_rates(LearningRates(0.1, 0.1))
    weight, before = model.conv1.weight, model.conv1.weight.detach().clone()
    weight.grad = numbers(*weight.shape).float()  # NCHW, while the weight is channels last
    assert weight.grad.stride() != weight.stride()
    optimizer.step()
    want = before - 0.1 * weight.grad - 0.1 * 0.0005 * before
    torch.testing.assert_close(weight.detach(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_kernels_available")
def test_a_hook_on_a_fused_operation_sees_its_output() -> None:
    model = AlexNet("paper", 10, model=ModelConfig(width=0.5, input_size=64))
    images, state = 60 * numbers(1, 3, 64, 64).float(), model.random_state()
    fused, outputs = model(images), []
    for name in ("conv2_lrn", "fc7_dropout"):
        handle = getattr(model, name).register_forward_hook(lambda m, x, y: outputs.append(y))
        model.load_random_state(state)
        torch.testing.assert_close(model(images), fused, rtol=1e-4, atol=1e-6)
        handle.remove()
    assert len(outputs) == 2
    assert model._runs_kernels()
    model.mesh = Mesh(torch.device("meta"))  # as after model.to(…) another device
    assert not model._runs_kernels()


@pytest.mark.usefixtures("_kernels_available")
def test_a_replaced_operation_is_not_fused() -> None:
    model = AlexNet("paper", 10, model=ModelConfig(width=0.5, input_size=64))
    images = 60 * numbers(1, 3, 64, 64).float()
    model.conv1_pool = torch.nn.AvgPool2d(3, 2, ceil_mode=True)
    state, got = model.random_state(), model(images)
    assert not model.fused
    with torch.no_grad():
        model.load_random_state(state)
        torch.testing.assert_close(model(images), got)


@pytest.mark.usefixtures("_kernels_available")
def test_an_empty_batch_gives_zero_gradients() -> None:
    """A replica may get no images of the last batch of an epoch."""
    model = AlexNet("paper", 10, model=ModelConfig(width=0.5, input_size=64))
    model(torch.empty(0, 3, 64, 64, device=DEVICE)).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and not weight.grad.any(), name


@pytest.mark.usefixtures("_kernels_available")
def test_images_that_require_a_gradient_get_one() -> None:
    model = AlexNet("paper", 10, model=ModelConfig(width=0.5, input_size=64))
    images = numbers(1, 3, 64, 64).float().requires_grad_()
    model(images).sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0
