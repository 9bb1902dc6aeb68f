"""Accumulates the lists and statistics of a store while it is prepared; its state is resumable.

Lists are appended to files rather than kept in memory. The periodically saved state records the
valid length of each list; on resumption, lists are truncated to it and the rest is done again.

Shapes: P is the side of a stored image in pixels.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from alexnet2012.config.schema import ConfigError
from alexnet2012.data.sources.base import Entry, ImageSource
from alexnet2012.data.store import MEAN_IMAGE, fingerprint, manifest_digest
from alexnet2012.utils.files import array_bytes, naming, replace_bytes, replace_text

_LISTS = ("train.tsv", "val.tsv", "rejects.jsonl")
_STATE = "state.npz"
_MAX_SAVE_FRACTION = 0.05  # of the time spent on saving
_MIN_SAVE_INTERVAL_S = 0.5


class ImageOutcome(NamedTuple):
    target: str = ""  # path in the store
    sha256: str = ""
    traits: Sequence[str] = ()
    reason: str = ""  # for a rejection


@dataclass
class PrepareState:
    """The saved state, except for the pixel sums, as plain data."""

    settings: dict[str, Any]
    dates: str  # digest of the modification times of the source's files
    versions: dict[str, str]
    counts: dict[str, dict[str, int]]  # stored images by split and class
    lengths: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_LISTS, 0))  # bytes
    jobs: int = 0
    listed: int = 0
    rejected: int = 0
    traits: dict[str, int] = field(default_factory=dict)
    first_rejects: dict[str, str] = field(default_factory=dict)  # by split/class


class StoreBuilder:
    """Accumulates counts, lists and pixel sums of the store in ``work/store``."""

    def __init__(
        self,
        work: Path,
        source: ImageSource,
        state: PrepareState,
        sums: npt.NDArray[np.int64],  # [P, P, 3]
        products: npt.NDArray[np.int64],  # [3, 3]
    ) -> None:
        self.root = work / "store"
        self.state = state
        self._work, self._source, self._sums, self._products = work, source, sums, products
        self._files = {name: (self.root / name).open("ab") for name in _LISTS}
        for name, file in self._files.items():
            file.truncate(state.lengths[name])
        self._saved_at, self._interval_s = time.monotonic(), _MIN_SAVE_INTERVAL_S

    @classmethod
    def new(
        cls, work: Path, source: ImageSource, settings: dict[str, Any], dates: str
    ) -> StoreBuilder:
        """Start an empty store; deletes unfinished work in ``work``."""
        shutil.rmtree(work / "store", ignore_errors=True)
        (work / _STATE).unlink(missing_ok=True)
        (work / "store").mkdir(parents=True)
        counts = {split: dict.fromkeys(source.classes, 0) for split in source.splits}
        sums = np.zeros((settings["size"], settings["size"], 3), dtype=np.int64)
        state = PrepareState(settings, dates, _versions(), counts)
        return cls(work, source, state, sums, np.zeros((3, 3), dtype=np.int64))

    @classmethod
    def resumed(
        cls, work: Path, source: ImageSource, settings: dict[str, Any], dates: str
    ) -> StoreBuilder | None:
        """Resume from the saved state, if images, settings and library versions are the same."""
        saved = _load_state(work)
        if saved is None:
            return None
        state = saved[0]
        same = (state.settings, state.dates, state.versions) == (settings, dates, _versions())
        return cls(work, source, *saved) if same else None

    def add(
        self,
        split: str,
        entries: Sequence[Entry],
        outcomes: Sequence[ImageOutcome],
        sums: npt.NDArray[np.uint32],
        products: npt.NDArray[np.int64],
    ) -> None:
        """Record the results of one job."""
        self.state.jobs += 1
        self._sums += sums
        self._products += products
        for entry, outcome in zip(entries, outcomes, strict=True):
            self.state.listed += 1
            name = self._source.classes[entry.label]
            if outcome.reason:
                self.state.rejected += 1
                reject = f"{entry.name}: {outcome.reason}"
                self.state.first_rejects.setdefault(f"{split}/{name}", reject)
                self._reject(entry.name, f"{split}/{name}", outcome.reason)
                continue
            self.state.counts[split][name] += 1
            for trait in outcome.traits:
                self.state.traits[trait] = self.state.traits.get(trait, 0) + 1
            line = (outcome.target, str(entry.label), outcome.sha256, json.dumps(entry.name))
            self._files[f"{split}.tsv"].write(("\t".join(line) + "\n").encode())

    def save_periodically(self) -> None:
        """Save the state, unless that was done recently."""
        start = time.monotonic()
        if start - self._saved_at < self._interval_s:
            return
        for name, file in self._files.items():
            file.flush()
            self.state.lengths[name] = file.tell()
        os.sync()  # or after a power failure the state could refer to images that were lost
        text = np.frombuffer(json.dumps(asdict(self.state)).encode(), np.uint8)
        temporary = self._work / f"writing-{_STATE}"
        with naming(temporary), temporary.open("wb") as state:
            np.savez(state, state=text, sums=self._sums, products=self._products)
        os.replace(temporary, self._work / _STATE)
        self._saved_at = time.monotonic()
        save_s = self._saved_at - start
        self._interval_s = max(_MIN_SAVE_INTERVAL_S, save_s / _MAX_SAVE_FRACTION)

    def finish(self) -> str:
        """Write the mean image and the manifest; returns a summary of one line."""
        stored = {split: sum(counts.values()) for split, counts in self.state.counts.items()}
        has_train = "train" in stored
        for split, counts in self.state.counts.items():
            for name, count in counts.items():
                # A list may have classes of which there are no validation images.
                if count == 0 and (has_train or stored[split] == 0):
                    reject = self.state.first_rejects.get(f"{split}/{name}", "it has no images")
                    problem = f"no usable images in {split}/{name} ({reject})"
                    remedy = f"{problem}; add images or remove the class"
                    raise ConfigError("data.source", self._source.where, remedy)
        for stray in self._source.strays:
            self._reject(stray, "", "not recognised as an image by its name or location")
        self.close()
        assert sum(stored.values()) + self.state.rejected == self.state.listed, self.state
        covariance = None
        if has_train:
            mean = (self._sums / stored["train"]).astype(np.float32)
            replace_bytes(self.root / MEAN_IMAGE, array_bytes(mean))
            covariance = _covariance(self._sums, self._products, stored["train"])
        strays = len(self._source.strays)
        manifest: dict[str, Any] = {
            "settings": self.state.settings,
            "description": self._source.description,
            "classes": self._source.classes,
            "titles": self._source.titles,
            "listed": self.state.listed,
            "pictures": self.state.counts,
            "rejected": {"unusable": self.state.rejected, "strays": strays},
            "traits": dict(sorted(self.state.traits.items())),
            "rgb_covariance": covariance,
            "fingerprint": fingerprint(self.root),
            "versions": self.state.versions,
        }
        manifest["sha256"] = manifest_digest(manifest, self.root)
        text = json.dumps(manifest, indent=1) + "\n"
        replace_text(self.root / "manifest.json", text)
        classes = len(self._source.classes)
        training = f"{stored['train']:,} training and " if has_train else ""
        summary = f"{training}{stored['val']:,} validation images in {classes:,} classes"
        traits = ", ".join(f"{count:,} {trait}" for trait, count in manifest["traits"].items())
        summary += f" ({traits})" if traits else ""
        rejects = self.state.rejected + strays
        return summary + (f"; {rejects:,} files rejected, see rejects.jsonl" if rejects else "")

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _reject(self, name: str, where: str, reason: str) -> None:
        line = json.dumps({"file": name, "class": where, "reason": reason}) + "\n"
        self._files["rejects.jsonl"].write(line.encode())


def unfinished_settings(work: Path) -> dict[str, Any] | None:
    """The settings of a resumable preparation in ``work``, if there is one."""
    return saved[0].settings if (saved := _load_state(work)) else None


def _load_state(
    work: Path,
) -> tuple[PrepareState, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """The saved state, sums and products; None if they or the lists are missing or damaged."""
    try:
        with np.load(work / _STATE, allow_pickle=False) as saved:
            state = PrepareState(**json.loads(saved["state"].tobytes()))
            sums, products = saved["sums"], saved["products"]
        lists = {name: (work / "store" / name).stat().st_size for name in _LISTS}
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, BadZipFile):
        return None
    complete = all(lists[name] >= state.lengths[name] for name in _LISTS)
    return (state, sums, products) if complete else None


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("numpy", "pillow", "simplejpeg")}


def _covariance(
    sums: npt.NDArray[np.int64], products: npt.NDArray[np.int64], count: int
) -> list[list[float]]:
    """E[xy] − E[x]·E[y] over all pixels, in exact integers up to the final division."""
    pixels = count * sums.shape[0] * sums.shape[1]
    total = [int(channel) for channel in sums.sum(axis=(0, 1))]
    return [
        [(pixels * int(products[i, j]) - total[i] * total[j]) / pixels**2 for j in range(3)]
        for i in range(3)
    ]
