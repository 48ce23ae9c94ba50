"""OpenAI's guided-diffusion checkpoints (Dhariwal & Nichol 2021), both ways: the same network, other names.

    denoiser = load_guided_diffusion("64x64_diffusion.pt", UNetConfig(preset="adm_64"), attention_order="new",
                                     conditions={"label": LabelConfig(num_classes=1000)})

A checkpoint holds tensors and no configuration, so the caller describes the network. Of the published files,
64x64_diffusion.pt has attention rows in the "new" order, all others in the "legacy" one; 128x128_diffusion.pt and
64_256_upsampler.pt have `heads=4`, all others `head_channels=64`. The shapes are the same in either case.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from ..conditions.augmentation import AugmentationConfig
from ..conditions.label import LabelConfig
from ..core.errors import UserError
from ..core.settings import settings_from
from ..core.storage import atomic_write, load_strictly
from ..models.config import UNetConfig
from ..models.denoiser import Denoiser
from ..runs.config import Config, config_file
from . import naming
from .naming import Pairs, Tensors, block_names, rename, swapped
from .tensor_files import load_torch_file

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
OTHER = "guided-diffusion's UNetModel"


def _names(unet: UNetConfig, label: str | None) -> Pairs:
    """Yield the names of a module here and in guided-diffusion's `UNetModel`."""

    def block(ours: str, theirs: str, attention: bool) -> Pairs:
        yield from block_names(f"{ours}.0", f"{theirs}.0", RESIDUAL)
        if attention:
            yield from block_names(f"{ours}.1", f"{theirs}.1", ATTENTION)

    def resampling(ours: str, theirs: str, conv: str) -> Pairs:
        yield from block_names(ours, theirs, RESIDUAL if unet.resampling == "residual" else {"conv": conv})

    yield "time.mlp.0", "time_embed.0"
    yield "time.mlp.2", "time_embed.2"
    yield f"embeddings.{label}.table", "label_emb"
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
    yield from block_names(f"{inner}.2", "middle_block.2", RESIDUAL)


def from_guided_diffusion_tensors(
    tensors: Tensors, unet: UNetConfig, attention_order: AttentionOrder, label: str | None = "label"
) -> Tensors:
    """Return a guided-diffusion network's tensors under our names. Raise UserError for one without counterpart."""

    def convert(name: str, tensor: Tensor) -> Tensor:
        if tensor.ndim == 3 and ".to_" in name:
            tensor = tensor.flatten(1)  # a convolution of kernel size 1
        if attention_order == "legacy" and ".to_qkv." in name:
            heads = unet.heads or len(tensor) // 3 // (unet.head_channels or len(tensor) // 3)
            return rearrange(tensor, "(heads three d) ... -> (three heads d) ...", three=3, heads=heads)
        return tensor

    return rename(tensors, swapped(_names(unet, label)), convert)


def to_guided_diffusion_tensors(tensors: Tensors, unet: UNetConfig, label: str | None = "label") -> Tensors:
    """Return a denoiser's tensors under guided-diffusion's names, attention rows in the new order.

    Raise UserError for one without counterpart.
    """
    convolutions = "qkv.weight", "proj_out.weight"
    return rename(tensors, _names(unet, label), lambda name, t: t[..., None] if name.endswith(convolutions) else t)


def load_guided_diffusion(
    path: str | Path,
    unet: UNetConfig,
    attention_order: AttentionOrder,
    conditions: Mapping[str, LabelConfig | AugmentationConfig] = MappingProxyType({}),
) -> Denoiser:
    """Return the denoiser of a `.pt` file, which is read as tensors only: nothing in it is ever executed.

    The classes were trained without dropout, so the null class is a vector of zeros.
    Raise UserError, naming a tensor, if the file does not fit the network.
    """
    _check_expressible(unet)
    tensors = load_torch_file(path)
    stem = tensors.get("input_blocks.0.0.weight")
    if stem is not None and stem.ndim > 1 and stem.shape[1] == 2 * unet.in_channels:
        raise UserError(
            f"{path}: an upsampler, conditioned on a low-resolution image (input_blocks.0.0.weight has {stem.shape[1]} "
            f"input channels instead of {unet.in_channels}), cannot be sampled; use the base model"
        )
    denoiser = Denoiser.from_config(unet, conditions)
    label = naming.label_name(denoiser, OTHER)
    try:
        ours = from_guided_diffusion_tensors(tensors, unet, attention_order, label)
    except UserError as misfit:
        raise UserError(f"{path}: {misfit}") from None
    if label:
        naming.add_null_class(ours, label, denoiser.embeddings[label].num_classes)
    load_strictly(denoiser, ours, path)
    return denoiser.eval()


def import_guided_diffusion(
    path: str, file: str | None, attention_order: AttentionOrder | None
) -> tuple[Config, Denoiser]:
    """Return the configuration in a YAML file, completed, and the denoiser of the `.pt` file that it describes.

    Raise UserError if something is missing, or like `load_guided_diffusion`.
    """
    if file is None or attention_order is None:
        raise UserError(f"{path}: does not describe its network; add --config FILE and --attention_order new or legacy")
    config = settings_from(config_file(file), Config)
    unknown = [name for name, label in config.labels.items() if label.num_classes is None]
    if not config.unet.levels or config.data.resolution is None or unknown:
        raise UserError(f"{file}: set unet.levels, data.resolution and conditions.NAME.num_classes")
    if (channels := config.unet.in_channels) not in (1, 3, 4):
        raise UserError(f"{file}: unet.in_channels: images have 1, 3 or 4 channels (got {channels})")
    conditions = {name: naming.numbered(label) for name, label in config.labels.items()}
    data = config.data.model_copy(update={"channels": channels, "bit_depth": 8})
    config = config.model_copy(update={"conditions": conditions, "data": data})
    return config, load_guided_diffusion(path, config.unet, attention_order, conditions)


def save_guided_diffusion(denoiser: Denoiser, path: str | Path) -> dict:
    """Write the denoiser as a guided-diffusion checkpoint, and return the arguments of the `UNetModel` that loads it.

    The null class becomes one more class, the last, unless its vector is zero and so has no effect.
    Raise UserError, naming the setting, if guided-diffusion cannot express the network.
    """
    unet = denoiser.unet.config
    _check_expressible(unet)
    tensors = naming.exportable_tensors(denoiser)
    label = naming.label_name(denoiser, OTHER)
    table = tensors.get(naming.table_key(label))
    if table is not None and not table[-1].any():
        table = tensors[naming.table_key(label)] = table[:-1].clone()  # a slice would be saved whole
    with atomic_write(Path(path)) as file:
        torch.save(to_guided_diffusion_tensors(tensors, unet, label), file)
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
        "num_classes": None if table is None else len(table),
        "num_heads": unet.heads or 1,
        "num_head_channels": unet.head_channels or -1,
        "use_scale_shift_norm": unet.modulation == "scale_shift",
        "resblock_updown": unet.resampling == "residual",
        "use_new_attention_order": True,
    }


def _check_expressible(unet: UNetConfig) -> None:
    width = unet.levels[0].channels
    naming.check_expressible(
        OTHER,
        {
            "resampling": unet.resampling not in ("conv", "residual"),
            "vector_dim (is not four times the finest channels)": unet.vector_dim != 4 * width,
            "middle_attention": not unet.middle_attention,
            "norm_groups": unet.norm_groups != 32 or any(level.channels % 32 for level in unet.levels),
            "norm_eps": unet.norm_eps != 1e-5,
            "plane_channels": unet.plane_channels > 0,
            **naming.common_limits(unet),
        },
    )
