"""Every command: its name, what it does in one line, its settings.

A new command is one entry here and one module of that name with a ``main`` function.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from alexnet2012.config import inference_schema as inference
from alexnet2012.config import schema


class Command(NamedTuple):
    """``schema`` is None for commands that take flags and paths instead of settings."""

    name: str
    summary: str
    schema: type | None = None
    entry: str | None = None  # the module that has ``main``, where it is not the command's

    @property
    def module(self) -> str:
        return f"alexnet2012.{self.name}"

    @property
    def config(self) -> str:
        """The file of conf/ that its settings are composed from."""
        return "train" if self.schema is schema.TrainConfig else self.name

    def main(self) -> None:
        import_module(self.entry or self.module).main()


_COMMANDS = (
    Command("train", "train a network, or resume a run", schema.TrainConfig),
    Command(
        "evaluate", "measure top-1 and top-5 errors of a model or ensemble", schema.EvaluateConfig
    ),
    Command("prepare", "preprocess images from any source into a store", schema.PrepareConfig),
    Command("predict", "classify images", inference.PredictConfig),
    Command(
        "serve", "serve a web page that shows predictions and both towers", inference.ServeConfig
    ),
    Command("features", "extract the last hidden activations of images", inference.FeaturesConfig),
    Command(
        "nearest", "find the most similar images by their activations", inference.NearestConfig
    ),
    Command(
        "export",
        "export a model to one file: safetensors, ONNX or torch.export",
        inference.ExportConfig,
    ),
    Command(
        "import_net",
        "import a network of Caffe, torchvision or the 2012 code",
        inference.ImportConfig,
    ),
    Command("referee", "compare any AlexNet with the paper and the 2012 code"),
    Command("reproduce", "run the reproduction and write its report", schema.ReproduceConfig),
    Command(
        "ledger",
        "print the measurements and verdicts of a directory of runs",
        entry="alexnet2012.ledger.__main__",
    ),
    Command("report", "render a reproduction's report again, or compare two"),
    Command("runs", "list runs, or compare two"),
    Command("verify", "prove a run by replaying parts of it", schema.VerifyConfig),
    Command("plan", "estimate time, memory and traffic of a training run", schema.PlanConfig),
    Command("doctor", "check this machine before a run", schema.TrainConfig),
    Command("completion", "print the bash script for tab completion of settings"),
)
COMMANDS = {command.name: command for command in _COMMANDS}
