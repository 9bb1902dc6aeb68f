"""`prepare` as a person meets it: killed, interrupted, started twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet2012.data.store import Store

PICTURES = 1500  # of each class


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough pictures for a few seconds of work, and one that is none."""
    root = tmp_path_factory.mktemp("many") / "source"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (200, 220, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / "0.jpg")
        for index in range(1, PICTURES):
            os.link(root / name / "0.jpg", root / name / f"{index}.jpg")
    (root / "dog" / "none.jpg").write_text("not a picture")
    return root


def start(source: Path, store: Path) -> subprocess.Popen[str]:
    words = [f"source={source}", f"store={store}", "size=64", "workers=2"]
    return subprocess.Popen(
        [sys.executable, "-m", "alexnet2012.prepare", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores interrupts, and so would all that it starts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def prepared(source: Path, store: Path) -> str:
    with start(source, store) as running:
        out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    return out


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    said = prepared(source, store)
    # 10% of 1500 and of 1501 names, `none.jpg` among those held out.
    assert "2,701 training and 299 validation pictures of 2 classes" in said
    assert "1 files rejected" in said
    return store


def left_of_session(session: int, patience_s: float = 60) -> list[int]:
    """Processes that a program has left behind."""
    deadline = time.monotonic() + patience_s
    while (found := alive_in_session(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def alive_in_session(session: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def test_a_killed_preparation_goes_on_to_the_same_bytes(
    source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    store, draw = tmp_path / "store", random.Random(0)
    resumed = 0
    for what in ("store", "state.npz", "state.npz"):
        running = start(source, store)
        while running.poll() is None and not (tmp_path / ".store.partial" / what).exists():
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.5))
        running.kill()
        running.communicate()
        resumed += (tmp_path / ".store.partial" / "state.npz").exists()
        assert left_of_session(running.pid) == []  # the workers end with their parent
        if store.exists():
            break
    prepared(source, store)
    assert content(store) == content(undisturbed)
    assert resumed  # else nothing was taken up, and this test has tried nothing
    assert sorted(path.name for path in tmp_path.iterdir()) in (
        ["store"],
        [".store.lock", "store"],
    )


def test_an_interrupted_preparation_says_so_and_leaves_no_process(
    source: Path, tmp_path: Path
) -> None:
    running = start(source, tmp_path / "store")
    while not (tmp_path / ".store.partial" / "store" / "train.tsv").exists():
        time.sleep(0.02)
        assert running.poll() is None
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130
    assert err.count("\n") == 1
    assert "interrupted" in err
    assert left_of_session(running.pid) == []


def test_two_that_want_one_store_share_it(source: Path, undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    both = [start(source, store) for _ in range(2)]
    said = [running.communicate(timeout=120) for running in both]
    assert [running.returncode for running in both] == [0, 0], said
    assert Store.open(store).fingerprint == Store.open(undisturbed).fingerprint
    assert sum("training and" in out for out, _ in said) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_program_without_a_guard_is_told_so_and_does_not_hang(
    source: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from alexnet2012.config import PrepareConfig\n"
        "from alexnet2012.data.preparing import prepare\n"
        f"prepare(PrepareConfig({str(source)!r}, {str(tmp_path / 'store')!r}, workers=2))\n"
    )
    ended = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode != 0
    assert "must stand under `if __name__ == '__main__':`" in ended.stderr
