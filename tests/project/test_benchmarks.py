"""Results of benchmarks: what counts as slower, and the page that shows them."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from documented import printed
from programs import REPOSITORY

from alexnet2012 import AlexNet
from alexnet2012.config.enums import Device
from alexnet2012.distributed.mesh import single_process
from alexnet2012.utils import native

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import arms  # noqa: E402
import busy  # noqa: E402
import full_step  # noqa: E402
import lrn  # noqa: E402
import page  # noqa: E402
import peers  # noqa: E402
import record  # noqa: E402
from compare import changes  # noqa: E402

BEFORE: dict[str, Any] = {
    "question": "speed",
    "rows": [
        {"arm": "ours", "images_per_s": 50.0, "ratio_to_plain": 2.0, "ratio_range": [1.9, 2.1]},
        {"arm": "plain", "images_per_s": 25.0, "ratio_to_plain": 1.0, "ratio_range": [1.0, 1.0]},
    ],
}


def with_ratio(ratio: float, low: float, high: float) -> dict[str, Any]:
    after = copy.deepcopy(BEFORE)
    after["rows"][0].update(ratio_to_plain=ratio, ratio_range=[low, high], images_per_s=1.0)
    return after


@pytest.mark.parametrize(
    ("after", "slower"),
    [
        (with_ratio(2.0, 1.9, 2.1), False),  # fewer images/s: another machine
        (with_ratio(1.7, 1.6, 1.8), True),
        (with_ratio(1.7, 1.5, 2.0), False),  # its rounds reach into those before
        (with_ratio(1.85, 1.84, 1.86), False),  # less than a tenth
        (with_ratio(3.0, 2.9, 3.1), False),
    ],
)
def test_only_a_ratio_that_fell_out_of_its_range_is_a_regression(
    after: dict[str, Any], slower: bool
) -> None:
    assert [change.regression for change in changes(BEFORE, after, 0.1)] == [slower, False]


def test_each_ratio_is_compared_within_its_own_range() -> None:
    before, after = copy.deepcopy(BEFORE), with_ratio(1.7, 1.6, 1.8)
    for result in (before, after):  # as in results of several peers
        for row in result["rows"]:
            row["range_of_ratio_to_plain"] = row.pop("ratio_range")
    assert [change.regression for change in changes(before, after, 0.1)] == [True, False]


def test_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different benchmarks"):
        changes(BEFORE, {**BEFORE, "question": "memory"}, 0.1)
    with pytest.raises(ValueError, match="no ratio"):
        changes(BEFORE, {"question": "speed", "rows": []}, 0.1)


def test_the_command_fails_on_a_regression_and_names_what_it_cannot_read(tmp_path: Path) -> None:
    files = tmp_path / "before.json", tmp_path / "after.json"
    for file, result in zip(files, (BEFORE, with_ratio(1.5, 1.4, 1.6)), strict=True):
        file.write_text(json.dumps(result), encoding="utf-8")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, BENCHMARKS / "compare.py", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    slower = run(*map(str, files))
    assert slower.returncode == 1
    assert "slower" in slower.stdout
    assert run(str(files[0]), str(files[0])).returncode == 0
    missing = run(str(files[0]), "gone.json")
    assert missing.returncode == 1
    assert "gone.json" in missing.stderr


def test_every_kept_result_can_be_read_for_its_ratios() -> None:
    kept = [json.loads(p.read_text(encoding="utf-8")) for p in BENCHMARKS.glob("results/*.json")]
    with_ratios = [
        result
        for result in kept
        if any(k.startswith(("ratio_to", "times_")) for row in result.get("rows", []) for k in row)
    ]
    assert len(with_ratios) > 2
    for result in with_ratios:
        assert not any(change.regression for change in changes(result, result, 0.1))


def test_the_page_is_what_the_results_say() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


def test_the_page_has_each_cell_where_it_was_printed() -> None:
    result = {
        "question": "speed",
        "command": "python benchmarks/speed.py",
        "commit": "abc",
        "machine": {"processor": "CPU", "cores": 2},
        "load_before": 3.0,
        "versions": {"torch": "2.13"},
        "tables": [{"title": "Steps", "headings": ["", "ms"], "cells": [["a|b", "1.0"]]}],
    }
    text = page.section(result)
    assert "| a\\|b | 1.0 |" in text
    assert "load 3.0 before" in text


@pytest.mark.usefixtures("launched_soon")
def test_the_step_is_timed_on_this_machine_whatever_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = arms.Arm(arms.OURS, 2, "fp32")  # many CPUs emulate bf16
    if arm not in arms.arms():  # one GPU holds one process
        arm = arms.Arm(arms.OURS, 1, "fp32")
    some = [arm, arm._replace(kind=arms.NO_EXCHANGES)]  # two of a dozen
    monkeypatch.setattr(full_step, "arms", lambda: some)
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    _, *words = printed("python benchmarks/full_step.py")
    monkeypatch.setattr(sys, "argv", [*words, "batch=2", "steps=2", "rounds=1"])
    full_step.main()
    found = json.loads((tmp_path / "results" / "full_step.json").read_text(encoding="utf-8"))
    for row in found["rows"]:
        assert row["images_per_s"] > 0
        assert row["of_limit_pct"] > 0
    (exchanges,) = found["exchanges"]
    assert (exchanges["exchange_pct"] > 0) == (arm.processes > 1)


def test_ratios_are_to_peers_in_the_same_precision() -> None:
    def took(seconds: float) -> list[arms.Timed]:
        return [
            arms.Timed([seconds], [0.0], 1.0, 1.0, 9.0),
            arms.Timed([seconds], [0.0], 1.0, 1.0, 9.0),
        ]

    ours = arms.Arm(arms.OURS, 2, "bf16")
    found = {
        arms.Arm(peers.COMPILED, 1, "fp32"): took(8.0),
        arms.Arm(peers.COMPILED, 1, "bf16"): took(3.0),
        arms.Arm(peers.PLAIN, 1, "fp32"): took(16.0),
        ours: took(2.0),
    }
    assert full_step.ratios(ours, found) == {  # and none to plain, which has no bf16 here
        "ratio_to_compiled": 1.5,
        "range_of_ratio_to_compiled": [1.5, 1.5],
    }


def logits_of(net: torch.nn.Module, ours: AlexNet, images: torch.Tensor) -> torch.Tensor:
    """With our weights, halved where ours halves the outputs of dropout at test time."""
    state = {name: w.clone() for name, w in ours.full_state_dict().items()}
    for name in ("fc7.weight", "fc8.weight"):
        state[name] *= 0.5
    with torch.no_grad():
        for parameter, weight in zip(net.parameters(), state.values(), strict=True):
            parameter.copy_(weight)
        logits: torch.Tensor = net.double().eval()(images)
    return logits


def test_the_peer_that_is_compiled_computes_our_network_and_only_that() -> None:
    ours = AlexNet("paper", 10, precision="fp64", mesh=single_process(Device.cpu)).eval()
    images = 60 * torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        want = ours(images)
    bound = 1e-6 * want.abs().max()  # the peer squares in float32
    got = logits_of(peers.paper_net(10, peers.SlicedLRN()), ours, images)
    assert (got - want).abs().max() < bound
    across = logits_of(peers.paper_net(10, peers.SlicedLRN(towers=1)), ours, images)
    assert (across - want).abs().max() > bound  # windows that cross from one tower to the other


def test_lrn_is_timed_with_and_without_its_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    monkeypatch.setattr(lrn, "can_compile", lambda: False)  # which takes a minute
    monkeypatch.setattr(lrn, "MAPS", ((96, 5),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["lrn.py", "batch=2", "rounds=1"])
    lrn.main()
    rows = json.loads((tmp_path / "results" / "lrn.json").read_text(encoding="utf-8"))["rows"]
    names = {row["arm"] for row in rows}
    assert {"blocks, float32", "blocks, bf16", "copies, bf16"} <= names
    assert ("ours, bf16" in names) == (native.kernels() is not None)
    assert {row["ratio_to_blocks"] for row in rows if row["arm"].startswith("blocks")} == {1}


def test_a_core_is_kept_busy_and_free_again() -> None:
    last = {max(os.sched_getaffinity(0))}
    with busy.busy_core() as loop:
        while os.sched_getaffinity(loop.pid) != last:  # until it has pinned itself
            assert loop.poll() is None
    assert loop.returncode is not None


def test_a_step_is_timed_in_a_process_of_its_own() -> None:
    case = busy.Case(REPOSITORY, 1 / 16, 1)
    assert busy.images_per_s(case, batch=2, steps=1, precision="fp32") > 0
