"""The class-parallel loss in one process, compared with torch's cross-entropy.

Tolerance: the same exponentials are added in another order, an error of a few eps of the loss.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alexnet2012.distributed.collectives import Communicator
from alexnet2012.nn.losses import loss_and_errors, split_loss_and_errors
from alexnet2012.utils.shard import Shard

BOUND = {"rtol": 1e-12, "atol": 1e-12}


def both(logits: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    whole = Shard(0, logits.shape[1], logits.shape[1])
    return loss_and_errors(logits, labels), split_loss_and_errors(
        logits, labels, whole, Communicator()
    )


@settings(deadline=None, max_examples=60)
@given(
    images=st.integers(1, 5),
    classes=st.integers(1, 7),
    scale=st.sampled_from([0.0, 1.0, 300.0]),  # only ties; usual; beyond exp's range
    seed=st.integers(0, 1000),
)
def test_split_loss_equals_torchs_loss_gradient_and_errors(
    images: int, classes: int, scale: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, classes, generator=draw, dtype=torch.float64)
    logits.requires_grad_()
    labels = torch.randint(classes, (images,), generator=draw)
    (want, errors_wanted), (got, errors) = both(logits, labels)
    torch.testing.assert_close(got, want, **BOUND)
    assert abs(errors - errors_wanted) < 1e-6  # fractions of a tie are float32
    want_grad, got_grad = (torch.autograd.grad(3 * loss, logits)[0] for loss in (want, got))
    torch.testing.assert_close(got_grad, want_grad, **BOUND)


def test_a_tie_for_first_place_counts_as_a_fraction_of_an_error() -> None:
    logits = torch.tensor([[2.0, 2.0, 1.0], [2.0, 2.0, 2.0], [1.0, 2.0, 0.0]])
    (_, wanted), (_, errors) = both(logits, torch.tensor([0, 2, 0]))
    assert abs(errors - wanted) < 1e-6
    assert abs(errors - (1 / 2 + 2 / 3 + 1)) < 1e-6


def test_a_nan_logit_is_an_error_and_gives_a_nan_loss() -> None:
    logits = torch.tensor([[float("nan"), 1.0], [3.0, 1.0]])
    (_, wanted), (loss, errors) = both(logits, torch.tensor([1, 0]))
    assert torch.isnan(loss)
    assert errors == wanted == 1
