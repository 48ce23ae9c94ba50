"""Where pictures come from: the rows of a folder, of parquet files or of the hub, all through `datasets`."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .settings import UserError, did_you_mean


def load_rows(path: str, split: str, say: Callable):
    """The `datasets.Dataset` of an image folder, a parquet file or folder, or a hub id. UserError if there is none."""
    import datasets
    import huggingface_hub

    if not path:
        raise UserError("data.path: not known for this run; say where its pictures are")
    here = Path(path).expanduser()
    looks_like_an_id = path.count("/") == 1 and not here.is_absolute() and not path.startswith((".", "~"))
    if not here.exists() and not looks_like_an_id:
        near = did_you_mean(here.name, os.listdir(here.parent)) if here.parent.is_dir() else ""
        raise UserError(f"data.path: {path} does not exist{near or ' (and a hub id has the form owner/name)'}")
    datasets.utils.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        if parquet := sorted(here.rglob("*.parquet")) if here.is_dir() else [here] * here.is_file():
            files = [str(file) for file in parquet if split in file.stem] or [str(file) for file in parquet]
            return datasets.load_dataset("parquet", data_files={split: files}, split=split)
        if here.is_dir():
            rows = datasets.load_dataset("imagefolder", data_dir=str(here), split=split)
            _say_what_metadata_left_out(here, len(rows), say)
            return rows
        return datasets.load_dataset(path, split=split)
    except datasets.exceptions.DatasetNotFoundError:
        raise UserError(f"data.path: {path} is neither a path nor a data set on the hub") from None
    except (datasets.data_files.EmptyDatasetError, datasets.exceptions.DataFilesNotFoundError):
        raise UserError(f"data.path: {path} holds no pictures") from None
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"data.path: {path}, split {split}: {reason}") from error


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

    if column is None:
        found = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        if len(found) != 1:
            which = f"{' and '.join(found)} hold pictures" if found else "none holds pictures"
            columns = ", ".join(rows.column_names)
            raise UserError(f"data.image_column: say which column of {path} ({columns}); {which}")
        column = found[0]
    _refuse_missing(rows, column, path, "data.image_column")
    try:
        files = rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"data.image_column: column {column} of {path} does not hold pictures") from error
    return files if column == "image" else files.rename_column(column, "image")


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
        names = tuple(map(str, range(max(values) + 1)))
    elif "string" in dtype:
        names = tuple(sorted(set(values)))
        number = {name: index for index, name in enumerate(names)}
        values = [number[value] for value in values]
    else:
        raise UserError(f"data.label_column: column {column} of {path} holds neither classes nor words")
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
        except OSError:
            length, head = -1, b""                         # named when it is decoded
        digest.update(b"%d:" % length + head)
    return digest.hexdigest()


def _length_and_head(row: dict) -> tuple[int, bytes]:
    if row["bytes"] is not None:
        return len(row["bytes"]), row["bytes"][:HEAD]
    with open(row["path"], "rb") as file:
        return os.fstat(file.fileno()).st_size, file.read(HEAD)
