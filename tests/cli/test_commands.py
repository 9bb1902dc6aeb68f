"""One registry of commands, one grammar for all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

import alexnet2012
from alexnet2012.cli.args import ArgumentParser, expand_json_flag
from alexnet2012.cli.errors import explain, unknown_flag
from alexnet2012.cli.registry import COMMANDS, Command
from alexnet2012.config.compose import compose_config
from alexnet2012.config.schema import ConfigError, EvaluateConfig, TrainConfig

PROGRAM = Path(sys.executable).with_name("alexnet2012")


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120)


def fields_of(command: Command) -> set[str]:
    assert command.schema is not None
    return {item.name for item in fields(command.schema)}


def test_alone_it_lists_every_command_in_a_line_each() -> None:
    listed = run(PROGRAM)
    assert (listed.returncode, listed.stderr) == (0, "")
    for command in COMMANDS.values():
        assert f"  {command.name} " in listed.stdout
        assert command.summary in listed.stdout
    assert max(map(len, listed.stdout.splitlines())) <= 80
    assert listed.stdout == run(sys.executable, "-m", "alexnet2012").stdout


def test_every_module_at_the_top_is_a_registered_command_or_an_alias() -> None:
    top = {path.stem for path in Path(alexnet2012.__file__).parent.glob("*.py")}
    assert top - {"__init__", "__main__"} - set(COMMANDS) <= {"effects"}
    assert len(top) <= 20


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_main(name: str) -> None:
    command = COMMANDS[name]
    assert callable(import_module(command.entry or command.module).main)


@pytest.mark.parametrize("name", ["train", "runs"])
def test_both_spellings_print_the_same_help(name: str) -> None:
    short, long = (
        run(PROGRAM, name, "--help"),
        run(sys.executable, "-m", COMMANDS[name].module, "--help"),
    )
    assert short.returncode == long.returncode == 0
    assert short.stdout == long.stdout != ""


def test_a_command_that_does_not_exist_is_one_line() -> None:
    ended = run(PROGRAM, "trian")
    assert ended.returncode == 2
    assert ended.stderr == (
        "alexnet2012: trian: no such command; did you mean train?; see alexnet2012 --help\n"
    )


def test_the_version_is_printed() -> None:
    assert run(PROGRAM, "--version").stdout.startswith("alexnet2012 ")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lr=0.1", "schedule.rate"),
        ("schedule.lr=0.1", "schedule.rate"),
        ("epochs=3", "schedule.epochs"),
        ("batch_size=32", "data.batch_size"),
        ("data.workers=4", "data.decode_threads"),
        ("num_workers=4", "data.decode_threads"),
        ("data.root=x", "data.source or data.store"),
        ("mesh.backend=nccl", "mesh.device"),
        ("weight_decay=0", "recipe.optimizer.weight_decay"),
        ("dropout=0", "recipe.dropout_rate"),
    ],
)
def test_the_words_of_other_trainers_lead_to_ours(word: str, meant: str) -> None:
    with pytest.raises(Exception, match=r"Could not override") as raised:
        compose_config("train", TrainConfig, [word])
    text = explain(raised.value, TrainConfig)
    assert f"did you mean {meant}" in text
    assert text.startswith(f"{word.partition('=')[0]}: no such key")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "checkpoint=RUN",
            "checkpoint=RUN: is a group of settings, such as checkpoint.every_epochs; to start "
            "from a run, set resume=RUN or init_from=RUN",
        ),
        ("schedule.epochs=many", "schedule.epochs=many: Value 'many'"),
    ],
)
def test_a_value_of_another_type_is_answered_with_what_the_setting_is(word: str, said: str) -> None:
    with pytest.raises(Exception, match=r"Error merging") as raised:
        compose_config("train", TrainConfig, [word])
    assert explain(raised.value, TrainConfig).startswith(said)


def test_a_run_to_evaluate_is_called_checkpoint() -> None:
    with pytest.raises(Exception, match=r"Could not override") as raised:
        compose_config("evaluate", EvaluateConfig, ["resume=RUN"])
    assert explain(raised.value, EvaluateConfig) == "resume: no such key; did you mean checkpoint?"


def test_a_flag_in_place_of_a_setting_is_answered_with_the_setting() -> None:
    assert "did you mean schedule.rate?" in str(unknown_flag("--lr", TrainConfig))
    ended = run(PROGRAM, "train", "--lr", "0.1")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "schedule.rate" in ended.stderr


@pytest.mark.parametrize("flags", [["--cfg"], ["--resolve"]])
def test_a_mistake_in_hydras_flags_is_one_line(flags: list[str]) -> None:
    ended = run(PROGRAM, "plan", "nodes=1", *flags)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr


def test_flags_and_settings_may_come_in_any_order() -> None:
    ended = run(PROGRAM, "plan", "nodes=1", "--cfg", "job", "gpus=4")
    assert ended.returncode == 0, ended.stderr
    assert {"nodes: 1", "gpus: 4"} <= {*ended.stdout.splitlines()}


def test_json_is_a_flag_of_every_command_with_a_result(tmp_path: Path) -> None:
    with_a_result = {c.name for c in COMMANDS.values() if c.schema and "json" in fields_of(c)}
    assert with_a_result == {"evaluate", "predict", "nearest", "plan", "verify"}
    for name in with_a_result:
        schema = COMMANDS[name].schema
        assert schema is not None
        assert expand_json_flag(["--json", "a=1"], schema) == ["a=1", "json=true"]
    for command in ("runs", "ledger"):
        assert "--json" in run(PROGRAM, command, "--help").stdout
    assert "--json" in run(PROGRAM, "report", "compare", "--help").stdout
    listed = run(PROGRAM, "runs", tmp_path, "--json")
    assert json.loads(listed.stdout)["runs"] == []
    refused = run(PROGRAM, "prepare", "--json")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def test_a_mistake_in_flags_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = ArgumentParser(prog="alexnet2012 runs")
    parser.add_argument("--sort", choices=["begun"])
    with pytest.raises(ConfigError, match="alexnet2012 runs --help"):
        parser.parse_args(["--sort", "size"])
