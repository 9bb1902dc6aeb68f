"""What crosses between the towers, read from the collectives that torch really dispatches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from ranks import run_ranks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet2012 import AlexNet, init_mesh

IMAGES = 2
# Floats that one tower sends per image: paper fig. 2's maps and units, half of each.
PER_TOWER = {"conv3": 21_632, "fc6": 4_608, "fc7": 2_048, "fc8": 2_048, "logits": 500}


class Wire(TorchDispatchMode):
    """Notes every c10d operation, with the floats that one rank contributes or receives.

    ``order``: of convolutions, of their gradients (of x, weight, bias), and of exchanges.
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
            self.order.append("exchange")
        if name == "convolution":
            self.order.append("product")
        if name == "convolution_backward":
            asked = (what for what, wanted in zip("xwb", args[-1], strict=True) if wanted)
            self.order.append("gradients " + "".join(asked))
        return op(*args, **(kwargs or {}))


def step_on_the_wire(recipe: str, frozen: tuple[str, ...] = ()) -> dict[str, Any]:
    """One full-size training step; layers and collectives in the order in which they ran."""
    mesh = init_mesh(2, device="cpu")
    model = AlexNet(recipe, mesh=mesh)
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    images = torch.randn(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with Wire() as wire:
        for name, layer in model.layers().items():
            layer.register_forward_pre_hook(lambda *_, name=name: wire.events.append((name, 0)))
        loss = F.cross_entropy(model(50 * images), torch.tensor([1, 2]))
        wire.events.append(("backward", 0))
        wire.order.append("backward")
        loss.backward()
    traffic = dict(model.comm.traffic.sent_bytes)
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


def test_gradients_return_to_their_tower_layer_by_layer() -> None:
    for rank in run_ranks(2, step_on_the_wire, "paper"):
        of_fc = 3 * ["exchange"]
        forward = [*2 * ["product"], "exchange", *3 * ["product"], *of_fc, "exchange"]
        first = "gradients wb"  # nobody needs the images' gradient
        backward = [*of_fc, *3 * ["gradients xwb"], "exchange", "gradients xwb", first]
        assert rank["order"] == [*forward, "backward", *backward]


def test_nothing_returns_to_layers_that_are_not_trained() -> None:
    frozen = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6")
    rank = run_ranks(2, step_on_the_wire, "paper", frozen)[0]
    returned = [layer for layer, direction in rank["counted"] if direction == "backward"]
    assert returned == ["fc8"]
    assert "gradients" not in " ".join(rank["order"])


def test_counted_bytes_are_those_on_the_wire() -> None:
    for rank in run_ranks(2, step_on_the_wire, "code145"):
        on_the_wire = 4 * sum(floats for _, floats in rank["events"])
        assert sum(rank["counted"].values()) == on_the_wire
        assert rank["counted"]["conv3", "forward"] == 4 * IMAGES * PER_TOWER["conv3"]
        assert rank["counted"]["conv3", "backward"] == 4 * IMAGES * PER_TOWER["conv3"]
