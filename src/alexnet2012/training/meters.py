"""Running sums of a training run: losses and errors, and where its seconds went."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.collectives import Traffic
from alexnet2012.distributed.mesh import Mesh


@dataclass
class LossMeter:
    """Of a stretch of training, on this replica."""

    loss: float = 0.0
    errors: float = 0.0
    pictures: float = 0.0

    def add(self, loss: float, errors: float, pictures: int) -> None:
        self.loss += loss
        self.errors += errors
        self.pictures += pictures

    def by_replica(self, mesh: Mesh) -> list[list[float]]:
        """The sums of each replica. Collective."""
        if mesh.data_group is None:
            return [list(astuple(self))]
        own = torch.tensor(astuple(self), dtype=torch.float64, device=mesh.device)
        every = own.new_empty((mesh.replicas, len(own)))
        with mesh.watchdog.exchange("records", "gather"):
            dist.all_gather_single(every.flatten(), own, group=mesh.data_group)
        return [list(row) for row in every.tolist()]

    @classmethod
    def restored(cls, saved: list[list[float]], mesh: Mesh) -> LossMeter:
        """This replica's, or on the first one the sum of what another mesh has saved."""
        if len(saved) == mesh.replicas:
            return cls(*saved[mesh.replica])
        return cls(*map(sum, zip(*saved, strict=True))) if mesh.replica == 0 else cls()

    def means(self, mesh: Mesh) -> dict[str, float]:
        """Over the pictures of all replicas. Collective."""
        loss, errors, pictures = map(sum, zip(*self.by_replica(mesh), strict=True))
        return {"loss": loss / pictures, "train_error_pct": 100 * errors / pictures}


@dataclass
class Lap:
    """Since the last look: steps, pictures of all replicas, and where the seconds went."""

    steps: int = 0
    pictures: int = 0
    train_s: float = 0.0
    input_wait_s: float = 0.0
    exchange_s: float = 0.0  # when it began, as the traffic counts


@dataclass
class ThroughputMeter:
    """Seconds of training (without validation), and of it waiting for input; pictures seen."""

    train_s: float = 0.0
    input_wait_s: float = 0.0
    first_batch_s: float | None = None  # not among them: pipelines start up once
    pictures: int = 0  # of all replicas
    own_pictures: int = 0  # of this one
    _since: float = 0.0  # the last reading of the clock
    _last: Lap = field(default_factory=Lap)

    def start(self) -> None:
        """Training begins, or goes on."""
        self._since = time.perf_counter()

    def lap(self) -> None:
        """What passed since the clock was last read was training."""
        now = time.perf_counter()
        self.train_s += now - self._since
        self._last.train_s += now - self._since
        self._since = now

    def waited(self) -> None:
        """A batch has come; since :meth:`lap` or :meth:`start` it was waited for."""
        seconds = time.perf_counter() - self._since
        if self.first_batch_s is None:
            self.first_batch_s = seconds
            self._since += seconds
        else:
            self.lap()
            self.input_wait_s += seconds
            self._last.input_wait_s += seconds

    def trained(self, batch: Batch) -> None:
        self.pictures += batch.rows.total
        self.own_pictures += batch.rows.size
        self._last.steps += 1
        self._last.pictures += batch.rows.total

    def pace(self, traffic: Traffic) -> dict[str, float]:
        """Milliseconds of a step, and images/s, since this was last asked for."""
        self.lap()
        last, exchanged_s = self._last, traffic.training_seconds()
        self._last = Lap(exchange_s=exchanged_s)
        steps = max(1, last.steps)
        return {
            "step_time_ms": 1000 * last.train_s / steps,
            "input_wait_ms": 1000 * last.input_wait_s / steps,
            "exchange_ms": 1000 * (exchanged_s - last.exchange_s) / steps,
            "images_per_s": last.pictures / max(last.train_s, 1e-9),
        }

    def timings(self, traffic: Traffic) -> dict[str, float]:
        trained_s = max(self.train_s, 1e-9)
        return {
            "images_per_s": self.pictures / trained_s,
            "input_wait_pct": 100 * self.input_wait_s / trained_s,
            "first_batch_s": self.first_batch_s or 0.0,
            "exchange_pct": 100 * traffic.training_seconds() / trained_s,
        }

    def summary(self, traffic: Traffic, towers: int) -> dict[str, Any]:
        """Timings, and bytes by layer and direction, over all towers, while it trained."""
        counted: dict[str, dict[str, float]] = {}
        for (layer, direction), sent in traffic.sent_bytes.items():
            if direction != "inference" and self.own_pictures:
                counted.setdefault(layer, {})[direction] = sent * towers / self.own_pictures
        return {"exchange_bytes_per_image": counted, **self.timings(traffic)}
