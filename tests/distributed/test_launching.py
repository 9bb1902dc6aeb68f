"""The processes that a command launches, and the process that launches them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alexnet2012.distributed.launch import launch


def count_threads(folder: Path) -> None:
    Path(folder, os.environ["RANK"]).write_text(str(torch.get_num_threads()))


@pytest.mark.usefixtures("launched_soon")
def test_processes_share_the_cores_between_them(tmp_path: Path) -> None:
    """Two processes with a thread on every core each wait for each other in every loop."""
    launch(count_threads, 2, tmp_path)
    each = max(1, len(os.sched_getaffinity(0)) // 2)
    assert [Path(tmp_path, str(rank)).read_text() for rank in range(2)] == [str(each)] * 2


def test_a_launching_process_imports_neither_torch_nor_dali() -> None:
    """Its ranks do, once; together with them it would double the time until the first step."""
    code = "import sys, alexnet2012.train; print({'torch', 'nvidia.dali'} & {*sys.modules})"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    assert printed.strip() == b"set()"
