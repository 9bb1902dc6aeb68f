"""A sweep of ablations from the command line, interrupted and continued."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from documented import printed
from omegaconf import OmegaConf
from PIL import Image
from programs import ON_ONE_CORE, module, run, succeed

from alexnet2012.checkpoint import manifest
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Budget, Device
from alexnet2012.config.schema import PrepareConfig, ReproduceConfig, TrainConfig
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.store import Store
from alexnet2012.distributed.mesh import single_process
from alexnet2012.ledger.claims import Scale
from alexnet2012.ledger.evidence import Evidence, save_evidence
from alexnet2012.ledger.measurements.ablations import (
    effect_measurements,
    effects,
    errors_of_baseline,
    read_claimed,
    read_sweep,
)
from alexnet2012.ledger.measurements.ensembles import evaluate_seeds, seed_measurements
from alexnet2012.ledger.measurements.nearest_neighbours import figure4, neighbours_measurements
from alexnet2012.ledger.measurements.pretraining import pretrain_measurements, read_pretraining
from alexnet2012.ledger.measurements.tower_colour import colour_of_sweep
from alexnet2012.ledger.registry import measure
from alexnet2012.ledger.reproduction import Reproduce
from alexnet2012.ledger.results import save_reproduction
from alexnet2012.ledger.sweeps import Sweeps
from alexnet2012.ledger.verdicts import Verdict, verdicts
from alexnet2012.ledger.verify import verify
from alexnet2012.training.trainer import Trainer
from alexnet2012.utils.environment import running_commit

ABLATIONS = ("none", "no_lrn", "no_dropout")


def small(store: Store, root: Path) -> list[str]:
    """What makes a run of such a sweep one of a second."""
    return [
        "data=store",
        f"data.store={store.root}",
        f"hydra.sweep.dir={root}",
        "model.width=0.04",
        "schedule.epochs=2",
        "schedule.drops=[]",
        "mesh.device=cpu",
    ]


def command(store: Store, root: Path, *more: str) -> list[str]:
    words = ("-m", "experiment=ablations/quick", *small(store, root))
    return [*ON_ONE_CORE, *module("train", *words, *more)]


def results(root: Path) -> dict[str, str]:
    return {
        str(file.relative_to(root)): file.read_text()
        for name in ("metrics.jsonl", "summary.json")
        for file in sorted(root.glob(f"*/*/{name}"))
    }


@pytest.fixture(scope="module")
def swept(photos_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("swept") / "runs" / "ablations-quick"
    # fmt: off
    words = printed("python -m alexnet2012.train -m experiment=ablations/quick ablation=none,no_lrn,no_dropout seed=0,1,2")  # noqa: E501
    # fmt: on
    succeed([*ON_ONE_CORE, *words, *small(photos_store, root)], root.parents[1])
    return root


def test_every_ablation_and_seed_has_a_directory_and_a_row_of_the_table(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {str(p.parent.relative_to(swept)) for p in swept.glob("*/*/summary.json")} == {
        f"{ablation}/{seed}" for ablation in ABLATIONS for seed in (0, 1, 2)
    }
    found = effects(read_sweep(swept))
    assert {effect["arm"] for effect in found} == {"no_lrn", "no_dropout"}
    assert all(effect["seeds"] == [0, 1, 2] for effect in found)
    commits = {r.commit for results in read_sweep(swept).values() for r in results.values()}
    assert commits == {running_commit()[0]}
    _, _, name, *words = printed("python -m alexnet2012.ledger runs/ablations-quick")
    monkeypatch.chdir(swept.parents[1])
    monkeypatch.setattr("sys.argv", [name, *words])
    import_module(f"{name}.__main__").main()
    out = capsys.readouterr().out
    assert all(ablation in out for ablation in ABLATIONS[1:])
    assert "lsvrc2010-1crop" in out
    monkeypatch.setattr("sys.argv", ["effects", "runs/effects-quick"])  # a former spelling of both
    import_module("alexnet2012.effects").main()
    out = capsys.readouterr().out
    assert all(ablation in out for ablation in ABLATIONS[1:])
    assert "lsvrc2010-1crop" not in out


def test_the_same_command_repeats_what_was_cut_off_and_adds_what_is_new_past_what_fails(
    photos_store: Store, swept: Path, tmp_path: Path
) -> None:
    before = results(swept)
    cut_off = swept / "no_lrn" / "1"
    (cut_off / "summary.json").unlink()
    lines = (cut_off / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut_off / "metrics.jsonl").write_text("".join(lines[:2]))
    for saved in (cut_off / "checkpoints").iterdir():
        saved.rename(tmp_path / saved.name)
    finished = [file.parent / "metrics.jsonl" for file in swept.rglob("summary.json")]
    when = {file: file.stat().st_mtime_ns for file in finished}
    again = run(command(photos_store, swept, "ablation=none,no_lrn", "seed=-1,0,1,3"), tmp_path)
    assert (again.code, again.left) == (2, [])
    assert again.err == "alexnet2012: seed=-1: must be at least 0\n"
    assert again.out.count("already finished, left unchanged") == 3
    assert {file: file.stat().st_mtime_ns for file in when} == when
    after = results(swept)
    repeated = "no_lrn/1/summary.json"
    mine, theirs = (json.loads(text.pop(repeated)) for text in (after, before))
    assert mine["top1_error_pct"] == theirs["top1_error_pct"]
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2 * 2


def test_two_seeds_are_inconclusive(swept: Path) -> None:
    found = seed_measurements(swept, Scale.reduced, "…", "tiny", only=[0, 1])
    assert [m.claim for m in found] == ["lsvrc2010-1crop", "table2"]
    assert {verdict for verdict, _ in verdicts(found).values()} == {Verdict.inconclusive}
    assert [m.n_seeds for m in found] == [2] * 2
    base = read_sweep(swept, [0, 1])["none"]
    ten = sum(run.errors["top1_error_pct"] for run in base.values()) / 2  # 10 views, when trained
    assert f"{ten:.2f} / " in found[0].value.rpartition(", ")[2]


def test_the_evidence_of_a_real_sweep_gives_its_ledger_again(swept: Path, tmp_path: Path) -> None:
    how = (Scale.reduced, "…", "tiny")
    measurements = measure("ablations", swept, *how, only=[0, 1, 2])
    save_reproduction({"measurements": [m.to_json() for m in measurements]}, tmp_path)
    runs, views = read_claimed(swept, "ablations", [0, 1, 2]), evaluate_seeds(swept, [0, 1, 2])
    samples = {m.claim: m.sample for m in measurements if m.sample}
    save_evidence(Evidence({"ablations": runs, "views": views}, samples), tmp_path)
    found = verify(tmp_path)
    assert found.differences == []
    assert {"lrn", "dropout", "lsvrc2010-1crop", "table2"} <= set(found.claims)
    assert found.runs == 9 + 3 + 3 + 1
    (lrn,) = (m for m in measurements if m.claim == "lrn")
    assert lrn.estimates[0].images == 48
    assert "a gap of" in errors_of_baseline(runs)
    digests = {run.settings_digest for run in runs["none"].values()}
    assert len(digests) == 1
    assert digests != {run.settings_digest for run in runs["no_lrn"].values()}


def test_the_images_of_figure_4_match_its_labels(swept: Path, photos_store: Store) -> None:
    figure = figure4(swept / "none" / "0")
    found, pictures = figure.lookalikes, figure.images
    of_class, in_pixels = neighbours_measurements(figure.neighbours, Scale.reduced, "…", "tiny")
    assert pictures.shape == (8 + 5 * 7, 72, 72, 3)
    assert [len(guess["guesses"]) for guess in found["guesses"]] == [5] * 8
    assert [len(near) for near in found["nearest"]] == [6] * 5
    classes = set(photos_store.classes)
    assert classes.issuperset([*found["queries"], *chain(*found["nearest"])])
    assert of_class.numbers["queries"] == len(photos_store.split("val").labels)
    assert of_class.numbers["chance_pct"] == pytest.approx(100 / 16, abs=3)
    assert in_pixels.claim == "fig4-pixels"
    found_by_pixels = nearest_in_pixels(photos_store, 6)
    assert figure.neighbours.by_pixels.tolist() == found_by_pixels


def nearest_in_pixels(store: Store, count: int) -> list[list[int]]:
    """The training images nearest to each validation image, by the pixels of their files."""
    train, val = (
        np.stack([np.asarray(Image.open(path)) for path in store.split(name).paths])
        for name in ("train", "val")
    )
    crop = (slice(None), slice(4, 68), slice(4, 68))  # 64 of 72 pixels
    candidates, queries = (images[crop].reshape(len(images), -1) for images in (train, val))
    distances = ((queries[:, None].astype(float) - candidates) ** 2).sum(2)
    return np.argsort(distances, axis=1)[:, :count].tolist()


def test_a_network_is_pretrained_on_five_classes_and_fine_tuned_on_five_others(
    photos_store: Store, tmp_path: Path
) -> None:
    arms = "few_classes_equal_steps,other_classes,pretrained_other"
    words = command(photos_store, tmp_path / "runs", f"ablation={arms}")
    words[words.index("experiment=ablations/quick")] = "experiment=pretrain/quick"
    ended = succeed([*words, "seed=0,1"], tmp_path)
    assert (
        ended.err.count("initialized layers from") + ended.out.count("initialized layers from") == 2
    )
    source, target, control = (
        manifest.read_progress(manifest.latest(tmp_path / "runs" / name / "1") or Path())
        for name in ("other_classes", "pretrained_other", "few_classes_equal_steps")
    )
    assert target.classes == control.classes == list(photos_store.classes[:5])
    assert source.classes == list(photos_store.classes[5:10])
    assert source.step + target.step == control.step
    (pretrain,) = pretrain_measurements(tmp_path / "runs", Scale.reduced, "…", "tiny")
    assert (pretrain.n_seeds, pretrain.interval) == (2, None)
    runs = read_pretraining(tmp_path / "runs")
    scratch, pretrained = (
        [run.errors["top1_error_pct"] for run in runs[name].values()]
        for name in ("few_classes_equal_steps", "pretrained_other")
    )
    gain = sum(scratch) / 2 - sum(pretrained) / 2
    assert pretrain.numbers["top1_gain_points"] == pytest.approx(gain)


def test_random_labels_support_no_claim(photos_folder: Path, tmp_path: Path) -> None:
    draw = random.Random(1)  # of one draw in forty a claim would be supported, by chance
    classes = sorted(folder.name for folder in (photos_folder / "train").iterdir())
    for file in sorted(photos_folder.rglob("*.jpg")):
        split = file.relative_to(photos_folder).parts[0]
        folder = tmp_path / "drawn" / split / draw.choice(classes[:4])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / f"{file.parent.name}-{file.name}")
    settings = PrepareConfig(str(tmp_path / "drawn"), str(tmp_path / "store"), size=72, workers=1)
    store = prepare(settings, progress=False)
    words = ["experiment=ablations/quick", "mesh=one_process", *small(store, tmp_path / "runs")]
    for ablation in (*ABLATIONS, "one_gpu"):
        config, _ = compose_config("train", TrainConfig, [*words, f"ablation={ablation}"])
        for seed in range(3):
            run_dir = tmp_path / "runs" / ablation / str(seed)
            run_dir.mkdir(parents=True)
            Trainer(replace(config, seed=seed), single_process(Device.cpu), run_dir).run()
    how = (Scale.reduced, "…", "tiny")
    found = effect_measurements(read_sweep(tmp_path / "runs"), *how)
    found += seed_measurements(tmp_path / "runs", *how)
    found.append(colour_of_sweep(tmp_path / "runs", *how))
    neighbours = figure4(tmp_path / "runs" / "none" / "0").neighbours
    found += neighbours_measurements(neighbours, *how)
    assert {m.claim for m in found} >= {
        "lrn", "dropout", "two-gpu", "lsvrc2010-1crop", "table2", "fig3", "fig4", "fig4-pixels"
    }  # fmt: skip
    # What is near in pixels does not depend on labels.
    found = [m for m in found if m.claim != "fig4-pixels"]
    assert [m.claim for m in found if m.agrees] == []
    supported = {Verdict.supported, Verdict.in_direction}
    assert not supported & {verdict for verdict, _ in verdicts(found).values()}


@pytest.fixture
def rehearsal(photos_folder: Path, tmp_path: Path) -> ReproduceConfig:
    """Design C, full size on a GPU, with a few kernels and one epoch on a CPU."""
    few = ["model.width=0.03", "schedule.epochs=1", "schedule.drops=[]", "mesh.device=cpu"]
    return ReproduceConfig(
        source=str(photos_folder),
        out=str(tmp_path / "out"),
        budget=Budget.gpu,
        parts=["ablations"],
        arms=["no_lrn"],
        seeds=1,
        rate_factors=[1.0],
        overrides=[*few, "data.keep=memory", "data.limit=2"],
        jobs="auto",
    )


def test_the_gpus_design_runs_from_images_to_the_report_and_continues_where_it_was_cut_off(
    rehearsal: ReproduceConfig,
) -> None:
    out, experiment = Path(rehearsal.out), "ablations/gpu"
    runs = out / "runs" / experiment
    Sweeps(rehearsal, out, experiment).train_ablations(experiment, ["none"])
    missing, kept = (runs / name / "0" / "summary.json" for name in ("no_lrn", "none"))
    trained_at = kept.stat().st_mtime_ns
    settings = OmegaConf.load(runs / "none" / "0" / "config.yaml")
    assert (settings.model.input_size, settings.data.batch_size) == (224, 128)

    assert Reproduce(rehearsal).run() == 0
    assert sorted(runs.glob("*/*/summary.json")) == [missing, kept]
    assert kept.stat().st_mtime_ns == trained_at
    rows = {row["id"]: row for row in json.loads((out / "ledger.json").read_text())["rows"]}
    measured = {claim for claim, row in rows.items() if row["measured"]}
    assert measured >= {"lrn", "fig3", "fig4", "fig4-pixels", "lsvrc2010-1crop"}
    assert "budget=gpu" in rows["lrn"]["measured"]["command"]
    assert {"fig3", "fig4", "fig4-pixels", "lrn"} <= set(verify(out).claims)
    assert verify(out).differences == []


@pytest.mark.parametrize("launcher", ["submitit", "ray"])
def test_jobs_of_a_cluster_launcher_run_and_fail_in_their_own_processes(
    launcher: str, photos_store: Store, tmp_path: Path
) -> None:
    pytest.importorskip(
        f"hydra_plugins.hydra_{launcher}_launcher", reason="optional: docs/ledger.md"
    )
    name = {"submitit": "submitit_local", "ray": "ray"}[launcher]
    more = (f"hydra/launcher={name}", "mesh=two_towers", "seed=0,-1")
    ended = run(command(photos_store, tmp_path / "runs", *more)[len(ON_ONE_CORE) :], tmp_path)
    assert ended.code == 2
    assert "alexnet2012: seed=-1: must be at least 0" in ended.err.splitlines()
    assert ended.left == []
    summary = json.loads((tmp_path / "runs" / "none" / "0" / "summary.json").read_text())
    assert summary["world_size"] == 2
