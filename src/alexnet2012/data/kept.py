"""Images that are decoded once and kept in memory, not read from the store at each use.

Every image is compared with its digest when it is decoded. The processes of a machine share one
copy: each decodes a part of it.

Shapes: n images of a split, P×P pixels of a stored image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from alexnet2012.config.enums import Decoder, Keep
from alexnet2012.config.schema import ConfigError
from alexnet2012.data.dali import DaliPipeline, ExternalFeed, full_image_graph
from alexnet2012.data.store import Split
from alexnet2012.distributed.consensus import gather_results
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.utils.logs import log
from alexnet2012.utils.memory import SharedArray, available_bytes, machine_id
from alexnet2012.utils.shard import shard_of

GIB = 1 << 30
BATCH = 64  # images decoded at a time
AUTO_SHARE = 0.5  # of the available memory that images may take unasked
ASKED_SHARE = 0.9
ANNOUNCED = 5000  # images that take seconds to decode

Images = npt.NDArray[np.uint8]  # [n, P, P, 3]


def resolve_keep(keep: Keep, images: int, size: int, epochs: int, mesh: Mesh) -> Keep:
    """Where ``images`` of ``size`` × ``size`` pixels are kept: the same on every rank. Collective.

    ``auto`` keeps them in memory if they take at most half of what is available, and are used more
    than once.

    Raises:
        ConfigError: they do not fit, or ``device`` is asked for without a GPU.
    """
    if keep is Keep.device and mesh.device.type != "cuda":
        raise ConfigError("data.keep", "device", "this run is on the CPU; use memory, auto or no")
    if keep is Keep.no or (keep is Keep.auto and epochs < 2):
        return Keep.no
    available = min(mesh.gather_objects(available_bytes(), "available memory"))
    needed = images * size * size * 3
    if keep is Keep.auto:
        return Keep.memory if needed <= AUTO_SHARE * available else Keep.no
    if needed > ASKED_SHARE * available:
        remedy = (
            f"the decoded images take {needed / GIB:.1f} GiB, and {available / GIB:.1f} GiB of "
            "memory are available; use auto or no, or a smaller data.limit"
        )
        raise ConfigError("data.keep", keep.value, remedy)
    return keep


def keep_images(
    splits: Sequence[Split], size: int, decoder: Decoder, threads: int, mesh: Mesh
) -> list[Images]:
    """Decode the images of each split, of ``size`` × ``size`` pixels. Collective.

    Raises:
        ConfigError: on every rank, if an image is missing or damaged; names the file.
    """
    count = sum(len(split.paths) for split in splits)
    if count >= ANNOUNCED:
        log.info("decoding %s images once, to keep them in memory", f"{count:,}")
    sharing = _ranks_that_share(mesh)
    parts, index = len(sharing), sharing.index(mesh.rank)
    arrays = _shared([(len(split.paths), size, size, 3) for split in splits], sharing, mesh)

    def decode() -> None:
        for split, array in zip(splits, arrays, strict=True):
            part = shard_of(len(split.paths), parts, index)
            _decode(split, array, range(part.start, part.stop), decoder, threads)

    gather_results(decode, mesh)
    return arrays


def _ranks_that_share(mesh: Mesh) -> list[int]:
    """The ranks of this rank's machine, itself included."""
    machines = mesh.gather_objects(machine_id(), "machines")
    return [rank for rank, machine in enumerate(machines) if machine == machines[mesh.rank]]


def _shared(shapes: Sequence[tuple[int, ...]], ranks: Sequence[int], mesh: Mesh) -> list[Images]:
    """Arrays of the lowest of ``ranks``, mapped by all of them."""
    own = [SharedArray(shape) for shape in shapes] if mesh.rank == ranks[0] else []
    paths = mesh.gather_objects([array.path for array in own], "kept images")[ranks[0]]
    arrays = own

    def open_arrays() -> None:
        if not own:
            arrays.extend(SharedArray(*at) for at in zip(shapes, paths, strict=True))

    gather_results(open_arrays, mesh)
    for array in arrays:  # every rank has opened it
        array.close_file()
    return [array.array for array in arrays]


def _decode(split: Split, images: Images, part: range, decoder: Decoder, threads: int) -> None:
    """Decode the images of ``part`` into their places, on the CPU."""
    graph = partial(full_image_graph, decoder if decoder is not Decoder.gpu else Decoder.cpu)
    cpu = torch.device("cpu")
    pipeline = DaliPipeline(graph, split, min(BATCH, max(1, len(part))), cpu, threads)
    batches = [np.arange(start, min(start + BATCH, part.stop)) for start in part[::BATCH]]
    decoded = pipeline.read(ExternalFeed(indices, ()) for indices in batches)
    for indices, batch in zip(batches, decoded, strict=True):
        images[indices] = batch.numpy()
