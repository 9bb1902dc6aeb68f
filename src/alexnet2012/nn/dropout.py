"""Dropout with masks that do not depend on how a batch or a layer is split over processes.

Shapes: N images, U units of the layer in this process, H×W pixels of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alexnet2012.nn.kernels.autograd import ReluDropout
from alexnet2012.utils.rng import GAMMA, MIX, int64
from alexnet2012.utils.shard import Shard


class Dropout(nn.Module):
    """Zeroes units in training; in evaluation scales them by the keep probability instead.

    A unit's random number depends on its position in the global batch and in the full layer, so
    every mesh drops the same units while each process draws only its own numbers.

    ``rate``: probability of dropping a unit. ``units``: this process's shard of the layer's units,
    which after a convolution are those of its maps, by channel, row and column.

    Source: paper sec. 4.2.
    """

    state: Tensor

    def __init__(self, rate: float, units: Shard, seed: int, device: torch.device) -> None:
        super().__init__()
        self.rate, self.units = rate, units
        self._threshold = int64(round(rate * 2**64) - 2**63)
        # State of the stream before the next step; checkpoints store it apart from the parameters.
        self.register_buffer("state", torch.tensor([seed], device=device), persistent=False)

    def forward(self, x: Tensor, rows: Shard) -> Tensor:
        """[N, U] or [N, C, H, W] → the same; ``rows``: those of the global batch that ``x`` is."""
        if not self.training:
            return x * (1 - self.rate)
        kept = draws(self.state, rows, self.units) >= self._threshold
        self._advance(rows)
        return x * kept.view(x.shape)

    def after_relu(self, z: Tensor, rows: Shard) -> Tensor:
        """``dropout(relu(z))`` as one GPU kernel; in training only."""
        position = (rows.start, self.units.start, self.units.total)
        x: Tensor = ReluDropout.apply(z, self.state, position, self._threshold)  # type: ignore[no-untyped-call]
        self._advance(rows)
        return x

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"

    def rewind(self, rows: Shard) -> None:
        """Undo the advance of one forward pass: the next pass draws for the same global batch."""
        self._advance(rows, passes=-1)

    def _advance(self, rows: Shard, passes: int = 1) -> None:
        numbers = passes * rows.total * self.units.total
        self.state.add_(torch.full_like(self.state, GAMMA), alpha=numbers)


def draws(state: Tensor, rows: Shard, columns: Shard) -> Tensor:
    """A shard of the next rows.total × columns.total numbers of a SplitMix64 stream, row by row.

    State [1] → [rows.size, columns.size], uniform over int64. SplitMix64's last shift is omitted:
    it does not change the 31 highest bits.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    row, column = (torch.arange(s.start, s.stop, device=state.device) for s in (rows, columns))
    z = (row * columns.total + 1)[:, None] * GAMMA + (column * GAMMA + state)
    for shift, factor in MIX:
        z.bitwise_xor_((z >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(factor)
    return z
