"""Finetuning: the weights and the configuration that it begins with, refusals, resuming, and diffusers' folders."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import mistake, randomized, run, small_unet, train_small, write_image

from diffunet.conditions.augmentation import AugmentationConfig
from diffunet.conditions.label import LabelConfig
from diffunet.conditions.vector import VectorConfig
from diffunet.core.errors import UserError
from diffunet.core.storage import load_tensors
from diffunet.data.config import DataConfig
from diffunet.objectives.ddpm import DDPMConfig
from diffunet.runs.config import Config
from diffunet.runs.run import Run, load_run
from diffunet.sampling.loop import sample
from diffunet.tasks.finetuning import INITIAL_WEIGHTS, configure, initial_weights, load_pretrained
from diffunet.tasks.generation import generation
from diffunet.tasks.kinds import train
from diffunet.training.config import TrainConfig
from diffunet.training.log import read_log
from stress import crash

CLASSES = ("0", "1", "7")
X_T, T = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 100.0, 500.0, 900.0])


def labels(*names: str) -> dict:
    return {"label": LabelConfig(num_classes=len(names), class_names=names)}


def a_run(folder: Path, conditions: dict = labels(*CLASSES), **sections) -> Run:
    """Write a run of digits with random weights, as if it was trained for 1,000 steps."""
    source = Config(
        unet=small_unet(in_channels=1, out_channels=1),
        conditions=conditions,
        objective=DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine"),
        data=DataConfig(path="gone", resolution=8, channels=1, bit_depth=8),
        train=TrainConfig(output=str(folder), steps=1000, learning_rate=1e-3, warmup_steps=50, minutes=3.0),
    ).replace(**sections)
    made = Run(folder)
    made.create(source)
    made.publish(randomized(source.build_denoiser()))
    return made


def begun(source: Run, conditions: dict) -> torch.nn.Module:
    """Return the network of a finetuning with these conditions, before its first step."""
    found = load_pretrained(str(source.folder))
    config = found.config.model_copy(update={"conditions": conditions})
    denoiser = config.build_denoiser()
    denoiser.load_state_dict(initial_weights(config, found, print))
    return denoiser.eval()


# ── weights ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rank", ["0", "3"])
def test_the_first_step_predicts_what_the_source_predicts_to_the_bit(in_a_new_folder, rank):
    """By the task itself, on the built-in digits, of which the source has three classes."""
    source = a_run(Path("old"))
    flags = {"finetune.from": "old", "finetune.lora_rank": rank, "data.path": "digits"}
    flags["train.runtime.channels_last"] = "false"  # another order of summation
    config, found = configure(None, flags)
    model = generation(config, found).build_model(config.train).eval()
    there, here = torch.tensor([0, 1, 2, -1]), torch.tensor([0, 1, 7, -1])
    assert torch.equal(model(X_T, T, label=here), source.denoiser()(X_T, T, label=there))


def test_rows_of_classes_are_kept_by_name_and_new_ones_are_among_them(in_a_new_folder, capsys):
    source = a_run(Path("old"))
    old = source.denoiser().embeddings["label"].table.weight
    new = begun(source, labels("7", "8", "0")).embeddings["label"].table.weight
    assert torch.equal(new[[0, 2, 3]], old[[2, 0, 3]])
    assert capsys.readouterr().out == "conditions.label: new to old, begin at random among its classes: 8\n"
    many = begun(source, labels("7", *map(str, range(100, 500)))).embeddings["label"].table.weight[1:-1]
    off = (many - old[:3].mean(0)) / old[:3].std(0, correction=0)
    assert off.mean().item() == pytest.approx(0, abs=0.05)
    assert off.std().item() == pytest.approx(1, abs=0.05)
    again = begun(source, labels("7", *map(str, range(100, 500)))).embeddings["label"].table.weight[1:-1]
    assert torch.equal(many, again)


@pytest.mark.parametrize("added", [labels("a", "b"), {"pose": VectorConfig(width=2, mean=(0.0, 0.0), std=(1.0, 1.0))}])
def test_a_new_condition_has_no_effect_at_first(in_a_new_folder, added):
    source = a_run(Path("old"), {})
    name = next(iter(added))
    value = torch.tensor([0, 1, -1, 1]) if name == "label" else torch.randn(4, 2)
    assert torch.equal(begun(source, added)(X_T, T, **{name: value}), source.denoiser()(X_T, T))


def test_a_condition_without_data_is_absent(in_a_new_folder):
    """Its null embedding moves into the embedding of the time."""
    pose = VectorConfig(width=2, mean=(0.0, 0.0), std=(1.0, 1.0))
    source = a_run(Path("old"), {**labels("a"), "pose": pose, "augmentation": AugmentationConfig(width=9)})
    torch.testing.assert_close(begun(source, {})(X_T, T), source.denoiser()(X_T, T), atol=1e-5, rtol=1e-5)


# ── configuration ─────────────────────────────────────────────────────────────────────────────────


def test_the_configuration_of_the_source_is_the_base(in_a_new_folder):
    source = a_run(Path("old"), data={"split": "test", "random_flip": True}).config()
    Path("new.yaml").write_text("finetune: {from: old}\ntrain: {seed: 3}\nunet: {dropout: 0.2}\n")
    config, found = configure(Path("new.yaml"), {"data.path": "new", "train.batch_size": "4"})
    assert found.name == "old"
    assert config.unet == source.unet.model_copy(update={"dropout": 0.2})
    assert (config.objective, config.labels["label"].num_classes) == (source.objective, None)
    assert config.data == DataConfig(path="new", resolution=8, channels=1, random_flip=True)
    train = config.train
    assert (train.output, train.steps, train.warmup_steps, train.minutes) == ("runs/old-finetuned", 100, 5, None)
    assert (train.seed, train.batch_size, train.publish) == (3, 4, "least_val_loss")
    assert train.learning_rate == source.train.learning_rate
    lora, _ = configure(None, {"finetune.from": "old", "finetune.lora_rank": "4"})
    assert (lora.train.learning_rate, lora.train.snapshots) == (3e-3, 0)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["--unet.modulation", "shift"],
            "unet.modulation: the network of old was trained with scale_shift (got shift)",
        ),
        (["--time.freq_shift", "1"], "time.freq_shift: the network of old was trained with 0 (got 1)"),
        (
            ["--objective.prediction_type", "epsilon"],
            "objective.prediction_type: the network of old was trained with v_prediction (got epsilon)",
        ),
        (["--objective", "flow"], "objective.type: the network of old was trained with ddpm (got flow)"),
        (["--data.channels", "3"], "data.channels: the network of old was trained with 1 (got 3)"),
        (["--finetune.lora_rank", "2", "--train.snapshots", "4"], "train.snapshots: LoRA has none (got 4)"),
    ],
)
def test_contradictions_are_one_line(in_a_new_folder, capsys, flags, line):
    a_run(Path("old"))
    found = mistake(capsys, "train", "--finetune.from", "old", "--data.path", "digits", *flags)
    assert found.startswith(line)
    assert "leave " in found
    assert not Path("runs").exists()


def test_only_an_objective_for_it_begins_from_another(in_a_new_folder):
    source = a_run(Path("old"))
    with pytest.raises(UserError, match="objective.type"):
        configure(None, {"finetune.from": "old", "objective": "edm"})
    config, _ = configure(None, {"finetune.from": "old", "objective": "consistency"})
    assert (config.objective.source, config.unet) == (source.config().objective, source.config().unet)


def test_conditions_that_do_not_fit_are_one_line(in_a_new_folder, capsys):
    a_run(Path("old"))
    begin = ["--finetune.from", "old", "--data.path", "digits"]
    line = mistake(capsys, "train", *begin, "--conditions", "{caption: {type: text}}")
    assert line == "conditions.caption: the network of old has no input for it; leave it out"
    vector = {"pose": VectorConfig(width=1, mean=(0.0,), std=(1.0,))}
    with pytest.raises(
        UserError, match=r"conditions.pose: differs from that of old \(1 number\); leave its settings out"
    ):
        begun(a_run(Path("old"), vector), {"pose": VectorConfig(width=1, mean=(0.5,), std=(1.0,))})


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("olt", "olt: no such run folder; did you mean old?"),
        ("run/digits", "finetune.from: no such folder, and on the hub run/digits: not a DDPMPipeline folder with saf"),
        ("photos", "photos: no config.yaml, so not a run folder"),
        ("old/model", "old/model: no config.yaml, so not a run folder"),
    ],
)
def test_a_source_that_is_none_is_one_line(in_a_new_folder, capsys, name, line):
    a_run(Path("old"))
    write_image(Path("photos/0.png"))
    assert mistake(capsys, "train", "--finetune.from", name).startswith(line)


# ── whole trainings ───────────────────────────────────────────────────────────────────────────────

ONCE = ["--finetune.from", "run", "--train.output", "new", "--train.steps", "4", "--train.preview_every", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_finetuned_run_is_a_run_like_others(small, capsys, rank):
    """It samples, evaluates and exports, and is finetuned in turn, without its source."""
    train_small()
    assert run("train", *ONCE, "--finetune.lora_rank", str(rank)) == 0
    output = capsys.readouterr().out
    least = min((line for line in read_log(Path("new/log.jsonl")) if "val_loss" in line), key=lambda x: x["val_loss"])
    assert f"published: step {least['step']}, with the least validation loss, {least['val_loss']:.4g}" in output
    assert "no sign of memorization: " in output
    source, found = load_run("run").denoiser().state_dict(), load_run("new").denoiser().state_dict()
    assert found.keys() == source.keys()
    moved = {name for name in source if not torch.equal(source[name], found[name])}
    norms = {name for name in source if "norm" in name}
    assert ("unet.stem.weight" in moved) and (norms.isdisjoint(moved) == bool(rank))
    Path("run").rename("gone")
    assert run("train", "--resume", "new", "--train.steps", "6") == 0
    assert run("sample", "new", "--num_images", "2", "--steps", "2") == 0
    assert run("evaluate", "new", "--num_images", "8", "--steps", "2") == 0
    assert run("export", "new", "exported") == 0
    assert run("train", "--finetune.from", "new", "--train.output", "newer", "--train.steps", "2") == 0


@pytest.mark.slow
def test_finetuning_from_python(small):
    train_small("--train.steps", "2")
    made = train({"finetune": {"from": "run"}}, train={"output": "new", "steps": 2})
    assert load_tensors(made.folder / INITIAL_WEIGHTS).keys() == made.denoiser().state_dict().keys()
    assert made.config().finetune.pretrained == "run"


@pytest.mark.slow
def test_killed_and_resumed_lora_equals_an_uninterrupted_one(tmp_path):
    """To the byte, with the weights of the least validation loss; checkpoints have A, B and the classes only."""
    a_run(tmp_path / "old")
    flags = ["--finetune.from", tmp_path / "old", "--finetune.lora_rank", "2", "--train.snapshots", "0"]
    flags += ["--train.publish", "least_val_loss", "--train.preview_every", "4"]
    assert crash.survive(tmp_path, kills=1, flags=flags)["kills"] == 1
    newest = sorted((tmp_path / "killed" / "checkpoints").iterdir())[-1]
    names = load_tensors(newest / "model.safetensors").keys()
    assert names
    assert all(name.endswith((".down", ".up", "label.table.weight")) for name in names)
    assert (newest / "least_val_loss.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "2"])
def test_a_diffusers_folder_is_finetuned_and_drawn_alike_by_diffusers(in_a_new_folder, rank):
    """Folder -> finetuning -> export: DDPMPipeline and our sampler draw the same images, other than the source's."""
    theirs = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    DDPMPipeline(unet=randomized(theirs), scheduler=DDPMScheduler()).save_pretrained("theirs")
    for index in range(8):
        write_image(Path("photos") / f"{index}.png", "RGB", (20, 20), seed=index)
    flags = ["--finetune.from", "theirs", "--finetune.lora_rank", rank, "--data.path", "photos"]
    short = [
        "--train.steps",
        "2",
        "--train.batch_size",
        "4",
        "--train.learning_rate",
        "0.01",
        "--sample.num_images",
        "2",
    ]
    assert run("train", *flags, *short, "--sample.steps", "2", "--train.output", "new") == 0
    assert run("export", "new", "exported") == 0

    def drawn(folder: str) -> torch.Tensor:
        pipeline = DDPMPipeline.from_pretrained(folder)
        generator = torch.Generator().manual_seed(0)
        images = pipeline(batch_size=2, generator=generator, num_inference_steps=5, output_type="np").images
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    scheduler = DDPMScheduler.from_pretrained("exported", subfolder="scheduler")
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, 16, 16, generator=generator)
    ours = (sample(load_run("new").denoiser(), scheduler, noise, generator) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(drawn("exported"), ours, atol=1e-4, rtol=0)
    assert (drawn("theirs") - ours).abs().max() > 1e-2
