"""Do damaged images reach training, and do they stop a preparation?

    python benchmarks/damage.py [pictures=500] [seed=0] [workers=2] [bad_inputs=…/bad-inputs.tar]

Makes good JPEGs from scikit-image's photographs, and nine damaged copies of each. An image that
``decode_image`` decodes must equal, to the bit, the output of ``djpeg -strict -memsrc`` for the
same bytes (Debian: libjpeg-turbo-progs), which treats every warning as an error. Pillow, which
ignores warnings, is a weaker second reference, and the only one if djpeg is missing. Then all
files, good and damaged, are prepared as one data set, and the training loader reads the whole store
once. ``bad_inputs`` adds files from the test suites of decoders, by the categories of their
MANIFEST.csv.

``undetectable`` damage decodes without a warning, but as a different image than the original; the
table has the mean difference over its pixels in grey levels. ``djpeg rejects from a pipe``: the
same djpeg does warn when it reads from a pipe. What libjpeg-turbo detects depends slightly on how
it receives the data: with much data in memory its fast Huffman decoder accepts bad codes and may
read a few bytes too far ahead.

Exits with 1 if anything is wrong; prints tables and writes results/damage.json.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import skimage
from labels import heading, label
from PIL import Image, ImageOps, features
from record import given, keep, show

from alexnet2012.config.schema import PrepareConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.data.augmentation import random_stream
from alexnet2012.data.loaders import TrainLoader
from alexnet2012.data.preparation.decode import decode_image
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.sources.photos import CLASSES
from alexnet2012.data.store import SPLITS

KINDS = ["none", "cut", "1 bit", "4 bits", "16 bits", "64 bits", "header bits"]
KINDS += ["zeroed block", "random block", "swapped blocks"]
DJPEG = shutil.which("djpeg")
ORIENTATION = 0x0112  # of EXIF


class Verdict(NamedTuple):
    """The result for one file."""

    file: str  # below the source folder
    kind: str
    reason: str  # of the rejection; empty if decoded
    wrong: str  # what is wrong with the result; empty if nothing
    djpeg_decodes: bool
    djpeg_refuses_in_pieces: bool
    pillow_decodes: bool
    harm_grey_levels: float | None  # None: not decoded; NaN: another size than the original
    read_ms: float


def good_jpeg(index: int, rng: np.random.Generator) -> bytes:
    """A crop of about 500×375, encoded as by cameras and web sites."""
    file = list(CLASSES.values())[index % len(CLASSES)]
    with Image.open(Path(skimage.__file__).parent / "data" / file) as opened:
        photo = opened.convert("L" if rng.random() < 0.15 else "RGB")
    width, height = int(rng.integers(480, 521)), int(rng.integers(360, 391))
    wide = rng.uniform(0.6, 1.0) * min(photo.width, photo.height * width / height)
    high = wide * height / width
    left, top = rng.uniform(0, photo.width - wide), rng.uniform(0, photo.height - high)
    box = (left, top, left + wide, top + high)
    exif = Image.Exif()
    if rng.random() < 0.25:
        exif[ORIENTATION] = int(rng.integers(1, 9))
    buffer = io.BytesIO()
    photo.resize((width, height), Image.Resampling.BICUBIC, box=box).save(
        buffer,
        "JPEG",
        quality=int(rng.integers(70, 96)),
        subsampling=str(rng.choice(["4:4:4", "4:2:0"])),
        progressive=bool(rng.random() < 0.3),
        restart_marker_rows=int(rng.random() < 0.2),
        exif=exif,
    )
    return buffer.getvalue()


def damaged(good: bytes, kind: str, rng: np.random.Generator) -> bytes:
    if kind == "none":
        return good
    if kind == "cut":
        return good[: rng.integers(len(good))]
    data = np.frombuffer(good, np.uint8).copy()
    if "bit" in kind:
        count, end = int(rng.integers(1, 9)), good.index(b"\xff\xda")  # where the first scan starts
        if kind != "header bits":
            count, end = int(kind.split()[0]), len(good)
        for bit in rng.choice(8 * end, count, replace=False):
            data[bit // 8] ^= 1 << (bit % 8)
        return data.tobytes()
    size = int(rng.integers(64, min(4096, len(good) // 3) + 1))
    first = rng.integers(len(good) - 2 * size + 1)
    second = rng.integers(first + size, len(good) - size + 1)
    one, other = data[first : first + size], data[second : second + size]
    if kind == "zeroed block":
        one[:] = 0
    elif kind == "random block":
        one[:] = rng.integers(256, size=size)
    else:
        one[:], other[:] = other.copy(), one.copy()
    return data.tobytes()


def by_djpeg(data: bytes, *options: str) -> Image.Image | None:
    """The image that ``djpeg -strict`` decodes, or None if it rejects the JPEG."""
    assert DJPEG is not None
    command = [DJPEG, "-strict", *options]
    done = subprocess.run(command, input=data, capture_output=True, timeout=60)
    return None if done.returncode else Image.open(io.BytesIO(done.stdout)).convert("RGB")


def by_pillow(data: bytes) -> tuple[Image.Image | None, Any]:
    """The image that Pillow decodes, or None if it rejects the file; and the EXIF orientation."""
    picture, orientation = None, 1
    with warnings.catch_warnings(), suppress(Exception):  # it raises exceptions of many types
        warnings.simplefilter("ignore")
        opened = Image.open(io.BytesIO(data))
        with suppress(Exception):  # broken EXIF does not make the image unusable
            orientation = opened.getexif().get(ORIENTATION, 1)
        picture = Image.fromarray(np.asarray(opened.convert("RGB")))
    return picture, orientation


def judge(file: str, kind: str, data: bytes, undamaged: Image.Image | None = None) -> Verdict:
    """Decode a file as preparation does, and compare the result with other decoders."""
    picture, reason, wrong, harm = None, "", "", None
    began = time.perf_counter()
    try:
        picture = decode_image(data).image
    except ValueError as error:
        reason = str(error)
        wrong = "" if reason and reason.isprintable() else "the reason is not one line"
    except Exception as error:
        wrong = f"raised {type(error).__name__}: {error}"
    read_ms = 1e3 * (time.perf_counter() - began)

    pillow, orientation = by_pillow(data)
    ask_djpeg = DJPEG is not None and data.startswith(b"\xff\xd8")
    djpeg = by_djpeg(data, "-memsrc") if ask_djpeg else None
    in_pieces = False
    if picture is not None:
        in_pieces = ask_djpeg and by_djpeg(data) is None
        if ask_djpeg and djpeg is None:
            wrong = "decoded a file that djpeg -strict rejects"
        for name, other in (("djpeg", djpeg), ("Pillow", pillow)):
            if other is not None:
                other.getexif()[ORIENTATION] = orientation
                if difference(picture, ImageOps.exif_transpose(other)) != 0:
                    wrong = wrong or f"pixels differ from those of {name}"
        harm = difference(picture, picture if undamaged is None else undamaged)
    decodes = (djpeg is not None, in_pieces, pillow is not None)
    return Verdict(file, kind, reason, wrong, *decodes, harm, read_ms)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference in grey levels; NaN for different sizes."""
    if one.size != other.size:
        return math.nan
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean())


def damage_one(source: Path, seed: int, index: int) -> list[Verdict]:
    """Write a good JPEG and its damaged copies to the source folder, and judge each."""
    good = good_jpeg(index, random_stream(seed, "good", index))
    undamaged = decode_image(good).image
    turn, label = divmod(index, len(CLASSES))
    verdicts = []
    for number, kind in enumerate(KINDS):
        data = damaged(good, kind, random_stream(seed, "damage", index, number))
        name = f"{index:04d}-{kind.replace(' ', '-')}.jpg"
        file = f"{'train' if turn % 5 else 'val'}/{list(CLASSES)[label % len(CLASSES)]}/{name}"
        (source / file).write_bytes(data)
        verdicts.append(judge(file, kind, data, undamaged))
    return verdicts


def judge_bad_inputs(archive: Path, source: Path) -> list[Verdict]:
    """Copy the files of the archive into the source folder, and judge them by category."""
    verdicts = []
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
        root = Path(folder, "bad-inputs")
        for row in csv.DictReader((root / "MANIFEST.csv").read_text("utf-8").splitlines()):
            file = f"train/{next(iter(CLASSES))}/{Path(row['file']).name}"
            shutil.copyfile(root / row["file"], source / file)
            verdicts.append(judge(file, row["category"], (source / file).read_bytes()))
    return verdicts


def whole_path(source: Path, root: Path, verdicts: list[Verdict]) -> dict[str, int]:
    """Prepare all files and read the store once as in training; returns counts of files."""
    store = prepare(PrepareConfig(str(source), str(root)), progress=False)
    lines = (store.root / "rejects.jsonl").read_text("utf-8").splitlines()
    named = {(reject["file"], reject["reason"]) for reject in map(json.loads, lines)}
    stored: list[str] = []  # names in the source
    delivered, not_finite = 0, 0
    augment = load_recipe("paper").augment
    for name in SPLITS:
        split = store.split(name)
        listed = (store.root / f"{name}.tsv").read_text("utf-8").splitlines()
        stored += [json.loads(line.split("\t")[3]) for line in listed]
        loader = TrainLoader(store, split, augment, input_size=224, batch_size=64, seed=0)
        seen: set[int] = set()
        for batch in loader.epoch(0):
            seen |= set(batch.indices.tolist())
            not_finite += int((~batch.images.isfinite()).flatten(1).any(1).sum())
        delivered += len(seen)
    rejected_alone = {(v.file, v.reason) for v in verdicts if v.reason}
    decoded_alone = {v.file for v in verdicts if not v.reason}
    return {
        "files": len(verdicts),
        "stored": len(stored),
        "rejected": len(lines),
        "delivered by DALI": delivered,
        "wrong: lost or twice": abs(len(verdicts) - len(stored) - len(lines)),
        "wrong: rejected otherwise than the file alone": len(named ^ rejected_alone),
        "wrong: stored otherwise than the file alone": len(set(stored) ^ decoded_alone),
        "wrong: stored and not delivered": len(stored) - delivered,
        "wrong: delivered and not finite": not_finite,
    }


def summary(kind: str, verdicts: list[Verdict]) -> dict[str, Any]:
    mine = [v for v in verdicts if v.kind == kind]
    rejected = [v for v in mine if v.reason]
    decoded = [v for v in mine if v.harm_grey_levels is not None and not v.wrong]
    harms = [v.harm_grey_levels for v in decoded if v.harm_grey_levels]
    same_size = [harm for harm in harms if not math.isnan(harm)]
    return {
        "damage": kind,
        "files": len(mine),
        "rejected": len(rejected),
        "Pillow decodes": sum(v.pillow_decodes for v in rejected),
        "djpeg decodes": sum(v.djpeg_decodes for v in rejected),
        "decoded strictly": len(decoded),
        "Pillow refuses": sum(not v.pillow_decodes for v in decoded),
        "decoded otherwise": sum(bool(v.wrong) for v in mine),
        "undetectable": len(harms),
        "refused in pieces": sum(v.djpeg_refuses_in_pieces for v in decoded),
        "of another size": len(harms) - len(same_size),
        "median, grey levels": statistics.median(same_size) if same_size else None,
        "worst, grey levels": max(same_size, default=None),
        "slowest, ms": max(v.read_ms for v in mine),
    }


def show_counts(title: str, rows: list[dict[str, Any]], left_out: set[str]) -> None:
    """Show all columns except ``left_out``; None is an empty cell."""
    names = [name for name in rows[0] if name not in left_out]
    cells = [
        {
            name: "" if (c := row[name]) is None else f"{c:.3f}" if isinstance(c, float) else c
            for name in names
        }
        for row in rows
    ]
    show(title, {heading(name): "{" + name + "}" for name in names}, cells)


def main() -> int:
    words = given(pictures=500, seed=0, workers=2, bad_inputs="")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        for split in SPLITS:
            for name in CLASSES:
                (source / split / name).mkdir(parents=True)
        with ProcessPoolExecutor(words.workers, mp_context=get_context("spawn")) as pool:
            each = pool.map(partial(damage_one, source, words.seed), range(words.pictures))
            verdicts = [verdict for several in each for verdict in several]
        if words.bad_inputs:
            verdicts += judge_bad_inputs(Path(words.bad_inputs).expanduser(), source)
        path = whole_path(source, Path(folder, "store"), verdicts)

    strict = strict_decoder()
    rows = [summary(kind, verdicts) for kind in KINDS]
    title = f"{words.pictures} JPEGs and damaged copies; strict decoder: {strict}"
    show_counts(title, rows, {"Pillow refuses", "slowest, ms"})
    categories = sorted({v.kind for v in verdicts}.difference(KINDS))
    bad_rows = [summary(category, verdicts) for category in categories]
    if bad_rows:
        unknown = {name for name in bad_rows[0] if "grey" in name}
        left_out = {"undetectable", "refused in pieces", "of another size", "slowest, ms", *unknown}
        show_counts("Unusual and broken files from the test suites of decoders", bad_rows, left_out)
    columns = {"": "{what}", "files": "{count:,}"}
    counts = [{"what": label(what), "count": count} for what, count in path.items()]
    show("From preparation to training, all files as one data set", columns, counts)
    reasons = Counter(re.sub(r"\b(0x\w+|\d[\d,]*)", "N", v.reason) for v in verdicts if v.reason)
    for reason, count in reasons.most_common(12):
        print(f"{count:6d}  {reason}")
    wrong = [f"{v.file}: {v.wrong}" for v in verdicts if v.wrong]
    wrong += [f"{v.file}: {v.reason}" for v in verdicts if v.kind == "none" and v.reason]
    wrong += [f"{what}: {count}" for what, count in path.items() if "wrong" in what and count]
    print("\n".join(wrong) or "Nothing wrong.")
    libjpeg = f"{version('pillow')} with libjpeg-turbo {features.version('libjpeg_turbo')}"
    keep(
        "do damaged images reach training, and do they stop a preparation",
        ["simplejpeg", "pillow"],
        load_before,
        pictures=words.pictures,
        seed=words.seed,
        decoders={"pillow": libjpeg, "strict": strict},
        rows=rows,
        bad_inputs=bad_rows,
        whole_path=path,
        reasons=dict(reasons.most_common(20)),
        wrong=wrong,
    )
    return int(bool(wrong))


def strict_decoder() -> str:
    if DJPEG is None:
        return "none: djpeg is missing, so results are compared with Pillow only"
    said = subprocess.run([DJPEG, "-version"], capture_output=True, text=True)
    return f"djpeg -strict -memsrc, {(said.stderr + said.stdout).splitlines()[0]}"


if __name__ == "__main__":
    sys.exit(main())
