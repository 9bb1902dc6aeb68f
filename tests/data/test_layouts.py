"""Published layouts of image data sets are recognised, or refused with what was seen."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from layouts import (
    FLAT,
    KAGGLE,
    LAYOUTS,
    LIST,
    PAGE,
    SPLIT,
    TINY,
    TRAIN,
    WHOLE,
    A,
    Files,
    Layout,
    make,
    under,
    with_table,
)

from alexnet2012.config.compose import compose_config
from alexnet2012.config.schema import ConfigError, PrepareConfig, TrainConfig
from alexnet2012.data.sources.base import ImageSource
from alexnet2012.data.sources.download import REMOTE_FILES
from alexnet2012.data.sources.registry import locate


def open_source(root: Path, layout: Layout) -> ImageSource:
    config = PrepareConfig(
        str(root / layout.source),
        "unused",
        val_percent=layout.val_percent,
        labels=None if layout.labels is None else str(root / layout.labels),
    )
    with locate(config).open(Path("unused"), False) as source:
        return source


def found(source: ImageSource, split: str) -> dict[str, str]:
    """The class of each image of a split, by its file name; the content is its own."""
    images = {}
    for entry in source.entries(split):
        name = entry.name.replace("\\", "/").rsplit("/", 1)[-1]
        assert entry.read().decode().replace("\\", "/").endswith(name)
        assert name not in images
        images[name] = source.classes[entry.label]
    return images


def test_the_page_lists_every_layout() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run python tests/layouts.py"


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_image_of_a_known_layout_gets_its_class(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    root = tmp_path / "root"
    make(root, layout.files)
    source = open_source(root, layout)
    assert source.strays == layout.strays
    if layout.train is None:
        assert source.splits == ("val",)
        assert found(source, "val") == layout.val
        assert "validation images only" in source.notes[0]
        return
    assert source.splits == ("train", "val")
    train, val = found(source, "train"), found(source, "val")
    if layout.val:
        assert (train, val) == (layout.train, layout.val)
    else:  # split by the seeded rule
        assert set(val.values()) == set(train.values()) == set(source.classes)
        assert {**train, **val} == layout.train
        assert len(train) + len(val) == len(layout.train)


REFUSED: dict[str, tuple[Files, str]] = {
    "nothing": ({".hidden": "x"}, "is empty: it holds nothing; supported layouts: train/CLASS"),
    "no images": (
        {"a/b/notes.md": "x", "a/c/more.md": "x"},
        r"no images: it holds level 1: 1 folders \(a\); level 2: 2 folders \(a/b\); level 3: "
        r"2 other files \(a/b/notes\.md\); supported layouts",
    ),
    "Parquet": ({"data/train-00000-of-00294.parquet": "x"}, "Parquet files .* cannot be read"),
    "TFRecord": ({"train-00000-of-01024": "x"}, "TFRecord files cannot be read, so unpack them"),
    "LMDB": (
        {"train/data.mdb": "x", "val/data.mdb": "x"},
        r"such as data\.mdb \(an LMDB database\)",
    ),
    "empty val/": (TRAIN | {"val/.keep": ""}, "val/ is empty; add images to it"),
    "val/ without images": (TRAIN | {"val/notes.txt": "x"}, r"val/ has no images, but 1 other f"),
    "training images alone": (TRAIN, "has train/ but no folder val/; add it, or set source to"),
    "training folders alone": (
        {**TRAIN, "notes/readme.txt": "x"},
        "has train/ but no folder val/",
    ),
    "validation images beside other images": (
        {**WHOLE, **{name: "" for name in SPLIT if "val" in name}},
        "has val/ and other images in cat/, but no folder train/; rename cat/, or set source to",
    ),
    "an empty class folder": (
        {**SPLIT, "train/cow/notes.txt": "x"},
        r"'cow' contains no images \(.*\), but 1 other files, such as notes\.txt",
    ),
    "no labels": (
        TRAIN | FLAT,
        r"val/ has 2 images without labels and in no class folders, such as val/ILSVRC2012_val_"
        r"00000001\.JPEG; add LOC_val_solution\.csv, val\.txt or the development kit, or set "
        r"labels=FILE",
    ),
    "a list that only counts": (
        {**TRAIN, **FLAT, "val.txt": LIST.split()[0] + " 1\n" + LIST.split()[2] + " 2\n"},
        "2 images without labels",
    ),
    "a label too few": (
        {**TRAIN, **FLAT, "val.txt": LIST.splitlines()[0]},
        r"1 images, such as val/ILSVRC2012_val_00000002\.JPEG, have no label in val\.txt; add it",
    ),
    "a label without class": (
        {**TRAIN, **FLAT, "val.txt": LIST.split()[0]},
        "1 images, such as .*000002.JPEG, have no label",
    ),
    "a line without class": (
        {**TRAIN, **FLAT, "val.txt": LIST + "other.JPEG\n"},
        r"labels=val\.txt: has the line 'other\.JPEG' without a class",
    ),
    "two labels of an image": (
        {**TRAIN, **FLAT, "val.txt": LIST + LIST.replace(A, "n02")},
        "gives ILSVRC2012_val_00000002.JPEG two classes, n01440764 and n02",
    ),
    "a number too large": (
        {**TRAIN, **FLAT, "val.txt": LIST.split()[0] + " 2\n" + LIST.split()[2] + " 0\n"},
        "has label 2, but the classes are numbered 0 to 1 in sorted order; give their names",
    ),
    "an empty list": ({**TRAIN, **FLAT, "val.txt": "\n"}, "is empty; give a list of image name"),
    "a class that only val has": (
        {**TRAIN, **FLAT, "val.txt": LIST.replace(A, "n02")},
        "class n01440764 is in train but not in val",
    ),
    "Tiny ImageNet without its annotations": (
        {name: text for name, text in TINY.items() if "annotations" not in name},
        "val/images/ has 2 images without labels",
    ),
    "two training folders": (
        {**SPLIT, "Train/cat/9.jpg": "", "Train/dog/8.jpg": ""},
        "has both Train/ and train/; rename or move one",
    ),
    "one image of a class": (
        {name: "" for name in WHOLE if "3" not in name},
        "'dog' contains one image",
    ),
    "a damaged class archive": (
        {name.replace("train/cat/1.jpg", "train/cat.tar"): "" for name in SPLIT},
        r"train/cat\.tar: the archive is damaged",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_source_that_is_not_understood_is_answered_with_what_was_seen(
    tmp_path: Path, name: str
) -> None:
    files, message = REFUSED[name]
    make(tmp_path, files)
    with pytest.raises(ConfigError, match=message) as caught:
        open_source(tmp_path, Layout({}, None, {}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        (SPLIT, "val.txt", "is not used: all images are in class folders; remove this setting"),
        (FLAT, "none.txt", "is not a text file; give a list of image names and classes"),
        (KAGGLE, "ILSVRC/ImageSets/CLS-LOC/val.txt", "numbers the images 1, 2, 3 …, and gives no"),
        (
            {**FLAT, "ILSVRC2012_validation_ground_truth.txt": "1\n"},
            "ILSVRC2012_validation_ground_truth.txt",
            r"has no data/meta\.mat or no validation ground truth",
        ),
    ],
)
def test_labels_that_cannot_be_used_are_refused(
    tmp_path: Path, files: Files, labels: str, message: str
) -> None:
    make(tmp_path, files)
    with pytest.raises(ConfigError, match=message):
        open_source(tmp_path, Layout({}, None, {}, labels=labels))


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        ([str(number) for number in range(12)], "label 2 is class '10', not '2'"),
        (["class 10", "class 9"], "label 0 is class 'class 10', not 'class 9'"),
        (["00", "01", "10"], None),
        (["n01440764", "n02102040"], None),
    ],
)
def test_numbered_classes_that_are_sorted_as_text_are_warned_about(
    tmp_path: Path, names: list[str], warned: str | None
) -> None:
    make(tmp_path, {f"{split}/{name}/1.jpg": "" for split in ("train", "val") for name in names})
    source = open_source(tmp_path, Layout({}, None, {}))
    assert source.classes == tuple(sorted(names))
    assert [warned in note for note in source.notes] == ([] if warned is None else [True])


def test_labels_without_images_are_reported(tmp_path: Path) -> None:
    files = {name: text for name, text in FLAT.items() if "00000001" in name}
    make(tmp_path, {**files, "val.txt": LIST})
    source = open_source(tmp_path, Layout({}, None, {}, "val"))
    assert source.notes[1] == f"only 1 of the 2 images in {tmp_path}/val.txt are present"
    assert len(source.classes) == 2


@pytest.mark.parametrize("name", ["Kaggle's ILSVRC", "Tiny ImageNet", "Tiny ImageNet's zip"])
def test_lists_of_words_give_the_classes_names(tmp_path: Path, name: str) -> None:
    make(tmp_path, LAYOUTS[name].files)
    source = open_source(tmp_path, LAYOUTS[name])
    assert source.titles == ("tench, Tinca tinca", "English springer")


def test_the_list_of_labels_is_part_of_the_identity(tmp_path: Path) -> None:
    identities = []
    for text in (LIST, LIST.replace(A, "n9"), LIST):
        make(tmp_path, {**FLAT, "val.txt": text})
        identities.append(locate(PrepareConfig(str(tmp_path / "val"), "unused")).identity)
    assert identities[0] == identities[2] != identities[1]


def test_how_a_tar_is_split_is_part_of_the_identity(tmp_path: Path) -> None:
    make(tmp_path, {**under("a.tar!", WHOLE), **under("b.tar!", SPLIT)})

    def identity(name: str, **settings: float) -> dict[str, object]:
        return locate(PrepareConfig(str(tmp_path / name), "unused", **settings)).identity

    assert identity("a.tar") != identity("a.tar", val_percent=50) != identity("a.tar", seed=1)
    assert identity("b.tar") == identity("b.tar", val_percent=50, seed=1)  # already split


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    make(tmp_path, SPLIT)
    (tmp_path / "train" / "cat" / "loop").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "cat" / "self").symlink_to(tmp_path / "train" / "cat" / "self")
    (tmp_path / "val" / "owl").symlink_to(tmp_path / "val" / "dog")
    (tmp_path / "train" / "owl").symlink_to(tmp_path / "train" / "dog")
    source = open_source(tmp_path, Layout({}, None, {}))
    assert [entry.label for entry in source.entries("train")] == [0, 1, 2]
    assert source.classes == ("cat", "dog", "owl")  # other links are


def test_a_class_folder_named_by_dots_is_a_class(tmp_path: Path) -> None:
    make(tmp_path, {name.replace("cat", "..."): "" for name in SPLIT})
    assert open_source(tmp_path, Layout({}, None, {})).classes == ("...", "dog")


def zip_member(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    return member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (zip_member("train/cat/../../../x.jpg"), "has an unsafe path"),
        (zip_member("..\\..\\x.jpg"), "has an unsafe path"),
        (zip_member("../../.x.jpg"), "has an unsafe path"),
        (zip_member("/etc/x.jpg"), "has an unsafe path"),
        (zip_member("train/cat/link.jpg", 0o120777), "is not a regular file"),
    ],
)
def test_a_hostile_zip_is_refused_as_a_whole(
    tmp_path: Path, member: zipfile.ZipInfo, message: str
) -> None:
    make(tmp_path, under("a.zip!", SPLIT))
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr(member, b"/etc/passwd")
    with pytest.raises(ConfigError, match=f"{message}; do not use this archive"):
        open_source(tmp_path, Layout({}, None, {}, "a.zip"))


@pytest.mark.parametrize("damage", ["encrypted", "cut", "changed", "compressed otherwise"])
def test_a_damaged_or_encrypted_zip_is_refused(tmp_path: Path, damage: str) -> None:
    make(tmp_path, under("a.zip!", SPLIT))
    path = tmp_path / "a.zip"
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    if damage == "encrypted":
        data[central + 8] |= 1
    elif damage == "cut":
        del data[-40:]
    elif damage == "changed":  # the second member is compressed, and has a checksum
        data[data.index(b"PK\x03\x04", 4) + 50] ^= 1
    else:
        second = data.index(b"PK\x01\x02", central + 4)
        data[second + 10] = data[data.index(b"PK\x03\x04", 4) + 8] = 97
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"is encrypted; do not|the archive is damaged"):
        list(open_source(tmp_path, Layout({}, None, {}, "a.zip")).entries("train"))


def test_tiny_imagenet_is_a_known_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXNET2012_HOME", str(tmp_path))
    make(tmp_path / "downloads", under("tiny-imagenet-200.zip!tiny-imagenet-200/", TINY))
    data = (tmp_path / "downloads" / "tiny-imagenet-200.zip").read_bytes()
    published = REMOTE_FILES["tinyimagenet"]
    assert (published.name, published.size) == ("tiny-imagenet-200.zip", 248_100_043)
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    made = replace(published, digest=digest, size=len(data))
    monkeypatch.setitem(REMOTE_FILES, "tinyimagenet", made)
    with locate(PrepareConfig("tinyimagenet", "unused")).open(tmp_path, False) as source:
        assert found(source, "val") == LAYOUTS["Tiny ImageNet"].val
        assert source.description.startswith("Tiny ImageNet, 200 classes")
    assert compose_config("train", TrainConfig, ["data=tinyimagenet"])[0].data.store_size == 256
