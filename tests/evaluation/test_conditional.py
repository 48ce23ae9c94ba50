"""Metrics of conditional samples against closed forms: Gaussians with known spread, copies, independent noise."""

import pytest
import torch

from diffunet.evaluation.conditional import (
    Measurement,
    agreement,
    coverage,
    diversity,
    evaluate_conditional,
    fidelity,
    obedience,
    retrieval,
    wilson_error,
)
from diffunet.evaluation.features import PixelFeatures

N, K = 200, 8


def gaussians(spread: float = 1.0, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return truth (N, 1, 4, 4) around a mean of each example, and samples of another spread and shift."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(N, 1, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(N, K + 1, 1, 4, 4, generator=generator, dtype=torch.float64)
    return mean + noise[:, 0], mean[:, None] + shift + spread * noise[:, 1:]


def deviation(row: dict) -> float:
    return (row["value"] - row["reference"]) / row["error"]


def test_coverage_of_calibrated_samples_is_seven_ninths():
    found = coverage(*gaussians())
    assert found["reference"] == pytest.approx(7 / 9)
    assert abs(deviation(found)) < 3
    assert found["error"] == pytest.approx((7 / 9 * 2 / 9 / (16 * N)) ** 0.5, rel=0.15)
    assert deviation(coverage(*gaussians(spread=0.7))) < -5
    assert deviation(coverage(*gaussians(spread=1.5))) > 5
    assert deviation(coverage(*gaussians(shift=1))) < -5


def test_ties_do_not_bias_coverage():
    """Rounded values are as calibrated as exact ones, and constant pixels change nothing."""
    truth, samples = gaussians()
    assert abs(deviation(coverage(truth.round(), samples.round()))) < 3
    constant = torch.zeros(N, 1, 4, 12)
    constants = constant[:, None].expand(-1, K, -1, -1, -1)
    padded = coverage(torch.cat([truth, constant], -1), torch.cat([samples, constants], -1))
    assert padded == pytest.approx(coverage(truth, samples))
    collapsed = truth.round()[:, None].expand(-1, K, -1, -1, -1) + 1.0
    assert coverage(truth.round(), collapsed)["value"] == 0
    same = coverage(constant, constants)
    assert same["value"] == same["reference"]


def test_coverage_equals_the_ranks_counted_one_by_one():
    generator = torch.Generator().manual_seed(0)
    truth, samples = torch.randint(0, 4, (50,), generator=generator), torch.randint(0, 4, (50, 3), generator=generator)
    shares = []
    for value, turn in zip(truth.tolist(), samples.tolist(), strict=True):
        ranks = range(sum(s < value for s in turn), sum(s <= value for s in turn) + 1)
        if turn != [value] * 3:
            shares.append(sum(0 < rank < 3 for rank in ranks) / len(ranks))
    assert coverage(truth[:, None], samples[..., None])["value"] == pytest.approx(sum(shares) / len(shares))


def test_diversity_equals_the_distance_to_the_truth_if_calibrated():
    found = diversity(*gaussians())
    assert found["value"] == pytest.approx(2**0.5, rel=0.03)
    assert abs(deviation(found)) < 5  # the error of the reference is as large
    assert found["value"] == pytest.approx(found["reference"], rel=0.02)
    narrow = diversity(*gaussians(spread=0.5))
    assert narrow["value"] == pytest.approx(0.5 * 2**0.5, rel=0.03)
    assert narrow["reference"] == pytest.approx(1.25**0.5, rel=0.03)


def test_fidelity_in_closed_form():
    """Errors of variance 2 v of one sample, (1 + 1/8) v of the mean of eight, 2 v of other images' mean, nearly."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.5 + 0.1 * torch.randn(60, K + 1, 1, 32, 32, generator=generator, dtype=torch.float64)
    found = fidelity(noise[:, 0], noise[:, 1:])
    assert found.keys() == {"psnr", "psnr_mean_of_8", "ssim", "ssim_mean_of_8"}
    decibels = torch.tensor([0.02, 0.01 * 9 / 8, 0.01 * 60 / 59]).log10() * -10
    values = (found["psnr"]["value"], found["psnr_mean_of_8"]["value"], found["psnr"]["reference"])
    assert values == pytest.approx(decibels.tolist(), abs=0.1)
    copies = fidelity(noise[:, 0], noise[:, :1].expand(-1, K, -1, -1, -1))
    assert copies["psnr"]["value"] == 100
    assert copies["ssim"]["value"] == pytest.approx(1)


def test_agreement_is_in_steps_of_the_bit_depth():
    sources = torch.rand(5, 1, 4, 4, dtype=torch.float64)
    samples = sources[:, None] + torch.tensor([1.0, -3.0], dtype=torch.float64)[:, None, None, None] * 2 / 255
    found = agreement(Measurement(sources, sources + 1 / 255, samples), bit_depth=8)
    assert found == pytest.approx({"value": 2, "error": 0, "reference": 0.5}, abs=1e-6)


def test_retrieval_of_copies_is_certain_and_of_noise_chance():
    generator = torch.Generator().manual_seed(0)
    real = 3 + torch.randn(N, 20, generator=generator)
    copies = retrieval(real[:, None].expand(-1, K, -1), real)
    assert copies["top_1"]["value"] == copies["top_5"]["value"] == 1
    assert 0 < copies["top_1"]["error"] < 0.01
    noise = retrieval(3 + torch.randn(N, K, 20, generator=generator), real)
    assert noise["top_1"]["reference"] == 1 / N and noise["top_5"]["reference"] == 5 / N
    assert all(abs(deviation(row)) < 3 for row in noise.values())


def test_ties_in_retrieval_count_as_guesses():
    real = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    constant = torch.ones(20, 2, 5)
    assert retrieval(constant, torch.ones(20, 5))["top_5"]["value"] == pytest.approx(5 / 20)
    doubled = torch.cat([real, real])
    found = retrieval(doubled[:, None], doubled)
    assert (found["top_1"]["value"], found["top_5"]["value"]) == (0.5, 1)


def test_obedience_counts_words():
    found = obedience({"bold": (8, 10), "seven": (5, 5), "thin": (0, 0)}, {"bold": (9, 10)})
    assert found.keys() == {"bold", "seven"}
    assert found["bold"]["value"] == 0.8 and found["bold"]["reference"] == 0.9
    assert "reference" not in found["seven"] and found["seven"]["error"] > 0


def test_wilson_error_solves_its_equation():
    """The ends p of the interval have |share - p| = sqrt(p (1 - p) / n)."""
    for share, number in [(0.3, 10), (0.0, 4), (1.0, 7)]:
        middle = (share + 1 / (2 * number)) / (1 + 1 / number)
        for p in (middle - wilson_error(share, number), middle + wilson_error(share, number)):
            assert (share - p) ** 2 == pytest.approx(p * (1 - p) / number, abs=1e-12)


def test_the_order_of_examples_and_samples_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 256, (20, 1, 16, 16), dtype=torch.uint8, generator=generator)
    samples = torch.randint(0, 256, (20, 4, 1, 16, 16), dtype=torch.uint8, generator=generator)

    def rows(order: torch.Tensor, turn: torch.Tensor) -> dict:
        t, s = truth[order], samples[order][:, turn]
        measured = Measurement(t / 255, t / 255, s / 255)
        return evaluate_conditional(t, s, 8, {"image"}, PixelFeatures(8), {"source": measured})

    found = rows(torch.arange(20), torch.arange(4))
    again = rows(torch.randperm(20, generator=generator), torch.tensor([2, 0, 3, 1]))
    assert found.keys() == again.keys()
    assert {"truth_coverage", "diversity", "psnr", "ssim_mean_of_4", "top_1", "agreement_source"} < found.keys()
    for name, row in found.items():
        assert row.keys() == {"value", "error", "reference"}
        assert again[name] == pytest.approx(row, rel=1e-5)


def test_metrics_depend_on_the_types_of_conditions():
    truth, samples = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 2, 1, 4, 4, dtype=torch.uint8)
    only = evaluate_conditional(truth, samples, 8, {"vector", "label"}, PixelFeatures(8))
    assert only.keys() == {"truth_coverage", "diversity"}
    text = evaluate_conditional(truth, samples, 8, {"text"}, PixelFeatures(8))
    assert text.keys() == {"truth_coverage", "diversity", "top_1", "top_5"}
    with pytest.raises(ValueError, match="got 1 with 2"):
        evaluate_conditional(truth[:1], samples[:1], 8, set(), PixelFeatures(8))
