"""The wheel: all that the package reads is in it, and it trains wherever it is called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from documented import made_small
from programs import ON_ONE_CORE, REPOSITORY, run, succeed

from alexnet2012.data.store import Store

WHERE_AND_TRAIN = """
from alexnet2012 import conf, train
print(train.__file__, *conf.__path__, sep="\\n")
train.main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, as a build leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    for name in ("src", "conf"):
        ignored = shutil.ignore_patterns("*.egg-info", "*.so")
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignored)
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    _pip("wheel", str(copy), "--no-build-isolation", "--wheel-dir", str(folder))
    (found,) = folder.glob("*.whl")
    return found


def _pip(*words: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    subprocess.run([sys.executable, "-m", "pip", *words, *quiet], check=True)


def test_a_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    places = {"src/alexnet2012": "alexnet2012", "conf": "alexnet2012/conf"}
    here = {
        f"{inside}/{file.relative_to(REPOSITORY / place).as_posix()}"
        for place, inside in places.items()
        for file in (REPOSITORY / place).rglob("*")
        if file.is_file() and file.suffix not in (".pyc", ".c", ".h", ".so")
    }
    there = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    library = {name for name in there if name.endswith(".so")}
    assert there - library == here
    assert bool(library) == (shutil.which("cc") is not None)


def test_it_trains_elsewhere_by_odd_names_without_a_home_and_from_what_cannot_be_written(
    wheel: Path, photos_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, folder = tmp_path / "site", tmp_path / "Läufe und Bilder"
    _pip("install", "--target", str(site), "--no-compile", str(wheel))
    folder.mkdir()
    store = folder / "kein Maß"
    shutil.copytree(photos_store.root, store)
    for place in (store, *store.rglob("*")):
        place.chmod(place.stat().st_mode & ~0o222)
    monkeypatch.setenv("PYTHONPATH", str(site))  # before where these sources are installed
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("ALEXNET2012_HOME")
    words = made_small(['data.store="kein Maß"', "mesh=one_process", "max_steps=2"])
    # Root may write everywhere, unless it gives that up.
    as_others = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    assert run([*as_others, "touch", str(store / "new")], folder).code != 0
    python = [*as_others, *ON_ONE_CORE, sys.executable, "-c", WHERE_AND_TRAIN]
    ended = succeed([*python, *words, "hydra.run.dir=runs/${now:%Y}/erster"], folder)
    file, conf, *_, last, _ = ended.out.splitlines()
    assert (file, conf) == (f"{site}/alexnet2012/train.py", f"{site}/alexnet2012/conf")
    assert ended.err == ""
    (summary,) = folder.glob("runs/*/erster/summary.json")
    assert last == f"run directory: {summary.parent}"
