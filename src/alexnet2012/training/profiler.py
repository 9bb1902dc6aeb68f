"""Traces of training steps: one Chrome trace per rank, for https://ui.perfetto.dev.

The trace has torch's operations and kernels, and named ranges: ``data loading``, ``forward``,
``backward``, ``update``, and each exchange by its layer, such as ``all-gather conv3 forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function, schedule

from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.utils.logs import log

FOLDER = "profile"  # in the run directory
WARM_UP = 5  # steps before the first traced one: kernels are compiled and CUDA graphs captured


@contextmanager
def trace_steps(count: int | None, run_dir: Path, mesh: Mesh) -> Iterator[Callable[[], None]]:
    """Trace ``count`` steps after a warm-up; yields a function to call at the end of each step."""
    if count is None:
        yield lambda: None
        return
    folder, written = run_dir / FOLDER, []

    def write(trace: profile) -> None:
        folder.mkdir(exist_ok=True)
        trace.export_chrome_trace(str(folder / f"rank{mesh.rank}.json.gz"))
        log.info("traces of training steps: %s; open them at https://ui.perfetto.dev", folder)
        written.append(mesh.rank)

    activities = [ProfilerActivity.CPU]
    if mesh.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    mesh.watchdog.traced = True
    with profile(
        activities=activities,
        schedule=schedule(wait=WARM_UP - 1, warmup=1, active=count, repeat=1),
        on_trace_ready=write,
    ) as steps:
        yield steps.step
    mesh.watchdog.traced = False
    if not written and mesh.rank == 0:
        log.warning("profile=%d: no trace; the run ended within %d steps", count, WARM_UP)


def name_loading(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; the time until each arrives is a named range of the trace."""
    while True:
        with record_function("data loading"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
