"""How fast is `prepare`, does its memory grow, and does it survive being killed?

    python benchmarks/prepare.py [pictures=1500] [rounds=3] [few=1000] [many=100000] [kills=20]

Speed: 500 × 375 JPEGs to a store of 256 pixels, with one worker and with two. Memory: small images,
so that a hundred thousand take minutes; lists could grow, not images. Kills: the program, a worker,
or all of them at random moments; then the same command runs again, and every byte of the store is
compared with an undisturbed one. Prints tables and writes results/prepare.json.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from input import ORIGINALS, family, mean_file_kb, pss_mib, write_originals
from PIL import Image
from record import given, keep, show

from alexnet2012.config.schema import PrepareConfig
from alexnet2012.data.preparation.prepare import prepare

CLASSES = 10


def speed(folder: Path, pictures: int, rounds: int) -> list[dict[str, Any]]:
    """Images/s of a whole preparation, including the start of the workers."""
    write_originals(folder / ORIGINALS, pictures)
    size_kb = mean_file_kb(folder / ORIGINALS)  # also fills the page cache
    rates: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for workers, found in rates.items():
            store = folder / f"store-{workers}-{number}"
            began = time.perf_counter()
            made = prepare(
                PrepareConfig(f"{folder / ORIGINALS}", f"{store}", workers=workers), progress=False
            )
            count = len(made.split("train").labels) + len(made.split("val").labels)
            found.append(count / (time.perf_counter() - began))
    return [
        {
            "workers": workers,
            "images_per_s": statistics.median(found),
            "range": [min(found), max(found)],
            "mean_file_kb": size_kb,
        }
        for workers, found in rates.items()
    ]


def write_small(root: Path, count: int) -> None:
    """Write ``count`` files that are links to a few small images."""
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "0000000.jpg")
        for index in range(1, count // CLASSES):
            os.link(folder / "0000000.jpg", folder / f"{index:07d}.jpg")


def start(source: Path, store: Path) -> subprocess.Popen[bytes]:
    words = [f"source={source}", f"store={store}", "size=64", "workers=2"]
    return subprocess.Popen(
        [sys.executable, "-m", "alexnet2012.prepare", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def memory(folder: Path, count: int) -> dict[str, Any]:
    """Peak memory of all processes of a preparation of ``count`` images."""
    write_small(folder / f"small-{count}", count)
    running, most_mib = start(folder / f"small-{count}", folder / f"store-{count}"), 0.0
    while running.poll() is None:
        with suppress(OSError):  # a process has ended in the meantime
            most_mib = max(most_mib, sum(map(pss_mib, family(running.pid))))
        time.sleep(0.05)
    assert running.wait() == 0, running.stderr
    return {"pictures": count, "memory_mib": most_mib}


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def kill(folder: Path, trials: int) -> dict[str, Any]:
    """Kill and restart ``trials`` times; counts the stores that are identical."""
    source = folder / "to-kill"
    write_small(source, 6000)
    began = time.monotonic()
    assert start(source, folder / "undisturbed").wait() == 0
    whole_s = time.monotonic() - began
    expected = digests(folder / "undisturbed")
    draw = random.Random(0)
    found = {"trials": trials, "same": 0, "taken_up": 0, "left_processes": 0}
    for trial in range(trials):
        store = folder / f"killed-{trial}"
        running = start(source, store)
        time.sleep(draw.uniform(0.2, 1.0) * whole_s)
        processes = family(running.pid) if running.poll() is None else []
        victims = (processes[:1], processes[-1:], processes)[trial % 3]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        running.wait()
        deadline = time.monotonic() + 10
        while any(map(alive, processes)) and time.monotonic() < deadline:
            time.sleep(0.1)
        found["left_processes"] += sum(map(alive, processes))
        found["taken_up"] += (folder / f".{store.name}.partial" / "state.npz").exists()
        assert start(source, store).wait() == 0
        found["same"] += digests(store) == expected
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> None:
    words = given(pictures=1500, rounds=3, few=1000, many=100_000, kills=20)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rates = speed(folder, words.pictures, words.rounds)
        memories = [memory(folder, count) for count in (words.few, words.many)]
        killed = kill(folder, words.kills)
    columns = {
        "workers": "{workers}",
        "images/s": "{images_per_s:.0f}",
        "range": "{range[0]:.0f} - {range[1]:.0f}",
    }
    show(f"prepare: 500 × 375 JPEGs to 256 × 256, median of {words.rounds}", columns, rates)
    columns = {"images": "{pictures:,}", "memory, MiB": "{memory_mib:.0f}"}
    show("Memory of all processes, two workers", columns, memories)
    columns = {
        "kills at random moments": "{trials}",
        "identical stores": "{same}",
        "resumed from a saved state": "{taken_up}",
        "processes left": "{left_processes}",
    }
    show("Kills and restarts", columns, [killed])
    keep(
        "speed, memory and restarts of prepare",
        ["numpy", "pillow", "simplejpeg"],
        load_before,
        **vars(words),
        files="in the page cache",
        memory="largest sum of PSS over all processes; 64 × 48 JPEGs to a store of 64",
        speed=rates,
        memories=memories,
        kill_counts=killed,
    )


if __name__ == "__main__":
    main()
