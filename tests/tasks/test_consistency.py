"""Consistency tuning as a whole run: configured by the pretrained run, resumed within its stages, sampled."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import checkpoint, mistake, randomized, run, small_unet, train_small

from diffunet.conditions.label import LabelConfig
from diffunet.objectives.ddpm import DDPMConfig
from diffunet.objectives.edm import EDMConfig
from diffunet.runs.config import Config
from diffunet.runs.run import Run
from diffunet.tasks.finetuning import configure, teacher

CONSISTENCY = ["--objective", "consistency", "--objective.stages", "3"]


def a_run(folder: str, objective) -> Run:
    """Write a run of digits with random weights."""
    config = Config(
        unet=small_unet(in_channels=1, out_channels=1),
        conditions={"label": LabelConfig(num_classes=2, class_names=("0", "1"))},
        objective=objective,
    ).replace(data={"path": "digits", "resolution": 8, "channels": 1, "bit_depth": 8}, train={"steps": 1000})
    made = Run(folder)
    made.create(config)
    made.publish(randomized(config.build_denoiser()))
    return made


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_byte(small):
    """Stages, pairs, dropout masks, the guided teacher and micro-batches included; the pretrained run is not needed."""
    train_small("--train.output", "base", "--train.steps", "2")
    words = ["--finetune.from", "base", *CONSISTENCY, "--objective.guidance_scale", "2", "--train.steps", "12"]
    assert run("train", *words, "--train.output", "run", "--train.checkpoint_every", "4") == 0
    shutil.rmtree("base")
    shutil.copytree("run", "resumed")
    shutil.rmtree("resumed/checkpoints/step_00000012")
    assert run("train", "--resume", "resumed") == 0
    assert checkpoint(Path("resumed")) == checkpoint(Path("run"))
    assert Run("run").sample(num_images=2, steps=1).pixels.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("objective", [EDMConfig(sigma_data=0.7), DDPMConfig(prediction_type="v_prediction")])
def test_the_pretrained_run_rules_the_source_and_the_length(in_a_new_folder, objective):
    a_run("base", objective)
    config, _ = configure(None, {"finetune.from": "base", "objective": "consistency", "objective.stages": "5"})
    assert config.objective.source == objective
    assert config.objective.stages == 5
    assert (config.train.steps, config.train.publish) == (1000, "newest")
    assert (config.sample.sampler, config.sample.steps) == ("consistency", 2)


def test_the_teacher_is_the_pretrained_network_with_guidance(in_a_new_folder):
    base = a_run("base", DDPMConfig(prediction_type="v_prediction"))
    config, _ = configure(None, {"finetune.from": "base", "objective": "consistency", "objective.guidance_scale": "2"})
    config = config.model_copy(update={"conditions": base.config().conditions, "unet": base.config().unet})
    network = base.denoiser()
    x_t, t, label = torch.randn(3, 1, 8, 8), torch.tensor([10.5, 200.0, 900.0]), torch.tensor([0, 1, 1])
    found = teacher(config, network.state_dict(), torch.device("cpu"))(x_t, t, label=label)
    expected = 2 * network(x_t, t, label=label) - network(x_t, t)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


REFUSED = {
    "another source": (
        ["--objective.source", "edm"],
        "objective.source.type: the network of base was trained with",
    ),
    "another sampler": (["--sample.sampler", "dpm++"], "sampler: dpm++ is not one of consistency"),
    "many steps": (["--sample.steps", "25"], "steps: consistency takes 1 to 4 calls (got 25)"),
}


@pytest.mark.parametrize(("flags", "message"), REFUSED.values(), ids=REFUSED)
def test_contradictions_are_refused_before_the_training(in_a_new_folder, capsys, flags, message):
    a_run("base", DDPMConfig(prediction_type="v_prediction"))
    line = mistake(capsys, "train", "--finetune.from", "base", *CONSISTENCY, *flags)
    assert line.startswith(message)


def test_images_as_predictions_are_refused(in_a_new_folder, capsys):
    a_run("base", DDPMConfig(prediction_type="sample"))
    line = mistake(capsys, "train", "--finetune.from", "base", *CONSISTENCY)
    assert "prediction_type sample cannot be tuned" in line


def test_without_a_pretrained_run_there_is_nothing_to_learn_from(small, capsys):
    flags = ["--objective", "consistency", "--objective.source", "ddpm", "--sample.sampler", "consistency"]
    flags += ["--objective.guidance_scale", "1"]
    line = mistake(capsys, "train", "--config", "small.yaml", *flags, "--sample.steps", "2")
    assert line.startswith("objective.guidance_scale: there is no network to learn from; set finetune.from")
