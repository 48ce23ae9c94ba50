"""PSNR and SSIM against scikit-image and known values."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffunet.evaluation.fidelity import psnr, ssim


def images(size: tuple[int, int] = (24, 17), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    truth = generator.random((3, 3, *size))
    return torch.from_numpy(truth), torch.from_numpy(np.clip(truth + 0.2 * generator.normal(size=truth.shape), 0, 1))


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_both_equal_scikit_image(data_range):
    truth, other = (data_range * x for x in images())
    for index, (a, b) in enumerate(zip(truth.numpy(), other.numpy(), strict=True)):
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
        expected = structural_similarity(a, b, data_range=data_range, **settings)
        assert float(ssim(truth, other, data_range)[index]) == pytest.approx(expected, abs=1e-10)
        expected = peak_signal_noise_ratio(a, b, data_range=data_range)
        assert float(psnr(truth, other, data_range)[index]) == pytest.approx(expected, abs=1e-10)


def test_known_values():
    black, gray = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.1)
    assert float(psnr(black, gray)) == pytest.approx(20)
    assert float(psnr(black, black)) == float("inf")
    assert float(ssim(black, gray)) == pytest.approx(1e-4 / (0.01 + 1e-4))  # flat images differ in luminance only
    truth, _ = images()
    assert ssim(truth, truth).tolist() == pytest.approx([1, 1, 1])
    torch.testing.assert_close(ssim(*images()), ssim(*reversed(images())))


@pytest.mark.parametrize("size", [(8, 8), (3, 40), (1, 1)])
def test_images_smaller_than_the_window(size):
    truth, other = images(size)
    found = ssim(truth, other)
    assert found.isfinite().all() and (found < 1).all()
    assert ssim(truth, truth).tolist() == pytest.approx([1, 1, 1])
