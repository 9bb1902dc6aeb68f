"""Choices of settings, as enums."""

from __future__ import annotations

from enum import Enum


class Choice(Enum):
    """An enum printed as users type it, in messages and in folder names."""

    def __str__(self) -> str:
        return str(self.value)


class Activation(Choice):
    """Non-linearity after every layer but the last."""

    relu = "relu"
    tanh = "tanh"


class LayerOp(Choice):
    """Operations that follow a convolution."""

    activation = "activation"
    lrn = "lrn"
    spatial_norm = "spatial_norm"
    max_pool = "max_pool"
    average_pool = "average_pool"


class LightingScale(Choice):
    """Factor of the random α of the PCA colour augmentation, along each principal component.

    ``eigenvalues`` follows the paper literally, with pixels in [0, 1]; on the 0-255 scale the
    same formula would add noise of a thousand grey levels.
    """

    eigenvalues = "eigenvalues"
    standard_deviations = "standard_deviations"


class Precision(Choice):
    """Arithmetic of training.

    ``fp32`` and ``fp64`` throughout; ``tf32`` rounds the inputs of matrix products and convolutions
    to 10 bits, on a GPU; ``bf16`` keeps activations and their gradients in bf16, weights and
    updates in float32.
    """

    fp32 = "fp32"
    fp64 = "fp64"
    tf32 = "tf32"
    bf16 = "bf16"


class ScheduleKind(Choice):
    """When the learning rate drops: when the validation error plateaus, or at fixed epochs."""

    plateau = "plateau"
    fixed = "fixed"


class WandbMode(Choice):
    """Where Weights & Biases stores runs; ``offline`` needs no account."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


class Budget(Choice):
    """Compute budget of a reproduction's sweeps: minutes, hours, or the paper's own days."""

    quick = "quick"
    reduced = "reduced"
    full = "full"


# Sources that need no path: generated from an installed package, or downloaded.
NAMED_SOURCES = ("photos", "cifar10", "imagenette", "imagenette160", "imagenettefull")


class Feed(Choice):
    """How all towers of a replica get the same batch: each decodes all of it, or its share."""

    duplicate = "duplicate"
    split = "split"


class Decoder(Choice):
    """Device that decodes JPEGs; ``auto`` is the device of the mesh."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class OnReject(Choice):
    """What to do with an image that cannot be used: list and skip it, or fail."""

    skip = "skip"
    fail = "fail"


class ExportFormat(Choice):
    """Format of a model exported to one file: its tensors, or a graph for onnxruntime or torch."""

    safetensors = "safetensors"
    onnx = "onnx"
    torch = "torch"


class Device(Choice):
    """Device of the towers; ``auto`` selects CUDA if available."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
