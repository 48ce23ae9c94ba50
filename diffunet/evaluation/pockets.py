"""Pockets of a protein from a volume of probabilities, their files, and their scores against ligands.

Volumes have axes (z, y, x); a grid maps indices (x, y, z) to Å. DVO and PLI compare volumes **in place**: the metrics
published with PUResNet (Kandel et al. 2021) first move each pocket to its own corner, so they forget where it is, and
its figures are not comparable to these.
"""

import csv
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import UserError
from ..core.storage import atomic_write
from ..data.molecules.occupancy import world_of
from ..data.volumes.grids import Grid
from .overlap import Array, as_array, check_shapes

THRESHOLD = 0.2
"""Probability above which a voxel belongs to a pocket, chosen on complexes of PDBbind that networks were trained on: at
Kalasanty's 0.5, pockets cover less of their ligands (0.37 instead of 0.46), since few voxels are certain."""
MIN_VOLUME = 50.0
"""Least volume of a pocket in Å³, as in Kalasanty."""
SUCCESS = 4.0
"""Largest DCC of a success in Å (Chen et al. 2011)."""
COLUMNS = ("rank", "x", "y", "z", "volume", "mean_probability", "max_probability", "mass")
"""Columns of a pocket list: center x, y, z in Å; volume in Å³; probabilities in [0, 1]; mass in Å³, see `Pocket`."""


@dataclass(frozen=True, eq=False)
class Pocket:
    """A connected region of a volume where a ligand may bind."""

    center: np.ndarray
    """Mean of the centers of its voxels, (3,) float64, x, y, z in Å."""
    volume: float
    """In Å³."""
    mean_probability: float
    max_probability: float
    mass: float
    """Sum of the probabilities of its voxels times their volume, in Å³: it orders pockets."""
    mask: np.ndarray
    """(D, H, W) bool."""


def extract_pockets(
    probabilities: Array, grid: Grid, threshold: float = THRESHOLD, min_volume: float = MIN_VOLUME
) -> list[Pocket]:
    """Return the pockets of probabilities (D, H, W), of the largest mass first.

    Voxels above `threshold` are closed by a cross of 7 voxels, as in Kalasanty (Stepniewska-Dziubinska et al. 2020);
    pockets are their components, joined by faces, edges or corners, of at least `min_volume` Å³. Unlike there, pockets
    at the faces of the volume are kept: a box has a margin around the protein, and a pocket at its face is a mistake
    that has to count. Raise UserError unless all values are in [0, 1] and the threshold in [0, 1).
    """
    from scipy import ndimage

    values = as_array(probabilities, np.float64)
    if values.ndim != 3:
        raise UserError(f"pockets: probabilities must have 3 axes (got {values.shape}); choose a channel")
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # also false for NaN
        raise UserError(f"pockets: probabilities must be in [0, 1] (got {values.min():g} to {values.max():g}); rescale")
    if not 0 <= threshold < 1:
        raise UserError(f"threshold: a probability in [0, 1) is needed (got {threshold}); use {THRESHOLD}")
    if not min_volume >= 0:
        raise UserError(f"min_volume: must not be negative (got {min_volume}); use {MIN_VOLUME:g}")
    above = ndimage.binary_closing(np.pad(values > threshold, 1))[1:-1, 1:-1, 1:-1]
    labels = np.zeros(values.shape, np.int32)
    ndimage.label(above, np.ones((3, 3, 3)), output=labels)
    voxel = voxel_volume(grid)
    pockets = []
    for label, window in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[window] == label
        volume = float(inside.sum() * voxel)
        if volume < min_volume * (1 - 1e-9):  # the determinant is rounded
            continue
        own = values[window][inside]
        mask = np.zeros(values.shape, bool)
        mask[window] = inside
        pockets.append(Pocket(mask_center(mask, grid), volume, own.mean(), own.max(), float(own.sum() * voxel), mask))
    return sorted(pockets, key=lambda pocket: -pocket.mass)


def voxel_volume(grid: Grid) -> float:
    """Return the volume of a voxel in Å³. Raise UserError if it is 0."""
    volume = float(abs(np.linalg.det(grid.affine[:3, :3])))
    if not volume > 0:
        raise UserError(f"grid: voxels need a volume (got {volume:g} Å³); correct the affine")
    return volume


def mask_center(mask: Array, grid: Grid) -> np.ndarray:
    """Return the mean of the centers of the voxels of a mask (D, H, W), (3,) in Å; NaN if it is empty."""
    places = np.argwhere(as_array(mask, bool))
    return world_of(places.mean(0)[::-1], grid) if len(places) else np.full(3, np.nan)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def write_pockets(path: Path, pockets: Sequence[Pocket]) -> None:
    """Write a list of pockets as .csv or .json, a list of objects, with COLUMNS. Raise UserError at other suffixes.

    Rank 1 is the first pocket.
    """
    rows = [
        {
            "rank": rank,
            **{axis: round(float(value), 3) for axis, value in zip("xyz", pocket.center, strict=True)},
            **{name: round(float(getattr(pocket, name)), 4) for name in COLUMNS[4:]},
        }
        for rank, pocket in enumerate(pockets, start=1)
    ]
    path = Path(path)
    if path.suffix not in (".csv", ".json"):
        raise UserError(f"{path}: a pocket list is .csv or .json (got {path.suffix or 'no suffix'}); rename it")
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".json":
            json.dump(rows, file, indent=1)
        else:
            writer = csv.DictWriter(file, list[str](COLUMNS))
            writer.writeheader()
            writer.writerows(rows)


def write_ccp4(path: Path, values: Array, grid: Grid) -> None:
    """Write values (D, H, W) as a CCP4 map, float32, that viewers lay over the structure.

    A grid that starts at whole multiples of its voxels, as a `box` does, is written by its start (NXSTART), which all
    programs read; any other by the origin of MRC2014 (words 50 to 52), which Coot ignores.
    Raise UserError if gemmi is missing or the voxels are not along the axes.
    """
    try:
        import gemmi
    except ImportError:
        raise UserError(f"{path}: a CCP4 map needs gemmi; pip install 'diffunet[volumes]'") from None
    values = as_array(values, np.float32)
    if values.ndim != 3 or not values.size:
        raise UserError(f"{path}: a map must have 3 axes (got {values.shape}); choose a channel")
    step = grid.affine.diagonal()[:3]
    if not (np.allclose(grid.affine[:3, :3], np.diag(step), atol=1e-9) and (step > 0).all()):
        raise UserError(f"{path}: voxels of a map must lie along x, y, z (got {grid.affine[:3, :3].tolist()}); align")
    size = values.shape[::-1]
    start = grid.affine[:3, 3] / step
    whole = np.abs(start - np.rint(start)).max() < 1e-3
    a, b, c = (step * size).tolist()
    cell = gemmi.UnitCell(a, b, c, 90, 90, 90)
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = gemmi.FloatGrid(np.ascontiguousarray(values.transpose(2, 1, 0)), cell, gemmi.SpaceGroup("P 1"))
    ccp4.update_ccp4_header(2)
    for axis in range(3):
        ccp4.set_header_i32(5 + axis, round(start[axis]) if whole else 0)
        ccp4.set_header_float(50 + axis, 0.0 if whole else float(grid.affine[axis, 3]))
    with atomic_write(Path(path)) as partial:
        ccp4.write_ccp4_map(str(partial))


# ── scores ────────────────────────────────────────────────────────────────────────────────────────


def dcc(center: np.ndarray, ligand: np.ndarray) -> float:
    """Return the distance of a pocket's center to the centroid of a ligand's heavy atoms (M, 3), in Å.

    The name is that of "distance center to center" (Chen et al. 2011).
    """
    return float(np.linalg.norm(np.asarray(center, np.float64) - np.asarray(ligand, np.float64).mean(0)))


def dvo(predicted: Array, target: Array) -> float:
    """Return the discretized volume overlap |A ∩ B| / |A ∪ B| of two masks (D, H, W) where they are, in [0, 1].

    NaN if both are empty.
    """
    predicted, target = as_array(predicted, bool), as_array(target, bool)
    check_shapes(predicted, target)
    union = (predicted | target).sum()
    return float((predicted & target).sum() / union) if union else float("nan")


def pli(predicted: Array, ligand: Array) -> float:
    """Return the share of a ligand's voxels (D, H, W) that a pocket covers where it is, in [0, 1]; NaN without voxels.

    The name is that of "proportion of ligand inside" (Kandel et al. 2021).
    """
    predicted, ligand = as_array(predicted, bool), as_array(ligand, bool)
    check_shapes(predicted, ligand)
    return float((predicted & ligand).sum() / ligand.sum()) if ligand.any() else float("nan")


def found(
    pockets: Sequence[Pocket], ligands: Sequence[np.ndarray], extra: int = 0, limit: float = SUCCESS
) -> list[bool]:
    """Return for each of the N ligands (M, 3) whether one of the first N + extra pockets has a DCC within `limit` Å.

    extra: 0 for top-N, 2 for top-(N + 2).
    """
    first = pockets[: len(ligands) + extra]
    return [any(dcc(pocket.center, ligand) <= limit for pocket in first) for ligand in ligands]


def pocket_scores(
    pockets: Sequence[Pocket], ligands: Sequence[np.ndarray], targets: Sequence[Array], grid: Grid
) -> dict[str, float]:
    """Return the scores of the pockets of one protein with N ligands, means over the ligands.

    Of a ligand, `dcc`, `dvo` and `pli` are those of the nearest of the first N pockets by DCC. Without pockets a ligand
    is missed: its DCC is the diagonal of the volume, DVO and PLI are 0. Nothing is left out of a mean.

    ligands: coordinates (M, 3) in Å; targets: the target volume (D, H, W) of each.
    Returns: dcc (Å), top_n and top_n_plus_2 (shares of ligands found), dvo, pli, missed (share), pockets (number).
    Raise UserError without ligands, or unless there is a target for each.
    """
    if not ligands or len(ligands) != len(targets):
        raise UserError(f"pockets: {len(targets)} targets (got {len(ligands)} ligands); give one for each ligand")
    rows = []
    for ligand, target in zip(ligands, targets, strict=True):
        nearest = min(pockets[: len(ligands)], key=lambda pocket: dcc(pocket.center, ligand), default=None)
        if nearest is None:
            rows.append((_diagonal(as_array(target).shape, grid), 0.0, 0.0))
        else:
            rows.append((dcc(nearest.center, ligand), dvo(nearest.mask, target), pli(nearest.mask, target)))
    means = np.mean(rows, axis=0)
    return {
        "dcc": float(means[0]),
        "top_n": float(np.mean(found(pockets, ligands))),
        "top_n_plus_2": float(np.mean(found(pockets, ligands, extra=2))),
        "dvo": float(means[1]),
        "pli": float(means[2]),
        "missed": float(not pockets),
        "pockets": float(len(pockets)),
    }


def _diagonal(shape: tuple[int, ...], grid: Grid) -> float:
    return float(np.linalg.norm(grid.affine[:3, :3] @ np.array(shape[::-1])))


def mean_scores(
    cases: Sequence[dict[str, float]], clusters: Sequence[Hashable] | None = None
) -> dict[str, tuple[float, float]]:
    """Return mean and standard error of each score over proteins.

    clusters: one for each protein, such as of similar sequence; proteins of one are not independent, so the error is
    that of the sums over clusters, sqrt(K / (K - 1) · Σ_k (Σ_{i in k} (x_i - mean))²) / n (Liang and Zeger 1986).
    NaN with fewer than two clusters. Raise UserError without cases.
    """
    if not cases:
        raise UserError("pockets: no cases (got 0); give at least one")
    keys = list(range(len(cases)) if clusters is None else clusters)
    if len(keys) != len(cases):
        raise UserError(f"clusters: {len(cases)} are needed (got {len(keys)}); give one for each case")
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    member = np.array([numbers[key] for key in keys])
    scores = {}
    for name in cases[0]:
        values = np.array([case[name] for case in cases], np.float64)
        sums = np.bincount(member, values - values.mean())
        few = len(sums) < 2
        error = float("nan") if few else np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(values)
        scores[name] = float(values.mean()), float(error)
    return scores
