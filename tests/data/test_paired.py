"""Cases from files and built-in sets, and what is found in them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet.core.errors import UserError
from diffunet.data.borders import WeightConfig
from diffunet.data.labels import UNKNOWN
from diffunet.data.pair_files import read_image
from diffunet.data.paired import load_pairs
from diffunet.data.pairs import PairConfig, Source

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 10), dtype=np.uint8)
CLASSES = ((IMAGES > 120) * 255).astype(np.uint8)


def save(path: str, values: np.ndarray) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values) if path.endswith(".npy") else Image.fromarray(values).save(path)


def loaded(kind="segmentation", weights=WeightConfig(), log=lambda line: None, **config):
    return load_pairs(PairConfig(**({"path": "set"} | config)), kind, weights, log)


@pytest.fixture
def pairs(in_a_new_folder):
    for index, (image, target) in enumerate(zip(IMAGES, CLASSES, strict=True)):
        save(f"set/images/a{index}.png", image)
        save(f"set/labels/a{index}.png", target)
    return in_a_new_folder


def test_cases_have_the_values_of_their_files(pairs):
    lines = []
    data = loaded(log=lines.append)
    assert data.names == [f"a{index}" for index in range(6)]
    for index in range(6):
        assert torch.equal(data.cases[index].image, torch.from_numpy(IMAGES[index])[None])
        assert np.array_equal(data.cases[index].target, CLASSES[index] > 0)
        assert data.cases[index].weight is None
    assert (data.config.channels, data.config.values, data.config.class_names) == (1, (0, 255), ("0", "255"))
    assert data.target is None
    trained = IMAGES[data.split_fold()[0]]
    assert len(trained) < len(IMAGES)
    assert data.image.mean.item() == pytest.approx(trained.mean())
    assert data.image.std.item() == pytest.approx(trained.std(), rel=1e-6)
    share = (CLASSES > 0).mean()
    assert lines == [f"6 pairs of 12×10 pixels, 1 channel -> 0 {1 - share:.1%}, 255 {share:.1%}"]


def test_the_fingerprint_is_that_of_the_contents(pairs):
    before = loaded().fingerprint
    Path("set").rename("moved")
    assert loaded(path="moved").fingerprint == before
    save("moved/labels/a3.png", CLASSES[4])
    assert loaded(path="moved").fingerprint != before


def test_weights_of_some_cases_are_one_in_the_others(pairs):
    weight = np.random.default_rng(1).random((12, 10)).astype(np.float32)
    save("set/weights/a2.npy", weight)
    cases = loaded().cases
    assert np.array_equal(cases[2].weight, weight)
    assert cases[0].weight.unique().tolist() == [1]


def test_balanced_weights_multiply_those_of_files(pairs):
    save("set/weights/a2.npy", np.full((12, 10), 3.0, np.float32))
    data = loaded(weights=WeightConfig(classes="balanced"))
    cases, trained = data.cases, data.split_fold()[0]
    share = (CLASSES[trained] > 0).mean()  # of the cases to train on alone
    assert abs(share - (CLASSES > 0).mean()) > 1e-3
    expected = np.where(CLASSES > 0, 1 / share, 1 / (1 - share)) / 2
    assert np.allclose(cases[0].weight, expected[0])
    assert np.allclose(cases[2].weight, 3 * expected[2])


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_images_of_any_number_of_channels(pairs, count):
    for index in range(6):
        Path(f"set/images/a{index}.png").unlink()
        save(f"set/images/a{index}.npy", np.stack([IMAGES[index] // (1 + c) for c in range(count)]))
    data = loaded()
    assert data.config.channels == count
    assert torch.equal(data.cases[1].image[-1], torch.from_numpy(IMAGES[1] // count))


def test_transparency_is_no_channel_of_a_picture(in_a_new_folder):
    save("a.png", np.full((4, 4, 4), 255, np.uint8))
    assert read_image([Source("a.png")], None).shape == (3, 4, 4)
    assert read_image([Source("a.png")], 1).shape == (1, 4, 4)


def test_objects_are_separated_and_kept(pairs):
    objects = np.zeros((12, 10), np.uint16)
    objects[2:6, 1:5], objects[2:6, 5:9], objects[9:, :] = 300, 301, 65535
    for index in range(6):
        save(f"set/labels/a{index}.png", objects)
    case = loaded(labels="instances", ignore=65535).cases[0]
    assert case.instances.unique().tolist() == [0, 300, 301]
    assert case.target[9:].unique().tolist() == [UNKNOWN]
    assert (case.target[2:6, 4:6] == 0).any()  # a line of background between them
    assert case.target[:9].unique().tolist() == [0, 1]


def test_numbers_may_be_unknown(pairs):
    target = np.random.default_rng(0).random((2, 12, 10)).astype(np.float32) * 7
    target[0, :3] = np.nan
    for index in range(6):
        Path(f"set/labels/a{index}.png").unlink()
        save(f"set/labels/a{index}.npy", target)
    data = loaded("regression")
    assert torch.equal(data.cases[0].target.isnan(), torch.from_numpy(target).isnan())
    assert data.labels is None
    np.testing.assert_allclose(data.target.mean, np.nanmean(target.reshape(2, -1), 1), rtol=1e-6)
    np.testing.assert_allclose(data.target.std, np.nanstd(target.reshape(2, -1), 1), rtol=1e-6)
    target[1] = np.nan
    for index in range(6):
        save(f"set/labels/a{index}.npy", target)
    with pytest.raises(UserError, match=r"a channel of the targets is unknown \(NaN\) everywhere"):
        loaded("regression")
    target[0, 0] = np.inf
    save("set/labels/a2.npy", target)
    with pytest.raises(UserError, match="set/labels/a2.npy: infinite values"):
        loaded("regression")


def test_images_may_not_be_unknown(pairs):
    Path("set/images/a1.png").unlink()
    save("set/images/a1.npy", np.full((12, 10), np.nan, np.float32))
    with pytest.raises(UserError, match="set/images/a1.npy: NaN or infinite values"):
        loaded()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("shapes", "segmentation"), ("cells", "segmentation"), ("bands", "regression")]
)
def test_built_in_sets(name, kind):
    data = loaded(kind, path=name, memory_budget=0.001)
    assert len(data.names) == 40
    assert not data.in_memory
    assert (data.labels is None) == (kind == "regression")
    assert data.cases[0].image.shape[1:] == data.cases[0].target.shape[-2:]
    other = "segmentation" if kind == "regression" else "regression"
    with pytest.raises(UserError, match=f"data.path: {name} is no data set for {other}; use "):
        loaded(other, path=name)
