"""The evidence that is part of the repository: the ledgers in ``results/``.

A quick reproduction on photographs can show little; its report sets these ledgers beside it. An
installed package has none.
"""

from __future__ import annotations

import json
from pathlib import Path

import alexnet2012
from alexnet2012.ledger.results import CommittedLedger, CommittedRow

RESULTS = Path(alexnet2012.__file__).parents[2] / "results"
STAND_IN = "photographs"  # in the description of data that are no evidence


def committed_evidence(directory: Path = RESULTS) -> list[CommittedLedger]:
    """The measured claims of every ledger on real data sets; empty without the directory."""
    ledgers = []
    for file in sorted(directory.glob("*/ledger.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        made = content["provenance"]
        rows = [
            CommittedRow(
                claim=row["id"],
                title=row["title"],
                value=row["measured"]["value"],
                verdict=row["verdict"],
                n_seeds=row["measured"]["n_seeds"],
            )
            for row in content["rows"]
            if row["measured"] and row["measured"]["n_seeds"] > 1
        ]
        if rows and STAND_IN not in made["data_description"]:
            ledgers.append(
                CommittedLedger(
                    name=file.parent.name,
                    data=made["data_description"],
                    commit=made["commit"],
                    date=made["date"],
                    rows=rows,
                )
            )
    return ledgers
