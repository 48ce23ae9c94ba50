"""Folders of complexes of a protein with its ligand, in the layouts of published sets."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ...core.errors import UserError, printable
from .atoms import Atoms, ligand_of, protein_of, read_atoms
from .chemistry import BUFFERS

STRUCTURES = (".pdb", ".ent", ".cif", ".mmcif")
LAYOUTS = """NAME/protein.mol2 with ligand.mol2 (scPDB), NAME_protein.pdb with NAME_ligand.mol2 or .pdb (PDBbind), \
NAME.pdb or .cif with the ligand as HETATM, NAME.npz"""
"""The layouts that `find_complexes` recognizes, in the folder or in a folder for each complex."""


@dataclass(frozen=True)
class Complex:
    """Files of a protein with its ligand."""

    name: str
    layout: Literal["scpdb", "pdbbind", "structure", "arrays"]
    protein: Path
    ligand: Path | None = None
    """File of the ligand; None: in that of the protein."""

    def read(self, ligand: str | None = None) -> tuple[Atoms, Atoms]:
        """Return protein and ligand. Raise UserError if either cannot be read or is empty.

        A protein with a file of its own keeps its cofactors and loses only BUFFERS; otherwise it is `protein_of`, and
        the ligand is `ligand_of`, of the name `ligand` if given.
        """
        atoms = read_atoms(self.protein)
        try:
            if self.ligand is None:
                return protein_of(atoms), ligand_of(atoms, ligand)
            protein_of(atoms)
        except UserError as error:
            raise UserError(f"{self.protein}: {error}") from None
        return atoms[~(atoms.hetero & np.isin(atoms.residue, sorted(BUFFERS)))], read_atoms(self.ligand)


def find_complexes(folder: Path) -> list[Complex]:
    """Return the complexes of a folder and of its folders, sorted by name, in any of LAYOUTS, also mixed.

    Raise UserError if there are none, a name occurs twice, or a protein has no ligand.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder with {LAYOUTS}")
    found = list(_complexes_in(folder))
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found += _complexes_in(inner)
    if not found:
        raise UserError(f"{folder}: no complexes (got {_contents(folder)}); a complex is {LAYOUTS}")
    places: dict[str, Complex] = {}
    for each in sorted(found, key=lambda each: each.name):
        if (other := places.setdefault(each.name, each)) is not each:
            raise UserError(f"{folder}: complex {each.name} twice ({other.protein}, {each.protein}); remove one")
    return list(places.values())


def _contents(folder: Path) -> str:
    names = [path.name for path in sorted(folder.iterdir())]
    return printable(", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "an empty folder")


def _complexes_in(folder: Path) -> Iterable[Complex]:
    """Yield the complexes whose files are in the folder itself."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")}
    if protein := _first(files, "protein", ".mol2"):
        ligand = _first(files, "ligand", ".mol2")
        if ligand is None:
            raise UserError(f"{protein}: no ligand.mol2 beside it; add it or remove the folder")
        yield Complex(folder.name, "scpdb", protein, ligand)
        return
    for name, path in files.items():
        stem, suffix = _split(name)
        if suffix == ".npz":
            yield Complex(stem, "arrays", path)
        elif suffix in (*STRUCTURES, ".mol2") and stem.endswith("_protein"):
            stem = stem.removesuffix("_protein")
            ligand = _first(files, f"{stem}_ligand", ".mol2", *STRUCTURES)
            if ligand is None:
                raise UserError(
                    f"{path}: no {stem}_ligand.mol2 or .pdb beside it; add it, converted from .sdf if need be"
                )
            yield Complex(stem, "pdbbind", path, ligand)
        elif suffix in STRUCTURES and not re.search(r"_(ligand|pocket)$", stem):
            yield Complex(stem, "structure", path)


def _split(name: str) -> tuple[str, str]:
    """Return stem and suffix of a file name without .gz."""
    path = Path(name.removesuffix(".gz"))
    return path.stem, path.suffix.lower()


def _first(files: dict[str, Path], stem: str, *suffixes: str) -> Path | None:
    """Return the file of this stem with the first of the suffixes that exists, also with .gz."""
    names = [f"{stem}{suffix}{packed}" for suffix in suffixes for packed in ("", ".gz")]
    return next((files[name] for name in names if name in files), None)
