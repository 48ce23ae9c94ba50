"""Predicted pockets of proteins as files: a list, and a map of probabilities that viewers of molecules open."""

from pathlib import Path

from ..core.errors import UserError
from ..data.complex_pairs import resolution_of
from ..data.molecules.atoms import protein_of, read_atoms
from ..data.molecules.channels import voxelize
from ..data.pairs import Source
from ..evaluation.pockets import extract_pockets, write_ccp4, write_pockets
from .predict import ImagePredictor
from .predicted_arrays import Extras


def save_pockets(predictor: ImagePredictor, sources: tuple[Source, ...], path: Path, extras: Extras = Extras()) -> None:
    """Write the pockets of a protein to PATH.csv, the most probable first, and their probabilities to PATH.ccp4.

    Raise UserError for a file that cannot be read, and for a run that was not trained on proteins.
    """
    file = Path(sources[0].path)
    protein = protein_of(read_atoms(file))
    volume = voxelize(protein, resolution_of(predictor.own.data))
    if predictor.labels is None or predictor.channels != 2 or len(volume.values) != predictor.own.data.channels:
        raise UserError(f"{file}: a molecule, and the run was not trained on pockets of proteins")
    assert volume.grid is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    probability = predictor(volume.values).mean[1].clamp(0, 1)
    write_pockets(path.with_name(f"{path.name}.csv"), extract_pockets(probability, volume.grid))
    write_ccp4(path.with_name(f"{path.name}.ccp4"), probability, volume.grid)
