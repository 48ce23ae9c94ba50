"""The network of a preset, a run or a configuration file, the size of its input, and a plan for its data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError, did_you_mean
from ..core.settings import Settings, settings_from
from ..models.autoencoder import load_autoencoder
from ..models.config import UNetConfig
from ..models.presets import PRESETS
from ..runs.config import Config, ModelConfig, config_file
from ..runs.plan import Plan, make_plan
from ..runs.prediction import MAX_PATCH, PredictionConfig
from ..runs.run import Run
from .kinds import kind_of, kind_of_run


@dataclass(frozen=True)
class Network:
    """A network and what it is for."""

    model: ModelConfig
    size: tuple[int, ...]
    """Of its input."""
    predicts: bool
    plan: Plan | None
    """Of a predictor whose data are given."""


def settings_of(words: Sequence[str]) -> type[Settings]:
    """Return the settings that describe the network among the words of a command line."""
    return PredictionConfig if any(map(_predicts, words)) else ModelConfig


def _predicts(name: str) -> bool:
    if name.startswith("-") or name in PRESETS:
        return False
    try:
        found = (
            kind_of_run(name)[0] if Path(name).is_dir() else kind_of(config_file(name)) if Path(name).suffix else None
        )
    except UserError:  # reported when it is read
        return False
    return found is PredictionConfig


def find_network(
    name: str, size: Sequence[int] | None, flags: Mapping[str, str], log: Callable[[str], None] = print
) -> Network:
    """Return a network by name: of a preset, a run or a file, with flags by dotted keys laid over it.

    size: of its input, one side for all axes, or each; None: that of its images or patches. A predictor is planned if a
    flag is one of the section `data`. Raise UserError for a mistake.
    """
    if _predicts(name):
        return _predictor(name, size, flags, log)
    if name in PRESETS:
        config = settings_from(ModelConfig(unet=UNetConfig(preset=name)), ModelConfig, flags)
        default = config.unet.dims * (64,)
    elif Path(name).is_dir():
        config = settings_from(Run(name).config(), Config, flags)
        default = config.sampled_size
    elif not Path(name).suffix:
        near = did_you_mean(name, PRESETS)
        raise UserError(f"{name}: neither a preset ({', '.join(PRESETS)}), nor a run, nor a file{near}")
    else:
        config = settings_from(config_file(name), Config, flags)
        default = config.data.size if config.data.resolution else (64, 64)
        known = {name: condition for name, condition in config.conditions.items() if condition.is_complete}
        for name in config.conditions.keys() - known.keys():
            log(f"conditions.{name}: left out; its size follows from the data (describe a run instead)")
        config = config.model_copy(update={"conditions": known})
        channels = config.data.channels or 3
        if config.codec.pretrained:
            autoencoder = load_autoencoder(config.codec.pretrained)
            config = config.replace(codec={"factor": autoencoder.factor})
            default, channels = tuple(side // autoencoder.factor for side in default), autoencoder.latent_channels
        config = config.resolve_model(tuple(size or default), channels, config.codec.factor)
    return Network(config, _sides(size or default, config.unet), predicts=False, plan=None)


def _predictor(name: str, size: Sequence[int] | None, flags: Mapping[str, str], log: Callable[[str], None]) -> Network:
    source = Run(name).config(PredictionConfig) if Path(name).is_dir() else config_file(name)
    config = settings_from(source, PredictionConfig, flags)
    plan = None
    if any(key.startswith("data.") for key in flags):
        pairs = config.load(log)
        plan, config = make_plan(pairs, config), config.resolve(pairs)
    default = config.patch_size if config.data.patch else (MAX_PATCH[config.unet.dims],)
    return Network(ModelConfig(unet=config.unet), _sides(size or default, config.unet), predicts=True, plan=plan)


def _sides(size: Sequence[int], unet: UNetConfig) -> tuple[int, ...]:
    return tuple(size) * unet.dims if len(size) == 1 else tuple(size)
