"""How does the speed of a step depend on the batch size and the width of the network?

    python benchmarks/scaling.py [batches=8,32,128,256] [widths=0.125,0.25,0.5] [batch=128]
                                 [steps=2] [rounds=3] [precision=fp32]

Our step on one process and on two, for the full-size network at several batch sizes and for
narrower networks at one ``batch``. Variants take turns; each is compared with one process of the
same width and batch size in the same round. The limit is that of benchmarks/full_step.py: the
step's multiplications at the rate of a square matrix product. Prints a table and writes
results/scaling.json.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from typing import Any, NamedTuple

from arms import OURS, Arm, Timed, arms, layer_flops, time_together
from record import given, keep, show


class Case(NamedTuple):
    width: float
    batch: int
    processes: int


def main() -> None:
    words = given(
        batches="8,32,128,256",
        widths="0.125,0.25,0.5",
        batch=128,
        steps=2,
        rounds=3,
        precision="fp32",
    )
    load_before = os.getloadavg()[0]
    nets = [(float(width), words.batch) for width in words.widths.split(",")]
    nets += [(1.0, int(batch)) for batch in words.batches.split(",")]
    counts = sorted({arm.processes for arm in arms() if arm.kind == OURS})
    cases = [Case(*net, processes) for net in nets for processes in counts]
    found: dict[Case, list[Timed]] = defaultdict(list)
    for _ in range(words.rounds):
        for case in cases:
            arm = Arm(OURS, case.processes, words.precision, case.width)
            found[case] += time_together([arm], case.batch, words.steps)
    flops = {width: sum(layer_flops(width).values()) for width, _ in nets}
    rows: list[dict[str, Any]] = []
    for case, rounds in found.items():
        alone = found[case._replace(processes=1)]
        ratios = [one.median_s / mine.median_s for mine, one in zip(rounds, alone, strict=True)]
        step_flops = case.batch * flops[case.width]
        limits = [100 * step_flops / one.median_s / one.matrix_flops for one in rounds]
        rows.append(
            {
                **case._asdict(),
                "arm": f"width {case.width:g}, batch {case.batch}, {case.processes}",
                "images_per_s": case.batch / statistics.median(one.median_s for one in rounds),
                "ratio_to_one_process": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "exchange_pct": statistics.median(share for one in rounds for share in one.shares),
                "of_limit_pct": statistics.median(limits),
            }
        )
    columns = {
        "width": "{width:g}",
        "batch": "{batch}",
        "processes": "{processes}",
        "images/s": "{images_per_s:.1f}",
        "ratio to one process": "{ratio_to_one_process:.2f}",
        "range": "{ratio_range[0]:.2f} - {ratio_range[1]:.2f}",
        "in exchanges": "{exchange_pct:.1f}%",
        "% of limit": "{of_limit_pct:.0f}%",
    }
    show(f"Our step, {words.precision}, median of {words.rounds} rounds", columns, rows)
    question = "a step by batch size and width, compared with one process"
    keep(question, ["torch"], load_before, **vars(words), rows=rows)


if __name__ == "__main__":
    main()
