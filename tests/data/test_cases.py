"""Patches: pure functions of their index, inside the image or mirrored, balanced, and aligned."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.data.cases import FEW, PATCHES, Cached, Case, Patches
from diffunet.data.warping import Warping, WarpingConfig

UNKNOWN = -1
PLAIN = WarpingConfig(mirror="none")


def a_case(height: int, width: int, target: torch.Tensor | None = None, weighted: bool = True) -> Case:
    """Return a case whose image has the coordinates of each place as channels, and its weight their sum."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    target = (rows * 100 + columns).to(torch.int16) if target is None else target
    weight = (rows + columns + 1).float() if weighted else None
    return Case("case", torch.stack([rows, columns]), target, weight)


def patches(*cases: Case, size=(6, 8), border=(0, 0), balanced=0.0, config=PLAIN, **options) -> Patches:
    warp = Warping(config, size, [0.0, 0.0], [1.0, 1.0])
    indices = options.pop("indices", range(len(cases)))
    return Patches(list(cases), indices, size, border, balanced, warp, "fingerprint", **options)


def corners(batch: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
    """Return the coordinates of the first place of each patch."""
    return [tuple(corner) for corner in batch["image"][:, :, 0, 0].tolist()]


# ── a patch is its index ──────────────────────────────────────────────────────────────────────────


def test_an_index_always_gives_the_same_patch():
    data, again = (patches(a_case(30, 40), a_case(20, 25), balanced=0.5) for _ in range(2))
    indices = list(range(40))
    together = data.__getitems__(indices)
    for index in (39, 0, 17):
        alone = again.__getitems__([index])
        assert all(torch.equal(alone[name][0], together[name][index]) for name in together)
    assert len(set(corners(together)[::2])) > 12


SCRIPT = """
import sys; sys.path[:0] = ["tests/data"]
from test_cases import *
print(corners(patches(a_case(300, 400), balanced=0.5).__getitems__(list(range(9)))))
"""


@pytest.mark.slow
def test_another_process_draws_the_same_patches():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert found.strip() == str(corners(patches(a_case(300, 400), balanced=0.5).__getitems__(list(range(9)))))


def test_each_case_is_seen_equally_often():
    cases = [Case(str(n), torch.full((1, 9, 9), n), torch.zeros(9, 9, dtype=torch.int16)) for n in range(5)]
    data = patches(*cases, indices=[4, 1, 2])
    assert len(data) == 3 * PATCHES
    seen = Counter(data.__getitems__(list(range(3 * 20)))["image"][:, 0, 0, 0].tolist())
    assert seen == {1: 20, 2: 20, 4: 20}


def test_all_corners_are_drawn():
    found = Counter(corners(patches(a_case(9, 10)).__getitems__(list(range(600)))))
    assert found.keys() == {(row, column) for row in range(4) for column in range(3)}
    assert max(found.values()) < 2.2 * min(found.values())


# ── inside, mirrored, aligned ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("border", [(0, 0), (4, 6), (5, 3)])
@pytest.mark.parametrize("balanced", [0.0, 1.0])
def test_the_output_lies_inside_the_image(border, balanced):
    """With valid borders the input reaches beyond it, and its center is what the loss compares."""
    size, height, width = (12, 14), 20, 17
    data = patches(a_case(height, width), size=size, border=border, balanced=balanced)
    for index in range(200):
        starts = data._corner(data.cases[0], index)
        for start, side, edge, whole in zip(starts, size, border, (height, width), strict=True):
            assert start + edge // 2 >= 0
            assert start + edge // 2 + side - edge <= whole


@pytest.mark.parametrize(("height", "width"), [(5, 3), (1, 2), (20, 4)])
def test_crops_beyond_the_edges_are_mirrored(height, width):
    size, border = (12, 10), (4, 2)
    data = patches(a_case(height, width), size=size, border=border)
    crop = data.__getitems__([7])
    pad = 40
    top, left = (start + pad for start in data._corner(data.cases[0], 7))
    for name, values in (("image", data.cases[0].image), ("target", data.cases[0].target)):
        around = [(0, 0)] * (values.ndim - 2) + [(pad, pad), (pad, pad)]
        whole = np.pad(values.numpy(), around, mode="reflect")
        expected = whole[..., top : top + size[0], left : left + size[1]]
        assert np.array_equal(crop[name][0].numpy(), expected)


def test_image_target_and_weight_are_of_the_same_places():
    data = patches(a_case(30, 40), size=(8, 8), config=WarpingConfig(mirror="all", rotate="quarters"), balanced=0.5)
    batch = data.prepare(data.__getitems__(list(range(32))), BatchRNG(torch.Generator().manual_seed(0)))
    rows, columns = batch["image"].unbind(1)
    assert batch["image"].dtype == batch["weight"].dtype == torch.float32
    assert torch.equal(batch["target"], (rows * 100 + columns).to(torch.int16))
    assert torch.equal(batch["weight"], rows + columns + 1)
    turned = (rows[:, 1, 0] - rows[:, 0, 0]).unique().tolist()
    assert turned == [-1, 0, 1]


def test_warped_patches_are_aligned_and_reach_no_further_than_the_margin():
    config = WarpingConfig(mirror="all", rotate=180, elastic=1.0, scale=0.2)
    target = torch.arange(60.0)[:, None].expand(60, 60)[None] + 0.5  # a number: the row
    case = Case("case", torch.stack([target[0] - 0.5, target[0].T - 0.5]), target)
    data = patches(case, size=(16, 16), config=config)
    crop = data.__getitems__(list(range(8)))
    assert crop["image"].shape[-2:] == tuple(16 + 2 * margin for margin in data.warp.margin)
    batch = data.prepare(crop, BatchRNG(torch.Generator().manual_seed(0)))
    assert batch["image"].shape == (8, 2, 16, 16)
    torch.testing.assert_close(batch["image"][:, :1] + 0.5, batch["target"], rtol=0, atol=1e-3)
    assert "weight" not in batch


# ── balance ───────────────────────────────────────────────────────────────────────────────────────


def rare(side: int = 60) -> torch.Tensor:
    """Return a target of class 0 with one place of class 2 and a corner without labels."""
    target = torch.zeros(side, side, dtype=torch.int16)
    target[50, 51] = 2
    target[:20, :20] = UNKNOWN
    return target


def test_a_rare_class_is_the_center_of_its_share():
    shares = []
    for balanced in (0.0, 0.5, 1.0):
        data = patches(a_case(60, 60, rare()), size=(5, 5), balanced=balanced)
        target = data.__getitems__(list(range(400)))["target"]
        shares.append((target[:, 2, 2] == 2).float().mean().item())
    assert shares[0] < 0.02
    assert 0.18 < shares[1] < 0.32
    assert 0.42 < shares[2] < 0.58


def test_places_without_a_label_are_no_centers():
    data = patches(a_case(60, 60, rare()), size=(5, 5), balanced=1.0)
    centers = data.__getitems__(list(range(400)))["target"][:, 2, 2]
    assert centers.unique().tolist() == [0, 2]


def test_a_case_without_labels_is_cropped_anywhere():
    blank = torch.full((60, 60), UNKNOWN, dtype=torch.int16)
    assert not a_case(60, 60, blank).places
    found = corners(patches(a_case(60, 60, blank), size=(5, 5), balanced=1.0).__getitems__(list(range(50))))
    assert len(set(found)) > 40
    assert not Case("x", torch.zeros(1, 4, 4), torch.zeros(2, 4, 4)).places  # numbers have no classes


def test_few_places_are_kept_and_always_the_same():
    target = torch.zeros(200, 200, dtype=torch.int16)
    target[0, :3] = 1
    first, second = (a_case(200, 200, target).places for _ in range(2))
    assert [len(places) for places in first] == [10_000, 3]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(np.unique(first[0], axis=0)) == 10_000


# ── cases ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_image_and_its_target_have_one_size():
    with pytest.raises(UserError, match=r"a: the image has 4×5 pixels, its target 5×4; crop or scale one"):
        Case("a", torch.zeros(1, 4, 5), torch.zeros(5, 4, dtype=torch.int16))
    with pytest.raises(UserError, match=r"its weight 4×4"):
        Case("a", torch.zeros(1, 4, 5), torch.zeros(4, 5, dtype=torch.int16), torch.zeros(4, 4))


@pytest.mark.parametrize(("keep_all", "decoded"), [(True, 20), (False, 40)])
def test_cases_are_kept_or_decoded_again(keep_all, decoded):
    calls = []
    cases = Cached(lambda index: calls.append(index) or index, 20, keep_all)
    assert FEW < 20
    assert [cases[index] for _ in range(2) for index in range(20)] == [*range(20), *range(20)]
    assert len(calls) == decoded
