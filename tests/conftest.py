"""What tests share: a home of their own, one small store of real pictures, one net for them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import hardware  # noqa: F401  before torch._dynamo
import pytest
import torch
from hypothesis import settings
from programs import TINY
from ranks import load_server

from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint.manifest import Progress, to_plain
from alexnet2012.checkpoint.state import TrainingState
from alexnet2012.config.compose import compose_config
from alexnet2012.config.schema import PrepareConfig, TrainConfig
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.sources.photos import make_photos
from alexnet2012.data.store import Store
from alexnet2012.inference.trained_model import TrainedModel
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.utils.collector import after_imports

settings.register_profile("busy", deadline=None)  # other programs may hold the cores
settings.load_profile("busy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files, so that no core waits for one of them at the end."""
    items.sort(key=lambda item: item.path.parent.name not in ("e2e", "distributed", "project"))


@pytest.fixture(scope="session", autouse=True)
def _home_of_the_tests(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Neither tests nor what they start touch the stores of whoever runs them."""
    torch.set_num_threads(1)  # for what modules share, which is made before a test's own fixtures
    after_imports()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXNET2012_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("WANDB_MODE", "offline")
        if any(hasattr(getattr(i, "module", None), "run_ranks") for i in request.session.items):
            load_server()  # before a preparation starts it with less; it loads meanwhile
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Nets this small lose by a second thread, which spins for work between operations."""
    torch.set_num_threads(1)


@pytest.fixture
def launched_soon() -> None:
    """What ``launch`` starts is forked from a server that has imported more than a user's."""
    load_server()


@pytest.fixture(scope="session")
def photos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen classes of six training and three validation pictures, not yet prepared."""
    folder = tmp_path_factory.mktemp("pictures") / "photos"
    make_photos(folder, train_per_class=6, val_per_class=3)
    return folder


@pytest.fixture(scope="session")
def photos_store(photos_folder: Path) -> Store:
    """The same prepared at 72 pixels: room for crops of 64."""
    root = photos_folder.with_name("photos-72")
    settings = PrepareConfig(source=str(photos_folder), store=str(root), size=72, workers=1)
    return prepare(settings, progress=False)


@pytest.fixture(scope="session")
def net(photos_store: Store) -> TrainedModel:
    """A small net of both towers for the pictures of that store, as its seed has it."""
    config = _tiny_config(photos_store)
    model = AlexNet(config.recipe, len(photos_store.classes), model=config.model, seed=3).eval()
    return TrainedModel(model, photos_store.classes, photos_store.mean_image, config.data)


@pytest.fixture(scope="session")
def saved_run(
    net: TrainedModel, photos_store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same in a run directory."""
    run = tmp_path_factory.mktemp("saved") / "run"
    settings = to_plain(_tiny_config(photos_store))
    progress = Progress(7, 1, settings=settings, classes=list(net.classes))
    folder = run / "checkpoints" / "step-0000007"
    snapshot = TrainingState.of(net.model, None, progress, net.mean_image)
    checkpoint.save(folder, snapshot, net.model.mesh)
    return run


def _tiny_config(store: Store) -> TrainConfig:
    where = (f"data.store={store.root}", "recipe=code145", "mesh=one_process")
    return compose_config("train", TrainConfig, [*TINY, *where])[0]
