"""Settings: valid values, and the one-line errors for invalid ones."""

from __future__ import annotations

import ast
import math
import re
import shlex
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import alexnet2012
from alexnet2012.checkpoint.manifest import to_plain
from alexnet2012.checkpoint.run_dir import flatten
from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.compose import compose_config, typed_config
from alexnet2012.config.inference_schema import (
    ExportConfig,
    FeaturesConfig,
    ImportConfig,
    NearestConfig,
    PredictConfig,
    ServeConfig,
)
from alexnet2012.config.renamed import FORMER_EXPERIMENTS, with_current_names
from alexnet2012.config.roles import Role, role_of
from alexnet2012.config.schema import (
    ConfigError,
    DropConfig,
    EvaluateConfig,
    ModelConfig,
    PlanConfig,
    PrepareConfig,
    RecipeConfig,
    TrainConfig,
)
from alexnet2012.config.validation import (
    check_recipe,
    check_world_size,
    load_recipe,
    scaled,
    validate,
)
from alexnet2012.nn.map_sizes import conv_output_size, map_sizes

SOURCE = Path(alexnet2012.__file__).parent
CONF = SOURCE.parents[1] / "conf"
Refuse = Callable[..., str]
PAPER = load_recipe("paper")


@cache
def _composed(*overrides: str) -> TrainConfig:
    return compose_config("train", TrainConfig, overrides)[0]


def composed(*overrides: str) -> TrainConfig:
    return deepcopy(_composed(*overrides))


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    """All settings of a training run."""
    return to_plain(composed())


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Return the one-line error of invalid overrides, and check the exit code 2."""

    def refused(*overrides: str) -> str:
        with pytest.raises(SystemExit) as ending:
            exit_on_error(lambda: composed(*overrides), TrainConfig)
        assert ending.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("alexnet2012: ")
        assert err.count("\n") == 1
        return err.removeprefix("alexnet2012: ").rstrip("\n")

    return refused


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "recipe.conv1.kernels=97",
            "recipe.conv1.kernels=97: must divide evenly over 2 towers; use 96 or 98",
        ),
        ("recipe.fc6.units=1", "recipe.fc6.units=1: must divide evenly over 2 towers; use 2"),
        (
            "mesh.processes=3",
            "mesh.processes=3: must be 1, or a multiple of mesh.towers=2; use 2 or 4",
        ),
        ("recipe.dropout_rate=1", "recipe.dropout_rate=1.0: must be at least 0 and below 1"),
        ("recipe.lrn.size=4", "recipe.lrn.size=4: must be odd; the paper uses 5"),
        ("eval_views=5", "eval_views=5: must be 1 or 10"),
        ("max_steps=0", "max_steps=0: must be at least 1"),
        ("schedule.epochs=0", "schedule.epochs=0: must be at least 1"),
        ("data.store_size=200", "data.store_size=200: must be at least model.input_size=224"),
        ("mesh.towers=3", "mesh.towers=3: must be 1 or recipe.towers=2"),
        ("+new=1", "new=1: no such key; remove it"),
        ("+recipe.conv1.new=1", "recipe.conv1.new=1: no such key; remove it"),
        (
            "recipe.conv1.kernls=96",
            "recipe.conv1.kernls: no such key; did you mean recipe.conv1.kernels?",
        ),
        ("batch_size=4", "batch_size: no such key; did you mean data.batch_size?"),
        ("recpie=paper", "recpie: no such key; did you mean recipe?"),
        ("data=folder", "data.source: required; set data.source=…"),
    ],
)  # fmt: skip
def test_an_invalid_setting_is_reported_with_its_key_and_a_remedy(
    refuse: Refuse, override: str, line: str
) -> None:
    assert refuse(override) == line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("recipe=papr", ["recipe=papr", "no such recipe", "code145", "paper"]),
        ("recipe=", ["recipe=", "no such recipe", "code145", "paper"]),
        ("recipe=3", ["recipe=3", "name of a file in conf/recipe"]),
        ("mesh=null", ["mesh=null", "name of a file in conf/mesh"]),
        ("preset=tiny", ["preset=tiny", "use small"]),
        ("=3", ["=3", "has no key"]),
        (
            "experiment=ablations/quikc",
            [
                "experiment=ablations/quikc",
                "no such experiment",
                "ablations/quick",
                "pretrain/full",
            ],
        ),
        ("data.batch_size=many", ["data.batch_size=many", "Integer"]),
        ("data.batch_size=1.5", ["data.batch_size=1.5", "Integer"]),
        ("model.activation=gelu", ["model.activation=gelu", "relu", "tanh"]),
        ("precision=fp16", ["precision=fp16", "fp32", "fp64"]),
        ("mesh.device=tpu", ["mesh.device=tpu", "cpu", "cuda"]),
        ("recipe.conv1.overhang=perhaps", ["recipe.conv1.overhang=perhaps", "bool"]),
        ("seed=null", ["seed=null"]),
        ("seed=0,1", ["seed=0,1", "--multirun"]),
        ("seed", ["seed", "KEY=VALUE"]),
        ("seed=a=b", ["seed=a=b"]),
    ],
)
def test_a_wrong_type_or_choice_is_reported_with_the_valid_choices(
    refuse: Refuse, override: str, words: list[str]
) -> None:
    line = refuse(override)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.width", "nan"),
        ("model.width", "inf"),
        ("model.width", "0"),
        ("model.input_size", "0"),
        ("schedule.rate", "nan"),
        ("schedule.rate", "-1"),
        ("schedule.bias_rate", "-1"),
        ("schedule.rate_factor", "0"),
        ("schedule.epochs_factor", "0"),
        ("data.skip_classes", "-1"),
        ("schedule.factor", "0"),
        ("schedule.factor", "0.1"),
        ("schedule.max_drops", "-1"),
        ("recipe.optimizer.momentum", "-1"),
        ("recipe.optimizer.momentum", "1.5"),
        ("recipe.optimizer.weight_decay", "-1"),
        ("recipe.conv2.padding", "-1"),
        ("recipe.augment.lighting_std", "-1"),
        ("recipe.augment.train_divisor", "0"),
        ("recipe.pool.stride", "0"),
        ("checkpoint.every_epochs", "0"),
        ("checkpoint.every_steps", "0"),
        ("checkpoint.every_minutes", "0"),
        ("checkpoint.keep_last", "0"),
        ("eval_every_epochs", "0"),
        ("mesh.timeout_s", "0"),
        ("data.micro_batch", "0"),
        ("schedule.warmup_epochs", "-1"),
        ("profile", "0"),
        ("data.limit", "0"),
        ("seed", "-1"),
    ],
)
def test_a_value_out_of_range_is_reported_by_its_key(
    defaults: dict[str, Any], key: str, value: str
) -> None:
    settings = deepcopy(defaults)
    *groups, name = key.split(".")
    owner = reduce(lambda node, group: node[group], groups, settings)
    owner[name] = yaml.safe_load(value)
    with pytest.raises(ConfigError) as refusal:
        validate(typed_config(TrainConfig, settings))
    assert refusal.value.key == key


@pytest.mark.parametrize(
    ("drops", "words"),
    [
        ("[{epoch:3,rate:.1},{epoch:1,rate:.1}]", ["schedule.drops", "sorted by epoch"]),
        ("[{rate:3}]", ["schedule.drops", "epoch"]),
        ("[{epch:3}]", ["epch", "no such key"]),
        ("[{epoch:1,rate:-3}]", ["schedule.drops", "-3"]),
        ("[{epoch:1,layer_rates:{conv9:1}}]", ["conv9"]),
    ],
)
def test_a_wrong_drop_is_refused(refuse: Refuse, drops: str, words: list[str]) -> None:
    line = refuse("schedule=constant", f"schedule.drops={drops}")
    assert all(word in line for word in words), line


def test_drops_can_be_given_on_the_command_line() -> None:
    config = composed(
        "schedule=constant", "schedule.drops=[{epoch:15,rate:.001,layer_rates:{conv1:0}}]"
    )
    assert config.schedule.drops == [DropConfig(15, rate=0.001, layer_rates={"conv1": 0.0})]


def test_the_run_directory_is_hydras_as_an_absolute_path() -> None:
    _, run_dir = compose_config("train", TrainConfig, ["hydra.run.dir=somewhere/else"])
    assert run_dir == Path.cwd() / "somewhere/else"


def test_a_configuration_contains_no_omegaconf_objects() -> None:
    def leftovers(value: Any, at: str) -> Iterable[str]:
        if OmegaConf.is_config(value):
            yield at
        elif is_dataclass(value):
            for item in fields(value):
                yield from leftovers(getattr(value, item.name), f"{at}.{item.name}")
        elif isinstance(value, list | dict):
            for index, inner in enumerate(value.values() if isinstance(value, dict) else value):
                yield from leftovers(inner, f"{at}[{index}]")

    assert list(leftovers(composed("recipe=code145"), "config")) == []


def test_the_papers_recipe_is_the_default() -> None:
    config = composed()
    assert config.recipe == load_recipe("paper")
    assert (config.mesh.processes, config.mesh.towers) == (2, 2)
    assert (config.data.batch_size, config.schedule.rate) == (128, 0.01)  # paper sec. 5
    optimizer = config.recipe.optimizer
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 0.0005)  # paper sec. 5


@pytest.mark.parametrize("name", ["paper", "code145"])
def test_a_recipe_leaves_nothing_to_defaults(name: str) -> None:
    text = (CONF / "recipe" / f"{name}.yaml").read_text(encoding="utf-8")

    def keys(values: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for key, value in values.items():
            inner = isinstance(value, dict)
            found |= keys(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}"}
        return found

    schema = OmegaConf.to_container(OmegaConf.structured(RecipeConfig))
    assert keys(yaml.safe_load(text)) == keys(schema)


def differing(one: Any, other: Any, prefix: str = "") -> set[str]:
    names = set()
    for item in fields(one):
        a, b = getattr(one, item.name), getattr(other, item.name)
        if is_dataclass(a):
            names |= differing(a, b, f"{prefix}{item.name}.")
        elif a != b:
            names.add(f"{prefix}{item.name}")
    return names


def test_the_2012_code_differs_from_the_paper_in_these_switches_and_no_other() -> None:
    assert differing(load_recipe("paper"), load_recipe("code145")) == {
        "name",
        "conv1.padding",
        "conv1.overhang",
        "conv1.after",
        "conv2.after",
        "conv5.after",
        "conv3.init_std",
        "conv4.init_std",
        "conv5.init_std",
        "lrn.divide_by_window",
        "augment.include_last_position",
        "augment.images_per_draw",
        "augment.mean_follows_crop",
        "augment.lighting_scale",
        "augment.train_divisor",
        "shuffle",
    }


def test_a_recipe_that_is_another_with_changes_is_the_same_with_and_without_hydra() -> None:
    changed = load_recipe("code146_2011")
    assert composed("recipe=code146_2011").recipe == changed
    assert differing(load_recipe("code146"), changed) == {"name", "fc8_bottleneck.present"}
    assert changed.layers[-3:] == ["fc7", "fc8_bottleneck", "fc8"]


@pytest.mark.parametrize("key", ["layer_rates", "layer_bias_rates"])
def test_a_rate_for_a_layer_that_the_recipe_lacks_is_refused(key: str) -> None:
    words = ["recipe=code146", f"schedule.drops=[{{epoch: 1, {key}: {{fc8_bottleneck: 0.1}}}}]"]
    with pytest.raises(ConfigError, match=rf"{key}=fc8_bottleneck: 0.1: .* conv1, .* fc7, fc8$"):
        composed(*words)


def test_an_unknown_recipe_is_reported_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"recipe=papr: .*code145, code146, code146_2011, paper"):
        load_recipe("papr")


EXPERIMENTS = sorted(
    file.relative_to(CONF / "experiment").with_suffix("").as_posix()
    for file in (CONF / "experiment").rglob("*.yaml")
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiments_header_is_complete_and_its_commands_can_be_composed(name: str) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    for word in ("command", "measures", "expected", "takes"):
        assert f"#   {word}" in text.partition("defaults:")[0], word
    lines = re.findall(r"^#   (?:commands? |or |then |         ) *(.+)", text, flags=re.MULTILINE)
    shell = "\n".join(lines).replace("\\\n", "")
    trainings = [shlex.split(line) for line in shell.splitlines() if "alexnet2012.train" in line]
    assert any(f"experiment={name}" in words for words in trainings)
    for _, _, module, *words in trainings:
        assert module == "alexnet2012.train"
        # Of a sweep the first of each.
        swept = [re.sub(r"^([^\[]*?),.*", r"\1", word) for word in words if word != "-m"]
        assert composed(*swept).recipe.name


@pytest.mark.parametrize("name", sorted(file.stem for file in (CONF / "ablation").iterdir()))
def test_every_ablation_composes_with_the_ablations_experiment(name: str) -> None:
    assert composed("experiment=ablations/quick", f"ablation={name}").recipe.name == "code145"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lrn_alpha0", {"recipe.lrn.alpha": 0.0, "recipe.spatial_norm.alpha": 0.0}),
        ("no_lrn1", {"recipe.conv1.after": ["max_pool", "activation"]}),
        ("no_lrn2", {"recipe.conv2.after": ["activation", "max_pool"]}),
        (
            "no_crosslinks_wide",
            {
                "recipe.conv3.reads_both_towers": False,
                "recipe.fc6.reads_both_towers": False,
                "recipe.fc7.reads_both_towers": False,
                "recipe.conv2.kernels": 2 * 160,  # layers-150.cfg
                "recipe.fc6.units": 2 * 4096,
            },
        ),
        (
            "no_dropout_no_crops",
            {
                "recipe.dropout_rate": 0.0,
                "recipe.augment.crop": False,
                "recipe.augment.flip": False,
            },
        ),
        ("few_classes", {"data.first_classes": 5}),
        ("few_classes_equal_steps", {"data.first_classes": 5, "schedule.epochs_factor": 3}),
        (
            "other_classes",
            {"data.first_classes": 5, "data.skip_classes": 5, "schedule.epochs_factor": 2},
        ),
        ("pool_2x2_cifar10", {"recipe.pool.size": 2}),  # the stride is 2 in both
        (
            "pool_2x2",
            {
                "recipe.pool.size": 2,
                "recipe.conv2.padding": 1,  # layers-147.cfg
                "recipe.conv5.padding": 0,
            },
        ),
    ],
)
def test_an_ablation_changes_only_what_it_says(name: str, changes: dict[str, Any]) -> None:
    base, changed = (
        flatten(to_plain(composed("experiment=ablations/quick", f"ablation={ablation}")))
        for ablation in ("none", name)
    )
    assert {key: value for key, value in changed.items() if value != base[key]} == changes


def test_a_network_is_pretrained_on_classes_that_it_is_not_fine_tuned_on() -> None:
    source, target = (
        composed(f"ablation={name}", "hydra.sweep.dir=sweep")
        for name in ("other_classes", "pretrained_other")
    )
    assert target.init_from == "sweep/other_classes/0"
    assert (target.data.skip_classes, target.data.first_classes) == (0, 5)
    assert (source.data.skip_classes, source.data.first_classes) == (5, 5)


def test_pretraining_and_its_control_have_as_many_steps_on_ten_classes() -> None:
    def images(name: str) -> int:
        config = composed(f"ablation={name}", "hydra.sweep.dir=sweep")
        epochs = config.schedule.epochs * config.schedule.epochs_factor
        return epochs * (config.data.first_classes or 10)

    control = images("few_classes_equal_steps")
    assert images("none") + images("pretrained") == control
    assert images("other_classes") + images("pretrained_other") == control


@pytest.mark.parametrize(
    ("experiment", "arms", "sizes"),
    [
        # after each layer's pool: 31 → 15, 15 → 7, 7, 7, 7 → 3
        ("ablations/reduced", ("none", "pool_2x2"), [7, 7, 7, 3]),
        ("ablations/gpu", ("none", "pool_2x2"), [13, 13, 13, 6]),
        ("lrn_cifar10/reduced", ("none", "pool_2x2_cifar10"), [6, 3]),
    ],
)
def test_maps_have_the_same_sizes_in_both_arms_of_the_comparison_of_pools(
    experiment: str, arms: tuple[str, ...], sizes: list[int]
) -> None:
    for arm in arms:
        config = composed(f"experiment={experiment}", f"ablation={arm}")
        found = map_sizes(config.recipe, config.model.input_size)
        assert [found[layer] for layer in found if layer != "conv1"] == sizes


def test_the_design_for_two_cores_keeps_2012s_proportions() -> None:
    small, code145 = composed("experiment=ablations/reduced"), composed("recipe=code145")
    assert conv_output_size(small.recipe.conv1, small.model.input_size) == 31
    assert map_sizes(small.recipe, small.model.input_size)["conv1"] == 15
    by_batch = small.data.batch_size / code145.data.batch_size
    assert small.schedule.rate == code145.schedule.rate * by_batch
    assert small.schedule.bias_rate == code145.schedule.bias_rate * by_batch
    draws = small.recipe.augment.images_per_draw / code145.recipe.augment.images_per_draw
    assert draws == by_batch
    rates = [drop for drop in code145.schedule.drops if drop.rate is not None]
    for drop, original in zip(small.schedule.drops, rates, strict=True):
        share = original.epoch / code145.schedule.epochs
        assert drop.epoch == round(share * small.schedule.epochs)
        assert drop.rate is not None and original.rate is not None
        assert drop.rate == pytest.approx(original.rate * by_batch)
    crop, original_crop = (c.model.input_size / c.data.store_size for c in (small, code145))
    assert crop == pytest.approx(original_crop, abs=0.01)


@pytest.mark.parametrize(("former", "current"), FORMER_EXPERIMENTS.items())
def test_a_former_name_of_an_experiment_composes_the_current_one(current: str, former: str) -> None:
    assert current in EXPERIMENTS
    assert former not in EXPERIMENTS
    assert composed(f"experiment={former}") == composed(f"experiment={current}")
    assert with_current_names(f"experiment={former},x") == f"experiment={current},x"


def test_only_experiments_are_renamed() -> None:
    assert with_current_names("init_from=runs/effects/quick") == "init_from=runs/effects/quick"
    assert with_current_names("experiment=lrn_cifar10/full") == "experiment=lrn_cifar10/full"


def test_presets_have_two_spellings() -> None:
    assert composed("model=small") == composed("preset=small")
    assert composed("model=one_gpu") == composed("ablation=one_gpu")


def test_a_recipe_selects_its_own_schedule_by_default() -> None:
    assert composed("recipe=code145").schedule.epochs == 91
    assert composed("recipe=code145", "schedule=paper").schedule.epochs == 90


@given(count=st.integers(1, 5000), width=st.floats(1e-3, 4), towers=st.integers(1, 4))
def test_scaled_counts_divide_over_the_towers_and_are_the_nearest_such_counts(
    count: int, width: float, towers: int
) -> None:
    result = scaled(count * towers, width, towers)
    assert result >= towers
    assert result % towers == 0
    exact = count * towers * width
    assert abs(result - exact) <= towers / 2 + 1e-9 * exact or result == towers


@given(count=st.integers(1, 5000), towers=st.integers(1, 4))
def test_full_width_changes_no_count(count: int, towers: int) -> None:
    assert scaled(count, 1.0, towers) == count


@given(
    count=st.integers(2, 5000),
    widths=st.tuples(st.floats(1e-3, 4), st.floats(1e-3, 4)),
)
def test_a_wider_network_never_has_fewer_kernels(count: int, widths: tuple[float, float]) -> None:
    low, high = sorted(widths)
    assert scaled(2 * count, low, 2) <= scaled(2 * count, high, 2)


@given(world_size=st.integers(-3, 50), towers=st.integers(1, 6))
def test_a_world_size_is_one_or_a_multiple_of_the_towers(world_size: int, towers: int) -> None:
    fits = world_size == 1 or (world_size >= 1 and world_size % towers == 0)
    if fits:
        check_world_size(world_size, towers)
        return
    with pytest.raises(ConfigError) as error:
        check_world_size(world_size, towers)
    assert error.value.key == "mesh.processes"


@given(kernels=st.integers(-3, 200), towers=st.integers(1, 8))
def test_suggested_kernel_counts_are_valid(kernels: int, towers: int) -> None:
    recipe = deepcopy(PAPER)
    recipe.towers, recipe.conv1.kernels = towers, kernels
    for conv in (recipe.conv2, recipe.conv3, recipe.conv4, recipe.conv5):
        conv.kernels = 8 * 7 * 5 * 3
    recipe.fc6.units = recipe.fc7.units = 8 * 7 * 5 * 3
    if kernels >= 1 and kernels % towers == 0:
        check_recipe(recipe, ModelConfig())
        return
    with pytest.raises(ConfigError) as error:
        check_recipe(recipe, ModelConfig())
    assert error.value.key == "recipe.conv1.kernels"
    for choice in error.value.remedy.split("; use ")[1].split(" or "):
        recipe.conv1.kernels = int(choice)
        check_recipe(recipe, ModelConfig())


def test_an_error_is_one_line_of_key_value_and_remedy() -> None:
    error = ConfigError("model.width", math.inf, "use 1")
    assert str(error) == "model.width=inf: use 1"
    assert isinstance(error, ValueError)


def attributes_read(source: str) -> set[str]:
    nodes = ast.walk(ast.parse(source))
    return {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}


def unread(schema: type, read: set[str]) -> set[str]:
    """Fields of a schema and of its groups whose names are never read."""
    hints = get_type_hints(schema)
    found = {f"{schema.__name__}.{name}" for name in hints if name not in read}
    for hint in hints.values():
        if isinstance(hint, type) and is_dataclass(hint):
            found |= unread(hint, read)
    return found


def test_every_setting_has_a_reader() -> None:
    read: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if path.name not in ("schema.py", "inference_schema.py"):
            read |= attributes_read(path.read_text(encoding="utf-8"))
    read |= {*RecipeConfig().convs, *RecipeConfig().hidden}  # read in loops, by these names
    read.add("present")  # by the loops themselves
    schemas = (
        *(TrainConfig, PrepareConfig, EvaluateConfig, PlanConfig, DropConfig),
        *(PredictConfig, ServeConfig, FeaturesConfig, NearestConfig, ExportConfig, ImportConfig),
    )
    assert set().union(*(unread(schema, read) for schema in schemas)) == set()


def test_a_setting_without_a_reader_is_detected() -> None:
    @dataclass
    class Made:
        used: int = 0
        forgotten: int = 0

    read = attributes_read("print(made.used); made.forgotten = 1")
    assert {name.split(".")[-1] for name in unread(Made, read)} == {"forgotten"}


def without_role(schema: type, root: type | None = None, prefix: str = "") -> set[str]:
    """Keys of a schema, outside groups, that have no role."""
    keys = set()
    for name, hint in get_type_hints(schema).items():
        if isinstance(hint, type) and is_dataclass(hint):
            keys |= without_role(hint, root or schema, f"{prefix}{name}.")
        elif role_of(root or schema, f"{prefix}{name}") is None:
            keys.add(f"{prefix}{name}")
    return keys


def test_every_setting_of_a_run_has_a_role() -> None:
    assert without_role(TrainConfig) == set()


def test_a_setting_without_a_role_is_detected() -> None:
    @dataclass
    class Group:
        inherited: int = 0
        overridden: int = field(default=0, metadata={"role": Role.length})

    @dataclass
    class Made:
        group: Group = field(default_factory=Group, metadata={"role": Role.logging})
        bare_group: Group = field(default_factory=Group)
        bare: int = 0

    globals().update(Group=Group)  # where get_type_hints looks for it
    try:
        assert without_role(Made) == {"bare_group.inherited", "bare"}
        assert role_of(Made, "group.inherited") is Role.logging
        assert role_of(Made, "group.overridden") is Role.length
        assert role_of(Made, "group.unknown") is Role.logging
        assert role_of(Made, "unknown") is None
    finally:
        del globals()["Group"]


def test_these_settings_must_match_on_resume_and_no_others() -> None:
    """The weights depend on them; other settings may change when a run resumes."""
    changing_weights = {
        key.split(".")[0] if key.startswith(("recipe.", "model.", "schedule.")) else key
        for key in flatten(to_plain(composed()))
        if role_of(TrainConfig, key) in (Role.variant, Role.identity)
    }
    assert changing_weights == {
        *("recipe", "model", "schedule", "precision", "seed", "init_from", "init_layers"),
        *("data.batch_size", "data.limit", "data.store_size"),
        *("data.first_classes", "data.skip_classes"),
    }
    groups = ("recipe", "model", "schedule")
    others = {
        key
        for key in flatten(to_plain(composed()))
        if key.startswith(groups) and role_of(TrainConfig, key) is Role.length
    }
    assert others == {"schedule.epochs"}
