"""Compare an AlexNet with the paper and the 2012 code: ``python -m alexnet2012.referee NET``.

NET is a run, a checkpoint or an exported file of this package, a state dict, an ONNX graph, a
``.caffemodel``, the text of a Caffe network or a definition of the 2012 code. Nothing in a file is
run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet2012.cli.args import ArgumentParser
from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.schema import ConfigError
from alexnet2012.utils.text import say

if TYPE_CHECKING:  # a mistake in the command is reported without torch
    from alexnet2012.inference.referee.compare import Comparison, Difference
    from alexnet2012.inference.referee.network import Network
    from alexnet2012.ledger.costs import Cost

HEADINGS = {
    ("paper", "code145"): "Differs from the paper and from #145",
    ("paper",): "Differs from the paper, but not from #145",
    ("code145",): "Differs from #145, but not from the paper",
}
NAMES = {"paper": "the paper", "code145": "#145"}


def main() -> None:
    exit_on_error(lambda: _run(sys.argv[1:]))


def _run(words: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="alexnet2012 referee",
        description="Compare an AlexNet with the paper and the 2012 code (definition 145).",
        epilog="NET: a run, a checkpoint, a state dict (.pth, .safetensors), an ONNX graph, a "
        ".caffemodel, a .prototxt or a definition of the 2012 code (.cfg).",
    )
    parser.add_argument("net", type=Path, metavar="NET", help="file or folder of a network")
    parser.add_argument("--prototxt", type=Path, help="the text that describes a .caffemodel")
    parser.add_argument("--params", type=Path, help="the training parameters of a .cfg")
    parser.add_argument("--entry", help="which network of a state dict with several")
    parser.add_argument(
        "--ledger", type=Path, metavar="DIR", help="reproduction whose ledger gives the costs"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    given = parser.parse_args(words)
    _check(given.net, given.prototxt, given.params, given.ledger)

    from alexnet2012.inference.referee.compare import compare
    from alexnet2012.inference.referee.read import read_network
    from alexnet2012.ledger.costs import costs
    from alexnet2012.ledger.results import damaged_directory

    network = read_network(given.net, given.prototxt, given.entry, given.params)
    comparison = compare(network)
    ledgers = None if given.ledger is None else [given.ledger]
    with damaged_directory("--ledger", given.ledger or Path("results")):
        found = costs(network, comparison.differences, ledgers)
    if given.json:
        print(json.dumps(_as_json(given.net, network, comparison, found), indent=1))
        return
    for line in _lines(given.net, network, comparison, found):
        say(line)


def _check(net: Path, prototxt: Path | None, params: Path | None, ledger: Path | None) -> None:
    if not net.exists():
        raise ConfigError("NET", net, "no such file or folder")
    if prototxt is not None and net.suffix != ".caffemodel":
        raise ConfigError("--prototxt", prototxt, "describes a .caffemodel; NET is none")
    if params is not None and net.suffix != ".cfg":
        raise ConfigError("--params", params, "belongs to a definition, .cfg; NET is none")
    if ledger is not None and not (ledger / "ledger.json").is_file():
        raise ConfigError(
            "--ledger", ledger, "contains no ledger.json; `make reproduce` writes one"
        )


def _lines(
    path: Path, network: Network, comparison: Comparison, found: Sequence[Cost | None]
) -> Iterator[str]:
    counts = (
        f"{len(network.convolutions)} convolutions, {len(network.linears)} fully connected layers"
    )
    yield f"{path}: {network.format}; {counts}"
    rows = list(zip(comparison.differences, found, strict=True))
    for references, heading in HEADINGS.items():
        of_these = [(d, cost) for d, cost in rows if d.differs_from == references]
        if of_these:
            yield f"\n{heading}:"
            for text, cost in _merged(of_these):
                yield f"  {text}"
                yield f"    costs: {_cost_text(cost)}"
    for name, title in NAMES.items():
        if not any(name in difference.differs_from for difference in comparison.differences):
            yield f"\nNo difference from {title}" + (
                ", as far as the file tells" if comparison.unknown else ""
            )
    if comparison.unknown:
        yield f"\nNot in the file: {', '.join(comparison.unknown)}"
        if network.tensors_only:
            yield "  A state dict holds tensors only; an ONNX export holds the operations, too."
    if network.trained:
        yield "\nNot visible in a trained network: initial weights, initial biases"
    yield "\nParameters:"
    yield from _table(comparison)


def _merged(
    rows: Iterable[tuple[Difference, Cost | None]],
) -> Iterator[tuple[str, Cost | None]]:
    """Each difference in a line; one line for layers that differ alike."""
    lines: dict[tuple[Any, ...], list[str]] = {}
    for d, cost in rows:
        lines.setdefault(
            (d.item, d.file, d.paper, d.code145, d.differs_from, _key(cost)), []
        ).append(d.layer)
    kept = {(d.layer, d.item): cost for d, cost in rows}
    for (item, file, paper, code145, references, _), layers in lines.items():
        where = f"{', '.join(layers)} {item}".strip()
        yield f"{where}: {file}; {_others(paper, code145, references)}", kept[layers[0], item]


def _key(cost: Cost | None) -> str | None:
    return None if cost is None else cost.ablation


def _others(paper: str, code145: str, references: Sequence[str]) -> str:
    if len(references) == 1:
        return f"{NAMES[references[0]]}: {paper if references[0] == 'paper' else code145}"
    if paper == code145:
        return f"the paper and #145: {paper}"
    return f"the paper: {paper}; #145: {code145}"


def _cost_text(cost: Cost | None) -> str:
    if cost is None:
        return "not measured"
    words = "" if not cost.also else f"not measured alone; with {', '.join(cost.also)}: "
    said = cost.sources.get("paper") or cost.sources.get("code")
    source = "the paper" if "paper" in cost.sources else "the 2012 code"
    claimed = "" if said is None else f"; {source}: {said}"
    if cost.evidence is None:
        return f"{words}not measured here (claim {cost.claim}{claimed})"
    found = cost.evidence
    seeds = f"{found.seeds} seed{'s' if found.seeds != 1 else ''}"
    where = f"claim {cost.claim}: {found.verdict}; {found.ledger}, {seeds}{claimed}"
    return f"{words}{found.value} ({where})"


def _table(comparison: Comparison) -> Iterator[str]:
    def number(value: int | None) -> str:
        return "–" if value is None else f"{value:,}"

    yield f"  {'layer':16}{'this network':>14}{'paper, #145':>14}"
    for row in comparison.parameters:
        yield f"  {row.layer:16}{number(row.file):>14}{number(row.paper):>14}"
    ours = [row.file for row in comparison.parameters if row.file is not None]
    paper = [row.paper for row in comparison.parameters if row.paper is not None]
    yield f"  {'all':16}{sum(ours):>14,}{sum(paper):>14,}"


def _as_json(
    path: Path, network: Network, comparison: Comparison, found: Sequence[Cost | None]
) -> dict[str, Any]:
    rows = []
    for difference, cost in zip(comparison.differences, found, strict=True):
        row = {key: value for key, value in asdict(difference).items() if key != "value"}
        rows.append({**row, "cost": None if cost is None else asdict(cost)})
    return {
        "net": str(path),
        "format": network.format,
        "differences": rows,
        "not_in_file": list(comparison.unknown),
        "initial_values_visible": not network.trained,
        "parameters": [asdict(row) for row in comparison.parameters],
    }


if __name__ == "__main__":
    main()
