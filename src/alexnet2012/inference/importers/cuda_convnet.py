"""Read a network of the 2012 code, cuda-convnet, as a recipe and a schedule of this package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from alexnet2012.config.enums import LayerOp
from alexnet2012.config.schema import (
    ConfigError,
    ModelConfig,
    NormConfig,
    PoolConfig,
    RecipeConfig,
    ScheduleConfig,
)
from alexnet2012.config.validation import check_recipe, check_values, load_recipe
from alexnet2012.inference.importers.cuda_convnet_files import (
    Section,
    SectionFile,
    read_sections,
    shown,
)
from alexnet2012.inference.importers.cuda_convnet_rates import LayerRates, schedule_of
from alexnet2012.nn.map_sizes import map_sizes

KINDS = ("data", "conv", "cmrnorm", "rnorm", "pool", "fc", "hs", "softmax", "cost.logreg")
WITH_WEIGHTS = ("conv", "fc")
MAX_CONVS, MAX_HIDDEN = 6, 2
CIFAR_CLASSES, CIFAR_EPOCHS, IMAGENET_EPOCHS = 10, 140, 90
# Keys that change neither the network nor its training: how the code computes, and which measures
# it prints. The code evaluates initWFunc and initBFunc to take weights from another network.
_WITHOUT_EFFECT = ("partialsum", "topk", "initwfunc", "initbfunc")
_POOLS = {"max": LayerOp.max_pool, "avg": LayerOp.average_pool}
Value = TypeVar("Value")


@dataclass(frozen=True)
class Definition:
    """A network as its files define it."""

    recipe: RecipeConfig
    schedule: ScheduleConfig
    classes: int
    notes: str  # of its runs, as in the files
    remarks: Sequence[str]  # what the recipe and schedule leave out, or have from elsewhere


@dataclass(eq=False)
class _Layer:
    """A layer with weights on one GPU, and the operations after it."""

    section: Section
    kind: str
    stage: int  # 1 for those that read the image
    gpu: int
    inputs: list[_Layer]  # none: the image
    after: list[tuple[LayerOp, Section]] | None = None  # None: not read yet
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Value:
    """What a section computes: a layer's result after some operations; the image without one."""

    layer: _Layer | None
    after: tuple[tuple[LayerOp, Section], ...] = ()
    gpu: int | None = None


def read_definition(layers: Path, params: Path, input_size: int | None = None) -> Definition:
    """Read a definition and the parameters of its training.

    The files do not say what cuda-convnet's data programs did: the size of the input, augmentation
    and the order of the images. With ten classes these are the ones of recipe ``cifar4``, otherwise
    those of ``code145``. ``input_size``: another size of the input, in pixels per side.

    Raises:
        ConfigError: a file cannot be read, or asks for what a recipe cannot express; the key is
            ``source`` or ``params``, and the message one line that names the layers or the value.
    """
    definition = _read("source", layers)
    if not any("type" in values for values in definition.sections.values()):
        remedy = "is no definition: none of its sections has a type; is it that of the parameters?"
        raise ConfigError("source", layers, remedy)
    unknown: dict[str, list[str]] = {}
    for name, values in definition.sections.items():
        kind = values.get("type", "(none)")
        if kind not in KINDS:
            unknown.setdefault(kind, []).append(name)
    if unknown:
        named = ", ".join(
            f"{shown(kind)} ({', '.join(map(shown, names[:4]))}{', …' if len(names) > 4 else ''})"
            for kind, names in list(unknown.items())[:8]
        )
        raise ConfigError("source", layers, f"has types of layers that a recipe lacks: {named}")
    parameters = _read("params", params)
    try:
        sections = {
            name: Section(name, {**values, **parameters.sections.get(name, {})})
            for name, values in definition.sections.items()
        }
        return _Reader(sections, layers.stem, input_size).definition(
            "\n\n".join(file.notes for file in (definition, parameters) if file.notes)
        )
    except ValueError as error:
        raise ConfigError("source", layers, str(error)) from error


def _read(key: str, path: Path) -> SectionFile:
    try:
        return read_sections(path)
    except OSError as error:
        raise ConfigError(key, path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(key, path, str(error)) from error


class _Reader:
    def __init__(self, sections: Mapping[str, Section], name: str, input_size: int | None) -> None:
        self.sections, self.name, self.remarks = sections, name, list[str]()
        self.layers: list[_Layer] = []
        values: dict[str, _Value] = {}
        for section in sections.values():
            self._read_section(section, values)
        stages = self._stages()
        convs = [stage for stage in stages if stage[0].kind == "conv"]
        *hidden, head = [stage for stage in stages if stage[0].kind == "fc"] or [[]]
        self._check_depth(convs, hidden, head)
        self.ours = {  # the layers of each of the recipe's
            **{f"conv{i}": stage for i, stage in enumerate(convs, start=1)},
            **dict(zip(("fc6", "fc7"), hidden, strict=False)),
            "fc8": head,
        }
        self.towers = len(convs[0])
        self.classes = head[0].settings["units"]
        is_cifar = self.classes == CIFAR_CLASSES
        self.epochs = CIFAR_EPOCHS if is_cifar else IMAGENET_EPOCHS
        self.base = load_recipe("cifar4" if is_cifar else "code145")
        self.input_size = input_size or self.base.input_size

    def definition(self, notes: str) -> Definition:
        names = {name: {_base(layer) for layer in stage} for name, stage in self.ours.items()}
        rates = {name: _rates(stage) for name, stage in self.ours.items()}
        recipe = self._recipe(rates)
        schedule = schedule_of(rates, names, notes, self.epochs, self.remarks)
        for section in self.sections.values():
            section.used.update(_WITHOUT_EFFECT)
            section.check_all_used()
        copied = [
            n for n, stage in self.ours.items() if any("initWFunc" in x.section for x in stage)
        ]
        if copied:
            self.remarks.append(
                "the initial weights are another network's (initWFunc): set init_from=RUN "
                f"init_layers=[{','.join(copied)}]"
            )
        self.remarks.append(
            f"from recipe={self.base.name}, since the files do not have them: input_size, shuffle "
            "and augment"
        )
        try:
            check_values(schedule, "schedule.")
            check_recipe(recipe, ModelConfig(input_size=recipe.input_size))
            map_sizes(recipe, recipe.input_size)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return Definition(recipe, schedule, self.classes, notes, self.remarks)

    def _read_section(self, section: Section, values: dict[str, _Value]) -> None:
        kind = section.text("type")
        if kind == "data":
            if section.integer("dataIdx") == 0:  # the others are labels
                values[section.name] = _Value(None)
            return
        if kind == "cost.logreg":
            section.expect("coeff", 1)
            section.used.update(("inputs", "gpu"))
            return
        inputs = []
        for name in section.texts("inputs"):
            if name not in values:
                raise section.error("inputs", f"no layer {shown(name)} comes before it")
            inputs.append(values[name])
        gpu = section.integer("gpu") if "gpu" in section else inputs[0].gpu
        if kind in WITH_WEIGHTS:
            value = _Value(self._layer(section, kind, gpu or 0, inputs), gpu=gpu or 0)
        else:
            if len(inputs) > 1:
                raise section.error("inputs", "such a layer reads one input")
            if inputs[0].layer is None:
                raise section.error("inputs", "reads the image; a recipe's first layer is a conv")
            if kind == "softmax":
                self._mark_read(inputs[0])
                return
            value, op = inputs[0], self._op(kind, section)
            if op is not None:
                value = replace(value, after=(*value.after, (op, section)))
        neuron = section.text("neuron", "ident")
        if neuron == "relu":
            value = replace(value, after=(*value.after, (LayerOp.activation, section)))
        elif neuron != "ident":
            raise section.error("neuron", "a recipe has only relu and ident")
        values[section.name] = value

    def _layer(self, section: Section, kind: str, gpu: int, inputs: list[_Value]) -> _Layer:
        read = [value.layer for value in inputs if value.layer is not None]
        stages = {layer.stage for layer in read} if len(read) == len(inputs) else {0}
        if len(stages) > 1 or (read and stages == {0}):
            raise section.error("inputs", "are at different depths; a recipe is a chain of layers")
        if len({layer.gpu for layer in read}) < len(read):
            raise section.error("inputs", "are two layers of the same GPU")
        for value in inputs:
            self._mark_read(value)
        layer = _Layer(section, kind, 1 + stages.pop(), gpu, read)
        self.layers.append(layer)
        layer.settings = {
            "kind": kind,
            "init_std": section.magnitude("initW"),
            "init_bias": section.number("initB", 0.0),
        }
        if kind == "fc":
            layer.settings["units"] = section.integer("outputs")
            return layer
        if any(reading.kind == "fc" for reading in read):
            raise section.error("inputs", "reads a fully connected layer, but is a convolution")
        channels = {reading.settings["kernels"] for reading in read} or {3}
        if {section.integer("channels")} != channels:
            raise section.error("channels", f"its inputs have {channels.pop()}")
        section.expect("groups", 1)
        if section.flag("randSparse", False):
            raise section.error("randSparse", "a recipe's kernels read all maps of a tower")
        if not section.flag("sharedBiases", True):
            raise section.error("sharedBiases", "a recipe has one bias per kernel")
        stride = section.integer("stride", 1)
        layer.settings |= {
            "kernels": section.integer("filters"),
            "kernel_size": section.integer("filterSize"),
            "stride": stride,
            "padding": section.integer("padding", 0),
            "overhang": stride > 1,  # the code rounds the number of windows up
        }
        return layer

    def _mark_read(self, value: _Value) -> None:
        if value.layer is None:
            return
        before = value.layer.after
        if before is not None and before != list(value.after):
            raise ValueError(
                f"[{shown(value.layer.section.name)}] is read after different operations; a recipe "
                "is a chain of layers"
            )
        value.layer.after = list(value.after)

    def _op(self, kind: str, section: Section) -> LayerOp | None:
        if kind == "cmrnorm":
            return LayerOp.lrn
        if kind == "rnorm":
            return LayerOp.spatial_norm
        if kind == "hs":
            section.number("keep")
            return LayerOp.dropout if section.flag("enable", True) else None
        section.expect("start", 0)
        section.expect("outputsX", 0)
        pool, maxes = section.text("pool"), section.flag("doMax", False)
        if pool == "rand" and maxes:
            self.remarks.append(f"[{shown(section.name)}] pool=rand is a max-pool: doMax=true")
            return LayerOp.max_pool
        if pool not in _POOLS:
            raise section.error("pool", "a recipe has max, avg, and rand with doMax=true")
        return _POOLS[pool]

    def _stages(self) -> list[list[_Layer]]:
        """Layers of the same depth, one per tower, ordered by GPU; towers must be alike."""
        stages: dict[int, list[_Layer]] = {}
        for layer in self.layers:
            if layer.after is None:
                raise ValueError(f"[{shown(layer.section.name)}] is read by no layer")
            stages.setdefault(layer.stage, []).append(layer)
        for stage in stages.values():
            stage.sort(key=lambda layer: layer.gpu)
        ordered = [stages[depth] for depth in sorted(stages)]
        towers = [layer.gpu for layer in ordered[0]] if ordered else []
        for stage in ordered:
            first = stage[0]
            where = f"[{shown(first.section.name)}] "
            gpus = [layer.gpu for layer in stage]
            if gpus != towers and not (stage is ordered[-1] and len(stage) == 1):
                raise ValueError(
                    f"{where}and the layers of its depth are on GPUs {gpus}, the first on {towers};"
                    " a recipe splits every layer over the same towers"
                )
            for layer in stage:
                self._read_after(layer)
                layer.settings["reads_both_towers"] = self._reads_all(layer, towers)
                for key, value in layer.settings.items():
                    if value != first.settings[key]:
                        raise ValueError(
                            f"{where}and [{shown(layer.section.name)}] differ in {key}; the towers "
                            "of a recipe are alike"
                        )
        return ordered

    def _reads_all(self, layer: _Layer, towers: list[int]) -> bool:
        read = sorted(reading.gpu for reading in layer.inputs) or [layer.gpu]
        if read != [layer.gpu] and read != towers:
            raise layer.section.error(
                "inputs", f"reads GPUs {read} of {towers}; a recipe's layer reads its own, or all"
            )
        return read == towers

    def _read_after(self, layer: _Layer) -> None:
        """The operations after a layer, with their settings: the kind of each, sizes, constants."""
        settings = layer.settings
        settings |= {"after": [], "cmrnorm": [], "rnorm": [], "pool": [], "hs": []}
        for op, section in layer.after or []:
            settings["after"].append(op)
            if op is LayerOp.activation:
                continue
            if op is LayerOp.dropout:
                settings["hs"].append(round(1 - section.number("keep"), 12))
                continue
            if layer.kind == "fc":
                raise section.error("type", "follows a fully connected layer")
            if section.integer("channels", settings["kernels"]) != settings["kernels"]:
                raise section.error("channels", f"its input has {settings['kernels']}")
            size_key = "size" if "size" in section else "sizeX"
            if op in (LayerOp.lrn, LayerOp.spatial_norm):
                section.expect("blocked", 0)
                norm = NormConfig(
                    size=section.integer(size_key),
                    alpha=section.number("scale"),
                    beta=section.number("pow"),
                    k=section.number("minDiv", 1.0),
                    divide_by_window=True,
                )
                settings[section.text("type")].append(norm)
            else:
                pool = PoolConfig(section.integer("sizeX"), section.integer("stride"))
                settings["pool"].append(pool)

    def _check_depth(
        self, convs: list[list[_Layer]], hidden: list[list[_Layer]], head: list[_Layer]
    ) -> None:
        if not head or not 1 <= len(convs) <= MAX_CONVS or len(hidden) > MAX_HIDDEN:
            raise ValueError(
                f"has {len(convs)} convolutions and {len(hidden) + bool(head)} fully connected "
                f"layers in a row; a recipe has 1 to {MAX_CONVS}, and 1 to {MAX_HIDDEN + 1}"
            )
        if len(head) > 1 or head[0].after:
            names = ", ".join(shown(layer.section.name) for layer in head)
            raise ValueError(f"[{names}]: the last layer must be one, and end in a softmax")
        if len(head[0].inputs) != len(convs[0]):
            raise head[0].section.error("inputs", "the last layer must read all towers")
        for layer, *_ in hidden:
            if layer.settings["after"] not in (
                [LayerOp.activation],
                [LayerOp.activation, LayerOp.dropout],
            ):
                raise ValueError(
                    f"[{shown(layer.section.name)}] must have neuron=relu, and only hs after it"
                )

    def _recipe(self, rates: Mapping[str, LayerRates]) -> RecipeConfig:
        base, layers = self.base, dict[str, Any]()
        for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7"):
            default = getattr(base, name)
            if name not in self.ours:
                layers[name] = replace(default, present=False)
                continue
            values = self.ours[name][0].settings
            keys = ("kernels", "kernel_size", "stride", "padding", "overhang", "after")
            keys = (*(keys if name.startswith("conv") else ("units",)), "init_std", "init_bias")
            both = values["reads_both_towers"]
            of_a_tower = ("kernels", "units")
            layers[name] = replace(
                default,
                present=True,
                **{key: values[key] * (self.towers if key in of_a_tower else 1) for key in keys},
                # Of the image, or of one tower, both values say the same.
                reads_both_towers=default.reads_both_towers
                if name == "conv1" or self.towers == 1
                else both,
            )
        head = self.ours["fc8"][0].settings
        after = [stage[0].settings for name, stage in self.ours.items()]
        convs = [s for name, s in zip(self.ours, after, strict=True) if name.startswith("conv")]
        hidden = [s["hs"] or [0.0] for s in after if "units" in s][:-1]
        decays = {name: rate.decay for name, rate in rates.items()}
        (weight_decay, _), *_ = Counter(decays.values()).most_common(1)
        return replace(
            base,
            name=self.name,
            input_size=self.input_size,
            towers=self.towers,
            fc8=replace(base.fc8, init_std=head["init_std"], init_bias=head["init_bias"]),
            lrn=_one("cmrnorm", (norm for s in convs for norm in s["cmrnorm"]), base.lrn),
            spatial_norm=_one("rnorm", (n for s in convs for n in s["rnorm"]), base.spatial_norm),
            pool=_one("pool", (pool for s in convs for pool in s["pool"]), base.pool),
            dropout_rate=_one("hs after fc", (rate for s in hidden for rate in s), 0.0),
            conv_dropout_rate=_one("hs after conv", (rate for s in convs for rate in s["hs"]), 0.0),
            optimizer=replace(
                base.optimizer,
                momentum=_one("momW and momB", (m for r in rates.values() for m in r.momenta), 0.0),
                weight_decay=weight_decay,
                layer_decay={n: decay for n, decay in decays.items() if decay != weight_decay},
            ),
            **layers,
        )


def _rates(stage: list[_Layer]) -> LayerRates:
    rates = [LayerRates.of(layer.section) for layer in stage]
    for layer, rate in zip(stage, rates, strict=True):
        if rate != rates[0]:
            raise ValueError(
                f"[{shown(stage[0].section.name)}] and [{shown(layer.section.name)}] differ in "
                "their rates; the towers of a recipe are alike"
            )
    return rates[0]


def _one(what: str, values: Iterable[Value], default: Value) -> Value:
    """The value that all layers share; ``default`` if no layer has one."""
    found = list(values)
    for value in found:
        if value != found[0]:
            raise ValueError(
                f"its layers differ in {what}: {found[0]} and {value}; a recipe has one"
            )
    return found[0] if found else default


def _base(layer: _Layer) -> str:
    """``conv1`` of ``conv1a``: the name without the tower's letter."""
    name = layer.section.name.lower()
    return name[:-1] if name[-1:] in "abcdefgh" and name[-2:-1].isalnum() else name
