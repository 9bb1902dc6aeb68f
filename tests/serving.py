"""The page's server, answering on a free port while a test runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from alexnet2012.inference.trained_model import TrainedModel
from alexnet2012.serve import ModelSession, Server


@contextmanager
def serving(net: TrainedModel, views: int) -> Iterator[Server]:
    with Server("127.0.0.1", 0) as server:
        server.desk = ModelSession(net, views)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
