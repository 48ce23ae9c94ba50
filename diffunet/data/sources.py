"""Where pictures come from: the rows of a folder, of parquet files or of the hub, all through `datasets`."""

import hashlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .decoding import file_of, reason_of
from ..core.errors import UserError, did_you_mean, printable

MAX_CLASSES = 100_000
"""A column with more is no column of classes."""


def load_rows(path: str, split: str, say: Callable):
    """The `datasets.Dataset` of an image folder, a parquet file or folder, or a hub id. UserError if there is none."""
    import datasets
    import huggingface_hub

    if not path:
        raise UserError("data.path: not known for this run; say where its pictures are")
    datasets.utils.logging.set_verbosity(logging.CRITICAL)                    # what it logs, it raises as well
    huggingface_hub.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        here = Path(path).expanduser()
        looks_like_an_id = path.count("/") == 1 and not here.is_absolute() and not path.startswith((".", "~"))
        if not here.exists() and not looks_like_an_id:
            near = did_you_mean(here.name, os.listdir(here.parent)) if here.parent.is_dir() else ""
            near = near or " (and a hub id has the form owner/name)"
            raise UserError(f"data.path: {printable(path)} does not exist{near}")
        if parquet := _parquet_files(here):
            files = [str(file) for file in parquet if split in file.stem] or [str(file) for file in parquet]
            rows = datasets.load_dataset("parquet", data_files={split: files}, split=split)
        elif here.is_dir():
            files = split_patterns(here)
            rows = datasets.load_dataset("imagefolder", data_dir=str(here), data_files=files, split=split)
            _say_what_metadata_left_out(here, len(rows), say)
        else:
            rows = datasets.load_dataset(path, split=split)
    except UserError:
        raise
    except datasets.exceptions.DatasetNotFoundError:
        raise UserError(f"data.path: {printable(path)} is neither a path nor a data set on the hub") from None
    except (datasets.data_files.EmptyDatasetError, datasets.exceptions.DataFilesNotFoundError):
        raise UserError(f"data.path: {path} holds no pictures") from None
    except Exception as error:                             # of pandas, pyarrow and fsspec, too
        raise UserError(f"data.path: {printable(path)}, split {printable(split)}: {reason_of(error)}") from error
    if not len(rows):
        raise UserError(f"data.path: {path} holds no pictures")
    return rows


def split_patterns(folder: Path) -> dict[str, list[str]]:
    """Patterns for the files of each split: by the names of folders, else of files, else all are for training.

    What `datasets` finds by itself, too, but searches the folder sixty times for, with every word in every form.
    UserError for a folder without files.
    """
    from datasets.data_files import NON_WORDS_CHARS as SEPARATORS
    from datasets.data_files import SPLIT_KEYWORDS

    words = {word: str(split) for split, known in SPLIT_KEYWORDS.items() for word in known}
    end = f"[{SEPARATORS}]"
    named = re.compile(rf"(?:^|[/\0]|{end})({'|'.join(words)})(?=/|{end})")
    folders, files, number = set(), set(), 0
    for here, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith((".", "__"))]
        if names := [name for name in names if not name.startswith(".")]:
            folders.update(named.findall(f"{Path(here).relative_to(folder).as_posix()}/"))
            files.update(named.findall("\0".join(names)))
            number += len(names)
    if not number:
        raise UserError(f"data.path: {folder} holds no pictures")
    before = ("", f"*{end}")
    if folders:
        forms = [f"**/{start}{{}}{stop}/**" for start in before for stop in ("", f"{end}*")]
    else:
        forms = [f"**/{start}{{}}{end}*" for start in before]
    found: dict[str, list[str]] = {}
    for word in sorted(folders or files):
        found.setdefault(words[word], []).extend(form.format(word) for form in forms)
    return found or {"train": ["**"]}


def _parquet_files(here: Path) -> list[Path]:
    """The parquet files that a path means, but one called metadata is about pictures. UserError for a damaged one."""
    from pyarrow import parquet

    found = sorted(here.rglob("*.parquet")) if here.is_dir() else [here] * here.is_file()
    files = [file for file in found if file.name != "metadata.parquet"]
    try:
        rows = 0
        for file in files:
            rows += parquet.read_metadata(file).num_rows
    except Exception as error:
        raise UserError(f"data.path: {file} is no parquet file: {reason_of(error)}") from None
    if files and not rows:
        raise UserError(f"data.path: {here} holds no rows")
    return files


def _say_what_metadata_left_out(folder: Path, used: int, say: Callable) -> None:
    """`datasets` drops pictures that a metadata file does not name, and says nothing."""
    if any(folder.rglob("metadata.*")):
        known = Image.registered_extensions()
        there = sum(file.suffix.lower() in known for file in folder.rglob("*"))
        if there > used:
            say(f"{there - used} pictures in {folder} are not named in its metadata file and are left out")


def undecoded(rows, column: str | None, path: str):
    """Rows of {"image": {bytes, path}}: decoding stays ours, so that a broken file can be named."""
    import datasets
    import pyarrow

    if column is None:
        found = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        if len(found) != 1:
            which = f"{' and '.join(found)} hold pictures" if found else "none holds pictures"
            columns = printable(", ".join(rows.column_names))
            raise UserError(f"data.image_column: say which column of {path} ({columns}); {which}")
        column = found[0]
    _refuse_missing(rows, column, path, "data.image_column")
    try:
        with warnings.catch_warnings(action="ignore"):     # of lists that could be pictures
            files = rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"data.image_column: column {column} of {path} does not hold pictures") from error
    files = files if column == "image" else files.rename_column(column, "image")
    _refuse_outside(files, Path(path).expanduser())
    return files


def _refuse_outside(files, here: Path) -> None:
    """UserError if a data set on this disk names a picture that is not inside it: it may be somebody else's."""
    from pyarrow import compute

    if not here.exists():
        return
    pictures = files.data.column("image")
    named = compute.filter(compute.struct_field(pictures, "path"), compute.struct_field(pictures, "bytes").is_null())
    folder = here if here.is_dir() else here.parent
    inside = tuple(os.path.join(way(folder), "") for way in (os.path.abspath, os.path.realpath))
    for name in named.to_pylist():
        if name and not os.path.abspath(name.rpartition("::")[2]).startswith(inside):
            raise UserError(f"data.path: {here} names {printable(name)}, which is outside of it, and so is not read")


def class_labels(rows, column: str | None, path: str) -> tuple[tuple[str, ...], Tensor | None]:
    """Names and indices (N,) of the classes, from a column of class labels, numbers or words.

    Without a column, the one called label, or no classes.
    """
    import datasets

    if column is None and "label" not in rows.column_names:
        return (), None
    column = column or "label"
    _refuse_missing(rows, column, path, "data.label_column")
    kind, values = rows.features[column], list(rows[column])
    dtype = str(getattr(kind, "dtype", ""))
    if any(value is None for value in values):
        raise UserError(f"data.label_column: column {column} of {path} has empty values")
    if isinstance(kind, datasets.ClassLabel):
        names = tuple(kind.names)
    elif "int" in dtype and min(values) >= 0:
        names = tuple(map(str, range(min(max(values), MAX_CLASSES) + 1)))
    elif "string" in dtype:
        names = tuple(sorted(set(values)))
        number = {name: index for index, name in enumerate(names)}
        values = [number[value] for value in values]
    else:
        raise UserError(f"data.label_column: column {column} of {path} holds neither classes nor words")
    if len(names) > MAX_CLASSES:
        found = f"classes up to {max(values)}" if "int" in dtype else f"{len(names)} different words"
        raise UserError(f"data.label_column: column {column} of {path} has {found}; {MAX_CLASSES} are the most")
    if wrong := [value for value in values if not 0 <= value < len(names)]:
        raise UserError(f"data.label_column: column {column} of {path} has classes without a name, such as {wrong[0]}")
    return names, torch.tensor(values, dtype=torch.long)


def _refuse_missing(rows, column: str, path: str, key: str) -> None:
    if column not in rows.column_names:
        near = did_you_mean(column, rows.column_names) or f"; there are {', '.join(rows.column_names)}"
        raise UserError(f"{key}: no column {column} in {path}{near}")


HEAD = 64 * 1024
"""Bytes of a picture's file that its fingerprint reads."""


def fingerprint(number: int, labels: Tensor | None, rows: Iterable[dict]) -> str:
    """SHA-256 of how many pictures there are, their labels (N,), and of some, {bytes, path}, the length and head.

    Of the files as they are, so it depends on no decoder.
    """
    digest = hashlib.sha256(str(number).encode())
    digest.update(b"" if labels is None else labels.numpy().astype("<i8").tobytes())
    for row in rows:
        try:
            length, head = _length_and_head(row)
        except (OSError, ValueError):
            length, head = -1, b""                         # named when it is decoded
        digest.update(b"%d:" % length + head)
    return digest.hexdigest()


def _length_and_head(row: dict | None) -> tuple[int, bytes]:
    source = file_of(row)
    if not isinstance(source, str):
        return len(row["bytes"]), row["bytes"][:HEAD]
    with open(source, "rb") as file:
        return os.fstat(file.fileno()).st_size, file.read(HEAD)
