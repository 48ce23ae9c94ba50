"""Metrics against numpy, scipy and torch-fidelity, closed forms, and sets with known answers."""

import numpy as np
import pytest
import scipy.linalg
import torch

from diffunet.evaluation.metrics import (
    copy_threshold,
    frechet_distance,
    jackknife_error,
    kernel_distance,
    memorization,
    nearest_distances,
    nearest_neighbors,
    prdc,
    real_vs_real,
)


def test_frechet_distance_matches_the_formula():
    """With scipy's matrix square root, also for fewer examples than dimensions."""
    generator = np.random.default_rng(0)
    for number in (200, 5):
        a, b = generator.normal(size=(number, 8)), 1 + 2 * generator.normal(size=(number + 3, 8))
        cov_a, cov_b = np.cov(a.T), np.cov(b.T)
        root = scipy.linalg.sqrtm(cov_a @ cov_b).real
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
        found = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
        assert found == pytest.approx(expected, abs=1e-4)


def test_frechet_distance_in_closed_form():
    a = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2) == pytest.approx(12, abs=1e-6)
    assert frechet_distance(a, 3 * a) == pytest.approx(12, rel=0.03)


def test_nearest_neighbors():
    a, b = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    assert nearest_distances(a, b).tolist() == [1, 4]
    assert nearest_neighbors(a, b)[1].tolist() == [0, 1]
    distances, indices = nearest_neighbors(a, b, k=2)
    assert distances.tolist() == pytest.approx([3, 18**0.5])
    assert indices.tolist() == [1, 0]


def test_neighbors_across_chunks():
    a, b = torch.randn(600, 5), torch.randn(700, 5)
    distances, indices = nearest_neighbors(a, b, k=3)
    expected = torch.cdist(a.double(), b.double()).kthvalue(3, dim=1)
    torch.testing.assert_close(distances, expected.values.float())
    assert torch.equal(indices, expected.indices)


@pytest.mark.parametrize("offset", [50, 0.3])
def test_a_common_offset_of_the_features_changes_nothing(offset):
    """|x|² + |y|² - 2 x·y cancels in fp32: without centering the first case has a precision of 1."""
    generator = torch.Generator().manual_seed(0)
    scale = offset / 5000
    samples = offset + 1.2 * scale * torch.randn(300, 8, generator=generator)
    real = offset + scale * torch.randn(400, 8, generator=generator)
    expected = prdc(samples.double(), real.double())
    assert 0.6 < expected["precision"] < 0.9
    assert prdc(samples, real) == pytest.approx(expected, abs=0.01)
    near = nearest_distances(samples.double(), real.double())
    torch.testing.assert_close(nearest_distances(samples, real).double(), near)
    assert copy_threshold(real) == pytest.approx(copy_threshold(real.double()), rel=1e-4)


def test_ties_between_integer_features_are_exact():
    """Centering by a mean would round distances, and decide ties at random."""
    levels = torch.randint(0, 3, (300, 6), generator=torch.Generator().manual_seed(0))
    assert prdc(levels[:100].float(), levels[100:].float()) == prdc(levels[:100].double(), levels[100:].double())


def test_kernel_distance_matches_the_formula():
    """Term by term, as the paper writes the estimator."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(7, 4)), 0.5 + generator.normal(size=(5, 4))

    def kernel(x, y):
        return (x @ y / 4 + 1) ** 3

    among_a = np.mean([kernel(a[i], a[j]) for i in range(7) for j in range(7) if i != j])
    among_b = np.mean([kernel(b[i], b[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([kernel(x, y) for x in a for y in b])
    found = kernel_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(among_a + among_b - 2 * between, abs=1e-9)


def test_kernel_distance_is_unbiased_at_small_counts():
    """The Fréchet distance of two small sets from one source is far from 0; this one is 0 on average."""
    sets = torch.randn(200, 2, 10, 4, generator=torch.Generator().manual_seed(0))
    kernel = torch.tensor([kernel_distance(a, b) for a, b in sets])
    assert abs(kernel.mean()) < 3 * kernel.std() / len(sets) ** 0.5
    assert np.mean([frechet_distance(a, b) for a, b in sets]) > 1


def test_prdc_matches_the_definitions():
    generator = np.random.default_rng(0)
    samples, real, k = generator.normal(size=(40, 3)), 0.3 + generator.normal(size=(60, 3)), 3

    def radius(x):
        return np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)[:, k]

    distance = np.linalg.norm(samples[:, None] - real[None], axis=2)
    in_real, in_samples = distance <= radius(real), distance <= radius(samples)[:, None]
    expected = {
        "precision": in_real.any(axis=1).mean(),
        "recall": in_samples.any(axis=0).mean(),
        "density": in_real.sum() / (k * 40),
        "coverage": in_real.any(axis=0).mean(),
    }
    found = prdc(torch.from_numpy(samples), torch.from_numpy(real), k)
    assert found == pytest.approx(expected, abs=1e-6)


def test_prdc_of_mode_collapse_and_of_outliers():
    """Half of the modes lost: high precision, half the recall; noise beside the data: the reverse."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(400, 2, generator=generator)
    real[::2, 0] += 20
    collapsed = torch.randn(400, 2, generator=generator)
    found = prdc(collapsed, real)
    assert found["precision"] > 0.9
    assert found["recall"] == pytest.approx(0.5, abs=0.05)
    assert found["coverage"] == pytest.approx(0.5, abs=0.05)
    polluted = torch.cat([real + 0.01, real - 100])
    found = prdc(polluted, real)
    assert found["precision"] == pytest.approx(0.5, abs=0.01)
    assert found["recall"] > 0.95
    assert found["density"] == pytest.approx(0.5, abs=0.1)


def test_memorization_of_copies_and_of_new_images():
    generator = torch.Generator().manual_seed(0)
    trained, new = torch.randn(2, 1000, 20, generator=generator)
    near = copy_threshold(trained)
    to_another = torch.cdist(trained, trained).fill_diagonal_(torch.inf).min(dim=1).values
    assert (to_another <= near).float().mean() == pytest.approx(0.05, abs=0.002)
    assert memorization(trained[:200] + 0.01 * new[:200], trained, near)[0] == 1
    share, error = memorization(new, trained, near)
    assert abs(share - 0.05) < 4 * error
    half = torch.cat([trained[:200] + 0.01, new[:200]])
    assert memorization(half, trained, near)[0] == pytest.approx(0.5, abs=0.05)


def test_the_error_of_memorization_is_binomial():
    """Over many sets, and never 0."""
    trained = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    near = copy_threshold(trained, share=0.3)
    found = [
        memorization(torch.randn(100, 4, generator=torch.Generator().manual_seed(seed)), trained, near)
        for seed in range(1, 60)
    ]
    spread = np.std([share for share, _ in found])
    assert np.mean([error for _, error in found]) == pytest.approx(spread, rel=0.3)
    assert memorization(trained[:50], trained, near) == (1.0, pytest.approx(0.026, abs=0.003))


def test_jackknife_error_is_the_spread_over_new_sets():
    """The jackknife within one set, against many sets from the same source."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2000, 3, generator=generator)
    sets = [1 + torch.randn(300, 3, generator=generator) for _ in range(60)]
    spread = np.std([frechet_distance(samples, real) for samples in sets])
    errors = [jackknife_error(frechet_distance, samples, real) for samples in sets[:15]]
    assert np.mean(errors) == pytest.approx(spread, rel=0.3)


def test_the_floor_has_the_count_of_the_samples():
    real = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    few, many = (real_vs_real(frechet_distance, real, count) for count in (20, 500))
    assert few > 3 * many
    assert real_vs_real(frechet_distance, real, 5000) == many
    assert np.isfinite(real_vs_real(frechet_distance, real[:6], 500))


def test_finite_at_small_counts():
    few = torch.randn(3, 5)
    for metric in (frechet_distance, kernel_distance):
        assert np.isfinite(metric(few, few + 1))
    assert np.isfinite(memorization(few, few + 1, copy_threshold(few + 1))).all()
    assert all(np.isfinite(value) for value in prdc(few, few + 1).values())


@pytest.mark.slow
def test_metrics_match_torch_fidelity():
    """FID, KID as one set, precision and recall of the same features."""
    pytest.importorskip("torch_fidelity", reason='pip install -e ".[evaluate]"')
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kernel_poly, mmd2
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    generator = torch.Generator().manual_seed(0)
    samples = 0.3 + 1.2 * torch.randn(300, 24, generator=generator)
    real = torch.randn(400, 24, generator=generator)
    statistics = [fid_features_to_statistics(features.double()) for features in (samples, real)]
    fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(samples, real) == pytest.approx(fid, abs=1e-4)
    same = samples[:300].double().numpy(), real[:300].double().numpy()  # theirs needs as many of each
    pairs = ((a, b) for a, b in ((same[0], same[0]), same, (same[1], same[1])))
    kernels = [kernel_poly(a, b, kid_kernel_poly_degree=3, kid_kernel_poly_coef0=1) for a, b in pairs]
    assert kernel_distance(samples, real[:300]) == pytest.approx(mmd2(*kernels), abs=1e-4)
    found = prdc(samples, real, k=3)
    precision, recall = calculate_precision_recall_full(samples, real, neighborhood=3)
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall), abs=1e-4)
