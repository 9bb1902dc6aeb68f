"""Safetensors writer that hashes the tensors as it writes them, without copying them.

torch's own writer first joins all tensors into one bytes object, and its file would have to be read
again for the checksum: CPU time that training needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from alexnet2012.utils.files import checksum_line, forget, synced

BLOCK = 1 << 20  # bytes, hashed and written while in the CPU's cache
FLUSH = 16  # blocks between flushes to the disk
_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}


class TensorWriter(dcp.HuggingFaceStorageWriter):
    """Writes the shard of this process; ``sums`` are the lines of its files in ``SHA256SUMS``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._folder = folder
        self.sums: list[str] = []

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if plan.items:
            name = f"shard-{plan.storage_data['shard_index']:05d}-model-00001-of-00001.safetensors"
            parts = [(item, cast(Tensor, planner.resolve_data(item))) for item in plan.items]
            digest = hashlib.sha256()
            with synced(self._folder / name) as file:
                for number, block in enumerate(_blocks(parts)):
                    digest.update(block)
                    file.write(block)
                    if number % FLUSH == 0:
                        forget(file)
                forget(file)
            self.sums.append(checksum_line(digest.hexdigest(), name))
        done: Future[list[WriteResult]] = Future()
        done.set_result([])  # needed only for an index of several files
        return done


def _blocks(parts: Sequence[tuple[WriteItem, Tensor]]) -> Iterator[memoryview]:
    """The bytes of a file: length of the header, header, tensors."""
    header, offsets, start = {}, {}, 0
    for item, tensor in parts:
        assert item.tensor_data is not None
        header[item.index.fqn] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        offsets[item.index.fqn] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
        start += tensor.nbytes
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    encoded = json.dumps({"__metadata__": metadata, **header}).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield memoryview(len(encoded).to_bytes(8, "little") + encoded)
    for _, tensor in parts:
        if tensor.numel():
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            yield from (data[i : i + BLOCK] for i in range(0, len(data), BLOCK))
