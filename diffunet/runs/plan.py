"""A plan of a training that predicts: what the data are, and settings that follow from them and from this machine.

Every choice is a flag with its reason, on one line, so that it can be judged and overridden by itself:

    print(make_plan(pairs, config))
    --data.patch 160        95 % of the objects fit into 152 pixels, and 128 pixels cut them
"""

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import UserError
from ..core.runtime import default_device
from ..core.settings import to_yaml
from ..data.cases import Case, resemblance
from ..data.paired import PairedData
from ..data.pairs import PairConfig, split_fold
from ..evaluation.objects import ClassObjects, Need, needed_field, objects_by_class, touching_share, windows_with
from ..evaluation.references import evenly_spaced
from ..models.config import LevelConfig, UNetConfig, output_side
from ..models.inspection import receptive_field
from ..training.benchmark import free_memory
from .memory import patches_that_fit
from .prediction import MAX_PATCH, PredictionConfig, fitting_sides

SURVEYED = 30
"""Training cases, at most, that are measured, evenly spaced."""
COARSEST = 4
"""Positions of the coarsest level along the shorter side of an image, at least, as in nnU-Net (Isensee et al. 2021)."""
SHARE_OF_SET, MOST_OF_SET = 0.05, 0.2
"""Share of the training set's pixels in a batch: that of nnU-Net, rounded up to a power of two of patches; the most
that is kept."""
SEEN = 0.25
"""Share of the patches, of cases that have the rarest class, that should have it."""
TOUCHING, BORDER = 0.05, 10
"""Share of touching instances from which their borders count more, and `weights.border` then (Ronneberger 2015)."""
FEWEST, NEIGHBORS, ALIKE = 8, 12, 0.1
"""Cases from which on neighbors are compared, pairs of them, and by how much those of a stack correlate more."""
PREFIX = "(.*)_[0-9]+"
"""The origin of a case in its name, with a number after it."""


@dataclass(frozen=True)
class Choice:
    """A setting with its reason."""

    key: str
    value: str
    """As a flag takes it."""
    reason: str
    kept: bool
    """The configuration has it already."""

    def __str__(self) -> str:
        """Return one line: a flag to paste, or what is kept."""
        if self.kept:
            shown = self.value if len(self.value) < 12 else ""
            return f"{f'  {self.key} {shown}':26}  kept: {self.reason}"
        return f"{f'--{self.key} {shlex.quote(self.value)}':26}  {self.reason}"


@dataclass(frozen=True)
class Plan:
    """What was found in the data, in lines, and the choices that follow."""

    facts: list[str]
    choices: list[Choice]

    @property
    def flags(self) -> dict[str, str]:
        """The settings that differ from the configuration, as overrides of `settings_from`."""
        return {choice.key: choice.value for choice in self.choices if not choice.kept}

    def __str__(self) -> str:
        """Return facts and choices, a line each."""
        return "\n".join([*self.facts, "", *map(str, self.choices)])


def make_plan(pairs: PairedData, config: PredictionConfig, memory: int | None = None) -> Plan:
    """Return a plan for these data.

    memory: free bytes, by default those of this machine's accelerator, or else of its CPU. Raise UserError where the
    network cannot be trained on the data as configured.
    """
    planned, names = config.resolve(pairs), pairs.labels.names if pairs.labels else ()
    trained, _ = pairs.split_fold()
    cases = [pairs.cases[index] for index in evenly_spaced(trained, SURVEYED)]
    classes = objects_by_class(cases, names)
    need = needed_field(cases, classes, names)
    memory = free_memory(default_device()) if memory is None else memory
    levels, unet = choose_levels(planned.unet, need.field, cases)
    planned = planned.model_copy(update={"unet": unet})
    patch, size = choose_patch(planned, pairs, need.field, cases, memory)
    planned = planned.replace(data={"patch": size})
    choices = [levels, patch, choose_batch(planned, pairs, cases, len(trained), memory)]
    if classes:
        choices.append(choose_balanced(planned, cases, names))
    if pairs.labels and pairs.labels.instances:
        choices.append(choose_border(config.weights.border, cases))
    choices += choose_folds(config.data, pairs)
    return Plan(_facts(cases, len(trained), classes, need), choices)


def _facts(cases: Sequence[Case], trained: int, classes: Sequence[ClassObjects], need: Need) -> list[str]:
    median = [f"{side:.0f}" for side in np.median([case.size for case in cases], axis=0)]
    low, high = min(float(case.image.min()) for case in cases), max(float(case.image.max()) for case in cases)
    size = f"median size {'×'.join(median)}, values {low:g} to {high:g}"
    lines = [f"measured: {len(cases)} of {trained:,} training cases, {size}"]
    for each in classes:
        counts, sides = each.counts, each.sides
        lines += [
            f"class {each.name}: {_percent(each.share)} of the pixels, contrast {each.contrast:.2f} of 0.20, "
            f"{np.median(counts):.0f} objects an image ({counts.min()} to {counts.max()})",
            f"  objects: longer side {sides.mean():.0f} on average, median {np.median(sides):.0f}, 95 % up to "
            f"{np.quantile(sides, 0.95):.0f} pixels; median width {np.median(each.widths):.0f}",
        ]
    return [*lines, f"receptive field: {need.reason}"]


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


# ── network, patch, batch ─────────────────────────────────────────────────────────────────────────


def choose_levels(unet: UNetConfig, needed: int, cases: Sequence[Case]) -> tuple[Choice, UNetConfig]:
    """Return the levels whose receptive field is at least the needed one, and the network with them.

    The coarsest level has at least COARSEST positions along the shorter side of the images.
    """
    side = int(np.median([min(case.size) for case in cases]))
    levels, field = unet.levels, receptive_field(unet)
    while len(levels) > 1 and side < COARSEST * 2 ** (len(levels) - 1):
        levels = _shallower(levels)
    cut = len(levels) < len(unet.levels)
    found = receptive_field(unet.model_copy(update={"levels": levels}))
    while not cut and found < needed and side >= COARSEST * 2 ** len(levels):
        levels = _deeper(levels)
        found = receptive_field(unet.model_copy(update={"levels": levels}))
    kept = levels == unet.levels
    if cut:
        reason = f"{len(levels)} levels; {len(unet.levels)} leave less than {COARSEST} of {side} pixels"
    elif kept:
        reason = f"{len(levels)} levels have a receptive field of {field}" + f", and {needed} are needed" * (needed > 0)
        reason += ", but the images are too small for more levels" * (found < needed)
    else:
        reason = f"{len(levels)} levels have a receptive field of {found} instead of {field}, and {needed} are needed"
    values = [level.model_dump(mode="json", exclude_defaults=True) for level in levels]
    return Choice("unet.levels", to_yaml(values), reason, kept), unet.model_copy(update={"levels": levels})


def _deeper(levels: tuple[LevelConfig, ...]) -> tuple[LevelConfig, ...]:
    """Return one level more: the coarsest again, or the one above it, if the coarsest has no way up, as in 2015."""
    *above, coarsest = levels
    return (*above, above[-1], coarsest) if above and coarsest.up == () else (*levels, coarsest)


def _shallower(levels: tuple[LevelConfig, ...]) -> tuple[LevelConfig, ...]:
    *above, coarsest = levels
    return (*above[:-1], coarsest) if coarsest.up == () else tuple(above)


def choose_patch(
    config: PredictionConfig, pairs: PairedData, needed: int, cases: Sequence[Case], memory: int
) -> tuple[Choice, tuple[int, ...]]:
    """Return the patch that every level halves evenly along each axis: at least the needed field, at most the images.

    It is smaller where a step on a single one does not fit into memory.
    """
    old, axes = config.patch_size, range(config.unet.dims)
    least = [min(case.size[axis] for case in cases) for axis in axes]
    sides = [_side(config.unet, old[axis], least[axis], needed, axis) for axis in axes]
    size, left = f"{'×'.join(map(str, least))} pixels", output_side(config.unet, min(old))
    if min(old) < needed:
        reason = f"{min(old)} pixels are less than the {needed} that are needed; images have {size} or more"
    elif min(old) < min(sides):
        reason = f"valid borders leave {max(left, 0)} of {min(old)} pixels in the output"
    else:
        reason = f"the smallest image has {size}, and each of {len(config.unet.levels)} levels halves it evenly"
    if (fits := patches_that_fit(config, pairs, sides, memory)) < 1:
        most = [int(max(fits, 0) ** (1 / len(sides)) * side) for side in sides]
        sides = [_largest(fitting_sides(config.unet, side, axis), side) for axis, side in enumerate(most)]
        reason = f"the largest of which one fits into {memory / 2**30:.2g} GiB"
    if kept := tuple(sides) == old:
        reason = f"as large as the {needed} that are needed, and " * (needed > 0) + f"no larger than the images, {size}"
    value = str(sides[0]) if len(set(sides)) == 1 else to_yaml(sides)
    return Choice("data.patch", value, reason, kept), tuple(sides)


def _side(unet: UNetConfig, side: int, whole: int, needed: int, axis: int) -> int:
    """Return the side of a patch along an axis, of images whose shortest is `whole`: the given one, if it is good.

    With valid borders an input may be larger than an image by what its output is smaller, and the output keeps at least
    half of the input.
    """
    smallest = fitting_sides(unet, 1, axis)[0]
    border = smallest - output_side(unet, smallest, axis)
    most, wanted = whole + border, max(needed, 2 * border)
    fitting = fitting_sides(unet, max(most, wanted, side), axis)
    least = min(next(other for other in fitting if other >= wanted), _largest(fitting, most))
    if side in fitting and least <= side <= next(other for other in fitting if other >= most):
        return side
    return max(least, _largest(fitting, min(most, MAX_PATCH[unet.dims])))


def _largest(fitting: Sequence[int], most: int) -> int:
    return max([side for side in fitting if side <= most], default=fitting[0])


def choose_batch(
    config: PredictionConfig, pairs: PairedData, cases: Sequence[Case], trained: int, memory: int
) -> Choice:
    """Return the batch size: that of the configuration, unless memory or the size of the training set limits it."""
    wanted, parts = config.train.batch_size, config.train.gradient_accumulation_steps
    patch, pixels = config.patch_size, trained * float(np.mean([math.prod(case.size) for case in cases]))
    area, fitting = math.prod(patch), max(1, int(parts * patches_that_fit(config, pairs, patch, memory)))
    given = fitting if wanted == "auto" else wanted
    kept = wanted != "auto" and given <= fitting and given * area <= max(MOST_OF_SET * pixels, 2 * area)
    enough = 2 ** math.ceil(math.log2(max(2.0, SHARE_OF_SET * pixels / area)))
    size = given if kept else max(parts, min(enough, 2 ** int(math.log2(fitting))) // parts * parts)
    reason = f"{fitting:,} patches of {'×'.join(map(str, patch))} fit into {memory / 2**30:.1f} GiB"
    shares = [_percent(number * area / pixels) for number in (size, given)]
    if kept:
        reason += f", and {size} are {shares[0]} of the training set's pixels"
    elif size < fitting:
        reason += f", but {given} are {shares[1]} of the training set's pixels, {size} are {shares[0]}"
    return Choice("train.batch_size", str(size), reason, kept)


# ── which patches and cases ───────────────────────────────────────────────────────────────────────


def choose_balanced(config: PredictionConfig, cases: Sequence[Case], names: Sequence[str]) -> Choice:
    """Return the share of patches around a class drawn first, by how many have the rarest class."""
    places = [sum(int((case.target == index).sum()) for case in cases) for index in range(len(names))]
    present = [index for index, number in enumerate(places) if number]
    rarest = min(present, key=lambda index: places[index])
    output = [side - border for side, border in zip(config.patch_size, config.border, strict=True)]
    having = [case.target.numpy() for case in cases if (case.target == rarest).any()]
    by_chance = np.array([windows_with(target == rarest, output) for target in having])
    drawn = np.array([1 / len(np.unique(target[target >= 0])) for target in having])  # given that a class is drawn

    def seen(balanced: float) -> float:
        return float(np.mean(balanced * drawn + (1 - balanced * drawn) * by_chance))

    kept = seen(config.data.balanced) >= SEEN
    if not kept:
        wanted = (SEEN - seen(0)) / (seen(1) - seen(0))
        kept = config.data.balanced >= (wanted := min(1.0, math.ceil(20 * wanted) / 20))
    share = config.data.balanced if kept else wanted
    name, rare = names[rarest], _percent(places[rarest] / sum(places))
    reason = f"class {name}, {rare} of the pixels, is in {seen(share):.0%} of the patches, {seen(0):.0%} of random ones"
    return Choice("data.balanced", f"{share:g}", reason, kept)


def choose_border(border: float, cases: Sequence[Case]) -> Choice:
    """Return the weight of borders between instances, by how many touch."""
    share = touching_share([case.instances.numpy() for case in cases if case.instances is not None])
    kept = border > 0 or share < TOUCHING  # narrow gaps, which do not touch, may count as well
    return Choice(
        "weights.border", f"{border if kept else BORDER:g}", f"{share:.0%} of the objects touch another one", kept
    )


def choose_folds(config: PairConfig, pairs: PairedData) -> list[Choice]:
    """Return how cases are divided: in blocks, if neighbors resemble each other, and by the prefixes of their names."""
    if config.fold is None or config.group is not None:
        return []
    found = []
    if len(pairs.names) >= FEWEST:
        near, far = resemblance(pairs.cases, NEIGHBORS)
        stack, order = near - far > ALIKE, config.fold_by == "order"
        reason = f"correlation of consecutive cases {near:.2f}, of distant ones {far:.2f}"
        reason += ", as in a stack, whose slices are held out as a block" * stack
        found.append(Choice("data.fold_by", "order" if stack or order else "name", reason, order or not stack))
    prefixes = {match[1] if (match := re.search(PREFIX, name)) else name for name in pairs.names}
    if 1 < len(prefixes) <= len(pairs.names) / 2:
        try:
            split_fold(pairs.names, config.model_copy(update={"group": PREFIX}))
        except UserError:  # a name without a number, or too few prefixes
            return found
        reason = f"if the {len(prefixes)} prefixes of the names, such as {min(prefixes)}, are those of one origin each"
        found.append(Choice("data.group", PREFIX, reason, kept=False))
    return found
