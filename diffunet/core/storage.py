"""Files that are complete or absent, with checksums. Nothing here is ever unpickled."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from .errors import UserError

CHECKSUMS = "SHA256SUMS"
"""In an atomic directory: the SHA-256 of each of its files, in the format of `sha256sum --check SHA256SUMS`."""


def cache_folder(name: str) -> Path:
    """Return a folder for files that can be made again: below $XDG_CACHE_HOME or ~/.cache.

    Without a home, as in some containers, it is below the working folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~"), ".cache")) / "diffunet" / name


# ── complete or absent ────────────────────────────────────────────────────────────────────────────


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `path` once all of it is on the disk; nothing remains if it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sums = [f"{sha256_of_file(file)}  {file.name}\n" for file in sorted(partial.iterdir())]
        (partial / CHECKSUMS).write_text("".join(sums))
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        _set_filename(error, path)
        raise
    if path.exists():
        replaced = path.with_name(f".{path.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
        partial.rename(path)
        shutil.rmtree(replaced)
    else:
        partial.rename(path)
    _sync(path.parent)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a file name that becomes `path` once all of it is on the disk; nothing remains if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial.{path.name}")
    try:
        yield partial
        _sync(partial)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        _set_filename(error, path)
        raise
    partial.replace(path)
    with suppress(FileNotFoundError):  # a process that waited for the file may have moved its folder already
        _sync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, completely or not at all. Raise OSError if it cannot be written."""
    text = (line + "\n").encode()
    with open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while text:
                text = text[file.write(text) :]
        except OSError as error:
            with suppress(OSError):
                file.truncate(end)
            _set_filename(error, path)
            raise


def _set_filename(error: BaseException, path: Path) -> None:
    """Add the file name to an OSError that lacks it, as that of a full disk does."""
    if isinstance(error, OSError) and not error.filename:
        error.filename = str(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ── checksums and contents ────────────────────────────────────────────────────────────────────────


def verify_checksums(folder: Path) -> None:
    """Raise UserError, naming the first file of an atomic directory that was changed, lost or added."""
    if not (sums := folder / CHECKSUMS).is_file():
        raise UserError(f"{sums}: missing")
    lines = sums.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    if not all(re.fullmatch(r"[0-9a-f]{64}  [^/]+", line) for line in lines):
        raise UserError(f"{sums}: damaged")
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    present = {file.name for file in folder.iterdir()} - {CHECKSUMS}
    for name in sorted(listed.keys() | present):
        if name not in present:
            raise UserError(f"{folder / name}: missing")
        if name not in listed:
            raise UserError(f"{folder / name}: does not belong here (not listed in {CHECKSUMS})")
        if sha256_of_file(folder / name) != listed[name]:
            raise UserError(f"{folder / name}: damaged (its SHA-256 is not the one in {CHECKSUMS})")


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors as safetensors, with their SHA-256 in the metadata. Raise OSError if that fails."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        # A single entry: safetensors writes several in random order, and equal contents must be equal bytes.
        save_file(tensors, path, metadata={"sha256": sha256_of_tensors(tensors)})
    except safetensors.SafetensorError as error:  # holds an OSError as text
        found = re.search(r"os error (\d+)", str(error))
        code = int(found[1]) if found else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error


def tensors_to_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Return the contents of the file that `save_tensors` writes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(tensors, metadata={"sha256": sha256_of_tensors(tensors)})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU. Raise UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: missing")
    try:
        tensors = load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get("sha256")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not safetensors ({error})") from error
    if expected not in (None, sha256_of_tensors(tensors)):
        raise UserError(f"{path}: damaged (the SHA-256 of its tensors is not the one in its metadata)")
    return tensors


def sha256_of_file(file: Path) -> str:
    """Return the SHA-256 of a file's contents."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sha256_of_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_json(path: Path) -> dict:
    """Return the contents of a JSON file. Raise UserError if it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged (expected names with values)")
    return values


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], source: Path | str) -> None:
    """Copy tensors into a module. Raise UserError, naming the first tensor that is missing, unknown or misshapen."""
    check_state_dict(module.state_dict(), tensors, source)
    module.load_state_dict(tensors)


def check_state_dict(expected: dict[str, Tensor], tensors: dict[str, Tensor], source: Path | str) -> None:
    """Raise UserError, naming the first tensor that is missing, unknown or of another shape."""
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is not part of this network" for name in tensors if name not in expected]
    shapes = [(name, tuple(tensors[name].shape), tuple(expected[name].shape)) for name in expected if name in tensors]
    problems += [f"{name} has shape {shape} instead of {needed}" for name, shape, needed in shapes if shape != needed]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{source}: {problems[0]}{more}; the weights do not match the configuration")
