"""Agreement between ranks: results and errors that must be the same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from alexnet2012.config.schema import ConfigError, RunError

if TYPE_CHECKING:  # launching a run does not import torch
    import torch.distributed as dist

    from alexnet2012.distributed.mesh import Mesh

Value = TypeVar("Value")


def gather_results(
    work: Callable[[], Value], mesh: Mesh, group: dist.ProcessGroup | None = None
) -> list[Value]:
    """Run ``work`` on every rank and return all results, rank 0's first. Collective.

    An error of any rank is raised on all. Threads other than the main one need a ``group`` of their
    own, which has no flight record.
    """
    if mesh.world_size == 1:
        return [work()]
    try:
        result: tuple[Value | None, Exception | None] = work(), None
    except (OSError, ConfigError, RunError) as error:
        result = None, error
    if group is None:
        results = mesh.gather_objects(result, "results")
    else:
        import torch.distributed as dist

        results = [result] * mesh.world_size
        dist.all_gather_object(results, result, group=group)
    for _, failure in results:
        if failure is not None:
            raise failure
    return [value for value, _ in results]


def run_on_rank_0(
    work: Callable[[], Value], mesh: Mesh, group: dist.ProcessGroup | None = None
) -> Value:
    """Run ``work`` on rank 0; every rank returns its result or raises its error. Collective."""
    return gather_results(lambda: work() if mesh.rank == 0 else None, mesh, group)[0]  # type: ignore[return-value]
