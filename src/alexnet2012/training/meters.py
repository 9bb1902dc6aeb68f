"""Running sums over a training run: loss and errors, throughput and time."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass
from operator import sub
from typing import Any

import torch
import torch.distributed as dist

from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.collectives import Traffic
from alexnet2012.distributed.mesh import Mesh


@dataclass
class LossMeter:
    """Summed loss and top-1 errors over some steps, on this replica."""

    loss: float = 0.0
    errors: float = 0.0
    images: float = 0.0

    def add(self, loss: float, errors: float, images: int) -> None:
        self.loss += loss
        self.errors += errors
        self.images += images

    def by_replica(self, mesh: Mesh) -> list[list[float]]:
        """The sums of every replica, replica 0's first. Collective."""
        if mesh.data_group is None:
            return [list(astuple(self))]
        sums = torch.tensor(astuple(self), dtype=torch.float64, device=mesh.device)
        gathered = sums.new_empty((mesh.replicas, len(sums)))
        with mesh.watchdog.exchange("meters", "all-gather"):
            dist.all_gather_single(gathered.flatten(), sums, group=mesh.data_group)
        return [list(row) for row in gathered.tolist()]

    @classmethod
    def restored(cls, saved: list[list[float]], mesh: Mesh) -> LossMeter:
        """This replica's saved sums; after a change of mesh, replica 0 has the sums of all."""
        if len(saved) == mesh.replicas:
            return cls(*saved[mesh.replica])
        return cls(*map(sum, zip(*saved, strict=True))) if mesh.replica == 0 else cls()

    def means(self, mesh: Mesh) -> dict[str, float]:
        """Mean loss and error over the images of all replicas. Collective."""
        loss, errors, images = map(sum, zip(*self.by_replica(mesh), strict=True))
        return {"loss": loss / images, "train_error_pct": 100 * errors / images}


@dataclass
class ThroughputMeter:
    """Seconds of training (without validation), the part spent waiting for input; images seen."""

    train_s: float = 0.0
    input_wait_s: float = 0.0
    first_batch_s: float | None = None  # not in the above: pipelines start up once
    steps: int = 0
    images: int = 0  # of all replicas
    local_images: int = 0  # of this replica
    _since: float = 0.0  # last reading of the clock
    _totals: tuple[float, ...] = (0.0,) * 5  # at the last call of pace

    def start(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> None:
        """Count the time since the last reading of the clock as training."""
        now = time.perf_counter()
        self.train_s += now - self._since
        self._since = now

    def waited(self) -> None:
        """A batch has arrived: count the time since the last reading as waiting for input."""
        seconds = time.perf_counter() - self._since
        if self.first_batch_s is None:
            self.first_batch_s = seconds
            self._since += seconds
        else:
            self.lap()
            self.input_wait_s += seconds

    def trained(self, batch: Batch) -> None:
        self.steps += 1
        self.images += batch.rows.total
        self.local_images += batch.rows.size

    def pace(self, traffic: Traffic) -> dict[str, float]:
        """Milliseconds per step, and images per second, since the previous call."""
        self.lap()
        times = (self.train_s, self.input_wait_s, traffic.training_seconds())
        before, self._totals = self._totals, (self.steps, self.images, *times)
        steps, images, train_s, input_wait_s, exchange_s = map(sub, self._totals, before)
        steps = max(1, steps)
        return {
            "step_time_ms": 1000 * train_s / steps,
            "input_wait_ms": 1000 * input_wait_s / steps,
            "exchange_ms": 1000 * exchange_s / steps,
            "images_per_s": images / max(train_s, 1e-9),
        }

    def timings(self, traffic: Traffic) -> dict[str, float]:
        """Throughput and shares of the training time, over the whole run."""
        trained_s = max(self.train_s, 1e-9)
        return {
            "images_per_s": self.images / trained_s,
            "input_wait_pct": 100 * self.input_wait_s / trained_s,
            "first_batch_s": self.first_batch_s or 0.0,
            "exchange_pct": 100 * traffic.training_seconds() / trained_s,
        }

    def summary(self, traffic: Traffic, towers: int) -> dict[str, Any]:
        """Timings, and bytes sent per training image by all towers, by layer and direction."""
        bytes_per_image: dict[str, dict[str, float]] = {}
        for (layer, direction), sent in traffic.sent_bytes.items():
            if direction != "inference" and self.local_images:
                per_image = sent * towers / self.local_images
                bytes_per_image.setdefault(layer, {})[direction] = per_image
        return {"exchange_bytes_per_image": bytes_per_image, **self.timings(traffic)}
