"""SIGTERM and Ctrl-C end every command soon, with all its processes, and without a traceback.

``ALEXNET2012_TEST_MOMENTS=30`` tries 30 random moments of each command instead of one.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from programs import TINY, finish, module, start

from alexnet2012.data.store import Store

SIGNALS = (signal.SIGTERM, signal.SIGINT)
MOMENTS = int(os.environ.get("ALEXNET2012_TEST_MOMENTS", "1"))
ENDED_WITHIN_S = 10.0
# How long each takes, about, and when it is interrupted if only once: at work, with its children.
COMMANDS = {"reproduce": (60.0, 9.0), "prepare": (8.0, 4.0), "predict": (10.0, 6.0)}
MORE = {"train": 15.0, "sweep": 20.0, "plan": 15.0, "serve": 8.0, "doctor": 10.0}
MORE |= {"evaluate": 8.0, "export": 7.0}


@pytest.fixture(scope="module")
def dripping() -> Iterator[str]:
    """The address of a server that sends a byte a second."""
    closing = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while not closing.wait(1):
                connection.sendall(b"a")

    def accept() -> None:
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=drip, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a.jpg"
        closing.set()
        server.shutdown(socket.SHUT_RDWR)


def command(name: str, store: Store, run: Path, url: str, out: Path) -> list[str]:
    trained = [*TINY, f"data.store={store.root}", "schedule.epochs=50"]
    return {
        "train": module("train", *trained, f"hydra.run.dir={out}"),
        "sweep": module("train", "-m", "seed=0,1,2", *trained, f"hydra.sweep.dir={out}"),
        "reproduce": module("reproduce", f"out={out}", "parts=[exactness,full_size,reduced]"),
        "prepare": module("prepare", "source=photos", f"store={out}", "workers=2"),
        "plan": module("plan", "model=small", "batch=8"),
        "predict": module("predict", f"checkpoint={run}", url),
        "serve": module("serve", f"checkpoint={run}", "port=0"),
        "doctor": module("doctor", "mesh.device=cpu"),
        "evaluate": module("evaluate", f"checkpoint={run}", f"store={store.root}", "views=10"),
        "export": module("export", f"checkpoint={run}", "format=onnx", f"out={out}.onnx"),
    }[name]


def moments() -> Iterator[tuple[str, signal.Signals, float]]:
    if MOMENTS == 1:
        for number, (name, (_, moment_s)) in enumerate(COMMANDS.items()):
            yield name, SIGNALS[number % 2], moment_s
        return
    spans = {name: span for name, (span, _) in COMMANDS.items()} | MORE
    draws = random.Random(MOMENTS)
    for name, span in spans.items():
        for number in range(MOMENTS):
            yield name, SIGNALS[number % 2], draws.uniform(0.1, span)


@pytest.mark.parametrize(("name", "number", "moment_s"), list(moments()))
def test_a_command_ends_soon_with_all_its_processes(
    photos_store: Store,
    saved_run: Path,
    dripping: str,
    tmp_path: Path,
    name: str,
    number: signal.Signals,
    moment_s: float,
) -> None:
    words = command(name, photos_store, saved_run, dripping, tmp_path / "out")
    program, mark = start(words, tmp_path)
    with suppress(subprocess.TimeoutExpired):
        program.wait(moment_s)
    program.send_signal(number)
    started_s = time.monotonic()
    ended = finish(program, mark)
    assert time.monotonic() - started_s < ENDED_WITHIN_S
    assert ended.left == []
    assert "Traceback" not in ended.out + ended.err, ended.err
    # 0: it had finished, or serve was ended as it should be; the last: while it was imported.
    assert ended.code in (0, 128 + number, -number), ended.err
