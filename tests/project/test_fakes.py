"""The fake archives have the documented structure of the published ones."""

from __future__ import annotations

import csv
import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from fakes import fake_cifar10, fake_ilsvrc2010, fake_ilsvrc2012, fake_imagenette
from PIL import Image

KITS = {
    2010: ("ILSVRC2010_devkit-1.0.tar.gz", "devkit-1.0/data"),
    2012: ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12/data"),
}
FAKES = {2010: fake_ilsvrc2010, 2012: fake_ilsvrc2012}


def files_of(source: Any) -> dict[str, bytes]:
    """The regular files of a tar, in its order."""
    opened = {"fileobj": source} if isinstance(source, io.BytesIO) else {"name": source}
    with tarfile.open(**opened) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar if info.isfile()}


def meta_of(folder: Path, year: int) -> tuple[dict[str, Any], list[int]]:
    """The variables of meta.mat and the class IDs of the validation images."""
    archive, data = KITS[year]
    files = files_of(folder / archive)
    meta = scipy.io.loadmat(io.BytesIO(files[f"{data}/meta.mat"]), squeeze_me=True)
    truth = files[f"{data}/ILSVRC{year}_validation_ground_truth.txt"].decode()
    return meta, [int(line) for line in truth.splitlines()]


@pytest.mark.parametrize("year", [2010, 2012])
def test_meta_mat_and_the_label_files_lead_to_the_classes(year: int, tmp_path: Path) -> None:
    held = FAKES[year](tmp_path, classes=5, val=12)
    meta, truth = meta_of(tmp_path, year)
    synsets = meta["synsets"]
    assert synsets.dtype.names[:5] == (f"ILSVRC{year}_ID", "WNID", "words", "gloss", "num_children")
    assert synsets.dtype.names[5:] == ("children", "wordnet_height", "num_train_images")
    leaves = synsets[synsets["num_children"] == 0]
    assert leaves[f"ILSVRC{year}_ID"].tolist() == [1, 2, 3, 4, 5] and len(synsets) == 8
    wnid_of = dict(zip(leaves[f"ILSVRC{year}_ID"], leaves["WNID"], strict=True))
    assert dict(zip(leaves["WNID"], leaves["words"], strict=True)) == held["words"]
    assert [wnid_of[number] for number in truth] == [wnid for _, wnid in held["val"]]
    assert sorted(leaves["WNID"]) != leaves["WNID"].tolist()
    if year == 2010:
        lines = (tmp_path / "ILSVRC2010_test_ground_truth.txt").read_text().splitlines()
        assert [wnid_of[int(line)] for line in lines] == [wnid for _, wnid in held["test"]]
        assert meta["cost_matrix"].dtype == np.uint8 and meta["cost_matrix"].shape == (5, 5)


def test_unsqueezed_meta_mat_is_as_matlab_wrote_the_real_one(tmp_path: Path) -> None:
    fake_ilsvrc2012(tmp_path, train_per_class=300, val=1, size=(8, 8))
    kit = files_of(tmp_path / KITS[2012][0])
    synsets = scipy.io.loadmat(io.BytesIO(kit["ILSVRC2012_devkit_t12/data/meta.mat"]))["synsets"]
    assert synsets.shape == (7, 1)
    number, wnid, _, _, num_children, children, _, images = synsets[0, 0]
    assert [number.shape, number.dtype, wnid.dtype] == [(1, 1), np.uint8, "<U9"]
    assert [num_children.dtype, children.shape, children.dtype] == [np.uint8, (1, 0), np.uint8]
    assert images.dtype == np.uint16 and images[0, 0] == 300


@pytest.mark.parametrize("year", [2010, 2012])
def test_image_tars_have_the_published_names(year: int, tmp_path: Path) -> None:
    held = FAKES[year](tmp_path)
    images = {2010: "ILSVRC2010_images_{}.tar", 2012: "ILSVRC2012_img_{}.tar"}[year]
    classes = files_of(tmp_path / images.format("train"))
    assert sorted(classes) == [f"{wnid}.tar" for wnid in held["train"]] != list(classes)
    for wnid, names in held["train"].items():
        assert sorted(files_of(io.BytesIO(classes[f"{wnid}.tar"]))) == names
    for split in ("val", "test") if year == 2010 else ("val",):
        names = list(files_of(tmp_path / images.format(split)))
        parent = f"{split}/" if year == 2010 else ""
        assert sorted(names) == [parent + name for name, _ in held[split]] != names
        assert sorted(names)[0] == f"{parent}ILSVRC{year}_{split}_00000001.JPEG"


def test_patches_of_2010_replace_the_blank_images(tmp_path: Path) -> None:
    held = fake_ilsvrc2010(tmp_path)
    patches = files_of(tmp_path / "patch_images.tar")
    assert sorted(Path(name).name for name in patches) == held["patched"]
    name = "ILSVRC2010_val_00000001.JPEG"
    blank = files_of(tmp_path / "ILSVRC2010_images_val.tar")[f"val/{name}"]
    assert Image.open(io.BytesIO(blank)).convert("L").getextrema() == (255, 255)
    whole = Image.open(io.BytesIO(patches[f"patch_images/val/{name}"]))
    assert whole.size == (64, 48) and whole.convert("L").getextrema() != (255, 255)


@pytest.mark.parametrize("year", [2010, 2012])
def test_oddities_have_the_documented_formats(year: int, tmp_path: Path) -> None:
    held = FAKES[year](tmp_path, oddities=True)
    outer = files_of(next(tmp_path.glob("*_train.tar")))
    images = files_of(io.BytesIO(outer[f"{min(held['train'])}.tar"]))
    for name, kind in held["odd"].items():
        content = gzip.decompress(images[name]) if kind == "gzip" else images[name]
        expected = {"grey": "L", "cmyk": "CMYK", "png": "RGBA", "gzip": "RGB"}[kind]
        assert Image.open(io.BytesIO(content)).mode == expected
    assert len(held["odd"]) == 3


def test_cifar10_is_planar_and_its_classes_can_be_distinguished(tmp_path: Path) -> None:
    labels = fake_cifar10(tmp_path / "cifar-10-binary.tar.gz", per_batch=40)
    files = files_of(tmp_path / "cifar-10-binary.tar.gz")
    records = {
        name: np.frombuffer(files[f"cifar-10-batches-bin/{name}"], np.uint8).reshape(40, 3073)
        for name in labels
    }
    assert all(records[name][:, 0].tolist() == labels[name] for name in labels)
    train, test = records["data_batch_1.bin"].astype(float), records["test_batch.bin"].astype(float)
    means = np.stack([train[train[:, 0] == label, 1:].mean(0) for label in range(10)])
    nearest = ((test[:, None, 1:] - means) ** 2).sum(2).argmin(1)
    assert nearest.tolist() == labels["test_batch.bin"]
    # Neighbouring values within a plane are similar; interleaved colours would give about 85.
    planes = test[:, 1:].reshape(40, 3, 32, 32)
    assert np.abs(np.diff(planes, axis=3)).mean() < 30
    assert len(files) == 8 and len(files["cifar-10-batches-bin/batches.meta.txt"]) == 61


def test_imagenette_lists_its_images(tmp_path: Path) -> None:
    held = fake_imagenette(tmp_path / "imagenette2-320.tgz", classes=3)
    files = files_of(tmp_path / "imagenette2-320.tgz")
    table = io.StringIO(files.pop("imagenette2-320/noisy_imagenette.csv").decode())
    rows = list(csv.DictReader(table))
    assert {f"imagenette2-320/{row['path']}" for row in rows} == set(files)
    train = {f"train/{wnid}/{name}" for wnid, names in held["train"].items() for name in names}
    assert {row["path"] for row in rows if row["is_valid"] == "False"} == train
    val = {f"val/{wnid}/{name}" for name, wnid in held["val"]}
    assert {row["path"] for row in rows if row["is_valid"] == "True"} == val


def test_same_arguments_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_bytes(folder: Path, seed: int) -> dict[str, bytes]:
        fake_ilsvrc2010(folder, seed=seed, oddities=True)
        fake_ilsvrc2012(folder, seed=seed, oddities=True)
        fake_cifar10(folder / "cifar-10-binary.tar.gz", seed=seed)
        fake_imagenette(folder / "imagenette2-160.tgz", seed=seed)
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    first = all_bytes(tmp_path / "first", seed=0)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.asctime", lambda *_: "another time")
    assert all_bytes(tmp_path / "second", seed=0) == first
    other = all_bytes(tmp_path / "third", seed=1)
    assert other.keys() == first.keys()
    assert all(other[name] != content for name, content in first.items())
