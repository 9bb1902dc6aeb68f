"""AlexNet: any recipe, both towers in one process or one tower in each of two.

Legend: N images, C channels, H×W pixels, T towers of the net, t of them in this process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet2012.config.enums import Activation, LayerOp, Precision
from alexnet2012.config.schema import ConfigError, ModelConfig, RecipeConfig
from alexnet2012.config.validation import check_recipe, load_recipe, scaled
from alexnet2012.distributed.collectives import (
    all_gather_to_replicated,
    communicator_of,
    gather_rows,
)
from alexnet2012.distributed.mesh import Mesh, single_process
from alexnet2012.nn.dropout import Dropout
from alexnet2012.nn.kernels import autograd as kernels
from alexnet2012.nn.kernels.epilogue import Epilogue, fits, norm_of, split_epilogues
from alexnet2012.nn.kernels.fused_conv_stack import FusedConv, fused_conv_stack
from alexnet2012.nn.layers import (
    ColumnParallel,
    ColumnParallelConv2d,
    ColumnParallelLinear,
    map_sizes,
)
from alexnet2012.nn.lrn import response_norm
from alexnet2012.nn.precision import DTYPES, DTypes
from alexnet2012.utils.rng import stream_seed
from alexnet2012.utils.shard import Shard, shard_of

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.relu: F.relu,
    Activation.tanh: torch.tanh,
}


class AlexNet(nn.Module):
    """The net of a recipe; on a mesh of several towers, this rank's part of it.

    Takes images [N, 3, S, S] (grey levels 0-255, mean subtracted) and returns the logits
    [N, num_classes], whole, on every rank. The usual cross-entropy and ``loss.backward()`` on
    every rank give each parameter its right gradient.

    Args:
        recipe: ``paper``, ``code145``, or a recipe of your own.
        num_classes: any number; towers share them as evenly as it goes.
        model: activation, width and input size; the recipe's own net without.
        mesh: from :func:`alexnet2012.init_mesh`; one process with both towers without.
        seed: fixes initial values and dropout, whatever the mesh.
        precision: ``fp32``, ``fp64``, ``tf32`` or ``bf16``. Whether float32 products may be tf32 is
            a switch of torch's for the whole process: :func:`alexnet2012.nn.precision.allow_tf32`.

    Raises:
        ConfigError: the net cannot be built; names the key and a remedy.

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
        self.towers_here = self.recipe.towers // self.mesh.towers
        self.comm = communicator_of(self.mesh)
        self.activation = ACTIVATIONS[self.config.activation]
        self._convs, self._hidden = self.recipe.convs, self.recipe.hidden
        self._steps = self._steps_after_convs()
        self._after_conv = {n: [self._steps[s] for s in c.after] for n, c in self._convs.items()}
        self._build(seed)
        convs = [self.layers()[name] for name in self._convs]
        self.fused = (  # whether training takes the kernels for a GPU
            kernels.kernels_available(self.mesh.device, DTYPES[self.precision].activations)
            and all(fits(conv.rows.size // self.towers_here) for conv in convs)
        )
        # Channels last: the layout in which convolutions are fastest, on CPU and on CUDA.
        self.to(self.mesh.device, DTYPES[self.precision].parameters)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def types(self) -> DTypes:
        """Of parameters and activations. After ``.double()``, ``.half()`` or ``.bfloat16()`` the
        activations follow the parameters.
        """
        dtype = self.fc8.weight.dtype
        types = DTYPES[self.precision]
        return types if dtype == types.parameters else DTypes(dtype, dtype)

    def forward(self, images: Tensor, rows: Shard | None = None) -> Tensor:
        """[N, 3, S, S] of any type → logits [N, num_classes] of the parameters', on every rank.

        ``rows`` says which rows of the global batch these are (for dropout); without it every
        replica is taken to hold N rows.
        """
        return self.gathered(self.own_logits(self.features(images, rows)))

    def own_logits(self, features: Tensor) -> Tensor:
        """Those of the classes of ``fc8.rows`` alone: [N, t·2048] → [N, k]."""
        logits = self._layer("fc8", features, gather=True)
        return logits.to(self.types.parameters)  # exponentials and their sums need the digits

    def gathered(self, logits_shard: Tensor) -> Tensor:
        """[N, k] → [N, num_classes]."""
        return all_gather_to_replicated(logits_shard, self.comm, "logits", self.num_classes)

    def features(self, images: Tensor, rows: Shard | None = None) -> Tensor:
        """The last hidden activations of the towers here: [N, 3, S, S] → [N, t·2048]."""
        return self.units(self.maps(images), rows)

    def maps(self, images: Tensor) -> Tensor:
        """What the convolutions give, flattened by channel, row, column; tower 0's channels first.

        [N, 3, S, S] → [N, t·4608]
        """
        side = self.config.input_size
        if images.shape[1:] != (3, side, side):
            raise ValueError(f"images {tuple(images.shape)}: must be [N, 3, {side}, {side}]")
        if self._runs_kernels() and not images.requires_grad:
            dtype = self.types.activations
            return fused_conv_stack(images, self._fused_convs(), self.towers_here, dtype).flatten(1)
        x = images.to(self.types.activations).contiguous(memory_format=torch.channels_last)
        for name, conv in self._convs.items():
            x = self._layer(name, x, gather=conv.reads_both_towers)
            for step in self._after_conv[name]:
                x = step(x)
        return x.flatten(1)

    def units(self, x: Tensor, rows: Shard | None = None) -> Tensor:
        """The hidden layers: [N, t·4608], or the maps of all towers → [N, t·2048].

        Of maps that a caller has gathered, the gradient is that of the units here alone.
        """
        if rows is None:
            count = len(x)
            start = self.mesh.replica * count
            rows = Shard(start, start + count, self.mesh.replicas * count)
        for name, linear in self._hidden.items():
            x = self._layer(name, x, gather=linear.reads_both_towers)
            dropout = self.dropouts[name]
            assert isinstance(dropout, Dropout)
            if self._runs_kernels() and self.config.activation is Activation.relu:
                x = dropout.after_relu(x, rows)
            else:
                x = dropout(self.activation(x), rows)
        return x

    def _runs_kernels(self) -> bool:
        """They train parameters of the type that the precision says."""
        return self.fused and self.training and self.types == DTYPES[self.precision]

    def layers(self) -> dict[str, ColumnParallel]:
        """The eight layers with parameters, by name."""
        return {n: m for n, m in self.named_children() if isinstance(m, ColumnParallel)}

    def full_shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of the whole net's parameters."""
        owners = self.layers()
        return {
            name: torch.Size((owners[name.split(".")[0]].rows.total, *parameter.shape[1:]))
            for name, parameter in self.named_parameters()
        }

    def full_state_dict(self) -> dict[str, Tensor]:
        """The whole net's parameters on every rank. Collective: call it on every rank.

        Names and layouts are public: ``conv2.weight`` is [256, 48, 5, 5] with tower 0's kernels
        first; ``fc6.weight`` is [4096, 9216] and reads maps flattened channels first.
        """
        owners = self.layers()
        return {
            name: gather_rows(
                parameter.detach(), owners[name.split(".")[0]].rows, self.comm, "state", "inference"
            )
            for name, parameter in self.named_parameters()
        }

    def load_full_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take this rank's rows of a whole net's parameters.

        Raises:
            ConfigError: a name is missing or unknown, or a shape is another net's.
        """
        shapes = self.full_shapes()
        for name in sorted(set(state) ^ set(shapes)):
            what = "missing" if name in shapes else "not a parameter of this net"
            raise ConfigError("state_dict", name, f"{what}; was it saved by another recipe?")
        owners = self.layers()
        for name, shape in shapes.items():
            if state[name].shape != shape:
                remedy = f"is {tuple(state[name].shape)}, this net has {tuple(shape)}"
                raise ConfigError("state_dict", name, f"{remedy}; use the same recipe and size")
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(owners[name.split(".")[0]].rows.of(state[name]))

    def random_state(self) -> dict[str, Tensor]:
        """Where the dropout streams stand, in host memory; the same on every rank."""
        return {name: dropout.state.to("cpu", copy=True) for name, dropout in self._dropouts()}

    def load_random_state(self, state: Mapping[str, Tensor]) -> None:
        for name, dropout in self._dropouts():
            dropout.state.copy_(state[name])

    def _dropouts(self) -> list[tuple[str, Dropout]]:
        return [(n, m) for n, m in self.dropouts.named_children() if isinstance(m, Dropout)]

    def _fused_convs(self) -> list[FusedConv]:
        """The convolutions as the kernels for a GPU take them."""
        found, towers = [], self.towers_here
        following = [*list(self._convs.values())[1:], None]
        for (name, conv), after in zip(self._convs.items(), following, strict=True):
            layer = self.get_submodule(name)
            assert isinstance(layer, ColumnParallelConv2d)
            product = partial(self._layer, name, gather=conv.reads_both_towers, skip_bias=True)
            steps = split_epilogues(
                conv, self.recipe, self.config.activation, layer.rows.size // towers
            )
            apart = towers > 1 and after is not None and not after.reads_both_towers
            then = [step if isinstance(step, Epilogue) else self._steps[step] for step in steps]
            found.append(FusedConv(layer, product, then, apart))
        return found

    def _steps_after_convs(self) -> dict[LayerOp, Callable[[Tensor], Tensor]]:
        recipe = self.recipe
        towers = 1 if recipe.lrn_across_towers else self.towers_here
        lrn, spatial = norm_of(recipe.lrn), recipe.spatial_norm
        # ceil_mode keeps a last window that is cut off by the edge, as the 2012 code does; at 224
        # pixels and 3/2 every window fits and nothing changes.
        pool: dict[str, Any] = {
            "kernel_size": recipe.pool.size,
            "stride": recipe.pool.stride,
            "ceil_mode": True,
        }
        return {
            LayerOp.activation: self.activation,
            LayerOp.lrn: partial(response_norm, norm=lrn, towers=towers),
            LayerOp.spatial_norm: partial(
                response_norm, norm=norm_of(spatial, spatial.size**2), towers=None
            ),
            LayerOp.max_pool: partial(F.max_pool2d, **pool),
            LayerOp.average_pool: partial(F.avg_pool2d, **pool),
        }

    def _layer(self, name: str, x: Tensor, *, gather: bool, skip_bias: bool = False) -> Tensor:
        """One layer of this process, which gathers its input where it reads every tower."""
        layer = self.get_submodule(name)
        assert isinstance(layer, ColumnParallel)
        if not gather or self.mesh.towers == 1 or x.shape[1] == layer.weight.shape[1]:  # is whole
            y: Tensor = layer(x, skip_bias=skip_bias)
        else:
            y = layer(x, comm=self.comm, name=name, skip_bias=skip_bias)
        return y

    def _build(self, seed: int) -> None:
        recipe, width = self.recipe, self.config.width
        channels, sizes = 3, map_sizes(recipe, self.config.input_size)
        for name, conv in recipe.convs.items():
            reads_image = name == next(iter(recipe.convs))  # whole, on every tower
            whole_input = conv.reads_both_towers or reads_image
            rows = self._own(scaled(conv.kernels, width, recipe.towers))
            layer = ColumnParallelConv2d(
                conv,
                rows,
                kernel_channels=channels if whole_input else channels // recipe.towers,
                groups=1 if whole_input else self.towers_here,
            )
            # A narrower net sums fewer terms: a larger std keeps its signals at full size.
            std = conv.init_std if reads_image else conv.init_std / math.sqrt(width)
            self._add(name, layer, std, conv.init_bias, seed)
            channels = rows.total
        full_size = map_sizes(recipe, recipe.input_size)[name]
        inputs, full_inputs = channels * sizes[name] ** 2, conv.kernels * full_size**2
        self.dropouts = nn.ModuleDict()
        for name, linear in recipe.hidden.items():
            both, rows = (
                linear.reads_both_towers,
                self._own(scaled(linear.units, width, recipe.towers)),
            )
            fc = ColumnParallelLinear(
                rows,
                (inputs if both else inputs // recipe.towers,),
                groups=1 if both else self.towers_here,
            )
            self._add(
                name,
                fc,
                linear.init_std * math.sqrt(full_inputs / inputs),
                linear.init_bias,
                seed,
            )
            stream = stream_seed(seed, "dropout", name)
            self.dropouts[name] = Dropout(recipe.dropout_rate, rows, stream, self.mesh.device)
            inputs, full_inputs = rows.total, linear.units
        head = ColumnParallelLinear(self._own(self.num_classes), (inputs,), groups=1)
        std = recipe.fc8.init_std * math.sqrt(full_inputs / inputs)
        self._add("fc8", head, std, recipe.fc8.init_bias, seed)

    def _own(self, total: int) -> Shard:
        return shard_of(total, self.mesh.towers, self.mesh.tower)

    def _add(self, name: str, layer: ColumnParallel, std: float, bias: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(stream_seed(seed, "init", f"{name}.weight"))
        layer.draw(std, bias, generator)
        self.add_module(name, layer)
