"""Choices of settings, as enums."""

from __future__ import annotations

from enum import Enum


class Choice(Enum):
    """An enum printed as users type it, in messages and in folder names."""

    def __str__(self) -> str:
        return str(self.value)


class Activation(Choice):
    relu = "relu"
    tanh = "tanh"


class LayerOp(Choice):
    activation = "activation"
    lrn = "lrn"
    spatial_norm = "spatial_norm"
    max_pool = "max_pool"
    average_pool = "average_pool"
    dropout = "dropout"  # of single activations, at recipe.conv_dropout_rate


class LightingScale(Choice):
    """Factor of the random α of the PCA colour augmentation, along each principal component."""

    # The paper literally, for pixels in [0, 1]; of 0-255 the noise would be a thousand grey levels.
    eigenvalues = "eigenvalues"
    standard_deviations = "standard_deviations"


class Shuffle(Choice):
    """When the order of the training images is drawn."""

    every_epoch = "every_epoch"
    once = "once"  # every epoch has the same minibatches, in the same order


class Precision(Choice):
    fp32 = "fp32"
    fp64 = "fp64"
    tf32 = "tf32"  # inputs of matrix products and convolutions are rounded to 10 bits, on a GPU
    bf16 = "bf16"  # activations and their gradients; weights and updates in float32


class ScheduleKind(Choice):
    plateau = "plateau"  # of the validation error
    train_plateau = "train_plateau"  # of the training error
    fixed = "fixed"


class WandbMode(Choice):
    offline = "offline"
    online = "online"
    disabled = "disabled"


class Budget(Choice):
    quick = "quick"  # minutes
    reduced = "reduced"  # hours on two cores
    gpu = "gpu"  # the full network on ten classes: half an hour of one GPU
    full = "full"  # the full network on ILSVRC


# Sources that need no path: generated from an installed package, or downloaded.
NAMED_SOURCES = (
    *("photos", "cifar10", "imagenette", "imagenette160", "imagenettefull", "tinyimagenet"),
)


class Feed(Choice):
    duplicate = "duplicate"
    split = "split"


class Keep(Choice):
    auto = "auto"
    no = "no"
    memory = "memory"
    device = "device"


class Decoder(Choice):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class OnReject(Choice):
    skip = "skip"
    fail = "fail"


class ExportFormat(Choice):
    safetensors = "safetensors"
    onnx = "onnx"
    torch = "torch"
    torchvision = "torchvision"


class Device(Choice):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
