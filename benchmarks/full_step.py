"""How fast is a full-size training step, what do exchanges cost, and how close is it to the limit?

    python benchmarks/full_step.py [batch=128] [steps=4] [rounds=3] [arms=all] [precision=all]

Compares our step on one and on two processes, in the precisions of the device, with its peers in
the same precision (peers.py): first the paper's network as a careful user writes it, with
torch.compile; then in plain PyTorch; then torchvision's AlexNet if installed (a different network:
one tower, no normalisation). Variants take turns (A B C A B C …) and are compared within a round,
because the speed of a shared machine drifts. The variant ``no exchanges`` makes a local copy in
place of each exchange and alternates with ours step by step in the same processes: the difference
in time is the cost of exchanges. The time in exchanges includes waiting for the peer and is the
mean over the processes. The limit is the time that the step's multiplications alone would take at
the rate of a square matrix product in the same processes and precision. The first step of each
variant is timed apart, and the longest of the rounds is shown: in it the compiled peer compiles.

On a GPU a step is the mean of twenty consecutive ones, and all variants of a precision take turns
in one process. Our step is a CUDA graph, as in training, and reads the loss; the compiled peer
records graphs, too (``mode="reduce-overhead"``); the others are launched kernel by kernel. There is
also a floor: layer by layer the time of the step's operations or of its bytes, whichever is longer,
at the rates of that matrix product and of a copy (arms.floor_s).

Prints images/s, ratios to the peers and percentages of the limit; writes results/full_step.json.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
from arms import (
    NO_EXCHANGES,
    OURS,
    Arm,
    Timed,
    arms,
    floor_s,
    layer_flops,
    time_together,
)
from peers import COMPILED, PEERS, PLAIN, empty_compiler_cache
from record import given, keep, show

from alexnet2012.config.enums import Precision
from alexnet2012.nn.precision import DTYPES


def together(chosen: Sequence[Arm]) -> list[list[Arm]]:
    """Group ours by processes and precision; any other variant is a group of its own.

    On a GPU all are grouped: processes take long to start, and do not affect each other's memory.
    """
    groups: dict[Any, list[Arm]] = {}
    for arm in chosen:
        ours = arm.kind in (OURS, NO_EXCHANGES) or torch.cuda.is_available()
        groups.setdefault((arm.processes, arm.precision) if ours else arm, []).append(arm)
    return list(groups.values())


def row_of(arm: Arm, rounds: list[Timed], batch: int, flops: int) -> dict[str, Any]:
    """The row of a variant; ``flops`` are those of the whole batch."""
    limits = [100 * flops / one.median_s / one.matrix_flops for one in rounds]
    return {
        "arm": arm.name,
        "images_per_s": batch / statistics.median(one.median_s for one in rounds),
        "first_step_s": max(one.first_step_s for one in rounds),
        "matrix_gflop_per_s": statistics.median(one.matrix_flops for one in rounds) / 1e9,
        "of_limit_pct": statistics.median(limits),
        "of_floor_pct": statistics.median(
            100 * floor(arm, one, batch) / one.median_s for one in rounds
        ),
    }


def ratios(arm: Arm, found: dict[Arm, list[Timed]]) -> dict[str, Any]:
    """Speed relative to each peer in the same precision: median and range over the rounds."""
    row: dict[str, Any] = {}
    for peer in PEERS:
        peer_rounds = found.get(Arm(peer, 1, arm.precision))
        if peer_rounds is not None:
            pairs = zip(found[arm], peer_rounds, strict=True)
            values = [other.median_s / one.median_s for one, other in pairs]
            row[f"ratio_to_{short(peer)}"] = statistics.median(values)
            row[f"range_of_ratio_to_{short(peer)}"] = [min(values), max(values)]
    return row


def short(peer: str) -> str:
    return peer.split()[0]


def floor(arm: Arm, one: Timed, batch: int) -> float:
    number_bytes = DTYPES[Precision(arm.precision)].activations.itemsize
    return floor_s(batch, number_bytes, one.matrix_flops, one.copied_bytes)


def exchange_row(arm: Arm, rounds: list[Timed], local: list[Timed]) -> dict[str, Any]:
    """Percentage of time in exchanges, and time compared with the steps without exchanges."""
    shares, longer = [], []
    for one, beside in zip(rounds, local, strict=True):
        shares += one.shares
        longer += [100 * (s / a - 1) for s, a in zip(one.step_s, beside.step_s, strict=True)]
    return {
        "arm": arm.name,
        "exchange_pct": statistics.median(shares),
        "exchange_quartiles": quartiles(shares),
        "longer_than_apart_pct": statistics.median(longer),
        "longer_quartiles": quartiles(longer),
    }


def quartiles(values: list[float]) -> list[float]:
    """Lower and upper quartile; a single value is both."""
    if len(values) == 1:
        return 2 * values
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def main() -> None:
    words = given(batch=128, steps=4, rounds=3, arms="all", precision="all")
    load_before = os.getloadavg()[0]
    kinds = {arm.kind for arm in arms()}
    if words.arms not in ("all", *kinds):
        sys.exit(f"arms={words.arms}: must be all or one of {sorted(kinds)}")
    precisions = {arm.precision for arm in arms()}
    if words.precision not in ("all", *precisions):
        sys.exit(f"precision={words.precision}: must be all or one of {sorted(precisions)}")
    chosen = [
        arm
        for arm in arms()
        if words.precision in ("all", arm.precision)
        and (words.arms in ("all", arm.kind) or arm.kind in (COMPILED, PLAIN))
    ]
    found: dict[Arm, list[Timed]] = {arm: [] for arm in chosen}
    with empty_compiler_cache():
        for _ in range(words.rounds):
            for alike in together(chosen):
                of_round = time_together(alike, words.batch, words.steps)
                for arm, timed_arm in zip(alike, of_round, strict=True):
                    found[arm].append(timed_arm)
    flops = words.batch * sum(layer_flops().values())
    rows = [
        row_of(arm, rounds, words.batch, flops) | ratios(arm, found)
        for arm, rounds in found.items()
    ]
    columns = {"": "{arm}", "images/s": "{images_per_s:.1f}"}
    for peer in map(short, PEERS):
        key = f"ratio_to_{peer}"
        if key in rows[0]:
            columns[f"ratio to {peer}"] = f"{{{key}:.2f}}"
            columns[f"range ({peer})"] = f"{{range_of_{key}[0]:.2f}} - {{range_of_{key}[1]:.2f}}"
    columns |= {
        "first step, s": "{first_step_s:.1f}",
        "matrix product, GFLOP/s": "{matrix_gflop_per_s:.0f}",
        "% of limit": "{of_limit_pct:.0f}%",
        **({"% of floor": "{of_floor_pct:.0f}%"} if torch.cuda.is_available() else {}),
    }
    show(f"Full-size step, batch {words.batch}, median of {words.rounds} rounds", columns, rows)
    exchanging = [
        exchange_row(arm, rounds, found[arm._replace(kind=NO_EXCHANGES)])
        for arm, rounds in found.items()
        if arm.kind == OURS and arm._replace(kind=NO_EXCHANGES) in found
    ]
    waiting = {  # on CUDA the host sees only the launch of an exchange
        "in exchanges": "{exchange_pct:.1f}%",
        "quartiles": "{exchange_quartiles[0]:.1f} - {exchange_quartiles[1]:.1f}%",
    }
    columns = {
        "": "{arm}",
        **({} if torch.cuda.is_available() else waiting),
        "slower than without": "{longer_than_apart_pct:.1f}%",
        "its quartiles": "{longer_quartiles[0]:.1f} - {longer_quartiles[1]:.1f}%",
    }
    if exchanging:
        title = f"Cost of exchanges, median of {words.rounds * words.steps} steps"
        show(title, columns, exchanging)
    question = (
        "full-size training step, compared with compiled and plain PyTorch and the rate of matrix "
        "products"
    )
    found_rows = {"rows": rows, "exchanges": exchanging}
    keep(question, ["torch"], load_before, **vars(words), step_flops=flops, **found_rows)


if __name__ == "__main__":
    main()
