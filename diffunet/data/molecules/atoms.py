"""Proteins and their ligands in files: atoms, the choice of the ligand, and the layouts of published sets.

PDB and mmCIF need gemmi, of the extra `volumes`. Hydrogens and waters are left out, of alternative conformations the
most occupied is kept, and of several models the first.
"""

import gzip
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ...core.errors import UserError, describe_oserror, printable
from .chemistry import BUFFERS, GLYCANS, IONS, METALS, ORDER, POLYMER, WATERS

LIGAND = "LIG"
"""Residue name of a ligand in an .npz file."""
LINKED = 2.0
"""Hetero groups with atoms closer than this, in Å, are bonded and form one ligand, such as a chain of sugars."""


@dataclass(frozen=True, eq=False)
class Atoms:
    """Heavy atoms, N of them. Raise ValueError unless all arrays have N entries and the coordinates are finite."""

    xyz: np.ndarray
    """(N, 3) float32, in Å."""
    element: np.ndarray
    """(N,) str, as in the periodic table: C, Zn."""
    residue: np.ndarray
    """(N,) str, the name of the residue or group: ALA, ATP."""
    name: np.ndarray
    """(N,) str, the name of the atom in its residue: CA; empty if unknown."""
    chain: np.ndarray
    """(N,) str."""
    number: np.ndarray
    """(N,) str, number and insertion code of the residue in its chain: 52A."""
    hetero: np.ndarray
    """(N,) bool: not of a protein or nucleic acid."""
    type: np.ndarray
    """(N,) str, the atom type of AutoDock or SYBYL: OA, C.ar; empty if unknown."""

    def __post_init__(self) -> None:
        if self.xyz.ndim != 2 or self.xyz.shape[1] != 3:
            raise ValueError(f"coordinates have the shape {self.xyz.shape}; (N, 3) are needed")
        for field in fields(self):
            if getattr(self, field.name).shape[:1] != (len(self),):
                raise ValueError(f"{getattr(self, field.name).shape} of `{field.name}` for {len(self)} atoms")
        if not np.isfinite(self.xyz).all():
            raise ValueError("coordinates are not all finite")

    def __len__(self) -> int:
        return len(self.xyz)

    def __getitem__(self, keep: np.ndarray | slice) -> "Atoms":
        """Return the atoms of an index or a mask."""
        return Atoms(*(getattr(self, field.name)[keep] for field in fields(self)))

    def at(self, xyz: np.ndarray) -> "Atoms":
        """Return the same atoms at other coordinates."""
        return replace(self, xyz=np.asarray(xyz, np.float32))

    def groups(self) -> np.ndarray:
        """Return the number of the residue or group of each atom, in order of appearance, (N,) int64."""
        keys = list(zip(self.chain.tolist(), self.number.tolist(), self.residue.tolist(), strict=True))
        numbers = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys], np.int64)


def _from_rows(rows: Iterable[tuple]) -> Atoms:
    """Return atoms from rows (x, y, z, element, residue, name, chain, number, hetero, type) less hydrogens, waters."""
    kept = [row for row in rows if row[3] not in ("H", "D") and row[4] not in WATERS]
    if not kept:
        raise ValueError("no atoms")
    x, y, z, element, residue, name, chain, number, hetero, types = zip(*kept, strict=True)
    xyz = np.stack([np.array(axis, np.float32) for axis in (x, y, z)], 1)
    element, residue, name, chain, number, types = (
        np.array(column, str) for column in (element, residue, name, chain, number, types)
    )
    return Atoms(xyz, element, residue, name, chain, number, np.array(hetero, bool), types)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def read_atoms(path: Path) -> Atoms:
    """Return the heavy atoms of a structure, without waters. Raise UserError if it cannot be read or has none.

    .pdb, .ent, .cif, .mmcif and .mol2, each also with .gz; .npz with arrays as `read_arrays` describes.
    """
    path = Path(path)
    suffix = _suffix(path)
    readers: dict[str, Callable[[Path], Atoms]] = dict.fromkeys((".pdb", ".ent", ".cif", ".mmcif"), _read_structure)
    readers |= {".mol2": _read_mol2, ".npz": _read_arrays}
    if suffix not in readers:
        raise UserError(f"{path}: a structure has {', '.join(readers)} (got {suffix or 'no suffix'}); convert it")
    try:
        return readers[suffix](path)
    except OSError as error:
        raise UserError(f"{describe_oserror(error) if error.filename else f'{path}: {error}'}") from None
    except (ValueError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise UserError(f"{path}: not a structure that can be read ({reason.removeprefix(f'{path}:')})") from None


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _read_structure(path: Path) -> Atoms:
    """Return the atoms of a PDB or mmCIF file."""
    try:
        import gemmi
    except ImportError:
        raise ValueError("it needs gemmi; pip install 'diffunet[volumes]'") from None
    path.stat()  # an OSError with a reason
    form = gemmi.CoorFormat.Pdb if _suffix(path) in (".pdb", ".ent") else gemmi.CoorFormat.Mmcif
    if form == gemmi.CoorFormat.Pdb:
        _check_coordinates(path)
    structure = gemmi.read_structure(str(path), format=form)
    if not len(structure):
        raise ValueError("no atoms")
    structure.setup_entities()
    return _from_rows(_structure_rows(structure[0], gemmi.EntityType.Polymer))


def _check_coordinates(path: Path) -> None:
    """Raise ValueError at an atom of a PDB file whose coordinates are no numbers, which gemmi reads as 0."""
    with (
        gzip.open(path, "rt", errors="replace") if path.suffix.lower() == ".gz" else path.open(errors="replace") as file
    ):
        for number, line in enumerate(file, 1):
            if line.startswith(("ATOM  ", "HETATM")):
                try:
                    _ = [float(line[start : start + 8]) for start in (30, 38, 46)]
                except ValueError:
                    raise ValueError(
                        f"line {number}: coordinates {line[30:54].strip()!r} are not three numbers"
                    ) from None


def _structure_rows(model, polymer) -> Iterator[tuple]:
    for chain in model:
        places: dict[str, list] = {}
        for residue in chain:
            places.setdefault(str(residue.seqid), []).append(residue)
        for number, residues in places.items():
            for residue, atom in _one_conformation(residues):
                ours = residue.entity_type == polymer or (residue.het_flag == "A" and residue.name in POLYMER)
                position, element = atom.pos, atom.element.name
                yield (*position, element, residue.name, atom.name, chain.name, number, not ours, "")


def _one_conformation(residues: list) -> Iterator[tuple]:
    """Yield (residue, atom) of the conformation of the highest mean occupancy among the residues at one place.

    Residues of another name at that place are left out with their conformations; an atom that the conformation lacks is
    that of the most occupied other one.
    """
    occupancies: dict[str, list[float]] = {}
    for residue in residues:
        for atom in residue:
            if atom.has_altloc():
                occupancies.setdefault(atom.altloc, []).append(atom.occ)
    best = min(occupancies, key=lambda each: (-float(np.mean(occupancies[each])), each), default="")
    for residue in residues:
        conformations = {atom.altloc for atom in residue}
        if len(residues) > 1 and best not in conformations and all(atom.has_altloc() for atom in residue):
            continue
        chosen = {}
        for atom in sorted(residue, key=lambda atom: (atom.altloc != best, -atom.occ, atom.altloc)):
            if atom.has_altloc():
                chosen.setdefault(atom.name, atom.altloc)
        yield from ((residue, atom) for atom in residue if not atom.has_altloc() or chosen[atom.name] == atom.altloc)


def _mol2_sections(path: Path) -> dict[str, list[list[str]]]:
    """Return the lines of each section of the first molecule of a mol2 file as words."""
    packed = path.suffix.lower() == ".gz"
    sections: dict[str, list[list[str]]] = {}
    with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as file:
        rows: list[list[str]] = []
        for line in file:
            if line.startswith("@<TRIPOS>"):
                title = line[9:].strip()
                if title == "MOLECULE" and title in sections:
                    break
                rows = sections.setdefault(title, [])
            elif line.strip() and not line.startswith("#"):
                rows.append(line.split())
    if not sections.get("ATOM"):
        raise ValueError("no atoms")
    return sections


def _mol2_atoms(rows: list[list[str]]) -> Iterator[tuple[list[str], tuple[float, float, float], str]]:
    """Yield the words, position and element of each atom; the element is "Du" for dummies and lone pairs."""
    for words in rows:
        if len(words) < 6:
            raise ValueError(f"an atom with {len(words)} columns: {' '.join(words)}")
        x, y, z = (float(word) for word in words[2:5])
        element = words[5].partition(".")[0].capitalize()
        yield words, (x, y, z), "Du" if element in ("Lp", "Du", "Any", "Hal", "Het", "Hev") else element


def _read_mol2(path: Path) -> Atoms:
    """Return the atoms of the first molecule of a Tripos mol2 file, without dummies.

    Residues are those of the section SUBSTRUCTURE (scPDB: chain and name), or from names such as HEM501.
    """
    sections = _mol2_sections(path)
    parts = {words[0]: words for words in sections.get("SUBSTRUCTURE", [])}
    rows = []
    for words, position, element in _mol2_atoms(sections["ATOM"]):
        if element == "Du":
            continue
        residue, number = _split_residue(words[7] if len(words) > 7 else "")
        part = parts.get(words[6], []) if len(words) > 6 else []
        chain = part[5] if len(part) > 5 and part[5] != "****" else ""
        if len(part) > 6 and part[6] != "****":
            residue = part[6]
        number = number or (words[6] if len(words) > 6 else "")
        rows.append((*position, element, residue, words[1], chain, number, residue not in POLYMER, words[5]))
    return _from_rows(rows)


def _split_residue(text: str) -> tuple[str, str]:
    """Return name and number of a residue from a text such as ALA23, ZN301 or SO4301, where both are joined."""
    found = re.fullmatch(r"(.*?)(-?\d+[A-Z]?)", text)
    if not found:
        return text, ""
    stem, number = found.groups()
    if len(stem) >= 3 or stem in IONS or stem in POLYMER:
        return stem[:3], text[len(stem) :]
    return text[:3], text[3:] or number


def _read_arrays(path: Path) -> Atoms:
    """Return the atoms of an .npz file, with a ligand as hetero atoms of the residue LIG.

    xyz (N, 3), element, resname, resid, chain (N,); adtype (N,) of AutoDock; name (N,), which otherwise follow from the
    order of the PDB where the elements agree; ligand_xyz (M, 3), ligand_element (M,). Only xyz and element are needed.
    """
    with np.load(path, allow_pickle=False) as file:
        given = {key: file[key] for key in file.files}
    for key in ("xyz", "element"):
        if key not in given:
            raise ValueError(f"no array `{key}`")
    size = len(given["xyz"])
    texts = {key: given.get(key, np.full(size, "")).astype(str) for key in ("element", "resname", "chain", "adtype")}
    number = given.get("resid", np.zeros(size, int)).astype(str)
    atoms = Atoms(
        given["xyz"].astype(np.float32), texts["element"], texts["resname"], np.full(size, "", "<U4"), texts["chain"],
        number, np.isin(texts["resname"], sorted(BUFFERS | IONS)), texts["adtype"],
    )  # fmt: skip
    atoms = replace(atoms, name=given["name"].astype(str) if "name" in given else _names_in_order(atoms))
    if "ligand_xyz" in given:
        xyz = given["ligand_xyz"].astype(np.float32)
        blank = np.full(len(xyz), "")
        element = given.get("ligand_element", np.full(len(xyz), "C")).astype(str)
        ligand = Atoms(
            xyz, element, np.full(len(xyz), LIGAND), blank, blank, blank, np.ones(len(xyz), bool), blank
        )  # fmt: skip
        atoms = joined(atoms, ligand)
    atoms = atoms[~np.isin(atoms.element, ("H", "D")) & ~np.isin(atoms.residue, sorted(WATERS))]
    if not len(atoms):
        raise ValueError("no atoms")
    return atoms


def _names_in_order(atoms: Atoms) -> np.ndarray:
    """Return the names of atoms in amino acids that are in the order of the PDB, possibly cut short; else empty."""
    names = np.full(len(atoms), "", "<U4")
    groups = atoms.groups()
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(atoms)], strict=True):
        order, elements = ORDER.get(str(atoms.residue[start]), ()), atoms.element[start:end]
        if end - start == len(order) + 1:
            order = (*order, "OXT")
        if order[: len(elements)] and [each[0] for each in order[: len(elements)]] == [e[0] for e in elements]:
            names[start:end] = order[: len(elements)]
    return names


def joined(*parts: Atoms) -> Atoms:
    """Return the atoms of all parts, in order."""
    return Atoms(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Atoms)))


# ── protein and ligand ────────────────────────────────────────────────────────────────────────────


def _metal_ions(atoms: Atoms) -> np.ndarray:
    """Return which atoms are metals alone in their group, (N,) bool."""
    groups = atoms.groups()
    return np.isin(atoms.element, sorted(METALS)) & (np.bincount(groups)[groups] == 1)


def protein_of(atoms: Atoms) -> Atoms:
    """Return proteins, nucleic acids and single metal ions, which often hold a ligand; no cofactors, no buffers.

    Raise UserError if there is no protein.
    """
    if not (~atoms.hetero).any():
        raise UserError("protein: no residue of a protein (got only ligands and ions); choose another file")
    return atoms[~atoms.hetero | _metal_ions(atoms)]


def ligand_of(atoms: Atoms, name: str | None = None) -> Atoms:
    """Return the ligand: the group `name`, or the hetero group of most atoms that may be one.

    Groups bonded to each other count as one group. Waters, IONS and BUFFERS are no ligands, nor are GLYCANS bonded to
    the protein, all of `chemistry`; a name overrides this. Of equal groups the first is returned.
    Raise UserError if there is none.
    """
    hetero = atoms[atoms.hetero]
    found = sorted(set(hetero.residue.tolist()))
    listed = printable(", ".join(found) or "none")
    if name is not None:
        hetero = hetero[hetero.residue == name]
        if not len(hetero):
            raise UserError(f"ligand: no group {printable(name)} (got {listed}); choose one of these")
        groups = hetero.groups()
    else:
        keep = ~np.isin(hetero.residue, sorted(IONS | BUFFERS)) & ~_metal_ions(hetero) if len(hetero) else []
        hetero = hetero[np.asarray(keep, bool)]
        if len(hetero):
            groups = _bonded_groups(hetero)
            bound = _bonded_glycans(hetero, groups, atoms.xyz[~atoms.hetero])
            hetero, groups = hetero[~bound], groups[~bound]
        if not len(hetero):
            raise UserError(f"ligand: no group that may be a ligand (got {listed}); name one")
    return hetero[groups == np.bincount(groups).argmax()]


def _bonded_groups(atoms: Atoms) -> np.ndarray:
    """Return the number of the connected groups of each atom, in order of appearance, (N,) int64."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    groups = atoms.groups()
    pairs = groups[KDTree(atoms.xyz).query_pairs(LINKED, output_type="ndarray")]
    number = int(groups.max()) + 1
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(number, number))
    return connected_components(links, directed=False)[1].astype(np.int64)[groups]


def _bonded_glycans(atoms: Atoms, groups: np.ndarray, protein: np.ndarray) -> np.ndarray:
    """Return which atoms are of groups of GLYCANS alone that are bonded to the protein (P, 3), (N,) bool."""
    from scipy.spatial import KDTree

    if not len(protein):
        return np.zeros(len(atoms), bool)
    touching = KDTree(protein).query(atoms.xyz)[0] < LINKED
    sugar = np.isin(atoms.residue, sorted(GLYCANS))
    number = int(groups.max()) + 1
    others = np.bincount(groups, ~sugar, minlength=number) > 0
    return ((np.bincount(groups, touching, minlength=number) > 0) & ~others)[groups]
