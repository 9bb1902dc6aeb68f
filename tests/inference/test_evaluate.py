"""Evaluation by image and by class, and on data sets whose classes are not those of the model."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from alexnet2012 import evaluate as command
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError, EvaluateConfig, PrepareConfig
from alexnet2012.config.validation import check_files
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.store import Store
from alexnet2012.inference.evaluate import evaluate_in_detail
from alexnet2012.inference.label_space import LabelSpace, label_space
from alexnet2012.inference.trained_model import TrainedModel
from alexnet2012.training.evaluation import evaluate
from alexnet2012.utils.metrics import image_errors

MODEL = ("ant", "bee", "cat", "dog")
NAMES = ("val/a/2.jpg", "val/b/1.jpg", "val/b/3.jpg")  # labels 0, 1, 1 of a store


def config_of(run: Path, **settings: Any) -> EvaluateConfig:
    return EvaluateConfig(str(run), views=1, device=Device.cpu, **settings)


def matched(store: Sequence[str], model: Sequence[str] = MODEL, **settings: Any) -> LabelSpace:
    labels = np.array([0, 1, 1])
    return label_space(config_of(Path("run"), **settings), model, store, labels, NAMES)


@pytest.fixture(scope="module")
def other_classes(photos_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two classes of the model, in another order than by name, and one that it does not know."""
    folder = tmp_path_factory.mktemp("others") / "pictures"
    for split in ("train", "val"):
        for name, source in (("rocket", "rocket"), ("coins", "coins"), ("zebra", "cell")):
            shutil.copytree(photos_folder / split / source, folder / split / name)
    settings = PrepareConfig(source=str(folder), store=f"{folder}-72", size=72, workers=1)
    return prepare(settings, progress=False)


def files_of(folder: Path) -> dict[str, str]:
    names = ("per_class.csv", "confusion.csv", "predictions.csv")
    return {name.partition(".")[0]: str(folder / name) for name in names}


def read_csv(path: str | Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(path).read_text())))


def test_the_files_of_an_evaluation_agree_with_its_errors(saved_run: Path, tmp_path: Path) -> None:
    files = files_of(tmp_path)
    found = evaluate_in_detail(config_of(saved_run, **files))
    errors = found.errors
    rows = read_csv(files["predictions"])
    assert len(rows) == errors.pictures == 48
    for k in (1, 5):
        total = sum(float(row[f"top{k}_error"]) for row in rows)
        assert total == pytest.approx(getattr(errors, f"top{k}_errors"))
    assert 0 < errors.top1_errors < 48
    for row in rows:
        guesses = [row[f"prediction_{rank}"] for rank in range(1, 6)]
        assert float(row["top1_error"]) == (guesses[0] != row["label"])
        assert float(row["top5_error"]) == (row["label"] not in guesses)
        assert row["image"].split("/")[:2] == ["val", row["label"]]
    by_class = read_csv(files["per_class"])
    assert [row["images"] for row in by_class] == ["3"] * 16
    means = found.results.mean_class_errors_pct()
    assert means["top1"] == pytest.approx(np.mean([float(r["top1_error_pct"]) for r in by_class]))
    confusion = read_csv(files["confusion"])
    assert sum(int(row[row["class"]]) for row in confusion) == 48 - errors.top1_errors
    for row in confusion:
        predicted = [r["prediction_1"] for r in rows if r["label"] == row["class"]]
        assert {name: int(row[name]) for name in row if name != "class"} == {
            name: predicted.count(name) for name in row if name != "class"
        }


def test_predictions_are_written_as_json_lines_too(saved_run: Path, tmp_path: Path) -> None:
    lines, table = tmp_path / "p.jsonl", tmp_path / "p.csv"
    for path in (lines, table):
        evaluate_in_detail(config_of(saved_run, predictions=str(path)))
    for text, row in zip(lines.read_text().splitlines(), read_csv(table), strict=True):
        found = json.loads(text)
        assert (found["image"], found["labels"]) == (row["image"], [row["label"]])
        first = found["predictions"][0]
        assert (first["class"], str(first["probability"])) == (
            row["prediction_1"],
            row["probability_1"],
        )


@pytest.mark.parametrize("views", [1, 10])
def test_classes_of_the_same_name_are_compared_and_no_other_is_a_possible_answer(
    saved_run: Path, other_classes: Store, net: TrainedModel, views: int
) -> None:
    settings = {"store": str(other_classes.root), "views": views, "device": Device.cpu}
    found = evaluate_in_detail(EvaluateConfig(str(saved_run), classes="shared", **settings))
    assert found.results.classes == ("coins", "rocket")
    assert (found.errors.pictures, found.images_left_out) == (6, 3)
    split = other_classes.split("val")
    kept = [i for i, label in enumerate(split.labels) if other_classes.classes[label] != "zebra"]
    from alexnet2012.inference.images import stored_pixels

    pixels = [stored_pixels(Path(split.paths[i]).read_bytes(), 72) for i in kept]
    crops = net.views(torch.from_numpy(np.stack(pixels)), views)
    columns = [net.classes.index(name) for name in ("coins", "rocket")]
    with torch.no_grad():
        logits = net.model(crops.flatten(0, 1))[:, columns]
    means = logits.softmax(1).unflatten(0, crops.shape[:2]).mean(1)
    expected = [("coins", "rocket")[number] for number in means.argmax(1).tolist()]
    assert [row["predictions"][0]["class"] for row in found.results.rows()] == expected


def test_an_evaluation_of_other_classes_says_how_to_compare_them(
    saved_run: Path, other_classes: Store
) -> None:
    with pytest.raises(ConfigError, match="set classes=shared to compare the 2 of the same name"):
        evaluate_in_detail(config_of(saved_run, store=str(other_classes.root)))


def test_there_is_no_top5_error_of_fewer_than_six_classes(
    saved_run: Path, other_classes: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [f"checkpoint={saved_run}", f"store={other_classes.root}", "classes=shared", "views=1"]
    files = [f"{key}={path}" for key, path in files_of(tmp_path).items()]
    config, _ = compose_config("evaluate", EvaluateConfig, [*words, *files, "device=cpu"])
    command.run(config, tmp_path)
    printed = capsys.readouterr().out
    assert "top-1" in printed
    assert "top-5" not in printed
    assert "6 validation images, 1 view; 3 images of other classes left out" in printed
    assert "top5" not in "".join(map(str, [*map(Path.read_text, tmp_path.iterdir())]))
    config.json = True
    command.run(config, tmp_path)
    found = json.loads(capsys.readouterr().out)
    assert (found["top5_error_pct"], found["mean_class_top5_error_pct"]) == (None, None)


def test_several_labels_of_an_image_are_all_right(saved_run: Path, tmp_path: Path) -> None:
    rows = list(evaluate_in_detail(config_of(saved_run)).results.rows())
    # The second prediction of the first image is right, too; the last image has no label.
    second = rows[0]["predictions"][1]["class"]
    labels = {row["image"]: row["labels"] for row in rows[:-1]}
    labels[rows[0]["image"]] = ["rocket", second]
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(labels))
    found = evaluate_in_detail(config_of(saved_run, labels=str(file)))
    assert found.errors.pictures == 47
    first = next(found.results.rows())
    assert first["labels"] == list(dict.fromkeys(["rocket", second]))
    assert first["top1_error"] == (rows[0]["predictions"][0]["class"] != "rocket")
    assert first["top5_error"] == 0
    assert first["predictions"] == rows[0]["predictions"]


@pytest.mark.parametrize(
    ("store", "model", "settings", "columns", "labels", "images"),
    [
        (("ant", "bee", "cat", "dog"), MODEL, {}, [0, 1, 2, 3], [0, 1, 1], [0, 1, 2]),
        (("dog", "zebra"), MODEL, {"classes": "shared"}, [3], [0], [0]),
        (("dog", "bee"), MODEL, {"classes": "shared"}, [1, 3], [1, 0, 0], [0, 1, 2]),
        (("3", "1"), MODEL, {"classes": "index"}, [1, 3], [1, 0, 0], [0, 1, 2]),
        (("x", "y"), ("1", "0", "2"), {"classes": "index"}, [0, 1], [1, 0, 0], [0, 1, 2]),
    ],
)
def test_classes_are_matched_by_name_or_by_number(
    store: tuple[str, ...],
    model: tuple[str, ...],
    settings: dict[str, str],
    columns: list[int],
    labels: list[int],
    images: list[int],
) -> None:
    found = matched(store, model, **settings)
    assert found.columns.tolist() == columns
    assert found.images.tolist() == images
    assert found.labels[found.images].tolist() == labels
    assert found.names == tuple(model[column] for column in columns)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{"insect": ["bee", 0], "pet": "dog"}'),
        ("c.tsv", "insect\tbee\tant\npet\tdog\n"),
    ],
)
def test_a_file_may_give_several_classes_of_the_model_for_one(
    name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    found = matched(("insect", "pet"), classes=str(tmp_path / name))
    assert found.names == ("ant", "bee", "dog")
    assert found.labels.tolist() == [[1, 0], [2, 2], [2, 2]]


def test_a_list_of_labels_is_in_the_order_of_the_file_names(tmp_path: Path) -> None:
    """As in ReaL's file, which has numbers of sorted classes by number of the image."""
    file = tmp_path / "real.json"
    file.write_text("[[2], [0, 3], []]")
    found = matched(("a", "b"), labels=str(file))  # images 2, 1 and 3
    assert found.images.tolist() == [0, 1]
    assert found.labels[:2].tolist() == [[0, 3], [2, 2]]


def test_images_of_one_file_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    file, names = tmp_path / "labels.tsv", ("val/a/1.jpg", "val/b/1.jpg", "val/b/2.jpg")
    file.write_text("1.jpg\tcat\nval/b/1.jpg\tdog\nval/b/2.jpg\t0\n")
    config, labels = config_of(Path("run"), labels=str(file)), np.array([0, 1, 1])
    found = label_space(config, MODEL, ("a", "b"), labels, names)
    assert found.images.tolist() == [1, 2]
    assert found.labels[1:].tolist() == [3, 0]


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("labels", "[[1]]", "has labels for 1 images, but the store has 3"),
        ("labels", "[[1], [9], [0]]", "names '9', which is no class of the model"),
        ("labels", '[["gnu"], [], []]', "names 'gnu', which is no class of the model"),
        ("labels", "[[true], [], []]", "names 'True', which is no class of the model"),
        ("labels", "[[], [], []]", "leaves no image with a label that the model knows"),
        ("labels", '{"other.jpg": [1]}', "leaves no image with a label that the model knows"),
        ("labels", "{", "cannot be read"),
        ("labels", "1", "neither a list nor an object"),
        ("labels", "[" * 100_000, "cannot be read"),
        ("classes", '{"gnu": "cat"}', "names 'gnu', which is no class of the store"),
        ("classes", "[1]", "must have the model's class, or classes, for each class of the store"),
        ("classes", '{"ant": {}}', "names '{}', which is no class of the model"),
    ],
)
def test_a_file_of_labels_that_cannot_be_used_is_answered_in_one_line(
    key: str, text: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        matched(MODEL, **{key: str(file)})
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("store", "model", "said"),
    [
        (("dog", "gnu"), MODEL, "its 4 classes are not the 2 of the store; set classes=shared"),
        (("0", "1"), MODEL, "set classes=index if the numbers of the store are positions"),
        (("x", "y"), ("0", "1"), "set classes=index if the numbers of the model are positions"),
        (("x", "y"), MODEL, "; set classes=FILE to say which are the same, or use another store"),
    ],
)
def test_different_classes_are_answered_with_the_way_to_compare_them(
    store: tuple[str, ...], model: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        matched(store, model)
    assert said in str(raised.value)


def test_the_error_of_several_labels_is_the_smallest_of_them() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25]])
    both = torch.tensor([[2, 1], [3, 0]])
    each = [image_errors(scores, both[:, i], (1, 2))[k] for i in (0, 1) for k in (1, 2)]
    found = image_errors(scores, both, (1, 2))
    for k, index in ((1, 0), (2, 1)):
        assert torch.equal(found[k], torch.minimum(each[index], each[index + 2]))
    assert found[2].tolist() == [0.0, 0.5]


def devkit(path: Path, classes: Sequence[str]) -> Path:
    """A development kit that numbers the classes backwards."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"),
            ("num_train_images", "O")]  # fmt: skip
    rows = [(len(classes) - i, name, name, 0, 6) for i, name in enumerate(classes)]
    mat = io.BytesIO()
    savemat(mat, {"synsets": np.array(rows, dtype=kind)})
    with tarfile.open(path, "w:gz") as tar:
        truth = b"1\n"
        for name, data in (("meta.mat", mat.getvalue()),
                           ("ILSVRC2012_validation_ground_truth.txt", truth)):  # fmt: skip
            member = tarfile.TarInfo(f"kit/data/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_a_submission_has_five_numbers_of_the_kit_for_each_image(
    saved_run: Path, net: TrainedModel, tmp_path: Path
) -> None:
    kit, out = devkit(tmp_path / "kit.tar.gz", net.classes), tmp_path / "s.txt"
    settings = {"submission": str(out), "devkit": str(kit)}
    rows = list(evaluate_in_detail(config_of(saved_run, **settings)).results.rows())
    rows.sort(key=lambda row: Path(row["image"]).name)
    lines = out.read_text().splitlines()
    assert len(lines) == len(rows) == 48
    for row, line in zip(rows, lines, strict=True):
        numbers = [16 - net.classes.index(p["class"]) for p in row["predictions"]]
        assert line == " ".join(map(str, numbers))
    other = devkit(tmp_path / "other.tar.gz", ["n1", "n2"])
    with pytest.raises(ConfigError, match=r"devkit=.*has no class 'astronaut'"):
        evaluate_in_detail(config_of(saved_run, submission=str(out), devkit=str(other)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predictions=p.txt"], "predictions=p.txt: must end in .csv or .jsonl"),
        (["per_class=no/c.csv"], "per_class=no/c.csv: the folder no does not exist; create it"),
        (["out=no/o.json"], "out=no/o.json: the folder no does not exist; create it"),
        (["submission=s.txt"], "devkit=None: is required by submission=…"),
        (["submission=s.txt", "devkit=no.tar"], "devkit=no.tar: no such file; give a file"),
        (["classes=no.json"], "classes=no.json: no such file; use shared, index or a file"),
        (["labels=/dev/zero"], "labels=/dev/zero: no such file; give a file"),
        (["checkpoint=frist"], "checkpoint=frist: does not exist; `alexnet2012 runs` lists"),
        (["checkpoint=[.,frist]"], "checkpoint=frist: does not exist; `alexnet2012 runs` lists"),
    ],
)
def test_files_are_checked_before_anything_is_loaded(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, _ = compose_config("evaluate", EvaluateConfig, ["checkpoint=.", *words])
    with pytest.raises(ConfigError) as raised:
        check_files(config)
    assert str(raised.value).startswith(said)


def test_the_loss_is_that_of_the_best_label(net: TrainedModel) -> None:
    from alexnet2012.data.loaders import Batch
    from alexnet2012.utils.shard import Shard

    images, labels = torch.zeros(2, 1, 3, 64, 64), torch.tensor([[1, 2], [3, 3]])
    batch = Batch(images, labels, np.arange(2), Shard(0, 2, 2))
    found = evaluate([net.model], [batch], net.model.mesh, 16)
    with torch.no_grad():
        chances = net.model(images[:, 0]).softmax(1)
    best = torch.stack([chances[0, 1:3].max(), chances[1, 3]])
    assert found.loss == pytest.approx(float(-best.log().mean()), rel=1e-6)
