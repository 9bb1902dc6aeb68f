"""The C kernels compute what torch computes. Without them torch does; both are tested here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alexnet2012.nn import lrn
from alexnet2012.nn.kernels.epilogue import NormParams
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.utils import native

NORM = NormParams(size=5, scale=0.06, beta=0.75, k=2.0)
needs_kernels = pytest.mark.skipif(native.kernels() is None, reason=native.description())


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def output_and_gradient(
    x: Tensor, towers: int | None, grad_out: Tensor | None = None, norm: NormParams = NORM
) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = lrn.response_norm(x, norm, towers)
    grad_out = numbers(*x.shape, seed=1) if grad_out is None else grad_out
    (grad,) = torch.autograd.grad(y, x, grad_out.to(x.dtype))
    return y.detach(), grad


@pytest.fixture
def _without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "kernels", lambda: None)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 2, 5, 6, 8, 12, 16, 20, 32, 48, 96, 128, 131])
def test_lrn_has_the_errors_of_torchs_blocks(
    channels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64: 2^-22 of the largest result in float32, half a unit of rounding in bf16.

    Rows are not a multiple of a chunk, and the last channels of most do not fill a vector.
    """
    x = (10 * numbers(3, 2 * channels, 37, 31)).to(dtype)
    grad = numbers(*x.shape, seed=1).to(dtype)
    exact = output_and_gradient(x.double(), 2, grad)
    got = output_and_gradient(x, 2, grad)
    monkeypatch.setattr(native, "kernels", lambda: None)
    blocks = output_and_gradient(x, 2, grad)
    for want, ours, theirs in zip(exact, got, blocks, strict=True):
        rounding = 0.5 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
        bound = (2.0**-21 + rounding) * want.abs().max()
        assert (ours.double() - want).abs().max() <= bound
        assert (theirs.double() - want).abs().max() <= bound


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 6, 9, 13), (2, 20, 1, 4), (1, 3, 2, 2), (5, 17, 31, 7)])
def test_spatial_norm_has_the_errors_of_torchs_blocks(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, grad = ((10 * numbers(*shape, seed=seed)).to(dtype) for seed in range(2))
    exact = output_and_gradient(x.double(), None, grad)
    got = output_and_gradient(x, None, grad)
    monkeypatch.setattr(native, "kernels", lambda: None)
    blocks = output_and_gradient(x, None, grad)
    for want, ours, theirs in zip(exact, got, blocks, strict=True):
        rounding = 0.5 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
        bound = (2.0**-21 + rounding) * want.abs().max()
        assert (ours.double() - want).abs().max() <= bound
        assert (theirs.double() - want).abs().max() <= bound


@needs_kernels
def test_the_kernel_is_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, calls = numbers(2, 16, 3, 3), []
    kernels = native.kernels()
    assert kernels is not None
    monkeypatch.setattr(kernels, "_lrn", lambda *args: calls.append(args))
    output_and_gradient(x, 2)
    assert len(calls) == 2


@needs_kernels
def test_a_result_does_not_depend_on_its_neighbours_in_memory() -> None:
    """The last vector of a row is loaded with the numbers that follow, and stored over them."""
    x = numbers(1, 12, 200, 50)
    whole = output_and_gradient(x, 2)
    x[:, :, 100] = torch.nan
    damaged = output_and_gradient(x, 2)
    for before, after in zip(whole, damaged, strict=True):
        assert torch.equal(before[:, :, :100], after[:, :, :100])
        assert torch.equal(before[:, :, 101:], after[:, :, 101:])
        assert after[:, :, 100].isnan().all()


@needs_kernels
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e20])
def test_numbers_that_are_not_finite_are_not_hidden(value: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(1, 16, 1, 1, dtype=dtype)
        x[0, 3] = value
        y, _ = output_and_gradient(x, 1)
        if value == 1e20:  # its square overflows: the limit of x·d^-¾ is 0
            assert y[0, 3].abs() < 1e-5 and y.isfinite().all()
        else:
            assert not y[0, 3].isfinite()


@needs_kernels
def test_lrn_of_no_images_is_empty() -> None:
    y, grad = output_and_gradient(torch.empty(0, 16, 4, 4), 2)
    assert y.shape == grad.shape == (0, 16, 4, 4)


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_lrn_does_not_depend_on_the_number_of_threads(threads: int) -> None:
    x = numbers(5, 96, 27, 27)
    want = output_and_gradient(x, 2)
    torch.set_num_threads(threads)
    assert all(map(torch.equal, want, output_and_gradient(x, 2)))


@pytest.mark.parametrize("norm", [NORM._replace(size=3), NORM._replace(beta=0.5)])
def test_other_windows_and_powers_are_computed_by_torch(norm: NormParams) -> None:
    x = numbers(2, 16, 5, 5)
    want, got = (output_and_gradient(y, 2, norm=norm) for y in (x.double(), x))
    torch.testing.assert_close(got, tuple(t.float() for t in want), rtol=1e-5, atol=1e-6)


class _OneLayer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Linear(1000, 37)


@needs_kernels
@pytest.mark.parametrize("decay", [0.0, 5e-4])
def test_the_update_equals_torchs_bit_for_bit(
    decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights() -> list[Tensor]:
        model = _OneLayer()
        torch.nn.init.constant_(model.conv1.bias, 0.1)
        model.conv1.weight.data = numbers(37, 1000)
        from alexnet2012.config.validation import load_recipe
        from alexnet2012.nn.lr_schedule import LearningRates

        config = load_recipe("paper").optimizer
        config.weight_decay = decay
        optimizer = PaperSGD(model, config)
        optimizer.set_rates(LearningRates(0.01, 0.02))
        for step in range(3):
            for parameter in model.parameters():
                parameter.grad = numbers(*parameter.shape, seed=step)
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    got = weights()
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert all(map(torch.equal, got, weights()))


@pytest.mark.usefixtures("_without_kernels")
def test_without_the_kernels_torch_computes() -> None:
    y, grad = output_and_gradient(numbers(2, 16, 5, 5), 2)
    assert y.isfinite().all() and grad.isfinite().all()


def test_an_installation_without_a_compiler_says_so(tmp_path: Path) -> None:
    """The package is copied without its library, as it is installed where nothing compiles."""
    source = Path(native.__file__)
    (tmp_path / "native.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    code = "import native; print(native.description())"
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert printed.stdout == (
        "torch (C kernels not built: no C compiler when alexnet2012 was installed)\n"
    )


@needs_kernels
@pytest.mark.parametrize("count", [0, 1, 6, 16384, 16391, 50_003])
def test_a_digest_is_the_sum_and_the_sum_by_place(count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    words = torch.randint(-(2**31), 2**31, (count,), generator=draw, dtype=torch.int32)
    kernels = native.kernels()
    assert kernels is not None
    plain = sum(words.tolist())
    by_place = sum(place * word for place, word in enumerate(words.tolist()))
    assert kernels.digest(words) == (plain % 2**64, by_place % 2**64)
