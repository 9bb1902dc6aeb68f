"""What can be told of a machine before a run: each check says what it found, and a remedy."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib.metadata import requires, version
from pathlib import Path

import numpy as np
import torch
from simplejpeg import decode_jpeg, encode_jpeg

from alexnet2012.checkpoint import manifest
from alexnet2012.config.enums import Decoder, Device
from alexnet2012.config.schema import ConfigError, NormConfig
from alexnet2012.data.dali import DaliPipeline, ExternalFeed, full_image_graph
from alexnet2012.data.store import SPLITS, Split, Store
from alexnet2012.distributed.mesh import Mesh, single_process
from alexnet2012.nn.lrn import local_response_norm
from alexnet2012.utils.environment import PACKAGE, cpu_name, running_commit

GIB = 1 << 30
LOCK = PACKAGE.parents[1] / "requirements.lock"  # of a checkout
SAMPLED = 64  # at most, files of a store whose digest is computed


class Severity(Enum):
    ok = "ok"
    warning = "warning"
    wrong = "wrong"


@dataclass(frozen=True)
class Finding:
    """What one check found on one rank; ``remedy`` unless it is ok."""

    check: str
    level: Severity
    said: str
    remedy: str = ""
    rank: int = 0


def ok(check: str, said: str) -> Finding:
    return Finding(check, Severity.ok, said)


def found(check: Callable[[], Finding]) -> Finding:
    """What a check found; one that cannot be made has found something."""
    try:
        return check()
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return Finding(getattr(check, "__name__", "check"), Severity.wrong, text, "see the message")


def at_least(check: str, found: int, enough: int, needed: int, what: str, remedy: str) -> Finding:
    """``needed`` bytes or it is wrong, ``enough`` or it is a warning."""
    said = f"{found / GIB:.1f} GiB {what}"
    if found >= enough:
        return ok(check, said)
    return Finding(check, Severity.warning if found >= needed else Severity.wrong, said, remedy)


def device(mesh: Mesh) -> Finding:
    if mesh.device.type == "cuda":
        name = torch.cuda.get_device_name(mesh.device)
        memory = torch.cuda.get_device_properties(mesh.device).total_memory
        torch.ones(8, device=mesh.device).sum().item()
        return ok("device", f"{name}, {memory / GIB:.0f} GiB, CUDA {torch.version.cuda}")
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists() and not torch.cuda.is_available():
        said = f"a driver is there and torch {torch.__version__} sees no GPU"
        remedy = "install torch for the driver's CUDA, or update the driver (nvidia-smi)"
        return Finding("device", Severity.warning, said, remedy)
    return ok("device", f"no GPU is used; {cpu_name()}, {len(os.sched_getaffinity(0))} cores")


def versions() -> list[Callable[[], Finding]]:
    return [partial(installed, name) for name in ("torch", "nvidia-dali-cuda130", "numpy")]


def installed(name: str) -> Finding:
    """Installed, against the lowest that will do and what was tested, where that is known."""
    here, lowest = version(name), ""
    for line in requires("alexnet2012") or ():
        if line.startswith(f"{name}>="):
            lowest = line.partition(">=")[2]
    if _numbers(here) < _numbers(lowest):
        return Finding(name, Severity.wrong, here, f"pip install '{name}>={lowest}'")
    lines = LOCK.read_text(encoding="utf-8").splitlines() if LOCK.is_file() else []
    for line in lines:
        if line.startswith(f"{name}=="):
            tested = line.partition("==")[2]
            if _numbers(here) != _numbers(tested):
                return Finding(
                    name, Severity.warning, here, f"tested with {tested}: pip install {line}"
                )
            return ok(name, f"{here}, as tested")
    return ok(name, here)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split("+")[0].split(".") if part.isdigit()]


def dali(mesh: Mesh) -> Finding:
    """A pipeline that reads and decodes a picture, compared with libjpeg-turbo."""
    columns = np.linspace(0, 255, 64, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(columns[:, None], columns[None], np.uint8(99)), axis=-1)
    encoded = encode_jpeg(np.ascontiguousarray(picture), 95, colorsubsampling="444")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "picture.jpg")
        file.write_bytes(encoded)
        digest = np.frombuffer(hashlib.sha256(encoded).digest(), np.uint8)
        split = Split((str(file),), np.zeros(1, np.int64), digest[None])
        reader = DaliPipeline(
            lambda *a: full_image_graph(Decoder.auto, *a), split, 1, mesh.device, threads=1
        )
        (decoded,) = reader.read(iter([ExternalFeed(np.zeros(1, np.int64), ())]))
        far = np.abs(decoded[0].cpu().numpy().astype(int) - decode_jpeg(encoded)).max()
    if far > 3:  # grey levels; decoders of GPUs round in their own way
        said = f"decodes a picture {far} grey levels off"
        return Finding("DALI", Severity.wrong, said, "set data.decoder=cpu, and report it")
    return ok("DALI", f"a pipeline decodes on the {mesh.device.type}")


def normalisation(mesh: Mesh) -> Finding:
    """Forward and backward; on a GPU by kernels that Triton compiles at first use."""
    x = torch.ones(2, 16, 3, 3, device=mesh.device, requires_grad=True)
    try:
        local_response_norm(x, NormConfig(5, 1e-4, 0.75, 2.0, False), 2).sum().backward()
    except Exception as error:
        text = " ".join(str(error).split())
        remedy = "Triton needs a C compiler and Python's headers: gcc, python3-dev"
        return Finding("normalisation", Severity.wrong, text, remedy)
    how = "compiled for the GPU" if mesh.device.type == "cuda" else "in blocks"
    return ok("normalisation", f"forward and backward, {how}")


def memory() -> Finding:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    remedy = "the full net takes 2 GiB a process on a CPU; use model=small, or end other programs"
    return at_least("memory", free, 4 * GIB, GIB, "free", remedy)


def disk(run_dir: Path) -> Finding:
    folder = next(place for place in (run_dir, *run_dir.parents) if place.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        remedy = "set hydra.run.dir to a folder that can be written"
        return Finding("disk", Severity.wrong, f"{folder}: {error.strerror}", remedy)
    remedy = "a full checkpoint takes 0.5 GiB: make room, or set hydra.run.dir to another disk"
    return at_least("disk", shutil.disk_usage(folder).free, 8 * GIB, GIB, "free for runs", remedy)


def shared_memory() -> Finding:
    remedy = "give the container more: docker run --shm-size=1g (or --ipc=host)"
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    return at_least("/dev/shm", free, GIB // 2, GIB // 32, "free", remedy)


def open_files() -> Finding:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < 1024:
        return Finding(
            "open files", Severity.warning, f"at most {limit}", f"ulimit -n {max(most, 1024)}"
        )
    return ok("open files", f"at most {limit}")


def store(root: Path) -> Finding:
    """Opened, its lists against the fingerprint, and a sample of its files against the lists."""
    if not root.exists():
        said, remedy = f"{root}: not there yet", "train prepares it, where data.source names one"
        return Finding("store", Severity.warning, said, remedy)
    try:
        found = Store.open(root)
    except ConfigError as error:
        return Finding("store", Severity.wrong, f"{error.key}={error.value}", error.remedy)
    lines = [
        line.split("\t")
        for split in SPLITS
        for line in (root / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    ]
    sample = lines[:: max(1, -(-len(lines) // SAMPLED))]
    for path, _, digest, *_ in sample:
        try:
            same = hashlib.sha256((root / path).read_bytes()).hexdigest() == digest
        except OSError:
            same = False
        if not same:
            remedy = "the file was changed or lost: remove the store and prepare it again"
            return Finding("store", Severity.wrong, f"{root / path} is damaged", remedy)
    counts = " and ".join(f"{len(found.split(split).paths):,} {split}" for split in SPLITS)
    return ok(
        "store", f"{counts} pictures of {len(found.classes)} classes; {len(sample)} files as listed"
    )


def saved(path: Path) -> Finding:
    try:
        folder = manifest.latest(path) or path
        manifest.verify(folder, single_process(Device.cpu))
        step = manifest.read_progress(folder).step
    except (OSError, ValueError) as error:
        return Finding("checkpoint", Severity.wrong, str(error), "use an earlier one")
    return ok("checkpoint", f"{folder.name}: step {step}, all as it was written")


def commit() -> Finding:
    name, changed = running_commit()
    if changed:
        remedy = "commit them, or nobody can run the same again"
        return Finding("commit", Severity.warning, f"{name} with changes", remedy)
    return ok("commit", name)
