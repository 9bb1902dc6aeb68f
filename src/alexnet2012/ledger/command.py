"""The ``ledger`` command: what a directory of runs measures, and the verdict on each claim.

``ledger verify DIR`` recomputes the verdicts of a reproduction, and ``ledger design EXPERIMENT``
computes the power of a sweep before it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from alexnet2012.cli.args import ArgumentParser
from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.utils.text import say

EPILOG = """\
DIR is the directory of one sweep. Ablations and pretraining have run directories ABLATION/SEED; in
a sweep of ReLU against tanh, finished runs may lie at any depth. Claims about several trained
networks (views, ensembles, colours) are measured by evaluating their checkpoints.

alexnet2012 ledger verify DIR recomputes the verdicts of a reproduction from the evidence in it.
alexnet2012 ledger design EXPERIMENT pilot=DIR prints the power of a sweep before it runs."""
FLAGS = {
    "--json": "print the measurements as JSON",
    "--no-evaluation": "read only logs; do not evaluate checkpoints",
    "--claims": "list all claims and the experiments that measure them; takes no DIR",
    "--authors-runs": "list the authors' own runs and how much they vary; takes no DIR",
}


def main(words: Sequence[str] | None = None) -> None:
    """Run the command with ``words``, by default those of ``sys.argv``."""
    given = list(sys.argv[1:] if words is None else words)
    subcommand = {"verify": _verify, "design": _design}.get(given[0] if given else "")
    exit_on_error(lambda: subcommand(given[1:]) if subcommand else _run(given))


def _verify(words: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="alexnet2012 ledger verify",
        description="Recompute every verdict and interval of DIR/ledger.json from the evidence.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="reproduction directory")
    directory = parser.parse_args(words).directory
    from alexnet2012.ledger.results import damaged_directory
    from alexnet2012.ledger.verify import verify

    with damaged_directory("DIR", directory):
        found = verify(directory)
    for difference in found.differences:
        say(str(difference))
    if found.differences:
        count = len(found.differences)
        raise RunError(f"{directory}: {count} values differ from those that the evidence gives")
    dirty = f", {found.dirty} of them of code with uncommitted changes" if found.dirty else ""
    print(f"recomputed from {found.runs} runs{dirty}: {', '.join(found.claims)}")


def _design(words: Sequence[str]) -> None:
    from rich.console import Console

    from alexnet2012.ledger import design

    if not words or words[0] in ("-h", "--help"):
        print("usage: alexnet2012 ledger design EXPERIMENT [KEY=VALUE …]\n")
        for name, text in design.SETTINGS.items():
            print(f"  {name:10} {text}")
        return
    table, cost = design.design(words)
    console = Console()
    console.print(table)
    console.print(cost, soft_wrap=True)


def _run(words: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="alexnet2012 ledger",
        description="Print what a directory of runs measures, and the verdict on each claim.",
        epilog=EPILOG,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", nargs="?", help="sweep directory")
    for flag, text in FLAGS.items():
        parser.add_argument(flag, action="store_true", help=text)
    arguments = parser.parse_args(words)
    if arguments.directory is None and not (arguments.claims or arguments.authors_runs):
        raise ConfigError("DIR", "", "is missing; give the directory of a sweep, or --claims")
    if arguments.directory is not None and not arguments.directory.is_dir():
        raise ConfigError("DIR", arguments.directory, "does not exist; give a sweep's directory")
    # After the arguments, in which a mistake is reported without torch.
    from alexnet2012.ledger.authors_runs import authors_table
    from alexnet2012.ledger.tables import claims_table, print_sweep

    if arguments.claims:
        print(claims_table())
        return
    if arguments.authors_runs:
        print(authors_table())
        return
    evaluate = not arguments.no_evaluation
    print_sweep(arguments.directory, as_json=arguments.json, evaluate=evaluate)
