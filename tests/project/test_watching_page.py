"""Every command of docs/watching.md does what it says, run in the order of the page."""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
from programs import TINY

from alexnet2012.data.store import Store
from alexnet2012.runs import SORTS
from alexnet2012.tracking.tracker import FILES

PAGE = Path(__file__).parents[2] / "docs" / "watching.md"


def test_every_command_of_the_page_works_as_printed(
    photos_store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    tiny = [word for word in TINY if not word.startswith("tracking.wandb")]  # as the page has it
    small = [*tiny, f"data.store={photos_store.root}", "mesh=one_process", "schedule.epochs=1"]
    text = PAGE.read_text(encoding="utf-8")
    commands = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()
    assert len(commands) == 7
    said = []
    for command in commands:
        python, flag, name, *words = shlex.split(command)
        assert (python, flag) == ("python", "-m")
        words = [*words[:-1], *small] if words[-1:] == ["MORE"] else words
        monkeypatch.setattr(sys, "argv", [name, *words])
        import_module(name).main()
        out, err = capsys.readouterr()
        assert err == "", command
        said.append(out)
    assert [*Path("runs/one").glob("wandb/offline-run-*/*.wandb")]
    assert [*Path("runs/two/tensorboard").glob("events.out.tfevents.*")]
    assert not Path("runs/three/pictures").exists()
    *_, listed, by_error, as_json, compared = said
    assert "3 runs: 3 finished" in listed
    listed_names = re.findall(r"^(?:one|two|three)\b", by_error, re.MULTILINE)
    assert sorted(listed_names) == ["one", "three", "two"]
    assert [run["state"] for run in json.loads(as_json)["runs"]] == ["finished"] * 3
    assert re.search(r"│ seed +│ 0 +│ 1 +│", compared)
    assert {*FILES, "pictures/", "summary.json", "image_errors.npz"} == set(
        re.findall(r"^\| `(\S+)` \|", text, re.MULTILINE)
    )
    sorts = re.search(r"`--sort` takes ([^.]+)\.", text)
    assert sorts
    assert re.split(r",\s|\sor\s", sorts[1]) == [*SORTS]
