"""Paths and other text on the command line need no quotes for Hydra."""

from __future__ import annotations

import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from alexnet2012.cli.registry import COMMANDS
from alexnet2012.config.compose import compose_config, hydra_overrides
from alexnet2012.config.inference_schema import ExportConfig
from alexnet2012.config.schema import ConfigError, EvaluateConfig, ReproduceConfig, TrainConfig
from alexnet2012.config.validation import expand_paths

NAMES = (
    *("a=b", "a#b", "a (b)", "(b)", "f(1)", "a(b", "a[1]", "a]b", "a b", "数据 集/图", "ä/é"),
    *("{a}", "a{b", "{a: 1}", "a&b;c", "a:b", "a@b%c", "x~", "a/~b", "it's", 'say "a"', "!a", "*?"),
    *("2024_06", "007", "1e3", "true", "nan", "-1", "null/a", "lr=0.1", "a^b|c<d>"),
)
PATHS = {
    *("source", "store", "resume", "init_from", "checkpoint", "out"),
    *("features", "sheet", "mean", "classes", "labels", "params", "bands", "run"),
    *("predictions", "per_class", "confusion", "submission", "devkit"),
}


def read_back(override: str, schema: type = TrainConfig) -> object:
    """The value that Hydra's grammar reads."""
    (word,) = hydra_overrides(schema, [override])
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize("name", NAMES)
def test_text_is_read_as_it_is_written(name: str) -> None:
    assert read_back(f"data.store={name}") == name
    assert read_back(f"tracking.project={name}") == name
    assert read_back(f"hydra.run.dir={name}") == name
    assert read_back(f"checkpoint={name}", EvaluateConfig) == name
    if all(name.count(left) == name.count(right) for left, right in ("()", "[]", "{}")):
        assert read_back(f"checkpoint=[{name},b, {name}]", EvaluateConfig) == [name, "b", name]


def test_brackets_are_text_where_no_list_is_allowed() -> None:
    assert read_back("data.store=[1]") == "[1]"
    assert read_back("checkpoint=[1]", EvaluateConfig) == ["1"]


def test_a_path_reaches_the_configuration_unchanged(tmp_path: Path) -> None:
    name = "数据 #1 (a=b) [x] {y}~"
    words = ["data=store", f"data.store={tmp_path}/{name}", f"hydra.run.dir={name}"]
    config, run_dir = compose_config("train", TrainConfig, words)
    assert config.data.store == f"{tmp_path}/{name}"
    assert run_dir == Path.cwd() / name


@given(st.text(st.characters(exclude_categories=["C"], exclude_characters="\\,'\"$"), min_size=1))
def test_any_name_without_quotes_or_commas_needs_none(name: str) -> None:
    path = f"/{name}".rstrip()
    assert read_back(f"data.store={path}") == path


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("'a,b'", "a,b"),
        ('"a b"', "a b"),
        (r"a\ b\,c", "a b,c"),  # Hydra's own escapes
        ("null", None),
        ("", ""),
        ("${seed}/a", "${seed}/a"),
        ("${hydra:sweep.dir}/a#/${seed}", "${hydra:sweep.dir}/a#/${seed}"),
    ],
)
def test_quotes_escapes_null_and_interpolations_keep_their_meaning(
    written: str, read: object
) -> None:
    assert read_back(f"data.store={written}") == read


def test_commas_separate_the_values_of_a_sweep() -> None:
    parser = OverridesParser.create()
    for written in ("a#b, 'c,d',007", "choice(a#b,'c,d',007)"):
        (word,) = hydra_overrides(TrainConfig, [f"data.store={written}"])
        values = parser.parse_override(word).sweep_string_iterator()
        assert [shlex.split(value)[0] for value in values] == ["a#b", "c,d", "007"]
    (word,) = hydra_overrides(TrainConfig, ["resume=range(1,3)"])
    assert word == "resume=range(1,3)"


def test_settings_in_a_list_of_settings_need_no_quotes() -> None:
    words = ["model.width=0.5", "schedule.drops=[{epoch:1,rate:2}]"]
    overrides = [f"overrides=[{','.join(words)}]"]
    assert compose_config("reproduce", ReproduceConfig, overrides)[0].overrides == words


def test_values_that_are_not_text_are_left_to_hydra() -> None:
    words = ["seed=0,1", "model.width=.5", "schedule.drops=[{epoch:1,rate:2}]", "recipe=code145"]
    assert hydra_overrides(TrainConfig, words) == words


def path_settings(schema: type, prefix: str = "") -> dict[str, bool]:
    """Whether a setting of text is declared a path, by key."""
    found = {}
    for item in fields(schema()):
        value = getattr(schema(), item.name)
        if is_dataclass(value):
            found |= path_settings(type(value), f"{prefix}{item.name}.")
        elif str(item.type).startswith(("str", "Any")):
            found[f"{prefix}{item.name}"] = bool(item.metadata.get("path"))
    return found


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.schema])
def test_a_tilde_is_the_home_directory_in_every_path_of_a_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = COMMANDS[name].schema
    assert schema is not None
    declared = path_settings(schema)
    assert {key for key, is_path in declared.items() if is_path} == {
        key for key in declared if key.rpartition(".")[2] in PATHS
    }
    monkeypatch.setenv("HOME", "/home/someone")
    config = schema()
    for key in (key for key, is_path in declared.items() if is_path):
        group, _, last = key.rpartition(".")
        owner = getattr(config, group) if group else config
        for written, read in (("~/a", "/home/someone/a"), ("b~", "b~"), (["~", None], None)):
            setattr(owner, last, written)
            expand_paths(config)
            assert getattr(owner, last) == (read or ["/home/someone", None])


def test_run_directories_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert compose_config("train", TrainConfig, ["hydra.run.dir=~/runs/a"])[1] == Path(
        "/home/someone/runs/a"
    )
    assert read_back("hydra.sweep.dir=~/runs") == "/home/someone/runs"


@pytest.mark.parametrize("key", ["out", "hydra.run.dir"])
def test_a_home_directory_that_does_not_exist_is_reported(key: str) -> None:
    words = ["checkpoint=a", "out=b", f"{key}=~no-such-user/a"]
    with pytest.raises(ConfigError, match=rf"^{key}=~no-such-user/a: no such home directory"):
        compose_config("export", ExportConfig, words)
