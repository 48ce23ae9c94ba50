"""PSNR, SSIM and scores of regressions against scikit-image, scipy, scikit-learn and known values."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from diffunet.evaluation.fidelity import ergas, mae, pearson, psnr, rmse, sam, ssim


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


def test_regression_scores_equal_scipy_and_scikit_learn():
    truth, other = images()
    for index, (a, b) in enumerate(zip(truth.numpy(), other.numpy(), strict=True)):
        assert float(mae(other, truth)[index]) == pytest.approx(mean_absolute_error(a.ravel(), b.ravel()))
        assert float(rmse(other, truth)[index]) == pytest.approx(root_mean_squared_error(a.ravel(), b.ravel()))
        expected = np.mean([pearsonr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)])
        assert float(pearson(other, truth)[index]) == pytest.approx(expected)


def test_correlation_ignores_scale_and_leaves_constant_channels_out():
    truth, _ = images()
    assert pearson(3 * truth - 7, truth).tolist() == pytest.approx([1, 1, 1])
    assert pearson(-truth, truth).tolist() == pytest.approx([-1, -1, -1])
    part = truth.clone()
    part[0, :2], part[1] = 0.1, 0.3
    found = pearson(part.float(), truth.float())
    assert found[[0, 2]].tolist() == pytest.approx([1, 1], abs=1e-6) and found[1].isnan()


def test_spectral_angles():
    """Spectra turned by 30 degrees, of any length; scikit-learn's cosine elsewhere."""
    angle = np.deg2rad(30)
    reference = torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 4, 5)
    turned = 7 * torch.tensor([np.cos(angle), np.sin(angle)])[None, :, None, None].expand(1, 2, 4, 5)
    assert float(sam(turned, reference)) == pytest.approx(30)
    assert float(sam(-reference, reference)) == pytest.approx(180)
    assert float(sam(2.5 * reference, reference)) == 0
    half = turned.clone()
    half[:, :, 2:] = reference[:, :, 2:]
    assert float(sam(half, reference)) == pytest.approx(15)
    half[:, :, 2:] = 0  # no angle
    assert float(sam(half, reference)) == pytest.approx(30)
    assert sam(0 * reference, reference).isnan().all()
    truth, other = (x.clamp(min=1e-3) for x in images())
    cosine = (truth * other).sum(1) / (truth.norm(dim=1) * other.norm(dim=1))
    torch.testing.assert_close(sam(other, truth), cosine.arccos().rad2deg().flatten(1).mean(1))


def test_ergas_in_closed_form():
    """Channels of means 2 and 8 with RMSE 0.2 and 0.4: relative errors 0.1 and 0.05."""
    reference = torch.tensor([2.0, 8.0])[None, :, None, None].expand(1, 2, 4, 6)
    sign = torch.ones(4, 6)
    sign[::2] = -1
    images = reference + torch.tensor([0.2, 0.4])[None, :, None, None] * sign
    expected = 100 / 4 * np.sqrt((0.1**2 + 0.05**2) / 2)
    assert float(ergas(images, reference, ratio=4)) == pytest.approx(expected, rel=1e-6)
    assert float(ergas(images, reference, ratio=2)) == pytest.approx(2 * expected, rel=1e-6)
    assert float(ergas(1000 * images, 1000 * reference, ratio=4)) == pytest.approx(expected, rel=1e-6)
    assert float(ergas(reference, reference, ratio=4)) == 0
    pair = torch.cat([images, reference]), torch.cat([reference, reference])
    assert ergas(*pair, ratio=4).tolist() == pytest.approx([expected, 0], rel=1e-6)
