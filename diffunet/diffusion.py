"""The training objective and the sampling loop, over the noise schedules of `diffusers`.

Both meet a network only as `model(x_t, t, **conditions)`. With alpha_bar(t) from the scheduler,
x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise (DDPM, Ho et al. 2020, equation 4).
"""

import inspect
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from .randomness import Randomness
from .settings import Settings, UserError, did_you_mean, unwatched

BANDS = 4
"""The loss is also reported for this many equal ranges of t."""


class DiffusionConfig(Settings):
    """The noise, and what the network predicts of it."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """What the network answers with: noise, clean image, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0."""
    beta_schedule: Literal["linear", "cosine"] = "linear"
    """Noise over time: linear from 0.0001 to 0.02 (Ho et al. 2020) or cosine (Nichol & Dhariwal 2021)."""
    num_train_timesteps: int = Field(1000, ge=2)
    """Number of noise levels; t runs from 0 to this less one."""
    rescale_betas_zero_snr: bool = False
    """Let the last noise level hold no signal at all (Lin et al. 2023); not with epsilon."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Clamp of the min-SNR loss weight (Hang et al. 2023), usually 5; null: no weight."""
    condition_dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of withholding all conditions of an example, for guidance (Ho & Salimans 2022)."""

    @model_validator(mode="after")
    def _zero_snr_needs_a_target(self):
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr leaves nothing to learn with prediction_type epsilon; "
                "use v_prediction or sample"
            )
        return self

    def scheduler(self):
        """The `DDPMScheduler` of this noise."""
        from diffusers import DDPMScheduler

        return DDPMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[self.beta_schedule],
            prediction_type=self.prediction_type,
            rescale_betas_zero_snr=self.rescale_betas_zero_snr,
            timestep_spacing="trailing",
        )


class Diffusion:
    """The denoising objective: mean squared error of what `prediction_type` names."""

    def __init__(self, config: DiffusionConfig):
        self.config = config
        self.scheduler = config.scheduler()

    def loss(
        self, model: Callable, image: Tensor, rng: Randomness = Randomness(), **conditions: Tensor
    ) -> dict[str, Tensor]:
        """Losses of a batch of images (B, C, *S) in [-1, 1], each (B,) in fp32.

        `loss` is to be minimised. The others are its unweighted parts by t, NaN for examples outside.
        """
        steps = self.config.num_train_timesteps
        t = (rng.uniform_like(image) * steps).long()
        noise = rng.normal_like(image)
        x_t = self.scheduler.add_noise(image, noise, t)
        if conditions and self.config.condition_dropout:
            conditions["told"] = rng.uniform_like(image) >= self.config.condition_dropout
        prediction = model(x_t, t, **conditions).float()
        error = (prediction - self._target(image, noise, t)).square().flatten(1).mean(1)
        bands = {}
        for band in range(BANDS):
            low, high = band * steps // BANDS, (band + 1) * steps // BANDS
            bands[f"loss_t{low}-{high - 1}"] = error.detach().where((low <= t) & (t < high), torch.nan)
        return {"loss": error * self._weight(t), **bands}

    def _target(self, image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        match self.config.prediction_type:
            case "epsilon":
                return noise
            case "sample":
                return image
            case "v_prediction":
                return self.scheduler.get_velocity(image, noise, t)

    def _weight(self, t: Tensor) -> Tensor | float:
        """Min-SNR (Hang et al. 2023): min(SNR, gamma) on the error of x_0, in terms of the prediction."""
        gamma = self.config.min_snr_gamma
        if gamma is None:
            return 1.0
        alpha_bar = self.scheduler.alphas_cumprod.to(t.device)[t]
        snr = alpha_bar / (1 - alpha_bar)
        match self.config.prediction_type:
            case "epsilon":
                return (gamma / snr).clamp(max=1)             # finite at SNR 0, unlike min(SNR, gamma) / SNR
            case "sample":
                return snr.clamp(max=gamma)
            case "v_prediction":
                return snr.clamp(max=gamma) / (snr + 1)


SAMPLERS: dict[str, tuple[str, dict]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    "sde-dpm++": (
        "DPMSolverMultistepScheduler",
        {"use_lu_lambdas": True, "algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
}
"""Samplers by name: the scheduler of `diffusers` and what to set there.

The rest of its schedulers miss the mean or the spread of Gaussian data with some step count or prediction type.
"""


def make_sampler(name: str, scheduler, steps: int):
    """The sampler `name` for the noise of a `DDPMScheduler`, ready for `steps` network calls.

    UserError for a name, a number of steps or a prediction type with which the sampler is wrong.
    """
    import diffusers

    if name not in SAMPLERS:
        raise UserError(f"sampler: {name} is not one of {', '.join(SAMPLERS)}{did_you_mean(name, SAMPLERS)}")
    trained = scheduler.config
    total = trained.num_train_timesteps
    if not 1 <= steps <= total:
        raise UserError(f"steps: {steps} is not between 1 and the {total} noise levels of the training")
    if name == "ddim" and total % steps:
        near = min((n for n in range(1, total + 1) if total % n == 0), key=lambda n: abs(n - steps))
        raise UserError(f"steps: ddim needs a number that divides {total}, not {steps}; try {near}")
    if name == "euler-a" and trained.prediction_type == "sample":
        raise UserError("sampler: euler-a cannot use a network trained with prediction_type sample; try sde-dpm++")
    if name == "euler-a" and trained.prediction_type == "epsilon" and scheduler.alphas_cumprod[-1] < 1e-6:
        raise UserError("sampler: euler-a cannot undo cosine noise with prediction_type epsilon; try sde-dpm++")
    # Every value explicit: where one is missing, from_config takes the other class's default, betas included.
    explicit = {key: value for key, value in trained.items() if not key.startswith("_")}
    clip_to_data_range = {"thresholding": True, "sample_max_value": 1.0, "clip_sample": False}
    class_name, options = SAMPLERS[name]
    spacing = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
    sampler = getattr(diffusers, class_name).from_config({**explicit, **clip_to_data_range, **spacing, **options})
    sampler.set_timesteps(steps)
    return sampler


@torch.no_grad()
def sample(
    model: Callable,
    sampler,
    noise: Tensor,
    generator: torch.Generator | list[torch.Generator] | None = None,
    progress: Callable = unwatched,
    **conditions: Tensor,
) -> Tensor:
    """Images (B, C, *S), about [-1, 1], from standard normal noise of that shape.

    `sampler` is a diffusers scheduler whose timesteps are set (`make_sampler`). `generator` feeds the
    stochastic ones: one for the batch, or one for each image, which makes an image independent of its
    batch. `progress` wraps the steps.
    """
    takes_generator = "generator" in inspect.signature(sampler.step).parameters
    options = {"generator": generator} if takes_generator else {}
    x = noise * sampler.init_noise_sigma
    for t in progress(sampler.timesteps):
        prediction = model(sampler.scale_model_input(x, t), t.to(x.device), **conditions).float()
        prediction = prediction[:, : x.shape[1]]              # ADM's learned variance follows; no sampler reads it
        x = sampler.step(prediction, t, x, **options).prev_sample
    return x
