"""The EMA length of a run's weights, chosen after its training (Karras et al. 2024, section 3)."""

from collections.abc import Callable, Sequence

from ..core.progress import no_progress
from ..core.runtime import default_device
from ..evaluation.features import choose_features
from ..sampling.generate import SampleConfig
from .evaluate import EvaluationConfig, evaluate_denoiser, real_images
from .run import Run


def publish_length(
    run: Run,
    lengths: Sequence[float],
    config: EvaluationConfig,
    sampling: SampleConfig,
    log: Callable[[str], None] = print,
    progress: Callable = no_progress,
) -> float:
    """Make an EMA of the best of some lengths the model of a run, and return that length.

    lengths: as shares of the training. Of several, the best has the least Fréchet distance; `log` gets a line for each.
    Raise UserError for a run without the snapshots that a length needs, and as `evaluate` does.
    """
    averages = {length: run.posthoc_ema(length) for length in lengths}
    best, distances = lengths[0], {}
    if len(averages) > 1:
        real = real_images(run.config(), config.data)
        features = choose_features(config.features, config.weights, real, default_device())
        log(f"{'length':>8}  Fréchet distance ({features.name}, {sampling.num_images} samples)")
        for length, denoiser in averages.items():
            record = evaluate_denoiser(run, denoiser, sampling, real, features, progress).record
            found = next(iter(record["metrics"].values()))
            distances[length] = found["value"]
            log(f"{length:8.3f}  {found['value']:.4g} ± {found['error']:.2g}")
        best = min(distances, key=distances.__getitem__)
    run.publish(averages[best].cpu(), chosen_by={"length": best, "frechet_distances": distances})
    return best
