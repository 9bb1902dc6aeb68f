"""Labels of tables: for keys of results, and for texts in results kept from earlier versions."""

from __future__ import annotations

import re

_HEADINGS = {
    "of": "killed",
    "while": "during",
    "a step takes s": "step, s",
    "training stood still s": "training paused, s",
    "longer by s": "added time, s",
    "of a minute %": "of a minute, %",
    "wishes, a step ms": "flag sync per step, ms",
    "its range": "range",
    "range of that": "range (torchvision)",
    "matrices, GFLOP/s": "matrix product, GFLOP/s",
    "of the limit": "% of limit",
    "of the floor": "% of floor",
    "longer than apart": "slower than without",
    "waits for input": "waiting for input",
    "a core": "images/s per core",
    "CPU ms": "CPU ms per image",
    "ratio of CPU": "CPU ratio",
    "MiB": "memory, MiB",
    "first s": "first batch, s",
    "times faster": "speedup",
    "peak of a rank, MB": "peak of one rank, MB",
    "planned of measured": "% of measured",
    "limits": "allowed",
    "bf16 less": "bf16 - float32",
    "95%": "95% interval",
    "seeds apart (SD)": "SD over seeds",
    "error %, float32": "error, float32, %",
    "bf16 less, points": "bf16 - float32, points",
    "95%, points": "95% interval, points",
    "seeds apart (SD), points": "SD over seeds, points",
    "pictures": "images",
    "killed at random moments": "kills at random moments",
    "stores the same to the byte": "identical stores",
    "taken up where they were": "resumed from a saved state",
    "found": "count",
    "DALI imported": "import of DALI",
    "net": "model",
    "together": "total",
    # keys of damage.json
    "Pillow refuses": "Pillow rejects",
    "decoded otherwise": "decoded wrongly",
    "refused in pieces": "djpeg rejects from a pipe",
    "of another size": "different size",
    "median, grey levels": "median difference, grey levels",
    "worst, grey levels": "largest difference, grey levels",
}
_TEXTS = {
    "does anything damaged reach training, and does anything stop the work": (
        "do damaged images reach training, and do they stop a preparation"
    ),
    "the two feeds, in full-size training": "the two feeds in full-size training",
    "images/s of the input, and of what one would otherwise use": (
        "images/s of the input pipeline, compared with the usual alternatives"
    ),
    "LRN alone": "local response normalisation alone",
    "memory of a full-size step, against what the plan counts": (
        "memory of a full-size step, compared with the plan"
    ),
    "the plan's images/s against those of a full-size step here": (
        "images/s predicted by the plan, compared with a full-size step"
    ),
    "learning curves in bf16 against float32": "learning curves in bf16 and float32",
    "speed, memory and restart of prepare": "speed, memory and restarts of prepare",
    "are the counts exact at ImageNet's shape": (
        "are the counts exact for a data set of ImageNet's shape"
    ),
    "a step by batch and by width, against one process": (
        "a step by batch size and width, compared with one process"
    ),
    "how long a training takes to start": "start-up time of a training run",
    "Odd and broken files of the test suites of decoders": (
        "Unusual and broken files from the test suites of decoders"
    ),
    "the whole path, all files as one data set": (
        "From preparation to training, all files as one data set"
    ),
    "memory of all processes, two workers": "Memory of all processes, two workers",
    "kills and restarts": "Kills and restarts",
    "training pictures stored": "training images stored",
    "validation pictures stored": "validation images stored",
    "pictures rejected": "images rejected",
    "pictures with another label": "images with a wrong label",
    "steps of an epoch": "steps per epoch",
    "whole epochs": "complete epochs",
    # keys of damage.json
    "wrong: lost or twice": "wrong: missing or duplicated",
    "wrong: rejected otherwise than the file alone": "wrong: rejected unlike the single file",
    "wrong: stored otherwise than the file alone": "wrong: stored unlike the single file",
    "wrong: stored and not delivered": "wrong: stored but not delivered",
    "wrong: delivered and not finite": "wrong: delivered but not finite",
}
_PHRASES = (
    (r"\bfull-size net\b", "full-size network"),
    (r"^apart, ", "no exchanges, "),
    (r"^hidden, ", "hidden exchanges (since removed), "),
    ("alike in the end", "identical at the end"),
    ("; strict is ", "; strict decoder: "),
    ("^What exchanges cost", "Cost of exchanges"),
    (r"^Input, ", "Input pipeline, "),
    ("^plan against", "Plan compared with"),
    ("^Training in bf16 against", "Training in bf16 compared with"),
    ("step, against plain", "step, compared with plain"),
    ("network, against the rate", "network, compared with the rate"),
)


def heading(text: str) -> str:
    """The label of a column."""
    precision, _, rest = text.partition(" ")
    columns_of_layers = {
        "forward ms": "forward, ms",
        "backward ms": "backward, ms",
        "of that rate": "% of rate",
        "what follows ms": "operations after, ms",
    }
    if rest in columns_of_layers:
        return f"{precision} {columns_of_layers[rest]}"
    return _HEADINGS.get(text, text)


def label(text: str) -> str:
    """The label of a row, the title of a table or the question of a benchmark."""
    text = _TEXTS.get(text, text)
    for pattern, replacement in _PHRASES:
        text = re.sub(pattern, replacement, text)
    return text
