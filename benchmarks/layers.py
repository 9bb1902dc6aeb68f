"""How long does each layer of the full-size network take, and is that the rate of products?

    python benchmarks/layers.py [batch=128] [rounds=3] [processes=1]

Times the matrix products or convolutions of each layer, forward and backward, within whole training
steps, in float32 and bf16, and separately the operations after each (normalisation, activation,
pooling, dropout; the loss after fc8). Exchanges do not count (between GPUs, waiting for them does).
The rate is that of a square matrix product in the same processes and precision; a shape that suits
the caches better, or a convolution that saves multiplications, may exceed it. Precisions take
turns. Prints a table and writes results/layers.json.
"""

from __future__ import annotations

import json
import os
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arms import CLASSES, OURS, Arm, joined, layer_flops, matrix_flops, run_apart
from record import given, keep, show
from torch import Tensor, nn

from alexnet2012 import AlexNet
from alexnet2012.config.enums import Precision
from alexnet2012.config.schema import PlanConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.diagnostics.step_timer import LayerTimer, time_steps

PRECISIONS = ("fp32", "bf16")
REST = "operations after"


class Products(LayerTimer):
    """Also reads the clock between a layer's product and the operations after it."""

    def __init__(self, net: AlexNet) -> None:
        super().__init__(net)
        for name, layer in net.layers().items():
            layer.register_forward_hook(self._leaving(name))

    def _leaving(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
            self.lap(name, "forward")
            self._layer = f"{REST} {name}"
            last = output[-1] if isinstance(output, tuple) else output  # of the local towers
            last.register_hook(lambda grad: self.lap(f"{REST} {name}", "backward"))

        return hook


def time_layers(arm: Arm, batch: int, answer: Path) -> None:
    """Runs on each process; rank 0 writes its results."""
    mesh = joined(arm)
    mesh.barrier()
    rate = arm.processes * matrix_flops(arm, mesh.device)
    config = PlanConfig(
        classes=CLASSES, precision=Precision(arm.precision), recipe=load_recipe("paper")
    )
    mesh.barrier()
    seconds = time_steps(config, mesh, batch, Products)
    if mesh.rank == 0:
        found = {"matrix_flops": rate, "seconds": {" ".join(k): s for k, s in seconds.items()}}
        answer.write_text(json.dumps(found), encoding="utf-8")
    mesh.close()


def cells(found: list[dict[str, Any]], names: list[str], flops: float) -> dict[str, float]:
    """Medians over the rounds for one or several layers, in one precision."""

    def ms(*keys: str) -> list[float]:
        return [1e3 * sum(one["seconds"].get(key, 0) for key in keys) for one in found]

    ways = {way: ms(*(f"{name} {way}" for name in names)) for way in ("forward", "backward")}
    rest = ms(*(f"{REST} {name} {way}" for name in names for way in ways))
    shares = [
        100 * 1e3 * flops / one["matrix_flops"] / (there + back)
        for one, there, back in zip(found, ways["forward"], ways["backward"], strict=True)
    ]
    return {
        **{f"{way}_ms": statistics.median(values) for way, values in ways.items()},
        "of_rate_pct": statistics.median(shares),
        "rest_ms": statistics.median(rest),
    }


def main() -> None:
    words, load_before = given(batch=128, rounds=3, processes=1), os.getloadavg()[0]
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _ in range(words.rounds):
        for precision in PRECISIONS:
            arm = Arm(OURS, words.processes, precision)
            found[precision].append(run_apart(time_layers, arm.processes, arm, words.batch))
    flops = layer_flops()
    rows = []
    for label, names in [*((name, [name]) for name in flops), ("all", list(flops))]:
        operations = words.batch * sum(flops[name] for name in names)
        row: dict[str, Any] = {"layer": label, "gflop": operations / 1e9}
        for precision, rounds in found.items():
            of_precision = cells(rounds, names, operations)
            row |= {f"{precision}_{key}": value for key, value in of_precision.items()}
        rows.append(row)
    columns = {"": "{layer}", "GFLOP": "{gflop:.0f}"}
    for precision in PRECISIONS:
        columns |= {
            f"{precision} forward, ms": f"{{{precision}_forward_ms:.1f}}",
            f"{precision} backward, ms": f"{{{precision}_backward_ms:.1f}}",
            f"{precision} % of rate": f"{{{precision}_of_rate_pct:.0f}}%",
            f"{precision} operations after, ms": f"{{{precision}_rest_ms:.1f}}",
        }
    processes = "1 process" if words.processes == 1 else f"{words.processes} processes"
    show(f"Layers, {processes}, batch {words.batch}, median of {words.rounds}", columns, rows)
    question = "each layer of the full-size network, compared with the rate of matrix products"
    keep(question, ["torch"], load_before, **vars(words), rows=rows)


if __name__ == "__main__":
    main()
