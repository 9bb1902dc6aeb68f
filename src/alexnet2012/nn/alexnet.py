"""The AlexNet module: any recipe, with all towers in one process or one tower per process.

Shapes: N images, S input size, C channels, H×W pixels, T towers of the network, t of them in this
process, K classes, k of them in this tower.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alexnet2012.config.enums import Activation, LayerOp, Precision
from alexnet2012.config.schema import ConfigError, ModelConfig, RecipeConfig, RunError
from alexnet2012.config.validation import check_recipe, load_recipe, scaled
from alexnet2012.distributed.collectives import (
    all_gather_to_replicated,
    communicator_of,
    gather_rows,
)
from alexnet2012.distributed.mesh import Mesh, single_process
from alexnet2012.nn.dropout import Dropout
from alexnet2012.nn.kernels import autograd as kernels
from alexnet2012.nn.kernels.epilogue import Epilogue, norm_params, split_epilogues, supported
from alexnet2012.nn.layers import ColumnParallel, ColumnParallelConv2d, ColumnParallelLinear
from alexnet2012.nn.lrn import ResponseNorm
from alexnet2012.nn.map_sizes import POOLS, conv_output_size, map_sizes
from alexnet2012.nn.precision import DTYPES, DTypes
from alexnet2012.utils.rng import stream_seed
from alexnet2012.utils.shard import Shard, shard_of

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    Activation.relu: nn.ReLU,
    Activation.tanh: nn.Tanh,
}
_STEP_NAMES = {  # the activation is conv1_relu or conv1_tanh, the others conv1_lrn, conv1_pool
    LayerOp.lrn: "lrn",
    LayerOp.spatial_norm: "spatial_norm",
    LayerOp.max_pool: "pool",
    LayerOp.average_pool: "pool",
    LayerOp.dropout: "dropout",
}
MAX_NORMALISED = 3.0  # pixels scaled to unit variance lie between -2.2 and 2.7


class AlexNet(nn.Module):
    """The network of a recipe; on a mesh with several towers, this rank's shard of it.

    Maps images [N, 3, S, S] to logits [N, num_classes], complete on every rank. Images are RGB
    values in 0-255 (not 0-1) minus the training-set mean image. Cross-entropy and
    ``loss.backward()`` on every rank give each parameter its full gradient.

    ``.double()``, ``.half()``, ``.bfloat16()`` and ``.to(dtype)`` work as on any module:
    activations follow the dtype of the parameters. Every operation is a submodule that takes
    hooks, in the order of ``print(model)``: ``conv1``, ``conv1_relu``, ``conv1_lrn``,
    ``conv1_pool`` … ``fc6``, ``fc6_relu``, ``fc6_dropout`` … ``fc8``. Layers cannot be replaced.

    Args:
        recipe: ``paper``, ``code145``, or your own :class:`RecipeConfig`.
        num_classes: K; split over the towers as evenly as possible.
        model: activation, width and input size; the recipe's by default.
        mesh: from :func:`alexnet2012.init_mesh`; by default one process with all towers.
        seed: determines initial values and dropout masks, independently of the mesh.
        precision: ``fp32``, ``fp64``, ``tf32`` or ``bf16``. TF32 is a process-wide torch switch:
            also call :func:`alexnet2012.nn.precision.allow_tf32`.

    Raises:
        ConfigError: the network cannot be built; the message names the key and a remedy.

    Source: paper sec. 3.5 and fig. 2.
    """

    fc8: ColumnParallelLinear

    def __init__(
        self,
        recipe: str | RecipeConfig = "paper",
        num_classes: int = 1000,
        *,
        model: ModelConfig | None = None,
        mesh: Mesh | None = None,
        seed: int = 0,
        precision: Precision | str = Precision.fp32,
    ) -> None:
        super().__init__()
        self.recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
        self.config = model or ModelConfig()
        self.mesh = mesh or single_process()
        self.num_classes = num_classes
        self.precision = Precision(precision)
        check_recipe(self.recipe, self.config)
        if num_classes < 1:
            raise ConfigError("num_classes", num_classes, "must be 1 or more")
        if self.mesh.towers not in (1, self.recipe.towers):
            remedy = f"must be 1 or the recipe's {self.recipe.towers} towers"
            raise ConfigError("mesh.towers", self.mesh.towers, remedy)
        if self.recipe.lrn_across_towers and self.mesh.towers > 1:
            remedy = "needs all maps in one process; set mesh=one_process"
            raise ConfigError("recipe.lrn_across_towers", "true", remedy)
        self.local_towers = self.recipe.towers // self.mesh.towers
        self.comm = communicator_of(self.mesh)
        self._convs, self._hidden = self.recipe.convs, self.recipe.hidden
        # Modules after a layer, in order.
        self._steps: dict[str, list[tuple[LayerOp, str]]] = {
            name: [] for name in self.recipe.layers
        }
        self._scale_checked = False
        self.init_stds: dict[str, float] = {}  # of initial weights, by layer
        self._build(seed)
        convs = [self.layers()[name] for name in self._convs]
        self.fused = (  # whether training uses the fused GPU kernels
            kernels.kernels_available(self.mesh.device, DTYPES[self.precision].activations)
            and all(supported(conv.rows.size // self.local_towers) for conv in convs)
        )
        # Convolutions are fastest in channels-last layout, on CPU and on CUDA.
        self.to(self.mesh.device, DTYPES[self.precision].parameters)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def types(self) -> DTypes:
        """Dtypes of parameters and activations; after ``.double()`` or another cast, that one."""
        dtype = self.fc8.weight.dtype
        types = DTYPES[self.precision]
        return types if dtype == types.parameters else DTypes(dtype, dtype)

    def forward(self, images: Tensor, rows: Shard | None = None) -> Tensor:
        """[N, 3, S, S] of any dtype → logits [N, K] of the parameters' dtype, on every rank.

        ``rows``: the rows of the global batch that ``images`` are, which dropout needs; by default
        every replica holds N rows.
        """
        return self.gather_logits(self.logits_shard(self.features(images, rows)))

    def logits_shard(self, features: Tensor) -> Tensor:
        """Logits of this tower's classes, ``fc8.rows``: [N, t·2048] → [N, k]."""
        if self.recipe.fc8_bottleneck.present:
            bottleneck = self.get_submodule("fc8_bottleneck")
            features = bottleneck(features, comm=self.comm, name="fc8_bottleneck")
        logits: Tensor = self.fc8(features, comm=self.comm, name="fc8")
        return logits.to(self.types.parameters)  # softmax needs the precision

    def gather_logits(self, logits_shard: Tensor) -> Tensor:
        """[N, k] → [N, K], on every rank."""
        return all_gather_to_replicated(logits_shard, self.comm, "logits", self.num_classes)

    def features(self, images: Tensor, rows: Shard | None = None) -> Tensor:
        """Last hidden activations of this process's towers: [N, 3, S, S] → [N, t·2048]."""
        return self.hidden_features(self.conv_features(images, rows), rows)

    def conv_features(self, images: Tensor, rows: Shard | None = None) -> Tensor:
        """Output of the convolutional layers: [N, 3, S, S] → [N, t·4608].

        Flattened by channel, row, column; tower 0's channels first.
        """
        side = self.config.input_size
        if images.shape[1:] != (3, side, side):
            raise ValueError(f"images {tuple(images.shape)}: must be [N, 3, {side}, {side}]")
        if not self._scale_checked and not torch.compiler.is_compiling():
            self._check_scale(images)
        rows = rows or self._own_rows(images)
        if self._runs_kernels() and not images.requires_grad:
            return self._fused_conv_features(images, rows).flatten(1)
        x = images.to(self.types.activations).contiguous(memory_format=torch.channels_last)
        for name, conv in self._convs.items():
            comm = self.comm if conv.reads_both_towers else None
            x = self.get_submodule(name)(x, comm=comm, name=name)
            for op, step in self._steps[name]:
                module = self.get_submodule(step)
                x = module(x, rows) if op is LayerOp.dropout else module(x)
        return x.flatten(1)

    def hidden_features(self, x: Tensor, rows: Shard | None = None) -> Tensor:
        """Output of the hidden fully connected layers: [N, t·4608] or [N, T·4608] → [N, t·2048].

        For [N, T·4608], which the caller has gathered, the gradient is partial: that of this
        process's units.
        """
        rows = rows or self._own_rows(x)
        fuses_relu = self._runs_kernels() and self.config.activation is Activation.relu
        dropouts = self.dropouts
        for name, linear in self._hidden.items():
            comm = self.comm if linear.reads_both_towers else None
            x = self.get_submodule(name)(x, comm=comm, name=name)
            dropout = dropouts[name]
            if fuses_relu:
                x = dropout.after_relu(x, rows)
            else:
                x = dropout(self.get_submodule(self._steps[name][0][1])(x), rows)
        return x

    def _own_rows(self, x: Tensor) -> Shard:
        """The rows of the global batch that ``x`` holds if every replica holds as many."""
        count = x.shape[0]  # len() would fix the number of images of an exported program
        start = self.mesh.replica * count
        return Shard(start, start + count, self.mesh.replicas * count)

    def _runs_kernels(self) -> bool:
        """The kernels compute in the dtypes of ``precision``, so only for parameters not cast.

        They skip the modules whose operations they fuse, so not if one of these has hooks.
        """
        return (
            self.fused
            and self.training
            and self.types == DTYPES[self.precision]
            and self.fc8.weight.device.type == self.mesh.device.type  # not moved
            and not any(
                module._forward_hooks
                or module._forward_pre_hooks
                or module._backward_hooks
                or module._backward_pre_hooks
                for module in self.children()
                if not isinstance(module, ColumnParallel)
            )
        )

    def layers(self) -> dict[str, ColumnParallel]:
        """All layers with parameters, by name, from conv1 to fc8."""
        return {n: m for n, m in self.named_children() if isinstance(m, ColumnParallel)}

    def full_shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of the full network's parameters."""
        return {
            name: torch.Size((rows.total, *parameter.shape[1:]))
            for name, parameter, rows in self._shards()
        }

    def full_state_dict(self) -> dict[str, Tensor]:
        """The full network's parameters, gathered on every rank. Collective: call on every rank.

        Names and layouts are stable: ``conv2.weight`` is [256, 48, 5, 5] with tower 0's kernels
        first; ``fc6.weight`` is [4096, 9216], its input flattened by channel, row, column.
        """
        return {
            name: gather_rows(parameter.detach(), rows, self.comm, "state", "inference")
            for name, parameter, rows in self._shards()
        }

    def load_full_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load this rank's shard of the full network's parameters.

        Raises:
            ConfigError: a name is missing or unknown, or a shape does not match.
        """
        shapes = self.full_shapes()
        for name in sorted(set(state) ^ set(shapes)):
            problem = "missing" if name in shapes else "not a parameter of this model"
            raise ConfigError("state_dict", name, f"{problem}; use the recipe that saved it")
        for name, shape in shapes.items():
            if state[name].shape != shape:
                problem = f"has shape {tuple(state[name].shape)}, this model needs {tuple(shape)}"
                raise ConfigError("state_dict", name, f"{problem}; use the same recipe and size")
        with torch.no_grad():
            for name, parameter, rows in self._shards():
                parameter.copy_(rows.of(state[name]))

    def _shards(self) -> list[tuple[str, nn.Parameter, Shard]]:
        """Each parameter with its name and its rows of the full parameter."""
        layers, shards = self.layers(), []
        for name, parameter in self.named_parameters():
            layer = layers.get(name.partition(".")[0])
            if layer is None:
                remedy = "is not a layer of the recipe; add modules around an AlexNet, not to it"
                raise ConfigError("state_dict", name, remedy)
            shards.append((name, parameter, layer.rows))
        return shards

    def random_state(self) -> dict[str, Tensor]:
        """State of each dropout layer's random stream, on the CPU; the same on every rank."""
        return {name: drop.state.to("cpu", copy=True) for name, drop in self.dropouts.items()}

    def load_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`random_state` returned."""
        for name, dropout in self.dropouts.items():
            dropout.state.copy_(state[name])

    def rewind_dropout(self, rows: Shard) -> None:
        """Undo one training pass over ``rows``: the next draws masks of the same global batch."""
        for dropout in self.dropouts.values():
            dropout.rewind(rows)

    @property
    def dropouts(self) -> dict[str, Dropout]:
        """The dropout after hidden layers and convolutions, by the name of the layer."""
        modules = ((n.removesuffix("_dropout"), module) for n, module in self.named_children())
        return {name: module for name, module in modules if isinstance(module, Dropout)}

    def _fused_conv_features(self, images: Tensor, rows: Shard) -> Tensor:
        """:meth:`conv_features` on a GPU: each convolution is followed by its fused epilogue.

        Towers that do not read each other get separate tensors and separate convolutions: cuDNN is
        slow at grouped convolutions.
        """
        towers, dtype = self.local_towers, self.types.activations
        maps: tuple[Tensor, ...] = (images,)  # [N, C, H, W], or t times [N, c, H, W]
        next_convs = [*list(self._convs.values())[1:], None]
        for (name, conv), next_conv in zip(self._convs.items(), next_convs, strict=True):
            layer = self.get_submodule(name)
            assert isinstance(layer, ColumnParallelConv2d)
            if maps[0] is images and layer.stride > 1:
                maps = (layer(layer.space_to_depth(images, dtype), input_is_blocks=True),)
            elif len(maps) > 1:
                maps = layer(*maps, skip_bias=True)
            else:
                x = maps[0]
                if x is images:
                    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
                comm = self.comm if conv.reads_both_towers else None
                maps = (layer(x, comm=comm, name=name, skip_bias=True),)
            separate = towers > 1 and next_conv is not None and not next_conv.reads_both_towers
            channels = layer.rows.size // towers
            passes = split_epilogues(conv, self.recipe, self.config.activation, channels)
            for i, step in enumerate(passes):
                if isinstance(step, Epilogue):
                    split = separate and i == len(passes) - 1
                    bias = layer.bias if i == 0 else None
                    maps = kernels.fused_epilogue(maps, bias, step, towers, separate=split)
                else:
                    module = self.get_submodule(dict(self._steps[name])[step])
                    x = maps[0]
                    maps = (module(x, rows) if step is LayerOp.dropout else module(x),)
            if separate and len(maps) == 1:
                by_tower = maps[0].chunk(towers, 1)
                maps = tuple(x.contiguous(memory_format=torch.channels_last) for x in by_tower)
        return torch.cat(maps, 1) if len(maps) > 1 else maps[0]

    def _check_scale(self, images: Tensor) -> None:
        """Warn once if the images cannot be RGB values in 0-255 minus the mean image."""
        has_values = type(images) is Tensor and not images.is_meta and images.numel() > 0
        if not has_values or (images.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        low, high = (float(x) for x in images.detach().float().aminmax())
        largest = max(-low, high)
        self._scale_checked = largest > 0
        if not self._scale_checked or self.mesh.rank > 0:
            return
        expected = "AlexNet takes RGB values in 0-255 minus the training-set mean image"
        if not images.is_floating_point():
            warnings.warn(f"images are {images.dtype}: {expected}", stacklevel=3)
        elif largest <= MAX_NORMALISED:
            found = f"images lie between {low:.2f} and {high:.2f}"
            warnings.warn(f"{found}: {expected}, without any other scaling", stacklevel=3)

    def __setattr__(self, name: str, value: Any) -> None:
        replaced = self.__dict__.get("_modules", {}).get(name)
        if isinstance(replaced, ColumnParallel | Dropout) and not isinstance(value, type(replaced)):
            remedy = (
                "layers cannot be replaced; for another number of classes build "
                "AlexNet(num_classes=…) and load the other layers; model.features(images) gives "
                "activations, and recipe.dropout_rate sets the dropout"
            )
            raise ConfigError(name, type(value).__name__, remedy)
        if replaced is not None and value is not replaced:
            self.fused = False  # the kernels would compute the recipe's operation
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        if self.mesh.world_size > 1:
            remedy = "cannot be pickled or copied: it holds a part of the network on this rank; "
            raise RunError(
                f"AlexNet on {self.mesh.world_size} ranks {remedy}save full_state_dict()"
            )
        return self.__dict__

    def extra_repr(self) -> str:
        size, width = self.config.input_size, self.config.width
        towers = f"{self.local_towers} of {self.recipe.towers}"
        return (
            f"recipe={self.recipe.name}, num_classes={self.num_classes}, input_size={size}, "
            f"width={width:g}, precision={self.precision.value}, towers={towers}"
        )

    def _build(self, seed: int) -> None:
        recipe, width = self.recipe, self.config.width
        channels, side = 3, self.config.input_size
        sizes = map_sizes(recipe, side)
        for name, conv in recipe.convs.items():
            reads_image = name == next(iter(recipe.convs))  # every tower reads the full image
            full_input = conv.reads_both_towers or reads_image
            rows = self._shard(scaled(conv.kernels, width, recipe.towers))
            read, groups = self._split_input(channels, full_input)
            # A narrower layer sums fewer terms: a larger std keeps the scale of its outputs.
            std = conv.init_std if reads_image else conv.init_std / math.sqrt(width)
            layer = ColumnParallelConv2d(conv, rows, read, groups)
            self._add(name, layer, std, conv.init_bias, seed)
            side = conv_output_size(conv, side)
            for op in conv.after:
                side = sizes[name] if op in POOLS else side
                if op is LayerOp.dropout:
                    self._add_dropout(name, recipe.conv_dropout_rate, rows, side**2, seed)
                else:
                    self._add_step(name, op, self._step(op))
            channels = rows.total
        unscaled_size = map_sizes(recipe, recipe.input_size)[name]
        inputs, unscaled_inputs = channels * sizes[name] ** 2, conv.kernels * unscaled_size**2
        for name, linear in recipe.hidden.items():
            rows = self._shard(scaled(linear.units, width, recipe.towers))
            read, groups = self._split_input(inputs, linear.reads_both_towers)
            std = linear.init_std * math.sqrt(unscaled_inputs / inputs)
            fc = ColumnParallelLinear(rows, (read,), groups)
            self._add(name, fc, std, linear.init_bias, seed)
            self._add_step(name, LayerOp.activation, self._step(LayerOp.activation))
            self._add_dropout(name, recipe.dropout_rate, rows, 1, seed)
            inputs, unscaled_inputs = rows.total, linear.units
        if recipe.fc8_bottleneck.present:
            bottleneck = recipe.fc8_bottleneck
            rows = self._shard(scaled(bottleneck.units, width, recipe.towers))
            std = bottleneck.init_std * math.sqrt(unscaled_inputs / inputs)
            fc = ColumnParallelLinear(rows, (inputs,), groups=1)
            self._add("fc8_bottleneck", fc, std, bottleneck.init_bias, seed)
            inputs, unscaled_inputs = rows.total, bottleneck.units
        fc8 = ColumnParallelLinear(self._shard(self.num_classes), (inputs,), groups=1)
        std = recipe.fc8.init_std * math.sqrt(unscaled_inputs / inputs)
        self._add("fc8", fc8, std, recipe.fc8.init_bias, seed)

    def _add_step(self, layer: str, op: LayerOp, module: nn.Module) -> None:
        """Add the module of the next operation after a layer."""
        name = f"{layer}_{_STEP_NAMES.get(op, self.config.activation.value)}"
        while name in self._modules:  # a recipe may repeat an operation
            name += "_again"
        self.add_module(name, module)
        self._steps[layer].append((op, name))

    def _add_dropout(self, layer: str, rate: float, rows: Shard, pixels: int, seed: int) -> None:
        units = Shard(rows.start * pixels, rows.stop * pixels, rows.total * pixels)
        stream = stream_seed(seed, "dropout", layer)
        self._add_step(layer, LayerOp.dropout, Dropout(rate, units, stream, self.mesh.device))

    def _step(self, op: LayerOp) -> nn.Module:
        recipe = self.recipe
        if op is LayerOp.activation:
            return ACTIVATIONS[self.config.activation]()
        if op is LayerOp.lrn:
            towers = 1 if recipe.lrn_across_towers else self.local_towers
            return ResponseNorm(norm_params(recipe.lrn), towers)
        if op is LayerOp.spatial_norm:
            norm = recipe.spatial_norm
            return ResponseNorm(norm_params(norm, norm.size**2), None)
        # ceil_mode keeps a last window that extends beyond the edge, as the 2012 code does. At 224
        # pixels, size 3 and stride 2 every window fits, so that it makes no difference.
        pool = nn.MaxPool2d if op is LayerOp.max_pool else nn.AvgPool2d
        return pool(recipe.pool.size, recipe.pool.stride, ceil_mode=True)

    def _split_input(self, size: int, full_input: bool) -> tuple[int, int]:
        """Channels or units that a row of a layer reads, and the layer's groups."""
        return (size, 1) if full_input else (size // self.recipe.towers, self.local_towers)

    def _shard(self, total: int) -> Shard:
        return shard_of(total, self.mesh.towers, self.mesh.tower)

    def _add(self, name: str, layer: ColumnParallel, std: float, bias: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(stream_seed(seed, "init", f"{name}.weight"))
        layer.init_parameters(std, bias, generator)
        self.init_stds[name] = std
        self.add_module(name, layer)
