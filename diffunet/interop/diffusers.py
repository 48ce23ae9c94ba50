"""Runs to and from `DDPMPipeline` folders of `diffusers`: the same network, its tensors under other names.

A network that `UNet2DModel` can express is exported to a folder that needs no diffunet, and such folders are imported.
Everything else is refused with an error that names the setting.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import ValidationError

from ..conditions.base import NONE
from ..conditions.label import LabelConfig
from ..core.errors import UserError, printable
from ..core.storage import atomic_write, load_strictly
from ..data.config import DataConfig
from ..models.codec import Codec
from ..models.conditioning import PlaneEmbedding
from ..models.config import LevelConfig, UNetConfig
from ..models.denoiser import Denoiser, TimeConfig
from ..objectives.ddpm import DDPMConfig
from ..runs.config import Config
from . import naming
from .codecs import latent_code, save_codec
from .naming import Pairs, Tensors, block_names, rename, swapped

RESIDUAL = {
    "norm": "norm1",
    "conv_1": "conv1",
    "modulated.project": "time_emb_proj",
    "modulated.norm": "norm2",
    "conv_2": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "to_qkv": ("to_q", "to_k", "to_v"), "to_out": "to_out.0"}
DOWNSAMPLE_PADDING = {"conv": 1, "conv_end_padded": 0}
OTHER = "diffusers' UNet2DModel"


def _names(unet: UNetConfig, label: str | None) -> Pairs:
    """Yield the names of a module here and in `UNet2DModel`."""

    def block(ours: str, theirs: str, index: int, attention: bool) -> Pairs:
        yield from block_names(f"{ours}.0", f"{theirs}.resnets.{index}", RESIDUAL)
        if attention:
            yield from block_names(f"{ours}.1", f"{theirs}.attentions.{index}", ATTENTION)

    yield "time.mlp.0", "time_embedding.linear_1"
    yield "time.mlp.2", "time_embedding.linear_2"
    yield f"embeddings.{label}.table", "class_embedding"
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
    yield from block_names(f"{inner}.{last}", "mid_block.resnets.1", RESIDUAL)


def to_diffusers_tensors(tensors: Tensors, unet: UNetConfig, label: str | None = "label") -> Tensors:
    """Return a denoiser's tensors under the names of `UNet2DModel`. Raise UserError for one without counterpart."""
    return rename(tensors, _names(unet, label))


def from_diffusers_tensors(tensors: Tensors, unet: UNetConfig, label: str | None = "label") -> Tensors:
    """Return the tensors of a `UNet2DModel` under our names. Raise UserError for one without counterpart."""
    return rename(tensors, swapped(_names(unet, label)))


# ── export ────────────────────────────────────────────────────────────────────────────────────────


def export_run(denoiser: Denoiser, config: Config, label: str | None, folder: Path, codec: Codec | None = None) -> str:
    """Write a folder for `DDPMPipeline.from_pretrained`, and return one line on its use.

    `DDPMPipeline` passes no labels, so an export has one class (`label`, its name or number) or is unconditional
    (None): the vector of the class is added to the bias of the time embedding. "all" keeps the classes, with the null
    class as the last one, for callers of the network itself; the pipeline cannot be called then. Nor can it be with an
    image condition, whose planes, with the one of its presence, become input channels after those of x_t. The
    autoencoder of latents, `codec`, becomes vae/. The folder's README.md has the same. Raise UserError, naming the
    setting, if `UNet2DModel` cannot express the network.
    """
    from diffusers import DDPMPipeline, UNet2DModel

    if not isinstance(config.objective, DDPMConfig):
        raise UserError(f"objective: DDPMPipeline cannot sample from a network trained with {config.objective.type}")
    name = naming.label_name(denoiser, OTHER, PlaneEmbedding)
    condition = config.labels[name] if name else LabelConfig()
    words = condition.parse("--label", label or NONE, Path(), config.data.size) if label != "all" else []
    chosen = [value.word for value in words] or ["all"]
    if len(chosen) > 1:
        raise UserError(f"--label: DDPMPipeline samples one class (got {label}); choose one, or all")
    tensors = naming.exportable_tensors(denoiser)
    table, num_class_embeds = tensors.pop(naming.table_key(name), None), None
    if table is not None and label == "all":
        tensors[naming.table_key(name)], num_class_embeds = table, len(table)
    elif table is not None:
        tensors["time.mlp.2.bias"] = tensors["time.mlp.2.bias"] + table[-1 if chosen[0] is None else chosen[0]]
    model = UNet2DModel(**diffusers_config(config, num_class_embeds))
    load_strictly(model, to_diffusers_tensors(tensors, config.unet, name), "export")
    scheduler = config.objective.scheduler(**({"clip_sample": False} if codec else {}))
    DDPMPipeline(unet=model, scheduler=scheduler).save_pretrained(folder)
    if codec:
        save_codec(codec, folder / "vae")
    planes = {
        name: embedding.null_planes.shape[1] - 1
        for name, embedding in denoiser.embeddings.items()
        if isinstance(embedding, PlaneEmbedding)
    }
    kept = condition.class_names if label == "all" else ()
    usage = _usage(condition.class_names, chosen[0], [*planes, *(["class_labels"] if kept else [])])
    code = _code(planes, bool(kept), config.objective.num_train_timesteps)
    if codec:
        usage = usage.replace("DDPMPipeline", "UNet2DModel")
        code = code if planes or kept else latent_code(codec, config)
    tables = _tables(kept, config.unet.in_channels, planes)
    card = ["# Exported from diffunet", "", f"{usage[0].upper()}{usage[1:]}.", "", "```python", code, "```", *tables]
    with atomic_write(folder / "README.md") as file:
        file.write_text("\n".join(card) + "\n", encoding="utf-8")
    return f"{folder}: {usage}"


def _usage(class_names: tuple[str, ...], label: int | str | None, passed: Sequence[str]) -> str:
    """Return how to sample from an exported folder, as one line. passed: what the network takes besides x_t and t."""
    if passed:
        usage = f"call its UNet2DModel with {', '.join(passed)}; DDPMPipeline passes none and would fail"
    else:
        usage = "DDPMPipeline.from_pretrained loads it"
    if not class_names:
        return usage if passed else f"{usage}; unconditional, as the run has no classes"
    if label == "all":
        return f"all classes are kept: {usage}"
    if label is None:
        return f"{usage}; {'of no class' if passed else 'unconditional'}, as no class was chosen with --label"
    return f"{usage}; every image is of class {label} ({printable(class_names[label])}), fixed by --label"


def _code(planes: Iterable[str], labels: bool, steps: int) -> str:
    """Return Python code that samples with the pipeline, or, with planes or labels, calls the network."""
    if not planes and not labels:
        return f"""from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("FOLDER")
images = pipeline(batch_size=4, num_inference_steps={steps}).images"""
    inputs = ["x_t", *(part for name in planes for part in (name, f"torch.ones_like({name}[:, :1])"))]
    x = f"torch.cat([{', '.join(inputs)}], dim=1)" if planes else "x_t"
    end = ", class_labels=labels).sample           # labels: (B,) integers of the table below"
    return f"""import torch
from diffusers import UNet2DModel

unet = UNet2DModel.from_pretrained("FOLDER", subfolder="unet")
output = unet({x}, t{end if labels else ").sample"}"""


def _tables(class_names: Sequence[str], channels: int, planes: Mapping[str, int]) -> list[str]:
    """Return the tables of classes and of input channels, x_t's and those of each image condition, for a model card."""
    lines = []
    if class_names:
        rows = enumerate([*class_names, "unconditional (the null class)"])
        lines += ["", "| class_labels | class |", "| --- | --- |", *(f"| {n} | {printable(row)} |" for n, row in rows)]
    if planes:
        lines += ["", "| input channels | content |", "| --- | --- |", f"| {_span(0, channels)} | x_t |"]
    first = channels
    for name, width in planes.items():
        lines.append(f"| {_span(first, width)} | {name}, in [-1, 1] and in the size of x_t; 0 where absent |")
        lines.append(f"| {first + width} | 1; 0 where {name} is absent |")
        first += width + 1
    return lines


def _span(first: int, width: int) -> str:
    return str(first) if width == 1 else f"{first} to {first + width - 1}"


def diffusers_config(config: Config, num_class_embeds: int | None) -> dict:
    """Return the arguments of the `UNet2DModel` that is this network. Raise UserError if there is none."""
    unet = config.unet
    naming.check_expressible(
        OTHER,
        {
            "dims": unet.dims != 2,
            "resampling": unet.resampling not in DOWNSAMPLE_PADDING,
            "heads (widths differ; use head_channels)": unet.heads is not None and len(_attended(unet)) > 1,
            "norm_groups (does not divide the channels)": any(lv.channels % unet.norm_groups for lv in unet.levels),
            **naming.common_limits(unet),
        },
    )
    attention = [level.attention for level in unet.levels]
    height, width = config.data.size
    head_channels = unet.head_channels
    if unet.heads is not None and (widths := _attended(unet)):
        head_channels = widths.pop() // unet.heads
    return {
        "sample_size": height if height == width else (height, width),
        "in_channels": unet.in_channels + unet.plane_channels,
        "out_channels": unet.out_channels,
        "time_embedding_dim": unet.vector_dim,
        "freq_shift": config.time.freq_shift,
        "flip_sin_to_cos": True,
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        "block_out_channels": tuple(level.channels for level in unet.levels),
        "layers_per_block": unet.levels[0].blocks,
        "downsample_padding": DOWNSAMPLE_PADDING[unet.resampling],
        "dropout": unet.dropout,
        "attention_head_dim": head_channels,
        "norm_num_groups": unet.norm_groups,
        "attn_norm_num_groups": unet.norm_groups,
        "norm_eps": unet.norm_eps,
        "resnet_time_scale_shift": {"shift": "default", "scale_shift": "scale_shift"}[unet.modulation],
        "add_attention": unet.middle_attention,
        "num_class_embeds": num_class_embeds,
    }


def _attended(unet: UNetConfig) -> set[int]:
    """Return the widths at which the network attends."""
    middle = {unet.levels[-1].channels} if unet.middle_attention else set()
    return middle | {level.channels for level in unet.levels if level.attention}


# ── import ────────────────────────────────────────────────────────────────────────────────────────

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
"""Settings of a `UNet2DModel` of which this U-Net has one value only; others are refused by name."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence both libraries, whose warnings are about problems that are refused below anyway."""
    import huggingface_hub
    from diffusers.utils import logging

    libraries = logging, huggingface_hub.utils.logging
    before = [each.get_verbosity() for each in libraries]
    for each in libraries:
        each.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for each, level in zip(libraries, before, strict=True):
            each.set_verbosity(level)


def load_diffusers(folder: str) -> tuple[Config, Denoiser]:
    """Return the configuration and the denoiser of a `DDPMPipeline` folder or hub id (google/ddpm-cifar10-32, ...).

    Only safetensors are read. Raise UserError, naming the setting, if this U-Net cannot express the network.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    try:
        with _quiet():
            model, report = UNet2DModel.from_pretrained(
                folder, subfolder="unet", use_safetensors=True, output_loading_info=True
            )
            scheduler = DDPMScheduler.load_config(folder, subfolder="scheduler")
    except Exception as error:  # a damaged folder fails in many ways
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
        raise UserError(f"{folder}: invalid configuration ({printable(error)})") from error
    tensors = from_diffusers_tensors(model.state_dict(), config.unet)
    if not model.config.flip_sin_to_cos:  # sines first there, cosines first here
        tensors["time.mlp.0.weight"] = torch.cat(tensors["time.mlp.0.weight"].chunk(2, dim=1)[::-1], dim=1)
    naming.add_null_class(tensors, "label", model.config.num_class_embeds or 0)
    denoiser = Denoiser.from_config(config.unet, config.conditions, config.time)
    load_strictly(denoiser, tensors, f"{folder}/unet")
    return config, denoiser.eval()


def config_from_diffusers(folder: str, model, scheduler: dict) -> Config:
    """Return the configuration of a `UNet2DModel` and its scheduler. Raise UserError for an unsupported setting."""

    def check(supported: bool, name: str, value: object, hint: str = "") -> None:
        if not supported:
            raise UserError(f"{folder}/unet/config.json: {name} {value} is not supported{hint}")

    for name, value in SUPPORTED.items():
        check(model[name] == value, name, repr(model[name]), f", only {value!r}")
    scale_shift = model.resnet_time_scale_shift == "scale_shift"
    groups = model.attn_norm_num_groups or (None if scale_shift else model.norm_num_groups)
    check(model.in_channels <= model.out_channels, "in_channels", model.in_channels, " with fewer out_channels")
    check(not model.add_attention or groups == model.norm_num_groups, "attn_norm_num_groups", groups)
    resampling = {there: here for here, there in DOWNSAMPLE_PADDING.items()}
    check(model.downsample_padding in resampling, "downsample_padding", model.downsample_padding)
    for side, kinds in (("Down", model.down_block_types), ("Up", model.up_block_types)):
        for kind in kinds:
            check(kind in (f"{side}Block2D", f"Attn{side}Block2D"), "block type", kind)
    attention = [kind.startswith("Attn") for kind in model.down_block_types]
    matching = attention == [kind.startswith("Attn") for kind in reversed(model.up_block_types)]
    check(matching, "attention", "on one side of a level only")
    schedules = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
    betas = scheduler.get("beta_schedule"), scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    if betas[0] not in schedules or (betas[0] == "linear" and betas[1:] != (1e-4, 0.02)):
        raise UserError(f"{folder}/scheduler/scheduler_config.json: beta_schedule {betas} is not supported")
    size = model.sample_size if isinstance(model.sample_size, int) else tuple(model.sample_size)
    classes = model.num_class_embeds
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
        conditions={"label": naming.numbered(LabelConfig(num_classes=classes))} if classes else {},
        time=TimeConfig(freq_shift=model.freq_shift),
        objective=DDPMConfig(
            prediction_type=scheduler.get("prediction_type", "epsilon"),
            beta_schedule=schedules[betas[0]],
            num_train_timesteps=scheduler.get("num_train_timesteps", 1000),
            rescale_betas_zero_snr=scheduler.get("rescale_betas_zero_snr", False),
        ),
        data=DataConfig(path="", resolution=size, channels=model.in_channels, bit_depth=8),
    )
