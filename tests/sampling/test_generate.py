import pytest
import torch
from helpers import randomized, small_unet

from diffunet.conditions.label import LabelConfig
from diffunet.core.errors import UserError
from diffunet.core.runtime import RuntimeConfig
from diffunet.models.denoiser import Denoiser
from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.sampling.generate import SampleConfig, Sampler, check_sample_config

NAMES = ("cat", "dog", "1")
COLORS = ("red", "blue")
COSINE = DDPM(DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine"))


def sampler_of(**class_names: tuple[str, ...]) -> Sampler:
    """Return a sampler of a random network with these label conditions."""
    torch.manual_seed(0)
    conditions = {n: LabelConfig(num_classes=len(names), class_names=names) for n, names in class_names.items()}
    denoiser = randomized(Denoiser.from_config(small_unet(in_channels=1, out_channels=1), conditions))
    return Sampler(denoiser, COSINE, (1, 8, 6), 8, conditions)


def sampled(sampler: Sampler, /, **settings):
    """Return the pixels, seeds and conditions of all batches."""
    batches = list(sampler.sample(SampleConfig.model_validate({"steps": 4} | settings)))
    return (
        torch.cat([batch.pixels for batch in batches]),
        [seed for batch in batches for seed in batch.seeds],
        {name: [x for batch in batches for x in batch.conditions[name]] for name in batches[0].conditions},
    )


@pytest.fixture
def sampler():
    return sampler_of(label=NAMES)


@pytest.mark.parametrize("name", ["dpm++", "sde-dpm++"])
def test_an_image_does_not_depend_on_its_batch(sampler, name):
    images, seeds, conditions = sampled(sampler, num_images=64, sampler=name)
    assert seeds == list(range(64))
    assert conditions["label"][:4] == [0, 1, 2, 0]
    assert images.float().std() > 10
    for batch_size in (1, 7):
        again, *_ = sampled(sampler, num_images=18, batch_size=batch_size, sampler=name)
        assert (again.int() - images[:18].int()).abs().max() <= 1  # rounding may differ in the last bit
    label = NAMES[conditions["label"][17]]
    alone, *_ = sampled(sampler, num_images=1, seed=17, conditions={"label": label}, sampler=name)
    assert (alone.int() - images[17:18].int()).abs().max() <= 1


def test_noise_has_one_generator_per_image():
    """The seeds of earlier versions give the same noise."""
    noise = []

    class Recorder(Denoiser):
        def forward(self, x_t, t, **conditions):
            noise.append(x_t)
            return torch.zeros_like(x_t)

    plain = sampler_of()
    recorder = Sampler(Recorder(plain.denoiser.unet, plain.denoiser.time), COSINE, (1, 8, 6), 8)
    sampled(recorder, num_images=2, seed=5, steps=2)
    expected = [torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)]
    torch.testing.assert_close(noise[0], torch.stack(expected), rtol=3e-4, atol=0)  # sigma is .9998 at the first step


def test_every_condition_cycles_through_its_own_classes():
    both = sampler_of(label=NAMES, color=COLORS)
    *_, conditions = sampled(both, num_images=7, batch_size=4)
    assert conditions == {"label": [0, 1, 2, 0, 1, 2, 0], "color": [0, 1, 0, 1, 0, 1, 0]}
    *_, conditions = sampled(both, num_images=3, conditions={"label": "none", "color": "blue"})
    assert conditions == {"label": [None] * 3, "color": [1, 1, 1]}
    assert sampled(sampler_of(), num_images=2)[2] == {}


def test_labels_and_guidance_have_an_effect(sampler):
    def images(label, **settings):
        return sampled(sampler, num_images=2, conditions={"label": label}, **settings)[0]

    plain = images(0)
    assert torch.equal(images("cat"), plain)
    assert not torch.equal(images("dog"), plain)
    assert not torch.equal(images("none"), plain)
    assert not torch.equal(images(0, guidance_scale=3.0), plain)
    assert torch.equal(images(0, guidance_scale=3.0, guidance_interval=(0.0, 0.0)), plain)


def test_the_guide_leads_away_from_its_own_prediction(sampler):
    plain = sampled(sampler, num_images=2)[0]
    sampler.guide = sampler.denoiser
    assert (sampled(sampler, num_images=2, guidance_scale=3.0)[0].int() - plain.int()).abs().max() <= 1
    sampler.guide = randomized(sampler_of(label=NAMES).denoiser)
    assert not torch.equal(sampled(sampler, num_images=2, guidance_scale=3.0)[0], plain)


def test_the_runtime_is_prepared(sampler):
    sampled(sampler, num_images=1, steps=1, runtime={"channels_last": True})
    assert sampler.denoiser.unet.stem.weight.is_contiguous(memory_format=torch.channels_last)
    dtypes = []
    handle = sampler.denoiser.unet.stem.register_forward_hook(lambda layer, x, output: dtypes.append(output.dtype))
    sampled(sampler, num_images=1, steps=1, runtime=RuntimeConfig(mixed_precision="bf16"))
    handle.remove()
    assert dtypes == [torch.bfloat16]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditions": {"label": "dgo"}}, "label: dgo is not one of"),
        ({"conditions": {"lable": "none"}}, r"lable: not one of label; did you mean label\?"),
        ({"sampler": "dpm+"}, "sampler: dpm"),
        ({"sampler": "ddim", "steps": 3}, "steps: ddim"),
    ],
)
def test_settings_that_are_not_available_are_errors_before_the_first_image(sampler, settings, message):
    config = SampleConfig(**settings)
    with pytest.raises(UserError, match=message):
        sampler.check(config)
    with pytest.raises(UserError, match=message):
        next(sampler.sample(config))


def test_unconditional_runs_accept_no_class():
    check_sample_config({}, COSINE, SampleConfig(conditions={"label": "none"}))
    with pytest.raises(UserError, match="label: not a condition: this run has none"):
        check_sample_config({}, COSINE, SampleConfig(conditions={"label": 3}))


def test_images_that_are_not_finite_are_an_error(sampler):
    sampler.denoiser.unet.stem.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        sampled(sampler, num_images=1)
