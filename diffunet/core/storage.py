"""Files that are whole or absent, and that vouch for themselves. Nothing here is ever unpickled."""

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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import UserError

CHECKSUMS = "SHA256SUMS"
"""In a whole folder: the SHA-256 of each of its files, as `sha256sum --check SHA256SUMS` reads them, too."""


# ── whole or absent ───────────────────────────────────────────────────────────────────────────────


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A new folder to fill with files, which becomes `path` only when it is complete and on the disk.

    Nothing is left of it when it cannot be written.
    """
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
        _name(error, path)
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
    """A file name to write to, which becomes `path` only when it is complete and on the disk.

    Nothing is left of it when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial.{path.name}")
    try:
        yield partial
        _sync(partial)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        _name(error, path)
        raise
    partial.replace(path)
    _sync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file, whole or not at all. OSError if it cannot be written."""
    text = (line + "\n").encode()
    with open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while text:
                text = text[file.write(text) :]
        except OSError as error:
            with suppress(OSError):
                file.truncate(end)
            _name(error, path)
            raise


def _name(error: BaseException, path: Path) -> None:
    """Lets an error say what file it is about: that of a full disk does not."""
    if isinstance(error, OSError) and not error.filename:
        error.filename = str(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ── vouching for themselves ───────────────────────────────────────────────────────────────────────


def verify_checksums(folder: Path) -> None:
    """UserError that names the first file of a whole folder which is not as it was written."""
    if not (sums := folder / CHECKSUMS).is_file():
        raise UserError(f"{sums}: missing")
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or not all(re.fullmatch(r"[0-9a-f]{64}  [^/]+", line) for line in lines):
        raise UserError(f"{sums}: damaged")
    said = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    there = {file.name for file in folder.iterdir()} - {CHECKSUMS}
    for name in sorted(said.keys() | there):
        if name not in there:
            raise UserError(f"{folder / name}: missing")
        if name not in said:
            raise UserError(f"{folder / name}: does not belong here ({CHECKSUMS} does not name it)")
        if sha256_of_file(folder / name) != said[name]:
            raise UserError(f"{folder / name}: damaged (its SHA-256 is not the one in {CHECKSUMS})")


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Named tensors as safetensors, with their SHA-256 in its metadata. OSError if it cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        # A single entry: safetensors writes several in random order, and equal files shall be equal bytes.
        save_file(tensors, path, metadata={"sha256": sha256_of_tensors(tensors)})
    except safetensors.SafetensorError as error:                               # holds an OSError as text
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: missing")
    try:
        tensors = load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get("sha256")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not safetensors ({error})") from error
    if said not in (None, sha256_of_tensors(tensors)):
        raise UserError(f"{path}: damaged (the SHA-256 of its tensors is not the one that it names)")
    return tensors


def sha256_of_file(file: Path) -> str:
    """Of a file's contents."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sha256_of_tensors(tensors: dict[str, Tensor]) -> str:
    """Of tensors with their names, types and shapes: the same wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_json(path: Path) -> dict:
    """The contents of a JSON file. UserError if it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged (expected names with values)")
    return found


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], source: Path | str) -> None:
    """Copies tensors into a module; UserError names the first missing, extra or misshapen one."""
    check_state_dict(module.state_dict(), tensors, source)
    module.load_state_dict(tensors)


def check_state_dict(expected: dict[str, Tensor], tensors: dict[str, Tensor], source: Path | str) -> None:
    """UserError names the first missing, extra or misshapen tensor."""
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is not part of this network" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(wanted.shape)}"
        for name, wanted in expected.items()
        if name in tensors and tensors[name].shape != wanted.shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{source}: {problems[0]}{more}; the weights do not match the configuration")
