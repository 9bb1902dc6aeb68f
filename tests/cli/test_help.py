"""``--help`` of every command: all settings with values, ranges and meanings."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import get_type_hints

import pytest
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from alexnet2012.cli import help as usage
from alexnet2012.cli.registry import COMMANDS

SCHEMAS = {c.config: c.schema for c in COMMANDS.values() if c.schema is not None}


def help_text(name: str, *words: str) -> str:
    ConfigStore.instance().store(name=f"{name}_schema", node=SCHEMAS[name])
    GlobalHydra.instance().clear()
    with initialize_config_module("alexnet2012.conf", version_base="1.3"):
        return usage.usage(name, SCHEMAS[name], compose(name, overrides=list(words)))


def keys(schema: type, prefix: str = "") -> list[str]:
    found = []
    for item in fields(schema):
        kind = get_type_hints(schema)[item.name]
        if is_dataclass(kind) and isinstance(kind, type):
            found += keys(kind, f"{prefix}{item.name}.") if item.name != "recipe" else []
        else:
            found.append(prefix + item.name)
    return found


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_setting_is_listed_within_80_columns(name: str) -> None:
    settings, *_ = help_text(name).split("Settings of the recipe")
    assert max(map(len, settings.splitlines())) <= 80
    listed = [line.strip().split("=")[0] for line in settings.splitlines() if line.startswith("  ")]
    assert set(keys(SCHEMAS[name])) <= set(listed)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_setting_has_a_meaning(name: str) -> None:
    config = OmegaConf.structured(SCHEMAS[name])
    settings = usage.settings(SCHEMAS[name], config)
    assert [setting.key for setting in settings if not setting.meaning] == []


def test_values_are_those_of_the_command_and_comments_of_the_schema() -> None:
    text = help_text("train", "seed=7", "schedule=code145", "recipe=code145")
    assert (
        "  seed=7                        at least 0; seed of initial weights, data order,\n" in text
    )
    assert "  schedule.epochs=91            at least 1; passes over the training images\n" in text
    assert (
        "  schedule.drops=[…]            fixed: changes at given epochs, sorted by epoch;\n" in text
    )
    assert (
        "  precision=fp32                fp32, fp64, tf32, bf16; arithmetic: bf16 keeps\n" in text
    )
    assert "  data.limit=null               at least 1; use only this many images per class" in text
    assert "the run directory, if any; a path: resume from" in text  # from lines above the field
    assert "init_std: 0.03                 # layers-145.cfg; the paper prints .01\n" in text
    assert "  recipe                        cifar4, code145, code146, code146_2011, paper\n" in text


def test_help_prints_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare", "--help", "size=128"])
    import_module("alexnet2012.prepare").main()
    out, err = capsys.readouterr()
    assert (
        "  size=128                      at least 16 and at most 4096; pixels per side of\n" in out
    )
    assert err == ""
