"""Runs the server of the page on a free port during a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from alexnet2012.inference.trained_model import TrainedModel
from alexnet2012.inference.web.server import ModelSession, Server


@contextmanager
def serving(trained: TrainedModel, views: int) -> Iterator[Server]:
    with Server("127.0.0.1", 0) as server:
        server.session = ModelSession(trained, views)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
