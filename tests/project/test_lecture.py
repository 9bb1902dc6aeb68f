"""The exercises of docs/lecture.md, run on two processes, and the output in their answers."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import torch
from ranks import run_ranks

from alexnet2012.distributed import collectives
from alexnet2012.ledger.measurements.architecture import EXCHANGED_FLOATS
from alexnet2012.nn import alexnet, layers

PAGE = (Path(__file__).parents[2] / "docs" / "lecture.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^`(\w+\.py)`\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
OUTPUTS = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


def printed_here(program: str) -> str:
    torch.set_num_threads(1)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(program, "lecture", "exec"), {})
    layers.all_gather_to_sharded = collectives.all_gather_to_sharded
    alexnet.all_gather_to_replicated = collectives.all_gather_to_replicated
    return out.getvalue()


def printed(program: str) -> str:
    """What both ranks print."""
    return "".join(run_ranks(2, printed_here, program))


def test_each_program_has_the_command_that_starts_it() -> None:
    commands = re.findall(r"^torchrun --nproc-per-node 2 (\w+\.py)$", PAGE, re.MULTILINE)
    assert commands == list(PROGRAMS) == ["links.py", "broken.py", "hide.py"]


def test_the_bytes_of_the_full_network_are_those_of_the_text() -> None:
    backward = sum(EXCHANGED_FLOATS.values()) // 2  # of one tower
    forward, gradients = backward + 500, 60_965_224
    per_image = 4 * (forward + backward)
    for said in (
        f"{forward:,} numbers per image forward and {backward:,} backward",
        f"{per_image / 1e3:.0f} kB in float32",
        f"{128 * per_image / 1e6:.0f} MB for a batch of 128",
        f"{gradients:,}\nparameters: {4 * gradients / 1e6:.0f} MB",
        f"about {round(4 * gradients / per_image, -1):,.0f} images",
    ):
        assert said in PAGE
    assert round(4 * gradients / (128 * per_image)) == 8


def test_the_bytes_are_those_of_the_answer_and_move_with_the_link() -> None:
    links = PROGRAMS["links.py"]
    assert printed(links) == OUTPUTS[0]
    (change,) = re.findall(r"add\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    line = 'recipe = load_recipe("paper")\n'
    assert line in links
    assert printed(links.replace(line, line + change)) == OUTPUTS[1]


def test_broken_gradients_are_those_of_the_answer() -> None:
    assert printed(PROGRAMS["broken.py"]) == OUTPUTS[2]


def test_a_hidden_exchange_gives_the_same_maps() -> None:
    out = printed(PROGRAMS["hide.py"])
    differences = [float(number) for number in re.findall(r"difference (\S+)", out)]
    assert len(differences) == 2 and all(0 < number < 1e-3 for number in differences)
    assert len(re.findall(r"plain [\d.]+ ms, hidden [\d.]+ ms", out)) == 2
