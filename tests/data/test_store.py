"""Preparation and the store: files, statistics and rejects; resumption and reproducibility."""

import errno
import json
import math
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from alexnet2012.config.enums import OnReject
from alexnet2012.config.schema import ConfigError, PrepareConfig, RunError
from alexnet2012.data.preparation import prepare as prepare_module
from alexnet2012.data.preparation import progress
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.sources.base import Entry
from alexnet2012.data.store import Store

CLASSES = ("cat", "dog", "owl")
JOB = 4  # images


def image(seed: int) -> Image.Image:
    """Smooth colours with some noise, of a size and shape that depend on the seed."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(40, 90, size=2)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=int)
    noisy = smooth + rng.integers(-15, 16, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def make_source(root: Path, train: int = 15, val: int = 3) -> Path:
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                seed = 1000 * label + 2 * index + (split == "val")
                image(seed).save(root / split / name / f"{index}.jpg", quality=90)
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def store(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare(settings(source, tmp_path_factory.mktemp("made") / "store"), progress=False)


def settings(source: Path, store: Path, **others: int) -> PrepareConfig:
    return PrepareConfig(
        source=str(source), store=str(store), **{"size": 32, "workers": 1, **others}
    )


def content(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_every_image_is_stored_square_listed_and_labelled(store: Store) -> None:
    assert store.classes == CLASSES
    for name, each in (("train", 15), ("val", 3)):
        split = store.split(name)
        assert split.labels.tolist() == [label for label in range(3) for _ in range(each)]
        for path, label in zip(split.paths, split.labels, strict=True):
            assert Path(path).is_absolute()
            assert Path(path).parent.name == CLASSES[label]
            with Image.open(path) as stored:
                assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", (32, 32))


@pytest.mark.parametrize("images_before", [1, 10, 47, 53])
def test_a_resumed_preparation_does_not_repeat_saved_work(
    source: Path,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saving: None,
    images_before: int,
) -> None:
    reads: list[str] = []
    read, patience = Entry.read, images_before

    def counted(entry: Entry) -> bytes:
        if len(reads) == patience:
            raise KeyboardInterrupt
        reads.append(entry.name)
        return read(entry)

    monkeypatch.setattr(Entry, "read", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare(settings(source, tmp_path / "store"), progress=False)
    before, reads, patience = reads, [], -1
    prepare(settings(source, tmp_path / "store"), progress=False)
    assert content(tmp_path / "store") == content(store.root)
    again = set(before).intersection(reads)
    assert len(again) < JOB
    assert len(before) + len(reads) == 54 + len(again)


def test_a_narrowed_store_has_only_its_first_classes(store: Store) -> None:
    narrow, whole = store.narrowed(2), store.split("train")
    assert narrow.classes == CLASSES[:2]
    kept = whole.labels < 2
    assert narrow.split("train").labels.tolist() == whole.labels[kept].tolist()
    assert list(narrow.split("train").paths) == list(np.array(whole.paths)[kept])
    assert len(narrow.split("val", limit=1).paths) == 2
    assert store.narrowed(None) is store
    last = store.narrowed(1, skip_classes=2)
    assert last.classes == CLASSES[2:3]
    assert last.split("train").labels.tolist() == [0] * int(sum(whole.labels == 2))
    assert list(last.split("train").paths) == list(np.array(whole.paths)[whole.labels == 2])
    assert store.narrowed(None, skip_classes=1).classes == CLASSES[1:]
    with pytest.raises(ConfigError, match=r"data.first_classes=3: must be 1 to 2, .*, less data"):
        store.narrowed(3, skip_classes=1)
    for count in (-1, 3):
        with pytest.raises(ConfigError, match=rf"data.skip_classes={count}: must be 0 to 2"):
            store.narrowed(None, skip_classes=count)
    for count in (0, 4):
        with pytest.raises(ConfigError, match=rf"data.first_classes={count}: must be 1 to 3"):
            store.narrowed(count)


def test_mean_and_covariance_are_those_of_the_stored_training_pixels(store: Store) -> None:
    pixels = np.stack(
        [simplejpeg.decode_jpeg(Path(path).read_bytes()) for path in store.split("train").paths]
    ).astype(np.float64)
    # Integer sums and one division: the mean is exact up to rounding to float32.
    assert np.array_equal(store.mean_image, pixels.mean(axis=0).astype(np.float32))
    assert store.mean_image.dtype == np.float32
    # np.cov sums 46,080 float64 terms, with a relative error of up to 1e-12.
    expected = np.cov(pixels.reshape(-1, 3).T, bias=True)
    assert np.allclose(store.rgb_covariance, expected, rtol=1e-12)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_is_bit_identical_for_any_number_of_workers(
    store: Store, source: Path, tmp_path: Path, workers: int
) -> None:
    again = prepare(settings(source, tmp_path / "store", workers=workers), progress=False)
    assert content(again.root) == content(store.root)


def test_the_fingerprint_depends_on_every_image(store: Store, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    image(77).save(source / "val" / "owl" / "2.jpg")
    changed = prepare(settings(source, tmp_path / "store"), progress=False)
    assert changed.fingerprint != store.fingerprint


def test_limit_keeps_the_first_images_of_each_class(store: Store) -> None:
    split = store.split("train", limit=2)
    names = [Path(path).relative_to(store.root).as_posix() for path in split.paths]
    firsts = [(name, 15 * label + index) for label, name in enumerate(CLASSES) for index in (0, 1)]
    assert names == [f"train/{name}/{number:07d}.jpg" for name, number in firsts]
    assert split.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(store.split("train", limit=10**6).paths) == 45
    with pytest.raises(ConfigError, match="limit=0"):
        store.split("train", limit=0)


def test_unusable_files_are_listed_counted_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_source(tmp_path / "source")
    cat = source / "train" / "cat"
    whole = (cat / "0.jpg").read_bytes()
    (cat / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (cat / "text.jpg").write_text("not a image")
    (cat / "zero.jpg").write_bytes(b"")
    (cat / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (cat / "notes.txt").write_text("not even called like one")
    image(1).save(cat / "really_png.jpg", "PNG")

    made = prepare(settings(source, tmp_path / "store"), progress=False)
    lines = (made.root / "rejects.jsonl").read_text().splitlines()
    rejects = {json.loads(line)["file"]: json.loads(line) for line in lines}
    bad = ("gone.jpg", "notes.txt", "text.jpg", "truncated.jpg", "zero.jpg")
    assert sorted(rejects) == [f"train/cat/{name}" for name in bad]
    assert "Premature end" in rejects["train/cat/truncated.jpg"]["reason"]
    assert "supported format" in rejects["train/cat/text.jpg"]["reason"]
    assert "empty" in rejects["train/cat/zero.jpg"]["reason"]
    assert "No such file" in rejects["train/cat/gone.jpg"]["reason"]
    assert rejects["train/cat/zero.jpg"]["class"] == "train/cat"

    stored = {json.loads(row[3]) for row in rows(made, "train")}
    assert "train/cat/really_png.jpg" in stored
    assert not stored & rejects.keys()
    manifest = json.loads((made.root / "manifest.json").read_text())
    assert manifest["pictures"]["train"] == {"cat": 16, "dog": 15, "owl": 15}
    assert manifest["rejected"] == {"unusable": 4, "strays": 1}
    assert manifest["listed"] == 45 + 1 + 9 + 4
    assert manifest["traits"]["png"] == 1
    assert len(list(cat.iterdir())) == 16 + 4 + 1  # stored and rejected files are all files
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[1:])) <= 80  # after the line with the path
    summary = " ".join(out.split())
    assert "46 training and 9 validation images in 3 classes" in summary
    assert "1 png" in summary
    assert "; 5 files rejected, see rejects.jsonl" in summary


def test_rejected_images_do_not_affect_the_statistics(store: Store, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    (source / "train" / "cat" / "text.jpg").write_text("not a image")
    made = prepare(settings(source, tmp_path / "store"), progress=False)
    assert np.array_equal(made.mean_image, store.mean_image)
    assert np.array_equal(made.rgb_covariance, store.rgb_covariance)


def test_files_with_clashing_or_unusual_names_are_all_kept(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", train=1, val=1)
    names = [
        "0.png",
        "0.JPG",
        "0.jpg.png",
        "a\tb.png",
        "a\nb.png",
        "ä.png",
        os.fsdecode(b"\xff.png"),
    ]
    for seed, name in enumerate(names):
        image(seed).save(source / "train" / "cat" / name)
    made = prepare(settings(source, tmp_path / "store"), progress=False)
    kept = [json.loads(name) for _, label, _, name in rows(made, "train") if label == "0"]
    assert sorted(kept) == sorted(f"train/cat/{name}" for name in ["0.jpg", *names])
    assert all(Path(path).is_file() for path in made.split("train").paths)


def rows(store: Store, split: str) -> list[list[str]]:
    return [line.split("\t") for line in (store.root / f"{split}.tsv").read_text().splitlines()]


@pytest.mark.parametrize("where", ["train", "val"])
def test_a_class_without_usable_images_is_an_error_and_leaves_no_files(
    tmp_path: Path, where: str
) -> None:
    source = make_source(tmp_path / "source", train=2, val=2)
    for path in (source / where / "dog").iterdir():
        path.write_text("not a image")
    with pytest.raises(ConfigError, match=f"no usable images in {where}/dog") as caught:
        prepare(settings(source, tmp_path / "out" / "store"), progress=False)
    assert caught.value.key == "data.source"
    assert "supported format" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_existing_store_is_opened_and_not_made_again(store: Store, source: Path) -> None:
    before = (store.root / "manifest.json").stat().st_mtime_ns
    again = prepare(settings(source, store.root, workers=2), progress=False)
    assert again.fingerprint == store.fingerprint
    assert (store.root / "manifest.json").stat().st_mtime_ns == before


def test_a_store_with_other_settings_is_refused_naming_both_values(
    store: Store, source: Path
) -> None:
    with pytest.raises(ConfigError, match=r"size=32, but 48 was requested; remove it"):
        prepare(settings(source, store.root, size=48), progress=False)
    make_source(source.parent / "elsewhere")
    with pytest.raises(ConfigError, match=r"source=.*source.*but .*elsewhere was requested"):
        prepare(settings(source.parent / "elsewhere", store.root), progress=False)


def test_a_store_whose_source_images_changed_is_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", train=2, val=1)
    prepare(settings(source, tmp_path / "store"), progress=False)
    image(77).save(source / "train" / "owl" / "new.jpg")
    with pytest.raises(ConfigError, match="differ from those now in source; remove it"):
        prepare(settings(source, tmp_path / "store"), progress=False)


def test_on_reject_fail_stops_at_the_first_reject_and_names_it(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", train=2, val=1)
    (source / "train" / "dog" / "bad.jpg").write_text("not a image")
    strict = PrepareConfig(
        source=str(source), store=str(tmp_path / "out" / "store"), size=32, workers=1
    )
    strict.on_reject = OnReject.fail
    with pytest.raises(ConfigError, match=r"train/dog/bad\.jpg: not an image"):
        prepare(strict, progress=False)
    assert not (tmp_path / "out").exists()


def test_an_io_error_does_not_reject_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "source", train=2, val=1)
    real, failing = Entry.read, True

    def read(entry: Entry) -> bytes:
        if failing and entry.name == "train/owl/1.jpg":
            raise OSError(errno.EIO, "Input/output error")
        return real(entry)

    monkeypatch.setattr(Entry, "read", read)
    with pytest.raises(RunError, match=r"Input/output error; completed work is kept"):
        prepare(settings(source, tmp_path / "store"), progress=False)
    assert not (tmp_path / "store").exists()
    failing = False
    assert (
        len(prepare(settings(source, tmp_path / "store"), progress=False).split("train").paths) == 6
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_on_reject_fail_includes_other_files_in_class_folders(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", train=2, val=1)
    (source / "train" / "readme.md").write_text("in no class")
    strict = settings(source, tmp_path / "store")
    strict.on_reject = OnReject.fail
    prepare(strict, progress=False)
    (source / "val" / "dog" / "notes.txt").write_text("in a class")
    strict.store = str(tmp_path / "another")
    with pytest.raises(ConfigError, match=r"fail: val/dog/notes\.txt is not recognised as an"):
        prepare(strict, progress=False)


def test_an_existing_store_with_rejects_is_refused_by_on_reject_fail(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", train=2, val=1)
    (source / "train" / "dog" / "bad.jpg").write_text("not a image")
    wanted = settings(source, tmp_path / "store")
    prepare(wanted, progress=False)
    wanted.on_reject = OnReject.fail
    with pytest.raises(ConfigError, match=r"on_reject=fail, but .*rejects\.jsonl lists rejected"):
        prepare(wanted, progress=False)


@pytest.fixture
def saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the state after every job, as in a slow preparation."""
    monkeypatch.setattr(prepare_module, "_IMAGES_PER_JOB", JOB)
    monkeypatch.setattr(progress, "_MIN_SAVE_INTERVAL_S", 0)
    monkeypatch.setattr(progress, "_MAX_SAVE_FRACTION", math.inf)


def reading(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None]) -> None:
    """Call ``before(name)`` before each image is read."""
    real = Entry.read

    def read(entry: Entry) -> bytes:
        before(entry.name)
        return real(entry)

    monkeypatch.setattr(Entry, "read", read)


@pytest.fixture
def interrupted(
    saving: None, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A preparation interrupted by Ctrl-C after its first class."""

    def interrupt(name: str) -> None:
        if "dog" in name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        reading(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings(source, tmp_path / "store"), progress=False)
    assert (tmp_path / ".store.partial" / "state.npz").exists()
    return tmp_path / "store"


def test_unfinished_work_of_another_source_or_size_is_refused_and_kept(
    interrupted: Path, source: Path, store: Store
) -> None:
    other = make_source(interrupted.parent / "other", train=2, val=1)
    for wanted, expected in (
        (settings(other, interrupted), "source"),
        (settings(source, interrupted, size=48), 32),
    ):
        with pytest.raises(ConfigError, match=rf"unfinished work with .*={expected}"):
            prepare(wanted, progress=False)
    made = prepare(settings(source, interrupted), progress=False)
    assert content(made.root) == content(store.root)


@pytest.mark.parametrize("change", ["versions", "dates"])
def test_changed_libraries_or_images_restart_unfinished_work_with_a_notice(
    interrupted: Path,
    source: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    reads: list[str] = []
    reading(monkeypatch, reads.append)
    if change == "versions":
        monkeypatch.setattr(progress, "_versions", lambda: {"numpy": "another"})
    else:
        os.utime(source / "train" / "owl" / "7.jpg", ns=(1, 1))
    made = prepare(settings(source, interrupted), progress=False)
    assert len(reads) == 54  # all images
    assert "starting over" in capsys.readouterr().out
    assert made.fingerprint == store.fingerprint


def test_a_preparation_resumes_after_a_user_error_is_corrected(
    saving: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "source", train=5, val=1)
    (source / "train" / "owl" / "bad.jpg").write_text("not a image")
    wanted = settings(source, tmp_path / "store")
    wanted.on_reject = OnReject.fail
    reads: list[str] = []
    reading(monkeypatch, reads.append)
    with pytest.raises(ConfigError, match="on_reject=fail"):
        prepare(wanted, progress=False)
    wanted.on_reject = OnReject.skip
    made = prepare(wanted, progress=False)
    assert len(made.split("train").paths) == 15
    # 16 until the end of the job with the bad image, then 19 minus the three jobs before it.
    assert len(reads) == 16 + (19 - 3 * JOB)


def test_rejects_of_unfinished_work_count_for_on_reject_fail(
    saving: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "source", train=5, val=1)
    (source / "train" / "cat" / "bad.jpg").write_text("not a image")
    wanted = settings(source, tmp_path / "store")

    def interrupt(name: str) -> None:
        if "owl" in name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        reading(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(wanted, progress=False)
    wanted.on_reject = OnReject.fail
    reads: list[str] = []
    reading(monkeypatch, reads.append)
    with pytest.raises(ConfigError, match=r"on_reject=fail: train/cat/bad\.jpg"):
        prepare(wanted, progress=False)
    assert reads == []


@pytest.mark.parametrize("change", ["newcomer", "rewritten", "renamed", "removed"])
def test_images_that_change_during_the_preparation_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    source = make_source(tmp_path / "source", train=2, val=1)
    first = source / "train" / "cat" / "0.jpg"

    def meddle(name: str) -> None:
        if name != "val/owl/0.jpg":
            return
        if change == "newcomer":
            image(5).save(source / "train" / "dog" / "new.jpg")
        elif change == "rewritten":
            first.write_bytes(first.read_bytes()[::-1])  # of the same length
            os.utime(first, ns=(2, 2))  # the file system's clock may be too coarse
        elif change == "renamed":
            first.rename(first.with_stem("0a"))
        else:
            first.unlink()

    with monkeypatch.context() as patch:
        reading(patch, meddle)
        with pytest.raises(ConfigError, match="changed during the preparation"):
            prepare(settings(source, tmp_path / "store"), progress=False)
    assert not (tmp_path / "store").exists()
    image(6).save(first)
    prepare(settings(source, tmp_path / "store"), progress=False)


def test_a_source_folder_is_listed_only_twice(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alexnet2012.data.sources import image_tree

    listings: list[object] = []
    real = image_tree.ImageTree.__init__

    def counted(tree: image_tree.ImageTree, *rest: object) -> None:
        listings.append(rest)
        real(tree, *rest)

    monkeypatch.setattr(image_tree.ImageTree, "__init__", counted)
    prepare(settings(source, tmp_path / "store"), progress=False)
    assert len(listings) == 2  # before and after the work
    prepare(settings(source, tmp_path / "store"), progress=False)
    assert len(listings) == 3


def test_a_store_outlives_its_source(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", train=2, val=1)
    made = prepare(settings(source, tmp_path / "store"), progress=False)
    shutil.rmtree(source)
    again = prepare(settings(source, tmp_path / "store"), progress=False)
    assert again.fingerprint == made.fingerprint
    with pytest.raises(ConfigError, match="size=32, but 48 was requested"):
        prepare(settings(source, tmp_path / "store", size=48), progress=False)
    with pytest.raises(ConfigError, match="source=source, but elsewhere was requested"):
        prepare(settings(tmp_path / "elsewhere", tmp_path / "store"), progress=False)
    with pytest.raises(ConfigError, match="does not exist"):
        prepare(settings(source, tmp_path / "another"), progress=False)


def test_a_store_inside_its_source_folder_is_refused(tmp_path: Path) -> None:
    split = make_source(tmp_path / "split", train=2, val=1)
    shutil.copytree(split / "train", tmp_path / "whole")
    for source, store in ((split, split / "train" / "s"), (tmp_path / "whole", "whole/s")):
        with pytest.raises(ConfigError, match="is inside the source folder"):
            prepare(settings(source, tmp_path / store), progress=False)
    prepare(settings(split, split / "store"), progress=False)  # next to train/ is allowed


def test_a_folder_that_is_not_a_store_is_left_unchanged(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not a store"):
        prepare(settings(source, tmp_path / "mine"), progress=False)
    assert content(tmp_path / "mine") == {"thesis.tex": b"years of work"}


def test_an_empty_folder_may_become_a_store(source: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert prepare(settings(source, tmp_path / "store"), progress=False).classes == CLASSES
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(
    ("key", "value"), [("size", 0), ("quality", 101), ("workers", 0), ("seed", -1)]
)
def test_settings_out_of_range_are_refused(
    source: Path, tmp_path: Path, key: str, value: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(settings(source, tmp_path / "store", **{key: value}), progress=False)
    assert (caught.value.key, caught.value.value) == (key, value)


def test_a_missing_store_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"python -m alexnet2012\.prepare") as caught:
        Store.open(tmp_path / "nowhere")
    assert caught.value.key == "data.store"


@pytest.mark.parametrize("part", ["manifest.json", "mean_image.npy", "train.tsv", "val.tsv"])
@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_a_damaged_store_is_not_opened(
    source: Path, tmp_path: Path, part: str, damage: str
) -> None:
    made = prepare(settings(source, tmp_path / "store"), progress=False)
    path = made.root / part
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_bytes(b"{}" if part == "manifest.json" else whole[::-1])
    with pytest.raises(ConfigError, match=r"alexnet2012\.prepare") as caught:
        Store.open(made.root)
    assert caught.value.key == "data.store"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("classes", ["dog", "cat", "owl"]), ("description", "ImageNet"), ("listed", 53)],
)
def test_an_edited_manifest_is_detected(
    store: Store, tmp_path: Path, key: str, value: object
) -> None:
    shutil.copytree(store.root, tmp_path / "store")
    file = tmp_path / "store" / "manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest[key] != value
    file.write_text(json.dumps(manifest))
    assert Store.open(tmp_path / "store").classes == store.classes  # whitespace is ignored
    file.write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(ConfigError, match="do not match their checksums"):
        Store.open(tmp_path / "store")


def test_a_store_of_another_format_version_is_refused(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.root, tmp_path / "store")
    file = tmp_path / "store" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["settings"]["format"] -= 1
    file.write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="incompatible version of alexnet2012; remove it"):
        Store.open(tmp_path / "store")


def test_a_store_can_be_moved(store: Store, tmp_path: Path) -> None:
    for name, data in content(store.root).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    moved = Store.open(tmp_path)
    assert moved.fingerprint == store.fingerprint
    assert all(path.startswith(str(tmp_path)) for path in moved.split("val").paths)


def test_unusual_images_of_other_projects_are_neither_lost_nor_fatal(tmp_path: Path) -> None:
    trial = os.environ.get("ALEXNET2012_TRIAL_DATA")
    if trial is None:
        pytest.skip("ALEXNET2012_TRIAL_DATA names no folder with bad-inputs.tar")
    with tarfile.open(Path(trial) / "bad-inputs.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    source = make_source(tmp_path / "source", train=1, val=1)
    odd = [path for path in (tmp_path / "bad-inputs").rglob("*") if path.suffix.lower() != ".csv"]
    odd = [path for path in odd if path.is_file()]
    for path in odd:
        path.rename(source / "train" / "cat" / f"{path.parent.name}-{path.name}")
    made = prepare(settings(source, tmp_path / "store", workers=2), progress=False)
    rejects = (made.root / "rejects.jsonl").read_text().splitlines()
    kinds = Counter(json.loads(line)["file"].split("/")[-1].rsplit("-", 1)[0] for line in rejects)
    assert len(made.split("train").paths) + len(rejects) == len(odd) + 3
    assert len(odd) > 60
    assert not any(kind.startswith(("exif-rotated", "cmyk", "png")) for kind in kinds)


def test_the_photos_description_says_they_are_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alexnet2012.data.sources import photos

    make = photos.make_photos
    monkeypatch.setattr(
        photos,
        "make_photos",
        lambda folder, seed: make(folder, seed=seed, train_per_class=2, val_per_class=1),
    )
    made = prepare(
        PrepareConfig("photos", str(tmp_path / "store"), size=32, workers=1), progress=False
    )
    assert "no evidence about ImageNet" in made.description
    assert len(made.classes) == 16
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert str(tmp_path) not in (made.root / "manifest.json").read_text()
    assert (made.root / "rejects.jsonl").read_text() == ""


def test_an_image_that_disappears_is_an_error_and_not_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "source", train=2, val=1)
    real = Entry.read

    def read(entry: Entry) -> bytes:
        Path(entry.path).unlink()  # indistinguishable from an unmounted disk
        return real(entry)

    monkeypatch.setattr(Entry, "read", read)
    with pytest.raises(RunError, match="No such file or directory; completed work is kept"):
        prepare(settings(source, tmp_path / "store"), progress=False)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("damage", [b"", b"PK", b"PK\x03\x04 and no more", b"[1]"])
def test_a_damaged_saved_state_restarts_the_preparation(
    store: Store, source: Path, tmp_path: Path, damage: bytes
) -> None:
    work = tmp_path / ".store.partial"
    (work / "store" / "train" / "cat").mkdir(parents=True)
    (work / "store" / "train" / "cat" / "9999999.jpg").write_text("of before")
    (work / "state.npz").write_bytes(damage)
    made = prepare(settings(source, tmp_path / "store"), progress=False)
    assert content(made.root) == content(store.root)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_wrong_mean_image_is_detected(source: Path, tmp_path: Path) -> None:
    made = prepare(settings(source, tmp_path / "store"), progress=False)
    for wrong in (np.full((32, 32, 3), np.nan, np.float32), np.zeros((3, 32, 32), np.float32)):
        np.save(made.root / "mean_image.npy", wrong)
        with pytest.raises(ConfigError, match="is damaged"):
            Store.open(made.root)
    np.savez(made.root / "mean_image.npz", a=np.zeros(3))
    (made.root / "mean_image.npz").rename(made.root / "mean_image.npy")
    with pytest.raises(ConfigError, match="is damaged"):
        Store.open(made.root)


def test_an_unwritable_location_is_named_with_a_remedy() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.store=/proc/no/store: cannot be created \(No such"
    ):
        prepare(PrepareConfig(store="/proc/no/store"), progress=False)
