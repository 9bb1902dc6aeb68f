"""A store of validation images alone serves evaluate, predict and features, but not train."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from programs import TINY

from alexnet2012.checkpoint.run_dir import check_run
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.inference_schema import FeaturesConfig
from alexnet2012.config.schema import ConfigError, EvaluateConfig, PrepareConfig, TrainConfig
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.store import Store
from alexnet2012.diagnostics import machine_checks
from alexnet2012.distributed.mesh import single_process
from alexnet2012.inference.evaluate import evaluate_images
from alexnet2012.inference.features import compute_features
from alexnet2012.inference.images import find_images
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
