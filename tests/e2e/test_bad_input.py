"""A user's mistake ends with exit code 2, one line that helps, and no process left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import TINY, TORCHRUN_SCRIPT, Ended, module, run

from alexnet2012.checkpoint import manifest
from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.compose import compose_config
from alexnet2012.config.schema import EvaluateConfig, TrainConfig
from alexnet2012.data.store import Store
from alexnet2012.distributed.mesh import single_process
from alexnet2012.evaluate import run as evaluate_run
from alexnet2012.prepare import main as prepare_main
from alexnet2012.train import main as train_main
from alexnet2012.train import run as train_run
from alexnet2012.training.trainer import Trainer

Refuse = Callable[..., str]


def the_line(ended: Ended, *words: str) -> None:
    """Key, value and remedy in the one line on standard error; nothing else, and nothing left."""
    assert ended.left == []
    assert "Traceback" not in ended.err + ended.out
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("alexnet2012: ")
    assert all(word in lines[0] for word in words), lines[0]
    assert ended.code == 2


@pytest.fixture
def refuse(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """The same for a run in this process, which is refused before it starts others."""

    def refused(*overrides: str, words: tuple[str, ...]) -> None:
        def application() -> None:
            config, _ = compose_config(
                "train", TrainConfig, [*TINY, "mesh=one_process", *overrides]
            )
            train_run(config, tmp_path / "run")

        with pytest.raises(SystemExit) as ending:
            exit_on_error(application, TrainConfig)
        out, err = capfd.readouterr()
        assert isinstance(ending.value.code, int)
        the_line(Ended(ending.value.code, out, err, []), *words)

    return refused


def pictures(folder: Path, source: Path) -> Path:
    """A folder of two classes to spoil."""
    for split in ("train", "val"):
        for name in ("brick", "moon"):
            shutil.copytree(source / split / name, folder / split / name)
    return folder


def test_a_missing_or_empty_data_folder_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    where = f"data.source={folder}"
    refuse(where, words=(where, "does not exist", "train/CLASS"))
    folder.mkdir()
    refuse(where, words=(where, "is empty", "train/CLASS"))
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_class_folder_without_pictures_is_refused_by_name(
    refuse: Refuse, photos_folder: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "pictures", photos_folder)
    (folder / "train" / "owl").mkdir()
    (folder / "train" / "owl" / "notes.txt").touch()
    refuse(f"data.source={folder}", words=("data.source=", "owl", "no images", "add images"))


def test_a_class_of_damaged_pictures_is_refused_with_one_of_them(
    refuse: Refuse, photos_folder: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "pictures", photos_folder)
    for path in (folder / "val" / "moon").iterdir():
        path.write_bytes(path.read_bytes()[:500])
    refuse(f"data.source={folder}", words=("data.source=", "val/moon", "0000.jpg"))


def test_a_store_of_another_size_is_refused_before_training(
    refuse: Refuse, photos_store: Store
) -> None:
    store = (f"data.store={photos_store.root}",)
    refuse(*store, "data.store_size=96", words=("data.store", "72", "data.store_size"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("resume=null", ("hydra.run.dir", "already contains a run", "resume=auto")),
        ("resume=nowhere", ("resume=nowhere", "does not exist")),
        ("init_from=nowhere", ("init_from=nowhere", "does not exist")),
        ("data.decoder=gpu", ("data.decoder=gpu", "use auto or cpu")),
        ("precision=tf32", ("precision=tf32", "use fp32 or bf16")),
        ("model.input_size=20", ("model.input_size=20", "too small", "64")),
    ],
)
def test_what_needs_no_picture_is_told_before_any_is_prepared(
    refuse: Refuse, photos_folder: Path, tmp_path: Path, override: str, words: tuple[str, ...]
) -> None:
    if override == "resume=null":
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.jsonl").touch()
    where = (f"data.source={photos_folder}", f"data.store={tmp_path / 'store'}")
    refuse(*where, override, words=words)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["manifest.json", "mean_image.npy", "train.tsv", "val.tsv"])
def test_a_damaged_store_is_refused(
    refuse: Refuse, photos_store: Store, tmp_path: Path, name: str
) -> None:
    store = tmp_path / "store"
    shutil.copytree(photos_store.root, store)
    original = (store / name).read_bytes()
    where = (f"data.store={store}",)
    for damaged in (original[: len(original) // 2], b"", None):
        (store / name).unlink()
        if damaged is not None:
            (store / name).write_bytes(damaged)
        refuse(*where, words=(f"data.store={store}", "prepare"))
        (store / name).write_bytes(original)


def test_a_picture_lost_from_the_store_is_named(
    refuse: Refuse, photos_store: Store, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(photos_store.root, store)
    lost = Path(Store.open(store).split("train").paths[57])
    lost.unlink()
    where = (f"data.store={store}", "schedule.epochs=1")
    refuse(*where, words=(str(lost), "prepare"))


@pytest.fixture(scope="module")
def trained(photos_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch of the paper's recipe."""
    run_dir = tmp_path_factory.mktemp("trained")
    where = (f"data.store={photos_store.root}", "schedule.epochs=1")
    config, _ = compose_config("train", TrainConfig, [*TINY, "mesh=one_process", *where])
    Trainer(config, single_process(), run_dir).run()
    return run_dir


def test_going_on_from_another_recipe_or_from_nothing_is_refused(
    refuse: Refuse, photos_store: Store, trained: Path, tmp_path: Path
) -> None:
    where = (f"data.store={photos_store.root}", "schedule.epochs=2")
    folder = manifest.latest(trained)
    words = (f"resume={folder}", "recipe=paper", "recipe=code145")
    refuse(*where, f"resume={folder}", "recipe=code145", words=words)
    words = (f"resume={folder}", "seed=0", "seed=1")
    refuse(*where, f"resume={folder}", "seed=1", words=words)
    words = (f"resume={tmp_path}/nowhere", "does not exist")
    refuse(*where, f"resume={tmp_path}/nowhere", words=words)
    shutil.copytree(trained, tmp_path / "run", dirs_exist_ok=True)  # and by itself
    refuse(
        *where,
        "seed=1",
        words=(f"hydra.run.dir={tmp_path}", "contains a run with seed=0", "seed=1"),
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["checkpoint=nowhere"], ("checkpoint=nowhere", "does not exist")),
        (["checkpoint=."], ("checkpoint=.", "contains no checkpoint", "step-0001000")),
        ([], ("checkpoint: required", "set checkpoint=")),
        (["checkpoint=TRAINED", "views=3"], ("views=3", "1", "10")),
        (["checkpoint=TRAINED", "views=0"], ("views=0", "1", "10")),
        (["checkpoint=TRAINED", "batch_size=0"], ("batch_size=0", "at least 1")),
        (["checkpoint=TRAINED", "decode_threads=0"], ("decode_threads=0", "at least 1")),
        (["checkpoint=TRAINED", "store=nowhere"], ("store=", "nowhere", "prepare")),
        (["checkpoint=[]"], ("checkpoint=", "must name at least one")),
    ],
)
def test_evaluate_refuses_what_it_cannot_evaluate(
    capfd: pytest.CaptureFixture[str], trained: Path, overrides: list[str], words: tuple[str, ...]
) -> None:
    given = [text.replace("TRAINED", str(trained)) for text in overrides]

    def application() -> None:
        evaluate_run(*compose_config("evaluate", EvaluateConfig, [*given, "device=cpu"]))

    with pytest.raises(SystemExit) as ending:
        exit_on_error(application, EvaluateConfig)
    out, err = capfd.readouterr()
    assert isinstance(ending.value.code, int)
    err = err.removeprefix("loading the model\n")
    the_line(Ended(ending.value.code, out, err, []), *words)


def test_ranks_that_meet_a_mistake_end_with_its_one_line(
    photos_store: Store, tmp_path: Path
) -> None:
    where = [f"data.store={photos_store.root}", "data.store_size=96"]
    ended = run(module("train", *TINY, *where), tmp_path)
    the_line(ended, f"data.store={photos_store.root}", "72 pixels", "data.store_size")


def test_the_program_refuses_a_wrong_override(tmp_path: Path) -> None:
    ended = run(module("train", "recipe=papr"), tmp_path)
    the_line(ended, "recipe=papr", "code145, code146, code146_2011, paper")
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("main", "arguments", "words"),
    [
        (train_main, ["mesh.processes=3"], ("mesh.processes=3", "mesh.towers=2", "2 or 4")),
        (train_main, ["+new=1"], ("new=1", "no such key", "remove it")),
        (
            prepare_main,
            ["source=nowhere", "store=store"],
            ("alexnet2012: source=nowhere", "does not exist"),
        ),
    ],
)
def test_entry_points_refuse_others_and_leave_nothing(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    main: Callable[[], None],
    arguments: list[str],
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # which the entry point sets
    monkeypatch.setattr("sys.argv", ["program", *arguments])
    with pytest.raises(SystemExit) as ending:
        main()
    out, err = capfd.readouterr()
    assert isinstance(ending.value.code, int)
    the_line(Ended(ending.value.code, out, err, []), *words)
    assert list(tmp_path.iterdir()) == []
    assert not list(tmp_path.rglob("*.jsonl"))


def test_the_torchrun_script_refuses_wrong_overrides_before_it_starts_a_process(
    tmp_path: Path,
) -> None:
    ended = run([TORCHRUN_SCRIPT, "recipe.conv1.kernels=97"], tmp_path)
    the_line(ended, "recipe.conv1.kernels=97", "96 or 98")


def test_the_torchrun_script_refuses_a_world_that_is_no_mesh(tmp_path: Path) -> None:
    ended = run(["env", "NPROC_PER_NODE=3", TORCHRUN_SCRIPT, *TINY, "data=photos"], tmp_path)
    the_line(ended, "mesh.processes=3", "2 or 4")


def test_the_torchrun_script_looks_for_pictures_where_it_was_started(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    ended = run([TORCHRUN_SCRIPT, *TINY, "data.source=pictures"], tmp_path)
    the_line(ended, "data.source=pictures", "is empty")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["store=FILE/within/store"], ("FILE/within", "Not a directory")),
        (["store=store", "-m", "--cfg", "job"], ("--multirun", "--cfg")),
    ],
)
def test_hydra_adds_nothing_to_a_mistake(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    words: tuple[str, ...],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # which the entry point sets
    given = [text.replace("FILE", str(tmp_path / "file")) for text in arguments]
    monkeypatch.setattr("sys.argv", ["prepare", "source=photos", *given])
    with pytest.raises(SystemExit) as ending:
        prepare_main()
    out, err = capfd.readouterr()
    assert isinstance(ending.value.code, int)
    named = [word.replace("FILE", str(tmp_path / "file")) for word in words]
    the_line(Ended(ending.value.code, out, err, []), *named)


def test_a_mistake_in_a_checkpoints_file_is_told_in_one_line(
    refuse: Refuse, photos_store: Store, trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "step-0000001"
    newest = manifest.latest(trained)
    assert newest is not None
    shutil.copytree(newest, folder)
    where = (f"data.store={photos_store.root}", "schedule.epochs=2")
    progress = json.loads((folder / manifest.METADATA).read_text())
    for text in ("", "{", json.dumps({**progress, "unknown": 1}), "[]"):
        (folder / manifest.METADATA).write_text(text)
        refuse(*where, f"resume={folder}", words=(str(folder), "damaged"))


def test_a_checkpoint_that_lost_a_file_is_refused_in_one_line(
    refuse: Refuse, photos_store: Store, trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "step-0000001"
    newest = manifest.latest(trained)
    assert newest is not None
    shutil.copytree(newest, folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    where = (f"data.store={photos_store.root}", "schedule.epochs=2")
    refuse(*where, f"resume={folder}", words=(str(folder), "damaged"))
