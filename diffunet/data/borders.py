"""Weights of places in a segmentation loss: borders between instances, and classes of unequal frequency.

Ronneberger et al. 2015, section 3. Instances are integer maps of any dimension: 0 is background, positive numbers are
instances, negative numbers are unlabeled. For a membrane mask, instances are the connected components of the rest:
`scipy.ndimage.label(target != membrane)[0]`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from ..core.settings import Settings

CUTOFF = 5.0
"""Distance in sigma beyond which an instance is left out: it would add less than exp(-12.5) = 4e-6 of w0."""


class WeightConfig(Settings):
    """What each place counts in the loss of a segmentation."""

    classes: Literal["equal", "balanced"] = "equal"
    """balanced: each class counts in inverse proportion to its share of the places."""
    border: float = Field(0.0, ge=0, le=1e6)
    """Additional weight of the background between two objects that touch; 10 in the paper of 2015."""
    border_sigma: float = Field(5.0, gt=0, le=1000)
    """Distance in pixels over which that weight falls off."""


def place_weights(
    classes: np.ndarray, instances: np.ndarray | None, counts: Sequence[int], config: WeightConfig
) -> np.ndarray | None:
    """Return the weight of each place in the loss, fp32; None if all are equal.

    classes: -1 where there is no label. Without instances, objects are the connected parts of all classes but the
    first. counts: places of each class in the whole set.
    """
    if config.classes == "equal" and not config.border:
        return None
    balance = class_balance(counts) if config.classes == "balanced" else np.ones(len(counts))
    by_class = balance.astype(np.float32)[classes.clip(min=0)]
    if not config.border:
        return by_class
    from scipy.ndimage import label

    objects = label(classes > 0)[0] if instances is None else instances
    return border_weights(np.where(classes < 0, -1, objects), config.border, config.border_sigma, by_class)


def border_weights(
    instances: np.ndarray, w0: float = 10.0, sigma: float = 5.0, class_weight: np.ndarray | float = 1.0
) -> np.ndarray:
    """Return w = w_c + w0 exp(-(d1 + d2)² / (2 sigma²)) for each place (Ronneberger et al. 2015, equation 2), fp32.

    d1 and d2 are the distances in pixels to the nearest and second nearest instance. The second term is that of the
    background; it is too small by less than 4e-6 w0, as distant instances are left out. `class_weight` is w_c, a number
    or one for each place. Unlabeled places have weight 0.
    """
    from scipy.ndimage import distance_transform_edt, find_objects

    nearest, second = np.full((2, *instances.shape), np.inf, dtype=np.float32)
    numbered, _ = _numbered(instances)
    reach = int(np.ceil(CUTOFF * sigma))
    for number, box in enumerate(find_objects(numbered), start=1):
        near = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in box)
        distance = distance_transform_edt(numbered[near] != number)
        second[near] = np.minimum(second[near], np.maximum(nearest[near], distance))
        nearest[near] = np.minimum(nearest[near], distance)
    border = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    weight = class_weight + np.where(instances == 0, border, 0)
    return np.where(instances < 0, 0, weight).astype(np.float32)


def separate_touching(instances: np.ndarray) -> np.ndarray:
    """Return the instances with a line of background, one pixel wide, wherever two of them touch, also by a corner.

    The larger of the two gives the pixels, so that small ones remain.
    """
    from scipy.ndimage import maximum_filter

    numbered, counts = _numbered(instances)
    rank = np.zeros(len(counts) + 1, dtype=numbered.dtype)
    rank[1 + np.argsort(-counts, kind="stable")] = np.arange(1, len(counts) + 1)  # the largest instance is 1
    ranked = rank[numbered]
    touching = (ranked > 0) & (maximum_filter(ranked, size=3, mode="nearest") > ranked)
    return np.where(touching, 0, instances).astype(instances.dtype)


def class_balance(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the weights w_c of classes with these counts of places, inversely proportional to them.

    Their mean over all counted places is 1. A class without places has the weight of the rarest one.
    """
    counts = np.asarray(counts, dtype=np.float64)
    present = counts[counts > 0]
    if not len(present):
        raise ValueError("no labeled place; count the classes of labeled places")
    return present.sum() / (len(present) * np.where(counts > 0, counts, present.min()))


def _numbered(instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the instances with numbers from 1 without gaps, other places 0, and the number of places of each."""
    names, places, counts = np.unique(instances, return_inverse=True, return_counts=True)
    others = int((names <= 0).sum())
    numbered = np.maximum(places.reshape(instances.shape) - others + 1, 0)
    return numbered, counts[others:]
