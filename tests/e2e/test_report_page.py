"""The report in a browser: a phone and a desktop, light and dark, by keyboard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from browsing import unreachable, unreadable

from alexnet2012.ledger.claims import Measurement, Scale
from alexnet2012.ledger.report.render import write_report
from alexnet2012.ledger.results import AuditLayer, ExchangeTraffic, Reproduction

LAYERS = [
    ("conv1", 96, 34_848, 96, 290_400, 105_415_200),
    ("conv2", 256, 307_200, 256, 186_624, 223_948_800),
    ("conv3", 384, 884_736, 384, 64_896, 149_520_384),
    ("conv4", 384, 663_552, 384, 64_896, 112_140_288),
    ("conv5", 256, 442_368, 256, 43_264, 74_760_192),
    ("fc6", 4096, 37_748_736, 4096, 4096, 37_748_736),
    ("fc7", 4096, 16_777_216, 4096, 4096, 16_777_216),
    ("fc8", 1000, 4_096_000, 1000, 1000, 4_096_000),
]
FLOATS_ACROSS = {"conv3": 43_264, "fc6": 9216, "fc7": 4096, "fc8": 4096, "logits": 1000}


def curve(steps: int, start: float, rate: float) -> list[float]:
    return [start * math.exp(-rate * i) + 0.06 * math.sin(i * 1.7) for i in range(steps)]


def sample() -> Reproduction:
    """A reproduction as a laptop makes it, every section filled."""
    exchanges: list[ExchangeTraffic] = [
        {"layer": layer, "direction": direction, "bytes_per_image": 4 * floats,
         "expected_bytes_per_image": 4 * floats}
        for layer, floats in FLOATS_ACROSS.items()
        for direction in ("forward", "backward")
        if (layer, direction) != ("logits", "backward")
    ]  # fmt: skip
    names = ("name", "kernels", "weights", "biases", "neurons", "multiply_adds")
    layers: list[AuditLayer] = [dict(zip(names, row, strict=True)) for row in LAYERS]  # type: ignore[misc]
    stream = torch.Generator().manual_seed(0)
    kernels = torch.randn(24, 3, 11, 11, generator=stream)
    kernels[:12] = kernels[:12].mean(1, keepdim=True)
    caveat = "Sixteen photographs, a quarter of the kernels, 112 pixels."
    measurements = [
        Measurement("size", "60,965,224 parameters, 659,272 neurons", Scale.exact, "make reproduce",
                    numbers={"parameters": 60_965_224}, agrees=True,
                    agreement_note="Rounds to the paper's 60 M and 650,000."),
        Measurement("fig2", "290,400", Scale.exact, "make reproduce", agrees=False,
                    agreement_note="The caption's 253,440 misses a factor of 55/48."),
        Measurement("relu", "3.4× sooner", Scale.reduced, "make reproduce", n_seeds=3,
                    interval=(2.1, 4.7), agrees=True, caveat=caveat,
                    agreement_note="Same direction; the factor is of another task."),
        Measurement("time", "throughput of this machine", Scale.reduced, "make reproduce",
                    timings={"images_per_s": 41.25}, caveat="No GPU."),
    ]  # fmt: skip
    steps = list(range(0, 120, 2))
    return {
        "provenance": {
            "commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True, "python": "3.11.2",
            "torch": "2.13.0+cpu", "dali": "2.4.0", "cpu": "Xeon (Sapphire Rapids)", "cores": 2,
            "gpu": None, "date": "2026-01-31", "command": "make reproduce", "seeds": [0, 1, 2],
            "data_description": "16 photographs of scikit-image, 2,048 training pictures cut from "
            "them and 256 for validation",
            "data_caveat": "The pictures are cuts of 16 photographs, the net has a quarter of the "
            "kernels: this is no evidence about ImageNet, whatever the errors below.",
            "store_fingerprint": "b1946ac92492d2347c6235b4d2611184", "processes": 2,
            "classes": ["astronaut", "<b>cat</b>", "coffee", "rocket"],
        },
        "audit": {"recipe": "paper", "layers": layers},
        "exactness": [
            {"quantity": quantity, "recipe": recipe, "dtype": dtype,
             "worst_relative_difference": worst, "bound": bound}
            for recipe in ("paper", "code145")
            for quantity, dtype, worst, bound in (
                ("logits", "float64", 3.1e-15, 1e-12),
                ("gradients", "float64", 2.4e-14, 1e-12),
                ("weights after 3 steps", "float64", 0.0, 1e-12),
                ("logits", "float32", 4.2e-6, 1e-4))
        ],
        "exchanges": exchanges,
        "runs": {
            "full_paper": {"label": "paper", "config": "60,965,224 parameters, batch 16, rate 0.01",
                           "steps": steps, "loss": [2.77 + 0.04 * math.sin(i) for i in steps],
                           "chance_loss": math.log(16), "images_per_s": 6.4,
                           "note": "Stays at chance for as long as it ran.",
                           "command": "make reproduce"},
            "full_code145": {"label": "code #145", "config": "the same, recipe code145",
                             "steps": steps, "loss": curve(60, 2.8, 0.03), "images_per_s": 6.1},
            "reduced": {"label": "reduced", "config": "width 0.25, 112 pixels, 20 epochs",
                        "steps": list(range(300)), "loss": curve(300, 2.77, 0.012),
                        "chance_loss": math.log(16), "chance_top1_error_pct": 93.75,
                        "val": [{"epoch": e, "step": 16 * e,
                                 "top1_error_pct": 15 + 79 * math.exp(-e / 5),
                                 "top5_error_pct": 2 + 66 * math.exp(-e / 4)} for e in range(20)],
                        "images_per_s": 81.0, "command": "python -m alexnet2012.train model=small"},
        },
        "evaluation": [
            {"views": views, "pictures": 256, "top1_error_pct": top1, "top5_error_pct": top5,
             "top1_interval_pct": (top1 - 4.6, top1 + 5.1),
             "top5_interval_pct": (top5 - 1.6, top5 + 2.2),
             "chance_top1_error_pct": 93.75, "chance_top5_error_pct": 68.75}
            for views, top1, top5 in ((1, 18.4, 3.1), (10, 16.0, 2.7))
        ],
        "kernels": kernels,
        "kernels_caption": "Of the reduced run, after 20 epochs.",
        "lookalikes": {
            "guesses": [{"label": label, "guesses": ["astronaut", "coffee", "motorcycle_left"],
                         "probabilities": [0.7, 0.2, 0.1]}
                        for label in ("astronaut", "coffee", "retina") for _ in range(2)],
            "queries": ["coffee", "a_class_whose_name_is_long"],
            "nearest": [["coffee"] * 5 + ["rocket"], ["rocket"] * 6],
        },
        "pictures": torch.randint(256, (20, 128, 128, 3), generator=stream, dtype=torch.uint8),
        "ablations": [{
            "name": "relu", "title": "ReLU against tanh", "n_seeds": 3, "threshold_pct": 25.0,
            "note": "The same net and pictures, each arm at the better of two rates.",
            "command": "python -m alexnet2012.train -m model.activation=relu,tanh seed=0,1,2",
            "arms": [
                {"label": "ReLU", "epochs": list(range(20)), "epochs_to_threshold": 7.0,
                 "train_error_pct": [94 * math.exp(-e / 5) for e in range(20)]},
                {"label": "tanh", "epochs": list(range(20)), "epochs_to_threshold": None,
                 "train_error_pct": [94 * math.exp(-e / 16) for e in range(20)]},
            ],
        }],
        "committed": [{
            "name": "imagenette", "data": "Ten classes.", "commit": "53e048bb6648",
            "date": "2026-01-31",
            "rows": [{"claim": "lrn", "title": "Local response normalisation", "n_seeds": 5,
                      "value": "no_lrn: +16.39 points", "verdict": "supported in direction"}],
        }],
        "measurements": [m.to_json() for m in measurements],
    }  # fmt: skip


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(sample(), tmp_path_factory.mktemp("complete"))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report({}, tmp_path_factory.mktemp("empty"))


HEIGHT = "document.documentElement.scrollHeight"
WIDTH = "document.documentElement.scrollWidth"
OPEN_ALL = "document.querySelectorAll('details').forEach((row) => { row.open = true; })"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("content", ["complete", "empty"])
def test_the_page_opens_quietly_fits_and_can_be_read(
    browser: Any, request: pytest.FixtureRequest, content: str, width: int, scheme: str
) -> None:
    path: Path = request.getfixturevalue(content)
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    closed, closed_width = page.evaluate(HEIGHT), page.evaluate(WIDTH)
    page.evaluate(OPEN_ALL)
    opened, opened_width = page.evaluate(HEIGHT), page.evaluate(WIDTH)
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    hard_to_read = unreadable(page)
    page.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert max(closed_width, opened_width) <= width
    assert closed < opened / 2
    assert hard_to_read == []
    channels = [int(c) for c in background.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (max(channels) < 60) == (scheme == "dark")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_row_of_the_ledger_opens_by_keyboard_and_by_its_link(
    browser: Any, complete: Path, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(complete.as_uri())
    row = page.locator("tr.claim:has(#claim-relu)")
    inside = page.locator("tr.claim:has(#claim-relu) + tr.more")
    assert not inside.is_visible()
    row.locator("summary").focus()
    for key, visible in (("Enter", True), ("Enter", False), ("Space", True), ("Space", False)):
        page.keyboard.press(key)
        assert inside.is_visible() == visible, key
    page.goto(complete.as_uri() + "#claim-relu")
    inside.wait_for()
    assert page.locator("tr.more:visible").count() == 1
    page.close()


def test_tab_reaches_every_control(browser: Any, complete: Path) -> None:
    page = browser.new_page()
    page.goto(complete.as_uri())
    assert unreachable(page) == []
    page.close()


def test_no_text_of_a_pictures_class_becomes_markup(browser: Any, complete: Path) -> None:
    page = browser.new_page()
    page.goto(complete.as_uri())
    classes = page.locator("dd", has_text="astronaut")
    assert "<b>cat</b>" in classes.inner_text()
    assert classes.locator("b").count() == 0
    page.close()
