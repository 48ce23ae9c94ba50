"""Binding sites from structures to pockets: training, prediction and scores from the command line."""

import csv
import gzip
import json
from pathlib import Path

import gemmi
import numpy as np
import pytest
from helpers import mistake, run

from diffunet.data.phantoms.globules import globule
from diffunet.evaluation.pockets import COLUMNS

CONFIG = """
objective: {type: segmentation}
unet:
  dims: 3
  levels: [{channels: 4, blocks: 1}, {channels: 8, blocks: 1}]
  middle_attention: false
  norm_groups: 2
data: {path: complexes, patch: 8, folds: 3, fold_by: order, balanced: 0.5}
augment: {mirror: none, rotate: quarters}
predict: {watershed: null}
train: {output: run, steps: 4, batch_size: 2, learning_rate: 1e-2, checkpoint_every: 4, preview_every: 4}
"""


def write_structure(file: Path, seed: int) -> np.ndarray:
    """Write a globule as PDB, with its ligand as HETATM records, and return the ligand's coordinates."""
    atoms, ligand = globule(np.random.default_rng(seed))
    lines = []
    for number, (xyz, residue, name, element) in enumerate(
        zip(atoms.xyz, atoms.residue, atoms.name, atoms.element, strict=True), start=1
    ):
        lines.append(record("ATOM", number, name, residue, "A", number, xyz, element))
    for number, xyz in enumerate(ligand, start=len(lines) + 1):
        lines.append(record("HETATM", number, f"C{number % 100}", "LIG", "B", 1, xyz, "C"))
    file.write_text("\n".join([*lines, "END"]))
    return ligand


def record(kind, serial, name, residue, chain, number, xyz, element) -> str:
    x, y, z = xyz
    start = f"{kind:6}{serial % 100000:5} {name:^4.4} {residue:>3.3} {chain}{number % 10000:4}    "
    return f"{start}{x:8.3f}{y:8.3f}{z:8.3f}{1.0:6.2f}{20.0:6.2f}          {element:>2}"


@pytest.fixture
def complexes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pockets.yaml").write_text(CONFIG)
    Path("complexes").mkdir()
    for seed in range(3):
        write_structure(Path(f"complexes/p{seed}.pdb"), seed)


def test_pockets_of_a_structure(complexes, capsys):
    assert run("train", "--config", "pockets.yaml") == 0
    output = capsys.readouterr().out
    assert "3 pairs of" in output and "9 channels, spaced 2×2×2 Å -> elsewhere 99" in output
    write_structure(Path("new.pdb"), 7)
    assert run("predict", "run", "new.pdb", "--output", "out") == 0
    rows = list(csv.DictReader(Path("out/new.csv").read_text().splitlines()))
    assert all(set(row) == set(COLUMNS) for row in rows)
    grid = gemmi.read_ccp4_map("out/new.ccp4").grid
    values = np.array(grid, copy=False)
    assert values.min() >= 0 and 0 < values.max() <= 1
    atoms = gemmi.read_structure("new.pdb")
    cell = grid.unit_cell
    np.testing.assert_allclose(np.array([cell.a, cell.b, cell.c]) / values.shape, 2, rtol=1e-3)
    extent = 2 * np.array(values.shape)
    assert all(extent > np.ptp([atom.atom.pos.tolist() for atom in atoms[0].all()], axis=0))
    assert run("evaluate", "run") == 0
    table = capsys.readouterr().out
    assert "dcc (Å)" in table and "largest cavity" in table
    record = json.loads(next(Path("run/evaluations").rglob("evaluation.json")).read_text())
    assert set(record["pockets"]) == {"dcc", "top_n", "top_n_plus_2", "dvo", "pli", "missed", "pockets"}
    assert record["pockets"]["dcc"]["references"]["largest_cavity"] > 0


def test_mistakes_with_structures(complexes, capsys):
    assert "one for all axes" in mistake(capsys, "train", "--config", "pockets.yaml", "--data.spacing", "[1, 2, 2]")
    Path("complexes/p1.pdb").write_text("no structure")
    assert "p1" in mistake(capsys, "train", "--config", "pockets.yaml")
    Path("complexes/p1.pdb").unlink()
    text = Path("complexes/p2.pdb").read_text()
    Path("complexes/p2.pdb").write_text("\n".join(line for line in text.splitlines() if not line.startswith("HETATM")))
    assert "p2" in mistake(capsys, "train", "--config", "pockets.yaml")


def test_a_folder_of_packed_structures(complexes):
    assert run("train", "--config", "pockets.yaml", "--train.steps", 1) == 0
    Path("new").mkdir()
    for seed in (7, 8):
        write_structure(Path(f"new/p{seed}.pdb"), seed)
    Path("new/p8.pdb.gz").write_bytes(gzip.compress(Path("new/p8.pdb").read_bytes()))
    Path("new/p8.pdb").unlink()
    assert run("predict", "run", "new", "--output", "out") == 0
    assert sorted(file.name for file in Path("out").iterdir()) == ["p7.ccp4", "p7.csv", "p8.ccp4", "p8.csv"]
