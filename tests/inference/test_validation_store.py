"""A store of validation images alone serves evaluate, predict and features, but not train."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import caffe
import numpy as np
import pytest
import torch
from programs import TINY
from test_importers import torchvision_alexnet

from alexnet2012.checkpoint.run_dir import check_run
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.inference_schema import FeaturesConfig, ImportConfig
from alexnet2012.config.schema import ConfigError, EvaluateConfig, PrepareConfig, TrainConfig
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.store import Store
from alexnet2012.diagnostics import machine_checks
from alexnet2012.distributed.mesh import single_process
from alexnet2012.inference.evaluate import evaluate_images, evaluate_in_detail
from alexnet2012.inference.features import compute_features
from alexnet2012.inference.images import find_images
from alexnet2012.inference.importers.checkpoint_from_file import import_checkpoint
from alexnet2012.inference.trained_model import TrainedModel


@pytest.fixture(scope="module")
def val_store(photos_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("val") / "store"
    settings = PrepareConfig(str(photos_folder / "val"), str(root), size=72, workers=1)
    return prepare(settings, progress=False)


def test_it_has_one_split_and_no_statistics(val_store: Store, photos_store: Store) -> None:
    assert val_store.splits == ("val",) and photos_store.splits == ("train", "val")
    assert val_store.mean_image is None and val_store.rgb_covariance is None
    alone, both = val_store.split("val"), photos_store.split("val")
    assert np.array_equal(alone.sha256, both.sha256)
    assert np.array_equal(alone.labels, both.labels)
    assert sorted(path.name for path in val_store.root.iterdir()) == [
        *("manifest.json", "rejects.jsonl", "train.tsv", "val", "val.tsv")
    ]
    assert "48 val images" in machine_checks.store(val_store.root).message


@pytest.mark.parametrize("views", [1, 10])
def test_its_errors_are_those_of_the_same_images_in_a_whole_store(
    val_store: Store, photos_store: Store, saved_run: Path, views: int
) -> None:
    counts = [
        evaluate_images(EvaluateConfig(str(saved_run), str(store.root), views, device=Device.cpu))[
            0
        ]
        for store in (val_store, photos_store)
    ]
    assert counts[0] == counts[1]


def write_torchvision(file: Path) -> None:
    """A small network under torchvision's names, of 16 classes, as its example scripts save it."""
    torch.manual_seed(0)
    theirs = torchvision_alexnet((6, 10, 8, 7, 5), 12, 16)
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 90}, file)


def write_caffe(file: Path) -> None:
    layers = caffe.alexnet_layers(np.random.default_rng(1), classes=16)
    for blob in layers[-2]["blobs"]:
        blob /= 1000  # otherwise most classes have probability 0, and tie
    file.write_bytes(caffe.caffemodel(layers, old=True))


@pytest.mark.parametrize(
    ("name", "write"), [("net.pth", write_torchvision), ("net.caffemodel", write_caffe)]
)
def test_an_imported_network_is_evaluated_on_it_and_the_file_by_image_agrees(
    photos_folder: Path, val_store: Store, tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    (tmp_path / "classes.txt").write_text("\n".join(val_store.classes))
    net, root, file = (str(tmp_path / path) for path in ("net", "store", "images.csv"))
    classes = str(tmp_path / "classes.txt")
    import_checkpoint(ImportConfig(str(tmp_path / name), net, classes=classes), Path(net))
    prepare(PrepareConfig(str(photos_folder / "val"), root, workers=1), progress=False)
    predictions = []
    for views in (1, 10):
        config = EvaluateConfig(net, root, views, device=Device.cpu, predictions=file)
        errors = evaluate_in_detail(config).errors
        rows = list(csv.DictReader(Path(file).read_text().splitlines()))
        assert len(rows) == errors.pictures == 48
        for k in (1, 5):
            total = sum(float(row[f"top{k}_error"]) for row in rows)
            assert total == pytest.approx(getattr(errors, f"top{k}_errors")) and total > 0
        assert [row["label"] for row in rows] == [c for c in val_store.classes for _ in range(3)]
        predictions.append([row["probability_1"] for row in rows])
    assert predictions[0] != predictions[1]


def test_its_images_have_features(val_store: Store, net: TrainedModel) -> None:
    names = find_images([str(val_store.root)])
    config = FeaturesConfig(checkpoint="unused", images=[str(val_store.root)])
    used, rows, rejected = compute_features(net, names, config)
    assert (len(used), len(rows), rejected) == (48, 48, [])


def test_training_on_it_is_refused(val_store: Store, tmp_path: Path) -> None:
    words = [*TINY, f"data.store={val_store.root}", "data.store_size=72", "mesh=one_process"]
    config = compose_config("train", TrainConfig, words)[0]
    with pytest.raises(ConfigError, match=r"validation images only; use a store made with tra"):
        check_run(config, tmp_path, single_process(Device.cpu))


def test_its_damage_is_detected(val_store: Store, tmp_path: Path) -> None:
    manifest = json.loads((val_store.root / "manifest.json").read_text())
    for name in ("train.tsv", "val.tsv"):
        (tmp_path / name).write_bytes((val_store.root / name).read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert Store.open(tmp_path).classes == val_store.classes
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"classes": ["cat"]}))
    with pytest.raises(ConfigError, match="do not match their checksums"):
        Store.open(tmp_path)
