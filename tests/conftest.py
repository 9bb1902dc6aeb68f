"""What tests share: a home of their own, and one small store of real pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alexnet2012.config import PrepareConfig
from alexnet2012.data.photos import make_photos
from alexnet2012.data.preparing import prepare
from alexnet2012.data.store import Store


@pytest.fixture(scope="session", autouse=True)
def _home_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither tests nor what they start touch the stores of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXNET2012_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("WANDB_MODE", "offline")
        yield


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
