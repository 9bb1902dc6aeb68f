"""Definition files of the 2012 code: the authors' own where a folder has them, and made ones."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from alexnet2012.config.enums import LayerOp
from alexnet2012.config.schema import NormConfig, RecipeConfig

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "cuda-convnet-definitions.tar.gz"
RATES = "epsW={rate}\nepsB={bias_rate}\nmomW=0.9\nmomB=0.9\nwc={decay}\nwball=0\n"
OPS = {
    LayerOp.lrn: ("rnorm", "type=cmrnorm\nsize={lrn.size}\n"),
    LayerOp.spatial_norm: ("cnorm", "type=rnorm\nsize={spatial_norm.size}\n"),
    LayerOp.max_pool: ("pool", "type=pool\npool=max\nsizeX={pool.size}\nstride={pool.stride}\n"),
    LayerOp.average_pool: (
        "pool",
        "type=pool\npool=avg\nsizeX={pool.size}\nstride={pool.stride}\n",
    ),
}


def unpacked(folder: Path) -> Path:
    """The authors' files; skips the test where there is no archive of them."""
    if not ARCHIVE.exists():
        pytest.skip(f"needs the authors' definitions ({ARCHIVE.name} beside the repository)")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def written(
    recipe: RecipeConfig, folder: Path, *, classes: int = 1000, notes: str = ""
) -> tuple[Path, Path]:
    """A definition and the parameters of a recipe, whose first convolution reads the image."""
    towers = "abcd"[: recipe.towers] if recipe.towers > 1 else [""]
    layers = ["[data]\ntype=data\ndataIdx=0\n", "[labels]\ntype=data\ndataIdx=1\n"]
    params: list[str] = []
    ends, channels = dict.fromkeys(towers, "data"), 3

    def norm(config: NormConfig) -> str:
        return f"scale={config.alpha}\npow={config.beta}\nminDiv={config.k}\n"

    def add(name: str, tower: str, text: str, reads: list[str]) -> None:
        gpu = towers.index(tower)
        layers.append(f"[{name}]\n{text}inputs={','.join(reads)}\ngpu={gpu}\n")

    def weights(name: str, tower: str, text: str, both: bool) -> str:
        reads = list(dict.fromkeys(ends.values())) if both else [ends[tower]]
        decay = recipe.optimizer.layer_decay.get(name, recipe.optimizer.weight_decay)
        params.append(f"[{name}{tower}]\n" + RATES.format(rate=0.01, bias_rate=0.02, decay=decay))
        add(f"{name}{tower}", tower, text, reads)
        return f"{name}{tower}"

    def end_of(name: str, tower: str, after: list[LayerOp], rate: float) -> str:
        last = f"{name}{tower}"
        for op in after:
            if op is LayerOp.activation:
                layers[-1] += "neuron=relu\n"
                continue
            if op is LayerOp.dropout:
                add(f"{name}{tower}-hs", tower, f"type=hs\nkeep={1 - rate}\n", [last])
                last = f"{name}{tower}-hs"
                continue
            kind, text = OPS[op]
            add(f"{name}{tower}-{kind}", tower, text.format(**vars(recipe)), [last])
            last = f"{name}{tower}-{kind}"
            if op in (LayerOp.lrn, LayerOp.spatial_norm):
                of = recipe.lrn if op is LayerOp.lrn else recipe.spatial_norm
                params.append(f"[{last}]\n{norm(of)}")
        return last

    for name, conv in recipe.convs.items():
        text = (
            f"type=conv\nchannels={channels}\nfilters={conv.kernels // recipe.towers}\n"
            f"filterSize={conv.kernel_size}\nstride={conv.stride}\npadding={conv.padding}\n"
            f"initW={conv.init_std}\ninitB={conv.init_bias}\n"
        )
        next_ends = {}
        for tower in towers:
            weights(name, tower, text, conv.reads_both_towers)
            next_ends[tower] = end_of(name, tower, conv.after, recipe.conv_dropout_rate)
        ends, channels = next_ends, conv.kernels // recipe.towers
    for name, linear in recipe.hidden.items():
        text = (
            f"type=fc\noutputs={linear.units // recipe.towers}\ninitW={linear.init_std}\n"
            f"initB={linear.init_bias}\n"
        )
        after = [LayerOp.activation, *[LayerOp.dropout] * (recipe.dropout_rate > 0)]
        next_ends = {}
        for tower in towers:
            weights(name, tower, text, linear.reads_both_towers)
            next_ends[tower] = end_of(name, tower, after, recipe.dropout_rate)
        ends = next_ends
    text = f"type=fc\noutputs={classes}\ninitW={recipe.fc8.init_std}\n"
    weights("fc8", towers[0], text, both=True)
    layers.append(f"[probs]\ntype=softmax\ninputs=fc8{towers[0]}\n")
    layers.append("[logprob]\ntype=cost.logreg\ninputs=labels,probs\n")
    params.append("[logprob]\ncoeff=1\ntopk=5\n")
    comments = "".join(f"# {line}\n" if line else "\n" for line in notes.splitlines())
    files = folder / "layers-made.cfg", folder / "layer-params-made.cfg"
    files[0].write_text("\n".join(layers), encoding="utf-8")
    files[1].write_text("\n".join(params) + "\n" + comments, encoding="utf-8")
    return files
