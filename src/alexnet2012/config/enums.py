"""What a setting may be chosen from."""

from __future__ import annotations

from enum import Enum


class Choice(Enum):
    """Shown as it is typed, in messages and in the names of folders."""

    def __str__(self) -> str:
        return str(self.value)


class Activation(Choice):
    """Non-linearity after every layer but the last."""

    relu = "relu"
    tanh = "tanh"


class LayerOp(Choice):
    """What follows a convolution."""

    activation = "activation"
    lrn = "lrn"
    spatial_norm = "spatial_norm"
    max_pool = "max_pool"
    average_pool = "average_pool"


class LightingScale(Choice):
    """What multiplies the random α of the PCA lighting, along each principal colour.

    ``eigenvalues`` reads the paper literally, with pixels in [0, 1]; on the 0-255 scale the
    same formula would add noise of a thousand grey levels.
    """

    eigenvalues = "eigenvalues"
    standard_deviations = "standard_deviations"


class Precision(Choice):
    """What is computed in.

    ``fp32`` and ``fp64`` throughout; ``tf32`` rounds what products read to 10 bits, on a GPU; with
    ``bf16`` activations and their gradients are bf16, weights and updates float32.
    """

    fp32 = "fp32"
    fp64 = "fp64"
    tf32 = "tf32"
    bf16 = "bf16"


class ScheduleKind(Choice):
    """How the learning rate falls: on the validation error, or at given epochs."""

    plateau = "plateau"
    fixed = "fixed"


class WandbMode(Choice):
    """Where Weights & Biases records go; ``offline`` needs no account."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


class Budget(Choice):
    """How much a reproduction spends on the effects: minutes, hours, or the paper's own days."""

    quick = "quick"
    reduced = "reduced"
    full = "full"


# Sources that need no path: made from a package, or downloaded.
NAMED_SOURCES = ("photos", "cifar10", "imagenette", "imagenette160", "imagenettefull")


class Feed(Choice):
    """How the towers of a net come by the same pictures: each decodes all, or each its share."""

    duplicate = "duplicate"
    split = "split"


class Decoder(Choice):
    """Where JPEGs are decoded; ``auto`` is the device of the mesh."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class OnReject(Choice):
    """What a picture that cannot be used does to a preparation: listed, or its end."""

    skip = "skip"
    fail = "fail"


class ExportFormat(Choice):
    """A net as one file: its tensors, or a graph for onnxruntime or for torch."""

    safetensors = "safetensors"
    onnx = "onnx"
    torch = "torch"


class Device(Choice):
    """Where the towers compute; ``auto`` takes CUDA where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
