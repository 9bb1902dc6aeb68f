"""The report's page and figures as text; tests/e2e/test_report_page.py opens it in a browser."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alexnet2012.ledger.claims import Measurement, Scale, load_claims
from alexnet2012.ledger.report.context import scientific, view
from alexnet2012.ledger.report.render import claims_table, write_report
from alexnet2012.ledger.report.svg import Curve, ReferenceLine, line_chart, two_towers
from alexnet2012.ledger.results import Reproduction, load_reproduction, save_reproduction
from alexnet2012.ledger.statistics import Design, Estimate
from alexnet2012.tracking.image_grids import kernel_pictures

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)> \" ' $x_1$ {{ 7 * 7 }}"


class Page(HTMLParser):
    """Every tag of a page with its attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(reproduction: Reproduction, tmp_path: Path) -> Page:
    return Page(write_report(reproduction, tmp_path).read_text(encoding="utf-8"))


def small() -> Reproduction:
    return {
        "provenance": {"commit": "abc", "classes": [HOSTILE], "data_caveat": HOSTILE},
        "audit": {
            "recipe": HOSTILE,
            "layers": [
                {"name": "conv1", "kernels": 4, "weights": 30, "biases": 10, "neurons": 7,
                 "multiply_adds": 100},
                {"name": HOSTILE, "kernels": 2, "weights": 50, "biases": 10, "neurons": 3,
                 "multiply_adds": 200},
            ],
        },
        "exactness": [{"quantity": HOSTILE, "recipe": "paper", "dtype": "float64",
                       "worst_relative_difference": 3.1e-15, "bound": 1e-12}],
        "exchanges": [{"layer": HOSTILE, "direction": "forward", "bytes_per_image": 8,
                       "expected_bytes_per_image": 8}],
        "runs": {"reduced": {"label": HOSTILE, "steps": [1, 2, 3], "loss": [3.0, 2.0, 1.0],
                             "note": HOSTILE, "command": HOSTILE}},
        "kernels": torch.ones(4, 3, 11, 11),
        "lookalikes": {"guesses": [{"label": HOSTILE, "guesses": [HOSTILE, "cat"],
                                    "probabilities": [0.75, 0.25]}],
                       "queries": [HOSTILE], "nearest": [[HOSTILE, "cat"]]},
        "pictures": torch.zeros(4, 8, 8, 3, dtype=torch.uint8),
        "ablations": [{"name": "relu", "title": HOSTILE,
                       "arms": [{"label": HOSTILE, "epochs": [0, 1], "train_error_pct": [90, 20]},
                                {"label": "tanh", "epochs": [0, 1], "train_error_pct": [90, 50]}]}],
        "measurements": [
            Measurement("relu", HOSTILE, Scale.reduced, HOSTILE, caveat=HOSTILE,
                        timings={"images_per_s": 2.0}).to_json()],
        "warnings": [HOSTILE],
    }  # fmt: skip


def test_text_of_the_data_never_becomes_markup(tmp_path: Path) -> None:
    page = page_of(small(), tmp_path)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert all((attrs["src"] or "").startswith("data:") for t, attrs in page.tags if t == "img")
    assert page.text.count("<script>alert(1)</script>") > 10
    assert "{{ 7 * 7 }}" in page.text  # template syntax of a class name stays text, too


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    path = write_report(small(), tmp_path)
    page = Page(path.read_text(encoding="utf-8"))
    links = [a.get(name) for _, a in page.tags for name in ("src", "href", "xlink:href", "srcset")]
    foreign = [link for link in links if link and not link.startswith(("data:", "#"))]
    assert foreign == []
    assert "url(http" not in page.text
    assert "@import" not in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "base"}


def test_an_empty_reproduction_still_shows_the_whole_ledger(tmp_path: Path) -> None:
    page = page_of({}, tmp_path)
    claims = [attrs for tag, attrs in page.tags if tag == "tr" and attrs.get("class") == "claim"]
    assert len(claims) == len(load_claims())
    assert page.text.count("Not measured") == len(load_claims())


def test_every_anchor_has_a_target_and_ids_are_unique(tmp_path: Path) -> None:
    page = page_of(small(), tmp_path)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    anchors = {a["href"] for tag, a in page.tags if tag == "a" and a.get("href")}
    assert {anchor.removeprefix("#") for anchor in anchors if anchor} <= set(ids)


def test_the_page_works_with_a_screen_reader(tmp_path: Path) -> None:
    page = page_of(small(), tmp_path)
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")
    tables = "".join(tag for tag, _ in page.tags if tag in ("table", "caption"))
    assert tables == "tablecaption" * tables.count("table")
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_the_table_of_claims_has_only_those_with_several_seeds() -> None:
    how = {"scale": Scale.reduced, "command": "…", "caveat": "tiny"}
    estimate = Estimate("no_lrn", "top1_error_pct", 2.5, Design(3, 0.2, 9, 0.2), claimed=1.4)
    lrn = Measurement("lrn", "no_lrn: +2.50 | odd", n_seeds=3, estimates=(estimate,), **how)
    dropout = Measurement("dropout", "no_dropout: -1", n_seeds=1, **how)
    lines = claims_table({"measurements": [lrn.to_json(), dropout.to_json()]}).splitlines()
    assert len(lines) == 3
    title, value, claimed, inside, seeds, power, *_, scale, verdict = lines[2][2:-2].split(" | ")
    assert (title, value) == ("Local response normalisation", r"no_lrn: +2.50 \| odd")
    assert (claimed, inside, seeds, power) == ("+1.40", "no", "3 and 9", "100%")
    assert (scale, verdict) == ("measured at reduced scale", "supported in direction")


def test_a_claim_shows_its_measured_effect_below_the_reported_one() -> None:
    reproduction = small()
    effect = {"arm": "no_lrn", "metric": "top1_error_pct", "seeds": [0, 1, 2],
              "mean_points": 2.5, "interval_points": (1.0, 4.0), "base_mean_pct": 40.0}  # fmt: skip
    reproduction["effects"] = [effect]  # type: ignore[list-item]
    rows = {row["id"]: row for row in view(reproduction)["ledger"]["rows"]}
    assert "the paper +1.4, no_lrn +2.5" in rows["lrn"]["figures"][0]
    assert rows["dropout"]["figures"] == rows["size"]["figures"] == []


def test_the_effect_on_cifar10_has_its_own_row() -> None:
    reproduction = small()
    effect = {"arm": "no_lrn_cifar10", "metric": "top1_error_pct", "seeds": [0, 1, 2],
              "mean_points": 1.5, "interval_points": (1.0, 2.0), "base_mean_pct": 40.0}  # fmt: skip
    reproduction["cifar10_effects"] = [effect]  # type: ignore[list-item]
    rows = {row["id"]: row for row in view(reproduction)["ledger"]["rows"]}
    assert "the paper +2.0, no_lrn_cifar10 +1.5" in rows["lrn-cifar10"]["figures"][0]
    assert rows["lrn"]["figures"] == []


def test_the_evidence_of_the_repository_is_in_the_row_of_its_claim(tmp_path: Path) -> None:
    def committed(name: str, n_seeds: int, **row: str) -> dict[str, object]:
        shown = {"title": "Dropout", "value": f"of {name}", "verdict": "supported", **row}
        return {"name": name, "data": HOSTILE, "commit": "0123456789ab", "date": "2026-01-31",
                "rows": [{**shown, "n_seeds": n_seeds}]}  # fmt: skip

    reproduction = small()
    reproduction["committed"] = [
        committed("quick", 2, claim="dropout"),
        committed("long", 5, claim="dropout"),
        committed("older", 3, title="Depth", verdict="measured at reduced scale"),
    ]  # type: ignore[typeddict-item]
    rows = {row["id"]: row for row in view(reproduction)["ledger"]["rows"]}
    assert [e["name"] for e in rows["dropout"]["evidence"]] == ["long", "quick"]
    assert [e["name"] for e in rows["depth"]["evidence"]] == ["older"]
    assert rows["lrn"]["evidence"] == []
    text = page_of(reproduction, tmp_path).text
    assert "5 seeds, long, commit 0123456" in text


def test_a_claim_shows_learning_curves_of_baseline_and_ablation() -> None:
    reproduction = small()
    reproduction["learning_curves"] = {"none": [60.0, 40.0], "no_lrn": [70.0, 55.0]}
    rows = {row["id"]: row for row in view(reproduction)["ledger"]["rows"]}
    (drawn,) = rows["lrn"]["figures"]
    assert "Training error" in drawn
    assert "no_lrn" in drawn
    assert rows["dropout"]["figures"] == []


def test_sums_shares_and_checks_are_computed_from_the_numbers() -> None:
    shown = view(small())
    assert shown["audit"]["parameters"] == 100
    assert [row["share_pct"] for row in shown["audit"]["rows"]] == [40, 60]
    assert shown["exactness"][0]["ok"]
    assert shown["exchanges"]["ok"]


def test_a_failed_check_shows_as_failed() -> None:
    broken = small()
    broken["exactness"][0]["worst_relative_difference"] = 1e-3
    broken["exchanges"][0]["bytes_per_image"] = 9
    shown = view(broken)
    assert not shown["exactness"][0]["ok"]
    assert not shown["exchanges"]["ok"]
    broken["exactness"][0]["worst_relative_difference"] = math.nan
    assert not view(broken)["exactness"][0]["ok"]


def test_saved_files_render_the_same_page(tmp_path: Path) -> None:
    save_reproduction(small(), tmp_path)
    before = write_report(small(), tmp_path / "before").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "alexnet2012.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert len(json.loads((tmp_path / "ledger.json").read_text())["rows"]) == len(load_claims())


def test_a_diverged_run_is_saved_and_rendered(tmp_path: Path) -> None:
    diverged = small()
    diverged["runs"]["reduced"]["loss"] = [3.0, math.inf, math.nan]
    diverged["exactness"][0]["worst_relative_difference"] = math.nan
    save_reproduction(diverged, tmp_path)
    assert "not finite" in page_of(load_reproduction(tmp_path), tmp_path).text


def test_kernels_keep_their_order_and_zero_is_grey() -> None:
    weights = torch.zeros(4, 3, 11, 11)
    weights[0, 0], weights[3, 2] = 1.0, -2.0  # tower 0's first is red, tower 1's last lacks blue
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
        for uri in kernel_pictures(weights, towers=2, zoom=1)
    ]
    assert [picture.shape for picture in pictures] == [(11, 23, 4)] * 2
    assert pictures[0][0, 0].tolist() == [255, 128, 128, 255]
    assert pictures[0][0, 12].tolist() == [128, 128, 128, 255]
    assert pictures[1][5, 22].tolist() == [128, 128, 0, 255]
    assert pictures[0][0, 11, 3] == 0  # the gap is transparent


def test_lines_cross_between_the_towers_only_at_exchanges() -> None:
    layers = [("conv1", 96), ("conv2", 256), ("conv3", 384), ("fc8", 1000)]
    drawing = two_towers(layers, {"conv3": 173_056.0, "logits": 4000.0})
    assert drawing.count('class="crossing"') == 4  # two layers, both ways
    assert "exchanges at conv3, and for the logits" in drawing
    assert "173 kB" in drawing
    assert "48 kernels" in drawing
    assert "500 units" in drawing


def test_a_chart_has_the_colours_of_the_page_and_is_deterministic() -> None:
    curves = [Curve("$paper$", [1, 2], [1.0, None]), Curve("b", [1, 2], [2.0, math.nan])]
    chart = line_chart(curves, "step", "loss", "alt & more", ReferenceLine(1.5, "chance"))
    assert chart == line_chart(curves, "step", "loss", "alt & more", ReferenceLine(1.5, "chance"))
    assert "var(--series-0)" in chart
    assert "var(--series-1)" in chart
    assert "#0a0001" not in chart
    assert "$paper$" in chart
    assert 'aria-label="alt &amp; more"' in chart
    assert "http" not in chart
    assert "<style" not in chart


def test_powers_of_ten_are_superscripts() -> None:
    assert scientific(3.14e-15) == "3.1 × 10<sup>−15</sup>"
    assert scientific(1e-12) == "1 × 10<sup>−12</sup>"
    assert (scientific(0.0), scientific(None), scientific(math.inf)) == ("0", *["not finite"] * 2)
