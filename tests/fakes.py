"""Small archives with the exact structure of the published ones, for tests of their readers.

Names, folders, the fields and dtypes of ``meta.mat``, label formats and their order are those of
the originals; images are few and small, each class has colours of its own, so that a network can
learn it. The same arguments give the same bytes. Where the order of a real archive's members is
not documented it is shuffled here, so that a reader that trusts it fails.

Source: the readme.txt of both development kits; the readers in cuda-convnet2 (make-data.py),
torchvision (imagenet.py), fuel (ilsvrc2010.py) and tensorflow_datasets; the CIFAR-10 page.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import scipy.io
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Member = tuple[str, bytes | None]  # None: a folder
Size = tuple[int, int]  # width and height in pixels, as Pillow has it

# An empty line ends the real file too: 61 bytes.
CIFAR10_META = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"
IMAGENETTE_WORDS = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


class Contents(TypedDict, total=False):
    """The content of a fake data set. Image names are sorted and have no folder."""

    train: dict[str, list[str]]  # by WordNet id
    val: list[tuple[str, str]]  # name, WordNet id
    test: list[tuple[str, str]]  # 2010 only: the labels of 2012 were never published
    words: dict[str, str]  # by WordNet id
    ids: dict[str, int]  # the label files' numbers, from 1, by WordNet id
    odd: dict[str, str]  # training image → grey, cmyk, png or gzip
    patched: list[str]  # 2010 only: blank in its archive, whole in patch_images.tar


class _Layout(NamedTuple):
    images: str
    devkit: str
    devkit_top: str
    image_parent: str  # of the validation and test images


_LAYOUTS = {
    2010: _Layout(
        "ILSVRC2010_images_{split}.tar", "ILSVRC2010_devkit-1.0.tar.gz", "devkit-1.0", "{split}/"
    ),
    2012: _Layout(
        "ILSVRC2012_img_{split}.tar", "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12", ""
    ),
}


def fake_ilsvrc2012(
    folder: Path,
    *,
    classes: int = 4,
    train_per_class: int = 5,
    val: int = 8,
    size: Size = (64, 48),
    seed: int = 0,
    oddities: bool = False,
) -> Contents:
    """Write ILSVRC2012_img_train.tar, _img_val.tar and _devkit_t12.tar.gz.

    With ``oddities``, three images of the first class are what a few real ones are: a grey JPEG,
    a CMYK JPEG and a PNG, all named ``.JPEG``.
    """
    odd = ("grey", "cmyk", "png") if oddities else ()
    return _ilsvrc(folder, 2012, classes, train_per_class, {"val": val}, size, seed, odd)


def fake_ilsvrc2010(
    folder: Path,
    *,
    classes: int = 4,
    train_per_class: int = 5,
    val: int = 8,
    test: int = 8,
    size: Size = (64, 48),
    seed: int = 0,
    oddities: bool = False,
) -> Contents:
    """Write ILSVRC2010_images_{train,val,test}.tar, the devkit, the test labels, patch_images.tar.

    One image of each set is blank and has its replacement in patch_images.tar. With
    ``oddities``, three images of the first class are a grey JPEG, a CMYK JPEG and a JPEG packed
    by gzip, as the real n02487347_1956.JPEG.
    """
    odd = ("grey", "cmyk", "gzip") if oddities else ()
    held_out = {"val": val, "test": test}
    return _ilsvrc(folder, 2010, classes, train_per_class, held_out, size, seed, odd)


def fake_cifar10(file: Path, *, per_batch: int = 20, seed: int = 0) -> dict[str, list[int]]:
    """Write cifar-10-binary.tar.gz with ``per_batch`` records a batch; returns labels by file."""
    rng = np.random.default_rng([seed, 10])
    patterns = _patterns(rng, 10)
    members: list[Member] = [("batches.meta.txt", CIFAR10_META.encode()), ("readme.html", b"<p>\n")]
    labels: dict[str, list[int]] = {}
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        labels[name] = rng.permutation(np.arange(per_batch) % 10).tolist()
        # A record is one byte of label, then the red, the green and the blue plane.
        records = (
            bytes([label]) + _pixels(rng, patterns[label], (32, 32)).transpose(2, 0, 1).tobytes()
            for label in labels[name]
        )
        members.append((name, b"".join(records)))
    top = "cifar-10-batches-bin"
    shuffled = [members[position] for position in _shuffle(rng, len(members))]
    _save_tar(file, [(top, None), *((f"{top}/{name}", content) for name, content in shuffled)])
    return labels


def fake_imagenette(
    file: Path,
    *,
    classes: int = 10,
    train_per_class: int = 5,
    val_per_class: int = 2,
    size: Size = (64, 48),
    seed: int = 0,
) -> Contents:
    """Write imagenette2-320.tgz or a sibling; the folder inside is named after the file.

    Both of its sets draw on the training and the validation set of ILSVRC2012: names of both kinds.
    """
    rng = np.random.default_rng([seed, 320])
    words = dict(list(IMAGENETTE_WORDS.items())[:classes])
    top = file.name.partition(".")[0]
    train: dict[str, list[str]] = {}
    val: list[tuple[str, str]] = []
    table = ["path," + ",".join(f"noisy_labels_{n}" for n in (0, 1, 5, 25, 50)) + ",is_valid"]
    images: list[Member] = []
    for wnid, pattern in zip(words, _patterns(rng, classes), strict=True):
        numbers = 1 + rng.choice(50_000, train_per_class + val_per_class, replace=False)
        for split, own in (("val", numbers[:val_per_class]), ("train", numbers[val_per_class:])):
            names = [f"ILSVRC2012_val_{own[0]:08d}.JPEG", *(f"{wnid}_{n}.JPEG" for n in own[1:])]
            for name in names:
                path = f"{split}/{wnid}/{name}"
                images.append((f"{top}/{path}", _jpeg(_pixels(rng, pattern, size))))
                table.append(f"{path},{wnid},{wnid},{wnid},{wnid},{wnid},{split == 'val'}")
            if split == "train":
                train[wnid] = sorted(names)
            else:
                val += [(name, wnid) for name in names]
    csv: Member = (f"{top}/noisy_imagenette.csv", "\n".join([*table, ""]).encode())
    _save_tar(file, [(top, None), csv, *images])
    return {"train": train, "val": sorted(val), "words": words}


def _ilsvrc(
    folder: Path,
    year: int,
    classes: int,
    train_per_class: int,
    held_out: dict[str, int],
    size: Size,
    seed: int,
    odd_kinds: tuple[str, ...],
) -> Contents:
    assert 2 <= classes <= 1000, "the inner synsets are numbered from 1001"
    assert train_per_class >= max(1, len(odd_kinds))
    layout = _LAYOUTS[year]
    rng = np.random.default_rng([seed, year])
    folder.mkdir(parents=True, exist_ok=True)

    wnids = sorted(f"n{n:08d}" for n in 1_500_000 + rng.choice(13_000_000, classes, replace=False))
    # The real ids follow the hierarchy: code that takes them for ranks of WordNet ids must fail.
    ids = {wnid: 1 + rank for wnid, rank in zip(wnids, _shuffle(rng, classes), strict=True)}
    words = {wnid: f"thing {wnid[1:]}, Res ficta" for wnid in wnids}
    patterns = dict(zip(wnids, _patterns(rng, classes), strict=True))
    # Neither fixed width nor consecutive, as in the real set.
    numbers = {wnid: rng.choice(40_000, train_per_class, replace=False) for wnid in wnids}
    train = {wnid: [f"{wnid}_{n}.JPEG" for n in numbers[wnid]] for wnid in wnids}
    odd = dict(zip(train[wnids[0]], odd_kinds, strict=False))
    patched = {train[wnids[-1]][0]} if year == 2010 else set()
    patches: list[Member] = []

    def image(split: str, name: str, wnid: str) -> bytes:
        whole = _jpeg(_pixels(rng, patterns[wnid], size))
        if name in patched:
            patches.append((f"patch_images/{split}/{name}", whole))
            return _jpeg(np.full((size[1], size[0], 3), 255, np.uint8))
        return _odd(whole, odd[name]) if name in odd else whole

    def class_tar(wnid: str) -> bytes:
        out = io.BytesIO()
        _write_tar(out, ((name, image("train", name, wnid)) for name in train[wnid]))
        return out.getvalue()

    shuffled = (wnids[position] for position in _shuffle(rng, classes))
    class_tars = ((f"{wnid}.tar", class_tar(wnid)) for wnid in shuffled)
    _save_tar(folder / layout.images.format(split="train"), class_tars)

    labels: dict[str, list[tuple[str, str]]] = {}
    truth: dict[str, bytes] = {}
    for split, count in held_out.items():
        names = [f"ILSVRC{year}_{split}_{number:08d}.JPEG" for number in range(1, count + 1)]
        ranks = rng.permutation(np.arange(count) % classes)
        labels[split] = [(name, wnids[rank]) for name, rank in zip(names, ranks, strict=True)]
        truth[split] = "".join(f"{ids[wnid]}\n" for _, wnid in labels[split]).encode()
        parent = layout.image_parent.format(split=split)
        members: list[Member] = [(parent.rstrip("/"), None)] if parent else []
        if year == 2010:
            patched.add(names[0])
        for position in _shuffle(rng, count):
            name, wnid = labels[split][position]
            members.append((parent + name, image(split, name, wnid)))
        _save_tar(folder / layout.images.format(split=split), members)

    data = f"{layout.devkit_top}/data"
    meta = meta_mat(year, {ids[wnid]: (wnid, words[wnid]) for wnid in wnids}, train_per_class)
    kit: list[Member] = [
        (layout.devkit_top, None),
        (f"{layout.devkit_top}/readme.txt", b"A fake development kit.\n"),
        (data, None),
        (f"{data}/meta.mat", meta),
        (f"{data}/ILSVRC{year}_validation_ground_truth.txt", truth["val"]),
    ]
    _save_tar(folder / layout.devkit, kit)
    contents: Contents = {
        "train": {wnid: sorted(names) for wnid, names in train.items()},
        "val": labels["val"],
        "words": words,
        "ids": ids,
        "odd": odd,
    }
    if year == 2010:
        _save_tar(folder / "patch_images.tar", patches)
        (folder / "ILSVRC2010_test_ground_truth.txt").write_bytes(truth["test"])
        contents["test"] = labels["test"]
        contents["patched"] = sorted(patched)
    return contents


def meta_mat(year: int, leaves: dict[int, tuple[str, str]], train_per_class: int) -> bytes:
    """The N×1 struct array ``synsets``, sorted by id; in 2010 also ``cost_matrix``."""
    last = len(leaves)
    # Height counts in all of WordNet, so a class may be above 0, though it is a leaf here.
    rows: list[tuple[int, str, str, list[int], int, int]] = [
        (number, *leaves[number], [], int(number == 1), train_per_class)
        for number in range(1, last + 1)
    ]
    # The real root is 1001 as well. An only child squeezes to a plain number: a trap for readers.
    rows.append((1001, "n00001740", "entity", [1002, 1003], 18, 0))
    rows.append((1002, "n00004258", "living thing, animate thing", list(range(1, last)), 12, 0))
    rows.append((1003, "n00021939", "artifact, artefact", [last], 9, 0))

    fields = f"ILSVRC{year}_ID WNID words gloss num_children children wordnet_height".split()
    synsets = np.empty((len(rows), 1), [(f, object) for f in [*fields, "num_train_images"]])
    for row, (number, wnid, words, children, height, images) in zip(synsets, rows, strict=True):
        gloss = f"what isn't a {words}; a 'made-up' one"
        sizes = _matlab([len(children)]), _matlab(children), _matlab([height]), _matlab([images])
        row[0] = (_matlab([number]), wnid, words, gloss, *sizes)
    variables: dict[str, Any] = {"synsets": synsets}
    if year == 2010:
        variables["cost_matrix"] = 5 * (1 - np.eye(last, dtype=np.uint8))
    out = io.BytesIO()
    scipy.io.savemat(out, variables, do_compression=True)
    # The first 116 bytes are free text, into which scipy writes the time.
    return b"MATLAB 5.0 MAT-file".ljust(116) + out.getvalue()[116:]


def _matlab(values: list[int]) -> NDArray[Any]:
    """A row vector of the smallest type, as MATLAB stores whole numbers; 1×0 when empty."""
    return np.array([values], np.uint8 if max(values, default=0) < 256 else np.uint16)


def _shuffle(rng: np.random.Generator, count: int) -> list[int]:
    """A permutation of ``range(count)``, never the sorted one."""
    order = rng.permutation(count)
    return (order if (np.diff(order) < 0).any() else order[::-1]).tolist()


def _patterns(rng: np.random.Generator, classes: int) -> NDArray[np.uint8]:
    """A grid of 3×4 colours for each class: coarse enough to survive any crop."""
    return rng.integers(0, 256, (classes, 3, 4, 3), np.uint8)


def _pixels(rng: np.random.Generator, pattern: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """An image of a class, [H, W, 3]: colours vary by up to 24 levels, plus noise of up to 12."""
    colours = np.clip(pattern + rng.integers(-24, 25, pattern.shape), 0, 255).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + rng.integers(-12, 13, smooth.shape, np.int8)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    return simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB", colorsubsampling="420")


def _odd(image: bytes, kind: str) -> bytes:
    if kind == "gzip":
        return gzip.compress(image, mtime=0)
    mode, form = {"grey": ("L", "JPEG"), "cmyk": ("CMYK", "JPEG"), "png": ("RGBA", "PNG")}[kind]
    out = io.BytesIO()
    Image.open(io.BytesIO(image)).convert(mode).save(out, form)
    return out.getvalue()


def _save_tar(file: Path, members: Iterable[Member]) -> None:
    with file.open("wb") as plain:
        if file.suffix == ".tar":
            _write_tar(plain, members)
        else:
            # An empty name and a fixed time: the header would hold the real ones.
            with gzip.GzipFile("", "wb", 1, plain, mtime=0) as packed:
                _write_tar(packed, members)


def _write_tar(out: Any, members: Iterable[Member]) -> None:
    # Owner and time of a TarInfo are 0 unless set.
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
