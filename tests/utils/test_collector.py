"""The garbage collector around imports."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from alexnet2012.utils.collector import after_imports, before_imports


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)


def test_it_scans_rarely_during_imports_and_as_usual_afterwards_but_no_module() -> None:
    after_imports()  # a test of a command may have left the other setting
    usual = gc.get_threshold()
    before_imports()
    assert gc.get_threshold()[0] > 100 * usual[0]
    kept = [[] for _ in range(10)]  # type: ignore[var-annotated]
    assert any(thing is kept[0] for thing in gc.get_objects())
    after_imports()
    assert gc.get_threshold() == usual
    assert not any(thing is kept[0] for thing in gc.get_objects())  # exempt
