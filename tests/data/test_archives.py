"""Published archives are read without unpacking; damaged and hostile ones are refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_cifar10, fake_ilsvrc2010, fake_ilsvrc2012, fake_imagenette

from alexnet2012.config.schema import ConfigError, PrepareConfig
from alexnet2012.data.preparation.decode import decode_image
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.sources.base import ImageSource
from alexnet2012.data.sources.registry import locate

FAKES = {"2012": fake_ilsvrc2012, "2010": fake_ilsvrc2010}


def open_source(path: Path) -> ImageSource:
    with locate(PrepareConfig(str(path), "unused")).open(Path("unused"), False) as source:
        return source


@pytest.mark.parametrize("year", ["2012", "2010"])
def test_every_ilsvrc_image_gets_the_label_of_the_development_kit(
    tmp_path: Path, year: str
) -> None:
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
            decode_image(entry.read())


def test_blank_images_of_2010_are_replaced_by_their_patches(tmp_path: Path) -> None:
    known = fake_ilsvrc2010(tmp_path, classes=3, train_per_class=3, val=6)
    assert known["patched"]

    def contrast(source: ImageSource) -> dict[str, float]:
        entries = [e for split in ("train", "val") for e in source.entries(split)]
        pixels = {Path(e.name).name: np.asarray(decode_image(e.read()).image) for e in entries}
        return {name: float(levels.std()) for name, levels in pixels.items()}

    patched = contrast(open_source(tmp_path))
    (tmp_path / "patch_images.tar").unlink()
    plain = contrast(open_source(tmp_path))
    assert patched.keys() == plain.keys()
    changed = {name for name in plain if plain[name] != patched[name]}
    assert changed == {Path(name).name for name in known["patched"] if "test" not in name}
    assert all(plain[name] < 1 < patched[name] for name in changed)


def test_preparing_ilsvrc_writes_nothing_but_the_store(tmp_path: Path) -> None:
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
    stored = {(json.loads(name), made.classes[int(label)]) for _, label, _, name in rows}
    assert stored == set(known["val"])


@pytest.mark.parametrize("name", ["img_val.tar", "devkit_t12.tar.gz"])
def test_a_missing_ilsvrc_file_is_named(tmp_path: Path, name: str) -> None:
    fake_ilsvrc2012(tmp_path)
    (tmp_path / f"ILSVRC2012_{name}").unlink()
    with pytest.raises(ConfigError, match=f"not ILSVRC2012_{name}"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"]
)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_ilsvrc_file_is_named_before_work_starts(
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
                assert decode_image(entry.read()).image.size == (32, 32)


def test_cifar10_planes_become_pixels(tmp_path: Path) -> None:
    fake_cifar10(tmp_path / "cifar-10-binary.tar.gz", per_batch=3)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz") as tar:
        file = tar.extractfile("cifar-10-batches-bin/test_batch.bin")
        assert file is not None
        record = np.frombuffer(file.read(), np.uint8)[:3073]
    first = next(open_source(tmp_path / "cifar-10-binary.tar.gz").entries("val"))
    pixels = np.asarray(decode_image(first.read()).image)
    assert np.array_equal(pixels.transpose(2, 0, 1).ravel(), record[1:])


@pytest.mark.parametrize("suffix", ["tgz", "tar"])
def test_an_archive_of_class_folders_may_be_compressed_or_not(tmp_path: Path, suffix: str) -> None:
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
        images = [(Path(entry.name).name, source.classes[entry.label]) for entry in entries]
        train = [(name, wnid) for wnid, names in known["train"].items() for name in names]
        assert sorted(images) == sorted(train if split == "train" else known["val"])
        for entry in entries:
            decode_image(entry.read())
            assert (entry.data is None) == (suffix == "tar")
    assert source.strays == ()  # noisy_imagenette.csv is beside the splits


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
    "climbs out, hidden": lambda: plain_member("train/../../.x.jpg"),
    "climbs out, not an image": lambda: plain_member("../../.bashrc"),
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
    with pytest.raises(ConfigError, match="do not use this archive") as caught:
        open_source(archive)
    assert str(archive) in str(caught.value)


def test_hostile_members_in_the_tars_of_ilsvrc_are_refused(tmp_path: Path) -> None:
    fake_ilsvrc2012(tmp_path)
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "a") as tar:
        tar.addfile(link("ILSVRC2012_val_00000009.JPEG", tarfile.SYMTYPE, "/etc/passwd"))
    with pytest.raises(ConfigError, match="is not a regular file"):
        open_source(tmp_path)


def test_a_file_that_is_not_an_archive_is_refused_with_the_formats(tmp_path: Path) -> None:
    (tmp_path / "pets.rar").write_bytes(b"Rar!")
    with pytest.raises(ConfigError, match=r"not one of \.tar, \.tar\.gz"):
        open_source(tmp_path / "pets.rar")
    for name in ("pets.tgz", "pets.zip"):
        (tmp_path / name).write_bytes(b"not packed at all")
        with pytest.raises(ConfigError, match="download it again"):
            open_source(tmp_path / name)


def test_a_changed_archive_has_another_identity(tmp_path: Path) -> None:
    def identity(path: Path) -> dict[str, object]:
        return locate(PrepareConfig(str(path), "unused")).identity

    fake_ilsvrc2012(tmp_path / "a")
    fake_ilsvrc2012(tmp_path / "b" / "a")
    assert identity(tmp_path / "a") == identity(tmp_path / "b" / "a")
    fake_ilsvrc2012(tmp_path / "b" / "a", val=30)
    assert identity(tmp_path / "a") != identity(tmp_path / "b" / "a")


@pytest.mark.parametrize("name", ["patch_images.tar", "ILSVRC2010_devkit-1.0.tar.gz"])
def test_every_tar_read_is_part_of_the_identity(tmp_path: Path, name: str) -> None:
    fake_ilsvrc2010(tmp_path)
    before = locate(PrepareConfig(str(tmp_path), "unused")).identity
    with (tmp_path / name).open("ab") as tar:
        tar.write(bytes(512))
    assert locate(PrepareConfig(str(tmp_path), "unused")).identity != before


def test_the_class_names_of_cifar10_are_part_of_the_identity(tmp_path: Path) -> None:
    folder = unpacked_cifar10(tmp_path)
    before = locate(PrepareConfig(str(folder), "unused")).identity
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    assert locate(PrepareConfig(str(folder), "unused")).identity != before


def unpacked_cifar10(folder: Path, per_batch: int = 2) -> Path:
    fake_cifar10(folder / "cifar-10-binary.tar.gz", per_batch=per_batch)
    with tarfile.open(folder / "cifar-10-binary.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    return folder / "cifar-10-batches-bin"


def damage_cifar10(folder: Path, damage: str) -> str:
    """Damage a folder of CIFAR-10; returns a pattern of the expected message."""
    batch, names = folder / "data_batch_3.bin", folder / "batches.meta.txt"
    if damage == "a batch is missing":
        batch.unlink()
        return r"data_batch_3\.bin is missing or empty"
    if damage == "a batch is empty":
        batch.write_bytes(b"")
        return r"data_batch_3\.bin is missing or empty"
    if damage == "a record is cut":
        batch.write_bytes(batch.read_bytes()[:-1])
        return "not a multiple of the record size, 3073"
    if damage == "a label is none":
        batch.write_bytes(b"\x0a" + batch.read_bytes()[1:])
        return r"data_batch_3\.bin: record 0 has label 10"
    names_text, message = {
        "11 names": ("abcdefghijk", "11 classes, 11 of them"),
        "a name twice": ("abcdefghii", "10 classes, 9 of them"),
        "10 of 11 names": ("abcdefghiji", "11 classes, 10 of them"),
    }[damage]
    names.write_text("\n".join(names_text))
    return message


@pytest.mark.parametrize(
    "damage",
    [
        *("a batch is missing", "a batch is empty", "a record is cut", "a label is none"),
        *("11 names", "a name twice", "10 of 11 names"),
    ],
)
def test_damaged_batches_of_cifar10_are_refused(tmp_path: Path, damage: str) -> None:
    folder = unpacked_cifar10(tmp_path)
    message = damage_cifar10(folder, damage)
    with pytest.raises(ConfigError, match=message):
        list(open_source(folder).entries("train"))


def rewritten(path: Path, change: Callable[[list[tarfile.TarInfo]], None]) -> None:
    """Rewrite a tar after ``change`` has edited its list of members."""
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        content = {member.name: tar.extractfile(member).read() for member in members}
    last = content[members[-1].name]
    change(members)
    with tarfile.open(path, "w") as tar:
        for member in members:
            data = content.get(member.name, last)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("change", ["twice", "one too few", "one too many", "without a number"])
def test_there_must_be_one_validation_image_per_label(tmp_path: Path, change: str) -> None:
    fake_ilsvrc2012(tmp_path, val=8)

    def apply(members: list[tarfile.TarInfo]) -> None:
        names = [member.name for member in members]
        at = names.index("ILSVRC2012_val_00000004.JPEG")
        if change == "twice":  # and another is missing, so the count is right
            members[at].name = "ILSVRC2012_val_00000005.JPEG"
        elif change == "one too few":
            del members[at]
        elif change == "one too many":
            members.append(tarfile.TarInfo("ILSVRC2012_val_00000009.JPEG"))
        else:
            members[at].name = "ILSVRC2012_val.JPEG"

    rewritten(tmp_path / "ILSVRC2012_img_val.tar", apply)
    messages = {"twice": "image 5 twice", "one too few": "contains 7 images, .* 8 labels"}
    with pytest.raises(
        ConfigError, match=messages.get(change, "has no label in the development kit")
    ):
        open_source(tmp_path)


@pytest.mark.parametrize("change", [-1, 1])
def test_the_number_of_training_images_must_match_the_development_kit(
    tmp_path: Path, change: int
) -> None:
    fake_ilsvrc2012(tmp_path, classes=3, train_per_class=3)
    train = tmp_path / "ILSVRC2012_img_train.tar"
    with tarfile.open(train) as tar:
        class_tar = tar.getnames()[1]
        tar.extract(class_tar, tmp_path, filter="data")

    def apply(members: list[tarfile.TarInfo]) -> None:
        if change < 0:
            members.pop()
        else:
            members.append(tarfile.TarInfo("another.JPEG"))

    rewritten(tmp_path / class_tar, apply)
    changed = (tmp_path / class_tar).read_bytes()
    with tarfile.open(train) as tar:
        others = [(m, tar.extractfile(m).read()) for m in tar if m.name != class_tar]
    with tarfile.open(train, "w") as tar:
        for member, data in [*others, (tarfile.TarInfo(class_tar), changed)]:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(
        ConfigError,
        match=f"{class_tar} contains {3 + change} images, .* lists 3; download it again",
    ):
        list(open_source(tmp_path).entries("train"))


@pytest.mark.parametrize("packed", [True, False])
def test_compression_is_detected_from_content_not_from_the_name(
    tmp_path: Path, packed: bool
) -> None:
    path = tmp_path / ("pets.tar" if packed else "pets.tgz")
    fake_imagenette(tmp_path / "pets.tgz", classes=2)
    if packed:
        (tmp_path / "pets.tgz").rename(path)
    else:
        path.write_bytes(gzip.decompress(path.read_bytes()))
    entries = list(open_source(path).entries("train"))
    assert len(entries) == 10
    for entry in entries:
        decode_image(entry.read())
        assert (entry.data is not None) == packed


def test_a_compressed_training_tar_is_refused_with_a_remedy(tmp_path: Path) -> None:
    fake_ilsvrc2012(tmp_path)
    for name in ("ILSVRC2012_img_val.tar", "ILSVRC2012_img_train.tar"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        if name == "ILSVRC2012_img_val.tar":  # read sequentially
            for entry in open_source(tmp_path).entries("val"):
                decode_image(entry.read())
    with pytest.raises(ConfigError, match=r"img_train\.tar: is compressed; decompress it"):
        open_source(tmp_path)


def test_hidden_members_are_ignored_unless_named_like_images(tmp_path: Path) -> None:
    path = tmp_path / "pets.tar"
    plain_archive(path)
    with tarfile.open(path, "a") as tar:
        for name in ("train/cat/._1.jpg", "train/.DS_Store", ".notes"):
            tar.addfile(plain_member(name), io.BytesIO(b"abc"))
    source = open_source(path)
    assert source.strays == ("train/cat/._1.jpg",)
    assert len(list(source.entries("train"))) == 6


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "..", "a" * 300, "cat"])
def test_cifar10_class_names_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    folder = unpacked_cifar10(tmp_path)
    names = ["cat", "dog", "owl", "cow", "pig", "hen", "bat", "rat", "elk", name]
    (folder / "batches.meta.txt").write_text("\n".join(names))
    with pytest.raises(ConfigError, match=r"a path|too long|9 of them"):
        open_source(folder)


def plain_archive(path: Path) -> list[int]:
    """Write a tar of twelve small members; returns the offsets of their headers."""
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


def test_a_compressed_archive_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    fake_imagenette(tmp_path / "pets.tgz", classes=2)
    data = bytearray((tmp_path / "pets.tgz").read_bytes())
    data[-8] ^= 1  # gzip's CRC-32 of everything
    (tmp_path / "pets.tgz").write_bytes(data)
    with pytest.raises(ConfigError, match="CRC"):
        open_source(tmp_path / "pets.tgz")


def test_a_member_above_the_size_limit_is_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alexnet2012.data.sources import archives
    from alexnet2012.data.sources import base as source

    fake_imagenette(tmp_path / "pets.tgz", classes=2)
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(source, "MAX_FILE_BYTES", 100)
    for entry in open_source(tmp_path / "pets.tgz").entries("train"):
        with pytest.raises(ValueError, match="exceeds the limit"):
            entry.read()


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    ],
)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_name_of_300_mb_is_refused_before_it_is_read(
    tmp_path: Path, kind: bytes, mode: str
) -> None:
    archive = tmp_path / "pets.tar"
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = kind, 300 << 20
    with tarfile.open(archive, mode) as tar:
        assert tar.fileobj is not None
        tar.addfile(plain_member("train/cat/1.jpg"), io.BytesIO(b"abc"))
        tar.fileobj.write(header.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(ConfigError, match="314,572,800 bytes for the name of one member") as caught:
        open_source(archive)
    assert len(str(caught.value)) < 500


def test_extended_headers_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1
    block = header.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")
    (tmp_path / "pets.tar").write_bytes(5000 * block + bytes(1024))
    with pytest.raises(ConfigError, match="the archive is damaged") as caught:
        open_source(tmp_path / "pets.tar")
    assert len(str(caught.value)) < 500


def test_a_long_name_is_cut_in_the_message(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pets.tar", "w") as tar:
        tar.addfile(plain_member("../" + "a" * 100_000), io.BytesIO(b"abc"))
    with pytest.raises(ConfigError, match="has an unsafe path") as caught:
        open_source(tmp_path / "pets.tar")
    assert len(str(caught.value)) < 400
