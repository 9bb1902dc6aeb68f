"""Folders of class folders and source settings: listings, splits, paths and errors."""

import os
import threading
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.compose import compose_config, hydra_overrides
from alexnet2012.config.schema import (
    ConfigError,
    DataConfig,
    EvaluateConfig,
    PrepareConfig,
    TrainConfig,
)
from alexnet2012.config.validation import default_store
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.sources.base import Entry, ImageSource
from alexnet2012.data.sources.registry import locate


def open_source(path: Path | str, **settings: float) -> ImageSource:
    config = PrepareConfig(source=str(path), store="unused", **settings)
    with locate(config).open(Path("unused"), False) as source:
        return source


def listed(source: ImageSource, split: str) -> list[tuple[str, int]]:
    return [(entry.name, entry.label) for entry in source.entries(split)]


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not decoded here")
    return root


FOUR = ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/dog/1.jpg")


def test_images_are_listed_in_order_with_any_image_suffix(tmp_path: Path) -> None:
    put(tmp_path, *FOUR, "train/cat/0.PNG", "train/cat/3.JPEG", "val/dog/2.tiff")
    source = open_source(tmp_path)
    assert source.classes == ("cat", "dog")
    assert listed(source, "train") == [
        ("train/cat/0.PNG", 0),
        ("train/cat/1.jpg", 0),
        ("train/cat/3.JPEG", 0),
        ("train/dog/1.jpg", 1),
    ]
    assert [label for _, label in listed(source, "val")] == [0, 1, 1]
    assert source.strays == ()


def test_hidden_files_are_ignored_unless_named_like_images_and_strays_are_listed(
    tmp_path: Path,
) -> None:
    put(tmp_path, *FOUR, "train/.DS_Store", "train/cat/.hidden.jpg", "train/.git/x.jpg")
    put(tmp_path, "train/cat/notes.txt", "train/readme.md", "__MACOSX/train/cat/._1.jpg")
    source = open_source(tmp_path)
    strays = ("train/cat/.hidden.jpg", "train/cat/notes.txt", "train/readme.md")
    assert source.strays == strays
    assert len(listed(source, "train")) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "empty"),
        (("train/cat/1.jpg",), "has train/ but no folder val/; add it, or set source to train/"),
        (("val/cat/1.jpg",), "has 1"),
        ((*FOUR, "train/cow/notes.txt"), "'cow' contains no images"),
        (("cat/1.jpg", "cat/2.jpg", "dog/1.jpg"), "'dog' contains one image"),
        (("readme.md",), r"has no images: it holds level 1: 1 other files \(readme.md\); under"),
        ((*FOUR, "train/cow/1.jpg"), "cow is in train but not in val"),
        ((*FOUR, "val/cow/1.jpg"), "cow is in val but not in train"),
        (("train/cat/1.jpg", "val/cat/1.jpg"), "has 1"),
        (("train/1.jpg", "val/1.jpg"), "train/ has 1 images without labels and in no class fold"),
        ((*FOUR, "train/a\tb/1.jpg"), "unprintable"),
    ],
)
def test_an_unusable_folder_is_refused_in_one_line(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    put(tmp_path, *names)
    with pytest.raises(ConfigError, match=message) as caught:
        open_source(tmp_path)
    assert caught.value.key == "data.source"
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_a_file_have_different_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is a file"):
        open_source(put(tmp_path, "file") / "file")


def test_class_folder_names_that_are_not_text_are_refused(tmp_path: Path) -> None:
    put(tmp_path, *FOUR)
    put(tmp_path, f"train/{os.fsdecode(bytes([255]))}/1.jpg")
    with pytest.raises(ConfigError, match="unprintable"):
        open_source(tmp_path)


@pytest.mark.parametrize("held_out", ["valid", "validation", "test"])
def test_the_validation_folder_may_have_another_name(tmp_path: Path, held_out: str) -> None:
    put(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", f"{held_out}/cat/2.jpg")
    put(tmp_path, f"{held_out}/dog/2.jpg")
    names = [name for name, _ in listed(open_source(tmp_path), "val")]
    assert names == [f"{held_out}/cat/2.jpg", f"{held_out}/dog/2.jpg"]


def test_a_folder_without_a_split_is_split_by_names_and_seed(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{index}.jpg" for name in ("cat", "dog") for index in range(50)))
    source = open_source(tmp_path, val_percent=20)
    train, val = listed(source, "train"), listed(source, "val")
    assert len(val) == 20
    assert sorted(train + val) == sorted(
        (f"{name}/{index}.jpg", label)
        for label, name in enumerate(("cat", "dog"))
        for index in range(50)
    )
    assert listed(open_source(tmp_path, val_percent=20), "val") == val
    assert listed(open_source(tmp_path, val_percent=20, seed=1), "val") != val
    # An added image moves at most one image of its class to the other split.
    put(tmp_path, "cat/new.jpg")
    moved = set(listed(open_source(tmp_path, val_percent=20), "val")) ^ set(val)
    assert len(moved) <= 2
    assert all(name.startswith("cat/") for name, _ in moved)


def test_every_class_has_an_image_in_both_splits(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg")
    for percent in (0.1, 99.9):
        source = open_source(tmp_path, val_percent=percent)
        assert [label for _, label in listed(source, "train")] == [0, 1]
        assert [label for _, label in listed(source, "val")] == [0, 1]


def test_a_named_pipe_is_a_stray_and_never_read(tmp_path: Path) -> None:
    put(tmp_path, *FOUR)
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.jpg")
    read: list[bytes] = []

    def read_all() -> None:
        source = open_source(tmp_path)
        assert source.strays == ("train/cat/pipe.jpg",)
        read.extend(entry.read() for entry in source.entries("train"))

    reader = threading.Thread(target=read_all, daemon=True)
    reader.start()
    reader.join(10)
    assert len(read) == 2


@pytest.mark.parametrize("size", [-1, 10])
def test_a_file_that_is_too_large_or_too_short_gives_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    (tmp_path / "images").write_bytes(b"0123456789")
    entry = Entry("1.jpg", 0, str(tmp_path / "images"), size=size)
    monkeypatch.setattr("alexnet2012.data.sources.base.MAX_FILE_BYTES", 10)
    assert entry.read() == b"0123456789"
    monkeypatch.setattr("alexnet2012.data.sources.base.MAX_FILE_BYTES", 9)
    with pytest.raises(ValueError, match="10 bytes exceeds the limit of 9"):
        entry.read()
    with pytest.raises(ValueError, match="truncated: 7 of 8 bytes"):
        entry._replace(offset=3, size=8).read()
    assert entry._replace(offset=3, size=2).read() == b"34"


@pytest.mark.parametrize(
    ("source", "store"),
    [
        (".", "/a/b/here-store-72"),
        ("..", "/a/b-store-72"),
        ("pets/", "/a/b/here/pets-store-72"),
        ("/c/pets.tar", "/c/pets.tar-store-72"),
        ("~/pets", "/a/pets-store-72"),
        ("photos", "/a/stores/photos-72"),
    ],
)
def test_the_default_store_is_next_to_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, store: str
) -> None:
    here = tmp_path / "a" / "b" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "a"))
    monkeypatch.setenv("ALEXNET2012_HOME", "~/stores")
    expected = store if source.startswith("/") else f"{tmp_path}{store}"
    assert default_store(DataConfig(source=source, store_size=72)) == expected


def test_a_missing_home_directory_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"data\.source=~nosuch/pets: no such home directory"):
        locate(PrepareConfig("~nosuch/pets", str(tmp_path / "store")))
    with pytest.raises(ConfigError, match=r"data\.store=~nosuch/s: no such home directory"):
        prepare(PrepareConfig("photos", "~nosuch/s"))
    monkeypatch.delenv("ALEXNET2012_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as in a container without user accounts
    with pytest.raises(ConfigError, match=r"ALEXNET2012_HOME=~/\.cache/alexnet2012: "):
        default_store(DataConfig(source="photos"))


@pytest.mark.parametrize("name", ["2024_06", "007", "1e3", "true", "nan", "plain"])
def test_a_path_that_looks_like_a_number_stays_text(name: str) -> None:
    prepared, _ = compose_config("prepare", PrepareConfig, [f"store={name}", "seed=1_0"])
    assert (prepared.store, prepared.seed) == (name, 10)
    trained, _ = compose_config("train", TrainConfig, [f"data.store={name}", "model.width=.5"])
    assert trained.data.store == str(Path.cwd() / name)
    assert trained.model.width == 0.5


@pytest.mark.parametrize("flags", [[], ["--multirun"]])
def test_number_like_paths_stay_text_in_hydra_applications_and_sweeps(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stores = ["2024_06", "1e3"] if flags else ["2024_06"]
    words = ["source=007", f"store={','.join(stores)}", "quality=9_0"]
    monkeypatch.setattr("sys.argv", ["prepare", *flags, *words])
    configs = []
    hydra_main("prepare", PrepareConfig, lambda config, _: configs.append(config))
    assert [(c.source, c.store, c.quality) for c in configs] == [("007", s, 90) for s in stores]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("checkpoint=[2024_06,b,007]", ["2024_06", "b", "007"]),
        ("checkpoint='1_0'", "1_0"),
        ("checkpoint=a 1", "a 1"),
        ("checkpoint=null", None),
    ],
)
def test_number_like_paths_in_lists_and_quotes_stay_text(written: str, read: object) -> None:
    (override,) = hydra_overrides(EvaluateConfig, [written])
    assert OverridesParser.create().parse_override(override).value() == read


def test_a_run_directory_named_with_digits_keeps_its_name() -> None:
    assert compose_config("train", TrainConfig, ["hydra.run.dir=2024_06"])[1].name == "2024_06"
    assert hydra_overrides(TrainConfig, ["seed=range(1,3)"]) == ["seed=range(1,3)"]
    assert hydra_overrides(TrainConfig, ["resume=choice(1,2)"]) == ['resume=choice("1","2")']


def identity(path: Path, **settings: float) -> dict[str, object]:
    return locate(PrepareConfig(source=str(path), store="unused", **settings)).identity


def test_identity_depends_on_the_images_and_not_on_their_location(tmp_path: Path) -> None:
    here = put(tmp_path / "a" / "pets", *FOUR)
    there = put(tmp_path / "b" / "pets", *FOUR)
    assert identity(here) == identity(there)
    assert identity(here, seed=1) == identity(
        there
    )  # the folder is already split, so the seed does not matter
    (there / "val" / "dog" / "1.jpg").write_bytes(b"longer than what was there before")
    assert identity(here) != identity(there)
    moved = put(tmp_path / "c" / "pets", *FOUR, "train/cat/2.jpg")
    before = identity(moved)
    (moved / "train" / "cat" / "2.jpg").rename(moved / "train" / "dog" / "2.jpg")
    assert identity(moved) != before


def test_an_unknown_source_name_is_refused_with_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"photos, cifar10, imagenette") as caught:
        identity(tmp_path / "imagnet")
    assert caught.value.key == "data.source"


def test_a_class_folder_of_three_dots_is_a_class(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("...", "cat"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.jpg").touch()
    assert open_source(tmp_path).classes == ("...", "cat")
