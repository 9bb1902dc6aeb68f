"""How fast is a full-size training step, how much of it is exchange, and how far is the limit?

    python benchmarks/full_step.py [batch=128] [steps=2] [rounds=3] [arms=all]

Ours on one and on two processes, in the precisions of the device, beside the paper's net as one
would write it in plain PyTorch, and torchvision's AlexNet where that is installed (another net: one
tower, no normalisation). Arms take turns (A B C A B C …) and are compared within a round, since a
shared machine drifts. ``apart`` makes a local copy instead of each exchange: what it is faster than
the same arm with exchanges, exchanges cost. The limit is the time that the step's multiplications
alone would take at the rate of a square matrix product in the same processes and precision.

Prints images/s, ratios to the plain net and shares of the limit, and writes results/full_step.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from record import given, keep, show
from torch import Tensor, nn

from alexnet2012 import AlexNet, init_mesh
from alexnet2012.audit import audit
from alexnet2012.checks import load_recipe
from alexnet2012.choices import Precision
from alexnet2012.collectives import TowerLink
from alexnet2012.config import ModelConfig
from alexnet2012.launcher import launch, reuse_memory, set_threads
from alexnet2012.mesh import Mesh
from alexnet2012.optimizer import PaperSGD
from alexnet2012.precision import TYPES, allow_tf32
from alexnet2012.schedule import Rates

CLASSES, MATRIX, MATRIX_S = 1000, 1536, 0.5
PLAIN, TORCHVISION, OURS, APART, HIDDEN = "plain PyTorch", "torchvision", "ours", "apart", "hidden"


class Arm(NamedTuple):
    """Who computes the step, in how many processes."""

    kind: str
    processes: int
    precision: str
    width: float = 1.0  # of ours

    @property
    def name(self) -> str:
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{self.kind}, {processes}, {self.precision}"


def arms() -> list[Arm]:
    on_gpu = torch.cuda.is_available()
    precisions = ["fp32", *(["tf32"] if on_gpu else []), "bf16"]
    two = [2] if not on_gpu or torch.cuda.device_count() > 1 else []
    found = [Arm(PLAIN, 1, precision) for precision in precisions]
    if find_spec("torchvision"):
        found += [Arm(TORCHVISION, 1, precision) for precision in precisions]
    for precision in precisions:
        found += [Arm(OURS, processes, precision) for processes in (1, *two)]
        found += [Arm(kind, 2, precision) for kind in (APART, HIDDEN) if two]
    return found


def plain_net() -> nn.Module:
    """The paper's net as one would write it with torch.nn."""

    def block(conv: nn.Conv2d, *more: nn.Module) -> list[nn.Module]:
        return [conv, nn.ReLU(), *more]

    def lrn() -> nn.Module:
        return nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)

    def hidden(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, 4096), nn.ReLU(), nn.Dropout()]

    return nn.Sequential(
        *block(nn.Conv2d(3, 96, 11, 4, 2), lrn(), nn.MaxPool2d(3, 2)),
        *block(nn.Conv2d(96, 256, 5, 1, 2, groups=2), lrn(), nn.MaxPool2d(3, 2)),
        *block(nn.Conv2d(256, 384, 3, 1, 1)),
        *block(nn.Conv2d(384, 384, 3, 1, 1, groups=2)),
        *block(nn.Conv2d(384, 256, 3, 1, 1, groups=2), nn.MaxPool2d(3, 2)),
        nn.Flatten(),
        *hidden(9216),
        *hidden(4096),
        nn.Linear(4096, CLASSES),
    )


def torchvision_net() -> nn.Module:
    from torchvision.models import alexnet

    net: nn.Module = alexnet(num_classes=CLASSES).to(memory_format=torch.channels_last)
    return net


class Copied(NamedTuple):
    """An exchange that has not been made."""

    result: Any

    def wait(self) -> Any:
        return self.result


class Apart(TowerLink):
    """Every tower takes its own part for the other's."""

    def all_gather(self, x: Tensor, layer: str, direction: str) -> Copied:  # type: ignore[override]
        return Copied([x if tower == self.tower else x.clone() for tower in range(self.towers)])

    def reduce_scatter(  # type: ignore[override]
        self, parts: Sequence[Tensor], layer: str, direction: str
    ) -> Copied:
        return Copied(sum(parts))


def run_apart(work: Callable[..., None], processes: int, *args: Any) -> Any:
    """``work(*args, answer)`` in processes of its own: what one arm does to its memory must not
    help the next. Returns what rank 0 wrote to the file ``answer``, as JSON.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "found.json")
        if processes > 1:
            launch(work, processes, *args, answer)
        else:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(work, *args, answer).result()
        return json.loads(answer.read_text(encoding="utf-8"))


def time_arm(arm: Arm, batch: int, steps: int, answer: Path) -> None:
    """On each process of an arm; rank 0 writes what was measured after a step not counted."""
    mesh = joined(arm)
    net, step = prepared(arm, batch, mesh)
    mesh.barrier()
    product_flops = arm.processes * matrix_flops(arm, mesh.device)
    mesh.barrier()
    seconds = timed(step, steps, mesh.device)
    exchanging_s = 0.0
    if isinstance(net, AlexNet):
        exchanging_s = net.link.traffic.training_seconds() * steps / (steps + 1)
    if mesh.rank == 0:
        found = {
            "images_per_s": batch * steps / seconds,
            "matrix_flops": product_flops,
            "exchange_pct": 100 * exchanging_s / seconds,
        }
        answer.write_text(json.dumps(found), encoding="utf-8")
    mesh.close()


def joined(arm: Arm) -> Mesh:
    """This process as one of the arm's, set up as for a training."""
    set_threads(arm.processes)
    allow_tf32(Precision(arm.precision))
    if arm.kind not in (PLAIN, TORCHVISION):
        reuse_memory()
    return init_mesh(2)  # of a single process: itself alone


def prepared(arm: Arm, batch: int, mesh: Mesh) -> tuple[nn.Module, Callable[[], None]]:
    """The net of an arm, and a step of it on a batch of noise."""
    context: Any = nullcontext()
    if arm.kind in (PLAIN, TORCHVISION):
        net = (plain_net() if arm.kind == PLAIN else torchvision_net()).to(mesh.device)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            net.parameters(), 0.01, momentum=0.9, weight_decay=0.0005
        )
        if arm.precision == "bf16":
            context = torch.autocast(mesh.device.type, torch.bfloat16)
    else:
        settings: dict[str, Any] = {"model": ModelConfig(width=arm.width), "mesh": mesh}
        settings |= {"precision": arm.precision, "hide_exchanges": arm.kind == HIDDEN}
        net = AlexNet("paper", CLASSES, **settings)
        if arm.kind == APART:
            net.link = Apart(mesh.tower_group, mesh.towers, mesh.tower)
        optimizer = PaperSGD(net, load_recipe("paper").optimizer)
        optimizer.set_rates(Rates(0.01, 0.01))
    draw = torch.Generator().manual_seed(0)
    images = (50 * torch.randn(batch, 3, 224, 224, generator=draw)).to(mesh.device)
    labels = torch.randint(CLASSES, (batch,), generator=draw).to(mesh.device)

    def step() -> None:
        optimizer.zero_grad()
        with context:
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()

    return net, step


def matrix_flops(arm: Arm, device: torch.device) -> float:
    """The best rate of a product of square matrices, while the other processes do the same."""
    dtype = TYPES[Precision(arm.precision)].activations
    size = MATRIX if device.type == "cpu" else 8 * MATRIX
    a = torch.randn(size, size, device=device).to(dtype)
    fastest, until = float("inf"), time.perf_counter() + MATRIX_S
    while time.perf_counter() < until:
        fastest = min(fastest, timed(lambda: a @ a, 1, device, warm_up=False))
    return 2 * size**3 / fastest


def timed(
    work: Callable[[], Any], times: int, device: torch.device, *, warm_up: bool = True
) -> float:
    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    if warm_up:
        work()
    finish()
    began = time.perf_counter()
    for _ in range(times):
        work()
    finish()
    return time.perf_counter() - began


def layer_flops(width: float = 1.0) -> dict[str, int]:
    """Multiplications and additions of one image's step, by layer: forward, and twice as much
    backward, but for the gradient of the image.
    """
    layers = audit(AlexNet("paper", CLASSES, model=ModelConfig(width=width)))
    return {
        layer.name: 2 * layer.multiply_adds * (2 if i == 0 else 3) for i, layer in enumerate(layers)
    }


def main() -> None:
    words, load_before = given(batch=128, steps=2, rounds=3, arms="all"), os.getloadavg()[0]
    kinds = {arm.kind for arm in arms()}
    if words.arms not in ("all", *kinds):
        sys.exit(f"arms={words.arms}: must be all or one of {sorted(kinds)}")
    chosen = [arm for arm in arms() if words.arms in ("all", arm.kind) or arm == arms()[0]]
    found: dict[Arm, list[dict[str, float]]] = {arm: [] for arm in chosen}
    for _ in range(words.rounds):
        for arm in chosen:
            found[arm].append(run_apart(time_arm, arm.processes, arm, words.batch, words.steps))
    flops, plain = sum(layer_flops().values()), found[chosen[0]]
    rows = []
    for arm, rounds in found.items():
        ratios = [
            one["images_per_s"] / other["images_per_s"]
            for one, other in zip(rounds, plain, strict=True)
        ]
        limits = [100 * one["images_per_s"] * flops / one["matrix_flops"] for one in rounds]
        rows.append(
            {
                "arm": arm.name,
                "images_per_s": statistics.median(one["images_per_s"] for one in rounds),
                "ratio_to_plain": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "exchange_pct": statistics.median(one["exchange_pct"] for one in rounds),
                "matrix_gflop_per_s": statistics.median(o["matrix_flops"] for o in rounds) / 1e9,
                "of_limit_pct": statistics.median(limits),
            }
        )
    columns = {
        "": "{arm}",
        "images/s": "{images_per_s:.1f}",
        "ratio to plain": "{ratio_to_plain:.2f}",
        "its range": "{ratio_range[0]:.2f} - {ratio_range[1]:.2f}",
        "in exchanges": "{exchange_pct:.1f}%",
        "matrices, GFLOP/s": "{matrix_gflop_per_s:.0f}",
        "of the limit": "{of_limit_pct:.0f}%",
    }
    show(f"Full-size step, batch {words.batch}, median of {words.rounds} rounds", columns, rows)
    question = "full-size training step, against plain PyTorch and the rate of matrix products"
    keep(question, ["torch"], load_before, **vars(words), step_flops=flops, rows=rows)


if __name__ == "__main__":
    main()
