"""The loss of a batch: of logits that every tower has gathered, or of each tower's own classes.

Legend: N images, K classes, k of them here, T towers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet2012.distributed.collectives import Communicator
from alexnet2012.utils.metrics import misses
from alexnet2012.utils.shard import Shard


def loss_and_errors(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy and number of top-1 errors: [N, K], [N] → [], []."""
    errors = misses(logits.detach(), labels, ks=(1,))[1]
    return F.cross_entropy(logits, labels, reduction="sum"), errors


def split_loss_and_errors(
    logits_shard: Tensor, labels: Tensor, own: Shard, comm: Communicator
) -> tuple[Tensor, Tensor]:
    """The same without gathering the logits: [N, k], [N] → [], []. Collective.

    Towers tell each other four numbers an image instead of K/T, and nothing backward.
    Source: Megatron-LM's vocabulary-parallel cross-entropy.
    """
    losses, errors = _SplitCrossEntropy.apply(logits_shard, labels, own, comm)  # type: ignore[no-untyped-call]
    return losses.sum(), errors.double().sum()


class _SplitCrossEntropy(torch.autograd.Function):
    """loss = log Σ exp(x) - x_label. Backward: gx = g·(softmax - one-hot), of the own classes."""

    @staticmethod
    def forward(
        ctx: Any, logits_shard: Tensor, labels: Tensor, own: Shard, comm: Communicator
    ) -> tuple[Tensor, Tensor]:
        x = F.pad(logits_shard, (0, 1), value=-torch.inf)  # a tower may have no class at all
        here = (labels >= own.start) & (labels < own.stop)
        column = (labels - own.start).where(here, own.size)[:, None]
        top = x.amax(1)
        total = (x - top.clamp_min(torch.finfo(x.dtype).min)[:, None]).exp().sum(1)
        of_label = x.gather(1, column)[:, 0].where(here, 0)
        tied = (x == top[:, None]).sum(1)
        found = torch.stack([top, total, of_label, tied.to(x.dtype)])
        every = found[None]
        if comm.towers > 1:
            every = torch.stack(comm.all_gather(found, "loss", "forward"))
        tops, totals, of_labels, ties = every.unbind(1)  # [T, N] each
        highest = tops.amax(0)
        log_sum = highest + (totals * (tops - highest).exp()).sum(0).log()
        of_label = of_labels.sum(0)
        shared = (ties * (tops == highest)).sum(0).clamp_min(1)  # a first place may be shared
        errors = 1 - (of_label == highest) / shared
        ctx.save_for_backward(logits_shard, log_sum, column)
        ctx.mark_non_differentiable(errors)
        return log_sum - of_label, errors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits_shard, log_sum, column = ctx.saved_tensors
        probabilities = F.pad((logits_shard - log_sum[:, None]).exp(), (0, 1))
        probabilities.scatter_add_(1, column, -torch.ones_like(log_sum)[:, None])
        return probabilities[:, :-1] * grads[0][:, None], None, None, None
