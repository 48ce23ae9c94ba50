"""Sizes, contrast and touching of drawn objects, whose measures are known."""

import numpy as np
import pytest
import torch

from diffunet.data.cases import Case
from diffunet.data.phantoms.registry import PHANTOMS
from diffunet.evaluation.objects import (
    SMALL_FIELD,
    box_sides,
    compact,
    contrast_of,
    needed_field,
    objects_by_class,
    touching_share,
    widths_of,
    windows_with,
)

NAMES = ("outside", "inside")


def rectangles(*sizes, side=64) -> np.ndarray:
    """Return an image with rectangles (height, width), numbered from 1, one below the other."""
    drawn, top = np.zeros((side, side), int), 1
    for number, (height, width) in enumerate(sizes, start=1):
        drawn[top : top + height, 2 : 2 + width] = number
        top += height + 1
    return drawn


def case(target, image=None, instances=None) -> Case:
    image = torch.as_tensor(target * 100, dtype=torch.uint8)[None] if image is None else image
    kept = None if instances is None else torch.from_numpy(instances.astype(np.int32))
    return Case("case", image, torch.from_numpy(target.astype(np.int16)), instances=kept)


def test_sides_and_widths_of_rectangles():
    drawn = rectangles((2, 30), (4, 20), (10, 5))
    assert box_sides(drawn).tolist() == [30, 20, 10]
    band = np.zeros((50, 1002), int)
    band[10:18, 1:-1] = 1
    assert widths_of(band)[0] == pytest.approx(8, rel=0.01)
    y, x = np.ogrid[:401, :401]
    disk = (np.hypot(y - 200, x - 200) < 150).astype(int)
    assert widths_of(disk)[0] == pytest.approx(2 / 3 * 300, rel=0.02)


def test_widths_end_where_another_object_or_the_image_does():
    touching = np.ones((8, 400), int)
    touching[4:] = 2
    assert widths_of(touching) == pytest.approx([4, 4], rel=0.02)


def test_objects_are_parts_of_classes_or_instances():
    drawn = rectangles((4, 20), (10, 6))
    (inside,) = objects_by_class([case(drawn > 0), case(drawn == 1)], NAMES)
    assert inside.counts.tolist() == [2, 1]
    assert inside.sides.tolist() == [20, 10, 20]
    assert inside.share == pytest.approx((80 + 60 + 80) / 2 / 64**2)
    sparse = np.where(drawn == 2, 2**31 - 1, drawn * 70_000)
    sparse[5:15, 2:4] = 2**31 - 1  # touches the first
    (inside,) = objects_by_class([case(drawn > 0, instances=sparse)], NAMES)
    assert inside.counts.tolist() == [2]
    assert compact(sparse + 1).min() == 1


def test_unlabeled_places_are_no_object_and_no_surroundings():
    target = rectangles((4, 20), (10, 6))
    target[target == 2] = -1
    (inside,) = objects_by_class([case(target)], NAMES)
    assert inside.sides.tolist() == [20]
    assert inside.share == pytest.approx(80 / (64**2 - 60))
    assert objects_by_class([case(np.zeros((64, 64)))], NAMES) == []


def test_contrast_of_known_histograms():
    """Disjoint histograms differ by 2 in all, equal ones by 0, and half of the pixels moved by 1."""
    region = np.zeros((10, 20), bool)
    region[:, :10] = True
    image = torch.zeros(1, 10, 20)
    image[..., :10] = 1
    assert contrast_of(image, region, ~region) == pytest.approx(0.2)
    image[..., :5] = 0
    assert contrast_of(image, region, ~region) == pytest.approx(0.1)
    assert contrast_of(image * 4000 + 100, region, ~region) == pytest.approx(0.1)
    assert contrast_of(torch.cat([image * 0, image]), region, ~region) == pytest.approx(0.1)
    assert contrast_of(image * 0, region, ~region) == 0
    assert np.isnan(contrast_of(image, region, region & False))


def test_touching_instances_are_counted_once():
    assert touching_share([np.array([[1, 1, 2, 0, 3]])]) == pytest.approx(2 / 3)
    assert touching_share([np.array([[1, 0], [0, 2]]), np.array([[0, 1], [2, 0]])]) == 1
    assert touching_share([np.array([[7, 0, 9]])]) == 0
    assert touching_share([np.zeros((3, 3), int)]) == 0


@pytest.mark.parametrize("size", [(3, 4), (1, 1), (9, 5), (20, 20)])
def test_windows_are_counted_exactly(size):
    mask = np.random.default_rng(0).random((9, 11)) < 0.05
    height, width = min(size[0], 9), min(size[1], 11)
    views = np.lib.stride_tricks.sliding_window_view(mask, (height, width))
    assert windows_with(mask, size) == views.any((2, 3)).mean()


# ── the receptive field ───────────────────────────────────────────────────────────────────────────


def phantoms(name: str, number: int = 6) -> list[Case]:
    drawn = [PHANTOMS[name].generate(index) for index in range(number)]
    return [case(each.target, torch.from_numpy(each.image)) for each in drawn]


def need_of(cases: list[Case], names=NAMES):
    return needed_field(cases, objects_by_class(cases, names), names)


def test_contours_need_a_field_as_large_as_they_are_and_filled_shapes_do_not():
    """They are drawn with longer sides of 35 to 60 % of 256 pixels."""
    contours, filled = need_of(phantoms("contours")), need_of(phantoms("shapes"))
    assert 0.35 * 256 < contours.field <= 0.6 * 256 + 4
    assert "low contrast" in contours.reason
    assert filled.field == SMALL_FIELD
    assert "contrast is high" in filled.reason


def test_of_borders_the_smaller_counts():
    need = need_of(phantoms("grains", 2), ("boundary", "grain"))
    assert need.field == SMALL_FIELD
    assert "boundary is a border" in need.reason


def test_a_thin_object_needs_its_widths_and_no_field_exceeds_the_images():
    gray = torch.zeros(1, 100, 400)
    large, thin = np.zeros((2, 100, 400), int)
    large[10:90, 10:390] = 1
    thin[10:20, 10:390] = 1
    assert need_of([case(large, gray)]).field == 380
    assert need_of([case(thin, gray)]).field == pytest.approx(8 * 10, abs=4)
    low = [case(large, gray)]
    objects = objects_by_class(low, NAMES)
    assert needed_field([case(large[:, :300], gray[..., :300])], objects, NAMES).field == 300
    assert needed_field(low, [], NAMES).field == needed_field(low, [], ()).field == 0
