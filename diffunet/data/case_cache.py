"""Decoded cases in files, which are mapped into memory: of a patch, only what it covers is read."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from ..core.storage import atomic_directory, cache_folder
from .cases import Case

PARTS = "image", "target", "weight", "instances"
FORMAT = 1
"""Of these files, and of how cases are decoded; part of their place."""


def folder_of(*decided_by: object) -> Path:
    """Return the folder of decoded cases by everything that decides about them, in words."""
    digest = hashlib.sha256(repr((FORMAT, *map(str, decided_by))).encode()).hexdigest()
    return cache_folder("cases") / digest[:16]


class Stored:
    """Cases that are decoded once, into a folder, and by whichever process needs one first."""

    def __init__(self, decode: Callable[[int], Case], number: int, folder: Path):
        self.decode, self.number, self.folder = decode, number, folder
        self.get = cache(self._load)  # arrays in files take no memory, and a case keeps the places of its classes

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Case:
        return self.get(index)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "get"}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def _load(self, index: int) -> Case:
        folder = self.folder / f"{index:06d}"
        if not folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f"{index:06d}.lock"):  # other processes need this case, too
                if not folder.is_dir():
                    _store(folder, self.decode(index))
        parts = {name: file for name in PARTS if (file := folder / f"{name}.npy").exists()}
        tensors = {name: torch.from_numpy(np.load(file, mmap_mode="c")) for name, file in parts.items()}
        name, *spacing = (folder / "name.txt").read_text(encoding="utf-8").split("\n")
        return Case(name, **tensors, spacing=tuple(map(float, spacing)) if spacing else None)


def _store(folder: Path, case: Case) -> None:
    with atomic_directory(folder) as new:
        for name in PARTS:
            if (part := getattr(case, name)) is not None:
                np.save(new / f"{name}.npy", part.numpy())
        lines = [case.name, *map(repr, case.spacing or ())]
        (new / "name.txt").write_text("\n".join(lines), encoding="utf-8")
