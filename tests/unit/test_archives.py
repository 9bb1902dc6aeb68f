"""Archives as they are published, read where they lie; and what is refused of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_cifar10, fake_ilsvrc2010, fake_ilsvrc2012, fake_imagenette

from alexnet2012.config import ConfigError, PrepareConfig
from alexnet2012.data.convert import read_picture
from alexnet2012.data.preparing import prepare
from alexnet2012.data.source import Source
from alexnet2012.data.sources import locate

FAKES = {"2012": fake_ilsvrc2012, "2010": fake_ilsvrc2010}


def open_source(path: Path) -> Source:
    with locate(PrepareConfig(str(path), "unused")).open(Path("unused"), False) as found:
        return found


@pytest.mark.parametrize("year", ["2012", "2010"])
def test_every_picture_of_ilsvrc_gets_the_label_of_its_kit(tmp_path: Path, year: str) -> None:
    known = FAKES[year](tmp_path, classes=5, train_per_class=4, val=12, oddities=True)
    source = open_source(tmp_path)
    assert source.classes == tuple(sorted(known["train"]))
    assert source.titles == tuple(known["words"][wnid] for wnid in source.classes)
    train = [(Path(e.name).name, source.classes[e.label]) for e in source.entries("train")]
    expected = [(name, wnid) for wnid in source.classes for name in known["train"][wnid]]
    assert sorted(train) == sorted(expected)
    assert [wnid for _, wnid in train] == sorted(wnid for _, wnid in train)
    val = {Path(e.name).name: source.classes[e.label] for e in source.entries("val")}
    assert val == dict(known["val"])
    for split in ("train", "val"):
        for entry in source.entries(split):
            read_picture(entry.read())


def test_blank_pictures_of_2010_are_replaced_by_their_patches(tmp_path: Path) -> None:
    known = fake_ilsvrc2010(tmp_path, classes=3, train_per_class=3, val=6)
    assert known["patched"]

    def contrast(source: Source) -> dict[str, float]:
        entries = [e for split in ("train", "val") for e in source.entries(split)]
        pixels = {Path(e.name).name: np.asarray(read_picture(e.read()).picture) for e in entries}
        return {name: float(levels.std()) for name, levels in pixels.items()}

    patched = contrast(open_source(tmp_path))
    (tmp_path / "patch_images.tar").unlink()
    plain = contrast(open_source(tmp_path))
    assert patched.keys() == plain.keys()
    changed = {name for name in plain if plain[name] != patched[name]}
    assert changed == {Path(name).name for name in known["patched"] if "test" not in name}
    assert all(plain[name] < 1 < patched[name] for name in changed)


def test_ilsvrc_needs_no_disk_but_for_the_store(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    known = fake_ilsvrc2012(tars, classes=3, train_per_class=70, val=9)
    before = sorted(tars.iterdir())
    made = prepare(
        PrepareConfig(str(tars), str(tmp_path / "store"), size=32, workers=2), progress=False
    )
    assert sorted(tars.iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "tars"]
    assert len(made.split("train").paths) == 210
    lines = (made.root / "val.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    found = {(json.loads(name), made.classes[int(label)]) for _, label, _, name in rows}
    assert found == set(known["val"])


@pytest.mark.parametrize("name", ["img_val.tar", "devkit_t12.tar.gz"])
def test_a_missing_part_of_ilsvrc_is_named(tmp_path: Path, name: str) -> None:
    fake_ilsvrc2012(tmp_path)
    (tmp_path / f"ILSVRC2012_{name}").unlink()
    with pytest.raises(ConfigError, match=f"not ILSVRC2012_{name}"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"]
)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_part_that_is_cut_short_is_named_before_work_starts(
    tmp_path: Path, name: str, kept: float
) -> None:
    fake_ilsvrc2012(tmp_path, train_per_class=20, val=40)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ConfigError, match=r"again|is in (train|val)|at least 2|lacks") as caught:
        open_source(tmp_path)
    assert caught.value.key == "data.source"
    assert "\n" not in str(caught.value)


def test_cifar10_is_read_from_the_archive_and_from_its_folder(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-binary.tar.gz"
    known = fake_cifar10(archive, per_batch=7)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    for source in (open_source(archive), open_source(tmp_path / "unpacked/cifar-10-batches-bin")):
        assert source.classes[:2] == ("airplane", "automobile")
        for split, batches in (("train", 5), ("val", 1)):
            entries = list(source.entries(split))
            assert len(entries) == 7 * batches
            for entry in entries:
                batch, index = entry.name.split("#")
                assert entry.label == known[batch][int(index)]
                assert read_picture(entry.read()).picture.size == (32, 32)


def test_cifar10_planes_become_pixels(tmp_path: Path) -> None:
    fake_cifar10(tmp_path / "cifar-10-binary.tar.gz", per_batch=3)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz") as tar:
        file = tar.extractfile("cifar-10-batches-bin/test_batch.bin")
        assert file is not None
        record = np.frombuffer(file.read(), np.uint8)[:3073]
    first = next(open_source(tmp_path / "cifar-10-binary.tar.gz").entries("val"))
    pixels = np.asarray(read_picture(first.read()).picture)
    assert np.array_equal(pixels.transpose(2, 0, 1).ravel(), record[1:])


@pytest.mark.parametrize("suffix", ["tgz", "tar"])
def test_an_archive_of_class_folders_is_read_packed_or_plain(tmp_path: Path, suffix: str) -> None:
    known = fake_imagenette(tmp_path / "imagenette2-320.tgz", classes=3)
    archive = tmp_path / f"imagenette2-320.{suffix}"
    if suffix == "tar":
        with (
            tarfile.open(tmp_path / "imagenette2-320.tgz") as packed,
            tarfile.open(archive, "w") as plain,
        ):
            for member in packed:
                plain.addfile(member, packed.extractfile(member) if member.isreg() else None)
    source = open_source(archive)
    assert source.classes == tuple(sorted(known["train"]))
    for split in ("train", "val"):
        entries = list(source.entries(split))
        found = [(Path(entry.name).name, source.classes[entry.label]) for entry in entries]
        train = [(name, wnid) for wnid, names in known["train"].items() for name in names]
        assert sorted(found) == sorted(train if split == "train" else known["val"])
        for entry in entries:
            read_picture(entry.read())
            assert (entry.data is None) == (suffix == "tar")
    assert [Path(name).name for name in source.strays] == ["noisy_imagenette.csv"]


def plain_member(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = 3
    return member


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


HOSTILE: dict[str, Callable[[], tarfile.TarInfo]] = {
    "absolute": lambda: plain_member("/etc/cron.d/x.jpg"),
    "climbs out": lambda: plain_member("train/cat/../../../../x.jpg"),
    "symbolic link": lambda: link("train/cat/x.jpg", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": lambda: link("train/cat/x.jpg", tarfile.LNKTYPE, "../../secret"),
    "device": lambda: link("train/cat/x.jpg", tarfile.CHRTYPE, ""),
    "pipe": lambda: link("train/cat/x.jpg", tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_hostile_archive_is_refused_as_a_whole(tmp_path: Path, kind: str, mode: str) -> None:
    archive = tmp_path / ("pets.tar" if mode == "w" else "pets.tgz")
    with tarfile.open(archive, mode) as tar:
        for name in ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/dog/1.jpg"):
            tar.addfile(plain_member(name), io.BytesIO(b"abc"))
        tar.addfile(HOSTILE[kind](), io.BytesIO(b"abc"))
    with pytest.raises(ConfigError, match="do not use it") as caught:
        open_source(archive)
    assert str(archive) in str(caught.value)


def test_hostile_members_in_the_tars_of_ilsvrc_are_refused(tmp_path: Path) -> None:
    fake_ilsvrc2012(tmp_path)
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "a") as tar:
        tar.addfile(link("ILSVRC2012_val_00000009.JPEG", tarfile.SYMTYPE, "/etc/passwd"))
    with pytest.raises(ConfigError, match="is no plain file"):
        open_source(tmp_path)


def test_a_file_that_is_no_archive_is_told_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"no \.tar, \.tar\.gz"):
        open_source(tmp_path / "pets.zip")
    (tmp_path / "pets.tgz").write_bytes(b"not packed at all")
    with pytest.raises(ConfigError, match="get it again"):
        open_source(tmp_path / "pets.tgz")


def test_a_changed_archive_is_another_source(tmp_path: Path) -> None:
    def identity(path: Path) -> dict[str, object]:
        return locate(PrepareConfig(str(path), "unused")).identity

    fake_ilsvrc2012(tmp_path / "a")
    fake_ilsvrc2012(tmp_path / "b" / "a")
    assert identity(tmp_path / "a") == identity(tmp_path / "b" / "a")
    fake_ilsvrc2012(tmp_path / "b" / "a", val=30)
    assert identity(tmp_path / "a") != identity(tmp_path / "b" / "a")


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "..", "a" * 300, "cat"])
def test_cifar10_class_names_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    fake_cifar10(tmp_path / "cifar-10-binary.tar.gz", per_batch=2)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    names = ["cat", "dog", "owl", "cow", "pig", "hen", "bat", "rat", "elk", name]
    (tmp_path / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join(names))
    with pytest.raises(ConfigError, match=r"a path|too long|9 classes"):
        open_source(tmp_path / "cifar-10-batches-bin")


def plain_archive(path: Path) -> list[int]:
    """Twelve small members; returns where their headers are."""
    with tarfile.open(path, "w") as tar:
        for split in ("train", "val"):
            for name in ("cat", "dog"):
                for index in range(3):
                    tar.addfile(plain_member(f"{split}/{name}/{index}.jpg"), io.BytesIO(b"abc"))
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


@pytest.mark.parametrize("damage", ["flipped", "wiped", "cut in a header", "cut after a member"])
def test_an_archive_whose_headers_are_damaged_does_not_end_early(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "pets.tar"
    headers = plain_archive(path)
    whole = path.read_bytes()
    assert len(list(open_source(path).entries("val"))) == 6
    for at in headers[1:]:
        if damage == "flipped":
            data = whole[: at + 5] + bytes([whole[at + 5] ^ 4]) + whole[at + 6 :]
        elif damage == "wiped":
            data = whole[:at] + bytes(512) + whole[at + 512 :]
        else:
            data = whole[: at + (100 if damage == "cut in a header" else 0)]
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"again|is in (train|val)"):
            list(open_source(path).entries("val"))


def test_a_packed_archive_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    fake_imagenette(tmp_path / "pets.tgz", classes=2)
    data = bytearray((tmp_path / "pets.tgz").read_bytes())
    data[-8] ^= 1  # gzip's CRC-32 of everything
    (tmp_path / "pets.tgz").write_bytes(data)
    with pytest.raises(ConfigError, match="CRC"):
        open_source(tmp_path / "pets.tgz")


def test_a_member_that_would_fill_the_memory_is_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alexnet2012.data import archives, source

    fake_imagenette(tmp_path / "pets.tgz", classes=2)
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(source, "MAX_FILE_BYTES", 100)
    for entry in open_source(tmp_path / "pets.tgz").entries("train"):
        with pytest.raises(ValueError, match="bytes are more than"):
            entry.read()
