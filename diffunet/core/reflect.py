"""Positions beyond the edges of an image, mirrored into it."""

from torch import Tensor


def reflect_index(position: Tensor, size: int) -> Tensor:
    """Return positions in [0, size), those outside reflected at the edges, repeatedly if need be."""
    period = max(2 * (size - 1), 1)
    position = position.abs() % period
    return position.minimum(period - position)
