"""Structures in files: what is read, which group is the ligand, and which mistakes are named."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffunet.core.errors import UserError
from diffunet.data.molecules.atoms import Atoms, joined, ligand_of, protein_of, read_atoms
from diffunet.data.molecules.complexes import find_complexes


def pdb_line(serial, name, residue, chain, number, xyz, *, record="ATOM", altloc=" ", occupancy=1.0, element="C"):
    """Return an atom of the PDB format 3.3."""
    padded = f" {name:<3}" if len(element) == 1 else f"{name:<4}"
    x, y, z = xyz
    return (
        f"{record:<6}{serial:>5} {padded}{altloc}{residue:>3} {chain}{number:>4}    {x:8.3f}{y:8.3f}{z:8.3f}"
        f"{occupancy:6.2f}{10.0:6.2f}          {element:>2}"
    )


PEPTIDE = [
    ("N", "N", (0, 0, 0)),
    ("CA", "C", (1.46, 0, 0)),
    ("C", "C", (2.0, 1.4, 0)),
    ("O", "O", (1.3, 2.4, 0)),
    ("H", "H", (-0.5, 0.8, 0)),
]


def a_pdb() -> str:
    """Return alanine, serine in two conformations, glycerol, sulfate, water, zinc, and ligands of 4 and 5 atoms."""
    lines = [pdb_line(i, n, "ALA", "A", 1, xyz, element=e) for i, (n, e, xyz) in enumerate(PEPTIDE, 1)]
    lines += [pdb_line(6, "CB", "ALA", "A", 1, (2, -0.8, 1.2))]
    lines += [
        pdb_line(10 + i, n, "SER", "A", 2, np.add(xyz, (3.3, 1.5, 0)), element=e)
        for i, (n, e, xyz) in enumerate(PEPTIDE[:4])
    ]
    lines += [
        pdb_line(20, "CB", "SER", "A", 2, (5, 0.6, 1.2), altloc="A", occupancy=0.4),
        pdb_line(21, "CB", "SER", "A", 2, (5, 0.7, -1.2), altloc="B", occupancy=0.6),
        pdb_line(22, "OG", "SER", "A", 2, (6, 0.6, 1.9), altloc="A", occupancy=0.4, element="O"),
        pdb_line(23, "OG", "SER", "A", 2, (6, 0.7, -1.9), altloc="B", occupancy=0.6, element="O"),
        "TER      24      SER A   2",
    ]

    def hetero(name, number, count, start, element="C"):
        return [
            pdb_line(30 + i, f"{element}{i + 1}", name, "A", number, np.add(start, (1.5 * i, 0, 0)), record="HETATM",
                     element=element)
            for i in range(count)
        ]  # fmt: skip

    lines += (
        hetero("GOL", 101, 6, (0, 20, 0)) + hetero("SO4", 102, 5, (0, 30, 0)) + hetero("HOH", 103, 1, (9, 9, 9), "O")
    )
    lines += [pdb_line(60, "ZN", "ZN", "A", 104, (5, 5, 5), record="HETATM", element="ZN")]
    lines += hetero("ABC", 105, 4, (0, 0, 10)) + hetero("XYZ", 106, 5, (0, 0, 15))
    return "\n".join([*lines, "END", ""])


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


MOL2 = """# comment
@<TRIPOS>MOLECULE
site
5 0 2
SMALL
NO_CHARGES

@<TRIPOS>ATOM
1 N      0.0  0.0  0.0  N.4   1 ALA7   0.1
2 CA     1.46 0.0  0.0  C.3   1 ALA7   0.0
3 H      -0.5 0.8  0.0  H     1 ALA7   0.0
4 ZN     5.0  5.0  5.0  Zn    2 ZN301  2.0
5 LP     0.0  9.0  0.0  LP    3 SO4301 0.0
6 S      0.0  9.0  1.0  S.o2  3 SO4301 0.0
7 O      4.0  9.0  1.0  O.3   4 HOH9   0.0
@<TRIPOS>SUBSTRUCTURE
1 ALA7 1 RESIDUE 4 B ALA
@<TRIPOS>MOLECULE
second
@<TRIPOS>ATOM
1 C 9 9 9 C.3 1 LIG1
"""


# ── PDB and mmCIF ─────────────────────────────────────────────────────────────────────────────────


def test_a_pdb_file_without_hydrogens_waters_and_minor_conformations(tmp_path):
    atoms = read_atoms(write(tmp_path / "a.pdb", a_pdb()))
    assert "H" not in atoms.element
    assert "HOH" not in atoms.residue
    side = atoms[(atoms.residue == "SER") & np.isin(atoms.name, ("CB", "OG"))]
    np.testing.assert_allclose(side.xyz, [[5, 0.7, -1.2], [6, 0.7, -1.9]], atol=1e-3)
    assert (atoms.residue == "ALA").sum() == 5
    assert (atoms.residue == "SER").sum() == 6
    assert not atoms.hetero[np.isin(atoms.residue, ("ALA", "SER"))].any()
    assert atoms.hetero[~np.isin(atoms.residue, ("ALA", "SER"))].all()
    assert atoms.element[atoms.residue == "ZN"].tolist() == ["Zn"]
    assert atoms.xyz.dtype == np.float32 and set(atoms.number[atoms.residue == "ABC"]) == {"105"}


def test_compressed_and_upper_case_names_are_read(tmp_path):
    plain = read_atoms(write(tmp_path / "a.pdb", a_pdb()))
    for name in ("b.pdb.gz", "c.ent.gz"):
        (tmp_path / name).write_bytes(gzip.compress(a_pdb().encode()))
        np.testing.assert_array_equal(read_atoms(tmp_path / name).xyz, plain.xyz)
    np.testing.assert_array_equal(read_atoms(write(tmp_path / "D.PDB", a_pdb())).xyz, plain.xyz)


def test_an_mmcif_file_equals_the_pdb_file(tmp_path):
    """The same atoms in the columns of mmCIF; author numbering is used, as in PDB files."""
    columns = (
        "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id"
    )
    columns += " Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id pdbx_PDB_model_num"
    rows = []
    for model in (1, 2):
        for line in a_pdb().splitlines():
            if not line.startswith(("ATOM", "HETATM")):
                continue
            record, serial, name, altloc, residue, chain, number = (
                line[:6], line[6:11], line[12:16], line[16], line[17:20], line[21], line[22:26],
            )  # fmt: skip
            polymer = record.strip() == "ATOM"
            x, y, z, occupancy, b = line[30:38], line[38:46], line[46:54], line[54:60], line[60:66]
            asym, entity = ("P", 1) if polymer else (f"L{number.strip()}", number)
            rows.append(
                f"{record} {serial} {line[76:78]} {name} {altloc.strip() or '.'} {residue} {asym} {entity} "
                f"{number if polymer else '.'} {float(x) + 50 * (model - 1)} {y} {z} {occupancy} {b} {number} {chain} "
                f"{model}"
            )
    text = "data_a\nloop_\n" + "\n".join(f"_atom_site.{column}" for column in columns.split()) + "\n" + "\n".join(rows)
    read = read_atoms(write(tmp_path / "a.cif", text + "\n"))
    expected = read_atoms(write(tmp_path / "a.pdb", a_pdb()))
    for field in ("element", "residue", "name", "chain", "number", "hetero"):
        assert getattr(read, field).tolist() == getattr(expected, field).tolist(), field
    np.testing.assert_allclose(read.xyz, expected.xyz, atol=1e-3)


def test_a_point_mutation_keeps_the_more_occupied_residue(tmp_path):
    lines = [
        pdb_line(i, name, residue, "A", 1, (i, i, i), altloc=altloc, occupancy=occupancy)
        for i, (name, residue, altloc, occupancy) in enumerate(
            [("CA", "SER", "A", 0.3), ("CB", "SER", "A", 0.3), ("CA", "THR", "B", 0.7), ("CG2", "THR", "B", 0.7)], 1
        )
    ]
    atoms = read_atoms(write(tmp_path / "a.pdb", "\n".join(lines)))
    assert atoms.residue.tolist() == ["THR", "THR"]
    assert atoms.name.tolist() == ["CA", "CG2"]


# ── mol2 and npz ──────────────────────────────────────────────────────────────────────────────────


def test_a_mol2_file_has_residues_of_names_or_of_its_substructures(tmp_path):
    atoms = read_atoms(write(tmp_path / "protein.mol2", MOL2))
    assert atoms.element.tolist() == ["N", "C", "Zn", "S"]
    assert atoms.residue.tolist() == ["ALA", "ALA", "ZN", "SO4"]
    assert atoms.number.tolist() == ["7", "7", "301", "301"]
    assert atoms.chain.tolist() == ["B", "B", "", ""]
    assert atoms.hetero.tolist() == [False, False, True, True]
    assert atoms.type.tolist() == ["N.4", "C.3", "Zn", "S.o2"]
    np.testing.assert_allclose(atoms.xyz[1], [1.46, 0, 0], rtol=1e-6)


def test_an_npz_file_names_its_atoms_by_their_order_and_holds_a_ligand(tmp_path):
    element = np.array(["N", "C", "C", "O", "C", "O", "O", "N", "C", "C", "N"])
    residue = np.array(["SER"] * 7 + ["ALA"] * 3 + ["ALA"])
    np.savez(
        tmp_path / "a.npz", xyz=np.arange(33.0).reshape(11, 3), element=element, resname=residue,
        resid=np.array([1] * 7 + [2] * 3 + [3]), chain=np.array(["A"] * 11), ligand_xyz=np.ones((2, 3)),
        ligand_element=np.array(["C", "O"]),
    )  # fmt: skip
    atoms = read_atoms(tmp_path / "a.npz")
    assert atoms.name.tolist() == ["N", "CA", "C", "O", "CB", "OG", "OXT", "N", "CA", "C", "N", "", ""]
    assert ligand_of(atoms).element.tolist() == ["C", "O"]
    assert len(protein_of(atoms)) == 11
    element[5] = "C"  # no serine
    np.savez(tmp_path / "b.npz", xyz=np.zeros((7, 3)), element=element[:7], resname=residue[:7])
    assert set(read_atoms(tmp_path / "b.npz").name) == {""}


# ── choice of the ligand ──────────────────────────────────────────────────────────────────────────


def hetero_group(name: str, start: tuple, count: int, number: str = "1", element: str = "C") -> Atoms:
    """Return a chain of atoms 1.5 Å apart along x."""
    xyz = np.add(start, [(1.5 * i, 0, 0) for i in range(count)]).astype(np.float32)

    def column(text):
        return np.full(count, text)

    return Atoms(xyz, column(element), column(name), column("C"), column("A"), column(number), column(True), column(""))


def protein_atom(xyz) -> Atoms:
    one = hetero_group("ASN", xyz, 1)
    return Atoms(
        *(getattr(one, f) for f in ("xyz", "element", "residue", "name", "chain", "number")), ~one.hetero, one.type
    )


def test_the_ligand_is_the_largest_group_or_the_one_named(tmp_path):
    atoms = read_atoms(write(tmp_path / "a.pdb", a_pdb()))
    assert set(ligand_of(atoms).residue) == {"XYZ"}  # not glycerol, of six atoms
    assert len(ligand_of(atoms, "ABC")) == 4
    assert len(ligand_of(atoms, "GOL")) == 6
    assert set(protein_of(atoms).residue) == {"ALA", "SER", "ZN"}
    with pytest.raises(UserError, match=r"no group ATP \(got ABC, GOL, SO4, XYZ, ZN\)"):
        ligand_of(atoms, "ATP")
    with pytest.raises(UserError, match=r"no group that may be a ligand \(got GOL, SO4, ZN\); name one"):
        ligand_of(atoms[~np.isin(atoms.residue, ("ABC", "XYZ"))])


def test_bonded_groups_are_one_ligand_and_of_equal_ones_the_first_is_kept():
    sugars = [hetero_group("GLC", (4.5 * i, 0, 0), 3, str(i)) for i in range(3)]
    atoms = joined(hetero_group("BIG", (0, 20, 0), 8), *sugars, hetero_group("TWO", (0, 40, 0), 9))
    found = ligand_of(atoms)
    assert len(found) == 9 and set(found.residue) == {"GLC"}


def test_sugars_on_the_protein_are_no_ligand_but_inhibitors_bonded_to_it_are():
    atoms = joined(protein_atom((-1.4, 0, 0)), hetero_group("NAG", (0, 0, 0), 14), hetero_group("ABC", (0, 30, 0), 6))
    assert set(ligand_of(atoms).residue) == {"ABC"}
    assert set(ligand_of(atoms, "NAG").residue) == {"NAG"}
    far = joined(protein_atom((-9, 0, 0)), atoms[1:])
    assert set(ligand_of(far).residue) == {"NAG"}
    covalent = joined(protein_atom((-1.4, 30, 0)), atoms[1:])
    assert set(ligand_of(covalent[covalent.residue != "NAG"]).residue) == {"ABC"}


# ── layouts ───────────────────────────────────────────────────────────────────────────────────────


def test_layouts_of_published_sets_are_found_together(tmp_path):
    ligand = MOL2.partition("@<TRIPOS>SUBSTRUCTURE")[0]
    write(tmp_path / "1abc_1" / "protein.mol2", MOL2)
    write(tmp_path / "1abc_1" / "ligand.mol2", ligand)
    write(tmp_path / "1abc_1" / "cavity6.mol2", ligand)
    write(tmp_path / "1def" / "1def_protein.pdb", a_pdb())
    write(tmp_path / "1def" / "1def_pocket.pdb", a_pdb())
    write(tmp_path / "1def" / "1def_ligand.mol2", ligand)
    write(tmp_path / "1ghi.pdb", a_pdb())
    write(tmp_path / "notes.txt", "")
    np.savez(
        tmp_path / "1jkl.npz", xyz=np.zeros((2, 3)), element=["C", "C"], resname=["ALA"] * 2, ligand_xyz=np.ones((1, 3))
    )
    found = find_complexes(tmp_path)
    assert [(each.name, each.layout) for each in found] == [
        ("1abc_1", "scpdb"), ("1def", "pdbbind"), ("1ghi", "structure"), ("1jkl", "arrays"),
    ]  # fmt: skip
    sizes = [tuple(map(len, each.read())) for each in found]
    # The protein of a pair keeps sulfate and other groups of its file, but no glycerol; that of one file only zinc.
    assert sizes == [(4, 4), (11 + 5 + 1 + 4 + 5, 4), (12, 5), (2, 1)]
    assert len(found[2].read("ABC")[1]) == 4


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "no complexes"),
        (("a.txt",), r"no complexes \(got a.txt\)"),
        (("x_protein.pdb",), "no x_ligand.mol2 or .pdb beside it"),
        (("x/protein.mol2",), "no ligand.mol2 beside it"),
        (("x.pdb", "x.cif"), "complex x twice"),
    ],
)
def test_folders_without_complexes_are_named(tmp_path, files, message):
    for file in files:
        write(tmp_path / file, "")
    with pytest.raises(UserError, match=message):
        find_complexes(tmp_path)


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────


def _npz(**arrays):
    def save(path):
        np.savez(path, **arrays)

    return save


BROKEN = {
    "missing.pdb": (None, "No such file"),
    "empty.pdb": ("", "no atoms"),
    "words.pdb": ("this is not a structure\n", "no atoms"),
    "water.pdb": (pdb_line(1, "O", "HOH", "A", 1, (0, 0, 0), record="HETATM", element="O"), "no atoms"),
    "number.pdb": (pdb_line(1, "CA", "ALA", "A", 1, (1, 2, 3)).replace("   1.000", "  banana"), "line 1: coordinates"),
    "cut.pdb": (pdb_line(1, "CA", "ALA", "A", 1, (1, 2, 3))[:45], "line 1: coordinates"),
    "nan.pdb": (pdb_line(1, "CA", "ALA", "A", 1, (1, 2, 3)).replace("   1.000", "     nan"), "not a structure"),
    "truncated.cif": ("data_a\nloop_\n_atom_site.id\n_atom_site.type_symbol\n1\n", "not a structure"),
    "packed.pdb.gz": (b"no gzip", "not a structure|gzip"),
    "short.mol2": ("@<TRIPOS>ATOM\n1 C 0 0 0\n", "an atom with 5 columns"),
    "number.mol2": ("@<TRIPOS>ATOM\n1 C 0 zero 0 C.3\n", "could not convert"),
    "empty.mol2": ("@<TRIPOS>MOLECULE\n", "no atoms"),
    "bytes.mol2": (b"\xff\xfe\x00@<TRIPOS>", "not a structure"),
    "zip.npz": ("not a zip", "not a structure"),
    "keys.npz": (_npz(element=np.array(["C"])), "no array `xyz`"),
    "shape.npz": (_npz(xyz=np.zeros((3, 2)), element=np.array(["C"] * 3)), r"shape \(3, 2\)"),
    "length.npz": (_npz(xyz=np.zeros((3, 3)), element=np.array(["C"] * 2)), "`element` for 3 atoms"),
    "inf.npz": (_npz(xyz=np.full((1, 3), np.inf), element=np.array(["C"])), "not all finite"),
    "pickle.npz": (_npz(xyz=np.array([{}], object), element=np.array(["C"])), "not a structure"),
    "a.sdf": ("", "a structure has .pdb"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_errors_of_one_line(tmp_path, name):
    content, message = BROKEN[name]
    path = tmp_path / name
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_atoms(path)
    text = str(caught.value)
    assert "\n" not in text and name in text and text.count(str(tmp_path)) == 1


def test_gemmi_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gemmi", None)
    with pytest.raises(UserError, match=r"pip install 'diffunet\[volumes\]'"):
        read_atoms(write(tmp_path / "a.pdb", a_pdb()))


def test_a_file_without_protein_is_named(tmp_path):
    with pytest.raises(UserError, match="no residue of a protein"):
        protein_of(hetero_group("ABC", (0, 0, 0), 3))
    write(tmp_path / "x_protein.pdb", pdb_line(1, "C1", "ABC", "A", 1, (0, 0, 0), record="HETATM"))
    write(tmp_path / "x_ligand.mol2", MOL2)
    with pytest.raises(UserError, match="x_protein.pdb: protein: no residue"):
        find_complexes(tmp_path)[0].read()


def test_groups_are_numbered_by_residue():
    atoms = joined(hetero_group("A", (0, 0, 0), 2, "1"), hetero_group("A", (9, 0, 0), 1, "2"))
    assert atoms.groups().tolist() == [0, 0, 1]
    assert cdist(atoms.at(atoms.xyz + 1).xyz, atoms.xyz)[0, 0] == pytest.approx(3**0.5)
