"""Tensors by name from the files of others: torch's, safetensors, and those that torchvision downloads."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import UserError, did_you_mean, printable
from ..core.storage import load_tensors
from ..data.pairs import natural

ENCODERS = "vgg11", "vgg13", "vgg16", "vgg19"
"""Networks of torchvision that begin with a plain stack of convolutions and poolings."""
SUFFIXES = ".safetensors", ".pth", ".pt"
ADVICE = "write it with torch.save(model.state_dict(), FILE)"


def load_torch_file(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file of `torch.save`, in their order: nothing in it is ever executed.

    Raise UserError if the file is missing, damaged, or holds more than tensors by name.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except pickle.UnpicklingError:  # torch's text on it advises to execute the file
        raise UserError(f"{path}: not a file of tensors alone; {ADVICE}") from None
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{path}: not a file of tensors ({printable(repr(error))}); {ADVICE}") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path}: expected tensors by name; {ADVICE}")
    return tensors


def load_encoder(name: str) -> dict[str, Tensor]:
    """Return the tensors of a network in the order of its layers: from a file, or a network of torchvision by name.

    A safetensors file has no order, so that of the names counts, with layer2 before layer10. Raise UserError.
    """
    if name in ENCODERS:
        return _download(name)
    path = Path(name).expanduser()
    if path.suffix not in SUFFIXES:
        near = did_you_mean(name, ENCODERS) or f"; use one of {', '.join(ENCODERS)}, or a file {', '.join(SUFFIXES)}"
        raise UserError(f"{printable(name)}: neither a network of torchvision nor a file of tensors{near}")
    if path.suffix != ".safetensors":
        return load_torch_file(path)
    tensors = load_tensors(path)
    return {name: tensors[name] for name in sorted(tensors, key=natural)}


def _download(name: str) -> dict[str, Tensor]:
    """Return the ImageNet weights of a network, which torch keeps in its cache. Raise UserError without a network."""
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).DEFAULT
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name}: no download ({printable(error)}); fetch {weights.url} and give the file") from None
