"""All types of conditions in one run: trained, resumed, sampled, evaluated and described."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import checkpoint, mistake, run, write_image
from PIL import Image

from diffunet.core.rng import BatchRNG
from diffunet.core.settings import settings_from
from diffunet.data.dataset import load_images
from diffunet.data.pixels import denormalize, normalize
from diffunet.data.sources import load_rows
from diffunet.runs.config import Config
from stress.fuzz_conditions import MIXED, NAMES, NUMBER, SIDE, read_metadata, write_metadata, write_photos
from stress.program import ROOT, program

STEPS = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with photos, mixed.yaml and a finished run."""
    folder = tmp_path_factory.mktemp("mixed")
    write_photos(folder / "photos")
    (folder / "mixed.yaml").write_text(MIXED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("train", "--config", "mixed.yaml") == 0
    return folder


@pytest.fixture
def mixed(made, tmp_path, monkeypatch):
    """Return the working directory of one test, a copy of `made`."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sample(*argv, folder: str = "out") -> tuple[torch.Tensor, list[dict]]:
    """Run sample.py with two steps. Return the images and their metadata."""
    shutil.rmtree(folder, ignore_errors=True)
    assert run("sample", "run", "--steps", "2", "--output", folder, *argv) == 0
    records = read_metadata(Path(folder))
    images = [np.asarray(Image.open(Path(folder) / record["file_name"])) for record in records]
    return torch.from_numpy(np.stack(images)).int(), records


# ── training ──────────────────────────────────────────────────────────────────────────────────────


def test_every_type_trains_and_is_recorded(mixed, capsys):
    config = settings_from(Path("run/config.yaml"), Config)
    assert list(config.conditions) == [*NAMES, "augmentation"]
    assert config.conditions["source"].channels == 1
    assert config.conditions["numbers"].width == 2
    assert config.unet.plane_channels == 2 + 4
    assert config.unet.token_dim
    logged = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for record in logged for value in record.values() if isinstance(value, float))
    assert run("describe", "run") == 0
    output = capsys.readouterr().out
    assert all(name in output for name in NAMES)


def test_a_resumed_run_is_the_same_to_the_byte(mixed):
    """After a checkpoint, and in one go; the tokenizer is read, so that no caption is needed to train it again."""
    shutil.copytree("run", "straight")
    shutil.rmtree("run/checkpoints/step_00000008")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffunet.conditions.text.train_tokenizer", None)
        assert run("train", "--resume", "run") == 0
    assert checkpoint(Path("run"), STEPS) == checkpoint(Path("straight"), STEPS)
    assert sorted(p.name for p in Path("run/examples").rglob("*")) == sorted(
        p.name for p in Path("straight/examples").rglob("*")
    )


CHANGES = {
    "text": lambda record: record["text"].append("a new caption"),
    "weight": lambda record: record.update(weight=99.0),
    "label": lambda record: record.update(label="ring" if record["label"] == "disk" else "disk"),
    "source_file_name": lambda record: record.update(source_file_name="sources/05.png"),
}


@pytest.mark.parametrize("column", CHANGES)
def test_changed_values_are_refused_by_a_resumed_run(mixed, capsys, column):
    records = read_metadata(Path("photos"))
    CHANGES[column](records[1])
    write_metadata(Path("photos"), records)
    assert run("train", "--resume", "run", "--train.steps", "10") == 2
    assert "\rdata.path: different data set (20 examples, run/checkpoints" in capsys.readouterr().err


def test_the_fingerprint_follows_every_column(mixed):
    def fingerprint(names=NAMES) -> str:
        conditions = {name: config.conditions[name] for name in names}
        return load_images(config.data, conditions, Path("run/model"), log=lambda line: None).fingerprint

    config, records = settings_from(Path("run/config.yaml"), Config), read_metadata(Path("photos"))
    found = {"": fingerprint()}
    for column, change in CHANGES.items():
        changed = json.loads(json.dumps(records))
        change(changed[1])
        write_metadata(Path("photos"), changed)
        found[column] = fingerprint()
    assert len(set(found.values())) == 1 + len(CHANGES)
    write_metadata(Path("photos"), records)
    assert fingerprint() == found[""]
    assert fingerprint(["small"]) == fingerprint([])  # made from the images, which are in it already


def test_examples_hold_the_conditions_of_held_out_images(mixed):
    records = read_metadata(Path("run/examples"))
    config = settings_from(Path("run/config.yaml"), Config)
    assert len(records) == int(0.2 * NUMBER)
    assert all(record.keys() == {"file_name", *NAMES} for record in records)
    images = load_images(config.data, config.inputs, Path("run/model"), log=lambda line: None)
    _, held_out = images.split_held_out()
    originals = {Image.open(f"photos/{index:02d}.png").tobytes(): index for index in range(NUMBER)}
    for record in records:
        index = originals[Image.open(Path("run/examples", record["file_name"])).tobytes()]
        assert index in held_out.indices.tolist()
        truth = read_metadata(Path("photos"))[index]
        assert config.conditions["label"].class_names[record["label"]] == truth["label"]
        assert record["caption"] in (truth["text"] or [None])
        numbers = None if truth["weight"] is None else pytest.approx([truth["weight"], truth["age"]], abs=1e-6)
        assert record["numbers"] == numbers
        if truth["source_file_name"] is None:
            assert record["source"] is None
        else:
            source = Image.open(Path("run/examples", record["source"]))
            assert source.tobytes() == Image.open(Path("photos", truth["source_file_name"])).tobytes()
        assert Image.open(Path("run/examples", record["small"])).size == (SIDE // 2, SIDE // 2)
    assert len(load_rows("run/examples", "train", log=lambda line: None)) == len(records)


@pytest.mark.slow
def test_two_processes_see_the_same_data_and_noise_as_one(mixed):
    """Captions, degradations, flips, noise and dropped conditions included; a resumed run is the same to the byte."""

    def launch(*argv: str) -> None:
        process = program(ROOT / "train.py", *argv, processes=2)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output

    def losses(folder: str) -> list[float]:
        records = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
        return [record["loss"] for record in records if "loss" in record]

    argv = ("--config", "mixed.yaml", "--unet.dropout", "0", "--train.output")
    assert run("train", *argv, "one") == 0
    launch(*argv, "two")
    one, two = losses("one"), losses("two")
    assert len(two) == STEPS // 2
    assert two == pytest.approx(one, rel=1e-3)
    shutil.copytree("two", "resumed")
    shutil.rmtree("resumed/checkpoints/step_00000008")
    launch("--resume", "resumed")
    assert checkpoint(Path("resumed"), STEPS) == checkpoint(Path("two"), STEPS)


# ── sampling ──────────────────────────────────────────────────────────────────────────────────────


def test_sampling_without_options_reproduces_the_last_preview(mixed):
    assert run("sample", "run", "--output", "out") == 0
    assert Path("out/grid.png").read_bytes() == Path(f"run/samples/step_{STEPS:08d}.png").read_bytes()
    examples = read_metadata(Path("run/examples"))
    for record, example in zip(read_metadata(Path("out")), examples, strict=True):
        assert record.get("caption") == example["caption"]
        assert record.get("numbers") == example["numbers"]


def test_an_image_does_not_depend_on_its_batch(mixed):
    whole, records = sample("--num_images", "64", "--batch_size", "64")
    assert whole.float().std() > 10
    for batch_size, number in ((1, 9), (7, 21)):
        again, same = sample("--num_images", number, "--batch_size", batch_size)
        assert same == records[:number]
        assert (again - whole[:number]).abs().max() <= 1


def test_help_lists_a_flag_for_each_condition(mixed, capsys):
    assert run("sample", "run", "--help") == 0
    output = capsys.readouterr().out
    kinds = {"label": "LABEL", "caption": "TEXT", "source": "IMAGE", "numbers": "VECTOR", "small": "IMAGE"}
    assert all(f"--{name} {kind}" in output for name, kind in kinds.items())
    assert "--augmentation" not in output


def test_each_condition_changes_the_samples(mixed):
    absent, records = sample("--num_images", "1", "--label", "none")
    assert records == [{"file_name": "00000.png", "seed": 0}]
    words = {"caption": "a small disk", "numbers": "3, 1", "source": "photos/sources/05.png"}
    words |= {"label": "ring", "small": "run/examples/" + read_metadata(Path("run/examples"))[0]["small"]}
    for name, word in words.items():
        images, [record] = sample("--num_images", "1", f"--{name}", word)
        assert not torch.equal(images, absent), name
        assert name in record


def test_prompts_of_a_file_are_sampled_in_turn(mixed):
    Path("prompts.txt").write_text("a small disk\n\none more, star\n")
    images, records = sample("--caption", "prompts.txt")
    assert [record["caption"] for record in records] == ["a small disk", "one more, star"]
    alone, _ = sample("--caption", "one more, star", "--num_images", "1", "--seed", "1")
    assert (alone[0] - images[1]).abs().max() <= 1


def test_a_folder_of_sources_gives_one_image_each(mixed):
    Path("few").mkdir()
    for index in (4, 9, 11):
        shutil.copy(f"photos/sources/{index:02d}.png", f"few/cat {index}.png")
    _, records = sample("--source", "few")
    assert [record["file_name"] for record in records] == ["cat 11.png", "cat 4.png", "cat 9.png"]
    assert [record["source"] for record in records] == [f"few/{record['file_name']}" for record in records]


def test_samples_agree_with_their_source_to_the_bit(mixed):
    file = Path("run/examples") / read_metadata(Path("run/examples"))[0]["small"]
    source = torch.tensor(np.asarray(Image.open(file))).permute(2, 0, 1)
    degradation = settings_from(Path("run/config.yaml"), Config).conditions["small"]._degradation((SIDE, SIDE))

    def deviation(*argv) -> int:
        images, _ = sample("--num_images", "4", "--small", file, *argv)
        pixels = normalize(images.to(torch.uint8).permute(0, 3, 1, 2), 8)
        small = denormalize(degradation.degrade(pixels, BatchRNG()), 8)
        return int((small.int() - source.int()).abs().max())

    assert deviation() > 5
    assert deviation("--agree", "true") == 0


def test_a_larger_source_is_sampled_in_tiles(mixed, capsys):
    write_image(Path("large.png"), "RGB", (10, 8))
    line = mistake(capsys, "sample", "run", "--small", "large.png", "--output", "out")
    assert line == "tile: the source gives an image of 16×20, but the run was trained on 8×8; add --tile 8"
    assert not Path("out").exists()
    images, records = sample("--small", "large.png", "--tile", "8", "--num_images", "2")
    assert images.shape == (2, 16, 20, 3)
    assert [record["file_name"] for record in records] == ["large.png", "large_1.png"]


def test_guidance_by_condition(mixed):
    words = ["--num_images", "2", "--label", "ring", "--caption", "a small disk", "--numbers", "3, 1"]
    together, _ = sample(*words, "--guidance_scale", "2")
    each = json.dumps({"numbers": 2, "caption": 2, "label": 2})
    equal, _ = sample(*words, "--guidance_scale", each)
    assert (equal - together).abs().max() <= 1
    ones, _ = sample(*words, "--guidance_scale", json.dumps({"numbers": 1, "label": 1}))
    none, _ = sample(*words, "--guidance_scale", "1")
    assert (ones - none).abs().max() <= 1
    caption, _ = sample(*words, "--guidance_scale", '{"caption": 9}')
    assert (caption - none).abs().max() > 1


def test_without_its_examples_a_run_samples_without_conditions(mixed):
    absent, _ = sample("--num_images", "2", "--label", "none")
    shutil.rmtree("run/examples")
    found, records = sample("--num_images", "2")
    assert torch.equal(found, absent)
    assert all(record.keys() == {"file_name", "seed"} for record in records)
    assert run("train", "--resume", "run", "--train.steps", "9") == 0
    assert len(read_metadata(Path("run/examples"))) == int(0.2 * NUMBER)


def test_a_run_is_evaluated_under_held_out_conditions(mixed):
    argv = ["run", "--num_images", "6", "--steps", "2", "--output", "evaluation"]
    assert run("evaluate", *argv) == 0
    record = json.loads(Path("evaluation/evaluation.json").read_text())
    assert record["conditional"]["examples"] == int(0.2 * NUMBER)
    assert record["conditional"]["metrics"]
