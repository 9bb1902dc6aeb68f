"""What crosses between the towers, read from the collectives that torch really dispatches."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet2012 import AlexNet, init_mesh
from alexnet2012.distributed.collectives import UnderWay

IMAGES = 2
# Floats that one tower sends per image: paper fig. 2's maps and units, half of each.
PER_TOWER = {"conv3": 21_632, "fc6": 4_608, "fc7": 2_048, "fc8": 2_048, "logits": 500}


class Wire(TorchDispatchMode):
    """Notes every c10d operation, with the floats that one rank contributes or receives.

    ``order``: of convolutions, of their gradients (of x, weight, bias), and of exchanges that begin
    and have come.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, int]] = []
        self.order: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.__name__.split(".")[0]
        if op.namespace == "c10d":
            sizes = [a.numel() for a in args if isinstance(a, Tensor)]
            self.events.append((name, min(sizes)))
            self.order.append("sent")
        if name == "convolution":
            self.order.append("product")
        if name == "convolution_backward":
            asked = (what for what, wanted in zip("xwb", args[-1], strict=True) if wanted)
            self.order.append("gradients " + "".join(asked))
        return op(*args, **(kwargs or {}))


def step_on_the_wire(
    recipe: str, hide_exchanges: bool = False, frozen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """One full-size training step; layers and collectives in the order in which they ran."""
    mesh = init_mesh(2, device="cpu")
    model = AlexNet(recipe, mesh=mesh, hide_exchanges=hide_exchanges)
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    images = torch.randn(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    wait = UnderWay.wait

    def noted(self: Any) -> Any:
        wire.order.append("came")
        return wait(self)

    with Wire() as wire, patch.object(UnderWay, "wait", noted):
        for name, layer in model.layers().items():
            layer.register_forward_pre_hook(lambda *_, name=name: wire.events.append((name, 0)))
        loss = F.cross_entropy(model(50 * images), torch.tensor([1, 2]))
        wire.events.append(("backward", 0))
        wire.order.append("backward")
        loss.backward()
    traffic = dict(model.link.traffic.sent_bytes)
    return {"events": wire.events, "order": wire.order, "counted": traffic}


def test_only_the_papers_layers_exchange_and_exactly_its_floats() -> None:
    for rank in run_ranks(2, step_on_the_wire, "paper"):
        crossed = {name: IMAGES * floats for name, floats in PER_TOWER.items()}
        names = [name for name, _ in rank["events"]]
        gathers = {name for name, floats in rank["events"][: names.index("backward")] if floats}
        assert len(gathers) == 1, gathers
        gather = gathers.pop()
        assert rank["events"][: names.index("backward")] == [
            ("conv1", 0),
            ("conv2", 0),
            ("conv3", 0),
            (gather, crossed["conv3"]),
            ("conv4", 0),
            ("conv5", 0),
            ("fc6", 0),
            (gather, crossed["fc6"]),
            ("fc7", 0),
            (gather, crossed["fc7"]),
            ("fc8", 0),
            (gather, crossed["fc8"]),
            (gather, crossed["logits"]),
        ]
        # Backward the peer's share of each gradient returns; the logits' is an own slice.
        returned = [floats for _, floats in rank["events"][names.index("backward") + 1 :]]
        assert returned == [crossed[layer] for layer in ("fc8", "fc7", "fc6", "conv3")]


OF_FC = 3 * ["sent", "came"]


def test_what_the_peer_waits_for_is_under_way_while_weights_get_their_gradient() -> None:
    for rank in run_ranks(2, step_on_the_wire, "paper"):
        forward = 2 * ["product"] + ["sent", "came"] + 3 * ["product"]
        conv3 = ["gradients x", "sent", "gradients wb", "came"]
        others = (
            2 * ["gradients xwb"],
            ["gradients xwb", "gradients wb"],
        )  # nobody needs the image's
        backward = OF_FC + others[0] + conv3 + others[1]
        assert rank["order"] == [*forward, *OF_FC, "sent", "came", "backward", *backward]


def test_hidden_exchanges_send_the_same_behind_the_own_products() -> None:
    (plain, hidden) = (run_ranks(2, step_on_the_wire, "paper", hide)[0] for hide in (False, True))
    assert hidden["events"] == plain["events"]
    assert hidden["counted"] == plain["counted"]
    forward = 2 * ["product"] + ["sent", "product", "came", "product"] + 2 * ["product"]
    conv3 = ["gradients xw", "sent", "gradients xwb", "came"]
    backward = OF_FC + 2 * ["gradients xwb"] + conv3 + ["gradients xwb", "gradients wb"]
    assert hidden["order"] == [*forward, *OF_FC, "sent", "came", "backward", *backward]


@pytest.mark.parametrize("hide_exchanges", [False, True])
def test_nothing_returns_to_layers_that_are_not_trained(hide_exchanges: bool) -> None:
    frozen = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6")
    rank = run_ranks(2, step_on_the_wire, "paper", hide_exchanges, frozen)[0]
    returned = [layer for layer, direction in rank["counted"] if direction == "backward"]
    assert returned == ["fc8"]
    assert "gradients" not in " ".join(rank["order"])


def test_counted_bytes_are_those_on_the_wire() -> None:
    for rank in run_ranks(2, step_on_the_wire, "code145"):
        on_the_wire = 4 * sum(floats for _, floats in rank["events"])
        assert sum(rank["counted"].values()) == on_the_wire
        assert rank["counted"]["conv3", "forward"] == 4 * IMAGES * PER_TOWER["conv3"]
        assert rank["counted"]["conv3", "backward"] == 4 * IMAGES * PER_TOWER["conv3"]
