"""The channels of a protein: occupancies beside buriedness, equal however a protein is turned."""

import numpy as np
import pytest
import torch
from rotations import rotate_points, rotate_volume

from diffunet.data.molecules.buriedness import buriedness
from diffunet.data.molecules.channels import NAMES, describe, voxelize
from diffunet.data.molecules.occupancy import cube, rasterize, voxel_of
from diffunet.data.phantoms.globules import globule


def test_channels_are_occupancies_and_buriedness():
    atoms, _ = globule(np.random.default_rng(0))
    volume = voxelize(atoms, 2.0)
    values, grid = volume.values, volume.grid
    assert values.shape[0] == len(NAMES) == 9 and values.dtype == torch.float32
    index = np.rint(voxel_of(atoms.xyz, grid)).astype(int)
    assert (values[0].numpy()[tuple(index.T[::-1])] > 0.5).all()
    shape = tuple(values.shape[1:])
    torch.testing.assert_close(values[:8], rasterize(atoms, grid, shape), rtol=0, atol=0)
    np.testing.assert_allclose(values[8], buriedness(atoms, grid, shape) / 7, atol=1e-7)
    assert values[8].max() > 0.7 and not (values[8] * (values[0] > 0.99)).any()  # none inside of an atom


@pytest.mark.parametrize("number", [1, 7, 13, 20])
def test_channels_turn_with_the_protein(number):
    atoms, _ = globule(np.random.default_rng(1))
    center = atoms.xyz.mean(0)
    grid, shape = cube(center, 25, 2.0)
    rotated = atoms.at(rotate_points(atoms.xyz, number, center))
    expected = rotate_volume(describe(atoms, grid, shape), number)
    torch.testing.assert_close(describe(rotated, grid, shape), expected, atol=1e-4, rtol=0)
