"""Layers of one process, each compared with torch's own or a plain formula, in float64.

Tolerance: both sides add the same terms in another order, with errors of some 1e-15 of the result;
1e-12 leaves room for sums of a few hundred terms. The errors to be detected are above 1e-6.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alexnet2012.config.schema import ConvConfig, NormConfig
from alexnet2012.nn import lrn
from alexnet2012.nn.dropout import Dropout, draws
from alexnet2012.nn.layers import ColumnParallelConv2d, ColumnParallelLinear
from alexnet2012.nn.lrn import local_response_norm, spatial_norm
from alexnet2012.nn.map_sizes import overhang_pixels
from alexnet2012.utils.shard import Shard, shard_of

CPU = torch.device("cpu")
BOUND = {"rtol": 1e-12, "atol": 1e-12}
# A large alpha, so that the denominator varies; the paper's 1e-4 would hide a wrong window.
LRN = NormConfig(size=5, alpha=0.3, beta=0.75, k=2.0, divide_by_window=False)
SPATIAL = NormConfig(size=5, alpha=0.3, beta=0.75, k=1.0, divide_by_window=True)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(
    channels=st.integers(1, 9),
    towers=st.integers(1, 3),
    size=st.sampled_from([1, 3, 5, 7]),
    divide=st.booleans(),
)
def test_lrn_equals_torchs_within_each_tower(
    channels: int, towers: int, size: int, divide: bool
) -> None:
    norm = NormConfig(size=size, alpha=0.3, beta=0.75, k=2.0, divide_by_window=divide)
    x = numbers(2, channels * towers, 3, 2).requires_grad_()
    torchs_alpha = 0.3 if divide else 0.3 * size  # torch divides by the window
    want = torch.cat(
        [F.local_response_norm(own, size, torchs_alpha, 0.75, 2.0) for own in x.chunk(towers, 1)],
        1,
    )
    got = local_response_norm(x, norm, towers)
    torch.testing.assert_close(got, want, **BOUND)
    grad_out = numbers(*want.shape, seed=1)
    (want_grad,) = torch.autograd.grad(want, x, grad_out)
    (got_grad,) = torch.autograd.grad(got, x, grad_out)
    torch.testing.assert_close(got_grad, want_grad, **BOUND)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_lrn_rounds_its_result_once(precision: torch.dtype) -> None:
    """Sums, roots and the gradient are float32, off by a few 2^-24; then the result is rounded.

    Gradient errors are relative to the largest: small gradients are differences of larger terms.
    """
    exact = numbers(3, 20, 9, 9).to(precision).double().requires_grad_()
    rounded = exact.detach().to(precision).requires_grad_()
    grad_out = numbers(3, 20, 9, 9, seed=1).to(precision)
    want, got = (local_response_norm(x, LRN, 2) for x in (exact, rounded))
    assert got.dtype == precision
    eps = torch.finfo(precision).eps
    torch.testing.assert_close(got.double(), want, rtol=0.5 * eps + 1e-6, atol=0)
    (want_grad,) = torch.autograd.grad(want, exact, grad_out.double())
    (got_grad,) = torch.autograd.grad(got, rounded, grad_out)
    error = (got_grad.double() - want_grad).abs().max() / want_grad.abs().max()
    assert error < 0.5 * eps + 2e-6


@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_lrn_does_not_depend_on_the_block_size(
    monkeypatch: pytest.MonkeyPatch, beta: float
) -> None:
    norm = NormConfig(size=5, alpha=0.3, beta=beta, k=2.0, divide_by_window=False)
    x = numbers(3, 6, 5, 4).requires_grad_()

    def result_and_gradient() -> tuple[Tensor, Tensor]:
        y = local_response_norm(x, norm, 2)
        return y, torch.autograd.grad(y, x, numbers(*y.shape, seed=1))[0]

    whole = result_and_gradient()
    for block in (1, 7 * 6, 59 * 6):
        monkeypatch.setattr(lrn, "BLOCK", block)
        assert all(map(torch.equal, result_and_gradient(), whole))


def test_lrn_gradient_passes_gradcheck() -> None:
    x = numbers(2, 6, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: local_response_norm(x, LRN, 2), x)


def test_lrn_does_not_depend_on_the_memory_layout() -> None:
    x = numbers(2, 6, 4, 4)
    got = local_response_norm(x.to(memory_format=torch.channels_last), LRN, 2)
    torch.testing.assert_close(got, local_response_norm(x, LRN, 2), rtol=0, atol=0)


def test_lrn_does_not_modify_its_input_or_the_incoming_gradient() -> None:
    x, grad = numbers(1, 6, 2, 2).requires_grad_(), numbers(1, 6, 2, 2, seed=1)
    x_before, grad_before = x.detach().clone(), grad.clone()
    local_response_norm(x, LRN, 1).backward(grad)
    assert torch.equal(x, x_before)
    assert torch.equal(grad, grad_before)


def test_lrn_windows_never_cross_the_towers() -> None:
    x = numbers(1, 8, 2, 2)
    changed = x.clone()
    changed[:, 4:] *= 10  # the second tower's maps
    one_tower, two_towers = (local_response_norm(changed, LRN, towers) for towers in (1, 2))
    before = local_response_norm(x, LRN, 2)
    assert torch.equal(two_towers[:, :4], before[:, :4])
    # Windows of a single tower include the changed maps.
    assert (one_tower[:, 2:4] - before[:, 2:4]).abs().max() > 1e-2
    torch.testing.assert_close(one_tower[:, :2], two_towers[:, :2], **BOUND)  # beyond any window


def test_spatial_norm_sums_a_square_of_the_same_map() -> None:
    x = numbers(2, 3, 7, 6)
    want = torch.empty_like(x)
    for row in range(7):
        for column in range(6):
            square = x[:, :, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
            sums = square.square().sum((2, 3))
            want[:, :, row, column] = x[:, :, row, column] / (1 + 0.3 / 25 * sums) ** 0.75
    torch.testing.assert_close(spatial_norm(x, SPATIAL), want, **BOUND)


@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_spatial_norm_gradient_passes_gradcheck(beta: float) -> None:
    norm = NormConfig(size=3, alpha=0.3, beta=beta, k=1.0, divide_by_window=True)
    x = numbers(2, 3, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spatial_norm(x, norm), x)


def test_spatial_norm_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x = numbers(5, 2, 7, 6).requires_grad_()

    def result_and_gradient() -> tuple[Tensor, Tensor]:
        y = spatial_norm(x, SPATIAL)
        return y, torch.autograd.grad(y, x, numbers(*y.shape, seed=1))[0]

    whole = result_and_gradient()
    for images in (1, 2):
        monkeypatch.setattr(lrn, "BLOCK", images * x[0].numel())
        assert all(map(torch.equal, result_and_gradient(), whole))


def test_spatial_norm_without_divide_by_window_uses_the_sum() -> None:
    plain = NormConfig(size=3, alpha=0.3, beta=0.5, k=1.0, divide_by_window=False)
    x = torch.full((1, 1, 3, 3), 2.0, dtype=torch.float64)
    centre = spatial_norm(x, plain)[0, 0, 1, 1]
    assert float(centre) == pytest.approx(2 / (1 + 0.3 * 9 * 4) ** 0.5, rel=1e-12)


@given(
    size=st.integers(1, 300),
    kernel=st.integers(1, 13),
    stride=st.integers(1, 7),
    pad=st.integers(0, 3),
)
def test_overhang_rounds_the_number_of_windows_up(
    size: int, kernel: int, stride: int, pad: int
) -> None:
    if size + 2 * pad < kernel:
        return
    extra = overhang_pixels(size, kernel, stride, pad)
    whole, rest = divmod(size + 2 * pad - kernel, stride)
    assert 0 <= extra < stride
    assert (size + 2 * pad + extra - kernel) // stride == whole + (rest > 0)


def conv(config: ConvConfig, rows: int, channels: int, groups: int = 1) -> ColumnParallelConv2d:
    layer = ColumnParallelConv2d(config, shard_of(rows, 1, 0), channels, groups).double()
    layer.init_parameters(0.1, 0.5, torch.Generator().manual_seed(0))
    return layer


def test_conv1_of_the_2012_code_pads_3_pixels_right_and_below() -> None:
    config = ConvConfig(kernels=4, kernel_size=11, stride=4, padding=0, overhang=True)
    layer, x = conv(config, 4, 3), numbers(1, 3, 224, 224)
    assert overhang_pixels(224, 11, 4, 0) == 3
    padded = torch.zeros(1, 3, 227, 227, dtype=torch.float64)
    padded[..., :224, :224] = x
    want = F.conv2d(padded, layer.weight, layer.bias, stride=4)
    assert want.shape[-2:] == (55, 55)
    torch.testing.assert_close(layer(x), want, rtol=0, atol=0)


def test_conv1_of_the_paper_pads_2_pixels_on_each_side() -> None:
    config = ConvConfig(kernels=4, kernel_size=11, stride=4, padding=2)
    layer, x = conv(config, 4, 3), numbers(1, 3, 224, 224)
    want = F.conv2d(F.pad(x, (2, 2, 2, 2)), layer.weight, layer.bias, stride=4)
    assert want.shape[-2:] == (55, 55)
    torch.testing.assert_close(layer(x), want, **BOUND)


def test_grouped_convolution_reads_each_towers_own_maps() -> None:
    config = ConvConfig(kernels=6, kernel_size=3, padding=1)
    layer, x = conv(config, 6, 4, groups=2), numbers(2, 8, 5, 5)
    want = torch.cat(
        [
            F.conv2d(own, layer.weight[rows], layer.bias[rows], padding=1)
            for own, rows in ((x[:, :4], slice(0, 3)), (x[:, 4:], slice(3, 6)))
        ],
        1,
    )
    torch.testing.assert_close(layer(x), want, **BOUND)


def test_grouped_linear_layer_is_block_diagonal() -> None:
    layer = ColumnParallelLinear(shard_of(6, 1, 0), (4,), groups=2).double()
    layer.init_parameters(1.0, 0.5, torch.Generator().manual_seed(0))
    x = numbers(3, 8).requires_grad_()
    blocks = torch.block_diag(layer.weight[:3], layer.weight[3:])
    want, got = F.linear(x, blocks, layer.bias), layer(x)
    torch.testing.assert_close(got, want, **BOUND)
    grad_out, inputs = numbers(3, 6, seed=1), (x, layer.weight, layer.bias)
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs, grad_out),
        torch.autograd.grad(want, inputs, grad_out),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, **BOUND)


def test_initial_values_of_shards_are_rows_of_the_full_weight() -> None:
    def initial_weight(shards: int, index: int) -> Tensor:
        layer = ColumnParallelLinear(shard_of(7, shards, index), (5,), groups=1)
        layer.init_parameters(0.3, 1.0, torch.Generator().manual_seed(4))
        assert (layer.bias == 1).all()
        return layer.weight.detach()

    shards = torch.cat([initial_weight(2, 0), initial_weight(2, 1)])
    assert torch.equal(shards, initial_weight(1, 0))


def dropout_mask(
    rows: tuple[int, int, int], units: tuple[int, int, int], rate: float = 0.5
) -> Tensor:
    """Dropout of ones, seed 9; (total, shards, index) of rows and of units."""
    own_rows, own_units = shard_of(*rows), shard_of(*units)
    layer = Dropout(rate, own_units, 9, CPU)
    return layer(torch.ones(own_rows.size, own_units.size, dtype=torch.float64), own_rows)


@given(
    rows=st.integers(1, 12), units=st.integers(1, 12), replicas=st.integers(1, 4),
    towers=st.integers(1, 4),
)  # fmt: skip
def test_dropout_masks_of_all_shards_form_the_full_mask(
    rows: int, units: int, replicas: int, towers: int
) -> None:
    shards = [
        torch.cat([dropout_mask((rows, replicas, r), (units, towers, t)) for t in range(towers)], 1)
        for r in range(replicas)
    ]
    assert torch.equal(torch.cat(shards), dropout_mask((rows, 1, 0), (units, 1, 0)))


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_drops_at_its_rate_without_rescaling(rate: float) -> None:
    kept = dropout_mask((400, 1, 0), (500, 1, 0), rate)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    # 200,000 draws have a standard error of 0.001; 0.006 is more than five of them.
    assert float(kept.mean()) == pytest.approx(1 - rate, abs=0.006)


def test_dropout_draws_a_new_mask_each_step_whatever_rows_it_holds() -> None:
    layers = [Dropout(0.5, shard_of(50, 1, 0), 9, CPU) for _ in range(2)]
    full, empty = shard_of(4, 1, 0), shard_of(4, 5, 4)
    assert empty.size == 0
    first = layers[0](torch.ones(4, 50), full)
    layers[1](torch.ones(0, 50), empty)  # a replica without images in this step
    second = [layer(torch.ones(4, 50), full) for layer in layers]
    assert torch.equal(*second)
    assert not torch.equal(first, second[0])


def test_dropout_in_evaluation_halves_outputs_and_draws_nothing() -> None:
    layer = Dropout(0.5, shard_of(3, 1, 0), 9, CPU).eval()
    before, x = layer.state.clone(), numbers(2, 3)
    assert torch.equal(layer(x, shard_of(2, 1, 0)), 0.5 * x)
    assert torch.equal(layer.state, before)


def test_dropout_numbers_are_splitmix64() -> None:
    """The first numbers of seed 1234567, as published with several implementations."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    got = draws(torch.tensor([1234567]), shard_of(2, 1, 0), shard_of(2, 1, 0)).flatten()
    assert [number % 2**64 >> 33 for number in got.tolist()] == [number >> 33 for number in known]


def test_strided_grouped_convolution_is_not_taken_for_space_to_depth() -> None:
    """Four towers at stride 2: the input has 2² times a kernel's channels, like blocks would."""
    config = ConvConfig(kernels=8, kernel_size=3, stride=2, padding=1)
    layer = ColumnParallelConv2d(config, Shard(0, 8, 8), kernel_channels=3, groups=4)
    layer.init_parameters(0.1, 0.5, torch.Generator().manual_seed(0))
    x = torch.randn(2, 12, 9, 9)
    want = F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1, groups=4)
    assert torch.equal(layer(x), want)


def test_functional_call_uses_the_given_weights() -> None:
    layer = ColumnParallelLinear(Shard(0, 3, 3), (4,), groups=1)
    layer.init_parameters(0.1, 0.5, torch.Generator().manual_seed(0))
    twice = {"weight": 2 * layer.weight, "bias": layer.bias}
    x = torch.ones(2, 4)
    got = torch.func.functional_call(layer, twice, (x,))
    assert torch.equal(got, F.linear(x, 2 * layer.weight, layer.bias))
