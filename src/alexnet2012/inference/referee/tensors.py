"""Read state dicts: what shapes and names tell, of any library's AlexNet.

A state dict holds tensors only. Strides, borders, normalisation without parameters, pools,
activations and dropout are in the program that made it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from alexnet2012.inference.importers.state_dicts import find_network
from alexnet2012.inference.referee.network import (
    CHANNELS,
    Layer,
    Network,
    checked,
    initial_values,
)
from alexnet2012.utils.text import printable

_DENSE = re.compile(r"(^|[._])(fc|head|classifier|linear|dense|pre_logits)\d*([._]|$)")


def read_tensors(path: Path, entry: str | None) -> Network:
    """The network of a file of ``torch.save`` or safetensors.

    Raises:
        ValueError: it has no tensors of a chain of layers.
    """
    tensors = find_network(path, entry).tensors
    names = [n.removesuffix(".weight") for n in tensors if n.endswith(".weight")]
    names = [name for name in names if tensors[f"{name}.weight"].ndim in (2, 4)]
    problem = None
    for order in (names, sorted(names, key=_natural)):  # safetensors sorts by name
        try:
            layers = list(_layers(order, tensors))
        except ValueError as error:
            problem = problem or error
            continue
        return _network(order, layers, tensors)
    assert problem is not None
    raise problem


def _natural(name: str) -> tuple[bool, bool, list[tuple[int, str]]]:
    """The order of a network: the head last, and numbers by value."""
    parts = [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
    return bool(_DENSE.search(name)), "head" in name, parts


def _layers(names: Sequence[str], tensors: Mapping[str, Tensor]) -> Iterator[Layer]:
    """Layers that each read what the one before returns; ValueError names the first that cannot."""
    read, dense = CHANNELS, False
    for name in names:
        shape = tuple(tensors[f"{name}.weight"].shape)
        rows, inputs = shape[:2]
        if 0 in shape:
            raise ValueError(f"{printable(name)}.weight is empty: {list(shape)}")
        pixels, sides = int(np.prod(shape[2:])), (shape[-2], shape[-1])
        linear = len(shape) == 2 or bool(_DENSE.search(name)) or dense
        shown, bias = printable(name)[:40], f"{name}.bias" in tensors
        if linear:
            groups = _linear_groups(inputs * pixels, read) if not dense else _ratio(read, inputs)
            layer = Layer(shown, rows, inputs * pixels, groups or 0, bias=bias)
        elif read == CHANNELS and inputs != CHANNELS:  # grey images, for example
            groups = 1
            layer = Layer(shown, rows, inputs, 1, kernel_size=sides, bias=bias)
        else:
            groups = _ratio(read, inputs)
            layer = Layer(shown, rows, inputs, groups or 0, kernel_size=sides, bias=bias)
        if not groups:
            raise ValueError(
                f"{printable(name)}.weight {list(shape)} cannot read the {read} outputs of the "
                "layer before; weights are [outputs, inputs, height, width], and only a chain of "
                "layers can be compared"
            )
        yield layer
        read, dense = rows, linear


def _ratio(read: int, inputs: int) -> int | None:
    """The groups of a layer of which each kernel reads ``inputs`` of ``read``."""
    return read // inputs if read % inputs == 0 else None


def _linear_groups(inputs: int, maps: int) -> int | None:
    """Groups of the first fully connected layer: the fewest with which it reads square maps."""
    for groups in (1, 2, 4, 8):
        pixels, rest = divmod(inputs * groups, maps)
        if rest == 0 and round(pixels**0.5) ** 2 == pixels:
            return groups
    return 1 if inputs % maps == 0 else None


def _network(
    names: Sequence[str], layers: Sequence[Layer], tensors: Mapping[str, Tensor]
) -> Network:
    pairs = [(_weight(tensors, name), _bias(tensors, name)) for name in names]
    layers, trained = initial_values(layers, pairs)
    convolutions = [layer for layer in layers if layer.kernel_size is not None]
    network = Network(
        "a state dict",
        convolutions,
        layers[len(convolutions) :],
        others=_others(tensors),
        trained=trained,
        measured=True,
        tensors_only=True,
    )
    return checked(network)


def _others(tensors: Mapping[str, Tensor]) -> list[str]:
    """Other layers with parameters: normalisations, and what has no biases, such as PReLU."""
    if count := sum(name.endswith(".running_mean") for name in tensors):
        return [f"batch normalisation (of {count})"]
    plain = [n.removesuffix(".weight") for n in tensors if n.endswith(".weight")]
    plain = [name for name in plain if tensors[f"{name}.weight"].ndim == 1]
    norms = [name for name in plain if f"{name}.bias" in tensors]
    found = [f"normalisation with parameters (of {len(norms)})"] if norms else []
    rest = [f"{printable(name)[:40]}.weight" for name in plain if name not in norms]
    return [*found, *(f"parameters of no layer: {name}" for name in rest[:3])]


def _weight(
    tensors: Mapping[str, Tensor], name: str
) -> Callable[[], npt.NDArray[np.floating] | None]:
    return lambda: tensors[f"{name}.weight"].float().numpy()


def _bias(tensors: Mapping[str, Tensor], name: str) -> npt.NDArray[np.floating] | None:
    bias = tensors.get(f"{name}.bias")
    return None if bias is None else bias.float().numpy().ravel()
