"""Run an entry point as a user does, and see what it leaves behind."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from alexnet2012.distributed.process_env import RENDEZVOUS_FILE
from alexnet2012.tracking.progress_bar import NOTEBOOKS

REPOSITORY = Path(__file__).parents[1]
TORCHRUN_SCRIPT = str(REPOSITORY / "launch" / "torchrun.sh")
# Before a command of one process: nets this small lose by a second thread.
ON_ONE_CORE = ("taskset", "--cpu-list", str(min(os.sched_getaffinity(0))))
MARK = "ALEXNET2012_TEST_MARK"
TIME_LIMIT_S = 120
UNDER_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", RENDEZVOUS_FILE)
GONE_WITHIN_S = 10  # helpers of multiprocessing take a moment longer than who started them

# A net of four to twenty-four kernels a layer: an epoch of three steps takes less than a second.
TINY = (
    "data=store",
    "model.width=0.04",
    "model.input_size=64",
    "data.store_size=72",
    "data.batch_size=32",
    "schedule=constant",
    "tracking.wandb=disabled",
    "tracking.log_every_steps=2",
    "mesh.device=cpu",
)


@dataclass(frozen=True)
class Ended:
    """How a program ended; ``left`` are the command lines of processes that outlived it."""

    code: int
    out: str
    err: str
    left: list[str]


def module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"alexnet2012.{name}", *arguments]


def search_path() -> str:
    """Where scripts and printed commands find our `python` and `torchrun`."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def start(command: Sequence[str], cwd: Path) -> tuple[subprocess.Popen[str], str]:
    """The program, started, and the mark that all its processes carry."""
    mark = uuid.uuid4().hex
    env = {k: v for k, v in os.environ.items() if k not in UNDER_A_LAUNCHER}
    env |= {MARK: mark, "PATH": search_path()}
    pipe = subprocess.PIPE
    program = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        # A shell's background job ignores interrupts, and so would all that it starts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    return program, mark


def finish(program: subprocess.Popen[str], mark: str) -> Ended:
    """Wait for a program; what it leaves behind is ended here."""
    try:
        out, err = program.communicate(timeout=TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        program.kill()
        _end(mark)
        out, err = program.communicate()
        raise AssertionError(f"no end within {TIME_LIMIT_S} s\n{out}\n{err}") from None
    waiting_until = time.monotonic() + GONE_WITHIN_S
    while _marked(mark) and time.monotonic() < waiting_until:
        time.sleep(0.05)
    left = list(_marked(mark).values())
    _end(mark)
    return Ended(program.returncode, out, err, left)


def run(command: Sequence[str], cwd: Path) -> Ended:
    return finish(*start(command, cwd))


def succeed(command: Sequence[str], cwd: Path) -> Ended:
    ended = run(command, cwd)
    assert ended.code == 0, ended.err
    assert ended.left == []
    return ended


def with_rank(mark: str, rank: int) -> int:
    """The id of a worker of a self-launched run."""
    (found,) = (pid for pid, line in _marked(mark).items() if line.startswith(f"rank {rank}:"))
    return found


def torchrun_rank(mark: str, rank: int) -> int:
    """The id of a worker that torchrun started."""
    (found,) = (
        pid
        for pid in _marked(mark)
        if f"RANK={rank}".encode() in Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    )
    return found


def listening(mark: str) -> set[tuple[str, str, int]]:
    """Listening sockets of the marked processes, as (command line, address, port)."""
    at = _listening_sockets()
    found = set()
    for pid, line in _marked(mark).items():
        with suppress(OSError):
            for fd in Path("/proc", str(pid), "fd").iterdir():
                with suppress(OSError):
                    target = str(fd.readlink())
                    found |= {(line, *at[target])} if target in at else set()
    return found


def _listening_sockets() -> dict[str, tuple[str, int]]:
    """Address and port of the listening TCP sockets, by their name in /proc."""
    found, listens = {}, "0A"
    for table in ("tcp", "tcp6"):
        for row in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = row.split()[:10]
            if state == listens:
                host, _, port = local.partition(":")
                words = bytes.fromhex(host)
                # Words of four bytes, each in this machine's order.
                parts = [
                    words[i : i + 4][:: -1 if sys.byteorder == "little" else 1]
                    for i in range(0, len(words), 4)
                ]
                address = str(ipaddress.ip_address(b"".join(parts)))
                found[f"socket:[{inode}]"] = address, int(port, 16)
    return found


def _marked(mark: str) -> dict[int, str]:
    """Running processes that inherited the mark, by id: their name and command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            zombie = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes() and not zombie:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                name = (folder / "comm").read_text().strip()
                found[int(folder.name)] = f"{name}: {command.decode(errors='replace')}"
    return found


def _end(mark: str) -> None:
    for pid in _marked(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def in_terminal(command: Sequence[str], cwd: Path, columns: int = 80) -> list[str]:
    """What a program draws on a terminal: every line, each state of one that is drawn over."""
    read_end, write_end = pty.openpty()
    fcntl.ioctl(write_end, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    env = {
        k: v for k, v in os.environ.items() if k not in {*UNDER_A_LAUNCHER, *NOTEBOOKS, "COLUMNS"}
    }
    program = subprocess.Popen(
        command,
        cwd=cwd,
        env=env | {"TERM": "xterm-256color", "PATH": search_path()},
        stdin=write_end,
        stdout=write_end,
        stderr=write_end,
        start_new_session=True,
    )
    os.close(write_end)
    drawn, until = b"", time.monotonic() + TIME_LIMIT_S
    with suppress(OSError):  # the other end is closed
        while time.monotonic() < until and (more := os.read(read_end, 1 << 16)):
            drawn += more
    os.close(read_end)
    assert program.wait(GONE_WITHIN_S) == 0, drawn.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    return [line for line in re.split(r"[\r\n]+", text) if line]
