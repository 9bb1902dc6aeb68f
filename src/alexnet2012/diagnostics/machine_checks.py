"""Checks of a machine before a run, and of exchanges between towers on it, with remedies."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from importlib.metadata import requires, version
from pathlib import Path

import numpy as np
import torch
from simplejpeg import decode_jpeg, encode_jpeg

from alexnet2012.checkpoint import manifest
from alexnet2012.config.enums import Decoder, Device
from alexnet2012.config.schema import ConfigError, NormConfig, RunError, TrainConfig
from alexnet2012.data.dali import DaliPipeline, ExternalFeed, full_image_graph
from alexnet2012.data.store import SPLITS, Split, Store
from alexnet2012.distributed.collectives import communicator_of
from alexnet2012.distributed.launch import launch
from alexnet2012.distributed.mesh import Mesh, init_mesh, single_process
from alexnet2012.nn.lrn import local_response_norm
from alexnet2012.utils import native
from alexnet2012.utils.environment import PACKAGE, cpu_name, dali_package, running_commit

GIB = 1 << 30
LOCK = PACKAGE.parents[1] / "requirements.lock"  # exists in a checkout only
_JSON_KEYS = ("check", "level", "said", "remedy", "rank")  # of a finding's fields, in order
MAX_SAMPLED = 64  # files of a store whose digest is verified
BATCH = 128  # images per step, as in the paper
# Floats that one tower contributes per image to the exchanges of the paper's network.
FLOATS_PER_IMAGE = {
    "one number": 0,
    "fc7 and fc8": 2048,
    "fc6": 128 * 6 * 6,
    "conv3": 128 * 13 * 13,
}
REPEATS = 10
SLOW_S, SLOW_BYTES_PER_S = 0.01, 50e6


class Severity(Enum):
    ok = "ok"
    warning = "warning"
    wrong = "wrong"


@dataclass(frozen=True)
class Finding:
    """The result of one check on one rank; ``remedy`` is empty if the check passed."""

    check: str
    level: Severity
    message: str
    remedy: str = ""
    rank: int = 0


def check_machine(
    config: TrainConfig, run_dir: Path, mesh: Mesh, checkpoint_path: Path | None
) -> list[Finding]:
    """Check this rank's machine, and the files that a run with ``config`` would read on it."""
    checks: list[Callable[[], Finding]] = [
        partial(device, mesh),
        *package_versions(),
        partial(dali, mesh),
        partial(normalisation, mesh),
        memory,
        partial(disk, run_dir),
        shared_memory,
        open_files,
        partial(store, Path(str(config.data.store))),
        commit,
    ]
    if checkpoint_path is not None:
        checks.append(partial(checkpoint, checkpoint_path))
    return [replace(run_check(check), rank=mesh.rank) for check in checks]


def to_json(findings: Sequence[Finding]) -> str:
    rows = [(f.check, f.level.value, f.message, f.remedy, f.rank) for f in findings]
    return json.dumps([dict(zip(_JSON_KEYS, row, strict=True)) for row in rows], indent=1)


def from_json(text: str) -> list[Finding]:
    rows = ([row[key] for key in _JSON_KEYS] for row in json.loads(text))
    return [Finding(check, Severity(level), *rest) for check, level, *rest in rows]


def run_check(check: Callable[[], Finding]) -> Finding:
    """The finding of a check; an exception in a check is a finding, too."""
    try:
        return check()
    except Exception as error:
        name = getattr(getattr(check, "func", check), "__name__", "check")
        message = " ".join(str(error).split()) or type(error).__name__
        return Finding(name, Severity.wrong, message, "the check failed with this error")


def ok(check: str, message: str) -> Finding:
    return Finding(check, Severity.ok, message)


def at_least(
    check: str, size: int, recommended: int, required: int, unit: str, remedy: str
) -> Finding:
    """A finding for ``size`` bytes: wrong below ``required``, a warning below ``recommended``."""
    message = f"{size / GIB:.1f} GiB {unit}"
    if size >= recommended:
        return ok(check, message)
    level = Severity.warning if size >= required else Severity.wrong
    return Finding(check, level, message, remedy)


def device(mesh: Mesh) -> Finding:
    if mesh.device.type == "cuda":
        card = torch.cuda.get_device_properties(mesh.device)
        torch.ones(8, device=mesh.device).sum().item()
        memory = f"{card.total_memory / GIB:.0f} GiB"
        return ok("device", f"{card.name}, {memory}, CUDA {torch.version.cuda}")
    if Path("/proc/driver/nvidia/version").exists() and not torch.cuda.is_available():
        message = f"an NVIDIA driver is installed, but torch {torch.__version__} sees no GPU"
        remedy = "install torch for the driver's CUDA version, or update the driver (nvidia-smi)"
        return Finding("device", Severity.warning, message, remedy)
    cores = len(os.sched_getaffinity(0))
    return ok("device", f"running on the CPU: {cpu_name()}, {cores} cores")


def package_versions() -> list[Callable[[], Finding]]:
    return [partial(package_version, name) for name in ("torch", dali_package(), "numpy")]


def package_version(name: str) -> Finding:
    """The installed version, against the minimum, and in a checkout against the tested version."""
    installed, minimum = version(name), _version_in(requires("alexnet2012") or (), f"{name}>=")
    if _numbers(installed) < _numbers(minimum):
        return Finding(name, Severity.wrong, installed, f"pip install '{name}>={minimum}'")
    lines = LOCK.read_text(encoding="utf-8").splitlines() if LOCK.is_file() else []
    tested = _version_in(lines, f"{name}==")
    if not tested:
        return ok(name, installed)
    if _numbers(installed) == _numbers(tested):
        return ok(name, f"{installed}, the tested version")
    remedy = f"tested with {tested}: pip install {name}=={tested}"
    return Finding(name, Severity.warning, installed, remedy)


def _version_in(lines: Iterable[str], prefix: str) -> str:
    return next((line.removeprefix(prefix) for line in lines if line.startswith(prefix)), "")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split("+")[0].split(".") if part.isdecimal()]


def dali(mesh: Mesh) -> Finding:
    """Decode an image with a DALI pipeline, and compare it with libjpeg-turbo's result."""
    columns = np.linspace(0, 255, 64, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(columns[:, None], columns[None], np.uint8(99)), axis=-1)
    encoded = encode_jpeg(np.ascontiguousarray(image), 95, colorsubsampling="444")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "image.jpg")
        file.write_bytes(encoded)
        digest = np.frombuffer(hashlib.sha256(encoded).digest(), np.uint8)
        split = Split((str(file),), np.zeros(1, np.int64), digest[None])
        graph = partial(full_image_graph, Decoder.auto)
        reader = DaliPipeline(graph, split, 1, mesh.device, threads=1)
        (decoded,) = reader.read(iter([ExternalFeed(np.zeros(1, np.int64), ())]))
        difference = np.abs(decoded[0].cpu().numpy().astype(int) - decode_jpeg(encoded)).max()
    if difference > 3:  # of 255; GPU decoders round differently
        message = f"decoded pixels differ from libjpeg-turbo's by up to {difference} of 255"
        remedy = "set data.decoder=cpu, and report this as a bug"
        return Finding("DALI", Severity.wrong, message, remedy)
    return ok("DALI", f"a pipeline decodes on the {'CPU' if mesh.device.type == 'cpu' else 'GPU'}")


def normalisation(mesh: Mesh) -> Finding:
    """Run forward and backward; on a GPU this compiles Triton kernels."""
    x = torch.ones(2, 16, 3, 3, device=mesh.device, requires_grad=True)
    try:
        local_response_norm(x, NormConfig(5, 1e-4, 0.75, 2.0, False), 2).sum().backward()
    except Exception as error:
        remedy = "Triton needs a C compiler and the Python headers: install gcc and python3-dev"
        return Finding("normalisation", Severity.wrong, " ".join(str(error).split()), remedy)
    kernels = "Triton kernels" if mesh.device.type == "cuda" else native.description()
    return ok("normalisation", f"forward and backward run with {kernels}")


def memory() -> Finding:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    remedy = "the full-size model takes 2 GiB per process on a CPU; set model=small, or free memory"
    return at_least("memory", free, 4 * GIB, GIB, "free", remedy)


def disk(run_dir: Path) -> Finding:
    folder = next(path for path in (run_dir, *run_dir.parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        remedy = "set hydra.run.dir to a writable folder"
        return Finding("disk", Severity.wrong, f"{folder}: {error.strerror}", remedy)
    remedy = "a full-size checkpoint takes 0.5 GiB; free space, or move hydra.run.dir"
    return at_least("disk", shutil.disk_usage(folder).free, 8 * GIB, GIB, "free for runs", remedy)


def shared_memory() -> Finding:
    remedy = "enlarge it for the container: docker run --shm-size=1g (or --ipc=host)"
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    return at_least("/dev/shm", free, GIB // 2, GIB // 32, "free", remedy)


def open_files() -> Finding:
    limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < 1024:
        remedy = f"raise it: ulimit -n {max(hard_limit, 1024)}"
        return Finding("open files", Severity.warning, f"limit {limit}", remedy)
    return ok("open files", f"limit {limit}")


def store(root: Path) -> Finding:
    """Open the store, verify its lists, and verify a sample of its files against the lists."""
    if not root.exists():
        message, remedy = f"{root} does not exist yet", "train prepares it from data.source"
        return Finding("store", Severity.warning, message, remedy)
    try:
        opened = Store.open(root)
    except ConfigError as error:
        return Finding("store", Severity.wrong, f"{error.key}={error.value}", error.remedy)
    lines = [
        line.split("\t")
        for split in SPLITS
        for line in (root / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    ]
    sample = lines[:: max(1, -(-len(lines) // MAX_SAMPLED))]
    for path, _, digest, *_ in sample:
        try:
            intact = hashlib.sha256((root / path).read_bytes()).hexdigest() == digest
        except OSError:
            intact = False
        if not intact:
            remedy = "the file was changed or deleted; remove the store and prepare it again"
            return Finding("store", Severity.wrong, f"{root / path} is corrupt", remedy)
    counts = " and ".join(f"{len(opened.split(split).paths):,} {split}" for split in opened.splits)
    verified = f"{len(opened.classes)} classes; {len(sample)} files verified"
    return ok("store", f"{counts} images of {verified}")


def checkpoint(path: Path) -> Finding:
    """Verify the checksums of a checkpoint, or of the newest checkpoint of a run."""
    try:
        folder = manifest.latest(path) or path
        manifest.verify(folder, single_process(Device.cpu))
        step = manifest.read_progress(folder).step
    except (OSError, ValueError) as error:
        return Finding("checkpoint", Severity.wrong, str(error), "use an earlier checkpoint")
    return ok("checkpoint", f"{folder.name}: step {step}, checksums verified")


def commit() -> Finding:
    name, changed = running_commit()
    if changed:
        remedy = "commit them; otherwise the run cannot be reproduced"
        return Finding("commit", Severity.warning, f"{name} with uncommitted changes", remedy)
    return ok("commit", name)


def time_exchanges(mesh: Mesh) -> list[Finding]:
    """Time an all-gather between the towers for each size. Collective."""
    comm, findings = communicator_of(mesh), []
    for name, floats in FLOATS_PER_IMAGE.items():
        x = torch.ones(max(1, BATCH * floats), device=mesh.device)
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            gathered = comm.all_gather(x, "doctor", name)
            float(gathered[comm.tower - 1][0])  # reads a peer's part, which waits for a GPU
            seconds.append(time.perf_counter() - start)
        median = sorted(seconds)[REPEATS // 2]
        message, slow = f"{1e3 * median:.2f} ms", median > SLOW_S
        if floats:
            message += f", {x.nbytes / median / 1e6:,.0f} MB/s each way"
            slow = x.nbytes / median < SLOW_BYTES_PER_S
        remedy = "slow; place both towers on one machine, and stop other programs" if slow else ""
        level = Severity.warning if slow else Severity.ok
        findings.append(Finding(f"exchange of {name}", level, message, remedy, mesh.rank))
    return findings


def time_local_exchanges(device: Device) -> list[Finding]:
    """Time the exchanges between two processes that are started on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "exchanges.json")
        try:
            launch(_worker, 2, device, str(output))
        except (ConfigError, RunError) as error:
            message = str(error).splitlines()[-1]
            remedy = "two processes on this machine must be able to connect over localhost"
            return [Finding("exchanges", Severity.wrong, message, remedy)]
        return from_json(output.read_text(encoding="utf-8"))


def _worker(device: Device, output: str) -> None:
    """Runs on each of the two ranks; rank 0 writes the findings."""
    mesh = init_mesh(2, device=device)
    findings = time_exchanges(mesh)
    if mesh.rank == 0:
        Path(output).write_text(to_json(findings), encoding="utf-8")
    mesh.close()
