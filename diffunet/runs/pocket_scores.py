"""Scores of predicted pockets of proteins, beside those of geometric references."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.progress import no_progress
from ..data.complex_pairs import resolution_of
from ..data.molecules.channels import voxelize
from ..data.molecules.complexes import Complex, find_complexes
from ..data.molecules.occupancy import ligand_target
from ..data.pairs import PairConfig, origin_of
from ..evaluation.cavities import cavities, geometric_blobs
from ..evaluation.pockets import extract_pockets, mean_scores, pocket_scores
from .predict import ImagePredictor

UNITS = {"dcc": " (Å)"}


def score_pockets(
    predictor: ImagePredictor, data: PairConfig, indices: Sequence[int], progress: Callable = no_progress
) -> dict[str, Any]:
    """Return the mean scores of `pocket_scores` over some complexes, by name: value, error and those of the references.

    Errors are over the groups of `data.group`.
    """
    complexes = find_complexes(Path(data.path).expanduser())
    rows = [case_scores(predictor, complexes[index]) for index in progress(indices)]
    return summarize_pockets(rows, [origin_of(complexes[index].name, data.group) for index in indices])


def case_scores(predictor: ImagePredictor, complex_: Complex) -> dict[str, dict[str, float]]:
    """Return the scores of a complex by `pocket_scores`, of the network and of the references.

    Largest cavity: the largest region of solvent that is buried; geometric probability: the first blob of its smoothed
    buriedness.
    """
    protein, ligand = complex_.read()
    volume = voxelize(protein, resolution_of(predictor.own.data))
    grid, shape = volume.grid, tuple(volume.values.shape[1:])
    assert grid is not None
    place = protein, grid, shape
    found = {
        "network": extract_pockets(predictor(volume.values).mean[1].clamp(0, 1), grid),
        "largest_cavity": cavities(*place),
        "geometric_probability": geometric_blobs(*place),
    }
    target = ligand_target(ligand.xyz, grid, shape)
    return {name: pocket_scores(pockets, [ligand.xyz], [target], grid) for name, pockets in found.items()}


def summarize_pockets(rows: Sequence[dict[str, dict[str, float]]], origins: Sequence[str]) -> dict[str, Any]:
    """Return the mean of each score over complexes with its error over origins, and the means of the references."""
    means = {name: mean_scores([row[name] for row in rows], origins) for name in rows[0]}
    own = means.pop("network")
    return {
        score: {
            "value": value,
            "error": None if np.isnan(error) else error,
            "references": {name: other[score][0] for name, other in means.items()},
        }
        for score, (value, error) in own.items()
    }


def format_pockets(scores: dict[str, Any]) -> str:
    """Return the scores of pockets as a table."""
    names = list(next(iter(scores.values()))["references"])
    lines = ["", f"{'pockets':34}{'predictions':>22}" + "".join(f"{name.replace('_', ' '):>24}" for name in names)]
    for score, row in scores.items():
        error = "" if row["error"] is None else f"± {row['error']:.2g}"
        beside = "".join(f"{row['references'][name]:>24.4g}" for name in names)
        lines.append(f"{score.replace('_', ' ') + UNITS.get(score, ''):34}{row['value']:>11.4g} {error:10}{beside}")
    return "\n".join(lines)
