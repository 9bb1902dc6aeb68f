"""Definitions of the 2012 code, read as recipes and schedules, and trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from definitions import unpacked, written
from programs import TINY

from alexnet2012.checkpoint.manifest import to_plain
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device, ExportFormat, LayerOp, ScheduleKind
from alexnet2012.config.inference_schema import ImportConfig
from alexnet2012.config.schema import (
    ConfigError,
    DataConfig,
    ModelConfig,
    RecipeConfig,
    ScheduleConfig,
    TrainConfig,
)
from alexnet2012.config.validation import load_recipe
from alexnet2012.data.loaders import Batch
from alexnet2012.data.store import Store
from alexnet2012.data.ten_crop import centre_crop
from alexnet2012.distributed.mesh import single_process
from alexnet2012.import_net import run
from alexnet2012.inference.activations import describe_layers
from alexnet2012.inference.export import export
from alexnet2012.inference.importers.cuda_convnet import KINDS, Definition, read_definition
from alexnet2012.inference.importers.cuda_convnet_rates import read_history
from alexnet2012.inference.trained_model import TrainedModel
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.lr_schedule import learning_rates
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.training.train_step import TrainStep
from alexnet2012.training.trainer import Trainer
from alexnet2012.utils.shard import Shard

RUNS = (
    *("145", "145-half", "146-2009", "146-2012-2009", "146-2012-2011", "147", "148", "149", "150"),
    *("153", "166", "167", "177", "178"),
)
CIFAR = {
    "layers-cifar": ("18pct",),
    "example-layers": ("18pct", "19pct", "80sec"),
}
SAME = {  # what a recipe and an ablation of this package say of the authors' files
    "145": ("code145", None),
    "145-half": ("code145", "one_gpu"),
    "146-2009": ("code146", None),
    "146-2012-2009": ("code146", None),
    "146-2012-2011": ("code146", None),
    "147": ("code145", "pool_2x2"),
    "148": ("code145", "no_lrn"),
    "150": ("code145", "no_crosslinks_wide"),
    "153": ("code145", None),
    "167": ("code145", "no_lrn2"),
    "178": ("code145", None),
}


@pytest.fixture(scope="module")
def authors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(tmp_path_factory.mktemp("definitions"))


@cache
def shipped(recipe: str, ablation: str | None = None) -> RecipeConfig:
    if ablation is None:
        return load_recipe(recipe)
    words = [f"recipe={recipe}", f"ablation={ablation}", "data.source=photos", "mesh=one_process"]
    return compose_config("train", TrainConfig, words)[0].recipe


def schedule(name: str) -> ScheduleConfig:
    words = ["recipe=code146", f"schedule={name}", "data.source=photos"]
    return compose_config("train", TrainConfig, words)[0].schedule


@cache
def of(authors: Path, name: str, params: str | None = None, folder: str = "layers") -> Definition:
    files = (authors / folder).glob(f"layer-params-{params or name}*.cfg")
    return read_definition(
        authors / folder / f"layers-{name}.cfg", min(files, key=lambda f: len(f.name))
    )


def differences(one: RecipeConfig, other: RecipeConfig) -> dict[str, object]:
    """Fields in which two recipes differ, besides their names."""
    a, b = to_plain(replace(one, name="")), to_plain(replace(other, name=""))
    return {key: (a[key], b[key]) for key in a if a[key] != b[key]}


def train_two_steps(definition: Definition) -> None:
    """Both change all weights but those with a rate of 0, and the loss stays finite."""
    torch.manual_seed(0)
    config = ModelConfig(width=0.04, input_size=64)
    model = AlexNet(definition.recipe, 4, model=config).train()
    optimizer = PaperSGD(model, definition.recipe.optimizer)
    rates = learning_rates(definition.schedule, 0, [], 4)
    optimizer.set_rates(rates)
    step = TrainStep(model, optimizer)
    before = {name: weight.clone() for name, weight in model.full_state_dict().items()}
    batch = Batch(50 * torch.randn(4, 3, 64, 64), torch.arange(4), np.arange(4), Shard(0, 4, 4))
    outputs = [step(batch) for _ in range(2)]
    assert all(0 < output.loss < 1e4 for output in outputs)
    for name, weight in model.full_state_dict().items():
        layer, _, part = name.partition(".")
        moves = rates.of(layer, bias=part == "bias") > 0 and part == "weight"
        assert not moves or not torch.equal(weight, before[name]), name


# The authors' files


@pytest.mark.parametrize("name", RUNS)
def test_a_definition_of_alexnets_kinds_of_layers_trains(authors: Path, name: str) -> None:
    train_two_steps(of(authors, name))


@pytest.mark.parametrize(("folder", "name"), [(f, name) for f in CIFAR for name in CIFAR[f]])
def test_the_cifar_examples_train(authors: Path, folder: str, name: str) -> None:
    definition = of(authors, name, folder=folder)
    assert (definition.recipe.input_size, definition.recipe.towers) == (32, 1)
    train_two_steps(definition)


def test_every_other_definition_is_refused_with_its_reason(authors: Path) -> None:
    files = sorted((authors / "layers").glob("layers-*.cfg"))
    others = [file for file in files if file.stem.removeprefix("layers-") not in RUNS]
    others += [
        file
        for folder, names in CIFAR.items()
        for file in (authors / folder).glob("layers*.cfg")
        if file.stem.removeprefix("layers-") not in names
    ]
    assert (len(files), len(others)) == (63, 49 + 5)
    for file in others:
        kinds = set(re.findall(r"^type=(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE))
        lacking = kinds - {*KINDS}
        with pytest.raises(ConfigError, match="has types of layers that a recipe lacks") as caught:
            read_definition(file, authors / "layers" / "layer-params-145.cfg")
        assert "\n" not in str(caught.value)
        assert all(f"{kind} (" in str(caught.value) for kind in lacking), str(caught.value)


@pytest.mark.parametrize("name", SAME)
def test_the_authors_files_are_this_packages_recipes(authors: Path, name: str) -> None:
    assert differences(of(authors, name).recipe, shipped(*SAME[name])) == {}


def test_the_cifar_network_is_this_packages(authors: Path) -> None:
    found = of(authors, "18pct", folder="layers-cifar")
    assert differences(found.recipe, shipped("cifar4")) == {}
    assert any("random noise" in remark for remark in found.remarks)
    again = of(authors, "18pct", folder="example-layers").recipe  # one of its ReLUs before the pool
    after = [LayerOp.activation, LayerOp.max_pool, LayerOp.spatial_norm]
    assert differences(again, shipped("cifar4")).keys() == {"conv1"} and again.conv1.after == after


@pytest.mark.parametrize(
    ("name", "params", "own"),
    [
        ("145", None, "code145"),
        ("146-2009", None, "code146_2009"),
        ("146-2012-2011", None, "code146"),
    ],
)
def test_the_notes_of_the_authors_runs_are_this_packages_schedules(
    authors: Path, name: str, params: str | None, own: str
) -> None:
    assert of(authors, name, params).schedule == schedule(own)


def test_the_run_of_2010_has_other_epochs_and_smaller_rates_of_biases(authors: Path) -> None:
    found, own = of(authors, "145", "145-2010").schedule, schedule("code145_2010")
    assert [drop.epoch for drop in found.drops] == [drop.epoch for drop in own.drops]
    assert [drop.rate for drop in found.drops] == [drop.rate for drop in own.drops]
    assert (found.bias_rate, own.bias_rate) == (0.002, 0.02)  # the file's; the notes do not say


def test_stages_have_the_rates_that_the_authors_calculated_by_hand(authors: Path) -> None:
    found = of(authors, "153", "170").schedule  # schedW=dexp[250,0,4]
    rates = [found.rate, *(drop.rate for drop in found.drops if drop.rate is not None)]
    # Notes of #170: "set epsw to 0.0015874011 -- which is the correct one for thi slevel".
    assert rates == pytest.approx([0.01, 0.0015874011, 0.00025198421, 0.00004])


def test_dropout_after_a_convolution_and_random_pools_turned_off(authors: Path) -> None:
    found = of(authors, "177").recipe
    assert found.conv4.after == [LayerOp.activation, LayerOp.dropout]
    assert (found.conv_dropout_rate, found.dropout_rate) == (0.2, 0.5)
    assert any("[pool2a] pool=rand" in remark for remark in of(authors, "178").remarks)


def test_the_page_has_the_tables_that_the_files_give(authors: Path) -> None:
    import runpy

    script = Path(__file__).parents[2] / "docs" / "definitions.py"
    page = script.with_suffix(".md").read_text(encoding="utf-8")
    assert runpy.run_path(str(script))["page"](authors, page) == page


def test_the_page_lists_63_definitions_of_which_14_run() -> None:
    page = Path(__file__).parents[2] / "docs" / "definitions.md"
    rows = re.findall(r"^\| #(\S+) \| (yes|no) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(dict(rows)) == 63
    assert {name for name, here in rows if here == "yes"} == {*RUNS}


# Files made from recipes


@pytest.mark.parametrize(
    ("recipe", "ablation"),
    [
        *[(recipe, None) for recipe in ("code145", "code146", "cifar4")],
        *[("code145", name) for name in ("one_gpu", "pool_2x2", "no_lrn", "no_crosslinks_wide")],
        ("code145", "no_conv3"),
    ],
)
def test_a_recipe_written_as_a_definition_is_read_as_itself(
    tmp_path: Path, recipe: str, ablation: str | None
) -> None:
    own = shipped(recipe, ablation)
    files = written(own, tmp_path, classes=10 if recipe == "cifar4" else 1000)
    found = read_definition(*files).recipe
    if ablation == "no_conv3":  # a definition has no gaps: its layers are counted through
        assert [c.kernels for c in found.convs.values()] == [c.kernels for c in own.convs.values()]
        assert list(found.convs) == ["conv1", "conv2", "conv3", "conv4"]
        return
    assert differences(found, own) == {}


def test_any_number_of_towers_and_dropout_after_convolutions_train(tmp_path: Path) -> None:
    own = replace(load_recipe("code145"), towers=4, conv_dropout_rate=0.25)
    own = replace(own, conv4=replace(own.conv4, after=[LayerOp.activation, LayerOp.dropout]))
    definition = read_definition(*written(own, tmp_path))
    assert differences(definition.recipe, own) == {}
    train_two_steps(definition)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The texts of a definition and its parameters, to which tests make one change."""
    notes = "of a run\nepoch 2: set epsw to 0.01 from 0.1\nepoch 5: killed"
    files = written(load_recipe("code145"), tmp_path_factory.mktemp("made"), notes=notes)
    layers, params = (file.read_text(encoding="utf-8") for file in files)
    return layers, params


CONV3A = "[conv3a]\ntype=conv\n"
REFUSED: dict[str, tuple[str, str, str]] = {  # old text, new text, message
    "type": (
        "type=cmrnorm",
        "type=cnorm",
        r"lacks: cnorm \(conv1a-rnorm, conv1b-rnorm, conv2a-rnorm, conv2b",
    ),
    "no type": (CONV3A, "[conv3a]\n", r"lacks: \(none\) \(conv3a\)"),
    "neuron": ("neuron=relu", "neuron=tanh[1,1]", r"\[conv1a-pool\] neuron=.*: a recipe has only"),
    "pool": ("pool=max", "pool=rand", r"\[conv1a-pool\] pool=rand: .* doMax=true"),
    "input": ("inputs=conv1a\n", "inputs=conv9\n", r"inputs=conv9: no layer conv9 comes before"),
    "reads both": (
        "inputs=conv3a\n",
        "inputs=conv3a,conv3b\n",
        r"\[conv4a\] and \[conv4b\] differ in reads_both_towers",
    ),
    "GPU": ("inputs=conv4b\ngpu=1", "inputs=conv4b\ngpu=2", r"on GPUs \[0, 2\], the first on"),
    "towers": ("filterSize=5", "filterSize=7", r"\[conv2a\] and \[conv2b\] differ in kernel_size"),
    "channels": ("channels=48", "channels=96", r"\[conv2a\] channels=96: its inputs have 48"),
    "setting": (CONV3A, f"{CONV3A}filterChannels=64\n", r"filterchannels=64: is a setting that a"),
    "groups": (CONV3A, f"{CONV3A}groups=2\n", r"\[conv3a\] groups=2: a recipe has only 1"),
    "biases": (CONV3A, f"{CONV3A}sharedBiases=0\n", "one bias per kernel"),
    "number": ("initW=0.03", "initW=x", r"\[conv3a\] initW=x: must be a number"),
    "infinite": ("initW=0.03", "initW=1e999", "must be finite"),
    "negative": ("initW=0.03", "initW=-1", "must be at least 0"),
    "fraction": ("filters=48", "filters=4.5", "must be a whole number"),
    "zero": ("stride=4", "stride=0", "recipe.conv1.stride=0: must be at least 1"),
    "missing": ("channels=3\n", "", r"\[conv1a\] has no channels"),
    "lists": ("initW=0.03", "initW=0.03,0.01", "must be the same for all inputs"),
    "windows": ("size=5\n", "size=4\n", "differ in cmrnorm"),
    "constants": ("keep=0.5", "keep=0.9", "differ in hs"),
    "unread": (
        "[probs]",
        "[fc9]\ntype=fc\noutputs=2\ninitW=1\ninputs=fc8a\n[probs]",
        "is read by no",
    ),
    "no section": ("[data]", "data", r"line 1 \(data\) is neither a \[section\]"),
    "interpolation": ("stride=4", "stride=%(gpu)s", r"stride=%\(gpu\)s: must be a number"),
    "escape": ("type=cmrnorm", "type=\x1b[31m", r"lacks: \\x1b\[31m"),
}
REFUSED_PARAMS: dict[str, tuple[str, str, str]] = {
    "weight ball": ("wball=0", "wball=1", r"\[conv1a\] wball=1: a recipe has only 0"),
    "momentum": ("momW=0.9", "momW=0.5", "differ in their rates"),
    "schedule": ("wball=0", "wball=0\nschedW=jdexp[500,4]", "a recipe has linear, exp and dexp"),
    "steps": ("wball=0", "wball=0\nschedW=dexp[500,1]", "at least 2 steps"),
    "missing": ("[conv2b]", "[conv2c]", r"\[conv2b\] has no epsW in either file; are the param"),
    "coefficient": ("coeff=1", "coeff=2", r"\[logprob\] coeff=2"),
    "line": ("coeff=1", "coeff", r"layer-params-made.cfg: line \d+ \(coeff\) is neither"),
}


@pytest.mark.parametrize(
    ("part", "case"), [*((0, case) for case in REFUSED), *((1, case) for case in REFUSED_PARAMS)]
)
def test_what_a_recipe_cannot_express_is_refused_in_a_line_that_names_it(
    made: tuple[str, str], tmp_path: Path, part: int, case: str
) -> None:
    old, new, message = (REFUSED, REFUSED_PARAMS)[part][case]
    texts = list(made)
    assert old in texts[part]
    texts[part] = texts[part].replace(old, new, -1 if case in ("type", "zero") else 1)
    layers, params = tmp_path / "layers-made.cfg", tmp_path / "layer-params-made.cfg"
    layers.write_text(texts[0], encoding="utf-8")
    params.write_text(texts[1], encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_definition(layers, params)
    assert str(caught.value).isprintable()


def test_two_files_in_the_wrong_order_and_a_byte_order_mark(tmp_path: Path) -> None:
    layers, params = written(load_recipe("code145"), tmp_path)
    with pytest.raises(ConfigError, match=r"source=.*: is no definition: none of its sections has"):
        read_definition(params, layers)
    layers.write_text(layers.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert differences(read_definition(layers, params).recipe, load_recipe("code145")) == {}


def test_a_layer_that_reads_some_of_the_towers_is_refused(tmp_path: Path) -> None:
    layers, params = written(replace(load_recipe("code145"), towers=4), tmp_path)
    text = layers.read_text(encoding="utf-8")
    (read,) = {line for line in text.splitlines() if line.startswith("inputs=conv2a-pool,")}
    layers.write_text(text.replace(read, "inputs=conv2a-pool,conv2c-pool", 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\[conv3a\].*reads GPUs \[0, 2\] of \[0, 1, 2, 3\]"):
        read_definition(layers, params)


def test_all_rates_of_zero_are_refused(made: tuple[str, str], tmp_path: Path) -> None:
    layers, params = tmp_path / "layers.cfg", tmp_path / "params.cfg"
    layers.write_text(made[0], encoding="utf-8")
    params.write_text(made[1].split("# of")[0].replace("epsW=0.01", "epsW=0"), encoding="utf-8")
    with pytest.raises(ConfigError, match="epsW=0 in all layers: nothing would be trained"):
        read_definition(layers, params)


NAMES = {**{f"conv{i}": {f"conv{i}"} for i in (1, 2, 3)}, "fc6": {"fc2048"}, "fc8": {"fc1000"}}
EVENTS: dict[str, tuple[str, dict[int, set[str]] | None]] = {  # a line: layers at .01, by epoch
    "all": ("epoch 3: set epsw to 0.01 from 0.1", {2: set(), 3: {*NAMES}}),
    "one": ("epoch 3: set conv1 epsw to 0.01 from 0.1", {3: {"conv1"}}),
    "another order": ("epoch  3: set epsw conv1 to 0.01 from 0.1", {3: {"conv1"}}),
    "on": ("epoch 3: set epsw to 0.01 from 0.1 on fc, conv2", {3: {"conv2", "fc6", "fc8"}}),
    "range": (
        "epoch 3: set epsw to 0.01 on conv2-3, set color noise to 0",
        {3: {"conv2", "conv3"}},
    ),
    "name": ("300 batches: set epsw to 0.01 from 0.1 on fc1000", {0: {"fc8"}}),
    "elsewhere": ("epoch 3: set epsw to 0 on conv1, 0.01 elsewhere", {3: {*NAMES} - {"conv1"}}),
    "next line": ("epoch 3: moved\n   set epsw to 0.01 from 0.1", {3: {*NAMES}}),
    "fraction": ("epoch 2.16: set epsw to 0.01 from 0.1", {1: set(), 2: {*NAMES}}),
    "misspelt": ("epoch 3: set epstw ot 0.01 from 0.1", {3: {*NAMES}}),
    "unknown layer": ("epoch 3: set epsw to 0.01 from 0.1 on conv7", None),
    "not understood": ("epoch 3: set epsw to about 0.01", None),
    "too late": ("epoch 99999999: killed", None),
    "no change": ("epoch 3: paused\nset the table\nepoch 4: killed", {4: set()}),
}


@pytest.mark.parametrize("case", EVENTS)
def test_notes_of_changed_rates_are_understood_or_left_alone(case: str) -> None:
    line, expected = EVENTS[case]
    history = read_history(line, NAMES)
    assert (history is None) == (expected is None)
    for epoch, changed in (expected or {}).items():
        assert history is not None
        rates = history.at(epoch, dict.fromkeys(NAMES, 0.1))
        assert {layer for layer, rate in rates.items() if rate == 0.01} == changed


def test_of_several_runs_in_the_notes_the_one_that_ends_at_the_files_rates_is_used(
    tmp_path: Path,
) -> None:
    notes = (
        "epoch 7: set epsw to 0.02 from 0.1\n\nepoch 2: set epsw to 0.01 from 0.1\n"
        "epoch 4: set color noise to 0 from 0.1\nepoch 5: killed\n"
    )
    found = read_definition(*written(load_recipe("code145"), tmp_path, notes=notes))
    drops = [(drop.epoch, drop.rate, drop.lighting) for drop in found.schedule.drops]
    assert (found.schedule.kind, found.schedule.rate) == (ScheduleKind.fixed, 0.1)
    assert (found.schedule.epochs, drops) == (5, [(2, 0.01, None), (4, None, False)])
    assert found.notes == notes.strip()


def test_a_linear_schedule_falls_every_epoch(made: tuple[str, str], tmp_path: Path) -> None:
    layers, params = tmp_path / "layers.cfg", tmp_path / "params.cfg"
    layers.write_text(made[0], encoding="utf-8")
    text = made[1].split("# of")[0].replace("wball=0", "wball=0\nsched=linear[1000]")
    params.write_text(text, encoding="utf-8")
    found = read_definition(layers, params).schedule
    rates = [learning_rates(found, epoch, [], 128) for epoch in range(found.epochs)]
    assert found.epochs == 90 and rates[45].weight == pytest.approx(0.01 * (1 - 45.5 / 90 * 0.999))
    assert all(rate.bias == pytest.approx(2 * rate.weight) for rate in rates)


# The command


@pytest.fixture(scope="module")
def imported(made: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    for name, text in zip(("layers-x.cfg", "layer-params-x.cfg"), made, strict=True):
        (folder / name).write_text(text, encoding="utf-8")
    sources = (str(folder / name) for name in ("layers-x.cfg", "layer-params-x.cfg"))
    source, params = sources
    run(ImportConfig(source, str(folder / "net"), params=params), folder)
    return folder / "net"


def composed(*words: str) -> TrainConfig:
    return compose_config("train", TrainConfig, ["data.source=photos", *words])[0]


def test_a_recipe_and_a_schedule_are_taken_by_path(imported: Path) -> None:
    config = composed(f"recipe={imported}/recipe.yaml", f"schedule={imported}/schedule.yaml")
    assert differences(config.recipe, load_recipe("code145")) == {}
    assert config.recipe.name == "layers-x"
    assert (config.schedule.rate, config.schedule.epochs) == (0.1, 5)
    assert [(drop.epoch, drop.rate) for drop in config.schedule.drops] == [(2, 0.01)]
    ablated = composed(f"recipe={imported}/recipe.yaml", "ablation=no_lrn", "recipe.towers=2")
    assert differences(ablated.recipe, shipped("code145", "no_lrn")) == {}
    assert ablated.schedule == config.schedule  # that beside the recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "recipe=.*mine.yaml: cannot be read: No such file"),
        ("conv1: {kernls: 3}", "recipe=.*mine.yaml: cannot be read: .*kernls"),
        ("name: ${oc.env:HOME}", "Missing mandatory|cannot be read"),
        ("- 1", "cannot be read"),
        ("a: &a [1]\nb: *a", "has an alias"),
        ("[" * 1000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(
    tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        composed(f"recipe={file}")
    assert "\n" not in str(caught.value)


def test_what_a_recipe_file_interpolates_is_text(imported: Path, tmp_path: Path) -> None:
    text = (imported / "recipe.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("name: layers-x", "name: ${seed}"), "utf-8")
    config = composed(f"recipe={tmp_path}/mine.yaml", "schedule=constant")
    assert (config.recipe.name, config.schedule.rate) == ("${seed}", 0.01)


def test_an_imported_recipe_trains(imported: Path, photos_store: Store, tmp_path: Path) -> None:
    words = [word for word in TINY if not word.startswith("schedule=")]
    words += [f"data.store={photos_store.root}", "mesh=one_process", "max_steps=2"]
    config = compose_config("train", TrainConfig, [*words, f"recipe={imported}/recipe.yaml"])[0]
    summary = Trainer(config, single_process(Device.cpu), tmp_path / "run").run()
    assert summary["steps"] == 2


def test_dropout_after_a_convolution_is_described_and_exported(
    photos_store: Store, tmp_path: Path
) -> None:
    own = replace(load_recipe("code145"), conv_dropout_rate=0.25)
    own = replace(own, conv4=replace(own.conv4, after=[LayerOp.activation, LayerOp.dropout]))
    model = AlexNet(own, 16, model=ModelConfig(width=0.04, input_size=64), seed=3).eval()
    settings = DataConfig(store=str(photos_store.root), store_size=72)
    net = TrainedModel(model, photos_store.classes, photos_store.mean_image, settings)
    described = {layer.name: layer.then for layer in describe_layers(net)[0]}
    assert described["conv4"] == ["ReLU", "scaled by 0.75 for dropout"]
    assert described["fc6"] == ["ReLU", "scaled by 0.5 for dropout"]
    export(net, ExportFormat.onnx, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    pixels = torch.full((1, 3, 64, 64), 90.0)
    mean = centre_crop(torch.from_numpy(net.mean_image), 64)
    (outputs,) = session.run(None, {"images": pixels.numpy()})
    with torch.no_grad():
        expected = model(pixels - mean.permute(2, 0, 1))
    assert torch.allclose(torch.from_numpy(outputs), expected, rtol=1e-4, atol=1e-4)


Spoil = Callable[[ImportConfig], ImportConfig]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: replace(c, params=None), "params=None: is required for a definition"),
        (lambda c: replace(c, classes="x"), "classes=x: is for files with weights"),
        (lambda c: replace(c, source="none.cfg"), "source=none.cfg: cannot be read: No such file"),
        (lambda c: replace(c, params="none.cfg"), "params=none.cfg: cannot be read: No such file"),
        (lambda c: replace(c, out="."), "out=.: already exists"),
        (lambda c: replace(c, input_size=7), "input_size=7: too small"),
    ],
)
def test_an_import_that_cannot_be_is_refused_and_leaves_nothing(
    imported: Path, tmp_path: Path, spoil: Spoil, message: str
) -> None:
    source, params = (str(imported.parent / f"{name}-x.cfg") for name in ("layers", "layer-params"))
    config = spoil(ImportConfig(source, str(tmp_path / "net"), params=params))
    with pytest.raises(ConfigError, match=message):
        run(config, tmp_path)
    assert not (tmp_path / "net").exists()


def test_the_notes_and_what_is_not_in_the_files_are_shown(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, params = (str(imported.parent / f"{name}-x.cfg") for name in ("layers", "layer-params"))
    run(ImportConfig(source, str(tmp_path / "net"), params=params), tmp_path)
    shown = capsys.readouterr().out
    assert "of a run\nepoch 2: set epsw to 0.01 from 0.1\nepoch 5: killed\n" in shown
    assert "from recipe=code145, since the files do not have them" in shown
    assert f"next: alexnet2012 train recipe={tmp_path}/net/recipe.yaml schedule=" in shown
    assert (tmp_path / "net" / "notes.txt").read_text("utf-8").startswith("of a run\n")
