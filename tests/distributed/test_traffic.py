"""Traffic between the towers, measured from the collectives that torch dispatches."""

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


class OpRecorder(TorchDispatchMode):
    """Records every c10d operation, with the floats that one rank sends or receives.

    ``order``: sequence of convolutions, their gradients (of x, weight, bias) and collectives.
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
            self.order.append("collective")
        if name == "convolution":
            self.order.append("convolution")
        if name == "convolution_backward":
            outputs = (name for name, wanted in zip("xwb", args[-1], strict=True) if wanted)
            self.order.append("gradients " + "".join(outputs))
        return op(*args, **(kwargs or {}))


def record_step(recipe: str, frozen: tuple[str, ...] = ()) -> dict[str, Any]:
    """One full-size training step: layers and collectives in the order in which they ran."""
    mesh = init_mesh(2, device="cpu")
    model = AlexNet(recipe, mesh=mesh)
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    images = torch.randn(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with OpRecorder() as recorder:
        for name, layer in model.layers().items():
            layer.register_forward_pre_hook(lambda *_, name=name: recorder.events.append((name, 0)))
        loss = F.cross_entropy(model(50 * images), torch.tensor([1, 2]))
        recorder.events.append(("backward", 0))
        recorder.order.append("backward")
        loss.backward()
    traffic = dict(model.comm.traffic.sent_bytes)
    return {"events": recorder.events, "order": recorder.order, "counted": traffic}


def test_only_the_layers_of_the_paper_communicate_and_send_its_number_of_floats() -> None:
    for rank in run_ranks(2, record_step, "paper"):
        sent = {name: IMAGES * floats for name, floats in PER_TOWER.items()}
        names = [name for name, _ in rank["events"]]
        gathers = {name for name, floats in rank["events"][: names.index("backward")] if floats}
        assert len(gathers) == 1, gathers
        gather = gathers.pop()
        assert rank["events"][: names.index("backward")] == [
            ("conv1", 0),
            ("conv2", 0),
            ("conv3", 0),
            (gather, sent["conv3"]),
            ("conv4", 0),
            ("conv5", 0),
            ("fc6", 0),
            (gather, sent["fc6"]),
            ("fc7", 0),
            (gather, sent["fc7"]),
            ("fc8", 0),
            (gather, sent["fc8"]),
            (gather, sent["logits"]),
        ]
        # Backward reduce-scatters each gradient, except that of the logits, which is sliced.
        returned = [floats for _, floats in rank["events"][names.index("backward") + 1 :]]
        assert returned == [sent[layer] for layer in ("fc8", "fc7", "fc6", "conv3")]


def test_collectives_run_in_the_order_of_the_layers() -> None:
    for rank in run_ranks(2, record_step, "paper"):
        fc = 3 * ["collective"]
        convs = 3 * ["convolution"]
        forward = [*2 * ["convolution"], "collective", *convs, *fc, "collective"]
        first = "gradients wb"  # the gradient of the images is not needed
        backward = [*fc, *3 * ["gradients xwb"], "collective", "gradients xwb", first]
        assert rank["order"] == [*forward, "backward", *backward]


def test_frozen_layers_receive_no_gradients() -> None:
    frozen = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6")
    rank = run_ranks(2, record_step, "paper", frozen)[0]
    returned = [layer for layer, direction in rank["counted"] if direction == "backward"]
    assert returned == ["fc8"]
    assert "gradients" not in " ".join(rank["order"])


def test_counted_bytes_equal_those_of_the_collectives() -> None:
    for rank in run_ranks(2, record_step, "code145"):
        sent_bytes = 4 * sum(floats for _, floats in rank["events"])
        assert sum(rank["counted"].values()) == sent_bytes
        assert rank["counted"]["conv3", "forward"] == 4 * IMAGES * PER_TOWER["conv3"]
        assert rank["counted"]["conv3", "backward"] == 4 * IMAGES * PER_TOWER["conv3"]
