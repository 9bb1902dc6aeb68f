"""Files that anybody may have written end in one line: no traceback, no wait, no memory spent.

Each way in has one reader; here it is given what it does not expect. Archives: test_archives.py;
images: test_decode.py; files that would run code: test_security.py.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.run_dir import check_start
from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device, ExportFormat
from alexnet2012.config.inference_schema import ImportConfig
from alexnet2012.config.schema import ConfigError, PrepareConfig, RunError, TrainConfig
from alexnet2012.data.sources.registry import locate
from alexnet2012.data.store import Store, manifest_digest
from alexnet2012.distributed.mesh import single_process
from alexnet2012.inference.export import export
from alexnet2012.inference.features import Features
from alexnet2012.inference.importers.checkpoint_from_file import import_checkpoint
from alexnet2012.inference.importers.definition_to_recipe import import_definition
from alexnet2012.inference.referee.read import read_network
from alexnet2012.inference.trained_model import TrainedModel, load_trained
from alexnet2012.ledger.command import main as ledger_main
from alexnet2012.report import main as report_main
from alexnet2012.tracking.run_index import RunState, read_run
from alexnet2012.tracking.tracker import read_records

PATIENCE_S = 20
DEEP = "[" * 100_000
DEEP_OBJECT = '{"a":' * 500 + "1" + "}" * 500
HUGE = 10**9

Spoil = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """A reader that waits, for a writer of a pipe or for the end of /dev/zero, is broken off."""

    def late(*_: object) -> None:
        raise AssertionError(f"still reading after {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def text(content: str) -> Spoil:
    return lambda file: file.write_text(content)


def data(content: bytes) -> Spoil:
    return lambda file: file.write_bytes(content)


def pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to("/dev/zero")


def folder(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


def array(values: Any) -> Spoil:
    return lambda file: np.save(file.with_suffix(".npy"), values)


def claiming(shape: str) -> bytes:
    """A NumPy file whose header claims a shape that its data do not have."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 2, 3), np.float32))
    return buffer.getvalue().replace(b"(2, 2, 3), }".ljust(40), f"{shape}, }}".ljust(40).encode())


def tensors(header: object, size: int | None = None) -> bytes:
    """A safetensors file with this header, of this claimed size, and no tensors."""
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if size is None else size) + encoded


CLAIM = {"fc6.weight": {"dtype": "F32", "shape": [HUGE, 25], "data_offsets": [0, 100 * HUGE]}}
ANYWHERE: dict[str, Spoil] = {
    "pipe": pipe,
    "endless": endless,
    "folder": folder,
    "empty": data(b""),
    "junk": data(b"\xff\x00junk" * 50),
}
JSONS: dict[str, Spoil] = {
    "deep list": text(DEEP),
    "deep object": text(DEEP_OBJECT),
    "list": text("[]"),
    "long number": text("1" * 5000),
}
ARRAYS: dict[str, Spoil] = {
    "claims 400 GB": data(claiming("(100000000000,)")),
    "claims 4 EB": data(claiming("(999999999999999999,)")),
    "zip": data(b"PK\x03\x04"),
    "objects": lambda file: np.save(file, np.array([{}]), allow_pickle=True),
}
SAFETENSORS: dict[str, Spoil] = {
    "claims 100 GB": data(tensors(CLAIM)),
    "claims a header of an exabyte": data(tensors({}, 1 << 60)),
    "deep header": data(struct.pack("<Q", len(DEEP)) + DEEP.encode()),
    "no tensors": data(tensors({})),
}


def one_line(error: BaseException) -> str:
    line = str(error)
    assert "\n" not in line and len(line) < 600, line
    return line


# Checkpoints


def setting(*path: str | int, value: object) -> Spoil:
    """Change one value of a JSON file."""

    def spoil(file: Path) -> None:
        content = json.loads(file.read_text())
        *groups, last = path
        owner = content
        for name in groups:
            owner = owner[name]
        owner[last] = value
        file.write_text(json.dumps(content))

    return spoil


SHARDING = {"__metadata__": {"DCP_SHARDING_INFO": "{}"}}
FAR = {"__metadata__": {"DCP_SHARDING_INFO": json.dumps({"a": {"saved_offsets": [HUGE]}})}}
ONE = {"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
METADATA: dict[str, Spoil] = {
    **ANYWHERE,
    **JSONS,
    "step of text": setting("step", value="1"),
    "step of a boolean": setting("step", value=True),
    "step missing": lambda file: file.write_text('{"epoch": 1}'),
    "classes of numbers": setting("classes", value=[1, 2]),
    "settings of a list": setting("settings", value=[]),
    "recipe of a number": setting("settings", "recipe", value=3),
    "width of text": setting("settings", "model", "width", value="wide"),
    "interpolation": setting("settings", "model", "width", value="${oc.env:HOME}"),
    "unknown precision": setting("settings", "precision", value="fp3"),
    "claims 400 GB of kernels": setting("settings", "recipe", "conv1", "kernels", value=HUGE),
    "claims a giant input": setting("settings", "model", "input_size", value=100_000),
    "claims units": setting("settings", "recipe", "fc6", "units", value=HUGE),
    "stride of zero": setting("settings", "recipe", "conv1", "stride", value=0),
    "records of text": setting("records", value={"metrics.jsonl": "all"}),
    "sums of text": setting("sums", value=[["much"]]),
}
OF_A_CHECKPOINT = {
    "checkpoint.json": METADATA,
    "mean_image.npy": {
        **ANYWHERE,
        **ARRAYS,
        "doubles": array(np.zeros((2, 2, 3))),
        "not square": array(np.zeros((2, 3, 3), np.float32)),
        "number": array(np.float32(1)),
        "not a number": array(np.full((2, 2, 3), np.nan, np.float32)),
    },
    "*.safetensors": {
        **ANYWHERE,
        **SAFETENSORS,
        "no positions": data(tensors(SHARDING | ONE)),
        "far away": data(tensors(FAR | ONE)),
    },
    "SHA256SUMS": ANYWHERE,
}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in OF_A_CHECKPOINT.items() for kind in kinds]
)
def test_a_checkpoint_with_such_a_file_is_damaged(
    saved_run: Path, tmp_path: Path, name: str, kind: str
) -> None:
    step = manifest.latest(saved_run)
    assert step is not None
    checkpoint = tmp_path / step.name
    shutil.copytree(step, checkpoint)
    (file,) = checkpoint.glob(name)
    OF_A_CHECKPOINT[name][kind](file)
    sums = checkpoint / "SHA256SUMS"
    if name != sums.name and file.is_file():  # who can write a file can write its checksum
        sums.write_text(manifest.checksums(checkpoint, single_process(Device.cpu)))
    with pytest.raises(ConfigError, match="is damaged") as caught:
        load_trained(checkpoint, Device.cpu)
    assert str(checkpoint) in one_line(caught.value)


def test_a_folder_that_is_named_almost_like_a_checkpoint_is_no_checkpoint(
    saved_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved_run, tmp_path / "run")
    for name in ("step-²", "step-", "step-1.5", "step-9999999.writing"):
        (tmp_path / "run" / "checkpoints" / name).mkdir()
    assert load_trained(tmp_path / "run", Device.cpu).classes


# Exported files


def exported_as(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(file: Path) -> None:
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            metadata = json.loads(opened.metadata()["alexnet2012"])
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        change(metadata, state)
        file.write_bytes(save(state, {"alexnet2012": json.dumps(metadata)}))

    return spoil


def replaced(name: str, tensor: torch.Tensor) -> Spoil:
    return exported_as(lambda metadata, state: state.update({name: tensor}))


EXPORTED: dict[str, Spoil] = {
    **{kind: spoil for kind, spoil in ANYWHERE.items() if kind != "folder"},
    **SAFETENSORS,
    "deep metadata": lambda file: file.write_bytes(save({}, {"alexnet2012": DEEP})),
    "metadata of a list": lambda file: file.write_bytes(save({}, {"alexnet2012": "[]"})),
    "claims 400 GB": exported_as(lambda m, _: m["recipe"]["conv1"].update(kernels=HUGE)),
    "recipe of a number": exported_as(lambda m, _: m.update(recipe=3)),
    "classes of a number": exported_as(lambda m, _: m.update(classes=3)),
    "unknown precision": exported_as(lambda m, _: m.update(precision="fp3")),
    "a mean of no dimension": replaced("mean_image", torch.tensor(1.0)),
    "a mean that is not square": replaced("mean_image", torch.zeros(2, 3, 3)),
    "a weight that is missing": exported_as(lambda _, state: state.pop("fc8.bias")),
}


@pytest.fixture(scope="module")
def exported(net: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "net.safetensors"
    export(net, ExportFormat.safetensors, file)
    return file


@pytest.mark.parametrize("kind", EXPORTED)
def test_such_a_file_is_not_one_that_export_wrote(
    exported: Path, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "net.safetensors"
    shutil.copy(exported, file)
    EXPORTED[kind](file)
    with pytest.raises(ConfigError, match="is not a safetensors file written by") as caught:
        load_trained(file, Device.cpu)
    assert str(file) in one_line(caught.value)


# Models of others


def pth(content: object) -> Spoil:
    return lambda file: torch.save(content, file)


TORCHVISION = ("features.0", "features.3", "features.6", "features.8", "features.10")
TORCHVISION += ("classifier.1", "classifier.4", "classifier.6")


def state_with(tensor: Callable[[], torch.Tensor]) -> Spoil:
    names = [f"{layer}.{part}" for layer in TORCHVISION for part in ("weight", "bias")]
    return lambda file: torch.save({name: tensor() for name in names}, file)


def field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that has a length."""
    key, size = number << 3 | 2, len(content)
    sizes = [size & 127 | 128, size >> 7 & 127 | 128, size >> 14]
    return bytes([key & 127 | 128, key >> 7, *sizes]) + content


INNER_PRODUCT = field(2, b"InnerProduct")
OUTPUTS = b"\x08\x80\x80\x80\x80\x80\x20"  # field 1: 2^40 outputs

IMPORTED: dict[str, dict[str, Spoil]] = {
    "net.pth": {
        **ANYWHERE,
        "page": text("<!DOCTYPE html><title>404</title>"),
        "number": pth(3),
        "sparse": state_with(lambda: torch.eye(3).to_sparse()),
        "quantised": state_with(
            lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        ),
        "without data": state_with(lambda: torch.empty(3, device="meta")),
        "integers": state_with(lambda: torch.ones(3, dtype=torch.int64)),
        "claims 400 GB": state_with(lambda: torch.zeros(1).expand(HUGE, 100)),
    },
    "net.safetensors": {**ANYWHERE, **SAFETENSORS},
    "net.caffemodel": {
        **ANYWHERE,
        "claims 4 TB": data(field(100, INNER_PRODUCT + field(7, b"") + field(117, OUTPUTS))),
    },
}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in IMPORTED.items() for kind in kinds]
)
def test_a_model_that_cannot_be_imported_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    IMPORTED[name][kind](tmp_path / name)
    config = ImportConfig(source=str(tmp_path / name), out=str(tmp_path / "out"))
    with pytest.raises((ConfigError, OSError)) as caught:
        import_checkpoint(config, tmp_path / "out")
    assert name in one_line(caught.value)
    assert not (tmp_path / "out").exists()


DEFINITION = "[data]\ntype=data\ndataIdx=0\n"
DEFINITIONS: dict[str, Spoil] = {
    **ANYWHERE,
    "ten megabytes": data(b"#" * 10**7),
    "a million sections": text("".join(f"[{number}]\n" for number in range(10**5))),
    "long line": text("x" * 10**6),
    "no layers": text(DEFINITION),
    "cycle": text(f"{DEFINITION}[a]\ntype=conv\ninputs=a\n"),
    "long number": text(f"{DEFINITION}[a]\ntype=conv\ninputs=data\nfilters={'9' * 5000}\n"),
    "many inputs": text(f"{DEFINITION}[a]\ntype=fc\ninputs={'data,' * 10**4}\n"),
    "many types": text("".join(f"[{n}]\ntype={'y' * 99}{n}\n" for n in range(999))),
}


@pytest.mark.parametrize("key", ["source", "params"])
@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_definition_that_is_none_is_refused(tmp_path: Path, key: str, kind: str) -> None:
    files = {key: tmp_path / f"{key}.cfg" for key in ("source", "params")}
    for file in files.values():
        file.write_text(DEFINITION, encoding="utf-8")
    DEFINITIONS[kind](files[key])
    config = ImportConfig(str(files["source"]), str(tmp_path / "out"), params=str(files["params"]))
    with pytest.raises(ConfigError) as caught:
        import_definition(config, tmp_path / "out")
    assert ".cfg: " in one_line(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [*ANYWHERE, *JSONS])
@pytest.mark.parametrize("group", ["recipe", "schedule"])
def test_a_recipe_or_schedule_that_is_none_is_refused(
    tmp_path: Path, group: str, kind: str
) -> None:
    {**ANYWHERE, **JSONS}[kind](tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=f"^{group}=.*mine.yaml: cannot be read: ") as caught:
        compose_config("train", TrainConfig, [f"{group}={tmp_path}/mine.yaml"])
    one_line(caught.value)


NETWORKS: dict[str, dict[str, Spoil]] = {
    **IMPORTED,
    "net.onnx": {
        **ANYWHERE,
        "countless outputs": data(field(7, field(1, field(2, b"a") * 1000 + field(4, b"Split")))),
        "countless operators": data(field(7, field(1, field(4, b"Relu")) * 30_000)),
        "a negative shape": data(field(7, field(5, b"\x08" + b"\xff" * 9 + b"\x01"))),
    },
    "net.prototxt": {
        **ANYWHERE,
        "deep": text("layer {" * 10_000),
        "comments": text("layer { # " + "# " * 100_000 + "\n$"),
        "long number": text("layer { lrn_param { local_size: " + "1" * 5000 + " } }"),
    },
    "RUN": ANYWHERE,
}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in NETWORKS.items() for kind in kinds]
)
def test_a_network_that_cannot_be_compared_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    NETWORKS[name][kind](tmp_path / name)
    with pytest.raises((ConfigError, OSError)) as caught:
        read_network(tmp_path / name)
    assert name in one_line(caught.value)


# Run directories

RUN_SETTINGS: dict[str, Spoil] = {
    **ANYWHERE,
    "list": text("[1]"),
    "deep": text(DEEP),
    "aliases": text("a: &a {x: 1}\nb: &b {x: *a, y: *a}\nrecipe: {name: paper, x: *b}\n"),
    "object": text("seed: !!python/object/apply:os.getpid []\n"),
}
OF_A_RUN: dict[str, dict[str, Spoil]] = {
    "config.yaml": RUN_SETTINGS,
    "summary.json": {kind: s for kind, s in {**ANYWHERE, **JSONS}.items() if kind != "list"},
    "metrics.jsonl": {**ANYWHERE, "deep": text(DEEP + "\n"), "list": text("[1]\n")},
}


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    words = ["mesh=one_process", "resume=auto", "tracking.wandb=disabled"]
    return compose_config("train", TrainConfig, words)[0]


@pytest.fixture
def run(tmp_path: Path, config: TrainConfig) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text(json.dumps(manifest.to_plain(config)))
    (directory / "summary.json").write_text('{"steps": 1}')
    (directory / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    return directory


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in OF_A_RUN.items() for kind in kinds]
)
def test_a_run_with_such_a_file_is_listed_as_damaged(run: Path, name: str, kind: str) -> None:
    assert read_run(run).state is RunState.finished
    OF_A_RUN[name][kind](run / name)
    if (name, kind) == ("metrics.jsonl", "empty"):  # a run that has just begun
        return
    found = read_run(run)
    assert found.state is RunState.damaged
    assert found.problem is not None and "\n" not in found.problem


@pytest.mark.parametrize("kind", ["pipe", "endless", "huge", "deep", "no time"])
def test_odd_files_beside_the_records_change_nothing(run: Path, kind: str) -> None:
    if kind in ("pipe", "endless"):
        ANYWHERE[kind](run / ".lock")
    texts = {"huge": "1" * 10**6, "deep": DEEP, "no time": '{"unix_s": 1e300}'}
    (run / "timings.jsonl").write_text(texts.get(kind, ""))
    assert read_run(run).state is RunState.finished


@pytest.mark.parametrize("kind", [kind for kind in RUN_SETTINGS if kind != "folder"])
def test_a_run_whose_settings_are_damaged_is_not_resumed(
    run: Path, config: TrainConfig, kind: str
) -> None:
    RUN_SETTINGS[kind](run / "config.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged") as caught:
        check_start(config, run)
    one_line(caught.value)


@pytest.mark.parametrize("line", ["?", "[1]", DEEP, '{"kind": 1, "step": 1}', '{"kind": "x"}'])
def test_records_with_a_broken_first_line_are_damaged(tmp_path: Path, line: str) -> None:
    file = tmp_path / "watched.jsonl"
    file.write_text(line + '\n{"kind": "kernels", "step": 2}\n')
    with pytest.raises(RunError, match=r"watched\.jsonl: is damaged") as caught:
        read_records(file)
    one_line(caught.value)


# Stores


def resigned(change: Callable[[dict[str, Any], Path], object]) -> Callable[[Path], None]:
    """A store whose manifest has right checksums all the same."""

    def spoil(root: Path) -> None:
        content = json.loads((root / "manifest.json").read_text())
        change(content, root)
        from alexnet2012.data.store import fingerprint

        content["fingerprint"] = fingerprint(root)
        content["sha256"] = manifest_digest(content, root)
        (root / "manifest.json").write_text(json.dumps(content))

    return spoil


def within(name: str, spoil: Spoil) -> Callable[[Path], object]:
    return lambda root: spoil(root / name)


STORES: dict[str, Callable[[Path], object]] = {
    **{f"manifest: {kind}": within("manifest.json", JSONS[kind]) for kind in JSONS},
    **{f"list: {kind}": within("val.tsv", ANYWHERE[kind]) for kind in ANYWHERE},
    **{f"mean: {kind}": within("mean_image.npy", ANYWHERE[kind]) for kind in ANYWHERE},
    "mean of another size": resigned(
        lambda _, root: np.save(root / "mean_image.npy", np.zeros((2, 2, 3), np.float32))
    ),
    "mean that claims 400 GB": resigned(
        lambda _, root: (root / "mean_image.npy").write_bytes(claiming("(100000000000,)"))
    ),
    "classes of a number": resigned(lambda content, _: content.update(classes=3)),
    "covariance of text": resigned(lambda content, _: content.update(rgb_covariance="x")),
    "lines of one word": resigned(lambda _, root: (root / "val.tsv").write_text("x\n")),
    "label of text": resigned(lambda _, root: (root / "val.tsv").write_text("x\ty\tz\t1\n")),
}


@pytest.mark.parametrize("kind", STORES)
def test_a_store_with_such_a_file_is_damaged(
    photos_store: Store, tmp_path: Path, kind: str
) -> None:
    root = tmp_path / "store"
    root.mkdir()
    for name in ("manifest.json", "mean_image.npy", "train.tsv", "val.tsv"):
        shutil.copy(photos_store.root / name, root / name)
    STORES[kind](root)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        Store.open(root).split("val")
    one_line(caught.value)


# Sources, features and reports


@pytest.mark.parametrize("name", ["x", "x.tar", "x.tar.gz"])
@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_a_source_that_is_no_file_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    ANYWHERE[kind](tmp_path / name)
    with pytest.raises(ConfigError) as caught:
        locate(PrepareConfig(source=str(tmp_path / name), store=str(tmp_path / "store")))
    assert name in one_line(caught.value)


@pytest.mark.parametrize("name", ["f.npy", "f.npy.json"])
@pytest.mark.parametrize("kind", ANYWHERE)
def test_features_with_such_a_file_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    file = tmp_path / "f.npy"
    Features(np.zeros((1, 2), np.float32), ["a"], "run", "digest").save(file)
    ANYWHERE[kind](tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        Features.load(file)
    one_line(caught.value)


REPORTS: dict[str, Spoil] = {
    **ANYWHERE,
    **JSONS,
    "warnings of a number": text('{"warnings": 3}'),
    "measurements of text": text('{"measurements": ["x"]}'),
    "audit of text": text('{"audit": "x"}'),
    "runs of a list": text('{"runs": [1]}'),
    "evaluation of a number": text('{"evaluation": 3}'),
}


def test_a_ledger_that_is_none_is_not_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ledger.json").write_text('{"rows": 3}')
    (tmp_path / "evidence.json").write_text('{"sweeps": 3}')
    np.savez(tmp_path / "evidence.npz", a=np.zeros(1))
    monkeypatch.setattr("sys.argv", ["ledger", "verify", str(tmp_path)])
    with pytest.raises(SystemExit) as ending:
        ledger_main()
    err = capfd.readouterr().err
    assert (ending.value.code, err.count("\n")) == (2, 1), err


@pytest.mark.parametrize("kind", REPORTS)
def test_a_reproduction_with_such_a_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    directory = tmp_path / "a\x1b]0;name\x07"
    directory.mkdir()
    REPORTS[kind](directory / "reproduction.json")
    monkeypatch.setattr("sys.argv", ["report", str(directory)])
    with pytest.raises(SystemExit) as ending:
        exit_on_error(report_main)
    err = capfd.readouterr().err
    assert (ending.value.code, err.count("\n")) == (2, 1), err
    assert "is damaged" in err and "\x1b" not in err and "\x07" not in err
