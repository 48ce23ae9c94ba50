"""To and from folders of `diffusers`: the same network with its tensors under other names.

What `UNet2DModel` can express goes out to a folder that `DDPMPipeline.from_pretrained` loads without
diffunet, and such folders come back. What the other side cannot express is refused by name.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from ..runs.config import Config
from ..data.dataset import DataConfig
from ..models.denoiser import ConditionsConfig, Denoiser
from ..objectives.ddpm import DDPMConfig
from ..core.errors import UserError, printable
from ..core.storage import load_strictly
from ..training.trainer import TrainConfig
from ..models.unet import LevelConfig, UNetConfig

RESIDUAL = {
    "norm": "norm1",
    "conv_1": "conv1",
    "modulated.project": "time_emb_proj",
    "modulated.norm": "norm2",
    "conv_2": "conv2",
    "shortcut": "conv_shortcut",
}
DOWNSAMPLE_PADDING = {"conv": 1, "conv_end_padded": 0}
ATTENTION = {"norm": "group_norm", "to_qkv": ("to_q", "to_k", "to_v"), "to_out": "to_out.0"}


def _names(unet: UNetConfig) -> Iterator[tuple[str, str | tuple[str, ...]]]:
    """Pairs of a module's name here and in `UNet2DModel`; a tuple where one of ours is several there."""

    def block(ours: str, theirs: str, index: int, attention: bool):
        yield from ((f"{ours}.0.{a}", f"{theirs}.resnets.{index}.{b}") for a, b in RESIDUAL.items())
        if attention:
            there = f"{theirs}.attentions.{index}."
            for a, b in ATTENTION.items():
                yield f"{ours}.1.{a}", there + b if isinstance(b, str) else tuple(there + part for part in b)

    yield "time.mlp.0", "time_embedding.linear_1"
    yield "time.mlp.2", "time_embedding.linear_2"
    yield "embeddings.label.table", "class_embedding"
    yield "unet.stem", "conv_in"
    yield "unet.head.0", "conv_norm_out"
    yield "unet.head.2", "conv_out"
    inner = "unet.body"
    for depth, level in enumerate(unet.levels):
        down, up = f"down_blocks.{depth}", f"up_blocks.{len(unet.levels) - 1 - depth}"
        yield f"{inner}.enter.conv", f"down_blocks.{depth - 1}.downsamplers.0.conv"
        yield f"{inner}.exit.conv", f"{up}.upsamplers.0.conv"
        for index in range(level.blocks):
            yield from block(f"{inner}.down.{index}", down, index, level.attention)
        for index in range(level.blocks + 1):
            yield from block(f"{inner}.up.{index}", up, index, level.attention)
        inner += ".inner"
    yield from block(inner, "mid_block", 0, unet.middle_attention)
    last = 2 if unet.middle_attention else 1
    yield from ((f"{inner}.{last}.{a}", f"mid_block.resnets.1.{b}") for a, b in RESIDUAL.items())


def to_diffusers_tensors(tensors: dict[str, Tensor], unet: UNetConfig) -> dict[str, Tensor]:
    """A denoiser's tensors under the names of `UNet2DModel`."""
    theirs = {}
    for here, there in _names(unet):
        for kind in ("weight", "bias"):
            if (tensor := tensors.get(f"{here}.{kind}")) is not None:
                parts = (there,) if isinstance(there, str) else there
                theirs |= {f"{p}.{kind}": t.clone() for p, t in zip(parts, tensor.chunk(len(parts)), strict=True)}
    return theirs


def from_diffusers_tensors(tensors: dict[str, Tensor], unet: UNetConfig) -> dict[str, Tensor]:
    """The tensors of a `UNet2DModel` under our names. UserError for one that has no place here."""
    ours, left = {}, dict(tensors)
    for here, there in _names(unet):
        for kind in ("weight", "bias"):
            parts = [left.pop(f"{p}.{kind}", None) for p in ((there,) if isinstance(there, str) else there)]
            if None not in parts:
                ours[f"{here}.{kind}"] = torch.cat(parts)
    if left:
        raise UserError(f"{next(iter(left))} has no place in this U-Net")
    return ours


def export(denoiser: Denoiser, config: Config, label: int | str | None, folder: Path) -> None:
    """Writes a folder for `DDPMPipeline.from_pretrained`.

    `DDPMPipeline` gives no labels, so what it shall draw is settled here, by adding the label's vector to
    the time's bias: a class index, or None for pictures of no stated class. "all" keeps the classes, with
    "not told" as the last one, for those who call the network themselves.
    UserError, naming the setting, where `UNet2DModel` cannot express the network.
    """
    from diffusers import DDPMPipeline, UNet2DModel

    if config.objective != "diffusion":
        raise UserError(f"objective: DDPMPipeline cannot draw from a network trained with {config.objective}")
    unet, conditions = config.unet, config.conditions
    tensors = denoiser.state_dict()
    table = tensors.pop("embeddings.label.table.weight", None)
    tensors.pop("embeddings.augmentation.project.weight", None)               # says nothing when drawing
    classes = None
    if table is not None and label == "all":
        classes = conditions.classes + 1
        tensors["embeddings.label.table.weight"] = table
    elif table is not None:
        row = conditions.classes if label is None else label
        tensors["time.mlp.2.bias"] = tensors["time.mlp.2.bias"] + table[row]
    model = UNet2DModel(**diffusers_config(config, classes))
    load_strictly(model, to_diffusers_tensors(tensors, unet), "export")
    pipeline = DDPMPipeline(unet=model, scheduler=config.diffusion.scheduler())
    pipeline.save_pretrained(folder)


def check_expressible(other: str, inexpressible: dict[str, bool]) -> None:
    """UserError naming the first setting of the U-Net that the other network has no word for."""
    for name, impossible in inexpressible.items():
        if impossible:
            raise UserError(f"unet.{name}: {other} cannot express this network")


def diffusers_config(config: Config, classes: int | None) -> dict:
    """The arguments of the `UNet2DModel` that is this network."""
    unet = config.unet
    check_expressible(
        "diffusers' UNet2DModel",
        {
            "dims": unet.dims != 2,
            "padding": unet.padding != "same",
            "block": unet.block != "residual",
            "skips": unet.skips != "block",
            "resampling": unet.resampling not in DOWNSAMPLE_PADDING,
            "token_dim": unet.token_dim > 0,
            "plane_channels": unet.plane_channels > 0,
            "middle_blocks": unet.middle_blocks != 2,
            "norm": unet.norm != "group",
            "norm_groups (does not divide the channels)": any(lv.channels % unet.norm_groups for lv in unet.levels),
            "levels (blocks differ)": len({level.blocks for level in unet.levels}) > 1,
            "levels (down, up or from_coarser)": any(lv.down or lv.up or lv.from_coarser for lv in unet.levels),
        },
    )
    attention = [level.attention for level in unet.levels]
    height, width = config.data.size
    return {
        "sample_size": height if height == width else (height, width),
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "time_embedding_dim": unet.vector_dim,
        "freq_shift": config.conditions.time_freq_shift,
        "flip_sin_to_cos": True,
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        "block_out_channels": tuple(level.channels for level in unet.levels),
        "layers_per_block": unet.levels[0].blocks,
        "downsample_padding": DOWNSAMPLE_PADDING[unet.resampling],
        "dropout": unet.dropout,
        "attention_head_dim": unet.head_channels,
        "norm_num_groups": unet.norm_groups,
        "attn_norm_num_groups": unet.norm_groups,
        "norm_eps": unet.norm_eps,
        "resnet_time_scale_shift": {"shift": "default", "scale_shift": "scale_shift"}[unet.modulation],
        "add_attention": unet.middle_attention,
        "num_class_embeds": classes,
    }


SUPPORTED = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "class_embed_type": None,
}
"""The values of a `UNet2DModel`'s config that our U-Net has; others are refused by name."""


def load_diffusers(folder: str) -> tuple[Config, Denoiser]:
    """The configuration and the denoiser of a `DDPMPipeline` folder or hub id (google/ddpm-cifar10-32, ...).

    Only safetensors are read. UserError, naming the setting, where our U-Net cannot express the network.
    """
    import huggingface_hub
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.utils import logging

    for each in (logging, huggingface_hub.utils.logging):
        each.set_verbosity(logging.CRITICAL)               # what they warn of is refused below, or raised
    try:
        with warnings.catch_warnings(action="ignore"):
            model, report = UNet2DModel.from_pretrained(
                folder, subfolder="unet", use_safetensors=True, output_loading_info=True
            )
            scheduler = DDPMScheduler.load_config(folder, subfolder="scheduler")
    except Exception as error:                             # a damaged folder has many ways to fail
        raise UserError(f"{folder}: not a DDPMPipeline folder with safetensors ({printable(repr(error))})") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(problem):
            raise UserError(f"{folder}/unet: {problem.replace('_', ' ')}: {report[problem][0]}")
    try:
        config = config_from_diffusers(folder, model.config, scheduler)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        raise UserError(f"{folder}: {'.'.join(map(str, first['loc']))}: {printable(first['msg'])}") from invalid
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder}: its configuration makes no sense ({printable(error)})") from error
    tensors = from_diffusers_tensors(model.state_dict(), config.unet)
    if not model.config.flip_sin_to_cos:                   # sines first there, cosines first here
        tensors["time.mlp.0.weight"] = torch.cat(tensors["time.mlp.0.weight"].chunk(2, dim=1)[::-1], dim=1)
    if config.conditions.classes and model.config.num_class_embeds == config.conditions.classes:
        table = tensors["embeddings.label.table.weight"]
        tensors["embeddings.label.table.weight"] = torch.cat([table, torch.zeros_like(table[:1])])
    denoiser = Denoiser.from_config(config.unet, config.conditions)
    load_strictly(denoiser, tensors, f"{folder}/unet")
    return config, denoiser.eval()


def config_from_diffusers(folder: str, model, scheduler: dict) -> Config:
    for name, value in SUPPORTED.items():
        if model[name] != value:
            raise UserError(f"{folder}/unet/config.json: {name} {model[name]!r} is not supported, only {value!r}")
    scale_shift = model.resnet_time_scale_shift == "scale_shift"
    groups = model.attn_norm_num_groups or (None if scale_shift else model.norm_num_groups)
    if model.add_attention and groups != model.norm_num_groups:
        raise UserError(f"{folder}/unet/config.json: attn_norm_num_groups {groups} is not supported")
    resampling = {there: here for here, there in DOWNSAMPLE_PADDING.items()}
    if model.downsample_padding not in resampling:
        raise UserError(f"{folder}/unet/config.json: downsample_padding {model.downsample_padding} is not supported")
    attention = [kind == "AttnDownBlock2D" for kind in model.down_block_types]
    for kinds, blocks in (
        (model.down_block_types, {"DownBlock2D", "AttnDownBlock2D"}),
        (model.up_block_types, {"UpBlock2D", "AttnUpBlock2D"}),
    ):
        for kind in set(kinds) - blocks:
            raise UserError(f"{folder}/unet/config.json: block type {kind} is not supported")
    if attention != [kind == "AttnUpBlock2D" for kind in reversed(model.up_block_types)]:
        raise UserError(f"{folder}/unet/config.json: attention on one side of a level only is not supported")
    schedules = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
    betas = scheduler.get("beta_schedule"), scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    if betas[0] not in schedules or (betas[0] == "linear" and betas[1:] != (1e-4, 0.02)):
        raise UserError(f"{folder}/scheduler/scheduler_config.json: beta_schedule {betas} is not supported")
    size = model.sample_size
    classes = model.num_class_embeds or 0
    return Config(
        unet=UNetConfig(
            levels=[
                LevelConfig(channels=channels, blocks=model.layers_per_block, attention=attended)
                for channels, attended in zip(model.block_out_channels, attention, strict=True)
            ],
            in_channels=model.in_channels,
            out_channels=model.out_channels,
            vector_dim=model.time_embedding_dim or 4 * model.block_out_channels[0],
            modulation="scale_shift" if scale_shift else "shift",
            head_channels=model.attention_head_dim,
            middle_attention=model.add_attention,
            dropout=model.dropout,
            norm_groups=model.norm_num_groups,
            norm_eps=model.norm_eps,
            resampling=resampling[model.downsample_padding],
        ),
        conditions=ConditionsConfig(
            classes=classes, class_names=tuple(map(str, range(classes))), time_freq_shift=model.freq_shift
        ),
        diffusion=DDPMConfig(
            prediction_type=scheduler.get("prediction_type", "epsilon"),
            beta_schedule=schedules[betas[0]],
            num_train_timesteps=scheduler.get("num_train_timesteps", 1000),
            rescale_betas_zero_snr=scheduler.get("rescale_betas_zero_snr", False),
        ),
        data=DataConfig(
            path="", resolution=size if isinstance(size, int) else tuple(size), channels=model.in_channels, bit_depth=8
        ),
        train=TrainConfig(),
    )
