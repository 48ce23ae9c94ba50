"""Losses of images from undersampled k-space, and the lines that go missing."""

import pytest
import torch

from diffunet.core.complex_channels import to_complex
from diffunet.core.errors import UserError
from diffunet.core.fourier import to_kspace
from diffunet.core.rng import BatchRNG
from diffunet.core.settings import settings_from
from diffunet.models.data_consistency import DataConsistency
from diffunet.objectives.reconstruction import Reconstruction, ReconstructionConfig


def step_rng(step: int, positions: slice = slice(None), batch: int = 4) -> BatchRNG:
    return BatchRNG.at(3, step, positions, batch, torch.device("cpu"))


def seen_by(objective: Reconstruction, image: torch.Tensor, rng: BatchRNG | None) -> torch.Tensor:
    """Return the input that the model gets."""
    seen = []
    objective.loss(lambda x: seen.append(x) or x[:, :-1], image, rng=rng)
    return seen[0]


@pytest.mark.parametrize("size", [(16, 24), (4, 6, 24)])
def test_the_model_sees_some_lines_of_the_whole_image(size):
    image = torch.randn(4, 4, *size)
    seen = seen_by(Reconstruction(ReconstructionConfig(acceleration=(2.0, 3.0))), image, step_rng(0))
    mask = seen[:, -1].bool()
    assert (mask == mask.flatten(1, -2)[:, :1].reshape(4, *[1] * (len(size) - 1), 24)).all()
    counts = mask.flatten(1, -2)[:, 0].sum(1)
    assert all(8 <= count <= 12 for count in counts)
    dims = len(size)
    kspace, whole = to_kspace(to_complex(seen[:, :-1]), dims), to_kspace(to_complex(image), dims)
    torch.testing.assert_close(kspace, whole * mask[:, None], atol=1e-5, rtol=0)


def test_lines_are_a_function_of_seed_step_and_position():
    objective, image = Reconstruction(ReconstructionConfig()), torch.randn(4, 2, 8, 64)
    first, again, other = (seen_by(objective, image, step_rng(step))[:, -1] for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({lines.numpy().tobytes() for lines in first}) == 4
    part = seen_by(objective, image[2:], step_rng(0, slice(2, 4)))[:, -1]
    assert torch.equal(part, first[2:])
    assert torch.equal(seen_by(objective, image, None), seen_by(objective, image, None))


def test_losses_are_errors_in_units_of_the_magnitude():
    image, error = torch.randn(3, 4, 8, 16), torch.randn(3, 4, 8, 16)
    config = ReconstructionConfig(l1=0.5)
    found = Reconstruction(config, magnitude=2.0).loss(lambda x: image + error, image)
    for example in range(3):
        complex_error = torch.complex(error[example, 0::2], error[example, 1::2])
        assert found["loss_l2"][example].item() == pytest.approx(float(complex_error.abs().square().mean()) / 4)
        assert found["loss_l1"][example].item() == pytest.approx(float(error[example].abs().mean()) / 2)
    torch.testing.assert_close(found["loss"], found["loss_l2"] + 0.5 * found["loss_l1"])
    weight = torch.zeros(3, 8, 16)
    weight[:, :4] = 1
    half = Reconstruction(config, magnitude=2.0).loss(lambda x: image + error, image, weight=weight)["loss"]
    inside = Reconstruction(config, magnitude=2.0).loss(lambda x: (image + error)[..., :4, :], image[..., :4, :])[
        "loss"
    ]
    torch.testing.assert_close(half, inside / 2)


def test_data_consistency_leaves_the_missing_lines_alone():
    """Of a zero prediction the error is the power of what was not measured, which is (1 - 1/4) of white noise."""
    image = torch.randn(8, 2, 32, 64)
    objective = Reconstruction(ReconstructionConfig(), magnitude=2**0.5)
    found = objective.loss(DataConsistency(torch.zeros_like), image)["loss"]
    assert found.mean().item() == pytest.approx(0.75, abs=0.03)
    assert objective.loss(DataConsistency(lambda x: image), image)["loss"].max() < 1e-10


def test_mistakes_in_the_config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("acceleration: [6, 3]")
    with pytest.raises(UserError, match="the range is"):
        settings_from(file, ReconstructionConfig)
    file.write_text("acceleration: [4, 4]\ncenter: 0.3")
    with pytest.raises(UserError, match="center: 0.3 of the lines"):
        settings_from(file, ReconstructionConfig)
