"""What has come of a preparation so far, kept on disk so that it can be taken up again.

Lists grow in their files, not in memory. Every now and then a state is saved that says how much of
them holds; whatever was written after it is written again.

Legend: P pixels a side of a stored picture.
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
from alexnet2012.data.store import MEAN_IMAGE, SPLITS, fingerprint, seal

_LISTS = ("train.tsv", "val.tsv", "rejects.jsonl")
_STATE = "state.npz"
_SAVING_SHARE = 0.05  # of the time, at most
_PAUSE_S = 0.5  # between two savings, at least


class ImageOutcome(NamedTuple):
    """What came of a picture: its place in the store, or why it is not there."""

    target: str = ""
    sha256: str = ""
    traits: Sequence[str] = ()
    reason: str = ""


@dataclass
class PrepareState:
    """Everything but the sums, as plain data."""

    settings: dict[str, Any]
    dates: str  # of the source's files
    versions: dict[str, str]
    counts: dict[str, dict[str, int]]  # stored pictures by split and class
    lengths: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_LISTS, 0))  # bytes
    jobs: int = 0
    listed: int = 0
    rejected: int = 0
    traits: dict[str, int] = field(default_factory=dict)
    first_rejects: dict[str, str] = field(default_factory=dict)  # by split/class


class Tally:
    """Counts, lists and sums of the store that is made in ``work/store``."""

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
        self._saved_at, self._pause = time.monotonic(), _PAUSE_S

    @classmethod
    def new(cls, work: Path, source: ImageSource, settings: dict[str, Any], dates: str) -> Tally:
        """An empty one; clears what another source or other settings have left."""
        shutil.rmtree(work / "store", ignore_errors=True)
        (work / _STATE).unlink(missing_ok=True)
        (work / "store").mkdir(parents=True)
        size = settings["size"]
        counts = {split: dict.fromkeys(source.classes, 0) for split in SPLITS}
        sums = np.zeros((size, size, 3), dtype=np.int64)
        products = np.zeros((3, 3), dtype=np.int64)
        state = PrepareState(settings, dates, _versions(), counts)
        return cls(work, source, state, sums, products)

    @classmethod
    def resumed(
        cls, work: Path, source: ImageSource, settings: dict[str, Any], dates: str
    ) -> Tally | None:
        """What was saved last, where it is of the same pictures, settings and libraries."""
        saved = _saved(work)
        if saved is None:
            return None
        state, sums, products = saved
        if (state.settings, state.dates, state.versions) != (settings, dates, _versions()):
            return None
        return cls(work, source, state, sums, products)

    def add(
        self,
        split: str,
        entries: Sequence[Entry],
        outcomes: Sequence[ImageOutcome],
        sums: npt.NDArray[np.uint32],
        products: npt.NDArray[np.int64],
    ) -> None:
        """One more job is done."""
        self.state.jobs += 1
        self._sums += sums
        self._products += products
        for entry, outcome in zip(entries, outcomes, strict=True):
            self.state.listed += 1
            name = self._source.classes[entry.label]
            if outcome.reason:
                self.state.rejected += 1
                first = f"{entry.name} for one: {outcome.reason}"
                self.state.first_rejects.setdefault(f"{split}/{name}", first)
                self._reject(entry.name, f"{split}/{name}", outcome.reason)
                continue
            self.state.counts[split][name] += 1
            for trait in outcome.traits:
                self.state.traits[trait] = self.state.traits.get(trait, 0) + 1
            line = (outcome.target, str(entry.label), outcome.sha256, json.dumps(entry.name))
            self._files[f"{split}.tsv"].write(("\t".join(line) + "\n").encode())

    def save_at_times(self) -> None:
        """Save the state unless that was done just now."""
        began = time.monotonic()
        if began - self._saved_at < self._pause:
            return
        for name, file in self._files.items():
            file.flush()
            self.state.lengths[name] = file.tell()
        os.sync()  # else after a power cut the state may know of pictures that the disk does not
        text = np.frombuffer(json.dumps(asdict(self.state)).encode(), np.uint8)
        writing = self._work / f"writing-{_STATE}"
        np.savez(writing, state=text, sums=self._sums, products=self._products)
        os.replace(writing, self._work / _STATE)
        self._saved_at = time.monotonic()
        self._pause = max(_PAUSE_S, (self._saved_at - began) / _SAVING_SHARE)

    def finish(self) -> str:
        """Write what a store has beside its pictures; returns what came of it, in one line.

        Raises:
            ConfigError: a class of which nothing is left.
        """
        for split in SPLITS:
            for name, count in self.state.counts[split].items():
                if count == 0:
                    first = self.state.first_rejects.get(f"{split}/{name}", "it has none")
                    remedy = f"no picture of {split}/{name} can be used, {first}"
                    raise ConfigError("data.source", self._source.where, remedy)
        for stray in self._source.strays:
            self._reject(stray, "", "no picture by its name or place")
        self.close()
        train, val = (sum(self.state.counts[split].values()) for split in SPLITS)
        assert train + val + self.state.rejected == self.state.listed, self.state
        np.save(self.root / MEAN_IMAGE, (self._sums / train).astype(np.float32))
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
            "rgb_covariance": _covariance(self._sums, self._products, train),
            "fingerprint": fingerprint(self.root),
            "versions": self.state.versions,
        }
        manifest["sha256"] = seal(manifest, self.root)
        text = json.dumps(manifest, indent=1) + "\n"
        (self.root / "manifest.json").write_text(text, encoding="utf-8")
        classes = len(self._source.classes)
        summary = f"{train:,} training and {val:,} validation pictures of {classes:,} classes"
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


def unfinished(work: Path) -> dict[str, Any] | None:
    """The settings of what was begun in ``work`` and can be taken up again, if anything."""
    saved = _saved(work)
    return saved[0].settings if saved else None


def _saved(work: Path) -> tuple[PrepareState, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """PrepareState and sums as they were saved last, where the lists go with them."""
    try:
        with np.load(work / _STATE, allow_pickle=False) as saved:
            state = PrepareState(**json.loads(saved["state"].tobytes()))
            sums, products = saved["sums"], saved["products"]
        lists = {name: (work / "store" / name).stat().st_size for name in _LISTS}
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, BadZipFile):
        return None
    whole = all(lists[name] >= state.lengths[name] for name in _LISTS)
    return (state, sums, products) if whole else None


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("numpy", "pillow", "simplejpeg")}


def _covariance(
    sums: npt.NDArray[np.int64], products: npt.NDArray[np.int64], count: int
) -> list[list[float]]:
    """E[xy] − E[x]·E[y] over all pixels, in whole numbers up to the last division."""
    pixels = count * sums.shape[0] * sums.shape[1]
    total = [int(channel) for channel in sums.sum(axis=(0, 1))]
    return [
        [(pixels * int(products[i, j]) - total[i] * total[j]) / pixels**2 for j in range(3)]
        for i in range(3)
    ]
