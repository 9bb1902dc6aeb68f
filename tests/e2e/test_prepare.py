"""`prepare` as a program: killed, interrupted, started twice."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import finish, module, run, start, succeed

from alexnet2012.data.store import Store

IMAGES = 1000  # per class


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images for a few seconds of work, and one file that is not an image."""
    root = tmp_path_factory.mktemp("many") / "source"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (200, 220, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / "0.jpg")
        for index in range(1, IMAGES):
            os.link(root / name / "0.jpg", root / name / f"{index}.jpg")
    (root / "dog" / "none.jpg").write_text("not a image")
    return root


def preparation(source: Path, store: Path) -> list[str]:
    return module("prepare", f"source={source}", f"store={store}", "size=64", "workers=2")


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    summary = " ".join(succeed(preparation(source, store), store.parent).out.split())
    # 10% of 1000 and of 1001 names; `none.jpg` is in the validation split.
    assert "1,801 training and 199 validation images in 2 classes" in summary
    assert "1 files rejected" in summary
    return store


def test_a_killed_preparation_resumes_to_the_same_bytes(
    source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    store, draw = tmp_path / "store", random.Random(0)
    resumed = 0
    for what in ("store", "state.npz", "state.npz"):
        program, mark = start(preparation(source, store), tmp_path)
        while program.poll() is None and not (tmp_path / ".store.partial" / what).exists():
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.5))
        program.kill()
        assert finish(program, mark).left == []  # the workers end with their parent
        resumed += (tmp_path / ".store.partial" / "state.npz").exists()
        if store.exists():
            break
    succeed(preparation(source, store), tmp_path)
    assert content(store) == content(undisturbed)
    assert resumed  # otherwise no preparation was resumed, and the test is void
    assert sorted(path.name for path in tmp_path.iterdir()) in (
        ["store"],
        [".store.lock", "store"],
    )


# While the workers start, and while they work.
@pytest.mark.parametrize("moment", ["store", "store/train.tsv"])
def test_an_interrupted_preparation_says_so_and_leaves_no_process(
    source: Path, tmp_path: Path, moment: str
) -> None:
    program, mark = start(preparation(source, tmp_path / "store"), tmp_path)
    while not (tmp_path / ".store.partial" / moment).exists():
        time.sleep(0.02)
        assert program.poll() is None
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    ended = finish(program, mark)
    assert ended.code == 130
    assert ended.err == "alexnet2012: interrupted\n"
    assert ended.left == []


def test_two_preparations_of_one_store_share_the_work(
    source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    both = [start(preparation(source, store), tmp_path) for _ in range(2)]
    ended = [finish(*each) for each in both]
    assert [each.code for each in ended] == [0, 0], ended
    assert Store.open(store).fingerprint == Store.open(undisturbed).fingerprint
    assert sum("training and" in each.out for each in ended) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_program_without_a_main_guard_gets_an_error_and_does_not_hang(
    source: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from alexnet2012.config.schema import PrepareConfig\n"
        "from alexnet2012.data.preparation.prepare import prepare\n"
        f"prepare(PrepareConfig({str(source)!r}, {str(tmp_path / 'store')!r}, workers=2))\n"
    )
    ended = run([sys.executable, str(program)], tmp_path)
    assert ended.code != 0
    assert "call prepare() under `if __name__ == '__main__':`" in ended.err
