"""Find a network's tensors in files of ``torch.save`` and safetensors, however they are wrapped.

Nothing in a file is run: torch reads it with ``weights_only=True``, and every class or function
that the file refers to is replaced by an inert stand-in. The settings, optimizers and whole modules
that people save beside the weights can then be read past.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from alexnet2012.inference.importers.file_kinds import FileKind, file_kind
from alexnet2012.utils.logs import log
from alexnet2012.utils.text import printable

# Parts of names that wrappers of modules, and modules themselves, put between others.
_WRAPPERS = {
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    *("_modules", "_parameters", "_buffers"),
}
_COUNTERS = {"n_averaged"}  # tensors of torch's AveragedModel that are no parameters
_AVERAGED = {"ema", "swa", "averaged"}
_UNKNOWN_GLOBAL = re.compile(r"GLOBAL (\S+) was not an allowed")
_WRONG_SHAPE = re.compile(r"Can only (\w+) .*but got <class '(.+)'>")
_DAMAGED = "is damaged or incomplete; copy or download it again"
_RUNS_CODE = (
    "contains Python objects that cannot be read without running code; in the program that made "
    "it, save model.state_dict() with torch.save"
)
_NEWER_PROTOCOL = "Unsupported operand 149"  # FRAME of protocol 4; torch reads up to 3
_SAVE_AS_2 = (
    "was saved with pickle_protocol=4 or 5, which cannot be read without running code; in the "
    "program that made it, save model.state_dict() with torch.save and its default protocol"
)
_BATCH_COUNTER = "num_batches_tracked"  # of batch normalisation
_MIN_LAYERS = 4  # of a dict that is a network
_MAX_STAND_INS = 1000
_MAX_DEPTH = 100


class _StandIn:
    """Replaces a class or function of a file; accepts any arguments and state, and runs nothing."""

    state: Any = None

    def __new__(cls, *args: Any) -> Any:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state[0] if isinstance(state, tuple) and state else state


class _DictStandIn:
    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class _ListStandIn:
    def __new__(cls, *args: Any) -> Any:
        return []


@dataclass
class StateDict:
    """Tensors of one network in a file.

    ``entry``: where they are, as ``model_ema``; empty for the top level. ``unexpected``: other
    tensors beside them.
    """

    entry: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Leaf:
    """A tensor in a file: its dotted name without wrappers, and the dict that holds it."""

    name: str
    holder: int
    tensor: Tensor


def find_state_dict(path: Path, names: Set[str], entry: str | None = None) -> StateDict:
    """Read the tensors called ``names`` from a file, below any keys and with any prefixes.

    If the file holds several networks, averaged weights (EMA) are preferred; ``entry`` selects
    another. A network that has only some of the tensors is returned if no other has all.

    Raises:
        ValueError: the file has no such tensors, or several networks; the message says which.
    """
    leaves = list(_leaves(_load(path)))
    states = _group(leaves, names)
    if not states:
        raise ValueError(_explain_missing(leaves))
    complete = [state for state in states if set(state.tensors) == names]
    return _checked(path, _select(complete or states, entry), entry, complete)


def find_network(path: Path, entry: str | None = None) -> StateDict:
    """Read all tensors of a network from a file, whatever their names; see find_state_dict.

    A network is a dict with the weights of several layers, or everything in a file that has no
    such dict, as a whole module. Names are without the part that all share.

    Raises:
        ValueError: as :func:`find_state_dict`.
    """
    leaves = list(_leaves(_load(path)))
    if not leaves:
        raise ValueError("contains no tensors; save model.state_dict() with torch.save")
    holders: dict[int, list[_Leaf]] = {}
    for leaf in leaves:
        holders.setdefault(leaf.holder, []).append(leaf)
    networks = [group for group in holders.values() if _layer_count(group) >= _MIN_LAYERS]
    states = [_stripped(group) for group in networks or [leaves]]
    return _checked(path, _select(states, entry), entry, states)


def _layer_count(leaves: Sequence[_Leaf]) -> int:
    return sum(leaf.name.endswith("weight") and leaf.tensor.ndim in (2, 4) for leaf in leaves)


def _stripped(leaves: Sequence[_Leaf]) -> StateDict:
    """Tensors without the parts of names that all share, which are the entry."""
    names = [leaf.name.split(".") for leaf in leaves]
    shared = 0
    for parts in zip(*(name[:-2] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    tensors = {".".join(n[shared:]): leaf.tensor for n, leaf in zip(names, leaves, strict=True)}
    return StateDict(".".join(names[0][:shared]), tensors)


def _checked(
    path: Path, state: StateDict, entry: str | None, complete: Sequence[StateDict]
) -> StateDict:
    """The state of a network, if its tensors hold numbers; logs the networks that are not used."""
    for name, tensor in state.tensors.items():
        if name in _COUNTERS or name.endswith(_BATCH_COUNTER):
            continue
        if tensor.is_meta or tensor.layout != torch.strided or not tensor.is_floating_point():
            kind = "meta" if tensor.is_meta else f"{tensor.layout}, {tensor.dtype}"
            raise ValueError(f"{printable(name)} is not a dense floating-point tensor ({kind})")
    if sum(tensor.nbytes for tensor in state.tensors.values()) > path.stat().st_size:
        raise ValueError(_DAMAGED)  # shapes that claim more numbers than the file holds
    if entry is None and len(complete) > 1:
        others = ", ".join(_entry_name(other) for other in complete if other is not state)
        log.warning("%s: uses the weights at %s, not at %s", path, _entry_name(state), others)
    return state


def _load(path: Path) -> Any:
    """The contents of a file, as dicts, lists, tensors and stand-ins."""
    kind = file_kind(path)
    if kind is FileKind.other:
        raise ValueError("is not a file of torch.save, of safetensors or of Caffe")
    stand_ins: dict[str, type] = {}
    while len(stand_ins) < _MAX_STAND_INS:
        try:
            if kind is FileKind.safetensors:
                return load_file(path)
            pairs: list[Any] = [(cls, name) for name, cls in stand_ins.items()]
            # Given a path, torch would decide by its suffix what the file is.
            allowed = torch.serialization.safe_globals(pairs)
            with path.open("rb") as file, allowed, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle protocols
                return torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            if not (isinstance(error, UnpicklingError) and _add_stand_in(stand_ins, str(error))):
                raise ValueError(_unreadable(error)) from error
    raise ValueError(f"refers to more than {_MAX_STAND_INS} classes; save its state_dict alone")


def _add_stand_in(stand_ins: dict[str, type], message: str) -> bool:
    """Register a stand-in for the class that torch's message names; False if there is none."""
    base: type = _StandIn
    if match := _UNKNOWN_GLOBAL.search(message):
        name = match[1]
    elif match := _WRONG_SHAPE.search(message):
        name = match[2]
        base = _DictStandIn if match[1].startswith("SETITEM") else _ListStandIn
    else:
        return False
    if "." not in name:
        name = f"builtins.{name}"
    if name in stand_ins and not (base is not _StandIn and issubclass(stand_ins[name], _StandIn)):
        return False
    module, _, qualified = name.rpartition(".")
    stand_ins[name] = type(qualified, (base,), {"__module__": module, "__qualname__": qualified})
    return True


def _unreadable(error: Exception) -> str:
    """What is wrong with a file of the right format, never in torch's words."""
    if _NEWER_PROTOCOL in str(error):
        return _SAVE_AS_2
    return _RUNS_CODE if isinstance(error, UnpicklingError) else _DAMAGED


def _leaves(loaded: Any) -> Iterator[_Leaf]:
    """All tensors in nested dicts, lists, and the states of stand-ins."""
    stack: list[tuple[tuple[str, ...], int, Any]] = [((), 0, loaded)]
    seen: set[int] = set()
    while stack:
        name, holder, value = stack.pop()
        if isinstance(value, Tensor):
            yield _Leaf(".".join(name), holder, value)
            continue
        if isinstance(value, _StandIn):
            value = value.state
        if not isinstance(value, dict | list | tuple) or id(value) in seen:
            continue
        if len(name) > _MAX_DEPTH:
            raise ValueError("is nested too deeply; save its state_dict alone")
        seen.add(id(value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in reversed(list(items)):
            parts = [part for part in str(key).split(".") if part not in _WRAPPERS]
            stack.append(((*name, *parts), id(value), child))


def _group(leaves: Sequence[_Leaf], names: Set[str]) -> list[StateDict]:
    """The leaves that end in one of ``names``, by what precedes it; in the order of the file."""
    states: dict[str, StateDict] = {}
    holders: dict[str, set[int]] = {}
    rest: list[_Leaf] = []
    for leaf in leaves:
        name = next((n for n in names if leaf.name == n or leaf.name.endswith(f".{n}")), None)
        if name is None:
            rest.append(leaf)
            continue
        entry = leaf.name.removesuffix(name).rstrip(".")
        states.setdefault(entry, StateDict(entry)).tensors[name] = leaf.tensor
        holders.setdefault(entry, set()).add(leaf.holder)
    roots = {name.partition(".")[0] for name in names}
    for leaf in rest:
        for entry, state in states.items():
            if entry and not leaf.name.startswith(f"{entry}."):
                continue
            name = leaf.name[len(entry) :].removeprefix(".")
            beside = leaf.holder in holders[entry] or name.partition(".")[0] in roots
            if beside and name not in _COUNTERS:
                state.unexpected.append(name)
    return list(states.values())


def _select(states: Sequence[StateDict], entry: str | None) -> StateDict:
    entries = ", ".join(_entry_name(state) for state in states)
    if entry is not None:
        matching = [s for s in states if entry == s.entry or entry in s.entry.split(".")]
        if len(matching) != 1:
            raise ValueError(f"entry={printable(entry)} is not one of its entries: {entries}")
        return matching[0]
    averaged = [s for s in states if _AVERAGED & set(re.split("[^a-z]+", s.entry.lower()))]
    for chosen in (states, averaged):
        if len(chosen) == 1:
            return chosen[0]
    raise ValueError(f"contains several networks: {entries}; select one with entry=…")


def _explain_missing(leaves: Sequence[_Leaf]) -> str:
    names = [leaf.name for leaf in leaves]
    if {"conv1", "fc8"} <= {name.partition(".")[0] for name in names}:
        return (
            "has parameter names as in this package; load it with AlexNet.load_full_state_dict, or "
            "export the run with format=safetensors"
        )
    if not names:
        return "contains no tensors; save model.state_dict() with torch.save"
    examples = printable(", ".join(names[:2])[:100])
    return f"contains {len(names)} tensors ({examples}, …), but none of torchvision's alexnet"


def _entry_name(state: StateDict) -> str:
    return printable(state.entry) or "the top level"
