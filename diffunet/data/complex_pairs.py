"""Proteins with their ligands as volumes: channels of chemical properties, and where a ligand binds."""

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from ..core.errors import UserError
from .molecules.channels import voxelize
from .molecules.complexes import Complex, find_complexes
from .molecules.occupancy import RESOLUTION, box, ligand_target
from .pair_files import PairFiles
from .pairs import PairConfig

SUFFIXES = ".pdb", ".ent", ".cif", ".mmcif", ".mol2"
"""Of files of molecules, also with .gz."""
CLASSES = "elsewhere", "pocket"


def is_molecule(file: Path) -> bool:
    """Return whether a file has atoms, by its name."""
    return file.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def has_molecules(folder: Path) -> bool:
    """Return whether a folder, or a folder in it, has files of molecules, or complexes as arrays."""
    if not folder.is_dir():
        return False
    files = [*folder.iterdir(), *folder.glob("*/*")]
    if any(map(is_molecule, files)):
        return True
    arrays = next((file for file in files if file.suffix == ".npz"), None)
    if arrays is None:
        return False
    try:
        with np.load(arrays, allow_pickle=False) as found:
            return "ligand_xyz" in found
    except (OSError, ValueError):
        return False


def resolution_of(config: PairConfig) -> float:
    """Return the side of a voxel in Å. Raise UserError unless it is the same along all axes."""
    spacing = config.spacing if isinstance(config.spacing, tuple) else (RESOLUTION,) * 3
    if len(set(spacing)) > 1:
        sides = ", ".join(f"{side:g}" for side in spacing)
        raise UserError(f"data.spacing: molecules need one for all axes, in Å (got [{sides}])")
    return spacing[0]


class ComplexFolder(PairFiles):
    """Complexes of a protein with a ligand: their channels, and the class of each voxel, 1 near the ligand."""

    unit = "Å"

    def __init__(self, config: PairConfig):
        if config.labels == "instances" or config.values not in (None, (0, 1)):
            raise UserError("data.labels: voxels of a pocket are a class; leave labels and values out")
        self.complexes: list[Complex] = find_complexes(Path(config.path).expanduser())
        self.names = [each.name for each in self.complexes]
        self.resolution = resolution_of(config)
        names = config.class_names or CLASSES
        self.config = config.model_copy(update={"spacing": (self.resolution,) * 3, "class_names": names})
        self.changed = [os.stat(file).st_mtime_ns for each in self.complexes for file in _files(each)]

    def image(self, index: int) -> Tensor:
        protein, _ = self.complexes[index].read()
        return voxelize(protein, self.resolution).values

    def codes(self, index: int) -> np.ndarray:
        protein, ligand = self.complexes[index].read()
        return ligand_target(ligand.xyz, *box(protein.xyz, self.resolution)).numpy().astype(np.int64)

    def values(self, index: int) -> Tensor:
        raise UserError("data.path: pockets of proteins are classes; use objective segmentation")

    def digest(self) -> bytes:
        sizes = [(each.name, file.name, file.stat().st_size) for each in self.complexes for file in _files(each)]
        return repr((self.resolution, sizes)).encode()


def _files(each: Complex) -> list[Path]:
    return [file for file in (each.protein, each.ligand) if file is not None]
