"""Evaluate a trained model: ``python -m alexnet2012.evaluate checkpoint=RUN [views=10] …``.

Prints top-1 and top-5 errors on the validation images. Several checkpoints form an ensemble, whose
probabilities are averaged.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.schema import EvaluateConfig
from alexnet2012.inference.evaluate import evaluate_checkpoints
from alexnet2012.utils.files import naming
from alexnet2012.utils.intervals import error_interval_pct


def run(config: EvaluateConfig, run_dir: Path) -> None:
    errors = evaluate_checkpoints(config)
    result = {"checkpoint": config.checkpoint, "views": config.views, **errors.summary()}
    document = json.dumps(result, indent=1) + "\n"
    if config.out is not None:
        out = Path(config.out)
        with naming(out):
            out.write_text(document, encoding="utf-8")
    if config.json:
        sys.stdout.write(document)
        return
    views = "1 view" if config.views == 1 else f"average of {config.views} views"
    table = Table()
    for heading in ("", "error (%)", "95% interval"):
        table.add_column(heading, justify="right")
    for name, count in (("top-1", errors.top1_errors), ("top-5", errors.top5_errors)):
        low, high = error_interval_pct(count, errors.pictures)
        table.add_row(name, f"{100 * count / errors.pictures:.2f}", f"{low:.2f} – {high:.2f}")
    console = Console()
    console.print(f"{errors.pictures:,} validation images, {views}", highlight=False)
    console.print(table)


def main() -> None:
    hydra_main("evaluate", EvaluateConfig, run)


if __name__ == "__main__":
    main()
