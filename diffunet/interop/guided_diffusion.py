"""OpenAI's guided-diffusion checkpoints (Dhariwal & Nichol 2021), both ways: the same network, other names.

    denoiser = load_guided_diffusion("64x64_diffusion.pt", UNetConfig(preset="adm_64"), attention_order="new",
                                     conditions=ConditionsConfig(classes=1000))

A checkpoint holds tensors and no configuration, so the network has to be said. Of the published files,
64x64_diffusion.pt has the "new" order of attention's rows, all others the "legacy" one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from ..models.denoiser import ConditionsConfig, Denoiser
from .diffusers import check_expressible
from ..core.errors import UserError, printable
from ..core.storage import load_strictly, atomic_write
from ..models.unet import UNetConfig

AttentionOrder = Literal["new", "legacy"]

RESIDUAL = {
    "norm": "in_layers.0",
    "conv_1": "in_layers.2",
    "modulated.project": "emb_layers.1",
    "modulated.norm": "out_layers.0",
    "conv_2": "out_layers.3",
    "shortcut": "skip_connection",
}
ATTENTION = {"norm": "norm", "to_qkv": "qkv", "to_out": "proj_out"}
TABLE = "embeddings.label.table.weight"


def _names(unet: UNetConfig) -> Iterator[tuple[str, str]]:
    """Pairs of a module's name here and in guided-diffusion's `UNetModel`."""

    def block(ours: str, theirs: str, attention: bool):
        yield from ((f"{ours}.0.{a}", f"{theirs}.0.{b}") for a, b in RESIDUAL.items())
        if attention:
            yield from ((f"{ours}.1.{a}", f"{theirs}.1.{b}") for a, b in ATTENTION.items())

    def resampling(ours: str, theirs: str, conv: str):
        parts = RESIDUAL if unet.resampling == "residual" else {"conv": conv}
        yield from ((f"{ours}.{a}", f"{theirs}.{b}") for a, b in parts.items())

    yield "time.mlp.0", "time_embed.0"
    yield "time.mlp.2", "time_embed.2"
    yield "embeddings.label.table", "label_emb"
    yield "unet.stem", "input_blocks.0.0"
    yield "unet.head.0", "out.0"
    yield "unet.head.2", "out.2"
    inner, entry = "unet.body", 1
    last = sum(level.blocks + 1 for level in unet.levels)
    for depth, level in enumerate(unet.levels):
        if depth:
            yield from resampling(f"{inner}.enter", f"input_blocks.{entry}.0", "op")
            entry += 1
        for index in range(level.blocks):
            yield from block(f"{inner}.down.{index}", f"input_blocks.{entry}", level.attention)
            entry += 1
        first, last = last - level.blocks - 1, last
        for index in range(level.blocks + 1):
            yield from block(f"{inner}.up.{index}", f"output_blocks.{first + index}", level.attention)
        if depth:
            yield from resampling(f"{inner}.exit", f"output_blocks.{last - 1}.{1 + level.attention}", "conv")
        last = first
        inner += ".inner"
    yield from block(inner, "middle_block", True)
    yield from ((f"{inner}.2.{a}", f"middle_block.2.{b}") for a, b in RESIDUAL.items())


def from_guided_diffusion_tensors(
    tensors: dict[str, Tensor], unet: UNetConfig, attention_order: AttentionOrder
) -> dict[str, Tensor]:
    """A guided-diffusion network's tensors under our names. UserError for one that has no place here."""
    ours, left = {}, dict(tensors)
    for here, there in _names(unet):
        for kind in ("weight", "bias"):
            if (tensor := left.pop(f"{there}.{kind}", None)) is not None:
                ours[f"{here}.{kind}"] = _from_theirs(here, tensor, unet, attention_order)
    if left:
        raise UserError(f"{next(iter(left))} has no place in this U-Net")
    return ours


def to_guided_diffusion_tensors(tensors: dict[str, Tensor], unet: UNetConfig) -> dict[str, Tensor]:
    """A denoiser's tensors under guided-diffusion's names, attention in the new order."""
    pairs = [(f"{here}.{kind}", f"{there}.{kind}") for here, there in _names(unet) for kind in ("weight", "bias")]
    return {there: _to_theirs(here, tensors[here]) for here, there in pairs if here in tensors}


def _from_theirs(name: str, tensor: Tensor, unet: UNetConfig, attention_order: AttentionOrder) -> Tensor:
    if not name.endswith(("to_qkv", "to_out")):
        return tensor
    tensor = tensor.flatten(1) if tensor.ndim == 3 else tensor                    # a convolution over one place
    if attention_order == "legacy" and name.endswith("to_qkv"):
        width = unet.head_channels or len(tensor) // 3
        return rearrange(tensor, "(heads three d) ... -> (three heads d) ...", three=3, d=width)
    return tensor


def _to_theirs(name: str, tensor: Tensor) -> Tensor:
    return tensor[..., None] if name.endswith(("to_qkv.weight", "to_out.weight")) else tensor


def load_guided_diffusion(
    path: str | Path,
    unet: UNetConfig,
    attention_order: AttentionOrder,
    conditions: ConditionsConfig = ConditionsConfig(),
) -> Denoiser:
    """The denoiser of a `.pt` file, which is read as tensors only: nothing in it is ever executed.

    A network with classes was never told of no class: "not told" is a vector of zeros here.
    UserError, naming a tensor, where the file does not fit the network.
    """
    _check_expressible(unet)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:                             # a damaged file has many ways to fail
        raise UserError(f"{path}: not a file of tensors ({printable(repr(error))})") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path}: expected tensors by name, as guided-diffusion saves them")
    try:
        ours = from_guided_diffusion_tensors(tensors, unet, attention_order)
    except UserError as misfit:
        raise UserError(f"{path}: {misfit}") from None
    if TABLE in ours and len(ours[TABLE]) == conditions.classes:
        ours[TABLE] = torch.cat([ours[TABLE], torch.zeros_like(ours[TABLE][:1])])
    denoiser = Denoiser.from_config(unet, conditions)
    load_strictly(denoiser, ours, path)
    return denoiser.eval()


def save_guided_diffusion(denoiser: Denoiser, path: str | Path) -> dict:
    """Writes the denoiser as a guided-diffusion checkpoint; the arguments of the `UNetModel` that loads it.

    "Not told" becomes one more class, the last, unless it is a vector of zeros, which is to say nothing.
    UserError, naming the setting, where guided-diffusion cannot express the network.
    """
    unet = denoiser.unet.config
    _check_expressible(unet)
    tensors = denoiser.state_dict()
    if TABLE in tensors and not tensors[TABLE][-1].any():
        tensors[TABLE] = tensors[TABLE][:-1]
    with atomic_write(Path(path)) as file:
        torch.save({name: t.clone() for name, t in to_guided_diffusion_tensors(tensors, unet).items()}, file)
    width = unet.levels[0].channels
    multiples = [level.channels / width for level in unet.levels]
    return {
        "in_channels": unet.in_channels,
        "model_channels": width,
        "out_channels": unet.out_channels,
        "num_res_blocks": unet.levels[0].blocks,
        "attention_resolutions": tuple(2**depth for depth, level in enumerate(unet.levels) if level.attention),
        "dropout": unet.dropout,
        "channel_mult": tuple(int(m) if m.is_integer() else m for m in multiples),
        "dims": unet.dims,
        "num_classes": len(tensors[TABLE]) if TABLE in tensors else None,
        "num_heads": 1,
        "num_head_channels": unet.head_channels or -1,
        "use_scale_shift_norm": unet.modulation == "scale_shift",
        "resblock_updown": unet.resampling == "residual",
        "use_new_attention_order": True,
    }


def _check_expressible(unet: UNetConfig) -> None:
    width = unet.levels[0].channels
    check_expressible(
        "guided-diffusion's UNetModel",
        {
            "padding": unet.padding != "same",
            "block": unet.block != "residual",
            "skips": unet.skips != "block",
            "resampling": unet.resampling not in ("conv", "residual"),
            "vector_dim (is not four times the finest channels)": unet.vector_dim != 4 * width,
            "token_dim": unet.token_dim > 0,
            "plane_channels": unet.plane_channels > 0,
            "middle_blocks": unet.middle_blocks != 2,
            "middle_attention": not unet.middle_attention,
            "norm": unet.norm != "group",
            "norm_groups": unet.norm_groups != 32 or any(level.channels % 32 for level in unet.levels),
            "norm_eps": unet.norm_eps != 1e-5,
            "levels (blocks differ)": len({level.blocks for level in unet.levels}) > 1,
            "levels (down, up or from_coarser)": any(lv.down or lv.up or lv.from_coarser for lv in unet.levels),
        },
    )
