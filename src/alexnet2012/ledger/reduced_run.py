"""Claims that the evaluation of one reduced network illustrates."""

from __future__ import annotations

from dataclasses import dataclass

from alexnet2012.data.store import Store
from alexnet2012.ledger.claims import Measurement, Scale
from alexnet2012.ledger.nearest_neighbours import Neighbours, neighbours_measurement
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.results import Evaluation
from alexnet2012.ledger.training_runs import chance_error_pct
from alexnet2012.utils.metrics import ErrorCounts, error_interval_pct


@dataclass(frozen=True)
class ReducedRun:
    """A trained reduced network and its data."""

    store: Store
    evaluation: Evaluation  # with 10 views
    neighbours: Neighbours


def evaluation_row(errors: ErrorCounts, views: int, classes: int) -> Evaluation:
    """Validation errors in the form that the report shows."""
    return Evaluation(
        views=views,
        pictures=errors.pictures,
        top1_error_pct=errors.top1_error_pct,
        top5_error_pct=errors.top5_error_pct,
        top1_interval_pct=error_interval_pct(errors.top1_errors, errors.pictures),
        top5_interval_pct=error_interval_pct(errors.top5_errors, errors.pictures),
        chance_top1_error_pct=chance_error_pct(classes, 1),
        chance_top5_error_pct=chance_error_pct(classes, 5),
    )


@measures("data", part="reduced")
def data_measurement(
    run: ReducedRun, scale: Scale, caveat: str | None, command: str
) -> Measurement:
    """The size of the data set that stands in for ILSVRC."""
    train, val = (len(run.store.split(name).labels) for name in ("train", "val"))
    classes = len(run.store.classes)
    return Measurement(
        claim="data",
        value=f"{train:,} training and {val:,} validation images of {classes:,} classes; no test "
        "images",
        scale=scale,
        command=command,
        numbers={"train": train, "val": val, "classes": classes},
        caveat=caveat,
        agreement_note="a different data set",
    )


@measures("lsvrc2010", part="reduced")
def error_measurement(
    run: ReducedRun, scale: Scale, caveat: str | None, command: str
) -> Measurement:
    """Validation errors of one network with ten views."""
    row = run.evaluation
    errors = f"{row['top1_error_pct']:.2f} / {row['top5_error_pct']:.2f}"
    chance = f"{row['chance_top1_error_pct']:.1f} / {row['chance_top5_error_pct']:.1f}"
    return Measurement(
        claim="lsvrc2010",
        value=f"{errors} on {row['pictures']:,} images; chance is {chance}",
        scale=scale,
        command=command,
        numbers={
            "top1_error_pct": row["top1_error_pct"],
            "top5_error_pct": row["top5_error_pct"],
            "pictures": row["pictures"],
        },
        caveat=caveat,
        interval=row["top1_interval_pct"],
        agreement_note="another network on other images: the errors are not comparable",
    )


@measures("fig4", part="reduced")
def figure4_measurement(
    run: ReducedRun, scale: Scale, caveat: str | None, command: str
) -> Measurement:
    """How often the nearest training images have the class of the query."""
    return neighbours_measurement(run.neighbours, scale, caveat, command)
