"""Learning rates of a definition of cuda-convnet, and their history in the notes of its runs.

The authors changed rates by hand while a run went on, so that the file has those of its end; the
notes have the changes. Of the runs in the notes, the first is used that ends at the file's rates.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from alexnet2012.config.enums import ScheduleKind
from alexnet2012.config.schema import DropConfig, ScheduleConfig
from alexnet2012.inference.importers.cuda_convnet_files import Section

MAX_EPOCHS = 1000
_ANNEALINGS = "a recipe has linear, exp and dexp, with a factor above 0 and at least 2 steps"


class Annealing(NamedTuple):
    """How a rate falls over the training, as the code's ``schedW`` says: to 1/``factor`` of it."""

    kind: str = "default"
    factor: float = 1.0
    noise: float = 0.0
    steps: int = 2

    @classmethod
    def of(cls, section: Section, key: str) -> Annealing:
        text = section.text(key, section.text("sched", "default"))
        match = re.fullmatch(r"(\w+)(?:\[([^\]]*)\])?", text)
        if match and match[1] in ("default", "const"):
            return cls()
        try:
            assert match is not None and match[1] in ("linear", "exp", "dexp")
            factor, *others = (float(x.rpartition("=")[2]) for x in (match[2] or "").split(","))
            steps = int(others.pop()) if match[1] == "dexp" else 2
            annealing = cls(match[1], factor, others.pop() if others else 0.0, steps)
            assert not others and steps >= 2 and 0 < factor < math.inf
        except (AssertionError, ValueError, IndexError, OverflowError):
            raise section.error(key if key in section else "sched", _ANNEALINGS) from None
        return annealing

    def at(self, progress: float) -> float:
        """The factor of the rate at a progress from 0 to 1."""
        if self.kind == "linear":
            return 1 - progress + progress / self.factor
        if self.kind == "dexp":  # stages of equal length, the last at 1/factor
            stage = max(0, math.ceil(progress * self.steps) - 1)
            progress = stage / (self.steps - 1)
        return float(self.factor**-progress) if self.kind != "default" else 1.0


class LayerRates(NamedTuple):
    """A layer's rates in the file, their annealing, and what else its update depends on."""

    weight: float
    bias: float
    weight_annealing: Annealing
    bias_annealing: Annealing
    decay: float
    momenta: tuple[float, float]

    @classmethod
    def of(cls, section: Section) -> LayerRates:
        section.expect("wball", 0)
        return cls(
            section.magnitude("epsW"),
            section.magnitude("epsB"),
            Annealing.of(section, "schedW"),
            Annealing.of(section, "schedB"),
            section.magnitude("wc"),
            (section.magnitude("momW"), section.magnitude("momB")),
        )


class _Change(NamedTuple):
    """A note of a new rate; of all layers, or of those that have the old rate, without names."""

    epoch: int
    rate: float
    old: float | None
    layers: frozenset[str]

    def applies(self, layer: str, rate: float | None) -> bool:
        return layer in self.layers if self.layers else self.old in (None, rate) or rate is None


@dataclass
class History:
    """What the notes of one run say."""

    changes: list[_Change]
    lighting_off: int | None = None  # epoch
    epochs: int | None = None  # when it was stopped

    def initial(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Rates of the layers at the start, from those in the file."""
        first = {
            layer: next((change for change in self.changes if change.applies(layer, None)), None)
            for layer in rates
        }
        return {
            layer: rate if (change := first[layer]) is None or change.old is None else change.old
            for layer, rate in rates.items()
        }

    def at(self, epoch: float, initial: Mapping[str, float]) -> dict[str, float]:
        rates = dict(initial)
        for change in self.changes:
            if change.epoch <= epoch:
                for layer, rate in rates.items():
                    if change.applies(layer, rate):
                        rates[layer] = change.rate
        return rates

    def ends_at(self, rates: Mapping[str, float]) -> bool:
        return self.at(math.inf, self.initial(rates)) == rates


_NUMBER = r"(\d*\.?\d+(?:e-?\d+)?)"
_EPOCH = re.compile(rf"epoch\s+{_NUMBER}\s*:\s*(.*)")
_BATCHES = re.compile(r"\d+ batches\s*:\s*(.*)")
_RATE = re.compile(
    rf"set (?:(?P<before>\w+) )?eps\w* (?:(?P<after>(?:conv|fc)\w*) )?(?:to|ot) "
    rf"(?P<rate>{_NUMBER})(?: from (?P<old>{_NUMBER}))?"
    rf"(?: on (?P<on>[\w, -]+?))?(?:, (?P<others>{_NUMBER}) elsewhere)?"
)
_LIGHTING_OFF = re.compile(r"set color noise (?:to )?0( from .*)?")


def read_history(paragraph: str, names: Mapping[str, Iterable[str]]) -> History | None:
    """The history in the notes of one run; None if a change of rates in them is not understood.

    ``names``: the names in the files of each layer of the recipe, without the tower's letter.
    """
    history, epoch = History([]), None
    for line in paragraph.lower().splitlines():
        text = line.strip()
        if match := _EPOCH.match(text):
            number = float(match[1])
            if number > MAX_EPOCHS:
                return None
            epoch, text = round(number), match[2]
        elif match := _BATCHES.match(text):
            epoch, text = 0, match[1]
        if epoch is None:
            continue
        if text.startswith("killed"):
            history.epochs = max(1, epoch)
        for part in re.split(r",\s*(?=set )", text.strip()):
            if _LIGHTING_OFF.fullmatch(part):
                history.lighting_off = epoch
            elif part.startswith("set") and "eps" in part:
                match = _RATE.fullmatch(part)
                changes = None if match is None else _changes(epoch, match, names)
                if changes is None:
                    return None
                history.changes += changes
    return history


def _changes(
    epoch: int, match: re.Match[str], names: Mapping[str, Iterable[str]]
) -> list[_Change] | None:
    selected: set[str] = set()
    for word in re.split(r"[, ]+", match["on"] or match["before"] or match["after"] or ""):
        layers = {ours for ours, theirs in names.items() if word in (*theirs, ours)}
        if several := re.fullmatch(r"conv(\d)-(\d)", word):
            numbers = range(int(several[1]), int(several[2]) + 1)
            layers = {f"conv{number}" for number in numbers} & set(names)
        elif word in ("conv", "fc"):
            layers = {ours for ours in names if ours.startswith(word)}
        if word and not layers:
            return None
        selected |= layers
    old = None if match["old"] is None else float(match["old"])
    changes = [_Change(epoch, float(match["rate"]), old, frozenset(selected))]
    if match["others"] is not None:
        others = frozenset(set(names) - selected)
        changes.append(_Change(epoch, float(match["others"]), None, others))
    return changes


def schedule_of(
    rates: Mapping[str, LayerRates],
    names: Mapping[str, Iterable[str]],
    notes: str,
    epochs: int,
    remarks: list[str],
) -> ScheduleConfig:
    """The schedule of the rates in the file, and of the run whose notes fit them best.

    ``epochs``: of a run whose end is not noted. Adds to ``remarks`` what a user should know.
    """
    final = {layer: rate.weight for layer, rate in rates.items()}
    history = _history(notes, names, final)
    initial = history.initial(final)
    if not any(initial.values()):
        raise ValueError("epsW=0 in all layers: nothing would be trained")
    anneals = any(rate.weight_annealing.kind != "default" for rate in rates.values())
    if history.epochs is None or anneals:  # an annealing is planned for runs that were not stopped
        last = max((change.epoch for change in history.changes), default=0)
        history.epochs = max(epochs, last + 1, (history.lighting_off or 0) + 1)
        remarks.append(f"epochs={history.epochs}: the notes do not say how long a whole run was")
    if history.changes:
        remarks.append("rates change as the notes of the run say; biases have those of the file")
        if not history.ends_at(final):
            remarks.append("the notes do not end at the rates of the file: something is not noted")
    elif not anneals:
        remarks.append("rates are constant: the notes do not say when those of the file were set")
    if noisy := [
        layer for layer, r in rates.items() if r.weight_annealing.noise or r.bias_annealing.noise
    ]:
        remarks.append(f"without the random noise on the rates of {', '.join(noisy)} (schedW)")
    # The bias of a layer that was frozen in the end had the others' rate before.
    usual_bias = _most_common([rate.bias for rate in rates.values() if rate.bias] or [0.0])
    states = []
    for epoch in range(history.epochs):
        progress = (epoch + 0.5) / history.epochs
        now = history.at(epoch, initial)
        weights, biases = {}, {}
        for layer, rate in rates.items():
            was_frozen = rate.weight == rate.bias == 0 and now[layer] > 0
            bias = usual_bias if was_frozen else rate.bias
            weights[layer] = _rounded(now[layer] * rate.weight_annealing.at(progress))
            biases[layer] = _rounded(bias * rate.bias_annealing.at(progress))
        lit = history.lighting_off is None or epoch < history.lighting_off
        states.append((weights, biases, lit))
    return _schedule(states)


def _history(notes: str, names: Mapping[str, Iterable[str]], final: Mapping[str, float]) -> History:
    runs = (read_history(paragraph, names) for paragraph in notes.split("\n\n"))
    understood = [run for run in runs if run is not None]
    fitting = [run for run in understood if run.ends_at(final)]
    with_changes = [run for run in (*fitting, *understood) if run.changes]
    with_an_end = [run for run in understood if run.lighting_off is not None or run.epochs]
    return next(iter([*with_changes, *with_an_end]), History([]))


def _schedule(states: list[tuple[dict[str, float], dict[str, float], bool]]) -> ScheduleConfig:
    """The fewest changes, one per epoch at most, that give the weights' and biases' rates."""
    first_weights, first_biases, _ = states[0]
    rate = _most_common([weight for weight in first_weights.values() if weight > 0])
    bias_rate = _most_common(first_biases.values())
    schedule = ScheduleConfig(
        kind=ScheduleKind.fixed, epochs=len(states), rate=rate, bias_rate=bias_rate
    )
    own: dict[str, float] = {}  # rates of individual layers so far, and of their biases
    own_biases: dict[str, float] = {}
    was_lit = True
    for epoch, (weights, biases, lit) in enumerate(states):
        drop = DropConfig(epoch=epoch)
        free = [weights[layer] for layer in weights if layer not in own]
        if (common := _most_common(free or [rate])) != rate:
            rate = drop.rate = common
        free = [biases[layer] for layer in biases if layer not in {*own, *own_biases}]
        if (common := _most_common(free or [bias_rate])) != bias_rate:
            bias_rate = drop.bias_rate = common
        for layer, weight in weights.items():
            if own.get(layer, rate) != weight:
                own[layer] = drop.layer_rates[layer] = weight
            if own_biases.get(layer, own.get(layer, bias_rate)) != biases[layer]:
                own_biases[layer] = drop.layer_bias_rates[layer] = biases[layer]
        if lit != was_lit:
            was_lit = drop.lighting = lit
        if drop != DropConfig(epoch=epoch):
            schedule.drops.append(drop)
    return schedule


def _most_common(values: Iterable[float]) -> float:
    return Counter(values).most_common(1)[0][0]


def _rounded(rate: float) -> float:
    """Without the last bits that the powers of an annealing differ in."""
    return float(f"{rate:.10g}")
