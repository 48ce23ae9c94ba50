"""The sampling loop with every sampler."""

import pytest
import torch
from diffusers import DDPMScheduler, PNDMScheduler
from helpers import gaussian_noise

from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.objectives.edm import EDM, EDMConfig
from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.sampling.loop import sample

OBJECTIVES = (DDPM(DDPMConfig()), EDM(EDMConfig()), Flow(FlowConfig()))
SAMPLERS = [(objective, name) for objective in OBJECTIVES for name in objective.samplers()]
IDS = [f"{type(objective).__name__}-{name}" for objective, name in SAMPLERS]


def model(x_t, t):
    return 0.9 * x_t


@pytest.mark.parametrize(("objective", "name"), SAMPLERS, ids=IDS)
def test_one_generator_per_image_makes_it_independent_of_the_batch(objective, name):
    def images(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(1, 8, 8, generator=generator) for generator in generators])
        return sample(model, objective.sampler(name, 10), noise, generators)

    torch.testing.assert_close(images(range(5))[3], images([3])[0])


@pytest.mark.parametrize(("objective", "name"), SAMPLERS, ids=IDS)
def test_all_randomness_comes_from_the_generator(objective, name):
    def image(seed):
        torch.manual_seed(seed)
        return sample(model, objective.sampler(name, 4), gaussian_noise(1, 4), torch.Generator().manual_seed(0))

    assert torch.equal(image(1), image(2))


def test_a_stochastic_sampler_without_a_generator_argument_is_an_error():
    """Images would not depend on their seeds alone if diffusers renamed it."""

    class Renamed(DDPMScheduler):
        def step(self, model_output, timestep, sample, rng=None):
            return super().step(model_output, timestep, sample, generator=rng)

    sampler = Renamed()
    sampler.set_timesteps(2)
    with pytest.raises(TypeError, match="generator"):
        sample(model, sampler, gaussian_noise(1, 4), torch.Generator())


def test_other_schedulers_of_diffusers_work_without_a_generator():
    sampler = PNDMScheduler()
    sampler.set_timesteps(4)
    assert sample(model, sampler, gaussian_noise(1, 4)).isfinite().all()


def test_progress_wraps_the_steps_and_learned_variance_is_ignored():
    steps = []

    def progress(timesteps):
        for t in timesteps:
            steps.append(int(t))
            yield t

    noise, sampler = gaussian_noise(2, 4), OBJECTIVES[0].sampler("dpm++", 5)
    found = sample(lambda x_t, t: torch.cat([0.9 * x_t, x_t], 1), sampler, noise, progress=progress)
    assert steps == sampler.timesteps.tolist()
    torch.testing.assert_close(found, sample(model, OBJECTIVES[0].sampler("dpm++", 5), noise))
