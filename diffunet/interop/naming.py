"""Renaming tensors between this U-Net and those of other libraries, and the checks that both directions share."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ..conditions.label import LabelConfig
from ..core.errors import UserError
from ..models.conditioning import AugmentationEmbedding, LabelEmbedding, TextEmbedding, TokenEmbedding
from ..models.config import UNetConfig
from ..models.denoiser import Denoiser

Name = str | tuple[str, ...]
"""A module, or the modules among which its tensors are divided."""
Pairs = Iterator[tuple[Name, Name]]
Tensors = dict[str, Tensor]
TEXT_FOLDER = "which has config.json, safetensors and the tokenizer (docs/conditioning.md)"


def rename(
    tensors: Tensors, pairs: Pairs, convert: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
) -> Tensors:
    """Return the weights and biases of modules under their new names, `pairs` being (old, new).

    A tuple of old names is concatenated, one of new names receives equal chunks. `convert(new_name, tensor)` is applied
    to each. Raise UserError for a tensor that no pair names.
    """
    renamed, left = {}, dict(tensors)
    for old, new in pairs:
        olds, news = ((name,) if isinstance(name, str) else name for name in (old, new))
        for kind in ("weight", "bias"):
            parts = [left.pop(f"{name}.{kind}") for name in olds if f"{name}.{kind}" in left]
            if len(parts) == len(olds):
                whole = parts[0] if len(parts) == 1 else torch.cat(parts)
                for name, part in zip(news, whole.chunk(len(news)), strict=True):
                    renamed[f"{name}.{kind}"] = convert(f"{name}.{kind}", part)
    if left:
        raise UserError(f"{next(iter(left))} has no counterpart in the target network")
    return renamed


def swapped(pairs: Pairs) -> Pairs:
    """Yield (new, old) for each (old, new)."""
    return ((new, old) for old, new in pairs)


def block_names(ours: str, theirs: str, names: Mapping[str, Name]) -> Pairs:
    """Yield the pairs of a block: `names` maps the names of its parts here to those there."""
    for a, b in names.items():
        yield f"{ours}.{a}", f"{theirs}.{b}" if isinstance(b, str) else tuple(f"{theirs}.{part}" for part in b)


def check_expressible(other: str, inexpressible: dict[str, bool]) -> None:
    """Raise UserError naming the first setting of the U-Net that the other network does not have."""
    for name, impossible in inexpressible.items():
        if impossible:
            raise UserError(f"unet.{name}: {other} cannot express this network")


def common_limits(unet: UNetConfig) -> dict[str, bool]:
    """Return which settings are beyond `UNet2DModel` and guided-diffusion's `UNetModel` alike."""
    return {
        "padding": unet.padding != "same",
        "unshuffle": unet.unshuffle > 1,
        "block": unet.block != "residual",
        "skips": unet.skips != "block",
        "token_dim": unet.token_dim > 0,
        "middle_blocks": unet.middle_blocks != 2,
        "norm": unet.norm != "group",
        "levels (blocks differ)": len({level.blocks for level in unet.levels}) > 1,
        "levels (down, up or from_coarser)": any(lv.down or lv.up or lv.from_coarser for lv in unet.levels),
        "levels (halves)": any(level.halves is not None for level in unet.levels),
    }


# ── the label condition ───────────────────────────────────────────────────────────────────────────


def label_name(denoiser: Denoiser, other: str, *expressible: type) -> str | None:
    """Return the name of the denoiser's label condition; None if it has none.

    Raise UserError for several labels, or for an embedding that is neither a label nor of an `expressible` type.
    Augmentation labels do not count: at zero, as in sampling, they contribute nothing.
    """
    labels = []
    for name, embedding in denoiser.embeddings.items():
        if isinstance(embedding, LabelEmbedding):
            labels.append(name)
        elif isinstance(embedding, (TextEmbedding, TokenEmbedding)):
            raise UserError(f"conditions.{name}: {other} has no text; share the run's model/ folder, {TEXT_FOLDER}")
        elif not isinstance(embedding, (AugmentationEmbedding, *expressible)):
            raise UserError(f"conditions.{name}: {other} has no such condition")
    if len(labels) > 1:
        raise UserError(f"conditions: {other} has one label condition (got {', '.join(labels)})")
    return labels[0] if labels else None


def exportable_tensors(denoiser: Denoiser) -> Tensors:
    """Return the denoiser's tensors without the projections of augmentation labels."""
    embeddings = denoiser.embeddings.items()
    left_out = tuple(f"embeddings.{name}." for name, e in embeddings if isinstance(e, AugmentationEmbedding))
    return {name: tensor for name, tensor in denoiser.state_dict().items() if not name.startswith(left_out)}


def numbered(label: LabelConfig) -> LabelConfig:
    """Return a label condition whose classes, if they have no names, are named by their numbers."""
    return label.model_copy(update={"class_names": label.class_names or tuple(map(str, range(label.num_classes or 0)))})


def table_key(label: str | None) -> str:
    """Return the key of a label condition's embedding table, (num_classes + 1, vector_dim), in a state dict."""
    return f"embeddings.{label}.table.weight"


def add_null_class(tensors: Tensors, label: str | None, num_classes: int) -> None:
    """Append a row of zeros, the null class, to a table of exactly `num_classes` rows.

    A network that was trained without condition dropout has no such row.
    """
    table = tensors.get(table_key(label))
    if table is not None and len(table) == num_classes:
        tensors[table_key(label)] = torch.cat([table, torch.zeros_like(table[:1])])
