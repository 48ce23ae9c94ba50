"""Sources of images: rows of an image folder, of parquet files or of the hub, all through `datasets`."""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..core.errors import UserError, did_you_mean, printable
from .columns import Column
from .config import DataConfig
from .decoding import file_of, reason_of
from .quiet import quiet

if TYPE_CHECKING:
    from datasets import Dataset


@quiet()
def load_rows(path: str, split: str, log: Callable[[str], None]) -> "Dataset":
    """Return the rows of an image folder, parquet or hub id. Raise UserError if missing, unreadable or empty."""
    import datasets

    if not path:
        raise UserError("data.path: unknown for this run; give the path of its images")
    try:
        local = Path(path).expanduser()
        looks_like_an_id = path.count("/") == 1 and not local.is_absolute() and not path.startswith((".", "~"))
        if not local.exists() and not looks_like_an_id:
            near = did_you_mean(local.name, os.listdir(local.parent)) if local.parent.is_dir() else ""
            near = near or " (a hub id has the form owner/name)"
            raise UserError(f"data.path: {printable(path)} does not exist{near}")
        if parquet := _parquet_files(local):
            files = [str(file) for file in parquet if split in file.stem] or [str(file) for file in parquet]
            rows = datasets.load_dataset("parquet", data_files={split: files}, split=split)
        elif local.is_dir():
            files = split_patterns(local)
            _accept_arrays()
            rows = datasets.load_dataset("imagefolder", data_dir=str(local), data_files=files, split=split)
            _log_unlisted_images(local, rows, log)
        else:
            rows = datasets.load_dataset(path, split=split)
    except UserError:
        raise
    except datasets.exceptions.DatasetNotFoundError:
        raise UserError(f"data.path: {printable(path)} is neither a path nor a dataset on the hub") from None
    except (datasets.data_files.EmptyDatasetError, datasets.exceptions.DataFilesNotFoundError):
        raise UserError(f"data.path: {path} contains no images") from None
    except Exception as error:  # pandas, pyarrow and fsspec raise their own
        raise UserError(f"data.path: {printable(path)}, split {printable(split)}: {reason_of(error)}") from error
    if not len(rows):
        raise UserError(f"data.path: {path} contains no images")
    return rows


def _accept_arrays() -> None:
    """Let the image folders of `datasets` hold .npy files; they are decoded in `arrays`."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    if ".npy" not in ImageFolder.EXTENSIONS:
        ImageFolder.EXTENSIONS = [*ImageFolder.EXTENSIONS, ".npy"]


SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in names of folders and files that `datasets` assigns to a split."""
SEPARATOR = "[-._ 0-9]"


def split_patterns(folder: Path) -> dict[str, list[str]]:
    """Return patterns for the files of each split: by the names of folders, else of files, else all are for training.

    These are the splits that `datasets` finds, with two walks of the folder instead of sixty. Raise UserError if the
    folder has no files.
    """
    words = {word: split for split, known in SPLITS.items() for word in known}
    named = re.compile(rf"(?:^|[/\0]|{SEPARATOR})({'|'.join(words)})(?=/|{SEPARATOR})")
    folders, files, empty = set(), set(), True
    for root, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith((".", "__"))]
        if names := [name for name in names if not name.startswith(".")]:
            folders.update(named.findall(f"{Path(root).relative_to(folder).as_posix()}/"))
            files.update(named.findall("\0".join(names)))
            empty = False
    if empty:
        raise UserError(f"data.path: {folder} contains no images")
    stops = ("/**", f"{SEPARATOR}*/**") if folders else (f"{SEPARATOR}*",)
    found: dict[str, list[str]] = {}
    for word in sorted(folders or files):
        forms = [f"**/{start}{word}{stop}" for start in ("", f"*{SEPARATOR}") for stop in stops]
        found.setdefault(words[word], []).extend(forms)
    return found or {"train": ["**"]}


def _parquet_files(local: Path) -> list[Path]:
    """Return the parquet files at a path, except metadata of an image folder. Raise UserError if one is damaged."""
    from pyarrow import parquet

    found = sorted(local.rglob("*.parquet")) if local.is_dir() else [local] * local.is_file()
    files = [file for file in found if file.name != "metadata.parquet"]
    rows = 0
    for file in files:
        try:
            rows += parquet.read_metadata(file).num_rows
        except Exception as error:
            raise UserError(f"data.path: {file} is not a parquet file: {reason_of(error)}") from None
    if files and not rows:
        raise UserError(f"data.path: {local} contains no rows")
    return files


def _log_unlisted_images(folder: Path, rows: "Dataset", log: Callable[[str], None]) -> None:
    """Log how many images a metadata file does not list: `datasets` drops them silently."""
    import datasets

    if any(folder.rglob("metadata.*")):
        known = {*Image.registered_extensions(), ".npy"}
        files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.suffix.lower() in known}
        text = [name for name, kind in rows.features.items() if kind == datasets.Value("string")]
        files -= {path for name in text for path in rows[name]}  # sources, given as paths
        unlisted = len(files) - len(rows) * sum(isinstance(kind, datasets.Image) for kind in rows.features.values())
        if unlisted > 0:
            log(f"skipped {unlisted} images in {folder} that its metadata file does not list")


@quiet()
def encoded_images(rows: "Dataset", column: str | None, path: str) -> "Dataset":
    """Return rows of {"image": {bytes, path}}, not decoded, so that errors can name the broken file."""
    import datasets
    import pyarrow

    if column is None:
        found = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        found = ["image"] if "image" in found else found  # beside the sources of pairs
        if len(found) != 1:
            problem = f"{len(found)} image columns ({', '.join(found)})" if found else "no image column"
            columns = printable(", ".join(rows.column_names))
            raise UserError(f"data.image_column: {path} has {problem}; choose one of its columns: {columns}")
        column = found[0]
    _check_column(column, rows.column_names, path, "data.image_column")
    try:
        files = rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"data.image_column: column {column} of {path} does not contain images") from error
    files = files if column == "image" else files.rename_column(column, "image")
    _check_inside(files, Path(path).expanduser())
    return files


def _check_inside(files: "Dataset", local: Path) -> None:
    """Raise UserError if a local dataset refers to a file outside of it, which may be private."""
    from pyarrow import compute

    if not local.exists():
        return
    images = files.data.column("image")
    paths = compute.filter(compute.struct_field(images, "path"), compute.struct_field(images, "bytes").is_null())
    folder = local if local.is_dir() else local.parent
    inside = tuple(os.path.join(resolve(folder), "") for resolve in (os.path.abspath, os.path.realpath))
    for path in paths.to_pylist():
        if path and not os.path.abspath(path.rpartition("::")[2]).startswith(inside):
            raise UserError(f"data.path: {local} refers to {printable(path)} outside of it; move the file inside")


class Table:
    """The columns beside the images, as lists of Python values."""

    def __init__(self, path: str, rows: "Dataset | Mapping[str, Sequence]"):
        self.path = path
        self.rows = rows
        self.format: DataConfig | None = None
        """Size, channels and bit depth of the images."""

    def __len__(self) -> int:
        return len(self.rows) if hasattr(self.rows, "features") else len(next(iter(self.rows.values())))

    @property
    def column_names(self) -> list[str]:
        return list(getattr(self.rows, "column_names", self.rows))

    def values(self, column: str) -> list:
        """Return the value of every image; of an image column {bytes, path}, not decoded."""
        rows = self.rows
        if hasattr(rows, "features"):
            import datasets

            if isinstance(rows.features[column], datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        return list(rows[column])

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Return the names of the classes that the column numbers, if the data declare them."""
        kind = getattr(self.rows, "features", {}).get(column)
        names = getattr(kind, "names", None)
        return None if names is None else tuple(names)

    def check_column(self, column: str, key: str) -> None:
        """Raise UserError, at the setting `key`, if there is no such column."""
        _check_column(column, self.column_names, self.path, key)


def _check_column(column: str, columns: Collection[str], path: str, key: str) -> None:
    if column not in columns:
        near = did_you_mean(column, columns) or f"; choose one of {', '.join(columns)}"
        raise UserError(f"{key}: no column {column} in {path}{near}")


HEAD = 64 * 1024
"""Bytes of an image file that enter the fingerprint."""


def fingerprint(number: int, columns: Mapping[str, Column], rows: Iterable[dict]) -> str:
    """Return the SHA-256 of the number of images, their columns, and length and head of some files, {bytes, path}.

    It is of the encoded files, and so independent of decoders.
    """
    digest = hashlib.sha256(str(number).encode())
    for _, column in sorted(columns.items()):
        digest.update(column.digest())
    for row in rows:
        try:
            length, head = length_and_head(row)
        except (OSError, ValueError):
            length, head = -1, b""  # logged when it is decoded
        digest.update(b"%d:" % length + head)
    return digest.hexdigest()


def length_and_head(row: dict | None) -> tuple[int, bytes]:
    source = file_of(row)
    if not isinstance(source, str):
        return len(row["bytes"]), row["bytes"][:HEAD]
    with open(source, "rb") as file:
        return os.fstat(file.fileno()).st_size, file.read(HEAD)
