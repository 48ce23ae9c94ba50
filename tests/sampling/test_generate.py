import pytest
import torch
from helpers import randomised, small_unet

from diffunet.data.dataset import DataConfig
from diffunet.models.denoiser import ConditionsConfig, Denoiser
from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.sampling.generate import SampleConfig, generate, parse_labels
from diffunet.core.errors import UserError

NAMES = ("cat", "dog", "1")
DIFFUSION = DDPM(DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine"))
DATA = DataConfig(resolution=(8, 6), channels=1, bit_depth=8)


@pytest.fixture
def denoiser():
    return randomised(Denoiser.from_config(small_unet(in_channels=1, out_channels=1), ConditionsConfig(classes=3)))


def drawn(denoiser, **wish):
    batches = list(generate(denoiser, NAMES, DIFFUSION, DATA, SampleConfig(**({"steps": 4} | wish))))
    return (
        torch.cat([batch.pixels for batch in batches]),
        [seed for batch in batches for seed in batch.seeds],
        [label for batch in batches for label in batch.labels],
    )


@pytest.mark.parametrize("sampler", ["dpm++", "sde-dpm++"])
def test_a_picture_does_not_depend_on_its_batch(denoiser, sampler):
    whole, seeds, labels = drawn(denoiser, num_images=64, sampler=sampler)
    assert seeds == list(range(64))
    assert labels[:4] == [0, 1, 2, 0]
    assert whole.float().std() > 10
    for batch_size in (1, 7):
        again, *_ = drawn(denoiser, num_images=18, batch_size=batch_size, sampler=sampler)
        assert (again.int() - whole[:18].int()).abs().max() <= 1               # the last bit may round otherwise
    alone, *_ = drawn(denoiser, num_images=1, seed=17, label=NAMES[labels[17]], sampler=sampler)
    assert (alone.int() - whole[17:18].int()).abs().max() <= 1


def test_label_and_guidance_are_heard(denoiser):
    plain, *_ = drawn(denoiser, num_images=2, label="0")
    assert not torch.equal(drawn(denoiser, num_images=2, label="dog")[0], plain)
    assert not torch.equal(drawn(denoiser, num_images=2, label="none")[0], plain)
    assert not torch.equal(drawn(denoiser, num_images=2, label="0", guidance_scale=3.0)[0], plain)
    never = drawn(denoiser, num_images=2, label="0", guidance_scale=3.0, guidance_interval=(0.0, 0.0))[0]
    assert torch.equal(never, plain)


def test_labels_by_name_number_and_in_turn():
    assert parse_labels(None, NAMES) == [0, 1, 2]
    assert parse_labels(None, ()) == [None]
    assert parse_labels("none", NAMES) == [None]
    assert parse_labels("dog,0", NAMES) == [1, 0]
    assert parse_labels("1", NAMES) == [2]                                   # a name comes before a number
    with pytest.raises(UserError, match=r"label: dgo is not one of the 3 classes: cat, dog, 1; did you mean dog\?"):
        parse_labels("dgo", NAMES)
    with pytest.raises(UserError, match="no classes"):
        parse_labels("0", ())


def test_a_broken_network_draws_nothing(denoiser):
    denoiser.unet.stem.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        drawn(denoiser, num_images=1)
