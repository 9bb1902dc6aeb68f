"""The list of a checkpoint's tensors as JSON, in place of torch's, which is a pickle.

torch.distributed.checkpoint unpickles ``.metadata`` whenever it loads: whoever can write a
checkpoint could run code. Tensors themselves are read with ``weights_only``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

TENSORS = "tensors.json"


class CheckpointWriter(FileSystemWriter):
    """Writes each rank's parts to files of its own; rank 0 then lists them."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        places = {result.index: result.storage_data for rank in results for result in rank}
        listed: dict[str, Any] = {}
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata), f"{name} is no tensor"
            parts = []
            for chunk in entry.chunks:
                place = places[MetadataIndex(name, chunk.offsets)]
                parts.append(
                    {
                        "offsets": list(chunk.offsets),
                        "sizes": list(chunk.sizes),
                        "file": place.relative_path,
                        "start": place.offset,
                        "length": place.length,
                    }
                )
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            listed[name] = {"dtype": dtype, "size": list(entry.size), "parts": parts}
        with Path(self.path, TENSORS).open("w", encoding="utf-8") as file:
            json.dump(listed, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


class CheckpointReader(FileSystemReader):
    """Reads what :class:`CheckpointWriter` wrote."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Raises ValueError where the list is damaged, or leads out of its folder."""
        text = Path(self.path, TENSORS).read_text(encoding="utf-8")
        tensors: dict[str, Any] = {}
        places: dict[MetadataIndex, _StorageInfo] = {}
        try:
            for name, entry in json.loads(text).items():
                tensors[name] = TensorStorageMetadata(
                    TensorProperties(dtype=_dtype(entry["dtype"])),
                    _size(entry["size"]),
                    [
                        ChunkStorageMetadata(_size(part["offsets"]), _size(part["sizes"]))
                        for part in entry["parts"]
                    ],
                )
                for part in entry["parts"]:
                    if Path(part["file"]).name != part["file"]:
                        raise ValueError(f"{part['file']} is in another folder")
                    start, length = _size([part["start"], part["length"]])
                    index = MetadataIndex(name, part["offsets"])
                    places[index] = _StorageInfo(part["file"], start, length)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{TENSORS} is no list of tensors") from error
        return Metadata(
            tensors, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id)
        )


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(name)
    return dtype


def _size(numbers: list[int]) -> torch.Size:
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise TypeError(numbers)
    return torch.Size(numbers)
