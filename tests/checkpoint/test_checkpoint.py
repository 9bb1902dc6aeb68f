"""Checkpoints are bit-exact across meshes: saved by any number of processes, loaded by another."""

from __future__ import annotations

import json
import pickle
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from safetensors.torch import load_file
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from alexnet2012 import AlexNet, init_mesh
from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manager import CheckpointManager
from alexnet2012.checkpoint.manifest import METADATA, Progress, config_of, read_progress, to_plain
from alexnet2012.checkpoint.run_dir import (
    check_compatible,
    check_start,
    lock_run_dir,
    with_defaults,
)
from alexnet2012.checkpoint.state import TrainingState
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Shuffle
from alexnet2012.config.schema import (
    CheckpointConfig,
    ConfigError,
    ModelConfig,
    RunError,
    TrainConfig,
)
from alexnet2012.distributed.collectives import gather_rows
from alexnet2012.distributed.mesh import single_process
from alexnet2012.nn.lr_schedule import LearningRates, learning_rates
from alexnet2012.nn.optim import PaperSGD

SMALL = ModelConfig(width=1 / 24, input_size=64)
IMAGES = 4  # of the global batch
MEAN_IMAGE = np.zeros((8, 8, 3), np.float32)
PROGRESS = Progress(step=2, epoch=1, validation_errors=[50.0], classes=["a", "b"])


def build(classes: int, seed: int) -> tuple[AlexNet, PaperSGD]:
    model = AlexNet("code145", classes, model=SMALL, mesh=init_mesh(2, device="cpu"), seed=seed)
    return model, PaperSGD(model, model.recipe.optimizer)


def train(model: AlexNet, optimizer: PaperSGD, steps: range) -> None:
    model.train()
    optimizer.set_rates(LearningRates(0.01, 0.02))
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        images = 60 * torch.randn(IMAGES, 3, 64, 64, generator=draw)
        labels = torch.arange(IMAGES) % model.num_classes
        own = IMAGES // model.mesh.replicas
        rows = slice(model.mesh.replica * own, (model.mesh.replica + 1) * own)
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        if model.mesh.data_group is not None:
            for parameter in model.parameters():
                torch.distributed.all_reduce(parameter.grad, group=model.mesh.data_group)
        optimizer.step()


def save(folder: Path, model: AlexNet, optimizer: PaperSGD, progress: Progress = PROGRESS) -> None:
    checkpoint.save(folder, TrainingState.of(model, optimizer, progress, MEAN_IMAGE), model.mesh)


def contents(model: AlexNet, optimizer: PaperSGD) -> dict[str, np.ndarray]:
    """The full state that a checkpoint restores."""
    found = {f"weight {name}": w.numpy() for name, w in model.full_state_dict().items()}
    for name, parameter in model.named_parameters():
        rows = model.layers()[name.split(".")[0]].rows
        whole = gather_rows(optimizer.velocity(parameter), rows, model.comm, "state", "inference")
        found[f"velocity {name}"] = whole.numpy()
    found |= {f"stream {n}": s.numpy() for n, s in model.random_state().items()}
    return found


def train_and_save(folder: str, classes: int) -> dict[str, np.ndarray]:
    model, optimizer = build(classes, seed=0)
    train(model, optimizer, range(2))
    save(Path(folder), model, optimizer)
    return contents(model, optimizer)


def load_into_another(folder: str, classes: int) -> dict[str, np.ndarray]:
    model, optimizer = build(classes, seed=1)
    train(model, optimizer, range(5, 6))  # the checkpoint must replace all of it
    assert checkpoint.load(Path(folder), model, optimizer) == PROGRESS
    return contents(model, optimizer)


def on(processes: int, function: Any, *args: Any) -> list[Any]:
    return [function(*args)] if processes == 1 else run_ranks(processes, function, *args)


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("classes", [7, 1])  # shares of 4 and 3, and of 1 and none
@pytest.mark.parametrize(
    ("saving", "loading"), [(2, (1, 2, 4)), (1, (1, 2)), (4, (1,))], ids=["2", "1", "4"]
)
def test_a_checkpoint_of_one_mesh_loads_bit_for_bit_on_another(
    tmp_path: Path, saving: int, loading: tuple[int, ...], classes: int
) -> None:
    if classes == 1:
        loading = tuple(count for count in loading if count < 4)
    folder = tmp_path / "step-0000001"
    saved = on(saving, train_and_save, str(folder), classes)
    assert all(equal(rank, saved[0]) for rank in saved)
    for processes in loading:
        for rank in on(processes, load_into_another, str(folder), classes):
            assert equal(rank, saved[0]), processes


def start_from(folder: str, layers: list[str]) -> tuple[dict[str, np.ndarray], ...]:
    """A model of other classes: its weights before and after loading pretrained layers."""
    model, _ = build(3, seed=1)
    before = {name: w.clone().numpy() for name, w in model.full_state_dict().items()}
    checkpoint.load_pretrained(manifest.find_valid(Path(folder), model.mesh), model, layers)
    return before, {name: w.numpy() for name, w in model.full_state_dict().items()}


@pytest.mark.parametrize("layers", [[], ["conv1", "fc7"]])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_model_of_other_classes_starts_from_the_given_layers_only(
    tmp_path: Path, processes: int, layers: list[str]
) -> None:
    run = tmp_path / "run"
    saved = train_and_save(str(run / "checkpoints" / "step-0000002"), 7)
    for before, after in on(processes, start_from, str(run), layers):
        for name, weights in after.items():
            layer = name.split(".")[0]
            taken = layer in layers if layers else layer != "fc8"
            expected = saved[f"weight {name}"] if taken else before[name]
            assert np.array_equal(weights, expected), name


def test_layers_that_do_not_match_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "step-0000002"
    train_and_save(str(folder), 7)
    model, _ = build(3, seed=1)
    with pytest.raises(ConfigError, match=r"init_layers=conv9: no such layer; use any of conv1"):
        checkpoint.load_pretrained(folder, model, ["conv9"])
    with pytest.raises(
        ConfigError, match=r"fc8.weight is \(7, \d+\) in the checkpoint, \(3, \d+\) in this"
    ):
        checkpoint.load_pretrained(folder, model, ["fc8"])
    wider = AlexNet("code146", 3, model=SMALL)
    with pytest.raises(ConfigError, match=r"conv6.weight is missing in the checkpoint") as error:
        checkpoint.load_pretrained(folder, wider, [])
    advised = str(error.value).partition("set init_layers=[")[2].removesuffix("]").split(",")
    assert advised[:5] == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    checkpoint.load_pretrained(folder, wider, advised)
    with pytest.raises(ConfigError, match=r"set init_layers=\[conv2\]$"):
        checkpoint.load_pretrained(folder, wider, ["conv2", "conv6"])
    with pytest.raises(ConfigError, match="no layer that was asked for fits; use another"):
        checkpoint.load_pretrained(folder, wider, ["conv6"])


def test_a_folder_without_a_checkpoint_is_named_for_what_it_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    for folder, said in (
        ("frist", "does not exist; `alexnet2012 runs` lists the runs in a folder"),
        ("run", "is a run without checkpoints; use another run"),
        (".", "contains no checkpoint (checkpoint.json is missing); use a run, or a directory"),
    ):
        with pytest.raises(ConfigError) as error:
            manifest.read_progress(tmp_path / folder, "resume")
        assert str(error.value).startswith(f"resume={tmp_path / folder}: {said}")


def test_a_run_can_be_resumed_by_its_directory(tmp_path: Path) -> None:
    """As it can be evaluated: its newest checkpoint is meant."""
    run = tmp_path / "run"
    train_and_save(str(run / "checkpoints" / "step-0000002"), 7)
    words = [f"resume={run}", "data=store", "data.store=x", "mesh=one_process"]
    config, _ = compose_config("train", TrainConfig, words)
    check_start(config, tmp_path / "new")
    config.resume = str(run / "checkpoints")
    with pytest.raises(ConfigError, match=r"resume=.*contains no checkpoint"):
        check_start(config, tmp_path / "new")


def test_dropout_streams_of_incompatible_code_are_refused_with_its_commit(tmp_path: Path) -> None:
    model, optimizer = build(3, seed=0)
    before = replace(PROGRESS, code="commit abc")
    snapshot = TrainingState.of(model, optimizer, before, MEAN_IMAGE)
    snapshot.state["random.fc6"] = torch.Generator().get_state()
    checkpoint.save(tmp_path / "step-0000001", snapshot, model.mesh)
    with pytest.raises(ConfigError, match=r"that code \(commit abc\), or use init_from"):
        checkpoint.load(tmp_path / "step-0000001", model, optimizer)
    checkpoint.load(tmp_path / "step-0000001", model)


def resume(folder: str) -> dict[str, Any]:
    """Four uninterrupted steps, and two steps resumed after a checkpoint of the first two."""
    undisturbed = build(7, seed=0)
    train(*undisturbed, range(2))
    save(Path(folder), *undisturbed)
    train(*undisturbed, range(2, 4))
    resumed = build(7, seed=1)
    checkpoint.load(Path(folder), *resumed)
    train(*resumed, range(2, 4))
    only_weights = build(7, seed=0)
    checkpoint.load(Path(folder), only_weights[0])
    train(*only_weights, range(2, 4))
    return {
        "undisturbed": contents(*undisturbed),
        "resumed": contents(*resumed),
        "only weights": contents(*only_weights),
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_resumed_training_equals_uninterrupted_training(tmp_path: Path, processes: int) -> None:
    for rank in on(processes, resume, str(tmp_path / "step-0000001")):
        assert equal(rank["resumed"], rank["undisturbed"])
        assert not equal(rank["only weights"], rank["undisturbed"])  # momentum and masks matter


def test_a_checkpoint_replaces_an_older_one_and_leaves_no_temporary_folder(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-0000001"
    (tmp_path / "checkpoints" / "step-0000001.writing").mkdir(parents=True)  # of a killed run
    (tmp_path / "checkpoints" / "step-0000001.writing" / "half").touch()
    model, optimizer = build(7, seed=0)
    for step in (1, 2):
        save(folder, model, optimizer, replace(PROGRESS, step=step))
    assert [path.name for path in folder.parent.iterdir()] == ["step-0000001"]
    assert not (folder / "half").exists()
    assert manifest.read_progress(folder).step == 2


def test_the_newest_checkpoint_is_the_complete_one_of_most_steps(tmp_path: Path) -> None:
    assert manifest.latest(tmp_path) is None
    names = ("step-0000009", "step-0000010", "step-10000000")
    for name in (*names, "step-99999999.writing", "step-99999999.removing"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    newest = manifest.latest(tmp_path)
    assert newest is not None
    assert newest.name == "step-10000000"


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no checkpoint .* such as RUN/"):
        manifest.read_progress(tmp_path)


def test_a_damaged_checkpoint_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / manifest.METADATA).write_text("{")
    with pytest.raises(ConfigError):
        manifest.read_progress(tmp_path)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with two checkpoints."""
    directory = tmp_path_factory.mktemp("run")
    for step in (1, 2):
        train_and_save(str(directory / "checkpoints" / f"step-{step:07d}"), 7)
    return directory


def damages(folder: Path, flips: int, truncations: int) -> Iterator[tuple[Path, bytes]]:
    """Files of a checkpoint in turn, each with what it holds after a random damage."""
    draw = random.Random(0)
    files = sorted(folder.iterdir())
    for count in range(flips + truncations):
        file = files[count % len(files)]
        data = bytearray(file.read_bytes())
        if count < flips:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        else:
            del data[draw.randrange(len(data)) :]
        yield file, bytes(data)


def test_every_flipped_bit_and_every_truncation_is_detected(
    run_dir: Path,
) -> None:
    before, last = sorted((run_dir / "checkpoints").iterdir())
    assert manifest.find_valid(run_dir, single_process()) == last
    noticed = 0
    for file, damaged in damages(last, flips=200, truncations=50):
        whole = file.read_bytes()
        file.write_bytes(damaged)
        noticed += manifest.find_valid(run_dir, single_process()) == before
        file.write_bytes(whole)
    assert noticed == 250
    assert manifest.find_valid(run_dir, single_process()) == last


@pytest.mark.parametrize("change", ["lost", "another"])
def test_a_checkpoint_with_a_missing_or_extra_file_is_damaged(run_dir: Path, change: str) -> None:
    last = manifest.latest(run_dir)
    assert last is not None
    file = last / ("mean_image.npy" if change == "lost" else "shard-9.safetensors")
    whole = file.read_bytes() if change == "lost" else None
    file.unlink() if change == "lost" else file.touch()
    (last / ".DS_Store").touch()  # hidden files are ignored
    with pytest.raises(
        ConfigError, match=rf"is damaged \(checksum of {file.name} does not match\)"
    ):
        manifest.verify(last, single_process())
    file.unlink() if whole is None else file.write_bytes(whole)
    manifest.verify(last, single_process())


def find_on_all(directory: str) -> str:
    try:
        return str(manifest.find_valid(Path(directory), init_mesh(2, device="cpu")))
    except ConfigError as error:
        return str(error)


def test_ranks_share_the_verification_and_agree(run_dir: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run_dir, copied)
    before, last = sorted((copied / "checkpoints").iterdir())
    for damaged, word in ((last, str(before)), (before, "contains no valid checkpoint")):
        for file in damaged.iterdir():  # whichever rank reads it
            file.write_bytes(file.read_bytes()[:-1])
        first, second = run_ranks(2, find_on_all, str(copied))
        assert first == second
        assert word in first


def fill_the_disk(directory: str) -> tuple[str, list[str], dict[str, np.ndarray]]:
    """Save, then save again while rank 1 can write only a part of its file."""
    model, optimizer = build(7, seed=0)
    save(Path(directory, "step-0000001"), model, optimizer)
    if model.mesh.rank == 1:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    with pytest.raises(RunError) as error:
        save(Path(directory, "step-0000002"), model, optimizer)
    left = sorted(path.name for path in Path(directory).iterdir())
    manifest.verify(Path(directory, "step-0000001"), model.mesh)
    return str(error.value), left, contents(model, optimizer)


def test_a_full_disk_keeps_earlier_checkpoints_and_all_ranks_raise_with_a_remedy(
    tmp_path: Path,
) -> None:
    first, second = run_ranks(2, fill_the_disk, str(tmp_path))
    assert first[0] == second[0]
    assert "step-0000002: cannot be written (File too large)" in first[0]
    assert "Free disk space and run the same command again" in first[0]
    assert first[1] == second[1] == ["step-0000001"]
    saved = load_from(tmp_path / "step-0000001")
    assert equal(saved, first[2])


def load_from(folder: Path) -> dict[str, np.ndarray]:
    model, optimizer = build(7, seed=1)
    checkpoint.load(folder, model, optimizer)
    return contents(model, optimizer)


def saver(directory: Path, **settings: Any) -> CheckpointManager:
    return CheckpointManager(CheckpointConfig(**settings), directory, single_process(), 0)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_run_directory_that_was_removed_is_not_made_again(tmp_path: Path, replaced: bool) -> None:
    run_dir = tmp_path / "run"
    with lock_run_dir(run_dir):
        writer = saver(run_dir)
        model, optimizer = build(7, seed=0)
        shutil.rmtree(run_dir)
        if replaced:
            lock_run_dir(run_dir).close()
        writer.save(TrainingState.of(model, optimizer, PROGRESS, MEAN_IMAGE))
        with pytest.raises(RunError, match="was removed or replaced during the run"):
            writer.wait()
    assert not (run_dir / "checkpoints").exists()


def test_a_background_save_has_the_state_at_the_time_of_the_call(
    tmp_path: Path,
) -> None:
    model, optimizer = build(7, seed=0)
    train(model, optimizer, range(2))
    at_once, writer = contents(model, optimizer), saver(tmp_path)
    writer.save(TrainingState.of(model, optimizer, PROGRESS, MEAN_IMAGE))
    train(model, optimizer, range(2, 4))
    writer.wait()
    assert equal(load_from(tmp_path / "checkpoints" / "step-0000002"), at_once)
    assert not equal(contents(model, optimizer), at_once)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep_last": 2}, [2, 5, 6]),
        ({"keep_last": 2, "keep_best": False}, [5, 6]),
        ({"keep_last": None}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_last_checkpoints_and_the_best_are_kept(
    tmp_path: Path, settings: dict[str, Any], kept: list[int]
) -> None:
    model, optimizer = build(7, seed=0)
    writer = saver(tmp_path, **settings)
    for step, error in enumerate((50.0, 20.0, None, 20.0, 30.0, None), start=1):
        progress = replace(PROGRESS, step=step, top1_error_pct=error)
        writer.save(TrainingState.of(model, optimizer, progress, MEAN_IMAGE))
        writer.wait()
    folders = sorted((tmp_path / "checkpoints").iterdir())
    assert [manifest.checkpoint_step(folder) for folder in folders] == kept


def test_values_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model, optimizer = build(7, seed=0)
    optimizer.velocity(model.layers()["fc7"].bias)[1] = float("inf")
    writer = saver(tmp_path)
    writer.save(TrainingState.of(model, optimizer, PROGRESS, MEAN_IMAGE))
    with pytest.raises(RunError, match=r"step 2: velocity.fc7.bias is not finite"):
        writer.wait()
    assert writer.failed
    assert not (tmp_path / "checkpoints").exists()


def test_nothing_in_a_checkpoint_is_unpickled(run_dir: Path, monkeypatch: Any) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refused)
    folder = manifest.find_valid(run_dir, single_process())
    load_from(folder)
    manifest.read_mean_image(folder)
    assert {file.suffix for file in folder.iterdir() if file.name != ".DS_Store"} == {
        ".safetensors", ".json", ".npy", ""
    }  # fmt: skip


def test_sha256sum_can_check_a_checkpoint(run_dir: Path) -> None:
    folder = manifest.find_valid(run_dir, single_process())
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


@cache
def settings(*overrides: str) -> TrainConfig:
    return compose_config("train", TrainConfig, overrides)[0]


def saved_with(*overrides: str) -> Progress:
    return replace(PROGRESS, settings=json.loads(json.dumps(to_plain(settings(*overrides)))))


def test_safetensors_alone_reads_the_tensors_of_a_checkpoint(tmp_path: Path) -> None:
    saved, _ = run_ranks(2, train_and_save, str(tmp_path / "step"), 5)
    rows: dict[str, list[torch.Tensor]] = {}
    for file in sorted((tmp_path / "step").glob("*.safetensors")):
        for name, part in load_file(file).items():
            rows.setdefault(name, []).append(part)
    words = {"weight": "model", "velocity": "velocity", "stream": "random"}
    for name, values in saved.items():
        kind, _, of = name.partition(" ")
        assert np.array_equal(torch.cat(rows[f"{words[kind]}.{of}"]).numpy(), values), name


def test_a_checkpoint_restores_the_configuration_of_its_training() -> None:
    overrides = ("recipe=code145", "model=small", "seed=5", "data.limit=3")
    assert config_of(saved_with(*overrides)) == settings(*overrides)


def test_checkpoints_with_settings_that_no_longer_exist_still_load(tmp_path: Path) -> None:
    before = saved_with()
    before.settings["mesh"]["hide_exchanges"] = None
    (tmp_path / METADATA).write_text(json.dumps(asdict(before)), encoding="utf-8")
    read = read_progress(tmp_path)
    assert config_of(read) == settings()
    check_compatible(tmp_path, read, settings())


def saved_before_orders_were_drawn_once(*overrides: str) -> Progress:
    progress = saved_with(*overrides)
    del progress.settings["recipe"]["shuffle"], progress.settings["recipe"]["fc8_bottleneck"]
    for drop in progress.settings["schedule"]["drops"]:
        del drop["layer_bias_rates"]
    return progress


def test_checkpoints_from_before_orders_were_drawn_once_resume_with_an_order_by_epoch() -> None:
    dropping = ("schedule=constant", "schedule.drops=[{epoch: 9, rate: 1e-3}]")
    for words in ((), dropping):
        before = saved_before_orders_were_drawn_once(*words)
        check_compatible(Path("there"), before, settings(*words))
        assert config_of(before) == settings(*words)
    as_before = "schedule.drops=[{epoch: 67, layer_rates: {conv1: 1e-5}}]"
    before = saved_before_orders_were_drawn_once("recipe=code145", as_before)
    assert config_of(before).recipe.shuffle is Shuffle.every_epoch
    with pytest.raises(ConfigError, match=r"recipe\.shuffle=every_epoch, this run has .*=once"):
        check_compatible(Path("there"), before, settings("recipe=code145", as_before))
    words = ("recipe=code145", as_before, "recipe.shuffle=every_epoch")
    check_compatible(Path("there"), before, settings(*words))
    rates = learning_rates(config_of(before).schedule, 67, [], 128)
    assert rates.of("conv1", bias=True) == 1e-5  # a layer's rate was that of its biases, too


def test_another_recipe_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"recipe=paper.*recipe=code145"):
        check_compatible(Path("there"), saved_with(), settings("recipe=code145"))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "precision=fp64",
        "model.width=0.5",
        "recipe.conv1.kernels=98",
        "recipe.optimizer.momentum=0.8",
        "schedule.rate=0.1",
        "data.batch_size=64",
        "data.limit=3",
        "data.first_classes=3",
        "data.skip_classes=1",
        "schedule.rate_factor=2.0",
        "schedule.epochs_factor=2",
        "data.store_size=512",
        "init_from=elsewhere",
    ],
)
def test_a_setting_that_changes_the_weights_must_match_on_resume(override: str) -> None:
    key, value = override.split("=")
    with pytest.raises(ConfigError) as error:
        check_compatible(Path("there"), saved_with(), settings(override))
    assert f"{key}=" in str(error.value)
    assert value in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "schedule.epochs=200",
        "max_steps=5",
        "mesh=one_process",
        "mesh.processes=4",
        "data.decode_threads=1",
        "tracking.wandb=disabled",
        "eval_views=10",
        "data.store=elsewhere",
    ],
)
def test_a_setting_that_does_not_change_the_weights_may_differ_on_resume(override: str) -> None:
    check_compatible(Path("there"), saved_with(), settings(override))


def test_a_max_pool_and_an_activation_beside_it_have_no_order() -> None:
    """Runs of before code145 had the pool after conv5 first are the same runs."""
    config = compose_config("train", TrainConfig, ["recipe=code145", "data.source=photos"])[0]
    now = with_defaults(to_plain(config))
    config.recipe.conv5.after.reverse()
    assert with_defaults(to_plain(config)) == now
    config.recipe.conv1.after.reverse()  # LRN does not commute with either
    assert with_defaults(to_plain(config)) != now


def test_a_setting_added_after_a_checkpoint_has_its_default() -> None:
    older = saved_with("mesh=one_process")
    del older.settings["recipe"]["lrn_across_towers"]
    check_compatible(Path("there"), older, settings("mesh=one_process"))
    changed = settings("mesh=one_process", "recipe.lrn_across_towers=true")
    with pytest.raises(ConfigError, match=r"recipe\.lrn_across_towers=False, this run has .*=True"):
        check_compatible(Path("there"), older, changed)


def devices_of_a_snapshot() -> set[str]:
    """Devices of the copies of a model whose mesh is on another device, as with GPUs."""
    mesh = init_mesh(2, device="cpu")
    assert mesh.device_mesh is not None
    groups, ranks = mesh.device_mesh.get_all_groups(), mesh.device_mesh.mesh
    names = mesh.device_mesh.mesh_dim_names
    elsewhere = DeviceMesh.from_group(groups, "meta", ranks, mesh_dim_names=names)
    model = AlexNet("paper", 4, model=SMALL, mesh=replace(mesh, device_mesh=elsewhere))
    state = TrainingState.of(
        model, PaperSGD(model, model.recipe.optimizer), PROGRESS, MEAN_IMAGE
    ).state
    sharded = [tensor for tensor in state.values() if isinstance(tensor, DTensor)]
    assert len(sharded) == 2 * len(list(model.parameters()))
    return {tensor.to_local().device.type for tensor in sharded}


def test_a_snapshot_stays_in_host_memory_on_any_mesh() -> None:
    assert run_ranks(2, devices_of_a_snapshot) == [{"cpu"}] * 2
