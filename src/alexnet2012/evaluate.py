"""Evaluate a trained model: ``python -m alexnet2012.evaluate checkpoint=RUN [views=10] …``.

Prints top-1 and top-5 errors on the validation images. Several checkpoints form an ensemble, whose
probabilities are averaged.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.schema import EvaluateConfig
from alexnet2012.utils.files import naming
from alexnet2012.utils.logs import announce


def run(config: EvaluateConfig, run_dir: Path) -> None:
    announce("loading the model")
    from rich.console import Console
    from rich.table import Table

    from alexnet2012.inference.evaluate import evaluate_in_detail
    from alexnet2012.utils.intervals import error_interval_pct

    found = evaluate_in_detail(config, progress=True)
    errors, by_class = found.errors, found.results.mean_class_errors_pct()
    result = {
        "checkpoint": config.checkpoint,
        "views": config.views,
        **errors.summary(),
        "mean_class_top1_error_pct": by_class["top1"],
        "mean_class_top5_error_pct": by_class.get("top5"),
        "images_left_out": found.images_left_out,
    }
    if not errors.has_top5:
        result |= dict.fromkeys(("top5_errors", "top5_error_pct"))
    document = json.dumps(result, indent=1) + "\n"
    if config.out is not None:
        out = Path(config.out)
        with naming(out):
            out.write_text(document, encoding="utf-8")
    if config.json:
        sys.stdout.write(document)
        return
    table = Table()
    for heading in ("", "error (%)", "95% interval"):
        table.add_column(heading, justify="right")
    counts = {"top-1": errors.top1_errors} | (
        {"top-5": errors.top5_errors} if errors.has_top5 else {}
    )
    for name, count in counts.items():
        low, high = error_interval_pct(count, errors.pictures)
        table.add_row(name, f"{100 * count / errors.pictures:.2f}", f"{low:.2f} – {high:.2f}")
    for name, pct in zip(counts, by_class.values(), strict=True):
        table.add_row(f"{name}, mean over classes", f"{pct:.2f}", "")
    views = "1 view" if config.views == 1 else f"average of {config.views} views"
    left_out = found.images_left_out
    others = f"; {left_out:,} images of other classes left out" if left_out else ""
    console = Console()
    console.print(f"{errors.pictures:,} validation images, {views}{others}", highlight=False)
    console.print(table)


def main() -> None:
    hydra_main("evaluate", EvaluateConfig, run)


if __name__ == "__main__":
    main()
