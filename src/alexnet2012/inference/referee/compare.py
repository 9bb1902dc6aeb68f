"""How a network differs from the paper's and from that of the 2012 code, item by item.

An item is one property of one layer, or of the whole network. Both sides are described by the same
function, so that a network without differences has none in any format.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

from alexnet2012.config.schema import ModelConfig, RecipeConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.inference.referee.network import (
    ACTIVATION,
    DROPOUT,
    LRN,
    POOL,
    SPATIAL_NORM,
    Layer,
    Network,
    Op,
    border_of,
    maps_side,
    network_of_recipe,
)
from alexnet2012.inference.referee.texts import NO_LAYER, text_of

CLASSES = 1000  # of ILSVRC
REFERENCES = ("paper", "code145")  # recipes
SAME_SPREAD = 0.1  # relative; the spread of a layer's weights is a sample
WIDTH_SHARE = 2 / 3  # of the layers that must be narrower by the same factor
_OPS = (ACTIVATION, LRN, SPATIAL_NORM, POOL)
NETWORK = ""  # in place of a layer's name
INITIAL = ("initial weights", "initial biases")
_OF_OPS = tuple(f"{kind} " for kind in _OPS)  # how the properties of operations begin
_AFTER = "operations after each layer (activation, LRN, pools, order)"

Key = tuple[str, str]  # layer and property
Items = dict[Key, Hashable]  # None: not in the file


@dataclass(frozen=True)
class Difference:
    """One property in which a network differs from a reference.

    ``file``, ``paper`` and ``code145`` are texts; ``value`` is the network's, with counts as they
    would be at full width.
    """

    layer: str
    item: str
    file: str
    paper: str
    code145: str
    differs_from: tuple[str, ...]
    value: Hashable


@dataclass(frozen=True)
class ParameterCount:
    layer: str
    file: int | None  # None: the file has no such layer, or does not say
    paper: int | None  # and #145


@dataclass(frozen=True)
class Comparison:
    """``unknown``: properties that are not in the file."""

    differences: Sequence[Difference]
    unknown: Sequence[str]
    parameters: Sequence[ParameterCount]


def references(network: Network) -> dict[str, Network]:
    """The paper's network and #145, for inputs of the size that the network has."""
    return {name: reference(load_recipe(name), network) for name in REFERENCES}


def reference(recipe: RecipeConfig, network: Network, model: ModelConfig | None = None) -> Network:
    """A recipe's network of ILSVRC's classes, with the border that the other's input size needs.

    The first layer's last window overhangs by fewer or more pixels at another size.
    """
    own = network_of_recipe(recipe, CLASSES, model)
    border = border_of(recipe.conv1, network.input_size or recipe.input_size)
    first, *others = own.convolutions
    return replace(own, convolutions=[replace(first, border=border), *others])


def compare(network: Network) -> Comparison:
    """All differences of a network from both references."""
    others = references(network)
    found = {name: differing(network, other) for name, other in others.items()}
    layers = _aligned(network, others["paper"])
    ours, width = _items(network, layers), _width(network, others["paper"])
    spreads = _spreads(network, layers, others["paper"], width)
    sides = [_items(other, other.layers) for other in others.values()]
    values = {key: value for pairs in found.values() for key, value in pairs.items()}
    order = {key: place for place, key in enumerate([*ours, *values])}
    differences = []
    for key in sorted(values, key=lambda key: (key[0], order[key])):
        paper, code145 = (_reference_text(key, side, width, spreads.get(key)) for side in sides)
        names = tuple(name for name, pairs in found.items() if key in pairs)
        file = text_of(key[1], ours.get(key, values[key]))
        differences.append(Difference(*key, file, paper, code145, names, values[key]))
    return Comparison(differences, list(_unknown(ours, network)), _counts(layers, others["paper"]))


def differing(network: Network, other: Network) -> dict[Key, Hashable]:
    """The properties in which a network differs from another, with its values.

    What the network's file does not hold differs from nothing.
    """
    layers, width = _aligned(network, other), _width(network, other)
    ours, theirs = _items(network, layers), _items(other, other.layers)
    spreads = _spreads(network, layers, other, width)
    found: dict[Key, Hashable] = {}
    if width != 1:
        found[NETWORK, "width"] = width
    have, wanted = {layer.name for layer in layers}, {layer.name for layer in other.layers}
    for name in sorted(have ^ wanted):
        found[name, "layer"] = NO_LAYER if name in wanted else "present"
    for key, value in ours.items():
        if value is None or key[0] in have ^ wanted or _is_derived(key, network):
            continue
        if key not in theirs and key[1].startswith(_OF_OPS):  # the operation is the difference
            continue
        expected = theirs.get(key, 0)
        if isinstance(expected, float) and key in spreads:
            expected *= spreads[key]
        if expected is None or _same(key, value, expected, width, network.measured):
            continue
        if key[1] in ("kernels", "units") and isinstance(value, int):
            value = round(value / width)
        found[key] = value
    return found


def _items(network: Network, layers: Iterable[Layer]) -> Items:
    """Every property of a network, its layers under the given names."""
    layers = list(layers)
    items: Items = {(NETWORK, "input size"): network.input_size}
    pixels = network.pixels
    items[NETWORK, "pixels"] = None if pixels is None or pixels.scale is None else pixels.scale
    items[NETWORK, "mean"] = None if pixels is None else pixels.mean
    for name in network.others:
        items[NETWORK, name] = True
    kinds = {op.values.get("kind") for _, op in _ops(layers) if op.kind == ACTIVATION}
    known = all(layer.ops is not None for layer in layers)
    items[NETWORK, ACTIVATION] = tuple(sorted(map(str, kinds))) if known else None
    items[NETWORK, DROPOUT] = tuple(_dropout(layers)) if _tells_dropout(network) else None
    towers = any(layer.groups > 1 for layer in layers)
    for index, layer in enumerate(layers):
        for item, value in _layer_items(layer, first=index == 0, last=layer is layers[-1]):
            if towers or item != f"{LRN} windows":  # which no tower could end
                items[layer.name, item] = value
    convolutions = [layer for layer in layers if layer.kernel_size]
    if convolutions and len(convolutions) < len(layers):
        items[layers[len(convolutions)].name, "maps read"] = _maps(
            convolutions[-1], layers[len(convolutions)]
        )
    for key, value in (network.training or {}).items():
        items[NETWORK, key] = value
    return items


def _layer_items(layer: Layer, first: bool, last: bool) -> Iterator[tuple[str, Hashable]]:
    if layer.kernel_size is not None:
        if first:
            yield "channels", layer.inputs
        yield "kernels", layer.kernels
        yield "kernel size", layer.kernel_size
        yield "stride", layer.stride
        yield "border", layer.border
        yield "dilation", layer.dilation
    else:
        yield "classes" if last else "units", layer.kernels
    yield "reads", layer.groups
    yield "biases", layer.bias
    yield INITIAL[0], layer.init_std
    yield INITIAL[1], layer.init_bias
    if layer.ops is None:
        yield "order", None
        return
    ops = [op for op in layer.ops if op.kind != DROPOUT]
    kinds = [op.kind for op in ops]
    for kind in dict.fromkeys((*_OPS, *kinds)):
        yield kind, kinds.count(kind) if kind in _OPS else True
    for op in reversed(ops):  # the first of a kind counts
        for name, value in op.values.items():
            if op.kind != ACTIVATION:
                yield f"{op.kind} {name}", value
    yield "order", tuple(kinds)


def _ops(layers: Iterable[Layer]) -> Iterator[tuple[str, Op]]:
    for layer in layers:
        for op in layer.ops or ():
            yield layer.name, op


def _dropout(layers: Iterable[Layer]) -> Iterator[tuple[str, Hashable]]:
    for name, op in _ops(layers):
        if op.kind == DROPOUT:
            yield name, op.values["rate"]


def _tells_dropout(network: Network) -> bool:
    return network.holds_dropout and all(layer.ops is not None for layer in network.layers)


def _is_derived(key: Key, network: Network) -> bool:
    """Whether the property follows from others that the file holds."""
    return key[1] == "maps read" and network.convolutions[-1].stride is not None


def _maps(conv: Layer, linear: Layer) -> Hashable:
    """Pixels a side of the maps that the first fully connected layer reads."""
    if linear.inputs is None:
        return None
    pixels = linear.inputs * linear.groups / conv.kernels
    side = math.isqrt(int(pixels))
    return side if side**2 == pixels else f"{pixels:g} values"


def _same(key: Key, value: Any, expected: Any, width: float, measured: bool) -> bool:
    item, same = key[1], bool(value == expected)
    if item == "order":
        return _order(value, expected) == _order(expected, value)
    if item in ("kernels", "units") and width != 1:
        same = bool(abs(value - width * expected) <= 1)
    if isinstance(value, float) and isinstance(expected, float | int):
        tolerance = SAME_SPREAD if measured and item in INITIAL else 1e-4
        return math.isclose(value, expected, rel_tol=tolerance, abs_tol=1e-9)
    return same


def _order(kinds: Sequence[str], others: Sequence[str]) -> list[str]:
    """The operations that both have; an activation and a max pool beside each other commute."""
    common = [kind for kind in kinds if kind in others]
    for i in range(len(common) - 1):
        if common[i : i + 2] == [POOL, ACTIVATION]:
            common[i : i + 2] = [ACTIVATION, POOL]
    return common


def _width(network: Network, other: Network) -> float:
    """The factor by which most layers are narrower or wider than those of another network."""
    counts = {layer.name: layer.kernels for layer in other.layers[:-1]}
    pairs = [
        (layer.kernels, counts[layer.name])
        for layer in _aligned(network, other)[:-1]
        if layer.name in counts
    ]
    for ratio in (1.0, *(ours / theirs for ours, theirs in reversed(pairs))):
        if sum(abs(n - ratio * m) <= (ratio != 1) for n, m in pairs) > WIDTH_SHARE * len(pairs):
            return ratio
    return 1.0


def _spreads(
    network: Network, layers: Sequence[Layer], other: Network, width: float
) -> dict[Key, float]:
    """The factor of each layer's initial spread at another width or input size, where measured.

    A layer that sums fewer terms needs a larger one; recipes state that of the full size.
    """
    if not network.measured or (width == 1 and network.input_size in (None, other.input_size)):
        return {}
    factors = {(layer.name, INITIAL[0]): width**-0.5 for layer in layers[1:]}
    first = layers[len(network.convolutions)].name
    sides = [maps_side(network.convolutions, s) for s in (other.input_size, network.input_size)]
    if sides[0] and sides[1]:
        factors[first, INITIAL[0]] *= sides[0] / sides[1]
    return factors


def _aligned(network: Network, other: Network) -> list[Layer]:
    """The layers under the names of those of another network that they correspond to.

    If one network has more layers, those are left out that make the others most alike.
    """
    if network.named:
        return list(network.layers)
    result = []
    hidden, their_hidden = network.linears[:-1], other.linears[:-1]
    scale = hidden[0].kernels / their_hidden[0].kernels if hidden else 1.0
    for ours, theirs in ((network.convolutions, other.convolutions), (hidden, their_hidden)):
        for layer, name in zip(ours, _names(ours, theirs, scale), strict=True):
            result.append(replace(layer, name=name or f"{layer.name} (extra)"))
    return [*result, replace(network.linears[-1], name=other.linears[-1].name)]


def _names(ours: Sequence[Layer], theirs: Sequence[Layer], scale: float) -> list[str | None]:
    """The name of each layer's counterpart, if it has one."""
    count = min(len(ours), len(theirs))
    choices = product(
        combinations(range(len(ours)), count), combinations(range(len(theirs)), count)
    )

    def distance(choice: tuple[Sequence[int], Sequence[int]]) -> tuple[int, int]:
        pairs = [(ours[i], theirs[j]) for i, j in zip(*choice, strict=True)]
        unlike = sum(
            (abs(a.kernels - scale * b.kernels) > 1 and a.kernels != b.kernels)
            + (a.kernel_size != b.kernel_size)
            + (a.groups != b.groups)
            for a, b in pairs
        )
        return unlike, sum(b.name not in a.name for a, b in pairs)

    mine, yours = min(choices, key=distance)
    names: list[str | None] = [None] * len(ours)
    for i, j in zip(mine, yours, strict=True):
        names[i] = theirs[j].name
    return names


def _unknown(items: Items, network: Network) -> Iterator[str]:
    """What the file does not hold, each property once."""
    names = dict.fromkeys(item for (_, item), value in items.items() if value is None)
    for name in names:
        if name == "order":
            yield _AFTER
        elif name in INITIAL and network.trained:
            continue  # said by the caller
        elif name != "maps read" and not (name == ACTIVATION and "order" in names):
            yield name
    if network.training is None:
        yield "training (optimizer, augmentation)"
    elif "shuffle" not in network.training:
        yield "order of the images, augmentation"


def _counts(layers: Sequence[Layer], paper: Network) -> list[ParameterCount]:
    """By layer, of all layers that either network has."""
    file = {layer.name: layer.parameters for layer in layers}
    theirs = {layer.name: layer.parameters for layer in paper.layers}
    return [ParameterCount(n, file.get(n), theirs.get(n)) for n in sorted(file | theirs)]


def _reference_text(key: Key, items: Items, width: float, spread: float | None) -> str:
    """A reference's property, as it would be at the width and input size of the network."""
    value = items.get(key)
    if key == (NETWORK, "width"):
        return "1"
    if key[1] == "layer":
        return "present" if any(layer == key[0] for layer, _ in items) else NO_LAYER
    if key not in items:
        return "none"
    if key[1] in ("kernels", "units") and isinstance(value, int) and width != 1:
        return f"{text_of(key[1], round(width * value))} at this width"
    if isinstance(value, float) and spread is not None:
        return f"{text_of(key[1], value * spread)} at this width"
    return text_of(key[1], value)
