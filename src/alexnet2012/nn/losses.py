"""Cross-entropy and top-1 errors, from full logits or from each tower's shard of the classes.

Shapes: N images, K classes, k of them in this tower, T towers.
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
    """Summed cross-entropy and number of top-1 errors: [N, K], [N] → [], [].

    A tie for first place counts as a fraction of an error.
    """
    errors = misses(logits.detach(), labels, ks=(1,))[1]
    return F.cross_entropy(logits, labels, reduction="sum"), errors


def split_loss_and_errors(
    logits_shard: Tensor, labels: Tensor, own: Shard, comm: Communicator
) -> tuple[Tensor, Tensor]:
    """:func:`loss_and_errors` without gathering the logits: [N, k], [N] → [], []. Collective.

    ``own``: this tower's classes. Towers exchange four numbers per image instead of K/T, and
    nothing in backward. Source: Megatron-LM's vocabulary-parallel cross-entropy.
    """
    losses, errors = _SplitCrossEntropy.apply(logits_shard, labels, own, comm)  # type: ignore[no-untyped-call]
    return losses.sum(), errors.double().sum()


class _SplitCrossEntropy(torch.autograd.Function):
    """Forward: loss = log Σ exp(x) - x[label], Σ over the classes of all towers.

    Backward: gx = g·(softmax(x) - onehot(label)), for this tower's classes.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_shard: Tensor, labels: Tensor, own: Shard, comm: Communicator
    ) -> tuple[Tensor, Tensor]:
        x = F.pad(logits_shard, (0, 1), value=-torch.inf)  # a tower may hold no class at all
        is_own = (labels >= own.start) & (labels < own.stop)
        column = (labels - own.start).where(is_own, own.size)[:, None]
        maximum = x.amax(1)
        exp_sum = (x - maximum.clamp_min(torch.finfo(x.dtype).min)[:, None]).exp().sum(1)
        label_logit = x.gather(1, column)[:, 0].where(is_own, 0)
        ties = (x == maximum[:, None]).sum(1)
        local = torch.stack([maximum, exp_sum, label_logit, ties.to(x.dtype)])
        parts = comm.all_gather(local, "loss", "forward") if comm.towers > 1 else [local]
        maxima, exp_sums, label_logits, tie_counts = torch.stack(parts, 1)  # [T, N] each
        maximum = maxima.amax(0)
        log_sum = maximum + (exp_sums * (maxima - maximum).exp()).sum(0).log()
        label_logit = label_logits.sum(0)
        ties = (tie_counts * (maxima == maximum)).sum(0).clamp_min(1)
        errors = 1 - (label_logit == maximum) / ties  # ties share the first place
        ctx.save_for_backward(logits_shard, log_sum, column)
        ctx.mark_non_differentiable(errors)
        return log_sum - label_logit, errors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits_shard, log_sum, column = ctx.saved_tensors
        probabilities = F.pad((logits_shard - log_sum[:, None]).exp(), (0, 1))
        probabilities.scatter_add_(1, column, -torch.ones_like(log_sum)[:, None])
        return probabilities[:, :-1] * grads[0][:, None], None, None, None
