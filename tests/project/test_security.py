"""Files from others run no code here: each way in is tried. Archives: test_archives.py; what the
report shows: test_report.py."""

from __future__ import annotations

import ast
import pickle
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

import alexnet2012
from alexnet2012 import AlexNet
from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manifest import Progress, config_of, to_plain
from alexnet2012.checkpoint.run_dir import is_finished
from alexnet2012.checkpoint.state import TrainingState
from alexnet2012.config.compose import compose_config
from alexnet2012.config.schema import ConfigError, ModelConfig, TrainConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.data.store import Store
from alexnet2012.ledger.results import load_reproduction
from alexnet2012.nn.optim import PaperSGD

SMALL = ModelConfig(width=1 / 24, input_size=64)
SOURCES = sorted(Path(alexnet2012.__file__).parent.rglob("*.py"))
MEAN_IMAGE = np.zeros((8, 8, 3), np.float32)

SAFELY = {
    "torch.load": "weights_only=True",
    "np.load": "allow_pickle=False",
    "dcp.load": "storage_reader=reader",
    "yaml.load": "Loader=yaml.CSafeLoader",
}


class Bomb:
    """Unpickled it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """Where a bomb would leave its file; at the end it has not."""
    path = tmp_path / "code ran"
    yield path
    assert not path.exists()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint."""
    folder = tmp_path / "step-0000001"
    model, optimizer = build()
    snapshot = TrainingState.of(model, optimizer, Progress(1, 0, classes=["a", "b"]), MEAN_IMAGE)
    checkpoint.save(folder, snapshot, model.mesh)
    return folder


def build() -> tuple[AlexNet, PaperSGD]:
    net = AlexNet("paper", 2, model=SMALL)
    return net, PaperSGD(net, load_recipe("paper").optimizer)


def risks(source: str) -> list[str]:
    """Calls that could run what they read, and imports of what is made of such calls."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [name.name for name in node.names]
            if names == ["UnpicklingError"]:  # what a careful reader raises
                continue
            modules = [getattr(node, "module", None) or "", *names]
            found += {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & set(modules)
        elif isinstance(node, ast.Call):
            call, given = ast.unparse(node.func), [ast.unparse(word) for word in node.keywords]
            if (
                (call in SAFELY and SAFELY[call] not in given)
                or call in {"eval", "exec", "compile", "__import__", "os.system"}
                or call.endswith((".instantiate", ".FileSystemReader"))
                or "shell=True" in given
            ):
                found.append(call)
    return found


def test_no_line_of_the_package_can_run_what_it_reads() -> None:
    assert len(SOURCES) > 50
    assert {file.name: found for file in SOURCES if (found := risks(file.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "dcp.load(state, checkpoint_id=folder)",
        "dcp.FileSystemReader(folder).read_metadata()",
        "yaml.load(text, Loader=yaml.Loader)",
        "hydra.utils.instantiate(config)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_a_line_that_could_would_be_noticed(line: str) -> None:
    assert risks(line)


@pytest.mark.parametrize("kind", ["pickle", "array of objects"])
def test_a_mean_image_that_is_a_pickle_is_refused(
    photos_store: Store, saved: Path, tmp_path: Path, mark: Path, kind: str
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for name in ("manifest.json", "train.tsv", "val.tsv"):
        shutil.copy(photos_store.root / name, store)
    for file in (store / "mean_image.npy", saved / manifest.MEAN_IMAGE):
        if kind == "pickle":
            file.write_bytes(pickle.dumps(Bomb(mark)))
        else:
            np.save(file, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="is damaged"):
        Store.open(store)
    with pytest.raises(ConfigError, match="is damaged"):
        manifest.read_mean_image(saved)


def test_kernels_of_a_reproduction_that_are_a_pickle_are_refused(
    tmp_path: Path, mark: Path
) -> None:
    (tmp_path / "reproduction.json").write_text("{}")
    (tmp_path / "kernels.npy").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ValueError, match="pickle"):
        load_reproduction(tmp_path)


def test_a_checkpoints_list_of_tensors_is_no_pickle(
    saved: Path, tmp_path: Path, mark: Path
) -> None:
    (saved / ".metadata").write_bytes(pickle.dumps(Bomb(mark)))  # what torch's own reader reads
    checkpoint.load(saved, *build())


def test_torchs_own_reader_would_have_run_it(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "code ran")))
    with warnings.catch_warnings(), pytest.raises(AttributeError):
        dcp.FileSystemReader(tmp_path).read_metadata()
    assert (tmp_path / "code ran").exists()


@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
def test_tensors_of_a_checkpoint_that_are_pickles_are_refused(
    saved: Path, mark: Path, kind: str
) -> None:
    (file,) = saved.glob("*.safetensors")
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save(Bomb(mark), file)
    with pytest.raises(ConfigError, match="is damaged"):
        checkpoint.load(saved, *build())


@pytest.mark.parametrize("key", ["_target_", "data._target_", "recipe._target_", "model._args_"])
def test_a_setting_that_would_make_hydra_call_something_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="no such key"):
        compose_config("train", TrainConfig, [f"+{key}=os.system"])


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "a\\${oc.env:SECRET}\\\\${x}", "${"])
def test_settings_of_a_checkpoint_are_text_and_nothing_in_them_is_resolved(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SECRET", "a secret")
    config, _ = compose_config("train", TrainConfig, [])
    config.data.store = config.tracking.project = text
    found = config_of(Progress(1, 0, settings=to_plain(config)))
    assert found == config


def test_a_run_directorys_yaml_makes_no_objects(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    call = f"!!python/object/apply:os.system ['touch \"{mark}\"']"
    (tmp_path / "config.yaml").write_text(f"seed: {call}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged"):
        is_finished(TrainConfig(), tmp_path)
